"""Exceptions that the supervisor survives: counted each, logged with their traceback once in a while."""

from __future__ import annotations

import logging

import pytest

from pipeline.supervisor.run.failures import KINDS_MAX, Failures


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("tunnel"), "propagate", True)


def fail(failures: Failures, error: Exception, doing: str = "the reload") -> str:
    try:
        raise error
    except Exception:
        return failures.record(doing)


def test_a_failure_is_counted_logged_with_its_traceback_and_named(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures()
    said = fail(failures, KeyError("name"))
    assert said.startswith("the reload failed (KeyError: 'name')") and "the log has a traceback" in said
    assert failures.count == 1
    assert "the reload failed, and the supervisor goes on: KeyError: 'name'" in caplog.text
    assert "Traceback" in caplog.text and "raise error" in caplog.text


def test_what_fails_in_every_turn_is_counted_and_fills_no_disk(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures()
    for _ in range(1000):
        fail(failures, OSError(24, "Too many open files"))
    assert failures.count == 1000 and len(caplog.records) == 1
    fail(failures, OSError(24, "Too many open files"), "an event")
    fail(failures, ValueError("another"))
    assert len(caplog.records) == 3


def test_of_any_number_of_kinds_few_are_remembered(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures()
    for number in range(3 * KINDS_MAX):
        fail(failures, ValueError("odd"), f"request {number}")
        assert len(failures._said_at) <= KINDS_MAX
    assert failures.count == len(caplog.records) == 3 * KINDS_MAX


def test_a_failure_is_survived_and_the_rest_is_called_with_what_is_given() -> None:
    failures, called = Failures(), []

    def fail(now: int) -> None:
        called.append(now)
        raise RuntimeError("no")

    failures.survive("a test", fail, 7)
    failures.survive("a test", called.append, 8)
    assert (called, failures.count) == ([7, 8], 1)
