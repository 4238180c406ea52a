"""The overview: a whole text at any moment, read without a lock."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from pipeline.errors import LocalError
from pipeline.shm import layout, overview, segment
from pipeline.shm.overview import Overview

PLACE = 2 * layout.PAGE


@pytest.fixture
def made() -> Iterator[Overview]:
    name = f"/tunnel@overviewtest@{secrets.token_hex(4)}@overview"
    created = overview.create(name, PLACE)
    yield created
    created.close()
    segment.unlink(name)


def test_the_last_text_is_read(made: Overview) -> None:
    reader = overview.attach(made.memory.name)
    assert reader.read() == ""
    for text in ("one", "zwei \u2713", "x" * made.room, ""):
        made.publish(text)
        assert reader.read() == text
    assert reader.count == 4
    made.beat(17)
    assert (reader.heartbeat, reader.has_ended) == (17, False)
    made.end()
    assert reader.has_ended
    with pytest.raises(TypeError):
        reader.memory.words[0] = 1
    reader.close()


def test_a_supervisor_that_stopped_while_it_wrote_leaves_the_text_before(made: Overview) -> None:
    made.publish("first")
    made.publish("second")
    other_place = layout.OVERVIEW_PLACES_AT + (made.count + 1) % 2 * PLACE
    made.memory.view[other_place : other_place + PLACE] = b"\xff" * PLACE
    assert made.read() == "second"


def test_a_text_that_is_too_long_changes_nothing(made: Overview) -> None:
    made.publish("before")
    with pytest.raises(LocalError, match="has room for"):
        made.publish("x" * (made.room + 1))
    assert made.read() == "before"


def test_a_segment_of_another_kind_or_owner_is_refused(made: Overview) -> None:
    with pytest.raises(LocalError, match="magic"):
        segment.attach_with_header(made.memory.name, made.memory.size, layout.EVENT_LOG_MAGIC, [], ())
    with pytest.raises(LocalError, match="belongs to user"):
        overview.attach(made.memory.name, owner=12345)
    with pytest.raises(LocalError, match="not found"):
        overview.attach("/tunnel@nobody@00000000@overview")
