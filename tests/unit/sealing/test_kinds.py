"""The number of a stream: process, lane and kind, each in its place."""

from __future__ import annotations

from itertools import product

import pytest

from pipeline.sealing import kinds


def test_each_process_lane_and_kind_has_a_stream_of_its_own_that_fits_a_header() -> None:
    processes, lanes = (0, 1, 255, kinds.PROCESSES_MAX - 1), range(kinds.LANES_MAX)
    streams = {kinds.stream(*each): each for each in product(processes, lanes, range(kinds.KINDS))}
    assert len(streams) == 4 * kinds.LANES_MAX * kinds.KINDS and max(streams) < 1 << 32
    for stream, (process, lane, kind) in streams.items():
        assert (stream >> 8, stream >> 3 & 31, stream & 7) == (process, lane, kind)


@pytest.mark.parametrize(("process", "lane"), [(-1, 0), (kinds.PROCESSES_MAX, 0), (0, -1), (0, kinds.LANES_MAX)])
def test_a_process_or_lane_beyond_the_numbers_has_no_stream(process: int, lane: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        kinds.stream(process, lane, kinds.PLAIN)


def test_the_lowest_bit_of_a_kind_is_its_traffic_class() -> None:
    assert [kind & 1 for kind in (kinds.PLAIN, kinds.CODED, kinds.TRANSIT_BULK)] == [0, 0, 0]
    assert [kind & 1 for kind in (kinds.LIGHT, kinds.COPIED, kinds.TRANSIT_LIGHT)] == [1, 1, 1]
