"""Reports tell bytes, losses and round trips of a path, and so how a block is cut for it."""

from __future__ import annotations

import pytest

from pipeline.datagram.cut import PARTS_MAX
from pipeline.fec import shard
from pipeline.policy import datagram_parity
from pipeline.wire.control_datagram import Counts
from workers.dgram.cut_plan import COPY_SPACING_MOST_NS, UPDATE_NS, CutPlan, copies_of
from workers.dgram.path_feedback import MS, PathFeedback
from workers.dgram.sent_log import BURSTS_MOST, SentLog

SECOND = 1000 * MS


def counts(highest: int, received: int, lost: int = 0, age_us: int = 0, pairs: int = 0) -> Counts:
    return Counts(1, highest & 0xFFFFFFFF, age_us, received & 0xFFFFFFFF, 0, 0, lost & 0xFFFFFFFF, pairs, 0)


def test_a_log_knows_the_bytes_up_to_any_segment_and_when_it_went_out() -> None:
    log = SentLog(0)
    log.add(3, 4000, 10)
    log.add(4, 4100, 20)
    log.add(8, 8100, 30)
    assert (log.pass_by(1), log.passed_ns) == (2000, 10)
    assert (log.pass_by(4), log.passed_ns) == (4100, 20)
    assert (log.pass_by(6), log.passed_ns) == (6100, 30)
    assert (log.pass_by(8), log.passed_ns) == (8100, 30)


def test_a_log_has_a_bound() -> None:
    log = SentLog(0)
    for burst in range(3 * BURSTS_MOST):
        log.add(burst, 100 * (burst + 1), burst)
    assert len(log._bursts) == BURSTS_MOST
    assert log.pass_by(2 * BURSTS_MOST) == 100 * (2 * BURSTS_MOST + 1)


def test_bytes_are_computed_from_segments_of_several_sizes() -> None:
    feedback = PathFeedback(0)
    feedback.on_sent(10, 14_000, False, MS)
    feedback.on_sent(10, 1000, False, 2 * MS)
    assert feedback.take(counts(9, 10), 11 * MS)
    assert feedback._received == 14_000 and feedback.smoothed == 10 * MS
    assert feedback.take(counts(19, 18, lost=2), 12 * MS)
    assert feedback._received == 14_800 and feedback.lost == 2
    assert feedback.is_all_passed


