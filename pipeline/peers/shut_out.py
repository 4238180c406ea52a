"""The peers of a server that may not connect for a while: disabled by `peers disable`, or past the end of their time.

    STATE_DIR/disabled.json    the names of the disabled peers

A disabled peer keeps its key, its addresses and its accounting. The name counts, whatever the proof of the peer is.
Memory comes first: a peer is out at once, also if the file cannot be written. `until` is a time of the wall clock, and
follows it: a clock that was wrong and is set right again lets the peer in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

from pipeline.credentials import keys
from pipeline.errors import ConfigError, Problem
from pipeline.peers.registry import KnownPeer
from pipeline.system import hang_guard, small_file
from pipeline.wire.messages import REASONS, SHUT_OUT

FILE = "disabled.json"
FILE_BYTES_MAX = 1 << 20


class ShutOut:
    """`directory`: the state directory, None if there is none. ConfigError if the file cannot be read."""

    def __init__(self, directory: Path | None) -> None:
        self._path = directory / FILE if directory else None
        self.disabled = _read(self._path) if self._path else set()

    def disable(self, name: str) -> None:
        """TunnelError if the file cannot be written: the peer comes back at the next start."""
        self.disabled.add(name)
        self._write()

    def enable(self, name: str) -> None:
        """TunnelError if the file cannot be written: nothing has changed."""
        if name in self.disabled:
            self.disabled.discard(name)
            try:
                self._write()
            except Exception:
                self.disabled.add(name)
                raise

    def reasons(self, known: Iterable[KnownPeer], now: float) -> dict[str, str]:
        """The names of all that are out at this time (UNIX), and why."""
        ended = {
            each.policy.name: ended_text(each.invited.until)
            for each in known
            if each.invited and 0 < each.invited.until <= now
        }
        return ended | dict.fromkeys(self.disabled, REASONS[SHUT_OUT])

    def _write(self) -> None:
        if self._path is None:
            return
        path, data = self._path, json.dumps(sorted(self.disabled)).encode()
        try:
            hang_guard.call(lambda: keys.write_secret(path, data, replace=True))
        except OSError as error:
            raise keys.write_error(path, error) from None


def ended_text(until: int) -> str:
    return f"the time of this peer on the server has ended on {in_words(until)}"


def in_words(moment: int) -> str:
    """A UNIX time for people, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))


def _read(path: Path) -> set[str]:
    if not path.exists():
        return set()
    try:
        names = json.loads(small_file.read_text(path, FILE_BYTES_MAX))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        text = "damaged: it names the peers that are disabled. Remove it, and disable them again"
        raise ConfigError([Problem("", text, str(path))])
    return set(names)
