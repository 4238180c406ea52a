"""The overview: a segment with what the supervisor knows about a run, as one text. The supervisor alone writes it.

It has two places. The supervisor fills the place that readers do not look at, and then counts its texts one up: the
text of that number is the current one. So there is always a whole text to read, even if the supervisor was stopped
(SIGSTOP) while it wrote the next. A reader compares the count before and after it copies the text; if it has changed,
the copy is thrown away (docs/memory-order.md, "Versions").

The supervisor stores a heartbeat here, too. At last it stores that this memory is in use no more: the instance has
ended, or has made its memory anew under other names.
"""

from __future__ import annotations

from pipeline.errors import LocalError
from pipeline.shm import layout, segment
from pipeline.shm.memory_order import fence

ATTEMPTS = 100  # of a reader; the supervisor writes a few times a second
_COUNT = layout.OVERVIEW_COUNT_AT // 8
_HEARTBEAT = layout.OVERVIEW_HEARTBEAT_AT // 8
_ENDED = layout.OVERVIEW_ENDED_AT // 8
_LENGTH_BYTES = 8


class Overview:
    """An attached overview with two places of `place` bytes."""

    def __init__(self, memory: segment.Segment, place: int) -> None:
        self.memory = memory
        self._words = memory.words
        self._place = place

    @property
    def room(self) -> int:
        """Bytes of the longest text."""
        return self._place - _LENGTH_BYTES

    @property
    def count(self) -> int:
        """Texts published so far."""
        return self._words[_COUNT]

    @property
    def heartbeat(self) -> int:
        """CLOCK_MONOTONIC ns of the supervisor's last loop."""
        return self._words[_HEARTBEAT]

    @property
    def has_ended(self) -> bool:
        return bool(self._words[_ENDED])

    def read(self) -> str:
        """The current text; "" before the first. LocalError if there is none to be had."""
        for _ in range(ATTEMPTS):
            count = self.count
            if not count:
                return ""
            fence()
            at = self._at(count)
            size = self._words[at // 8]
            if size <= self.room:
                data = bytes(self.memory.view[at + _LENGTH_BYTES : at + _LENGTH_BYTES + size])
                fence()
                if count == self.count:
                    return data.decode()
        raise LocalError(f"shared memory {self.memory.name}: its text cannot be read")

    # -- the supervisor's

    def publish(self, text: str) -> None:
        """Make this the current text. LocalError if it is longer than `room`."""
        data = text.encode()
        if len(data) > self.room:
            raise LocalError(f"shared memory {self.memory.name}: has room for {self.room} bytes, not {len(data)}")
        at = self._at(self.count + 1)
        fence()  # a reader that meets bytes of this text finds that the one before it was counted
        self.memory.view[at + _LENGTH_BYTES : at + _LENGTH_BYTES + len(data)] = data
        self._words[at // 8] = len(data)
        fence()
        self._words[_COUNT] += 1

    def beat(self, now: int) -> None:
        self._words[_HEARTBEAT] = now

    def end(self) -> None:
        """Let readers know that this memory is in use no more."""
        self._words[_ENDED] = 1

    def _at(self, count: int) -> int:
        return layout.OVERVIEW_PLACES_AT + count % 2 * self._place

    def close(self) -> None:
        self.memory.close()


def create(name: str, place: int) -> Overview:
    """Create an overview with two places of so many bytes, which are whole pages."""
    size = layout.overview_bytes(place)
    return Overview(segment.create_with_header(name, size, layout.OVERVIEW_MAGIC, _geometry(place)), place)


def attach(name: str, owner: int | None = None) -> Overview:
    """Attach to an existing overview, to read. Its size tells how large its places are. LocalError if it is none."""
    size = segment.size_of(name)
    place = (size - layout.OVERVIEW_PLACES_AT) // 2
    memory = segment.attach_with_header(name, size, layout.OVERVIEW_MAGIC, _geometry(place), (), owner)
    return Overview(memory, place)


def _geometry(place: int) -> list[segment.Field]:
    return [segment.Field(layout.OVERVIEW_BYTES_AT, place, "size of a text")]
