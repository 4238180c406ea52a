"""The answer to `reload` in words: settings, files and peers that have changed, and effects that come later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NAMES_MAX = 10  # of peers, in one line

PEERS = {"new": "new peers", "changed": "changed peers", "removed": "removed peers"}
"""The lists of peers in an answer, and what stands in front of each."""


def lines(answer: Mapping[str, Any]) -> list[str]:
    """For standard output. An instance of an older version tells the settings alone."""
    peers = answer.get("peers", {})
    parts = {
        "changed": answer["changed"],
        "new contents": answer.get("contents", []),
        **{words: peers.get(key, []) for key, words in PEERS.items()},
    }
    found = [f"{words}: {_listed(names)}" for words, names in parts.items() if names]
    return found or ["changed: nothing"]


def _listed(names: Sequence[str]) -> str:
    shown, more = names[:NAMES_MAX], len(names) - NAMES_MAX
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
