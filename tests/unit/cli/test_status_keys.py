"""The published keys of `status --json` are those of the code."""

from __future__ import annotations

from pipeline.cli.status_keys import DOCUMENT, KEYS, keys_of, with_table
from tests.support import ROOT


def test_the_published_table_is_current() -> None:
    document = (ROOT / DOCUMENT).read_text()
    assert document == with_table(document), "run: python -m pipeline.cli.status_keys"
    assert all(f"| `{name}` | " in document for name in KEYS)


def test_keys_are_found_in_objects_and_lists_of_objects() -> None:
    answer = {"a": 1, "b": {"c": None}, "d": [{"e": 1}, {"f": {}}], "g": [], "h": ["x"], "counters": {"tun.x": 5}}
    assert list(keys_of(answer)) == ["a", "b.c", "d[].e", "d[].f", "g", "h", "counters"]
