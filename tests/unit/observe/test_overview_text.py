"""The text of the overview: what was composed is read back, the peers one by one, as far as there is room."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.observe.overview_text import LEFT_OUT_BYTES, compose, parse

NAMES = st.text(max_size=40)


def composed(names: list[str], room: int = 1 << 20, **about: Any) -> dict[str, Any]:
    text = compose(about, '{"lanes": 2}', [json.dumps({"name": name}) for name in names], room)
    assert len(text.encode()) <= room
    return parse(text)


@given(st.lists(NAMES, max_size=20), NAMES)
def test_what_was_composed_is_read_back(names: list[str], note: str) -> None:
    about = composed(names, notes=[note])
    assert about["notes"] == [note] and about["plan"] == {"lanes": 2} and about["peers_left_out"] == 0
    assert [row["name"] for row in about["peers"]] == names
    assert len(about["peers"]) == len(names)
    assert [row["name"] for row in about["peers"]] == names  # a second time


@given(st.integers(0, 30), st.integers(100, 900))
def test_peers_beyond_the_room_are_counted(count: int, room: int) -> None:
    names = [f"peer-{number:03}" for number in range(count)]
    about = composed(names, room, state="running")
    shown = len(about["peers"])
    assert [row["name"] for row in about["peers"]] == names[:shown]
    assert about["peers_left_out"] == count - shown
    row = len('\n{"name": "peer-000"}')
    assert (
        shown == count
        or len(compose({"state": "running"}, '{"lanes": 2}', [], room)) + row * (shown + 1) > room - LEFT_OUT_BYTES
    )


def test_before_the_first_text_there_is_nothing() -> None:
    assert parse("") == {}
