"""The command `events`: what has happened to a running instance, from shared memory."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pipeline.cli.observed import observer_of
from pipeline.errors import LocalError, NotRunning
from pipeline.events import Event
from pipeline.observe.observer import Observer
from pipeline.observe.snapshot import event_dict
from pipeline.shm.event_log import Read

if TYPE_CHECKING:
    from pipeline.cli.command_line import AddCommand, AddOptions

LOOK_SECONDS = 0.2  # between two looks with --follow


def add_commands(command: AddCommand, add_instance: AddOptions) -> None:
    """Add the command to the command line."""
    events = command("events", _events, "show what has happened to a running instance, and why")
    add_instance(events)
    events.add_argument("--follow", "-f", action="store_true", help="go on with events as they happen")
    events.add_argument("--json", action="store_true", help="print a JSON object a line")


def _events(arguments: argparse.Namespace) -> int:
    observer = observer_of(arguments.instance(arguments))
    show: Callable[[Event], str] = _as_json if arguments.json else as_text
    try:
        _print(observer.read_events(), show)
        while arguments.follow:
            time.sleep(LOOK_SECONDS)
            _follow(observer, show)
    except KeyboardInterrupt:
        pass
    finally:
        observer.close()
    return 0


def _follow(observer: Observer, show: Callable[[Event], str]) -> None:
    """An instance that was stopped and started again is followed."""
    last = observer.read_last()
    try:
        found = observer.read_events()
    except (NotRunning, LocalError):
        found = Read([], 0, 0)
    _print(Read([*last.events, *found.events], last.missed + found.missed, found.next), show)


def _print(found: Read, show: Callable[[Event], str]) -> None:
    for line in _lines(found, show):
        print(line)
    sys.stdout.flush()
    if found.missed and found.events and found.events[0].number:
        print(f"note: {found.missed} earlier events are not kept any more", file=sys.stderr)


def _lines(found: Read, show: Callable[[Event], str]) -> Iterable[str]:
    return map(show, found.events)


def _as_json(event: Event) -> str:
    return json.dumps(event_dict(event))


def as_text(event: Event) -> str:
    """Local time, kind, and the line of the log."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time_ns / 1e9))
    return f"{stamp}  {event.kind.name:<19}  {event.line}{more(event)}"


def more(event: Event) -> str:
    """Of a count of equal events: how many."""
    if not event.more:
        return ""
    seconds = max(1, round((event.time_ns - event.since_ns) / 1e9))
    return f" (repeated {'once' if event.more == 1 else f'{event.more} times'} in {seconds} s)"
