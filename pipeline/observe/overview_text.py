"""The text of the overview, as the supervisor writes it and an observer reads it. Pure.

    compose(about, plan, peers, room)    the text
    parse(text)                          what it says, as data

The first line is JSON about everything but the peers. Each further line is a peer's row (pipeline.peers.peer_status).
A hub may have thousands: as objects they need ten times the memory of their text, so a reader makes them one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LEFT_OUT_BYTES = 40  # of `peers_left_out` with its number


class PeerLines:
    """The rows of the peers, each made when it is reached."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __len__(self) -> int:
        return self._text.count("\n") + 1 if self._text else 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        at, end = 0, len(self._text)
        while at < end:
            stop = self._text.find("\n", at)
            stop = end if stop < 0 else stop
            yield json.loads(self._text[at:stop])
            at = stop + 1


def compose(about: Mapping[str, Any], plan: str, peers: Sequence[str], room: int) -> str:
    """The text, at most `room` bytes of it: of the peers, the first ones for which there is room.

    `plan` and `peers`: as JSON, in ASCII as json.dumps() makes it.
    """
    start = f'{json.dumps(about)[:-1]}, "plan": {plan}'
    room -= len(start) + LEFT_OUT_BYTES
    shown = 0
    for row in peers:
        room -= len(row) + 1
        if room < 0:
            break
        shown += 1
    return "\n".join([f'{start}, "peers_left_out": {len(peers) - shown}}}', *peers[:shown]])


def parse(text: str) -> dict[str, Any]:
    """Everything that the text says, the peers as PeerLines under `peers`; nothing for an empty text."""
    if not text:
        return {}
    first, _, peers = text.partition("\n")
    about: dict[str, Any] = json.loads(first)
    about["peers"] = PeerLines(peers)
    return about
