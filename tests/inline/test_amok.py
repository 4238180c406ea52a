"""A worker that runs amok and overwrites all that it can: no other worker ends, and its successor works again."""

from __future__ import annotations

import random
from contextlib import suppress
from itertools import chain

import pytest

from pipeline.runtime.plan import StageMember
from pipeline.shm import layout
from tests.inline.harness.ends import End, Make, ipv4, until

STEPS = 150
HEADER_WORDS = layout.SLOT_RUN_HEADERS_END // 8

VALUES = (0, 1, 2, 3, 40, 41, 512, 2048, 4096, 100_000, 135_168, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)


def overwrite(end: End, name: str, rng: random.Random) -> None:
    """Some of what this worker can write to, with values that may hurt."""

    def value() -> int:
        return rng.choice(VALUES) if rng.random() < 0.7 else rng.getrandbits(64)

    for planned in end.plan.rings:
        members = [member for duty in layout.DUTIES if planned.position_of(member := StageMember(name, duty))]
        ring = end.memory.rings[planned.name]
        if members and rng.random() < 0.3:
            ring.cursors[layout.CURSOR_STRIDE // 8 * rng.randrange(ring.members)] = value()
        if not all(planned.only_reads(member) for member in members):
            for slot in ring.slots:
                with slot[: 8 * HEADER_WORDS].cast("Q") as words:
                    for _ in range(20):
                        words[rng.randrange(HEADER_WORDS if rng.random() < 0.5 else 8)] = value()
                at = rng.randrange(len(slot) - 64)
                slot[at : at + 64] = rng.randbytes(64)
    worker = end.plan.worker(name)
    table = end.memory.peer_table
    own = table.written_by(worker.kind, worker.lane, worker.duties)
    for words in (*own, end.memory.scoreboard.pages[worker.page].counters):
        words[rng.randrange(len(words))] = value()


@pytest.mark.parametrize("kind", ["tun", "fec", "tcp"])
@pytest.mark.parametrize("capacity", [1, 3], ids=["one-peer", "several"])
@pytest.mark.parametrize("seed", range(2))
def test_a_worker_that_overwrites_all_that_it_can_ends_no_other(
    make: Make, kind: str, capacity: int, seed: int
) -> None:
    server = make("server", lanes=2, capacity=capacity, fec="on")
    client = make("client", lanes=2, port=server.port, fec="on", connections=4, reconnect_min=0.01, reconnect_max=0.02)
    until(lambda: server.established() == client.established() == 4, server, client)
    rng = random.Random(seed)
    amok = f"{kind}-0"
    for end, other in ((server, client), (client, server)):
        others = [name for name in end.workers if name != amok]
        for number in range(STEPS):
            overwrite(end, amok, rng)
            for each, lane in ((end, 1), (other, 0), (other, 1)):
                if each.has_room(lane):
                    each.write(ipv4(number, rng.choice((60, 1400, 50_000))), lane)
            end.step(*others)
            other.step()
        for lane in range(2):
            end.memory.peer_table.connections(lane)
        end.kill(amok)
        end.start(amok)
    assert any("spoilt" in name or "mended" in name for name in chain(server.counts(), client.counts()))
    if capacity == 1:
        for sender, receiver in ((server, client), (client, server)):
            before = len(receiver.packets())
            until(lambda: sends_anything(sender, receiver, before), server, client)


def sends_anything(sender: End, receiver: End, before: int) -> bool:
    for lane in range(2):
        with suppress(BlockingIOError):  # what has been read already is not known: its counter may be overwritten
            sender.write(ipv4(1), lane)
    return len(receiver.packets()) > before
