"""A ring of slots in shared memory, filled once and visited in place by a sequence of stages.

    ready()     number of slots that this member may touch now; never blocks, 0 if there are none
    slot(i)     view of the i-th of them
    advance(n)  hand n of them on; once per burst

A stage is one member or a group of parallel members. Each member owns one cursor, and it alone writes that cursor: the
number of slots that it has finished since the ring was created, modulo 2^64. A member may touch slots up to the cursor
of the stage before it (of the slowest member, if that stage is a group). Stage 0 follows the last stage, one lap ahead.
Cursors are the truth; nothing else is.

Crash argument. A process that is killed at any instant has advanced its cursor, or it has not. If it has not, its
successor attaches to that cursor and visits the unfinished slots once more. So every duty tolerates a slot that it
visits twice. If it has, the slot belongs to the next stage. No other cursor has moved in either case: finished slots
never return, and later slots are never lost.

Amok. A worker that runs amok can overwrite the cursors of every ring that it visits. A member that finds more ready
than the ring holds moves its own cursor to that of the stage before it, and finds nothing ready. So slots are skipped,
the whole ring meets at one cursor again, and no other worker ends.

Ordering. advance() stores the cursor after all that this member has done with the slots, and the next stage touches
them after it has loaded the cursor. x86-64 keeps both orders by itself. Elsewhere a fence stands before the store
(`release`), and one behind a load that has found more than the one before (`_acquire`): once a burst each. Code
that loads or stores a cursor in another place needs them there (docs/memory-order.md). The store is one aligned 8-byte
write through a "Q" view, and never struct.pack_into, which zeroes the field before it packs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps

from pipeline.errors import LocalError
from pipeline.shm import layout, memory_order, segment
from pipeline.shm.layout import MASK64


class Ring:
    """An attached ring: geometry, cursors and slots. Members are numbered over all stages in order."""

    def __init__(self, memory: segment.Segment, members: int, slots: int, slot_bytes: int) -> None:
        self.memory = memory
        self.members = members
        self.capacity = slots
        self.slot_bytes = slot_bytes
        first = layout.ring_slots_at(members)
        self.cursors = memory.cut_words(layout.RING_CURSORS_AT, (first - layout.RING_CURSORS_AT) // 8)
        self.slots = [memory.cut(first + i * slot_bytes, slot_bytes) for i in range(slots)]

    def cursor(self, member: int) -> int:
        """Slots that a member has finished. For any other process than that member's this is a guess."""
        return self.cursors[_cursor_word(member)]

    def close(self) -> None:
        for view in (self.cursors, *self.slots):
            view.release()
        self.memory.close()


def create(name: str, members: int, slots: int, slot_bytes: int, cursor: int = 0) -> Ring:
    """Create a ring, all cursors at `cursor`. `slots` must be a power of two."""
    if slots & (slots - 1) or slots < 1:
        raise LocalError(f"ring {name}: slots must be a power of two, got {slots}")
    _refuse_unfit_machines(name)
    memory = segment.create_with_header(
        name, layout.ring_bytes(members, slots, slot_bytes), layout.RING_MAGIC, _geometry(members, slots, slot_bytes)
    )
    made = Ring(memory, members, slots, slot_bytes)
    for member in range(members):
        made.cursors[_cursor_word(member)] = cursor & MASK64
    return made


def attach(name: str, members: int, slots: int, slot_bytes: int, *, only_reads: bool = False) -> Ring:
    """Attach to an existing ring. LocalError if it has another geometry or layout version.

    `only_reads`: this process writes cursors, and no slot.
    """
    _refuse_unfit_machines(name)
    size = layout.ring_bytes(members, slots, slot_bytes)
    end = layout.ring_slots_at(members) if only_reads else size
    memory = segment.attach_with_header(
        name,
        size,
        layout.RING_MAGIC,
        _geometry(members, slots, slot_bytes),
        [segment.Area(layout.RING_CURSORS_AT, end - layout.RING_CURSORS_AT)],
    )
    return Ring(memory, members, slots, slot_bytes)


