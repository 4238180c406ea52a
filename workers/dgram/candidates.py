"""The candidates of a partner: where it may be, and the probes that are on their way there (docs/direct.md).

    probes       those that are due: each has a body for the caller to seal, and a way
    answered     where the partner is, if this is the challenge of one of them
    begin_anew   the path has gone dark

An answer proves that its probe has come to the partner, whatever address the answer comes from.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from os import urandom

from pipeline.policy.path_mtu import BASE
from pipeline.policy.punching import Punching
from pipeline.policy.return_address import Address
from pipeline.sealing.datagram_seal import OVERHEAD
from pipeline.wire.control_datagram import Probe, pack_probe
from workers.dgram.path_control import Way

ASKED_MOST = 64


class Candidates:
    """`places`: addresses, each with its way."""

    def __init__(self, places: list[tuple[Address, Way]], now: int) -> None:
        self._places = places
        self._punching = Punching(now)
        self._asked: OrderedDict[int, tuple[Address, Way]] = OrderedDict()

    def probes(self, now: int) -> Iterator[tuple[bytes, Way]]:
        if not self._punching.due(now):
            return
        for place in self._places:
            challenge = int.from_bytes(urandom(8), "big")
            if len(self._asked) >= ASKED_MOST:
                self._asked.popitem(last=False)
            self._asked[challenge] = place
            yield pack_probe(Probe(challenge, now // 1000 & 0xFFFFFFFF, 0), BASE - OVERHEAD), place[1]

    def answered(self, challenge: int) -> tuple[Address, Way] | None:
        return self._asked.pop(challenge, None)

    def begin_anew(self, now: int) -> None:
        self._asked.clear()
        self._punching.begin_anew(now)
