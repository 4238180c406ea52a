"""What bench makes of the figures of iperf3."""

from __future__ import annotations

import pytest

from tools.bench.measure import received_rate


def intervals(*received: tuple[float, int]) -> list[dict[str, float]]:
    """As iperf3 prints them: each of so many seconds, with so many packets of its own, and as many lost."""
    made, start = [], 0.0
    for seconds, packets in received:
        made.append(
            {
                "start": start,
                "end": start + seconds,
                "bytes": 200 * packets,
                "packets": 2 * packets,
                "lost_packets": packets,
            }
        )
        start += seconds
    return made


@pytest.mark.parametrize(
    "received",
    [
        [(0.1, 200)] * 10,
        [(0.1, 200)] * 10 + [(0.01, 20)],
        [(0.1, 200)] * 10 + [(0.05, 20), (0.1, 0), (0.9, 0)],
        [(1.2, 1)] + [(0.1, 200)] * 10,
        [(0.1, 200)] * 10 + [(1.3, 250)],
        [(0.1, 200)],
        [(0.1, 200), (0.9, 0)],
    ],
    ids=["whole", "a last part", "a late word", "a late start", "a late end", "one", "one and nothing"],
)
def test_what_the_control_connection_holds_up_does_not_count(received: list[tuple[float, int]]) -> None:
    assert received_rate(intervals(*received)) == pytest.approx(2000)


def test_a_pause_in_the_middle_counts() -> None:
    pause = [(0.1, 0)] * 8
    assert received_rate(intervals(*[(0.1, 200)] * 5, *pause, *[(0.1, 200)] * 5)) == pytest.approx(1000)


def test_where_nothing_arrived_the_rate_is_nothing() -> None:
    assert received_rate(intervals((0.1, 0), (0.1, 0))) == received_rate([]) == 0
