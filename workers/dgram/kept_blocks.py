"""The blocks of one path that were sent and have not been reported: they are kept, so that lost rows go out again.

    add            a block is about to go out; `note_sent` says when its last row has
    take_report    blocks that have come, or were given up at the other end, are kept no longer. It says which rows are
                   lost
    expire         the other end has given up what is older than KEEP_NS
    take_all       the path has gone dark

A row is lost if a report lacks it that speaks of later segments, and was made a while after it must have come. The
other end lists no codeword of the newest block of a stream while its rows come. So a block that is not in the list has
lost all of its rows only if a later one is known.

Light blocks of one row are in no report. They stay until the report has passed them by, for a path that goes dark.

Pure; owned by the outbound duty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pipeline.datagram.segmenter import Train
from pipeline.wire.control_datagram import INCOMPLETE_MOST, Incomplete, Report

KEEP_NS = 1_000_000_000
"""As the other end keeps an open block (pipeline.datagram.assembly)."""

NOT_SENT = 1 << 62
_U32, _BEHIND = (1 << 32) - 1, 1 << 31


class KeptBlock:
    """A sealed block: its train, or its one `row`. `last`: the sequence of its latest segment; NOT_SENT at first.

    `lacking`: its rows that are lost, as far as it is known. `is_done`: it is kept no longer.
    """

    __slots__ = (
        "epoch", "is_done", "is_repeated", "lacking", "last", "memory", "number", "repeated_ns", "row", "sent_ns",
        "size", "stream", "train",
    )  # fmt: skip

    def __init__(
        self,
        stream: int,
        number: int,
        epoch: int,
        size: int,
        train: Train | None = None,
        row: bytes = b"",
        memory: memoryview | None = None,
    ) -> None:
        self.stream = stream
        self.number = number
        self.epoch = epoch
        self.size = size
        self.train = train
        self.row = row
        self.memory = memory  # of its train
        self.last = NOT_SENT
        self.sent_ns = 0
        self.lacking: list[int] = []
        self.repeated_ns = 0
        self.is_repeated = False  # rows of it wait to go out again
        self.is_done = False

    @property
    def is_light(self) -> bool:
        return bool(self.stream & 1)

    @property
    def is_light_row(self) -> bool:
        """No report speaks of it."""
        return self.train is None and bool(self.stream & 1)

    @property
    def rows(self) -> int:
        """Rows with data."""
        return 1 if self.train is None else self.train.cut.parts * self.train.cut.n

    @property
    def has_parity(self) -> bool:
        return self.train is not None and self.train.cut.m > 0

    def block(self) -> bytes:
        return self.row if self.train is None else self.train.block()

    def note_sent(self, last: int, now: int) -> None:
        self.last = last
        self.sent_ns = now


Lost = tuple[KeptBlock, list[int]]


class KeptBlocks:
    """`on_done`: told of each block that is kept no longer. `size`: bytes of all."""

    def __init__(self, on_done: Callable[[KeptBlock], None]) -> None:
        self._on_done = on_done
        self._streams: dict[int, dict[int, KeptBlock]] = {}
        self._light_rows: deque[KeptBlock] = deque()
        self.size = 0

    def __bool__(self) -> bool:
        return any(self._streams.values())

    def add(self, kept: KeptBlock) -> None:
        if kept.is_light_row:
            self._light_rows.append(kept)
            return
        of_stream = self._streams.get(kept.stream)
        if of_stream is None:
            of_stream = self._streams[kept.stream] = {}
        before = of_stream.get(kept.number)
        if before is not None:  # another worker has run amok
            self._release(of_stream, before)
        of_stream[kept.number] = kept
        self.size += kept.size

    def take_report(self, report: Report, highest: int, until: int) -> list[Lost]:
        """A report that speaks of segments up to the sequence `highest`. The rows that are lost: all that the other end
        lacks of what went out by `until`."""
        light = self._light_rows
        while light and light[0].last <= highest:
            light.popleft()
        found: list[Lost] = []
        for position, (stream, turn, bits) in enumerate(report.streams):
            of_stream = self._streams.get(stream)
            if of_stream:
                complete = int.from_bytes(bits, "little")
                listed = [each for each in report.incomplete if each.position == position]
                places = [_ahead(each.block, turn) for each in listed]
                if len(report.incomplete) == INCOMPLETE_MOST:  # others may be left out, before them and behind
                    first, last = min(places, default=0), max(places, default=0)
                else:
                    first, last = 0, max([complete.bit_length(), *places])
                for kept in self._left_of(of_stream, turn, complete, highest, {each.block for each in listed}):
                    self._find_lacking(kept, listed, first <= _ahead(kept.number, turn) < last)
                    if kept.lacking and kept.sent_ns <= until:
                        found.append((kept, kept.lacking))
        return found

    def _left_of(
        self, of_stream: dict[int, KeptBlock], turn: int, complete: int, highest: int, lacking: set[int]
    ) -> list[KeptBlock]:
        """Keep no block of a stream that is complete or given up. Of the others, those that have gone out whole.

        No block waits for a light one. So one that has been passed by is given up only if it is not `lacking` rows.
        """
        left = []
        for number, kept in list(of_stream.items()):
            ahead = _ahead(number, turn)
            is_behind = ahead < 0 and not (kept.is_light and number in lacking)
            if is_behind or (ahead > 0 and complete >> ahead - 1 & 1):
                self._release(of_stream, kept)
            elif kept.last <= highest:
                if not kept.is_repeated:
                    left.append(kept)
            elif ahead > complete.bit_length():
                break
        return left

    @staticmethod
    def _find_lacking(kept: KeptBlock, listed: list[Incomplete], is_passed: bool) -> None:
        """`is_passed`: a later block of the stream is known, and no block that lacks rows is left out."""
        codewords = [each for each in listed if each.block == kept.number]
        if codewords:
            kept.lacking = _rows_of(kept, codewords)
        elif is_passed:
            kept.lacking = list(range(kept.rows))

    def newest(self) -> KeptBlock | None:
        """Of the blocks that have gone out, that of which a segment went out last."""
        sent = (each for of_stream in self._streams.values() for each in of_stream.values() if each.last != NOT_SENT)
        return max(sent, key=lambda each: each.last, default=None)

    def expire(self, now: int) -> int:
        """Keep no block that went out too long ago. Their number."""
        until, count = now - KEEP_NS, 0
        light = self._light_rows
        while light and light[0].sent_ns < until and light[0].last != NOT_SENT:
            light.popleft()
        for of_stream in self._streams.values():
            for kept in list(of_stream.values()):
                if kept.last == NOT_SENT or kept.sent_ns >= until:
                    break
                self._release(of_stream, kept)
                count += 1
        return count

    def take_all(self) -> list[KeptBlock]:
        """All blocks, those of a stream in order. They are kept no longer, and their memory is the caller's to free."""
        every = [*self._light_rows, *(each for of_stream in self._streams.values() for each in of_stream.values())]
        self._light_rows.clear()
        self._streams.clear()
        self.size = 0
        for each in every:
            each.is_done = True
        return every

    def _release(self, of_stream: dict[int, KeptBlock], kept: KeptBlock) -> None:
        del of_stream[kept.number]
        self.size -= kept.size
        kept.is_done = True
        self._on_done(kept)


def _ahead(number: int, turn: int) -> int:
    """How far a block is in front of the turn of its stream; below 0: behind it."""
    ahead = number - turn & _U32
    return ahead - (1 << 32) if ahead & _BEHIND else ahead


def _rows_of(kept: KeptBlock, codewords: list[Incomplete]) -> list[int]:
    """The rows that make these codewords whole."""
    if kept.train is None:
        return [0]
    parts, n, m, _ = kept.train.cut
    rows = []
    for _, _, codeword, missing in codewords:
        if codeword < parts:
            indexes = [index for index in range(n + m) if missing >> index & 1]
            rows += [index * parts + codeword for index in indexes[: max(0, len(indexes) - m)]]
    return rows