def observe(name: str, members: int, slots: int, slot_bytes: int, owner: int | None = None) -> Ring:
    """Attach to the ring of this owner, to read alone; a packet in it is none of an observer's business."""
    size = layout.ring_bytes(members, slots, slot_bytes)
    geometry = _geometry(members, slots, slot_bytes)
    return Ring(
        segment.attach_with_header(name, size, layout.RING_MAGIC, geometry, (), owner), members, slots, slot_bytes
    )


def _geometry(members: int, slots: int, slot_bytes: int) -> list[segment.Field]:
    return [
        segment.Field(layout.RING_SLOTS_AT, slots, "slots"),
        segment.Field(layout.RING_SLOT_BYTES_AT, slot_bytes, "slot bytes"),
        segment.Field(layout.RING_MEMBERS_AT, members, "members"),
    ]


def _refuse_unfit_machines(name: str) -> None:
    if refusal := memory_order.find_refusal():
        raise LocalError(f"ring {name}: {refusal}")


def _cursor_word(member: int) -> int:
    """Its index in Ring.cursors."""
    return layout.CURSOR_STRIDE * member // 8


def _acquire(ready: Callable[[StageView], int]) -> Callable[[StageView], int]:
    """Where a machine reorders: a fence between the load of the cursors before and the use of the slots that they free.

    Slots up to the same end as at the last fence need no other: a poll of a ring in which nothing moves costs none.
    """
    if not memory_order.REORDERS:
        return ready
    fence = memory_order.fence

    @wraps(ready)
    def fenced(view: StageView) -> int:
        count = ready(view)
        if count and (end := view.cursor + count) != view.acquired:
            view.acquired = end
            fence()
        return count

    return fenced


class StageView:
    """One member's view of a ring. `before`: the members of the stage that it follows.

    Stage 0 (first=True) follows the last stage one lap ahead, so that it finds free slots.
    """

    def __init__(self, ring: Ring, member: int, before: Sequence[int], first: bool = False) -> None:
        self.ring = ring
        self.member = member
        self.cursor = ring.cursor(member)
        self._words = ring.cursors
        self._own_word = _cursor_word(member)
        self._words_before = tuple(_cursor_word(m) for m in before)
        self._word_before = self._words_before[0]
        self._lead = ring.capacity if first else 0
        self._done = self.cursor - self._lead  # the stage before is there as well if nothing is ready
        self._capacity = ring.capacity
        self._mask = ring.capacity - 1
        self.slots = ring.slots
        self.mended = 0
        self.acquired = -1  # the end of the slots that the last fence was for, where the machine needs fences
        if len(before) > 1:
            self.ready = self._ready_behind_group  # type: ignore[method-assign]

    @_acquire
    def ready(self) -> int:
        """Slots that this member may touch now; 0 after cursors had to be mended, which `mended` counts."""
        count: int = self._words[self._word_before] - self._done & MASK64
        return count if count <= self._capacity else self._mend()

    @_acquire
    def _ready_behind_group(self) -> int:
        words, done = self._words, self._done
        count = min([words[word] - done & MASK64 for word in self._words_before])
        return count if count <= self._capacity else self._mend()

    def _mend(self) -> int:
        """Join the stage before this one, because cursors contradict each other. Nothing is ready."""
        self.cursor = self._words[self._own_word] = self._words[self._word_before]
        self._done = self.cursor - self._lead
        self.mended += 1
        return 0

    def put_right(self) -> None:
        """Store the cursor anew if another process has overwritten it: a member without work would not do that."""
        if self._words[self._own_word] != self.cursor:
            self._words[self._own_word] = self.cursor

    def slot(self, i: int = 0) -> memoryview:
        """The i-th ready slot."""
        return self.slots[(self.cursor + i) & self._mask]

    def index(self, i: int = 0) -> int:
        """The i-th ready slot's index in `slots`, for tables that are kept beside them."""
        return (self.cursor + i) & self._mask

    @memory_order.release
    def advance(self, count: int) -> None:
        """Hand `count` slots on. Once per burst; the caller kicks the next stage."""
        self.cursor = self._words[self._own_word] = self.cursor + count & MASK64
        self._done = self.cursor - self._lead
