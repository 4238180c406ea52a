"""Reference tables of documents, made from the code: python -m tools.reference writes them anew.

Each is in its document between two marks. A test compares the documents with what this module makes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.cli import help_text
from pipeline.cli.main import make_parser
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


def commands() -> str:
    """Every command with its arguments, in the groups of the help, and what its exit status means."""
    (choice,) = (each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction))
    by_name = help_text.parsers_of(choice)
    lines = ["| exit status | meaning |", "|---|---|"]
    for number, meaning in re.findall(r"(\d+) (.+?)(?:   |\n|$)", help_text.EXIT_STATUS):
        lines.append(f"| {number} | {meaning} |")
    for group, names in help_text.GROUPS.items():
        lines += ["", f"## {group[0].upper()}{group[1:]}"]
        for name in names:
            lines += ["", f"### {name}", "", _sentence(by_name[name].description or ""), "", *_arguments(by_name[name])]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip()


def _arguments(parser: argparse.ArgumentParser) -> list[str]:
    rows = []
    for action in parser._actions:
        if action.help not in (None, argparse.SUPPRESS) and not isinstance(action, argparse._HelpAction):
            value = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else action.dest)
            words = ", ".join(action.option_strings)
            takes = "" if action.nargs == 0 else f"[{value}]" if action.nargs == "?" else str(value)
            rows.append(f"| `{f'{words} {takes}'.strip()}` | {_escaped(parser, action)} |")
    return ["| argument | meaning |", "|---|---|", *rows] if rows else []


def _escaped(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help of an argument as the parser shows it, for a cell of Markdown."""
    text = parser._get_formatter()._expand_help(action)
    return text.replace("|", "\\|")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


TABLES: dict[str, Callable[[], str]] = {
    "docs/events.md": events,
    "docs/metrics.md": metrics,
    "docs/commands.md": commands,
}
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
