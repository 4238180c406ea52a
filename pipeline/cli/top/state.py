"""The choices of a user of `top`, and what each key changes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.observe.rates import PeerRates, Rates

PAGE = 10  # rows of a page up or down

PANES = ("peers", "workers", "events")
"""The parts that can have more rows than there is room for; the chosen one gets the room that is left."""

SORTS = ("traffic", "name", "rtt", "resent", "recovered", "dropped")
"""Orders of the peers. All but the name begin with the highest."""


class State(NamedTuple):
    """The choices. `selected`: name of the chosen peer; "" for none."""

    pane: str = PANES[0]
    sort: str = SORTS[0]
    is_reversed: bool = False
    is_frozen: bool = False
    shows_help: bool = False
    shows_peer: bool = False  # the details of the selected one
    selected: str = ""
    offset: int = 0  # rows of the workers or events that are scrolled away
    quits: bool = False


def press(state: State, key: str, names: Sequence[str]) -> State:
    """The state after a key. `names`: the peers in the order in which they are shown."""
    if state.shows_help and key != "q":
        return state._replace(shows_help=False)
    match key:
        case "q":
            return state._replace(quits=True)
        case "h" | "?":
            return state._replace(shows_help=True)
        case "f" | "space" | "p":
            return state._replace(is_frozen=not state.is_frozen)
        case "s":
            return state._replace(sort=SORTS[(SORTS.index(state.sort) + 1) % len(SORTS)])
        case "r":
            return state._replace(is_reversed=not state.is_reversed)
        case "tab":
            return state._replace(pane=PANES[(PANES.index(state.pane) + 1) % len(PANES)], offset=0)
        case "escape":
            return state._replace(shows_peer=False)
        case "enter":
            chosen = state.selected if state.selected in names else next(iter(names), "")
            return state._replace(shows_peer=bool(chosen) and not state.shows_peer, selected=chosen)
    return _move(state, key, names)


_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1, "page-up": -PAGE, "page-down": PAGE, "home": -(1 << 30), "end": 1 << 30}


def _move(state: State, key: str, names: Sequence[str]) -> State:
    step = _STEPS.get(key, 0)
    if not step:
        return state
    if state.pane != "peers" and not state.shows_peer:
        return state._replace(offset=max(0, min(state.offset + step, 1 << 20)))
    if not names:
        return state
    if state.selected in names:
        place = max(0, min(len(names) - 1, names.index(state.selected) + step))
    else:
        place = len(names) - 1 if step > 1 << 20 else 0
    return state._replace(selected=names[place])


def sorted_peers(peers: Sequence[dict[str, Any]], rates: Rates, state: State) -> list[dict[str, Any]]:
    """Connected peers first, then by the chosen order, then by name."""

    def key(peer: dict[str, Any]) -> tuple[Any, ...]:
        rate = rates.peers.get(peer["name"], PeerRates())
        value = {
            "traffic": -(rate.sent + rate.received),
            "name": 0,
            "rtt": -(peer["rtt_ms"] or 0),
            "resent": -peer["resent_segments"],
            "recovered": -peer["recovered_blocks"],
            "dropped": -peer["dropped"],
        }[state.sort]
        return value, peer["name"]

    ordered = sorted(peers, key=key, reverse=state.is_reversed)
    return sorted(ordered, key=lambda peer: peer["connections"] == 0)
