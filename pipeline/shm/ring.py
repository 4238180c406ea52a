"""A ring of slots in shared memory, filled once and visited in place by a sequence of stages.

    ready()     slots that this member may touch now; never blocks, 0 when there is nothing
    slot(i)     view of the i-th of them
    advance(n)  hand n of them on; once per burst

A stage is one member or a group of parallel members. Each member owns one cursor, a count of slots
done since creation, modulo 2^64, and is the only one that writes it. A member may touch slots up to
the cursor of the stage before it (the slowest member, if that is a group); stage 0 follows the last
stage, one lap ahead. Cursors are the truth; nothing else is.

Crash argument. A process killed at any instant has advanced or it has not. If not, its successor
attaches to the same cursor and sees the slots in hand once more (so every duty tolerates seeing a
slot twice); if it has, the next stage owns the slot. Nobody else's cursor moved either way: what
came before never comes back, what comes after is never lost.

Ordering. advance() stores the cursor after the slot's bytes, and the next stage loads the cursor
before it reads them; x86-64 keeps both orders (TSO), with no barrier. aarch64 keeps neither, so
attaching is refused there. The store is one aligned 8-byte write through a "Q" view: never
struct.pack_into, which zeroes the field before it packs.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence

from pipeline.errors import LocalError
from pipeline.shm import layout, segment
from pipeline.shm.layout import MASK64

ORDERED_MACHINES = ("x86_64", "AMD64")


class Ring:
    """An attached ring: geometry, cursors and slots. Members are numbered over all stages in order."""

    def __init__(self, memory: segment.Segment, members: int, slots: int, slot_bytes: int) -> None:
        if platform.machine() not in ORDERED_MACHINES:
            raise LocalError(
                f"ring {memory.name}: needs total store order (x86-64), this machine is {platform.machine()}"
            )
        self.memory = memory
        self.members = members
        self.capacity = slots
        self.slot_bytes = slot_bytes
        self.words = memory.words
        for at, expected, what in (
            (layout.RING_MAGIC_AT, layout.RING_MAGIC, "magic"),
            (layout.RING_VERSION_AT, layout.LAYOUT_VERSION, "layout version"),
            (layout.RING_SLOTS_AT, slots, "slots"),
            (layout.RING_SLOT_BYTES_AT, slot_bytes, "slot bytes"),
            (layout.RING_MEMBERS_AT, members, "members"),
        ):
            actual = self.words[at // 8]
            if actual != expected:
                raise LocalError(f"ring {memory.name}: {what}: expected {expected}, found {actual}")
        first = layout.ring_slots_at(members)
        self.slots = [memory.view[first + i * slot_bytes : first + (i + 1) * slot_bytes] for i in range(slots)]

    def cursor(self, member: int) -> int:
        """Slots done by a member. To anybody but that member and its neighbours this is a guess."""
        return self.words[_cursor_word(member)]

    def close(self) -> None:
        for view in self.slots:
            view.release()
        self.memory.close()


def create(name: str, members: int, slots: int, slot_bytes: int, cursor: int = 0) -> Ring:
    """Make a ring, all cursors at `cursor`. `slots` must be a power of two."""
    if slots & (slots - 1) or slots < 1:
        raise LocalError(f"ring {name}: slots must be a power of two, got {slots}")
    memory = segment.create(name, layout.ring_bytes(members, slots, slot_bytes))
    for at, value in (
        (layout.RING_VERSION_AT, layout.LAYOUT_VERSION),
        (layout.RING_SLOTS_AT, slots),
        (layout.RING_SLOT_BYTES_AT, slot_bytes),
        (layout.RING_MEMBERS_AT, members),
        (layout.RING_MAGIC_AT, layout.RING_MAGIC),
    ):
        memory.words[at // 8] = value
    for member in range(members):
        memory.words[_cursor_word(member)] = cursor & MASK64
    return Ring(memory, members, slots, slot_bytes)


def attach(name: str, members: int, slots: int, slot_bytes: int) -> Ring:
    """Attach to an existing ring; refuses one of another geometry or layout version (LocalError)."""
    return Ring(segment.attach(name, layout.ring_bytes(members, slots, slot_bytes)), members, slots, slot_bytes)


def _cursor_word(member: int) -> int:
    return (layout.RING_CURSORS_AT + layout.CURSOR_STRIDE * member) // 8


class Stage:
    """One member's place in a ring. `before` are the members of the stage that it follows.

    Stage 0 (first=True) follows the last stage one lap ahead, so that it finds free slots.
    """

    def __init__(self, ring: Ring, member: int, before: Sequence[int], first: bool = False) -> None:
        self.ring = ring
        self.member = member
        self.cursor = ring.cursor(member)
        self._words = ring.words
        self._own = _cursor_word(member)
        self._before = tuple(_cursor_word(m) for m in before)
        self._only = self._before[0] if len(self._before) == 1 else None
        self._lap = ring.capacity if first else 0
        self._mask = ring.capacity - 1
        self.slots = ring.slots

    def ready(self) -> int:
        """Slots that may be touched now. LocalError if cursors contradict each other (foreign writes)."""
        words = self._words
        offset = self._lap - self.cursor
        only = self._only
        if only is not None:
            count = (words[only] + offset) & MASK64
        else:
            count = min([(words[w] + offset) & MASK64 for w in self._before])
        if count > self._mask + 1:
            raise LocalError(
                f"ring {self.ring.memory.name}: member {self.member} at {self.cursor} may touch {count} "
                f"slots, more than the capacity {self.ring.capacity}: its cursors were overwritten"
            )
        return count

    def slot(self, i: int = 0) -> memoryview:
        """The i-th ready slot."""
        return self.slots[(self.cursor + i) & self._mask]

    def index(self, i: int = 0) -> int:
        """The i-th ready slot's place in `slots`, for tables kept beside them."""
        return (self.cursor + i) & self._mask

    def advance(self, count: int) -> None:
        """Hand `count` slots on. Once per burst; the doorbell of the next stage is the caller's business."""
        self.cursor = (self.cursor + count) & MASK64
        self._words[self._own] = self.cursor
