"""The history: rates out of counters, gaps where nothing was measured, minutes out of seconds, bounded memory."""

from __future__ import annotations

import json

import pytest

from pipeline.exporter.history import SERIES, SPANS, History, State

NOWHERE = float("nan")
START = 100_000.02


def state(rtt: float = 0.02, worst: float = 0.05, peers: int = 1, resent: int = 0) -> State:
    return State(rtt, worst, peers, resent)


def feed(history: History, seconds: int, rate: int = 1000, start: float = START, **others: float) -> None:
    for second in range(seconds):
        history.add({"tcp.bytes_sent": rate * second}, state(**others), start + second)


def column(history: History, name: str, span: str = "minutes") -> list[float | None]:
    return history.columns(span)[name]


def test_a_rate_is_the_growth_of_a_counter_in_a_second() -> None:
    history = History()
    feed(history, 5)
    assert column(history, "sent")[-5:] == [None, 1000, 1000, 1000, 1000]
    assert column(history, "rtt")[-5:] == [pytest.approx(0.02)] * 5
    assert history.latest["sent"] == 1000


def test_counters_of_several_names_are_one_rate() -> None:
    history = History()
    history.add({"fec.blocks_recovered_1": 0, "tun.dropped_no_peer": 5}, state(), START)
    counted = {
        "fec.blocks_recovered_1": 2,
        "fec.blocks_recovered_3": 3,
        "tun.dropped_no_peer": 9,
        "tcp.dropped_partial": 1,
    }
    history.add(counted, state(resent=7), START + 1)
    assert [history.latest[name] for name in ("recovered", "dropped", "resent")] == [5, 5, 7]


def test_counters_that_begin_anew_leave_a_gap_and_no_rate_below_zero() -> None:
    history = History()
    feed(history, 3)
    history.add({"tcp.bytes_sent": 5}, state(), START + 3)
    history.add({"tcp.bytes_sent": 105}, state(), START + 4)
    assert column(history, "sent")[-3:] == [1000, None, 100]


def test_a_second_that_was_missed_has_the_rate_of_the_time_around_it() -> None:
    history = History()
    feed(history, 3)
    history.add({"tcp.bytes_sent": 4000}, state(), START + 4)
    assert column(history, "sent")[-3:] == [1000, 1000, 1000]


def test_while_the_machine_slept_there_is_a_gap() -> None:
    history = History()
    feed(history, 3)
    history.add({"tcp.bytes_sent": 4000}, state(), START + 100)
    history.add({"tcp.bytes_sent": 4500}, state(), START + 101)
    assert column(history, "sent")[-100:] == [1000] + [None] * 98 + [500]
    assert column(history, "peers")[-100:] == [1] + [None] * 97 + [1, 1]


def test_after_more_than_a_span_nothing_old_is_left() -> None:
    history = History()
    feed(history, SPANS["minutes"].points)
    history.add({}, state(), START + 5000)
    assert [each for each in column(history, "peers") if each is not None] == [1]


def test_a_minute_is_the_mean_of_its_seconds_and_the_worst_round_trip_of_them() -> None:
    history = History()
    start = 120_000.02  # a minute begins
    for second in range(61):
        history.add({"tcp.bytes_sent": 600 * second}, state(worst=0.5 if second == 30 else 0.1), start + second)
    assert column(history, "sent", "day")[-1] == 600
    assert column(history, "rtt_worst", "day")[-1] == 0.5
    assert history.end("day") * 60 == 120_060


def test_a_day_with_a_gap_has_it_at_its_place() -> None:
    history = History()
    feed(history, 180, start=120_000.02)
    feed(history, 120, start=120_000.02 + 3600)
    peers = column(history, "peers", "day")
    assert [index for index, each in enumerate(peers) if each is not None] == [1440 - each for each in (61, 60, 59, 1)]


def test_memory_is_bounded_and_everything_is_json() -> None:
    history = History()
    feed(history, 700, rtt=NOWHERE, worst=NOWHERE)
    for span, (_, points) in SPANS.items():
        columns = history.columns(span)
        assert set(columns) == set(SERIES)
        assert {len(each) for each in columns.values()} == {points}
        json.dumps(columns, allow_nan=False)
    assert history.latest["rtt"] is None
