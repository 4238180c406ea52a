"""Settings of the kernel's network (sysctls) that an instance borrows: it notes what they were, and puts them back.

    borrow(wanted, along)    set what differs; why some could not be set, by name
    give_back()              set them as they were, and forget the notes; also those of a killed run

`pipeline.policy.borrowed` decides. The notes are in a file of the run directory, since they must outlive a kill. They
are written before anything is set. They count in the network namespace in which they were made, and nowhere else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.log import LOG
from pipeline.policy import borrowed
from pipeline.policy.borrowed import FORWARDING_OF_ALL, IPV6_FORWARDING_OF_ALL, Note
from pipeline.supervisor import instance

NET = Path("/proc/sys/net")
ENDING = "-sysctls"


class BorrowedSysctls:
    """`purpose`: a word for the file name; each purpose of an instance has notes of its own."""

    def __init__(self, instance_name: str, purpose: str) -> None:
        self._path = instance.RUN_DIRECTORY / f"{instance_name}.{purpose}{ENDING}"
        self._namespace = _namespace()
        self._notes = self._read(self._path)

    def borrow(self, wanted: Mapping[str, str], along: Mapping[str, str] | None = None) -> dict[str, str]:
        if not wanted and not self._notes:
            return {}
        try:
            others = self._others()
        except OSError as error:
            return dict.fromkeys(wanted, f"{self._path.parent}: {error.strerror}")
        present = _values([*wanted, *(along or {})])
        found = borrowed.borrow(wanted, present, self._notes, others, along)
        if found.notes != self._notes:
            try:
                self._write(found.notes)
            except OSError as error:
                return dict.fromkeys(found.to_set, f"{self._path}: {error.strerror}")
        self._notes = found.notes
        return {name: why for name, value in found.to_set.items() if (why := _set(name, value))}

    def give_back(self) -> None:
        if self._notes:
            try:
                others = self._others()
            except OSError as error:
                LOG.warning("sysctls are not set back: %s: %s", self._path.parent, error.strerror)
                return
            present = _values([*self._notes, FORWARDING_OF_ALL, IPV6_FORWARDING_OF_ALL])
            for name, value in borrowed.give_back(self._notes, present, others).items():
                if why := _set(name, value):
                    LOG.warning("sysctl net/%s cannot be set back to %s: %s", name, value, why)
        self._notes = {}
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            LOG.warning("%s cannot be removed: %s", self._path, error.strerror)

    def _others(self) -> list[dict[str, Note]]:
        """The notes of other instances, and of other purposes. OSError if they cannot be listed."""
        parent = self._path.parent
        names = os.listdir(parent) if parent.is_dir() else []
        paths = [parent / name for name in names if name.endswith(ENDING)]
        return [notes for path in paths if path != self._path and (notes := self._read(path))]

    def _read(self, path: Path) -> dict[str, Note]:
        try:
            found = json.loads(path.read_text())
            if found["namespace"] == self._namespace:
                return {name: Note(*note) for name, note in found["notes"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none; or it was cut off, and then nothing was set
        return {}

    def _write(self, notes: Mapping[str, Note]) -> None:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        new = self._path.with_name(f"{self._path.name}.new")
        new.write_text(json.dumps({"namespace": self._namespace, "notes": notes}))
        new.replace(self._path)


def _namespace() -> list[int]:
    status = os.stat("/proc/thread-self/ns/net")
    return [status.st_dev, status.st_ino]


def _values(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = (NET / name).read_text().strip()
        except OSError:
            pass  # a device that has gone, or a kernel without it
    return found


def _set(name: str, value: str) -> str:
    """Why it cannot be set; "" if it is."""
    try:
        (NET / name).write_text(value)
    except OSError as error:
        return error.strerror or str(error)
    return ""
