"""Blocks are kept until they are reported, and a report says which of their rows are lost."""

from __future__ import annotations

from pipeline.datagram.cut import cut
from pipeline.datagram.segment import HEADER_BYTES, Mask
from pipeline.datagram.segmenter import Segmenter
from pipeline.fec.codec import Codec
from pipeline.wire.control_datagram import INCOMPLETE_MOST, Arrivals, Counts, Incomplete, Report
from workers.dgram.kept_blocks import KEEP_NS, KeptBlock, KeptBlocks

BULK, LIGHT = 0x700, 0x701
SEGMENTER = Segmenter(Codec(), 1, 512)
MASK = Mask(bytes(32), 64)
NO_COUNTS = Counts(0, 0, 0, 0, 0, 0, 0, 0, 0)


def block(number: int, size: int = 30_000, m: int = 0, stream: int = BULK) -> KeptBlock:
    how = cut(size, 1400, m)
    if how.n == 1:
        return KeptBlock(stream, number, 3, size, row=bytes(size))
    memory = memoryview(bytearray(how.segments * (HEADER_BYTES + how.row_bytes)))
    train = SEGMENTER.lay_block(memory, memoryview(bytes(size)), how, 1, MASK, stream, number, 3)
    return KeptBlock(stream, number, 3, size, train, memory=memory)


class Kept:
    """Blocks 0, 1, ... of a stream. Block i went out at i ms, and its last segment is 10 i + 9."""

    def __init__(self, *blocks: KeptBlock) -> None:
        self.done: list[int] = []
        self.kept = KeptBlocks(lambda each: self.done.append(each.number))
        self.blocks = blocks
        for place, each in enumerate(blocks):
            self.kept.add(each)
            each.note_sent(10 * place + 9, place)

    def lost(self, *lacking: Incomplete, turn: int = 0, bits: bytes = b"", highest: int = 999, until: int = 999):
        report = Report(NO_COUNTS, (Arrivals(BULK, turn, bits),), lacking)
        return [(each.number, rows) for each, rows in self.kept.take_report(report, highest, until)]


def test_what_has_come_or_was_given_up_is_kept_no_longer() -> None:
    kept = Kept(*(block(number) for number in range(6)))
    kept.lost(turn=2, bits=b"\x02", highest=-1)
    assert kept.done == [0, 1, 4]
    assert kept.kept.size == 3 * 30_000
    kept.lost(turn=6)
    assert sorted(kept.done) == list(range(6)) and not kept.kept and kept.kept.size == 0


def test_numbers_of_blocks_begin_anew_behind_the_highest() -> None:
    kept = Kept(*(block(number & 0xFFFFFFFF) for number in range(-2, 2)))
    kept.lost(turn=0)
    assert kept.done == [0xFFFFFFFE, 0xFFFFFFFF]


def test_of_a_codeword_as_many_rows_are_lost_as_it_needs() -> None:
    kept = Kept(block(0, 60_000, m=2))
    assert kept.blocks[0].train is not None
    parts, n, m, _ = kept.blocks[0].train.cut
    assert (parts, m) == (2, 2)
    missing = 0b1101
    assert kept.lost(Incomplete(0, 0, 1, missing)) == [(0, [1])], "three are missing, and two would have been enough"
    assert kept.lost(Incomplete(0, 0, 1, (1 << n + m) - 1))[0][1] == [index * parts + 1 for index in range(n)]
    assert kept.lost(Incomplete(0, 0, 7, missing)) == [], "there is no such codeword"


def test_a_block_that_no_row_has_come_of_is_lost_if_a_later_one_is_known() -> None:
    kept = Kept(block(0), block(1), block(2))
    assert kept.lost() == [], "its rows may be under way"
    rows = list(range(kept.blocks[0].rows))
    assert kept.lost(Incomplete(0, 2, 0, 1), bits=b"\x01") == [(0, rows), (2, [0])] and kept.done == [1]
    listed = [Incomplete(0, 2, 0, 1)] * INCOMPLETE_MOST
    assert [number for number, _ in Kept(block(0), block(1), block(2)).lost(*listed)] == [2], "others may be left out"


def test_a_full_list_tells_of_the_blocks_between_its_ends_alone() -> None:
    kept = Kept(*(block(number) for number in range(6)))
    listed = [Incomplete(0, 2, 0, 1), *[Incomplete(0, 4, 0, 1)] * (INCOMPLETE_MOST - 1)]
    assert [number for number, _ in kept.lost(*listed)] == [2, 3, 4], "nothing is known of 0, 1 and 5"
    assert kept.blocks[3].lacking == list(range(kept.blocks[3].rows))


def test_lost_rows_of_a_light_block_go_again_although_later_blocks_have_passed_it() -> None:
    kept = Kept(*(block(number, 5000, stream=LIGHT) for number in range(3)))
    report = Report(NO_COUNTS, (Arrivals(LIGHT, 3, b""),), (Incomplete(0, 1, 0, 1),))
    assert [(each.number, rows) for each, rows in kept.kept.take_report(report, 999, 999)] == [(1, [0])]
    assert kept.done == [0, 2]
    kept.kept.take_report(Report(NO_COUNTS, (Arrivals(LIGHT, 3, b""),)), 999, 999)
    assert kept.done == [0, 2, 1]


def test_rows_that_later_ones_may_have_overtaken_are_not_lost() -> None:
    for highest, until, expected in ((18, 999, False), (19, 0, False), (19, 1, True)):
        kept = Kept(block(0), block(1), block(2))
        found = kept.lost(Incomplete(0, 1, 0, 1), turn=1, highest=highest, until=until)
        assert bool(found) is expected, (highest, until)


def test_rows_that_wait_to_go_again_are_not_lost_once_more() -> None:
    kept = Kept(block(0), block(1))
    kept.blocks[0].is_repeated = True
    assert kept.lost(Incomplete(0, 0, 0, 1)) == []


def test_light_blocks_of_one_row_stay_until_reports_have_passed_them_by() -> None:
    kept = Kept(block(0, 100, stream=LIGHT), block(1, 100, stream=LIGHT))
    kept.lost(highest=9)
    assert kept.kept.take_all() == [kept.blocks[1]]


def test_what_is_too_old_is_kept_no_longer() -> None:
    kept = Kept(block(0), block(1))
    assert kept.kept.expire(KEEP_NS) == 0
    assert kept.kept.expire(KEEP_NS + 1) == 1 and kept.done == [0]


def test_all_is_taken_back_in_order() -> None:
    kept = Kept(*(block(number) for number in range(4)))
    kept.lost(bits=b"\x02", highest=-1)
    assert [each.number for each in kept.kept.take_all()] == [0, 1, 3]
    assert not kept.kept and all(each.is_done for each in kept.blocks)
