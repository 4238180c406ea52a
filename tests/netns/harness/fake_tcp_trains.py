"""Trains of segments over fake TCP, each of which is known by its first bytes, between the ends of a lab."""

from __future__ import annotations

import random
import struct
from collections import Counter
from contextlib import ExitStack
from functools import partial

from tests.netns.harness.fake_tcp import End, Routed, add_client, add_server
from tests.support import eventually

SEGMENT = 1400
SECONDS = 10
Address = tuple[str, int]


def start(opened: ExitStack, lab: Routed, version: int = 4) -> tuple[End, End, Address]:
    """A client, a server and its address, with a flow between them."""
    (server,), port = add_server(lab.server)
    opened.callback(server.close)
    address = (lab.addresses[version], port)
    client = add_client(lab.client, address)
    opened.callback(client.close)
    return client, server, address


def train(number: int, size: int = 20 * SEGMENT) -> bytes:
    """The payload of a super-packet. Each segment begins with a number of its own."""
    rest = random.Random(number).randbytes(SEGMENT - 6)
    return b"".join(struct.pack(">IH", number, index) + rest for index in range(-(-size // SEGMENT)))[:size]


def send_all(end: End, address: Address, trains: list[bytes]) -> None:
    for each in trains:
        eventually(partial(end.may_send, each, SEGMENT, address), SECONDS, "room in the window")


def cut(payload: bytes, segment_bytes: int = SEGMENT) -> list[bytes]:
    return [payload[at : at + segment_bytes] for at in range(0, len(payload), segment_bytes)]


def segments(end: End) -> list[bytes]:
    return [segment for each in list(end.received) for segment in cut(each.content, each.segment_bytes)]


STRAY = Counter(cut(train(0)))
"""What is sent to learn whether a flow is alive."""


def exchange(client: End, server: End, address: Address, count: int = 30) -> Address:
    """Trains each way, all of which arrive with the borders of their segments. The client's address, as seen there."""
    trains = [train(number, 19 * SEGMENT + number + 1) for number in range(1, count + 1)]
    seen = []
    for sender, receiver, there in ((client, server, lambda: address), (server, client, lambda: seen[0])):
        receiver.received.clear()
        send_all(sender, there(), trains)
        wanted = Counter(segment for each in trains for segment in cut(each))
        eventually(partial(has_all, receiver, wanted), SECONDS, "all segments")
        seen.append(receiver.received[-1].address)
    return seen[0]


def has_all(end: End, wanted: Counter[bytes]) -> bool:
    got = Counter(segments(end))
    assert not set(got) - set(wanted) - set(STRAY)
    return not wanted - got
