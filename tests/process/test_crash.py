"""The crash argument: a member of a ring that is killed at any instant loses at most what it had in hand.

A process kills itself between two statements (tests/process/harness/ring_member.py), and a successor attaches. Every
slot must come out whole: once, or, of those in hand when the process died, twice.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.runtime import topology
from pipeline.runtime.plan import Plan
from pipeline.runtime.worker import PERIOD
from pipeline.shm import doorbell, layout, peer_table, ring, scoreboard, segment
from pipeline.shm.layout import MASK64
from pipeline.shm.ring import Ring
from tests.harness.factory import factory
from tests.harness.settings import WORKER_SETTINGS
from tests.process.harness.ring_member import (
    AFTER_CURSOR,
    AFTER_KICK,
    AFTER_PAYLOAD,
    ASLEEP,
    BEFORE_CURSOR,
    BEFORE_PAYLOAD,
    FALLING_ASLEEP,
    IN_PAYLOAD,
    SEEN_BYTES,
    Member,
)
from tests.support import ROOT, eventually

SLOTS = 4
TOTAL = 12
NEAR_WRAP = (1 << 64) - 3

FILLED_MIN = 1000
"""Slots under load, however long that takes."""

OLD, NEW = 1, 2  # generations

IN_HAND = (BEFORE_PAYLOAD, IN_PAYLOAD, AFTER_PAYLOAD, BEFORE_CURSOR)
HANDED_ON = (AFTER_CURSOR, AFTER_KICK)
SEEN_BEFORE_DEATH = (AFTER_PAYLOAD, BEFORE_CURSOR)

MEMBERS = ("tun-0", "fec-0", "tcp-0", "tcp-1")

STARTS = pytest.mark.parametrize("start", [0, NEAR_WRAP], ids=["zero", "near-2^64"])
EVERY_MEMBER = pytest.mark.parametrize("victim", MEMBERS)


class World:
    """Ring, doorbells, scoreboard and peer table of a plan, with members of the ring in this process."""

    def __init__(self, start: int, fec: bool = True, slots: int = SLOTS) -> None:
        self.start = start
        self.plan: Plan = topology.build_plan(
            "crashtest",
            secrets.token_hex(4),
            "server",
            2 if fec else 1,
            slots,
            layout.PAGE,
            WORKER_SETTINGS._replace(fec="on" if fec else "off"),
        )
        self.kind = "coded" if fec else "plain"
        self.scoreboard = scoreboard.create(self.plan.scoreboard, len(self.plan.workers))
        self.peer_table = peer_table.create(
            *self.plan.peer_table[:2], self.plan.lanes, self.plan.peer_table.status_rows
        )
        self.rings: dict[str, Ring] = {
            each.name: ring.create(each.segment, each.members, each.slots, each.slot_bytes, start)
            for each in self.plan.rings
            if each.kind == self.kind
        }
        for worker in self.plan.workers:
            for name in worker.doorbells.values():
                doorbell.create(name)
        self.seen: dict[str, list[tuple[int, int]]] = {"tcp-0": [], "tcp-1": []}

    def member(self, worker: str, generation: int = NEW) -> Member:
        log = self.seen.get(worker, [])
        return Member(self.plan, worker, self.start, generation, lambda *slot: log.append(slot))

    def cursors(self) -> list[int]:
        """How many slots each member of the ring has handed on, in their order."""
        attached = self.rings[f"{self.kind}-0"]
        return [(attached.cursor(number) - self.start) & MASK64 for number in range(attached.members)]

    def asleep(self, worker: str) -> bool:
        return bool(self.scoreboard.pages[self.plan.worker(worker).page].sleeping("outbound")[0])

    def process(self, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.process.harness.ring_member", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            **options,
        )
        process.stdin.write(self.plan.to_json().encode())
        process.stdin.close()
        return process

    def close(self) -> None:
        for each in self.rings.values():
            each.close()
        self.peer_table.close()
        self.scoreboard.close()
        segment.unlink(self.plan.peer_table.segment)
        segment.unlink(self.plan.scoreboard)
        for ring_plan in self.plan.rings:
            segment.unlink(ring_plan.segment)
        for worker in self.plan.workers:
            for name in worker.doorbells.values():
                doorbell.unlink(name)


@pytest.fixture
def world() -> Iterator[Callable[..., World]]:
    with factory(World) as make:
        yield make


def run(members: list[Member], burst: int = SLOTS, upto: int = TOTAL) -> None:
    """Step the members in turn until all have done so many slots."""
    while any(member.done < upto for member in members):
        moved = sum(member.step(min(burst, upto - member.done)) for member in members)
        assert moved, f"no member can move: {[member.done for member in members]}"


def killed(process: subprocess.Popen, meanwhile: Callable[[], object] = lambda: None) -> list[tuple[int, int]]:
    """Wait until the process has killed itself; the slots that it had seen."""

    def ended() -> bool:
        meanwhile()
        return process.poll() is not None

    eventually(ended, 20)
    with process:
        said = process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    return [(int(number), int(count)) for number, count in map(str.split, said.decode().splitlines())]


def upstream(world: World, victim: str) -> list[Member]:
    """The members before the victim."""
    return [world.member(name, OLD) for name in MEMBERS[: min(MEMBERS.index(victim), 2)]]


def expected_seen(instant: str, first: int, last: int) -> list[int]:
    """Numbers that a killed checker and its successor see together; first to last were in hand."""
    before = list(range(last + 1 if instant in (*SEEN_BEFORE_DEATH, *HANDED_ON) else last))
    return before + list(range(last + 1 if instant in HANDED_ON else first, TOTAL))


@STARTS
@EVERY_MEMBER
@pytest.mark.parametrize("instant", [*IN_HAND, *HANDED_ON])
@pytest.mark.parametrize("fatal", [0, SLOTS - 1], ids=["first", "last-of-the-ring"])
def test_a_member_killed_with_neighbours_that_stand_still_loses_only_what_it_had_in_hand(
    world: Callable[..., World], start: int, victim: str, instant: str, fatal: int
) -> None:
    """With the last slot of the ring it fills it (tun) or empties it (the others) in the moment of its death."""
    made = world(start)
    before = upstream(made, victim)
    run(before, upto=SLOTS)
    stood = made.cursors()
    seen = killed(made.process("step", victim, start, OLD, instant, fatal, 1))

    place = MEMBERS.index(victim)
    stood[place] = fatal + (instant in HANDED_ON)
    assert made.cursors() == stood  # its own cursor moved or it did not; no other did

    members = [made.member(name) for name in MEMBERS]
    assert members[place].done == stood[place]
    run(members)
    for name in ("tcp-0", "tcp-1"):
        numbers = [number for number, _ in (seen if name == victim else []) + made.seen[name]]
        assert numbers == (expected_seen(instant, fatal, fatal) if name == victim else list(range(TOTAL)))
    if victim == "tun-0":  # what was handed on stays as it was, what was in hand is the successor's
        generations = [generation for _, generation in made.seen["tcp-0"]]
        assert generations == [OLD] * stood[0] + [NEW] * (TOTAL - stood[0])


@STARTS
@EVERY_MEMBER
@pytest.mark.parametrize("instant", [IN_PAYLOAD, BEFORE_CURSOR, AFTER_CURSOR])
def test_a_member_killed_while_its_neighbours_run_loses_only_what_it_had_in_hand(
    world: Callable[..., World], start: int, victim: str, instant: str
) -> None:
    """On the second lap of the ring, with slots that held something else before."""
    made = world(start)
    fatal = SLOTS + 2
    others = [made.member(name, OLD) for name in MEMBERS if name != victim]

    def neighbours() -> None:
        for member in others:
            member.step(min(1, TOTAL - member.done))

    seen = killed(made.process("step", victim, start, OLD, instant, fatal, 1), neighbours)
    assert made.cursors()[MEMBERS.index(victim)] == fatal + (instant in HANDED_ON)
    run([*others, made.member(victim)], burst=1)
    for name in ("tcp-0", "tcp-1"):
        numbers = [number for number, _ in (seen if name == victim else []) + made.seen[name]]
        assert numbers == (expected_seen(instant, fatal, fatal) if name == victim else list(range(TOTAL)))


@STARTS
@EVERY_MEMBER
@pytest.mark.parametrize("instant", [AFTER_PAYLOAD, BEFORE_CURSOR, AFTER_CURSOR])
def test_a_member_killed_in_a_burst_has_the_whole_burst_in_hand(
    world: Callable[..., World], start: int, victim: str, instant: str
) -> None:
    made = world(start)
    before = upstream(made, victim)
    run(before, upto=SLOTS)
    burst, fatal = 3, 2  # the last of the first three
    seen = killed(made.process("step", victim, start, OLD, instant, fatal, burst))
    assert made.cursors()[MEMBERS.index(victim)] == (burst if instant in HANDED_ON else 0)
    run([made.member(name) for name in MEMBERS])
    for name in ("tcp-0", "tcp-1"):
        numbers = [number for number, _ in (seen if name == victim else []) + made.seen[name]]
        assert numbers == (expected_seen(instant, 0, fatal) if name == victim else list(range(TOTAL)))


@STARTS
@EVERY_MEMBER
@pytest.mark.parametrize("instant", [FALLING_ASLEEP, ASLEEP])
def test_a_member_killed_asleep_has_a_successor_that_wakes(
    world: Callable[..., World], start: int, victim: str, instant: str
) -> None:
    """tun-0 sleeps on a full ring, the others on an empty one."""
    made = world(start)
    run(upstream(made, victim), upto=SLOTS)
    process = made.process("step", victim, start, OLD, instant, SLOTS, 1)
    if instant == ASLEEP:
        place = MEMBERS.index(victim)
        eventually(lambda: made.cursors()[place] == SLOTS and made.asleep(victim))
        process.kill()
    seen = killed(process)
    assert made.asleep(victim)  # nothing cleans up after the dead

    others = [made.member(name) for name in MEMBERS if name != victim]
    for _ in range(2 * SLOTS):  # they go on without it as far as they can, and kick a dead sleeper
        for member in others:
            member.step(min(1, TOTAL - member.done))
    successor = made.member(victim)
    assert not made.asleep(victim)
    assert successor.bell.wait(successor.port.ready, 20.0)
    run([*others, successor])
    for name in ("tcp-0", "tcp-1"):
        assert [number for number, _ in (seen if name == victim else []) + made.seen[name]] == list(range(TOTAL))


@pytest.mark.parametrize(
    ("mover", "sleeper"), [("tun-0", "fec-0"), ("fec-0", "tcp-0"), ("fec-0", "tcp-1"), ("tcp-1", "tun-0")]
)
def test_a_running_member_wakes_the_next_one_at_once(world: Callable[..., World], mover: str, sleeper: str) -> None:
    made = world(NEAR_WRAP)
    run(upstream(made, mover), upto=SLOTS)
    if mover == "tcp-1":
        run([made.member("tcp-0")], upto=SLOTS)
    waiting = made.member(sleeper)
    woken: list[float] = []

    def sleep() -> None:
        waiting.bell.wait(waiting.port.ready, 20.0)
        woken.append(time.monotonic())

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    eventually(lambda: made.asleep(sleeper))
    moved = time.monotonic()
    made.member(mover).step(1)
    thread.join(25)
    assert woken[0] - moved < 10


@STARTS
@pytest.mark.parametrize(("victim", "sleeper"), [("tun-0", "fec-0"), ("fec-0", "tcp-0"), ("tcp-1", "tun-0")])
def test_a_wake_up_that_was_never_sent_costs_a_period_and_not_the_tunnel(
    world: Callable[..., World], start: int, victim: str, sleeper: str
) -> None:
    """Its sender is killed after the cursor and before the kick. The sleeper finds the slot by itself."""
    made = world(start)
    run(upstream(made, victim), upto=SLOTS)
    if victim == "tcp-1":
        run([made.member("tcp-0", OLD)], upto=SLOTS)
    waiting = made.member(sleeper)
    if sleeper == "tun-0":
        assert waiting.port.ready() == 0  # the ring is full, and the other tcp worker has done all of it
    woken: list[float] = []

    def sleep() -> None:
        while not waiting.port.ready():
            waiting.bell.wait(waiting.port.ready, PERIOD)
        woken.append(time.monotonic())

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    eventually(lambda: made.asleep(sleeper))
    killed(made.process("step", victim, start, OLD, AFTER_CURSOR, 0, 1))
    thread.join(20)
    assert woken
    assert waiting.port.ready() == 1


def test_a_ring_that_is_full_when_its_filler_dies_is_not_filled_again(world: Callable[..., World]) -> None:
    made = world(NEAR_WRAP)
    killed(made.process("step", "tun-0", NEAR_WRAP, OLD, AFTER_CURSOR, SLOTS - 1, 1))
    successor = made.member("tun-0")
    assert successor.port.ready() == 0
    assert successor.step(1) == 0
    others = [made.member(name) for name in MEMBERS[1:]]
    run(others, upto=SLOTS)
    assert made.seen["tcp-0"] == [(number, OLD) for number in range(SLOTS)]
    assert successor.port.ready() == SLOTS


# -- under load


class Load:
    """A filler and a checker at full speed; chance decides which one is killed next."""

    def __init__(self, world: World, dice: random.Random) -> None:
        self._world = world
        self._dice = dice
        self._seen_fd = os.memfd_create("seen")
        os.ftruncate(self._seen_fd, SEEN_BYTES)
        self._running: dict[str, subprocess.Popen] = {}
        self.kills = {"tun-0": 0, "tcp-0": 0}
        for name in self.kills:
            self.start(name)

    def start(self, name: str) -> None:
        self._running[name] = self._world.process(
            "load", name, self._world.start, self.kills[name], self._seen_fd, pass_fds=[self._seen_fd]
        )

    def kill(self, name: str) -> None:
        process = self._running.pop(name)
        assert process.stdout.readline() == b"running\n", f"{name} has ended by itself"
        threading.Event().wait(self._dice.uniform(0, 0.08))
        process.kill()
        killed(process)
        self.kills[name] += 1

    def filled(self) -> int:
        return self._world.cursors()[0]

    def finish(self) -> bytes:
        """End the filler, let the checker catch up, end it too: how often each slot was seen."""
        self.kill("tun-0")
        eventually(lambda: len(set(self._world.cursors())) == 1, 20)
        self.kill("tcp-0")
        return os.pread(self._seen_fd, self.filled() + SLOTS, 0)

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            with process:
                pass
        os.close(self._seen_fd)


@pytest.mark.parametrize("start", [0, NEAR_WRAP], ids=["zero", "near-2^64"])
def test_kills_at_any_moment_under_load_lose_nothing_and_repeat_only_what_was_in_hand(
    world: Callable[..., World], start: int
) -> None:
    slots = 16
    made = world(start, fec=False, slots=slots)
    dice = random.Random(start)
    load = Load(made, dice)
    try:
        over = time.monotonic() + 2.2
        while time.monotonic() < over or load.filled() <= FILLED_MIN:
            name = dice.choice(["tun-0", "tcp-0"])
            load.kill(name)
            load.start(name)
        seen = load.finish()
    finally:
        load.close()
    filled = load.filled()
    assert filled > FILLED_MIN
    assert seen[filled:] == bytes(slots)[: len(seen) - filled]
    missing = [number for number in range(filled) if not seen[number]]
    assert missing == []
    again = sum(seen[number] - 1 for number in range(filled))
    assert again <= load.kills["tcp-0"] * slots
    assert min(load.kills.values()) > 0
