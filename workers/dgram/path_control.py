"""One path as the inbound duty decides about it: whether it is open, where it leads, what it carries.

    heard, on_probe, on_answer, on_report    control datagrams have come
    tick                                     the clock: probes, challenges and late answers that are due go out

The decisions are those of pipeline.policy; this is where they meet. One probe serves all that want one of its size. Its
answer counts for the carrier, the size, the round trip and, if it was a challenge, for the address.

A client's path leads to the server's address, for good. A server's path leads where the return address says. So does a
path to a partner until it leads anywhere; then it stays there until it goes dark. Two ways that both work, one for each
end, would move each other else.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Mapping
from os import urandom
from typing import Any, NamedTuple, Protocol

from pipeline.policy.carrier import Carrier, Setting, State
from pipeline.policy.nat_keepalive import SECOND, NatKeepalive
from pipeline.policy.path_mtu import BASE, OVERHEAD, PathMtu
from pipeline.policy.return_address import Address, Change, ReturnAddress
from pipeline.sealing.datagram_seal import OVERHEAD as SEAL_BYTES
from pipeline.wire.control_datagram import PROBE_LEAST, Answer, Probe, pack_answer, pack_probe
from workers.dgram.path import Ancillary, Path

INTERFACE_MOST = 9000
"""Bytes of the largest packet that is tried: jumbo frames of Ethernet. A smaller interface refuses it at once."""

RESUMING_PROBES = 2  # one of them may be lost
ASKED_MOST = 32  # probes whose answers are waited for
WAYS_MOST = 8  # addresses that are remembered
_ANSWER_BYTES = len(pack_answer(Answer(0, 0, PROBE_LEAST))) + SEAL_BYTES
_U32 = 0xFFFFFFFF


class Way(NamedTuple):
    """How an address is reached: as sendmsg takes it."""

    address: tuple[object, ...]
    ancillary: Ancillary


class Sender(Protocol):
    """It seals a body for the path's session and sends it; 0 or the error."""

    def __call__(self, path: Path, body: bytes, way: Way) -> int: ...


class _Asked(NamedTuple):
    """A probe that went out."""

    size: int
    to: Address
    sent_ns: int
    wait: int


