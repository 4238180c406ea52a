"""Reference tables of documents, made from the code: python -m tools.reference writes them anew.

Each is in its document between two marks. A test compares the documents with what this module makes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.events import KINDS

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- made by tools/reference.py: begin -->\n", "<!-- made by tools/reference.py: end -->"


def events() -> str:
    """Every kind of event as a row of Markdown."""
    rows = [
        f"| `{kind.name}` | {kind.level} | {'yes' if kind.logged else 'no'} | {kind.meaning} |"
        for kind in sorted(KINDS, key=lambda kind: kind.id)
    ]
    return "\n".join(["| kind | level | in the log | meaning |", "|---|---|---|---|", *rows])


TABLES: dict[str, Callable[[], str]] = {"docs/events.md": events}
"""Documents, and what makes the table in each."""


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
