"""Members of a ring whose slots carry checked payloads, and a process that is one of them and dies when told to.

    python -m tests.process.harness.ring_member step WORKER START GENERATION INSTANT SLOT BURST
    python -m tests.process.harness.ring_member load WORKER START GENERATION FD

Both read the plan from standard input. `step` kills itself at an instant of a slot, and until then writes what it
has seen to standard output; `load` runs at full speed until it is killed, and counts what it sees in the file FD.

The ring is the outbound one of lane 0: tun-0 fills a slot, fec-0 (if the plan has it) adds to it, tcp workers check.

    slot    SLOT | number u64, generation u64, bytes, crc32 | number u64, crc32 again (fec-0)

A number is the slot's place since the creation of the ring, so a successor knows it from its cursor. The
generation is that of the filling process: a slot that mixes two generations fails its checksum.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any, NoReturn

from pipeline.runtime.plan import Plan
from pipeline.runtime.worker import PERIOD, Attachment
from pipeline.shm.layout import MASK64
from pipeline.shm.slot import read_header, write_header

PAYLOAD_AT = 64
ADDED_AT = 2048
HEAD = struct.Struct("<QQ")
CRC = struct.Struct("<I")
ADDED = struct.Struct("<QI")
BODY_BYTES = 1000
PAYLOAD_BYTES = HEAD.size + BODY_BYTES + CRC.size
BODIES = [random.Random(seed).randbytes(BODY_BYTES) for seed in range(64)]

SEEN_BYTES = 1 << 24  # one byte a slot; sparse

# the instants between which a member does its work on a slot
BEFORE_PAYLOAD, IN_PAYLOAD, AFTER_PAYLOAD = "before-payload", "in-payload", "after-payload"
BEFORE_CURSOR, AFTER_CURSOR, AFTER_KICK = "before-cursor", "after-cursor", "after-kick"
FALLING_ASLEEP, ASLEEP = "falling-asleep", "asleep"

Hook = Callable[[str, int], None]


class Corrupt(Exception):
    """A slot does not hold what was written into it."""


def live_on(instant: str, number: int) -> None:
    """The hook of a member that is not about to die."""


class Member:
    """One worker in the ring. `report(number, generation)` is called for every slot that a tcp worker checks."""

    def __init__(
        self, plan: Plan, worker: str, start: int, generation: int, report: Callable[[int, int], None]
    ) -> None:
        attachment = Attachment(plan, worker)
        self.port = attachment.ports("outbound", "coded" if attachment.plan.workers_of_kind("fec") else "plain")[0]
        self.bell = attachment.doorbells["outbound"]
        self.start = start
        self._generation = generation
        self._report = report
        self._added = bool(plan.workers_of_kind("fec"))
        self._do = {"tun": self._fill, "fec": self._add, "tcp": self._check}[attachment.worker.kind]

    @property
    def done(self) -> int:
        """Slots that this member has handed on since the creation of the ring."""
        return (self.port.cursor - self.start) & MASK64

    def step(self, burst: int, hook: Hook = live_on) -> int:
        """Do up to `burst` ready slots and hand them on together."""
        first = self.done
        count = min(burst, self.port.ready())
        for i in range(count):
            hook(BEFORE_PAYLOAD, first + i)
            self._do(self.port.slot(i), first + i, hook)
            hook(AFTER_PAYLOAD, first + i)
        if count:
            self.port.advance(count)
        return count

    def _fill(self, slot: memoryview, number: int, hook: Hook) -> None:
        data = HEAD.pack(number, self._generation) + BODIES[(number + self._generation) % len(BODIES)]
        data += CRC.pack(zlib.crc32(data))
        half = len(data) // 2
        slot[PAYLOAD_AT : PAYLOAD_AT + half] = data[:half]
        hook(IN_PAYLOAD, number)
        slot[PAYLOAD_AT + half : PAYLOAD_AT + len(data)] = data[half:]
        write_header(slot, PAYLOAD_AT, len(data), number % 2, number)

    def _add(self, slot: memoryview, number: int, hook: Hook) -> None:
        _, crc = payload_of(slot, number)
        data = ADDED.pack(number, crc)
        slot[ADDED_AT : ADDED_AT + 6] = data[:6]
        hook(IN_PAYLOAD, number)
        slot[ADDED_AT + 6 : ADDED_AT + len(data)] = data[6:]

    def _check(self, slot: memoryview, number: int, hook: Hook) -> None:
        generation, crc = payload_of(slot, number)
        hook(IN_PAYLOAD, number)
        added = ADDED.unpack_from(slot, ADDED_AT)
        if self._added and added != (number, crc):
            raise Corrupt(f"slot {number}: {added} was added to it, expected {(number, crc)}")
        self._report(number, generation)


def payload_of(slot: memoryview, number: int) -> tuple[int, int]:
    """Generation and checksum of a slot that must hold this number."""
    start, length, member, packets = read_header(slot)
    if (start, length, member, packets) != (PAYLOAD_AT, PAYLOAD_BYTES, number % 2, number):
        raise Corrupt(f"slot {number}: its header is {(start, length, member, packets)}")
    found, generation = HEAD.unpack_from(slot, start)
    (crc,) = CRC.unpack_from(slot, start + length - CRC.size)
    if found != number or crc != zlib.crc32(slot[start : start + length - CRC.size]):
        raise Corrupt(f"slot {number}: it holds number {found} of generation {generation}, checksum {crc:#x}")
    return generation, crc


# -- the process


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL does not return")


class DyingWords:
    """The words of a ring for a process that dies just before or just after it hands on slot number `fatal`."""

    def __init__(self, member: Member, instant: str, fatal: int) -> None:
        self._words: Any = member.port._words
        self._start = member.start
        self._instant = instant
        self._fatal = fatal

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        last = (value - self._start) & MASK64 > self._fatal
        if last and self._instant == BEFORE_CURSOR:
            die()
        self._words[index] = value
        if last and self._instant == AFTER_CURSOR:
            die()


class DyingBell:
    """A neighbour's doorbell, for a process that dies once it has kicked after slot number `fatal`."""

    def __init__(self, bell: Any, member: Member, fatal: int) -> None:
        self._bell = bell
        self._member = member
        self._fatal = fatal

    def kick(self) -> None:
        self._bell.kick()
        if self._member.done > self._fatal:
            die()


