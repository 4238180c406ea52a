"""The record of what was set on this machine, so that it can be taken back exactly.

    apply(advice)    set each value; what was there before is on disk before it is replaced
    revert()         put back what was there before

A value that somebody else has changed since is theirs: it stays, and is told of. After a restart of the machine all of
it is gone by itself, and with it the meaning of the record. To apply once more keeps the first record of each file.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.credentials import keys
from pipeline.credentials.state_dir import StateDir
from pipeline.errors import ConfigError, LocalError
from pipeline.system import small_file
from pipeline.tuning.advice import Advice

STATE_FILE = "tuned.json"
STATE_BYTES_MAX = 1 << 20
BOOT_ID = Path("proc/sys/kernel/random/boot_id")
VERSION = 1
OURS = ("/proc/sys/net/", "/sys/class/net/")


class Entry(NamedTuple):
    """`before`: what the file held before we set it first; `value`: what it held after we had set it last."""

    path: str
    before: str
    value: str


class Outcome(NamedTuple):
    """Of one file. `problem`: why it is not as it should be; "" if it is."""

    path: str
    problem: str


class Record:
    """In `directory`, which apply() makes, for the files below `root`. LocalError and PermissionDenied if the record
    cannot be kept, or others than root could change it."""

    def __init__(self, directory: str, root: Path = Path("/")) -> None:
        self._path = Path(directory) / STATE_FILE
        self._root = root
        self._boot = _text(root / BOOT_ID)

    def entries(self) -> list[Entry]:
        """The values that were set since the machine was started. LocalError if the record cannot be read."""
        if not os.path.lexists(self._path):
            return []
        try:
            found = json.loads(small_file.read_text(self._path, STATE_BYTES_MAX))
            if found["version"] != VERSION:
                raise ValueError(f"version {found['version']}")
            entries = [Entry(*map(str, each)) for each in found["entries"]]
            if foreign := [each.path for each in entries if not each.path.startswith(OURS) or ".." in each.path]:
                raise ValueError(f"{foreign[0]} is not a setting of the network")
        except (ConfigError, ValueError, KeyError, TypeError) as error:
            raise LocalError(f"{self._path}: not a record of `tune`: {error}; look at it, and remove it") from None
        return entries if found.get("boot") == self._boot else []

    def apply(self, advice: Iterable[Advice]) -> list[Outcome]:
        StateDir(str(self._path.parent))
        with self._locked():
            entries = {each.path: each for each in self.entries()}
            outcomes = []
            for each in advice:
                known = entries.get(each.path)
                before = known.before if known else self._read(each.path)
                entries[each.path] = Entry(each.path, before, each.wanted)
                self._write_record(entries.values())
                problem = self._set(each.path, each.wanted)
                if problem:
                    entries.pop(each.path) if known is None else entries.update({each.path: known})
                else:  # the kernel may write a value in another way than we do
                    entries[each.path] = Entry(each.path, before, self._read(each.path))
                self._write_record(entries.values())
                outcomes.append(Outcome(each.path, problem))
            return outcomes

    def revert(self) -> list[Outcome]:
        if not os.path.lexists(self._path):
            return []
        StateDir(str(self._path.parent))
        with self._locked():
            kept, outcomes = [], []
            for each in reversed(self.entries()):
                now = self._read(each.path)
                problem = ""
                if now == each.before:
                    pass  # it was never set, or somebody has put it back
                elif not os.path.lexists(self._root / each.path.lstrip("/")):
                    problem = "it is gone, and its value with it"
                elif now != each.value:
                    problem = f"somebody has set it to {now} since: left alone; it was {each.before} before"
                elif problem := self._set(each.path, each.before):
                    kept.append(each)
                outcomes.append(Outcome(each.path, problem))
            self._write_record(reversed(kept))
            return outcomes

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Two of these commands at once would record each other's values."""
        fd = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write_record(self, entries: Iterable[Entry]) -> None:
        data = {"version": VERSION, "boot": self._boot, "entries": list(entries)}
        if not data["entries"]:
            self._path.unlink(missing_ok=True)
            return
        try:
            keys.write_secret(self._path, json.dumps(data, indent=1).encode() + b"\n", replace=True)
        except OSError as error:
            raise keys.write_error(self._path, error) from None

    def _read(self, path: str) -> str:
        return _text(self._root / path.lstrip("/"))

    def _set(self, path: str, value: str) -> str:
        """Why it could not be set; "" if it was."""
        try:
            with open(self._root / path.lstrip("/"), "w") as file:
                file.write(value)
        except OSError as error:
            return f"cannot be set: {error.strerror}{_place(error)}"
        return ""


def _place(error: OSError) -> str:
    return "; in a container, set it on the host" if isinstance(error, PermissionError) or error.errno == 30 else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\n")
    except OSError:
        return ""
