"""Segments of one size that wait on a path, as pieces of a burst. Their headers are written as they go.

    TrainGroup    blocks of several rows. The rows of the blocks of a group go out in turn, so that a burst of losses
                  takes few of each
    RowsAgain     rows of one block that are sent again
    SingleRow     a block that is one row, or a copy of it

Each has `left` segments of `segment_bytes`. `pieces` gives the bytes of the first of them, which begin with `sequence`;
`advance` says that they are gone. `begin_again`: whether all of them go once more. Owned by the outbound duty.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pipeline.datagram.segment import HEADER_BYTES, Mask
from pipeline.datagram.segmenter import Segmenter, Train
from workers.dgram.kept_blocks import KeptBlock
from workers.dgram.path import Pieces
from workers.dgram.segment_socket import SEGMENTS_MOST


class Header(NamedTuple):
    """The maker of headers of a path, with its token and mask."""

    segmenter: Segmenter
    token: int
    mask: Mask


class Unsent(Protocol):
    segment_bytes: int
    left: int

    @property
    def is_done(self) -> bool:
        """Whether it need not go any more. Its bytes may be gone then."""

    def pieces(self, count: int, sequence: int) -> Pieces: ...

    def advance(self, count: int, last: int, now: int) -> None:
        """`last`: the sequence of the last of them."""

    def begin_again(self) -> bool: ...


class TrainGroup:
    """`blocks` have trains of one `cut`; `spread` of them at most.

    Headers of a single train are written ahead. They stay right if nothing else goes out in between.
    """

    __slots__ = ("_ahead", "_at", "_begin", "_header", "_spread", "_trains", "blocks", "cut", "left", "segment_bytes")

    is_done = False

    def __init__(self, header: Header, first: KeptBlock, train: Train, spread: int) -> None:
        self._header = header
        self._spread = spread
        self._trains = [train]
        self._at = 0  # of all segments in their order
        self._begin, self._ahead = 0, 0  # headers are written up to here, if segment 0 has this sequence
        self.blocks = [first]
        self.cut = train.cut
        self.segment_bytes = train.segment_bytes
        self.left = train.count

    @property
    def is_open(self) -> bool:
        """Whether a block may join: none has gone out, and there is room."""
        return not self._at and len(self.blocks) < self._spread

    def join(self, kept: KeptBlock, train: Train) -> None:
        self.blocks.append(kept)
        self._trains.append(train)
        self.left += train.count

    def pieces(self, count: int, sequence: int) -> Pieces:
        first, end, size = self._at, self._at + count, self.segment_bytes
        trains = self._trains
        width = len(trains)
        write = self._header.segmenter.write_heads
        if width == 1:
            train = trains[0]
            if sequence - first != self._begin or end > self._ahead:
                self._begin, self._ahead = sequence - first, min(train.count, first + SEGMENTS_MOST)
                write(train, first, self._ahead, sequence)
            return [train.memory[first * size : end * size]]
        for place, train in enumerate(trains):
            begin, stop = (first - place + width - 1) // width, (end - place + width - 1) // width
            if begin < stop:
                write(train, begin, stop, sequence + begin * width + place - first, width)
        found: Pieces = []
        for at in range(first, end):
            row, place = divmod(at, width)
            found.append(trains[place].memory[row * size : (row + 1) * size])
        return found

    def advance(self, count: int, last: int, now: int) -> None:
        self._at += count
        self.left -= count
        if not self.left:
            for kept in self.blocks:
                kept.note_sent(last, now)

    def begin_again(self) -> bool:
        return False


class RowsAgain:
    """`rows`: of the train of a block. They go so many `times`."""

    __slots__ = ("_at", "_header", "_kept", "_rows", "_times", "_train", "_was_sent", "left", "segment_bytes")

    def __init__(self, header: Header, kept: KeptBlock, train: Train, rows: list[int], times: int) -> None:
        self._header = header
        self._kept = kept
        self._train = train
        self._rows = rows
        self._at = 0
        self.segment_bytes = train.segment_bytes
        self.left = len(rows)
        self._times = times
        self._was_sent = False
        kept.is_repeated = True

    @property
    def is_done(self) -> bool:
        return self._kept.is_done

    def pieces(self, count: int, sequence: int) -> Pieces:
        train, size = self._train, self.segment_bytes
        found: Pieces = []
        for ahead, row in enumerate(self._rows[self._at : self._at + count]):
            self._header.segmenter.write_heads(train, row, row + 1, sequence + ahead)
            found.append(train.memory[row * size : (row + 1) * size])
        return found

    def advance(self, count: int, last: int, now: int) -> None:
        self._at += count
        self.left -= count
        if not self.left:
            kept = self._kept
            kept.note_sent(last, now)
            if not self._was_sent:
                self._was_sent = True
                kept.repeated_ns = now

    def begin_again(self) -> bool:
        self._times -= 1
        self._kept.is_repeated = self._times > 0
        self._at, self.left = 0, len(self._rows)
        return self._times > 0


class SingleRow:
    """`copies`: of a light block, beyond the first. All are the block with its one seal, so each is copy 0.

    `times`: a row that was lost goes again so often; 0: it goes for the first time, or it is a copy.
    """

    __slots__ = ("_header", "_times", "_was_sent", "copies", "is_first", "kept", "left", "segment_bytes")

    def __init__(self, header: Header, kept: KeptBlock, copies: int, is_first: bool = True, times: int = 0) -> None:
        self._header = header
        self.is_first = is_first
        self.kept = kept
        self.copies = copies
        self.segment_bytes = HEADER_BYTES + kept.size
        self.left = 1
        self._times = times
        self._was_sent = is_first
        kept.is_repeated = times > 0

    @property
    def is_done(self) -> bool:
        return self.kept.is_done

    def pieces(self, count: int, sequence: int) -> Pieces:
        kept, (segmenter, token, mask) = self.kept, self._header
        row = memoryview(kept.row)
        head = segmenter.head_of_row(row, token, mask, sequence, kept.stream, kept.number, kept.epoch, self.copies)
        return [head, row]

    def advance(self, count: int, last: int, now: int) -> None:
        self.left = 0
        kept = self.kept
        kept.note_sent(last, now)
        if not self._was_sent:
            self._was_sent = True
            kept.repeated_ns = now

    def begin_again(self) -> bool:
        if not self._times:
            return False
        self._times -= 1
        self.kept.is_repeated = self._times > 0
        self.left = 1
        return self._times > 0