class PathControl:
    """`server`: of a client; None: the way has to be found. `overhead`: bytes of headers in front of a datagram, by
    version of IP. `reaches`: whether datagrams can be sent to an address at all now. `doubt`: lets the socket know that
    nothing gets through. `is_to_partner`: see docs/direct.md."""

    def __init__(
        self,
        path: Path,
        setting: Setting,
        send: Sender,
        now: int,
        server: tuple[Address, Way] | None = None,
        overhead: Mapping[int, int] = OVERHEAD,
        reaches: Callable[[tuple[Any, ...]], bool] = lambda address: True,
        doubt: Callable[[], None] = lambda: None,
        is_to_partner: bool = False,
    ) -> None:
        self.path = path
        self.carrier = Carrier(setting, True, now)
        self.heard_ns = now
        self._send_to = send
        self._overhead = overhead
        self._reaches = reaches
        self._doubt = doubt
        self._return = ReturnAddress()
        self._ways: dict[Address, Way] = {}
        self._is_client = server is not None
        self._is_to_partner = is_to_partner
        self._nat = NatKeepalive() if server is not None or is_to_partner else None
        self._nat_challenge = 0  # of the probe of the keepalive that has no answer
        self._sent_seen = 0
        self._mtu = PathMtu(INTERFACE_MOST)
        self._asked: OrderedDict[int, _Asked] = OrderedDict()
        self._late: tuple[int, bytes, Way] | None = None  # an answer that is due later
        if server is not None:
            self._lead_to(*server)

    @property
    def address(self) -> Address | None:
        return self._return.address

    @property
    def way(self) -> Way | None:
        """Where datagrams go now."""
        address = self._return.address
        return None if address is None else self._ways.get(address)

    @property
    def segment_most(self) -> int:
        return self._mtu.size

    @property
    def is_open(self) -> bool:
        return self.carrier.status.state is State.OPEN and self._mtu.size > 0 and self.way is not None

    @property
    def is_reached(self) -> bool:
        """Whether datagrams can be sent on its way now."""
        way = self.way
        return way is None or self._reaches(way.address)

    @property
    def _round_trip(self) -> int:
        return self.path.round_trip or self.path.probed_round_trip

    def resume(self, address: Address, way: Way, size: int, now: int) -> None:
        """Begin as the predecessor of this process left it: open.

        Probes find out whether that holds. They also tell the other end from which process segments come now: it
        reports those of no other.
        """
        self.path.is_resumed = True
        self._lead_to(address, way)
        self.carrier.due(now)
        self.carrier.answered(now)
        self._mtu.answered(size, now)
        self.show(now)

    def show(self, now: int) -> None:
        """Let the other end see at once which process sends, and from where."""
        if self._return.address is not None:
            for _ in range(RESUMING_PROBES):
                self._probe(BASE, self._return.address, now)
            self.carrier.doubt()

    def lead_to(self, address: Address, way: Way, now: int) -> None:
        """A partner is there: a probe of BASE bytes has been answered. Unless the path leads anywhere already."""
        if self._return.address is None:
            self._lead_to(address, way)
            self._mtu.answered(BASE, now)

    def lead_nowhere(self) -> None:
        """The path to a partner has gone dark: it may lead elsewhere when it opens again."""
        self._return = ReturnAddress()
        self._ways.clear()
        self._mtu = PathMtu(INTERFACE_MOST)

    def _lead_to(self, address: Address, way: Way) -> None:
        self._return.address = address
        self._ways[address] = way
        self._mtu = PathMtu(self._most(address))

    # -- control datagrams come

    def heard(self, source: Address, way: Way, count: int, size: int, now: int) -> None:
        """A control datagram of so many bytes has been opened."""
        self.heard_ns = now
        if self._is_client or (self._is_to_partner and self._return.address is not None):
            return
        if source not in self._ways and len(self._ways) >= WAYS_MOST:
            kept = self._return.address
            self._ways = {} if kept is None else {kept: self._ways[kept]}
        self._ways[source] = way
        self._take_change(self._return.heard(source, count, size, now), now)

    def on_probe(self, probe: Probe, source: Address, size: int, now: int) -> None:
        body = pack_answer(Answer(probe.challenge, probe.clock, size))
        if self._is_client:
            way = self.way
        else:
            way = self._ways.get(source) if self._return.may_answer(source, _ANSWER_BYTES) else None
        if way is None:
            return
        if probe.wait:
            self._late = now + probe.wait * SECOND, body, way
        else:
            self._send(body, way, now)

    def on_answer(self, answer: Answer, now: int, came_ns: int) -> None:
        """`came_ns`: when it came to this machine."""
        asked = self._asked.pop(answer.challenge, None)
        if asked is None:
            return
        if asked.wait:
            if answer.challenge == self._nat_challenge:
                self._nat_challenge = 0
            if self._nat is not None:
                self._nat.answered(asked.wait, now)
            return
        self.path.probed_round_trip = max(1, came_ns - asked.sent_ns)
        if not self._is_client:
            self._take_change(self._return.proved(asked.to, now), now)
        if asked.size >= BASE and asked.to == self._return.address:
            self._mtu.answered(min(asked.size, answer.size), now)
            self.carrier.answered(now)

    def on_report(self, is_news: bool, now: int) -> None:
        if is_news:
            self.carrier.reported(now)

    def _take_change(self, change: Change, now: int) -> None:
        """The path leads elsewhere. An address is proved by BASE bytes at least, and nothing more is known of it."""
        address = self._return.address
        if change is Change.HOST and address is not None:
            self._mtu = PathMtu(self._most(address))
            self._mtu.answered(BASE, now)

    # -- the clock

    def tick(self, now: int, has_read_all: bool) -> None:
        """`has_read_all`: nothing waits in the socket that could tell more."""
        path, carrier = self.path, self.carrier
        rtt = self._round_trip
        if path.too_big:
            path.too_big = False
            self._mtu.doubt(now)
        if path.doubted:
            path.doubted = False
            carrier.doubt()
        carrier.update(path.outstanding_since, now, rtt, has_read_all)
        if carrier.status.state is State.DARK:
            self._doubt()
        if self._late is not None and now >= self._late[0]:
            _, body, way = self._late
            self._late = None
            self._send(body, way, now)
        asked = self._return.challenge(BASE, now, rtt) if not self._is_client else None
        if asked is not None:
            self._probe(BASE, asked, now)
        if self._return.address is not None and self.is_reached:
            self._probe_size_and_carrier(self._return.address, now, rtt)
            if self._nat is not None and carrier.status.state is State.OPEN:
                self._keep_alive(self._nat, self._return.address, now, rtt)

    def doubt_size(self, now: int) -> None:
        """The path has gone dark. It may be a hole for long datagrams alone."""
        self._mtu.doubt(now)

    def _probe_size_and_carrier(self, address: Address, now: int, rtt: int) -> None:
        is_due = self.carrier.due(now, rtt)
        size = self._mtu.due(now, rtt)
        if is_due and size != BASE:
            self._probe(BASE, address, now)
        while size:
            if self._probe(size, address, now) != errno.EMSGSIZE:
                break
            self._mtu.refused(now)
            size = self._mtu.due(now, rtt)

    def _keep_alive(self, nat: NatKeepalive, address: Address, now: int, rtt: int) -> None:
        if self.path.sent_ns > self._sent_seen:
            self._sent_seen = self.path.sent_ns
            nat.sent(self.path.sent_ns)
        wait = nat.due(now, rtt)
        if wait:
            if self._nat_challenge:
                self.carrier.doubt()  # the answer before is missing
            self._probe(PROBE_LEAST + SEAL_BYTES, address, now, wait)

    # -- datagrams go out

    def _probe(self, size: int, to: Address, now: int, wait: int = 0) -> int:
        """Send a probe of so many bytes; 0, or the error."""
        way = self._ways.get(to)
        if way is None:
            return errno.EHOSTUNREACH
        challenge = int.from_bytes(urandom(8), "big")
        body = pack_probe(Probe(challenge, now // 1000 & _U32, wait), size - SEAL_BYTES)
        error = self._send_to(self.path, body, way)
        if error:
            self._note_error(error)
            return error
        if wait:
            self._nat_challenge = challenge
        elif self._nat is not None:
            self._nat.sent(now)
        if len(self._asked) >= ASKED_MOST:
            self._asked.popitem(last=False)
        self._asked[challenge] = _Asked(size, to, now, wait)
        return 0

    def send_report(self, body: bytes, now: int) -> bool:
        way = self.way
        return way is not None and self._send(body, way, now)

    def _send(self, body: bytes, way: Way, now: int) -> bool:
        error = self._send_to(self.path, body, way)
        if error:
            self._note_error(error)
            return False
        if self._nat is not None:
            self._nat.sent(now)
        return True

    def _note_error(self, error: int) -> None:
        if error not in (errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE):
            self.carrier.doubt()

    def _most(self, address: Address) -> int:
        """The largest payload of a datagram that is tried."""
        return INTERFACE_MOST - self._overhead[6 if ":" in address.host else 4]
