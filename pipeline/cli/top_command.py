"""The command `top`: a live view on a terminal; elsewhere one frame as text, or a line in each interval."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from pipeline.cli.observed import observer_of
from pipeline.errors import LocalError, NotRunning, UsageError
from pipeline.observe import rates
from pipeline.observe.observer import Observer
from pipeline.observe.rates import NO_RATES, Rates

if TYPE_CHECKING:
    from pipeline.cli.command_line import AddCommand, AddOptions
    from pipeline.cli.top.screen import Screen
    from pipeline.cli.top.state import State

INTERVAL, INTERVAL_LEAST = 1.0, 0.1  # seconds between two frames
ONCE_SECONDS = 0.5  # between the two snapshots of a single frame: rates need two


def add_commands(command: AddCommand, add_instance: AddOptions) -> None:
    """Add the command to the command line."""
    top = command("top", _top, "watch a running instance: its pipeline, workers, peers, drops and events")
    add_instance(top)
    top.add_argument("--once", action="store_true", help="print one frame as text, and end")
    top.add_argument(
        "--interval",
        metavar="SECONDS",
        type=float,
        help=f"between two frames, {INTERVAL:g} if it is not given; where there is no terminal, print a line in each",
    )


def _top(arguments: argparse.Namespace) -> int:
    interval = INTERVAL if arguments.interval is None else arguments.interval
    if not INTERVAL_LEAST <= interval <= 3600:
        raise UsageError(f"--interval: given {interval:g}, expected {INTERVAL_LEAST:g} to 3600 seconds")
    observer = observer_of(arguments.instance(arguments))
    try:
        if arguments.once or not (_is_terminal() or arguments.interval):
            print(_frame_as_text(observer))
        elif _is_terminal():
            _watch(observer, interval)
        else:
            _print_lines(observer, interval)
    except KeyboardInterrupt:
        pass
    finally:
        observer.close()
    return 0


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


class Look:
    """The last snapshot with its rates, or why there is none."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.snapshot: dict[str, Any] | None = None
        self.rates: Rates = NO_RATES
        self.reason = ""

    def renew(self) -> None:
        before = self.snapshot
        try:
            self.snapshot = self._observer.snapshot()
        except (NotRunning, LocalError) as error:
            self.snapshot, self.reason = None, str(error)
        else:
            self.rates = rates.between(before, self.snapshot)


def _watch(observer: Observer, interval: float) -> None:
    """Frame after frame, until a key or a signal ends it."""
    from pipeline.cli.top.screen import Screen
    from pipeline.cli.top.state import State, press

    look, state = Look(observer), State()
    look.renew()
    with Screen() as screen:
        due = time.monotonic() + min(interval, ONCE_SECONDS)  # the first rates come soon
        while not (screen.is_over or state.quits):
            names = _show(screen, look, observer.name, state)
            for key in screen.wait(due - time.monotonic()):
                state = press(state, key, names)
            if time.monotonic() >= due:
                due = time.monotonic() + interval
                if not state.is_frozen:
                    look.renew()


def _show(screen: Screen, look: Look, name: str, state: State) -> list[str]:
    """Draw the frame; the names of the peers in its order."""
    from pipeline.cli.top import frame, picture
    from pipeline.cli.top.state import sorted_peers

    width, height = screen.size()
    if look.snapshot is None:
        screen.show(frame.waiting(name, look.reason, width, height))
        return []
    glyphs = picture.FANCY if screen.is_unicode else picture.PLAIN
    screen.show(frame.draw(look.snapshot, look.rates, state, glyphs, width, height))
    return [each["name"] for each in sorted_peers(look.snapshot["peers"], look.rates, state)]


# -- without a terminal


def _frame_as_text(observer: Observer) -> str:
    """One frame with all its rows."""
    from pipeline.cli.top import frame, picture
    from pipeline.cli.top.state import State

    look = Look(observer)
    look.renew()
    time.sleep(ONCE_SECONDS)
    look.renew()
    if look.snapshot is None:
        raise NotRunning(look.reason)
    encoding = (sys.stdout.encoding or "ascii").lower()
    glyphs = picture.FANCY if encoding.startswith("utf") else picture.PLAIN
    lines = frame.draw(look.snapshot, look.rates, State(), glyphs, 100, frame.UNLIMITED)[:-1]  # without the keys
    return "\n".join(line.plain.rstrip() for line in lines)


def _print_lines(observer: Observer, interval: float) -> None:
    look = Look(observer)
    look.renew()
    while True:
        time.sleep(interval)
        look.renew()
        print(_line(look), flush=True)


def _line(look: Look) -> str:
    """One moment in one line."""
    from pipeline.cli.top.picture import verdicts
    from pipeline.cli.top.tables import bits, count
    from pipeline.counters import BYTES_RECEIVED, BYTES_SENT

    stamp = time.strftime("%H:%M:%S")
    if look.snapshot is None:
        return f"{stamp} {look.reason}"
    taken, found = look.snapshot, look.rates.counters
    drops = sum(rate for name, rate in found.items() if name.partition(".")[2].startswith("dropped_"))
    words = [
        *(f"{name} {each.word}" for name, each in verdicts(taken).items() if each.is_trouble),
        *([f"supervisor {taken['supervisor']['state']}"] if taken["supervisor"]["state"] != "running" else []),
    ]
    return (
        f"{stamp} {taken['name']} {taken['state']} sent {bits(look.rates.of_all(BYTES_SENT))} "
        f"received {bits(look.rates.of_all(BYTES_RECEIVED))} packets {count(found.get('tun.packets_read', 0))}/s "
        f"{count(found.get('tun.packets_written', 0))}/s connected {taken['peers_connected']} "
        f"drops {count(drops)}/s{''.join(f'; {word}' for word in words)}"
    )
