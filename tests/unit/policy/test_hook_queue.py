"""The queue of hooks: in order, a few at once, the last state wins."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy import hook_queue
from pipeline.policy.hook_queue import RUNNING_MAX, WAITING_MAX, HookQueue, Turn


def drain(queue: HookQueue[str]) -> list[Turn[str]]:
    found = []
    while turn := queue.next():
        found.append(turn)
    return found


def test_events_of_a_subject_run_one_after_the_other_and_the_last_state_wins() -> None:
    queue: HookQueue[str] = HookQueue()
    queue.add("link", "connected 1")
    assert drain(queue) == [("link", "connected 1")]
    for text in ("lost 1", "connected 2", "lost 2"):
        queue.add("link", text)
    assert drain(queue) == [] and queue.dropped == 2
    queue.ended("link")
    assert drain(queue) == [("link", "lost 2")]
    queue.ended("link")
    assert drain(queue) == [] and queue.is_idle


def test_subjects_run_beside_each_other_but_few_at_once() -> None:
    queue: HookQueue[str] = HookQueue()
    for number in range(RUNNING_MAX + 2):
        queue.add(number, "joined")
    assert [turn.subject for turn in drain(queue)] == list(range(RUNNING_MAX))
    queue.ended(2)
    assert drain(queue) == [(RUNNING_MAX, "joined")] and queue.dropped == 0


def test_a_subject_that_waits_for_itself_holds_up_no_other() -> None:
    queue: HookQueue[str] = HookQueue()
    queue.add("ann", "joined")
    queue.next()
    queue.add("ann", "left")
    queue.add("bob", "joined")
    assert drain(queue) == [("bob", "joined")]


def test_a_storm_of_subjects_is_bounded_and_counted() -> None:
    queue: HookQueue[str] = HookQueue()
    for number in range(WAITING_MAX + 10):
        queue.add(number, "joined")
    assert queue.dropped == 10
    assert queue.next() == (10, "joined")


def test_all_that_waits_can_be_dropped_and_is_counted() -> None:
    queue: HookQueue[str] = HookQueue()
    queue.add("ann", "joined")
    queue.next()
    queue.add("ann", "left")
    queue.add("bob", "joined")
    queue.drop_waiting()
    assert queue.dropped == 2 and not queue.is_idle
    queue.ended("ann")
    assert queue.is_idle


@given(st.lists(st.one_of(st.tuples(st.integers(0, 6), st.integers()), st.integers(0, 6)), max_size=80))
def test_nothing_runs_twice_at_once_and_nothing_is_lost_uncounted(steps: list) -> None:
    queue: HookQueue[int] = HookQueue()
    running: set[int] = set()
    added = started = 0
    for step in steps:
        if isinstance(step, tuple):
            queue.add(*step)
            added += 1
        else:
            queue.ended(step)
            running.discard(step)
        for turn in iter(queue.next, None):
            assert turn.subject not in running
            running.add(turn.subject)
            started += 1
        assert len(running) <= hook_queue.RUNNING_MAX
    queue.drop_waiting()
    assert added == started + queue.dropped
