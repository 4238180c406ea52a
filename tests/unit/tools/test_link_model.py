"""The model of a link, stepped with a clock of the test's own."""

from __future__ import annotations

import itertools
import math

import msgspec
import pytest

from tools.lab.link_model import LinkModel, LinkSpec, Train

MS = 1_000_000


def pass_packets(
    model: LinkModel, count: int, *, every_ns: int = MS, size: int = 1000, start: int = 0
) -> list[list[Train]]:
    """Ordinary packets at equal intervals; what came out of each."""
    return [model.offer(start + number * every_ns, 1, size, size) for number in range(count)]


def lost_spells(outcomes: list[list[Train]]) -> list[int]:
    """Lengths of the trains of packets that did not come out."""
    groups = itertools.groupby(outcomes, key=lambda trains: not trains)
    return [len(list(group)) for gone, group in groups if gone]


def binomial_bounds(count: int, share: float, deviations: float = 4.0) -> tuple[float, float]:
    spread = deviations * math.sqrt(count * share * (1 - share))
    return count * share - spread, count * share + spread


def test_fades_take_a_share_of_the_time_whatever_is_sent_meanwhile() -> None:
    model = LinkModel(LinkSpec(loss_percent=2.0, burst_ms=4.0))
    outcomes = pass_packets(model, 200_000, every_ns=MS // 10)
    spells = lost_spells(outcomes)
    assert sum(spells) == pytest.approx(4000, rel=0.3)
    assert sum(spells) / len(spells) == pytest.approx(40, rel=0.3)
    sparse = LinkModel(LinkSpec(loss_percent=2.0, burst_ms=4.0))
    lost = lost_spells(pass_packets(sparse, 20_000, every_ns=20 * MS))
    assert sum(lost) == pytest.approx(400, rel=0.3)
    assert sum(lost) / len(lost) < 1.1


def test_packets_that_leave_together_fade_together() -> None:
    model = LinkModel(LinkSpec(loss_percent=10.0, burst_ms=2.0))
    for number in range(1000):
        pair = pass_packets(model, 2, every_ns=1, start=number * 20 * MS)
        assert len({bool(each) for each in pair}) == 1


@pytest.mark.parametrize(("percent", "passed"), [(0.0, 10), (100.0, 0)])
def test_fades_may_take_nothing_and_everything(percent: float, passed: int) -> None:
    model = LinkModel(LinkSpec(loss_percent=percent, burst_ms=4.0))
    assert sum(map(bool, pass_packets(model, 10))) == passed


def test_a_perfect_link_hands_a_super_packet_over_whole_and_at_once() -> None:
    assert LinkModel(LinkSpec()).offer(5, 40, 1514, 900) == [Train(5, 0, 40)]


def test_delay_is_added_exactly() -> None:
    model = LinkModel(LinkSpec(delay_ms=20.5))
    assert pass_packets(model, 3) == [[Train(number * MS + 20_500_000, 0, 1)] for number in range(3)]


def test_the_rate_counts_every_segments_bytes() -> None:
    model = LinkModel(LinkSpec(rate_mbit=8))  # 1 byte a microsecond
    trains = model.offer(0, 3, 1500, 600)
    assert trains == [Train(1_500_000, 0, 1), Train(3_000_000, 1, 1), Train(3_600_000, 2, 1)]


def test_segments_that_leave_close_together_stay_one_super_packet() -> None:
    model = LinkModel(LinkSpec(rate_mbit=8000))
    assert model.offer(0, 44, 1500, 1500) == [Train(66_000, 0, 44)]


def test_a_packet_waits_for_those_before_it_and_not_longer() -> None:
    model = LinkModel(LinkSpec(rate_mbit=8))
    model.offer(0, 1, 1000, 1000)
    assert model.offer(200_000, 1, 1000, 1000) == [Train(2_000_000, 0, 1)]
    assert model.offer(9_000_000, 1, 1000, 1000) == [Train(10_000_000, 0, 1)]


def test_what_finds_the_queue_full_is_dropped_and_counted() -> None:
    model = LinkModel(LinkSpec(rate_mbit=8, queue_packets=10))
    outcomes = pass_packets(model, 30, every_ns=0)
    assert [bool(trains) for trains in outcomes] == [True] * 10 + [False] * 20
    assert model.counters.dropped_queue_full == 20
    assert model.offer(MS, 1, 1000, 1000), "one has left after 1 ms, so one more finds room"
    assert not model.offer(MS, 1, 1000, 1000)


def test_a_super_packet_that_fills_the_queue_loses_its_last_segments() -> None:
    model = LinkModel(LinkSpec(rate_mbit=8, queue_packets=None, queue_bytes=5000))
    trains = model.offer(0, 8, 1000, 1000)
    assert [train.first for train in trains] == [0, 1, 2, 3, 4]
    assert model.counters.dropped_queue_full == 3


@pytest.mark.parametrize("percent", [0.5, 2, 10, 60])
def test_independent_loss_is_as_asked_within_binomial_bounds(percent: float) -> None:
    count = 40_000
    outcomes = pass_packets(LinkModel(LinkSpec(loss_percent=percent, seed=7)), count)
    low, high = binomial_bounds(count, percent / 100)
    assert low < sum(not trains for trains in outcomes) < high
    lengths = lost_spells(outcomes)
    assert sum(lengths) / len(lengths) == pytest.approx(1 / (1 - percent / 100), rel=0.05)


@pytest.mark.parametrize("burst", [2, 5, 20])
def test_burst_loss_has_the_share_and_the_mean_length_asked(burst: float) -> None:
    outcomes = pass_packets(LinkModel(LinkSpec(loss_percent=3, burst=burst, seed=3)), 200_000)
    lengths = lost_spells(outcomes)
    assert sum(lengths) / 200_000 == pytest.approx(0.03, rel=0.25)
    assert sum(lengths) / len(lengths) == pytest.approx(burst, rel=0.15)


@pytest.mark.parametrize("segments", [1, 7, 44])
def test_loss_hits_the_same_segments_however_they_are_packed(segments: int) -> None:
    spec = LinkSpec(loss_percent=4, burst=3, seed=11)
    one_by_one = [bool(trains) for trains in pass_packets(LinkModel(spec), 44 * 7 * 20)]
    model, came = LinkModel(spec), []
    for _ in range(0, len(one_by_one), segments):
        trains = model.offer(0, segments, 1500, 1500)
        arrived = {train.first + step for train in trains for step in range(train.length)}
        came += [index in arrived for index in range(segments)]
    assert came == one_by_one


def test_all_is_lost_or_nothing_at_the_ends_of_the_scale() -> None:
    assert not any(pass_packets(LinkModel(LinkSpec(loss_percent=100)), 500))
    assert all(pass_packets(LinkModel(LinkSpec(loss_percent=0)), 500))


def test_the_same_seed_gives_the_same_link_and_another_seed_another() -> None:
    def outcome(seed: int, direction: str = "forward") -> list[list[Train]]:
        spec = LinkSpec(
            delay_ms=20,
            jitter_ms=10,
            rate_mbit=20,
            loss_percent=5,
            burst=2,
            reorder_percent=3,
            duplicate_percent=2,
            seed=seed,
        )
        return pass_packets(LinkModel(spec, direction), 2000)

    assert outcome(1) == outcome(1)
    assert outcome(1) != outcome(2)
    assert outcome(1) != outcome(1, "backward")


def test_one_effect_does_not_move_another() -> None:
    plain = pass_packets(LinkModel(LinkSpec(loss_percent=5)), 3000)
    mixed = pass_packets(LinkModel(LinkSpec(loss_percent=5, duplicate_percent=20, reorder_percent=20)), 3000)
    assert [bool(trains) for trains in plain] == [bool(trains) for trains in mixed]


def test_jitter_stays_in_its_bounds_uses_them_and_never_reorders() -> None:
    outcomes = pass_packets(LinkModel(LinkSpec(delay_ms=20, jitter_ms=8)), 20_000, every_ns=100_000)
    dues = [trains[0].due for trains in outcomes]
    delays = [due - number * 100_000 for number, due in enumerate(dues)]
    assert dues == sorted(dues)
    assert 12 * MS <= min(delays) < 14 * MS
    assert 26 * MS < max(delays) <= 28 * MS


def test_jitter_behind_a_full_queue_never_reorders_either() -> None:
    model = LinkModel(LinkSpec(delay_ms=20, jitter_ms=20, rate_mbit=100))
    dues = [train.due for trains in pass_packets(model, 5000, every_ns=60_000) for train in trains]
    assert dues == sorted(dues)


def test_a_reordered_packet_comes_behind_those_that_left_after_it() -> None:
    model = LinkModel(LinkSpec(delay_ms=5, reorder_percent=10, reorder_ms=3))
    dues = [trains[0].due for trains in pass_packets(model, 4000)]
    held = [number for number, due in enumerate(dues) if due == number * MS + 8 * MS]
    assert len(held) == model.counters.reordered
    low, high = binomial_bounds(4000, 0.1)
    assert low < len(held) < high


def test_a_duplicate_arrives_beside_its_original() -> None:
    model = LinkModel(LinkSpec(delay_ms=1, duplicate_percent=100))
    assert model.offer(0, 2, 1000, 1000) == [Train(MS, 0, 2), Train(MS, 0, 1), Train(MS, 1, 1)]
    assert model.counters.duplicated == 2
    assert model.counters.passed == 4


def test_a_segment_above_the_path_mtu_vanishes_and_the_short_last_one_passes() -> None:
    model = LinkModel(LinkSpec(mtu=1400))
    assert model.offer(0, 1, 1414, 1414) == [Train(0, 0, 1)]
    assert model.offer(0, 1, 1415, 1415) == []
    assert model.offer(0, 5, 1514, 600) == [Train(0, 4, 1)]
    assert model.counters.dropped_too_big == 5


def test_a_changed_spec_holds_from_now_on_and_the_queue_stays() -> None:
    model = LinkModel(LinkSpec(rate_mbit=8))
    model.offer(0, 4, 1000, 1000)
    model.change(LinkSpec(rate_mbit=80, delay_ms=1))
    assert model.offer(0, 1, 1000, 1000) == [Train(4 * MS + 100_000 + MS, 0, 1)]


def test_every_segment_is_accounted_for() -> None:
    spec = LinkSpec(rate_mbit=50, loss_percent=5, reorder_percent=5, duplicate_percent=5, queue_packets=50)
    model = LinkModel(spec)
    came = sum(train.length for number in range(2000) for train in model.offer(number * MS, 10, 1500, 300))
    counters = model.counters
    assert counters.offered == 20_000
    assert came == counters.passed
    assert counters.passed - counters.duplicated == 20_000 - counters.lost - counters.dropped_queue_full


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"loss_percent": 101}, "loss_percent: expected 0 to 100, got 101"),
        ({"loss_percent": -1}, "loss_percent"),
        ({"delay_ms": -1}, "delay_ms: expected 0 or more"),
        ({"delay_ms": 1, "jitter_ms": 2}, r"jitter_ms: expected at most delay_ms \(1\)"),
        ({"rate_mbit": 0}, "rate_mbit"),
        ({"queue_packets": 0}, "queue_packets"),
        ({"burst": 0.5}, "burst: expected 1 or more"),
        ({"loss_percent": 90, "burst": 2}, "burst: expected at least 9.00"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_with_field_and_range(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LinkSpec(**wrong)
    with pytest.raises(msgspec.ValidationError, match=says):
        msgspec.convert(wrong, LinkSpec)
