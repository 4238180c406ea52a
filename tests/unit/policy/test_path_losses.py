"""Losses of a path: usual ones are learnt where there is no queue, and only those above them are excess."""

from __future__ import annotations

import random

import pytest

from pipeline.policy.delivery_samples import DeliverySamples
from pipeline.policy.path_losses import USUAL_MOST, PathLosses

MS = 1_000_000
LEAST = 40 * MS


def sample(round_trip: float, segments: int, lost: int = 0, ce: int = 0) -> DeliverySamples:
    made = DeliverySamples(0)
    made.round_trip, made.segments, made.lost, made.ce = int(round_trip * MS), segments, lost, ce
    made.missing = lost
    made.sent_with = segments * 1000
    return made


def add(losses: PathLosses, made: DeliverySamples, *, slow: bool = False, counts: bool = True) -> bool:
    return losses.add(made, LEAST, slow=slow, counts=counts)


def learnt(share: float, seed: int = 1) -> PathLosses:
    draw = random.Random(seed).random
    losses = PathLosses()
    for _ in range(200):
        add(losses, sample(40, 20, sum(draw() < share for _ in range(20))), slow=True)
    return losses


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1])
def test_the_usual_share_is_that_of_slow_segments_without_a_queue(share: float) -> None:
    assert 0.7 * share <= learnt(share).usual <= 1.15 * share


def test_a_loss_that_is_known_late_counts_for_the_segments_that_were_lost() -> None:
    losses = PathLosses()
    for _ in range(100):
        slow, fast = sample(40, 20), sample(80, 20, 4)
        slow.missing, fast.missing = 2, 2
        add(losses, slow, slow=True)
        add(losses, fast)
    assert losses.usual == pytest.approx(0.09, abs=0.02)


def test_segments_that_met_a_queue_or_were_sent_fast_teach_nothing() -> None:
    losses = PathLosses()
    add(losses, sample(80, 500, 100), slow=True)
    add(losses, sample(40, 500, 100))
    assert losses.usual == 0


def test_the_usual_share_has_a_bound_and_fades_where_a_queue_never_ends() -> None:
    losses = PathLosses()
    for _ in range(50):
        add(losses, sample(40, 100, 100), slow=True)
    assert losses.usual == USUAL_MOST
    losses.begin_cycle()
    assert losses.usual == USUAL_MOST
    for _ in range(20):
        losses.begin_cycle()
    assert losses.usual < 0.01


@pytest.mark.parametrize(("lost", "excess"), [(2, False), (16, False), (45, True)])
def test_losses_are_excess_when_there_are_more_than_usual_ones_by_chance(lost: int, excess: bool) -> None:
    losses = learnt(0.1)
    add(losses, sample(80, 160, lost))
    assert losses.excess(LEAST) is excess
    losses.begin_round()
    assert not losses.excess(LEAST)


@pytest.mark.parametrize(("round_trip", "excess"), [(80, True), (48, False)])
def test_a_queue_that_a_probe_makes_asks_for_more_losses(round_trip: int, excess: bool) -> None:
    losses = PathLosses()
    add(losses, sample(round_trip, 160, 8))
    assert losses.excess(LEAST) is excess


def test_losses_before_yielding_or_in_a_queue_shorter_than_usual_do_not_count() -> None:
    losses = PathLosses()
    add(losses, sample(80, 160, 50), counts=False)
    assert not losses.excess(LEAST)
    add(losses, sample(50, 160, 50))
    assert not losses.excess(LEAST)


def test_a_few_segments_with_ce_are_excess() -> None:
    losses = PathLosses()
    add(losses, sample(48, 160, 0, 4))
    assert losses.excess(LEAST)
    assert losses.sent_with == 160_000
