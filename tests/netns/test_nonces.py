"""No nonce repeats while workers of a real pair are killed: what somebody on the path records says so.

client in c  --  relay in b, which records every byte  --  hub in a
"""

from __future__ import annotations

import signal
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.hub import Client, Hub
from tests.netns.harness.relay import Relay
from tests.netns.harness.telling_client import sealed_frames, telling, told
from tests.reference.blocks import RUN
from tests.reference.records import Header
from tests.reference.sealed_blocks import CODED, COPIED
from tools.lab.network import Lab

KILLED = ("tun-0", "fec-0", "tcp-0")
RATE_MBIT = 16
BYTES_BETWEEN = 150_000  # that arrive in each direction between two kills

Nonce = tuple[bytes, str, int, int, int, int]  # context of the session, direction, epoch, stream, number, copy


class SealedBook:
    """Every sealed block that was seen, by its nonce; a block that is cut into shards is seen piece by piece."""

    def __init__(self) -> None:
        self.blocks: dict[Nonce, tuple[int, list[tuple[int, bytes]]]] = {}  # size, and pieces with their offsets
        self.again = 0  # pieces that were seen before, with the same bytes
        self.repeated: list[Nonce] = []  # nonces that two different blocks have

    def add(self, direction: str, context: bytes, header: Header, body: bytes) -> None:
        if header.kind != RUN:
            return
        copy = header.first if header.n == 1 else 0
        nonce = context, direction, header.epoch, header.stream, header.number, copy
        size, pieces = self.blocks.setdefault(nonce, (header.size, []))
        each = header.shard_bytes
        if size != header.size:
            self.repeated.append(nonce)
        for shard in range(header.shards):
            index = 0 if header.n == 1 else header.first + shard
            if index < header.n:  # else parity, which follows from the data
                piece = body[shard * each : (shard + 1) * each][: max(0, size - index * each)]
                self._add_piece(nonce, pieces, index * each, piece)

    def _add_piece(self, nonce: Nonce, pieces: list[tuple[int, bytes]], at: int, piece: bytes) -> None:
        for other_at, other in pieces:
            begin, end = max(at, other_at), min(at + len(piece), other_at + len(other))
            if begin < end:
                self.again += 1
                if piece[begin - at : end - at] != other[begin - other_at : end - other_at]:
                    self.repeated.append(nonce)
        pieces.append((at, piece))


BLOCK = Header(RUN, stream=1 << 8, number=7, n=1, shards=1, size=100)
CUT = BLOCK._replace(n=2, m=1, shards=3)


@pytest.mark.parametrize("header", [BLOCK, CUT])
def test_the_book_finds_a_nonce_that_two_blocks_have(header: Header) -> None:
    body = bytes(range(256))[: header.body_bytes] * (1 + header.body_bytes // 256)
    book = SealedBook()
    for again, part in enumerate((body, body, body[:-1] + b"?")):  # the last byte of CUT is parity
        book.add("out", b"", header, part)
        assert (book.again > 0) == (again > 0)
    assert bool(book.repeated) == (header.n == 1)
    for other in (header._replace(number=8), header._replace(stream=2 << 8), header._replace(epoch=1)):
        book.repeated.clear()
        book.add("out", b"", other, b"?" + body[1:])
        assert not book.repeated
        book.add("out", b"", header, b"?" + body[1:])
        assert book.repeated


def test_no_nonce_repeats_while_every_worker_of_both_ends_is_killed_under_load(tmp_path: Path) -> None:
    """The inner connections survive."""
    file = tmp_path / "told"
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(names=("a", "b", "c")))
        hub = stack.enter_context(Hub(lab, tmp_path, fec="on", rate_mbit=RATE_MBIT))
        relay = stack.enter_context(Relay(lab["b"], (hub.node.address, hub.port)))
        invitation = hub.invite("one", "--address", relay.address)
        settings = {"fec": "on", "connections": 3, "light_connections": 2}
        client = stack.enter_context(Client(lab["c"], invitation, tmp_path, wrap=telling(file), **settings))
        client.wait_until_joined()
        flows = [
            stack.enter_context(Flow(source, sink)) for source, sink in ((client, hub.server), (hub.server, client))
        ]
        for instances in ((hub.server,), (client,), (hub.server, client)):
            for worker in KILLED:
                for flow in flows:
                    flow.wait_for(BYTES_BETWEEN)
                pids = [instance.signal_worker(worker, signal.SIGKILL) for instance in instances]
                for instance, pid in zip(instances, pids, strict=True):
                    instance.wait_until_replaced(worker, pid)
        for flow in flows:
            flow.wait_for(BYTES_BETWEEN)
            flow.finish()
        client.stop()

    book = SealedBook()
    _, connections = told(file)
    for (_, direction), stream in relay.recorded.items():
        for context, header, body in sealed_frames(bytes(stream), connections):
            book.add(direction, context, header, body)
    assert book.repeated == []
    processes: dict[str, set[int]] = defaultdict(set)
    epochs: dict[tuple[str, int, int, int], set[tuple[bytes, int]]] = defaultdict(set)
    for context, direction, epoch, stream_number, number, copy in book.blocks:
        processes[direction].add(stream_number >> 8)
        epochs[direction, stream_number, number, copy].add((context, epoch))
    assert {stream_number & 7 for _, _, _, stream_number, _, _ in book.blocks} >= {CODED, COPIED}
    assert sorted(map(len, processes.values())) == [3, 3], "each tun worker was killed twice"
    assert {len(under) for under in epochs.values()} == {1}, "a number was used under two keys"