def step(member: Member, instant: str, fatal: int, burst: int) -> None:
    """Do slots until the instant of slot number `fatal` comes: then die. Asleep means: with so many slots done."""

    def hook(at: str, number: int) -> None:
        if at == instant and number == fatal:
            die()

    port: Any = member.port
    port._words = DyingWords(member, instant, fatal)
    if instant == AFTER_KICK:
        port._after = [DyingBell(bell, member, fatal) for bell in port._after]
    while True:
        while member.step(burst, hook):
            pass
        if instant == FALLING_ASLEEP and member.done == fatal:
            member.bell.wait(lambda: port.ready() or die(), PERIOD)
        else:
            member.bell.wait(port.ready, 600.0 if instant == ASLEEP and member.done == fatal else PERIOD)


def load(member: Member) -> None:
    """Visit slots at full speed."""
    os.write(1, b"running\n")
    while True:
        if not member.step(8):
            member.bell.wait(member.port.ready, PERIOD)


def counter_in(fd: int) -> Callable[[int, int], None]:
    """Counts how often each slot was seen; the counts survive the process."""
    seen = mmap.mmap(fd, SEEN_BYTES)

    def report(number: int, generation: int) -> None:
        seen[number] += 1

    return report


def print_seen(number: int, generation: int) -> None:
    os.write(1, f"{number} {generation}\n".encode())


def main() -> None:
    plan = Plan.from_json(sys.stdin.read())
    mode, worker, start, generation, *rest = sys.argv[1:]
    if mode == "load":
        load(Member(plan, worker, int(start), int(generation), counter_in(int(rest[0]))))
    else:
        instant, fatal, burst = rest
        step(Member(plan, worker, int(start), int(generation), print_seen), instant, int(fatal), int(burst))


if __name__ == "__main__":
    main()
