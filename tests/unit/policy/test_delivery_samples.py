"""Delivery samples: rates and round trips from reports, with bursts, losses, late reports and a full ring of notes."""

from __future__ import annotations

from pipeline.policy.delivery_samples import NOTES, DeliverySamples

MS = 1_000_000
SIZE = 1000


def sending(count: int, every: int, *, of: int = 1, emptied: bool = False) -> DeliverySamples:
    """`count` bursts of so many segments each."""
    samples = DeliverySamples(0)
    for burst in range(count):
        sequence = (burst + 1) * of - 1
        samples.on_sent(burst * every, (sequence + 1) * SIZE, sequence, emptied, 0)
    return samples


def test_a_report_says_how_long_its_segment_took_without_the_time_that_it_was_held() -> None:
    samples = sending(10, MS)
    assert samples.on_report(30 * MS, 10 * SIZE, 9, 1 * MS, 0, 0)
    assert samples.round_trip == 20 * MS
    assert samples.under_way == 0


def test_a_burst_of_reports_does_not_look_faster_than_the_sending_was() -> None:
    samples = sending(100, MS)
    samples.on_report(100 * MS, 50 * SIZE, 49, 0, 0, 0)
    samples.on_report(100 * MS + 1, 100 * SIZE, 99, 0, 0, 0)
    assert samples.received * 1_000_000_000 // samples.interval <= 1_020_000


def test_lost_segments_have_passed_and_are_not_under_way() -> None:
    samples = sending(10, MS)
    samples.on_report(30 * MS, 6 * SIZE, 7, 0, 0, 2)
    assert (samples.segments, samples.lost) == (8, 2)
    assert (samples.received, samples.passed, samples.under_way) == (6 * SIZE, 8 * SIZE, 2 * SIZE)


def test_a_segment_within_a_burst_counts_with_those_before_it() -> None:
    samples = sending(1, MS, of=10)
    samples.on_report(30 * MS, 4 * SIZE, 3, 0, 0, 0)
    assert samples.under_way == 6 * SIZE


def test_a_report_that_is_older_or_of_segments_never_sent_says_nothing() -> None:
    samples = sending(10, MS)
    assert samples.on_report(30 * MS, 5 * SIZE, 4, 0, 0, 0)
    assert not samples.on_report(31 * MS, 4 * SIZE, 3, 0, 0, 0)
    assert not samples.on_report(31 * MS, 11 * SIZE, 10, 0, 0, 0)
    assert samples.under_way == 5 * SIZE


def test_what_is_sent_behind_an_emptied_burst_is_limited_until_that_has_passed() -> None:
    samples = sending(2, MS, emptied=True)
    samples.on_report(20 * MS, 2 * SIZE, 1, 0, 0, 0)
    assert samples.limited
    samples.on_sent(21 * MS, 3 * SIZE, 2, False, 0)
    samples.on_report(40 * MS, 3 * SIZE, 2, 0, 0, 0)
    assert samples.limited
    samples.on_sent(41 * MS, 4 * SIZE, 3, False, 0)
    samples.on_report(60 * MS, 4 * SIZE, 3, 0, 0, 0)
    assert not samples.limited


def test_a_round_is_over_when_a_segment_has_passed_that_was_sent_after_its_beginning() -> None:
    samples = sending(10, MS)
    rounds = []
    for sequence in range(10):
        samples.on_report(20 * MS + sequence, (sequence + 1) * SIZE, sequence, 0, 0, 0)
        rounds.append(samples.new_round)
    samples.on_sent(30 * MS, 11 * SIZE, 10, False, 0)
    samples.on_report(50 * MS, 11 * SIZE, 10, 0, 0, 0)
    assert [*rounds, samples.new_round] == [True, *[False] * 9, True]


def test_behind_a_full_ring_of_notes_segments_seem_slower_never_faster() -> None:
    samples = sending(NOTES * 3, MS)
    count = 2 * NOTES
    samples.on_report(count * MS, count * SIZE, count - 1, 0, 0, 0)
    assert samples.round_trip >= MS
    assert samples.under_way == NOTES * SIZE
    assert samples.received * 1_000_000_000 // samples.interval <= 1_020_000


def test_notes_of_bursts_in_quick_succession_are_one() -> None:
    samples = DeliverySamples(0)
    samples.merged_ns = MS
    for burst in range(NOTES * 2):
        samples.on_sent(burst * MS // 4, (burst + 1) * SIZE, burst, False, 0)
    samples.on_report(NOTES * MS, 5 * SIZE, 4, 0, 0, 0)
    assert samples.round_trip == NOTES * MS
    samples.on_report(NOTES * MS, NOTES * 2 * SIZE, NOTES * 2 - 1, 0, 0, 0)
    assert NOTES * MS // 2 <= samples.round_trip <= NOTES * MS // 2 + 2 * MS


def test_what_was_given_up_is_under_way_again_when_a_report_names_what_is_before_it() -> None:
    samples = sending(10, MS)
    samples.give_up(500 * MS)
    assert samples.under_way == 0
    samples.on_report(501 * MS, 4 * SIZE, 3, 0, 0, 0)
    assert samples.under_way == 6 * SIZE
