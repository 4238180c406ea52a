"""When the other end of some connections counts as silent, in simulated time."""

from __future__ import annotations

import pytest

from pipeline.policy.silence import MS, SILENT_NS, Outstanding, Silence

STEP = 100 * MS
BEGIN = 1000 * SILENT_NS


def is_silent_after(*looks: dict[int, Outstanding]) -> bool:
    """The verdict after these looks, STEP apart."""
    silence = Silence()
    now = BEGIN
    for look in looks:
        now += STEP
        silence.update(look, now)
    return silence.is_silent(now)


def waiting(count: int, heard_before_ms: int = 0) -> list[dict[int, Outstanding]]:
    """Looks at one connection on which something is outstanding, and nothing comes."""
    return [{1: Outstanding(3, heard_before_ms + 100 * step)} for step in range(count)]


def test_something_outstanding_without_an_answer_for_so_long_is_silence() -> None:
    enough = SILENT_NS // STEP + 1
    assert is_silent_after(*waiting(enough))
    assert not is_silent_after(*waiting(enough - 1))


def test_the_silence_before_a_packet_was_sent_does_not_count() -> None:
    """An idle connection has heard nothing for a minute; its first packet has its time like any other."""
    assert not is_silent_after(*waiting(2, heard_before_ms=60_000))
    assert is_silent_after(*waiting(SILENT_NS // STEP + 1, heard_before_ms=60_000))


@pytest.mark.parametrize("unacked", [0, 5])
def test_an_end_that_is_heard_on_any_connection_is_not_silent(unacked: int) -> None:
    looks = [look | {2: Outstanding(unacked, 40)} for look in waiting(100)]
    assert not is_silent_after(*looks)


def test_an_end_that_acknowledges_all_the_time_is_not_silent_although_something_is_always_outstanding() -> None:
    assert not is_silent_after(*[{1: Outstanding(9, 20)}] * 100)


def test_on_a_path_with_a_long_round_trip_silence_takes_longer() -> None:
    slow = [{1: each[1]._replace(rtt_us=1_000_000)} for each in waiting(31)]
    assert not is_silent_after(*slow[:20]) and is_silent_after(*slow)


def test_without_anything_outstanding_or_without_connections_nothing_is_silent() -> None:
    assert not is_silent_after(*[{1: Outstanding(0, 60_000)}] * 100)
    assert not is_silent_after(*[{}] * 100)
    assert not Silence().is_silent(BEGIN)


def test_an_end_that_is_asked_counts_as_silent_until_it_answers_or_need_not() -> None:
    silence = Silence()
    silence.update({1: Outstanding(0, 30)}, BEGIN)
    silence.ask(BEGIN)
    silence.update({1: Outstanding(1, 130)}, BEGIN + STEP)
    assert silence.is_silent(BEGIN + STEP)
    silence.update({1: Outstanding(0, 20)}, BEGIN + 2 * STEP)
    assert not silence.is_silent(BEGIN + 2 * STEP)
    silence.ask(BEGIN + 3 * STEP)
    assert silence.is_silent(BEGIN + 3 * STEP)
    silence.ask(0)
    assert not silence.is_silent(BEGIN + 3 * STEP)


def test_a_connection_that_was_made_since_is_an_answer() -> None:
    silence = Silence()
    silence.update({}, BEGIN + STEP)
    silence.ask(BEGIN)
    silence.update({1: Outstanding(0, 99)}, BEGIN + STEP)
    assert not silence.is_silent(BEGIN + STEP)
