"""Events are kept, logged and told; equal ones are counted."""

from __future__ import annotations

import ast
import logging
import secrets
from collections.abc import Iterator

import pytest

from pipeline.events import BY_NAME, KINDS, Event
from pipeline.log import LEVELS, LOG
from pipeline.plain_text import escaped
from pipeline.policy.repeats import WINDOW_NS
from pipeline.shm import event_log, segment
from pipeline.shm.event_log import EventLog
from pipeline.supervisor.control.events import Events
from tests.support import ROOT


@pytest.fixture
def memory() -> Iterator[EventLog]:
    name = f"/tunnel@eventstest@{secrets.token_hex(4)}@events"
    created = event_log.create(name)
    yield created
    created.close()
    segment.unlink(name)


def kept(memory: EventLog) -> list[tuple[str, str, str, int]]:
    return [(e.kind.name, e.subject, e.text, e.more) for e in memory.read().events]


def test_an_event_is_kept_logged_and_told(memory: EventLog, caplog: pytest.LogCaptureFixture) -> None:
    events, told = Events(), []
    events.use(memory)
    events.subscribe(told.append)
    with caplog.at_level(logging.INFO, LOG.name):
        events.record("worker-died", "tcp-0", "SIGKILL")
    assert kept(memory) == [("worker-died", "tcp-0", "SIGKILL", 0)]
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.ERROR, "tcp-0 died: SIGKILL")]
    assert [(e.kind.name, e.subject, e.text) for e in told] == [("worker-died", "tcp-0", "SIGKILL")]


def test_events_before_there_is_memory_are_kept_then(memory: EventLog) -> None:
    events = Events()
    events.record("starting", text="client")
    events.record("worker-died", "tcp-0", "SIGKILL")
    events.use(memory)
    assert [row[0] for row in kept(memory)] == ["starting", "worker-died"]


def test_equal_events_are_counted_and_each_is_told(memory: EventLog) -> None:
    events, told = Events(), []
    events.use(memory)
    events.subscribe(told.append)
    for _ in range(4):
        events.record("lost", text="timed out")
    events.record("lost", text="reset")
    assert [row[2:] for row in kept(memory)] == [("timed out", 0), ("reset", 0)]
    events.finish()
    assert [row[2:] for row in kept(memory)] == [("timed out", 0), ("reset", 0), ("timed out", 3)]
    assert len(told) == 5


def test_counts_are_written_by_the_clock(memory: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    events = Events()
    events.use(memory)
    monkeypatch.setattr("time.monotonic_ns", lambda: 0)
    events.record("lost", text="timed out")
    events.record("lost", text="timed out")
    events.tick(WINDOW_NS - 1)
    assert len(kept(memory)) == 1
    events.tick(WINDOW_NS)
    assert kept(memory)[1][3] == 1


def test_nothing_unprintable_is_kept_logged_or_told(memory: EventLog, caplog: pytest.LogCaptureFixture) -> None:
    events, told = Events(), []
    events.use(memory)
    events.subscribe(told.append)
    evil = "\x1b[2J\r\n\u202e\x00\ud800"
    with caplog.at_level(logging.INFO, LOG.name):
        events.record("peer-joined", evil, evil)
    for text in (*kept(memory)[0][1:3], caplog.records[0].getMessage(), told[0].subject):
        assert text.isprintable()
    assert escaped("ordinary, \u00e9") == "ordinary, \u00e9"


def test_a_subscriber_that_fails_keeps_the_event_from_nobody(memory: EventLog) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError

    events, told = Events(), []
    events.use(memory)
    for callback in (fail, told.append):
        events.subscribe(callback)
    events.record("lost", text="reset")
    assert len(told) == len(kept(memory)) == 1


def test_the_table_is_well_formed() -> None:
    for kind in KINDS:
        assert kind.level in LEVELS
        assert escaped(kind.line.format(subject="s", text="t")) == kind.line.format(subject="s", text="t")
        assert kind.meaning == kind.meaning.strip()


def named_kinds() -> set[str]:
    """Every kind that the code names outside its table."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "pipeline").rglob("*.py") if path.name != "events.py")
    constants = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str) and value in BY_NAME}


def test_each_kind_of_the_table_is_recorded_somewhere() -> None:
    assert {kind.name for kind in KINDS} - named_kinds() == set()
