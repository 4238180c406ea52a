"""When the program of the other end counts as standing still, in simulated time."""

from __future__ import annotations

import pytest

from pipeline.policy.standstill import ANSWER_NS, ASK_NS, MS, WRITTEN_NS, Arrival, Spoken, Standstill

STEP = 100 * MS
BEGIN = 1000 * ANSWER_NS
THERE, ON_ITS_WAY = Arrival(5000, 5000), Arrival(5000, 4000)


class Client:
    """It sends at BEGIN, and looks each STEP. `question`: what the kernel says while it is asked."""

    def __init__(self, question: Arrival = THERE) -> None:
        self.judge = Standstill()
        self.now = BEGIN
        self.sent, self.heard, self.question = BEGIN, BEGIN - STEP, question
        self.asked: list[int] = []

    def step(self, count: int = 1) -> Client:
        for _ in range(count):
            self.now += STEP
            self.judge.update({1: Spoken(self.sent, self.heard, self.question)}, self.now)
            if self.judge.wants(self.now):
                self.judge.ask(self.now)
                self.asked.append(self.now)
        return self

    @property
    def is_silent(self) -> bool:
        return self.judge.is_silent(self.now)


ENOUGH = (STEP + ASK_NS + WRITTEN_NS + ANSWER_NS) // STEP


def test_an_end_that_is_asked_and_does_not_answer_stands_still_after_two_seconds() -> None:
    client = Client().step(ENOUGH - 1)
    assert client.asked and not client.is_silent
    assert client.step().is_silent and client.now - BEGIN <= 2000 * MS
    assert len(client.asked) == 1, "it is asked once"


def test_an_end_that_answers_does_not_and_is_asked_again_when_something_is_sent() -> None:
    client = Client().step(8)
    client.heard = client.now
    client.step(50)
    assert len(client.asked) == 1 and not client.is_silent
    client.sent = client.now
    assert client.step(ENOUGH).is_silent and len(client.asked) == 2


def test_an_end_that_was_sent_nothing_is_never_asked() -> None:
    client = Client()
    client.heard = BEGIN + 1
    assert not client.step(100).is_silent and not client.asked


def test_an_end_from_which_something_comes_all_the_time_is_never_asked() -> None:
    client = Client()
    for _ in range(100):
        client.sent, client.heard = client.now + 90 * MS, client.now + 80 * MS
        client.step()
    assert not client.asked


def test_the_time_of_an_answer_begins_when_the_question_is_there() -> None:
    """A long queue on the way is none of the other program's fault."""
    client = Client(ON_ITS_WAY).step(100)
    assert client.asked and not client.is_silent
    client.question = Arrival(9000, 5000)
    assert not client.step(ANSWER_NS // STEP).is_silent
    assert client.step().is_silent, "what was written behind it need not be there"


def test_where_the_kernel_says_nothing_the_question_counts_as_there() -> None:
    assert Client(Arrival()).step(ENOUGH).is_silent


def test_on_a_path_with_a_long_round_trip_an_answer_may_take_longer() -> None:
    client = Client(THERE._replace(rtt_us=1_000_000)).step(ENOUGH + 16)
    assert not client.is_silent and client.step(2).is_silent


def test_one_connection_that_hears_something_is_enough() -> None:
    judge = Standstill()
    for step in range(1, 100):
        now = BEGIN + step * STEP
        judge.update({1: Spoken(BEGIN, BEGIN - 1), 2: Spoken(now, now)}, now)
        assert not judge.wants(now) and not judge.is_silent(now)


@pytest.mark.parametrize("heard", [0, 1])
def test_an_end_in_reserve_counts_as_still_until_it_is_heard(heard: int) -> None:
    judge = Standstill()
    judge.update({1: Spoken(BEGIN, BEGIN + heard)}, BEGIN + STEP)
    judge.demand(BEGIN)
    assert judge.is_silent(BEGIN + STEP) is (not heard)
    judge.demand(0)
    assert not judge.is_silent(BEGIN + STEP)


def test_without_connections_that_can_be_asked_nothing_stands_still() -> None:
    judge = Standstill()
    judge.demand(BEGIN)
    for step in range(1, 100):
        judge.update({}, BEGIN + step * STEP)
        assert not judge.wants(BEGIN + step * STEP) and not judge.is_silent(BEGIN + step * STEP)