def test_counts_go_round_and_losses_back() -> None:
    feedback = PathFeedback(0)
    feedback.sequence = 2**32 - 5
    feedback.begin(0)
    feedback.on_sent(1, 100, False, 0)
    feedback.take(counts(-5, -5, lost=-1), MS // 2)
    feedback.on_sent(10, 1000, False, MS)
    assert feedback.take(counts(2**32 + 4, 4, lost=1), 2 * MS)
    assert (feedback.highest, feedback.lost, feedback._received) == (2**32 + 4, 2, 900)
    feedback.on_sent(1, 100, False, 3 * MS)
    feedback.take(counts(2**32 + 5, 6, lost=0), 4 * MS)
    assert feedback.lost == 1, "a segment that was lost has come after all"


def test_a_path_that_was_dark_begins_anew_and_its_sequence_goes_on() -> None:
    feedback = PathFeedback(0)
    feedback.on_sent(1000, 1_000_000, False, MS)
    feedback.take(counts(999, 900, lost=100), 11 * MS)
    feedback.begin(SECOND)
    assert feedback.is_all_passed and feedback.rate.under_way == 0
    feedback.on_sent(10, 14_000, False, 2 * SECOND)
    assert not feedback.take(counts(999, 900, lost=100), 2 * SECOND), "it speaks of the time before"
    assert feedback.take(counts(1009, 908, lost=302), 2 * SECOND + 20 * MS)
    assert feedback.smoothed == 20 * MS and feedback._received == 8 * 1400
    assert feedback.rate.under_way == 0 and feedback.plan._lost == 0


def test_a_report_that_an_other_has_overtaken_says_nothing() -> None:
    feedback = PathFeedback(0)
    assert not feedback.take(counts(-1, 0), MS), "nothing went out yet"
    feedback.on_sent(10, 1000, False, MS)
    feedback.take(counts(9, 10), 2 * MS)
    assert not feedback.take(counts(5, 6), 3 * MS)


def test_what_had_time_enough_to_come_is_lost_and_patience_grows() -> None:
    feedback = PathFeedback(0)
    feedback.on_sent(10, 1000, False, 100 * MS)
    feedback.take(counts(9, 10), 140 * MS)
    assert feedback.lost_until == 95 * MS, "an eighth of the round trip is patience"
    feedback.take(counts(9, 10, age_us=30_000), 170 * MS)
    assert feedback.lost_until == 125 * MS, "so long after the latest segment nothing more has come"
    feedback.was_impatient(171 * MS)
    assert feedback.patience_ns == 10 * MS
    for _ in range(9):
        feedback.was_impatient(172 * MS)
    assert feedback.patience_ns == 40 * MS, "no more than a round trip"
    for second in range(1, 400):
        feedback.tick(1400, second * SECOND)
    assert feedback.patience_ns == 5 * MS


def plan_of(share: float, segments: int = 10_000, round_trip: int = 40 * MS) -> CutPlan:
    plan = CutPlan()
    lost = round(segments * share)
    plan.take(counts(segments, segments - lost, lost, pairs=round(lost * share)))
    plan.update(SECOND, 6_250_000, 1472, round_trip)
    return plan


def test_blocks_get_parity_while_the_path_loses() -> None:
    assert plan_of(0).cut(66_000, 1444).cut.m == 0
    two, ten = plan_of(0.02).cut(66_000, 1444).cut, plan_of(0.1).cut(66_000, 1444).cut
    assert 0 < two.m / two.n < ten.m / ten.n


def test_a_path_with_a_short_round_trip_gets_repeats_instead_of_parity() -> None:
    plan = plan_of(0.02, round_trip=MS)
    assert plan.repeats and plan.cut(66_000, 1444).cut.m == 0
    assert not plan_of(0.02, round_trip=200 * MS).repeats


def filled(plan: CutPlan, share: float, round_trip: int = 40 * MS) -> CutPlan:
    """Bulk takes so much of the path's rate."""
    for update in range(1, 6):
        plan.bulk = int(share * 625_000)
        plan.update(SECOND + update * UPDATE_NS, 6_250_000, 1472, round_trip, 6_250_000)
    return plan


@pytest.mark.parametrize("size", [2500, 30_000, 66_000])
def test_bulk_that_fills_a_path_has_repeats_in_place_of_parity(size: int) -> None:
    for share, has_parity in ((0.0, True), (0.3, True), (0.5, False), (0.9, False)):
        plan = filled(plan_of(0.02), share)
        assert (plan.cut(size, 1444).cut.m > 0) is has_parity
        assert plan.cut(size, 1444, is_light=True).cut.m > 0, "nothing waits for light blocks"
        assert plan.times(40) >= 1
    far = filled(plan_of(0.02, round_trip=200 * MS), 0.9, 200 * MS)
    assert far.cut(size, 1444).cut.m > 0, "a repeat would come too late"


def test_light_blocks_of_several_rows_have_a_parity_row_before_a_loss_is_known() -> None:
    plan = plan_of(0)
    assert (plan.cut(14_000, 1444).cut.m, plan.cut(14_000, 1444, is_light=True).cut.m) == (0, 1)


def test_a_plan_forgets_losses_of_the_past() -> None:
    plan = plan_of(0.1)
    segments = 10_000
    for second in range(2, 40):
        segments += 1000
        plan.take(counts(segments, segments - 1000, 1000))
        plan.update(second * SECOND, 6_250_000, 1472, 40 * MS)
    assert plan.loss.loss < 0.001 and plan.copies <= 1


def test_losses_that_were_none_leave_no_plan_without_an_answer() -> None:
    plan = CutPlan()
    plan.take(counts(10, 8, lost=2))
    plan.take(counts(20, 20, lost=0))
    plan.update(2 * SECOND, 6_250_000, 1472, 40 * MS)
    assert plan.loss.loss == 0


def test_every_block_has_a_cut_of_the_smallest_rows() -> None:
    for share in (0, 0.02, 0.1, 0.4):
        plan = plan_of(share)
        for size in (1173, 9000, 66_000, shard.BLOCK_BYTES_MAX):
            assert plan.cut(size, 1172).cut.parts <= PARTS_MAX
        plan.update(SECOND + UPDATE_NS, 6_250_000, 1472, 40 * MS)


def test_light_blocks_have_copies_enough_for_what_the_path_loses() -> None:
    assert [copies_of(loss) for loss in (0.0, 1e-4, 0.005, 0.02, 0.1)] == [0, 0, 1, 2, 3]
    for loss in (0.005, 0.02, 0.1):
        assert loss ** (copies_of(loss) + 1) < 1.001 * datagram_parity.target(loss)
    assert plan_of(0.02).spacing_ns <= COPY_SPACING_MOST_NS
