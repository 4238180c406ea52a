"""The sending side of a path: pace, window, order, repeats, copies, and a path that goes dark or becomes narrow.

Time is the test's; the datagrams are real.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest

from pipeline.counters import ID
from pipeline.datagram.segmenter import Segmenter
from pipeline.fec.buffer_pool import BufferPool
from pipeline.policy.path_mtu import BASE
from pipeline.wire.control_datagram import Counts, Report
from tests.harness.datagram_sender import CODEC, SEGMENT_MOST, Block, FarEnd, session_of, udp_socket
from workers.dgram.outbound_path import BURST_NS, LATE_NS, LIGHT_MOST, MS, OutboundPath
from workers.dgram.path import Path
from workers.dgram.segment_socket import SegmentSocket

BULK, LIGHT = 0x700, 0x701
SECOND = 1000 * MS
STEP_NS = MS // 4


class Ends:
    """An OutboundPath and a FarEnd, `round_trip` apart. `now`: as both see it."""

    def __init__(self, fate: Callable[[int], bool] = lambda number: True, round_trip: int = 10 * MS) -> None:
        self.now = 1000 * SECOND
        session = session_of(1 << 12)
        self.far = FarEnd(session, fate)
        self._socket = udp_socket()
        self.counters = memoryview(bytearray(8 * 320)).cast("Q")
        self.path = Path(session, 0, SegmentSocket(self._socket, self.counters))
        self.path.address, self.path.segment_most, self.path.is_open = self.far.address, SEGMENT_MOST, True
        self.memory = BufferPool(64 << 20)
        self.out = OutboundPath(
            self.path,
            Segmenter(CODEC, 7, 1024),
            self.memory,
            self.counters,
            self.now,
        )
        self.round_trip = round_trip
        self._reports: list[tuple[int, Report]] = []
        self._report_at = 0
        self.numbers = {BULK: 0, LIGHT: 0}
        self.sent: list[Block] = []

    def add(self, size: int, stream: int = BULK) -> None:
        number, content = self.numbers[stream], os.urandom(size)
        self.numbers[stream] += 1
        assert self.out.add(stream, number, 3, memoryview(content), self.now)
        self.sent.append((stream, number, content))

    def step(self, reports: bool = True) -> int:
        """Let STEP_NS pass. Segments that came."""
        self.now += STEP_NS
        while self._reports and self._reports[0][0] <= self.now:
            self.path.reports.append(self._reports.pop(0))
        self.out.follow(self.now)
        while self.out.send(self.now):
            pass
        came = self.far.step(self.now)
        if reports and self.now >= self._report_at and self.far.fields:
            self._report_at = self.now + 5 * MS
            self._reports.append((self.now + self.round_trip, self.far.report(self.now)))
        return came

    def steps(self, seconds: float, reports: bool = True) -> None:
        for _ in range(int(seconds * SECOND / STEP_NS)):
            self.step(reports)

    def count(self, name: str) -> int:
        return self.counters[ID[f"dgram.{name}"]]

    def close(self) -> None:
        self._socket.close()
        self.far.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Ends]]:
    made: list[Ends] = []

    def make_one(*arguments: Any, **options: Any) -> Ends:
        made.append(Ends(*arguments, **options))
        return made[-1]

    yield make_one
    for each in made:
        each.close()


def test_blocks_arrive_and_are_kept_until_they_are_reported(make: Callable[..., Ends]) -> None:
    ends = make()
    for size in (66_000, 500, 3000, 130_000):
        ends.add(size)
    ends.steps(0.002, reports=False)
    assert ends.path.outstanding_since is not None and ends.path.sent_ns > 0
    while ends.far.blocks != ends.sent:
        assert ends.memory.used > 0 and not ends.out.is_idle
        ends.step()
    ends.steps(0.05)
    assert ends.out.is_idle and ends.memory.used == 0
    assert ends.path.outstanding_since is None
    assert abs(ends.path.round_trip - ends.round_trip) < 2 * MS
    assert ends.count("blocks_sent") == 4 and ends.count("segments_repeated") == 0


def test_a_burst_has_a_millisecond_of_the_pace_and_the_window_is_a_bound(make: Callable[..., Ends]) -> None:
    ends = make()
    ends.add(130_000)
    pace, window = ends.out.feedback.rate.pacing_rate, ends.out.feedback.rate.window
    before = 0
    for _ in range(40):
        ends.step(reports=False)
        size = sum(ends.far.sizes)
        assert size - before <= pace * (BURST_NS + LATE_NS) / SECOND + 2 * SEGMENT_MOST
        before = size
    assert window - SEGMENT_MOST < before < window + 2 * SEGMENT_MOST, "no report has come"


def test_the_pace_is_credit_by_time_whatever_the_sleeps(make: Callable[..., Ends]) -> None:
    ends = make()
    rate = ends.out.feedback.rate
    rate.pacing_rate, rate.window = 10_000_000, 1 << 30
    begin = ends.now
    while ends.now - begin < 100 * MS:
        while ends.out.has_room():
            ends.add(66_000)
        ends.now += 7 * STEP_NS  # a sleep that ends late each time
        ends.step(reports=False)
        rate.pacing_rate = 10_000_000
    assert abs(sum(ends.far.sizes) - 1_000_000) < 50_000


def test_what_was_not_sent_in_time_is_not_sent_at_once(make: Callable[..., Ends]) -> None:
    ends = make()
    rate = ends.out.feedback.rate
    rate.pacing_rate, rate.window = 10_000_000, 1 << 30
    ends.add(66_000)
    ends.step(reports=False)
    ends.now += 50 * MS
    before = sum(ends.far.sizes)
    ends.add(130_000)
    ends.step(reports=False)
    assert 10_000 < sum(ends.far.sizes) - before <= 10_000_000 * (LATE_NS + 2 * BURST_NS) / SECOND


def test_a_sender_that_has_little_to_send_keeps_the_rate_that_it_knows(make: Callable[..., Ends]) -> None:
    ends = make()
    rate = ends.out.feedback.rate
    for _ in range(1600):
        while ends.out.has_room():
            ends.add(66_000)
        ends.step()
    known = rate.rate
    assert known > 5_000_000
    for _ in range(60):
        ends.add(1000)
        ends.steps(0.03)
    assert rate.rate == known


def test_memory_is_not_free_before_all_rows_have_gone(make: Callable[..., Ends]) -> None:
    ends = make(round_trip=MS)
    loses(ends, 0.1)
    rate = ends.out.feedback.rate
    ends.add(40_000)
    used = ends.memory.used
    while not ends.far.blocks:
        rate.pacing_rate, rate.window = 1_000_000, 1 << 30
        ends.step()
    for _ in range(40):
        rate.pacing_rate = 100_000
        ends.step()
    assert not ends.out._kept and ends.out._bulk and ends.memory.used == used
    ends.steps(0.2)
    assert ends.memory.used == 0


def test_light_blocks_pass_a_train_that_pauses(make: Callable[..., Ends]) -> None:
    ends = make()
    ends.out.feedback.rate.pacing_rate = 1_000_000
    ends.add(66_000)
    ends.steps(0.002, reports=False)
    assert not ends.far.blocks
    ends.add(90, LIGHT)
    ends.add(4000, LIGHT)
    ends.step(reports=False)
    assert ends.far.blocks == ends.sent[1:]
    ends.steps(0.2)
    assert ends.far.blocks_once == [*ends.sent[1:], ends.sent[0]]
    assert [fields[0] for fields in ends.far.fields] == list(range(len(ends.far.fields))), "in the order of the wire"


@pytest.mark.parametrize("lost", [{0}, {5, 6}, {45}, set(range(46, 92)), {3, 46 + 3, 92 + 1}])
def test_lost_rows_go_again_and_nothing_else(make: Callable[..., Ends], lost: set[int]) -> None:
    ends = make(lambda number: number not in lost)
    for _ in range(4):
        ends.add(66_000)
    ends.steps(0.4)
    assert ends.far.blocks == ends.sent
    assert ends.out.is_idle and ends.memory.used == 0
    assert ends.count("segments_repeated") == len(lost)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_the_last_rows_of_all_go_again_although_no_later_one_tells(make: Callable[..., Ends], count: int) -> None:
    ends = make(lambda number: not 46 - count <= number < 46)
    ends.steps(0.01)
    ends.add(66_000)
    ends.steps(0.4)
    assert ends.far.blocks == ends.sent and ends.out.is_idle


def test_a_path_that_reports_nothing_is_not_flooded(make: Callable[..., Ends]) -> None:
    ends = make(lambda number: number < 46)
    ends.add(66_000)
    ends.steps(0.1)
    ends.add(66_000)
    ends.steps(1)
    assert ends.count("segments_repeated") < 12
    assert ends.path.outstanding_since is not None and ends.now - ends.path.outstanding_since > 900 * MS


@pytest.mark.parametrize("share", [20, 9])
def test_all_arrives_at_a_path_that_loses_always(make: Callable[..., Ends], share: int) -> None:
    ends = make(lambda number: number % share != share // 2, round_trip=4 * MS)
    left = 60
    for _ in range(20_000):
        while left and ends.out.has_room():
            ends.add(66_000)
            left -= 1
        ends.step()
        if not left and ends.out.is_idle:
            break
    assert ends.far.blocks == ends.sent
    assert ends.memory.used == 0


def loses(ends: Ends, share: float) -> None:
    """The path is known to lose so much."""
    lost = round(10_000 * share)
    ends.out.feedback.plan.take(Counts(7, 0, 0, 10_000 - lost, 0, 0, lost, 0, 0))
    ends.out.feedback.plan.update(ends.now + SECOND, 1_000_000, SEGMENT_MOST, 50 * MS)


def test_light_blocks_have_copies_apart_in_time_while_the_path_loses(make: Callable[..., Ends]) -> None:
    ends = make()
    loses(ends, 0.02)
    ends.add(90, LIGHT)
    came = {}
    for step in range(40):
        if ends.step(reports=False):
            came[step] = ends.far.fields[-1]
    assert len(came) == 3 and ends.count("copies_sent") == 2
    steps = list(came)
    assert all(8 <= later - earlier <= 28 for earlier, later in pairwise(steps))
    assert {fields[6:] for fields in came.values()} == {(1 << 8 | 2, 0)}, "one seal: the number of the copy is in it"
    assert {content for _, _, content in ends.far.blocks} == {ends.sent[0][2]}


def test_rows_of_several_blocks_go_out_in_turn_where_losses_come_in_bursts(make: Callable[..., Ends]) -> None:
    ends = make()
    loses(ends, 0.02)
    plan = ends.out.feedback.plan
    made = plan.cut(20_000, SEGMENT_MOST - 28)
    plan._bulk_cuts[20_000] = made._replace(spread=4)
    for _ in range(4):
        assert ends.out.has_room()
        ends.add(20_000)
    ends.out.feedback.rate.pacing_rate, ends.out.feedback.rate.window = 1e8, 1 << 30
    ends.steps(0.05, reports=False)
    assert ends.far.blocks == ends.sent
    numbers = [fields[2] & 0xFFFF for fields in ends.far.fields]
    assert numbers == [0, 1, 2, 3] * (len(numbers) // 4)
    assert [fields[0] for fields in ends.far.fields] == list(range(len(numbers)))


def test_a_path_that_goes_dark_gives_back_what_was_not_reported(make: Callable[..., Ends]) -> None:
    ends = make()
    ends.add(66_000)
    ends.steps(0.1)
    for size, stream in ((66_000, BULK), (90, LIGHT), (500, BULK), (130_000, BULK), (5000, LIGHT)):
        ends.add(size, stream)
    ends.steps(0.003, reports=False)
    back = [(each.stream, each.number, each.row) for each in ends.out.take_back()]
    assert sorted(back) == sorted(ends.sent[1:])
    assert [number for stream, number, _ in back if stream == BULK] == [1, 2, 3]
    assert ends.memory.used == 0 and ends.out.is_idle


def test_a_path_that_becomes_narrow_gets_its_blocks_in_smaller_segments(make: Callable[..., Ends]) -> None:
    ends = make(lambda number: False)
    ends.add(66_000)
    ends.steps(0.01, reports=False)
    sent = ends.count("segments_sent")
    ends.far.fate = lambda number: number >= sent
    ends.path.segment_most = BASE
    ends.steps(0.4)
    assert sent > 0 and ends.far.blocks == ends.sent and max(ends.far.sizes) <= BASE


def test_while_the_path_carries_nothing_nothing_goes(make: Callable[..., Ends]) -> None:
    ends = make()
    ends.add(66_000)
    ends.path.segment_most = 0
    ends.steps(0.1)
    assert not ends.far.sizes and not ends.out.has_room() and not ends.out.is_usable
    ends.path.segment_most = SEGMENT_MOST
    ends.steps(0.1)
    assert ends.far.blocks == ends.sent


def test_what_the_interface_refuses_for_its_size_waits_for_another_size(make: Callable[..., Ends]) -> None:
    ends = make()
    ends._socket.setsockopt(0, 10, 3)  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE
    ends.path.segment_most = 65_530
    ends.steps(0.001)
    ends.add(65_490)
    ends.steps(0.02)
    assert ends.path.too_big and not ends.far.sizes and ends.path.outstanding_since is not None
    ends.path.segment_most = SEGMENT_MOST
    ends.steps(0.2)
    assert ends.far.blocks == ends.sent


def test_light_blocks_that_nobody_reports_are_bounded(make: Callable[..., Ends]) -> None:
    ends = make(lambda number: False)
    added = 0
    for _ in range(300):
        while ends.out.takes_light and added < 10_000:
            ends.add(1000, LIGHT)
            added += 1
        ends.step()
    assert LIGHT_MOST <= added < 2 * LIGHT_MOST and sum(ends.far.sizes) == 0
    assert ends.count("bytes_sent") < 4 * ends.out.feedback.rate.window + 30_000


def test_memory_is_bounded(make: Callable[..., Ends]) -> None:
    ends = make()
    ends.out._memory = ends.memory = BufferPool(200_000)
    ends.add(66_000)
    ends.add(66_000)
    assert not ends.out.add(BULK, 2, 3, memoryview(bytes(66_000)), ends.now)
    ends.steps(0.1)
    assert ends.far.blocks == ends.sent
    ends.add(66_000)


def test_the_path_is_doubted_when_the_kernel_says_that_nothing_gets_there(make: Callable[..., Ends]) -> None:
    ends = make()
    ends.path.address = ("255.255.255.255", 9)
    ends.add(66_000)
    ends.steps(0.05)
    assert ends.path.doubted and ends.count("sends_refused") < 10
    assert ends.path.outstanding_since is not None


@pytest.fixture
def ends() -> Iterator[Ends]:
    with closing(Ends()) as made:
        yield made


def test_nothing_is_due_while_nothing_waits(ends: Ends) -> None:
    assert ends.out.due() == 0
    ends.add(66_000)
    ends.step(reports=False)
    assert ends.now <= ends.out.due() <= ends.now + 10 * MS
    ends.steps(0.1)
    assert ends.out.due() == 0
