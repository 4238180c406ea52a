"""The command `status`: how an instance is, for people and for programs, once or again and again.

Exit status: 0 it works, that is, a client is connected or a server serves; 1 it runs and does not work; 3 it does not
run. With --watch the last look decides.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

from pipeline.errors import LocalError, NotRunning, UsageError
from pipeline.plain_text import escaped

if TYPE_CHECKING:
    from pipeline.cli.command_line import AddCommand, AddOptions

WATCH_SECONDS = 2.0
WATCH_SECONDS_MIN = 0.1
PEERS_NAMED = 3  # in a note
HOME, CLEAR_TO_END_OF_LINE, CLEAR_TO_END = "\x1b[H", "\x1b[K", "\x1b[J"  # ECMA-48
CLEAR = "\x1b[2J"


def add_command(command: AddCommand, add_instance: AddOptions) -> None:
    status = command("status", _status, "say in a sentence how a running instance is, and what is wrong")
    add_instance(status)
    status.add_argument("-v", "--verbose", action="store_true", help="show workers, rings and counters, too")
    status.add_argument("--json", action="store_true", help="print JSON, with schema_version (docs/status.md)")
    status.add_argument(
        "--watch",
        metavar="SECONDS",
        type=float,
        nargs="?",
        const=WATCH_SECONDS,
        help=f"again and again, every {WATCH_SECONDS:g} s by default, until Ctrl-C",
    )


def _status(arguments: argparse.Namespace) -> int:
    if arguments.watch is None:
        text, exit_status = _look(arguments)
        print(text)
        return exit_status
    if not arguments.watch >= WATCH_SECONDS_MIN:
        raise UsageError(f"--watch: given {arguments.watch:g}, expected {WATCH_SECONDS_MIN:g} seconds or more")
    return _watch(arguments)


def _watch(arguments: argparse.Namespace) -> int:
    """Draw over the last look on a terminal, print one behind the other elsewhere. An instance that has ended may
    come back."""
    in_place = sys.stdout.isatty() and not arguments.json
    exit_status = 0
    if in_place:
        _draw(CLEAR)
    try:
        while True:
            try:
                text, exit_status = _look(arguments)
            except (NotRunning, LocalError) as error:
                text, exit_status = str(error), error.exit_status
            if in_place:
                _draw(_screen(text, *shutil.get_terminal_size()))
            else:
                print(text if arguments.json else f"{text}\n")
            sys.stdout.flush()
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        if in_place:
            print()  # the shell's prompt begins a line
        return exit_status


def _draw(text: str) -> None:
    """Control characters included, which `print` escapes."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode(sys.stdout.encoding, "backslashreplace"))


def _screen(text: str, columns: int, rows: int) -> str:
    """The text from the upper left corner on, cut to the screen, in place of all that was there."""
    lines = [f"{escaped(line)[:columns]}{CLEAR_TO_END_OF_LINE}" for line in text.splitlines()[: rows - 1]]
    return HOME + "\n".join(lines) + CLEAR_TO_END


def _look(arguments: argparse.Namespace) -> tuple[str, int]:
    """The text of one look, and the exit status."""
    from pipeline.cli.observed import read_snapshot
    from pipeline.cli.status_text import brief, verbose
    from pipeline.observe.sentence import describe

    snapshot = read_snapshot(arguments.instance(arguments))
    if arguments.json:
        text = json.dumps(snapshot)
    else:
        text = (verbose if arguments.verbose else brief)(snapshot, stale_notes(snapshot))
    return text, 0 if describe(snapshot).works else 1


def stale_notes(snapshot: dict[str, Any]) -> list[str]:
    """Sentences if the instance runs another version than the one that is on disk, which is ours, or its peers do."""
    from pipeline.log import printable
    from pipeline.observe.sentence import peers_of
    from pipeline.version import VERSION

    running = snapshot.get("version", "an older version")
    notes = []
    if running != VERSION:
        notes.append(
            f"this instance runs {running}, the program on disk is {VERSION}: `restart --rolling` gives the new one to "
            "the workers; the supervisor gets it when the service starts again"
        )
    others = [peer for peer in peers_of(snapshot) or () if peer.get("version") not in ("", None, running)]
    if others:
        listed = ", ".join(f"{printable(peer['name'])} {peer['version']}" for peer in others[:PEERS_NAMED])
        more = f" and {len(others) - PEERS_NAMED} more" if len(others) > PEERS_NAMED else ""
        notes.append(f"peers with another version than {running}: {listed}{more}")
    return notes
