"""The account of each peer's bytes as text: `peers --month` and `peers --day`, from the book of an instance.

    --month [YYYY-MM]       a month of UTC; this month without one, "all" for each
    --day [YYYY-MM-DD]      a day of UTC; today without one, "all" for each that is kept
    --json                  {"schema_version", "path", "problem", "rows": [{"month" or "day", "peer", "received_bytes",
                            "sent_bytes"}]}

The instance need not run. While it runs, the book is some seconds behind it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.accounting import FILE_NAME
from pipeline.errors import LocalError, NotRunning, PermissionDenied, TunnelError, UsageError

if TYPE_CHECKING:
    from pipeline.policy.traffic_meter import Traffic

SCHEMA_VERSION = 1
ALL = "all"
CONFIGURATIONS = Path("/etc/tunnel-supervisor")  # NAME/config.json of each client that has joined


class Table(NamedTuple):
    """One of the book's. `now`: strftime of the present one."""

    name: str
    form: str
    example: str
    now: str


MONTH = Table("month", r"\d{4}-\d{2}", "2026-11", "%Y-%m")
DAY = Table("day", r"\d{4}-\d{2}-\d{2}", "2026-11-29", "%Y-%m-%d")


class Book(NamedTuple):
    """Where it is, and what keeps it from being written, "" for nothing."""

    path: Path
    problem: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --month and --day."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--month",
        metavar="YYYY-MM",
        nargs="?",
        const="",
        help='show what each peer has received and sent in a month of UTC, this one by default; "all": in each',
    )
    which.add_argument(
        "--day", metavar="YYYY-MM-DD", nargs="?", const="", help='what it was on a day; "all": for each that is kept'
    )


def is_asked_for(arguments: argparse.Namespace) -> bool:
    return arguments.month is not None or arguments.day is not None


def show(arguments: argparse.Namespace) -> int:
    """Print what the book has. NotRunning or UsageError if no instance is named, and none or several have one."""
    table = MONTH if arguments.month is not None else DAY
    wanted = arguments.month if arguments.month is not None else arguments.day
    if wanted not in ("", ALL) and not re.fullmatch(table.form, wanted):
        raise UsageError(f'--{table.name}: given {wanted!r}, expected one such as {table.example}, or "{ALL}"')
    wanted = wanted or time.strftime(table.now, time.gmtime())
    book = _find_book(arguments)
    rows = [row for row in _read(book.path, table.name) if wanted in (ALL, row[0])]
    if book.problem:
        print(f"note: the account is not up to date: {book.problem}", file=sys.stderr)
    print(_as_json(book, table, rows) if arguments.json else render(table, wanted, rows))
    return 0


def _find_book(arguments: argparse.Namespace) -> Book:
    """The book of the instance that runs, or the one that an instance of this configuration or name has left."""
    from pipeline.supervisor.control import control_socket

    try:
        found = control_socket.send_request(arguments.instance(arguments), {"command": "status"})["accounting"]
    except (NotRunning, LocalError) as error:
        return Book(_left_book(arguments, error), "" if isinstance(error, NotRunning) else str(error))
    except KeyError:
        raise LocalError("the instance is of an older version, which keeps no account") from None
    if found is None:
        raise LocalError("the instance keeps no account: accounting is false")
    return Book(Path(found["path"]), found["problem"])


def _left_book(arguments: argparse.Namespace, error: TunnelError) -> Path:
    from pipeline.config.schema import STATE_DIRECTORY

    file: str | None = arguments.config
    if file is None and arguments.name and (joined := CONFIGURATIONS / arguments.name / "config.json").exists():
        file = str(joined)
    if file is not None:
        return _book_of(file)
    if not arguments.name:
        books = sorted(Path(STATE_DIRECTORY).glob(f"*/{FILE_NAME}"))
        if not books:
            raise error
        if len(books) > 1:
            names = ", ".join(path.parent.name for path in books)
            raise UsageError(f"several instances have an account ({names}): choose one with --name or --config")
        return books[0]
    return Path(STATE_DIRECTORY, arguments.name, FILE_NAME)


def _book_of(file: str) -> Path:
    from pipeline import config

    return Path(config.load(file).state_dir) / FILE_NAME


def _read(path: Path, table: str) -> list[tuple[str, str, Traffic]]:
    import sqlite3

    from pipeline.accounting import book_file

    try:
        return book_file.read(path, table)
    except FileNotFoundError:
        raise LocalError(f"{path}: there is no account yet") from None
    except PermissionError as error:
        raise PermissionDenied(f"{path}: {error.strerror}: run as root") from None
    except (OSError, sqlite3.Error, book_file.DamagedBook) as error:
        raise LocalError(f"{path}: cannot be read: {error}") from None


def _as_json(book: Book, table: Table, rows: Iterable[tuple[str, str, Traffic]]) -> str:
    listed: list[dict[str, Any]] = [
        {table.name: when, "peer": peer, "received_bytes": traffic.received, "sent_bytes": traffic.sent}
        for when, peer, traffic in rows
    ]
    answer = {"schema_version": SCHEMA_VERSION, "path": str(book.path), "problem": book.problem, "rows": listed}
    return json.dumps(answer)


def render(table: Table, wanted: str, rows: list[tuple[str, str, Traffic]]) -> str:
    """A table, those who have used most first in each month or day."""
    from pipeline.log import printable
    from pipeline.observe.sentence import amount

    if not rows:
        return "no traffic yet" if wanted == ALL else f"no traffic in {wanted}"
    ordered = sorted(rows, key=lambda row: (row[0], -row[2].total, row[1]))
    cells = [
        (table.name, "peer", "received", "sent", "total"),
        *(
            (when, printable(peer), amount(traffic.received), amount(traffic.sent), amount(traffic.total))
            for when, peer, traffic in ordered
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
