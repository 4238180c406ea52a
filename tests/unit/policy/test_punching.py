"""Probes to candidates: often at first, then less, and anew when a path has gone dark."""

from __future__ import annotations

from pipeline.policy.punching import EVERY_NS, FAST_NS, LATER_NS, Punching

TICK = 20_000_000


def probes(punching: Punching, begin: int, end: int) -> int:
    return sum(punching.due(now) for now in range(begin, end, TICK))


def test_probes_go_out_at_once_and_often_and_later_less() -> None:
    punching = Punching(0)
    assert punching.due(0) and not punching.due(EVERY_NS - 1)
    assert probes(punching, TICK, FAST_NS) == FAST_NS // EVERY_NS - 1
    assert probes(punching, FAST_NS, FAST_NS + 10 * LATER_NS) == 10


def test_after_a_dark_path_they_begin_anew() -> None:
    punching = Punching(0)
    probes(punching, 0, 20 * LATER_NS)
    punching.begin_anew(20 * LATER_NS)
    assert probes(punching, 20 * LATER_NS, 20 * LATER_NS + FAST_NS) == FAST_NS // EVERY_NS
