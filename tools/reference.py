"""Reference tables of documents, made from the code: python -m tools.reference writes them anew.

Each is in its document between two marks. A test compares the documents with what this module makes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.counters import COUNTERS
from pipeline.events import KINDS
from pipeline.exporter.metrics import FAMILIES, place_of

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- made by tools/reference.py: begin -->\n", "<!-- made by tools/reference.py: end -->"


def events() -> str:
    """Every kind of event as a row of Markdown."""
    rows = [
        f"| `{kind.name}` | {kind.level} | {'yes' if kind.logged else 'no'} | {kind.meaning} |"
        for kind in sorted(KINDS, key=lambda kind: kind.id)
    ]
    return "\n".join(["| kind | level | in the log | meaning |", "|---|---|---|---|", *rows])


def metrics() -> str:
    """Every metric, and then where each counter is found among them."""
    families = [
        f"| `{each.shown_name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {each.meaning} |"
        for each in FAMILIES
    ]
    counters = [f"| `{each.name}` | `{place_of(each)}` | {each.meaning} |" for each in COUNTERS]
    return "\n".join(
        [
            *("| metric | kind | labels | meaning |", "|---|---|---|---|", *families, ""),
            *("## Counters among them", ""),
            *("| counter in `status --json` | in `/metrics` | meaning |", "|---|---|---|", *counters),
        ]
    )


TABLES: dict[str, Callable[[], str]] = {"docs/events.md": events, "docs/metrics.md": metrics}
"""Documents, and what makes the tables in each."""


def with_table(document: str, table: str) -> str:
    """The document with this table in place of the one that it has."""
    intro, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{intro}{begin}\n{table}\n\n{end}{after}"


def main() -> int:
    for name, make in TABLES.items():
        path = ROOT / name
        path.write_text(with_table(path.read_text(), make()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
