"""The event log: the last events, read without a lock, none of them torn."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.events import BY_NAME
from pipeline.shm import event_log, layout, segment
from pipeline.shm.event_log import EventLog

DIED = BY_NAME["worker-died"]


@pytest.fixture
def made() -> Iterator[EventLog]:
    name = f"/tunnel@eventtest@{secrets.token_hex(4)}@events"
    created = event_log.create(name)
    yield created
    created.close()
    segment.unlink(name)


def test_a_reader_finds_the_events_in_their_order_and_reads_on(made: EventLog) -> None:
    reader = event_log.attach(made.memory.name)
    made.append(DIED, "tcp-0", "SIGKILL", 17)
    first = reader.read()
    assert [e[:5] for e in first.events] == [(0, DIED, "tcp-0", "SIGKILL", 17)]
    made.append(DIED, "tun-0", "exit status 70", 18, more=3, since_ns=9)
    second = reader.read(first.next)
    assert [(e.number, e.more, e.since_ns, e.line) for e in second.events] == [(1, 3, 9, "tun-0 died: exit status 70")]
    assert not second.missed
    reader.close()


def test_an_attached_reader_cannot_write(made: EventLog) -> None:
    reader = event_log.attach(made.memory.name)
    with pytest.raises(TypeError):
        reader.memory.words[0] = 1
    reader.close()


def test_overwritten_events_are_counted_as_missed(made: EventLog) -> None:
    for number in range(layout.EVENTS_KEPT + 3):
        made.append(DIED, "tcp-0", str(number), 0)
    found = made.read()
    assert [e.text for e in found.events] == [str(n) for n in range(3, layout.EVENTS_KEPT + 3)]
    assert found.missed == 3


def test_a_record_that_is_being_written_is_not_read(made: EventLog) -> None:
    """The supervisor was stopped in the middle of an event that overwrites the oldest one."""
    for number in range(layout.EVENTS_KEPT):
        made.append(DIED, "tcp-0", str(number), 0)
    made.memory.words[layout.EVENTS_AT // 8] = 0
    found = made.read()
    assert [e.number for e in found.events] == list(range(1, layout.EVENTS_KEPT))
    assert found.missed == 1


def test_a_log_that_began_anew_is_read_from_its_beginning(made: EventLog) -> None:
    made.append(DIED, "tcp-0", "", 0)
    assert [e.number for e in made.read(500).events] == [0]


def test_a_log_made_anew_continues_the_old_one(made: EventLog) -> None:
    made.append(DIED, "tcp-0", "before", 0)
    contents = made.contents()
    name = f"{made.memory.name}2"
    other = event_log.create(name)
    other.restore(contents)
    other.append(DIED, "tcp-0", "after", 0)
    assert [(e.number, e.text) for e in other.read().events] == [(0, "before"), (1, "after")]
    other.close()
    segment.unlink(name)


def test_a_kind_of_a_later_version_is_shown_by_its_number(made: EventLog) -> None:
    made.append(DIED._replace(id=999), "x", "y", 0)
    assert made.read().events[0].kind.name == "kind-999"


@given(subject=st.text(), text=st.text(max_size=2000))
def test_any_text_is_kept_up_to_what_a_record_holds(subject: str, text: str) -> None:
    name = f"/tunnel@eventtest@{secrets.token_hex(4)}@events"
    log = event_log.create(name)
    try:
        for _ in range(2):
            log.append(DIED, subject, text, 1)
        for event in log.read().events:
            assert subject.encode(errors="replace").decode().startswith(event.subject)
            assert text.encode(errors="replace").decode().startswith(event.text)
            if len(text) < 80:
                assert event.text == text.encode(errors="replace").decode()
    finally:
        log.close()
        segment.unlink(name)
