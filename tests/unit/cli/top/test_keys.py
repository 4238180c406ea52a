"""Keys of a terminal, and what they change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.top.keys import decode
from pipeline.cli.top.state import PANES, SORTS, State, press

NAMES = ["ann", "bob", "cyd"]


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1b[B", ["up", "down"]),
        (b"\x1bOA", ["up"]),
        (b"\x1b[5~x", ["page-up", "x"]),
        (b"\x1b", ["escape"]),
        (b"\x1bq", ["escape", "q"]),
        (b"\r\t ", ["enter", "tab", "space"]),
        (b"\x1b[1;5Cq", ["q"]),  # unknown: passed over as a whole
        (b"\x1b[200~", []),
        (b"\xc3\xa9s", ["s"]),
        (b"", []),
    ],
)
def test_bytes_become_keys(data: bytes, keys: list[str]) -> None:
    assert decode(data) == keys


@given(st.binary(max_size=50))
def test_any_bytes_become_some_keys(data: bytes) -> None:
    assert all(isinstance(key, str) and key for key in decode(data))


def test_each_order_and_each_pane_is_reached_and_comes_again() -> None:
    state, sorts, panes = State(), [], []
    for _ in SORTS:
        sorts.append(state.sort)
        state = press(state, "s", NAMES)
    for _ in PANES:
        panes.append(state.pane)
        state = press(state, "tab", NAMES)
    assert (tuple(sorts), tuple(panes), state.sort, state.pane) == (SORTS, PANES, SORTS[0], PANES[0])


def test_a_peer_is_chosen_shown_and_left() -> None:
    state = press(State(), "down", NAMES)
    assert state.selected == "ann"
    for key, expected in (
        ("down", "bob"),
        ("end", "cyd"),
        ("down", "cyd"),
        ("home", "ann"),
        ("up", "ann"),
        ("j", "bob"),
    ):
        state = press(state, key, NAMES)
        assert state.selected == expected
    state = press(state, "enter", NAMES)
    assert state.shows_peer
    assert not press(state, "escape", NAMES).shows_peer
    assert not press(state, "enter", NAMES).shows_peer
    assert press(state._replace(selected="gone"), "down", NAMES).selected == "ann"
    assert not press(State(), "enter", []).shows_peer


def test_workers_and_events_are_scrolled() -> None:
    state = State(pane="workers")
    state = press(press(state, "down", NAMES), "page-down", NAMES)
    assert (state.offset, state.selected) == (11, "")
    assert press(state, "home", NAMES).offset == 0
    assert press(state, "tab", NAMES).offset == 0


def test_help_freeze_and_quit() -> None:
    assert press(State(), "?", NAMES).shows_help
    assert not press(press(State(), "h", NAMES), "x", NAMES).shows_help
    assert press(press(State(), "h", NAMES), "q", NAMES).quits
    assert press(State(), "f", NAMES).is_frozen and not press(press(State(), "f", NAMES), "space", NAMES).is_frozen
    assert press(State(), "Z", NAMES) == State()
