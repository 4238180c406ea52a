"""A broken rule, as checks yield it, and the rule that most lists of settings have in common."""

from collections.abc import Callable, Iterator
from typing import Any

Violations = Iterator[tuple[str, str, Any]]
"""Path, expected, given."""

ONLY_ONCE = "each value only once"


def each_once(texts: dict[str, str], parse: Callable[[str], Any]) -> Violations:
    seen = set()
    for path, text in texts.items():
        try:
            value = parse(text)
        except ValueError as expected:
            yield path, str(expected), text
            continue
        if value in seen:
            yield path, ONLY_ONCE, text
        seen.add(value)
