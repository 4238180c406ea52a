"""The hosts file of a server: the names of its peers, for a DNS server of this machine (`names`).

    tick(now, version, addresses)    write the file if the peers are other ones than before, or if it is gone

The file is replaced as a whole, so a DNS server reads the old names or the new ones. Its directory stays when the
server stops, since dnsmasq watches it (`hostsdir`). The instance removes the file (pipeline.supervisor.instance).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.credentials.ownership import find_exposure
from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.policy import peer_names
from pipeline.supervisor.instance import hosts_path

CHECK_NS = 1_000_000_000
DIRECTORY_MODE, FILE_MODE = 0o755, 0o644  # a DNS server has a user of its own
NEVER = -1

PeerAddresses = Callable[[], Mapping[str, Sequence[str]]]
"""The addresses of each peer that has a name of its own, by that name."""


class HostsFile:
    """`notes`: sentences about names that are missing, and about a file that cannot be written."""

    def __init__(self, config: Config) -> None:
        self._path = hosts_path(config.name)
        self._text = ""
        self._notes: list[str] = []
        self._trouble = ""
        self._version = NEVER
        self._next_check_ns = 0
        self._config = config

    @property
    def notes(self) -> list[str]:
        return [*self._notes, *filter(None, [self._trouble])]

    def configure(self, config: Config) -> None:
        self._config = config
        self._version, self._next_check_ns = NEVER, 0
        if not config.names:
            self._text, self._trouble, self._notes = "", "", []
            self._path.unlink(missing_ok=True)

    def tick(self, now: int, version: int, addresses: PeerAddresses) -> None:
        """`version`: another number after each change of the peers. `now`: CLOCK_MONOTONIC ns."""
        if not self._config.names or (version == self._version and now < self._next_check_ns):
            return
        if version != self._version:
            self._version = version
            self._follow(addresses())
        self._next_check_ns = now + CHECK_NS
        try:
            if _read(self._path) != self._text:
                _replace(self._path, self._text)
            self._trouble = ""
        except (LocalError, OSError) as error:
            text = f"the names of the peers are not up to date: {error}"
            if text != self._trouble:
                self._trouble = text
                LOG.error("%s", text)

    def _follow(self, peers: Mapping[str, Sequence[str]]) -> None:
        config = self._config
        own = [str(interface.ip) for interface in config.tunnel_interfaces]
        names = peer_names.assign(config.name, own, peers)
        for note in names.notes:
            if note not in self._notes:
                LOG.warning("%s", note)
        self._notes = names.notes
        self._text = peer_names.hosts_text(config.name, config.names, names.addresses)


def _read(path: Path) -> str:
    """The file; "" if there is none, or something else."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _replace(path: Path, text: str) -> None:
    """DNS servers pass over a name with a dot in front."""
    directory, new = path.parent, path.with_name(f".{path.name}")
    if not directory.is_dir():
        directory.mkdir(exist_ok=True)
        directory.chmod(DIRECTORY_MODE)
    if exposure := find_exposure(directory):
        raise LocalError(exposure)
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE), "w") as file:
        os.fchmod(file.fileno(), FILE_MODE)
        file.write(text)
    new.replace(path)
