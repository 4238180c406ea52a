"""The subject of an examination: an instance that runs, one that could run, or this machine alone."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from pipeline.config import Config
from pipeline.observe.sentence import peers_of


class Subject(NamedTuple):
    """`config`: None if there is none to be had. `snapshot`: None if the instance does not run. `events`: all that are
    kept, as `events --json` has them."""

    name: str = ""
    config: Config | None = None
    snapshot: dict[str, Any] | None = None
    events: tuple[dict[str, Any], ...] = ()
    on_disk: Config | None = None  # the configuration in its file, which a running instance may not have read yet

    @property
    def peers(self) -> list[dict[str, Any]] | None:
        """Of a server; None where nothing tells them."""
        return peers_of(self.snapshot) if self.snapshot is not None else None

    @property
    def runs(self) -> bool:
        return self.snapshot is not None

    @property
    def is_client(self) -> bool:
        return self._mode == "client"

    @property
    def is_server(self) -> bool:
        return self._mode == "server"

    @property
    def _mode(self) -> str:
        if self.config is not None:
            return self.config.mode
        return str(self.snapshot["mode"]) if self.snapshot is not None else ""

    @property
    def tun_name(self) -> str:
        """The present name of the device; "" if nothing says it."""
        if self.snapshot is not None:
            return str(self.snapshot["tun_name"])
        return self.config.tun_name if self.config is not None else ""

    @property
    def established(self) -> list[dict[str, Any]]:
        rows = self.snapshot.get("connections", []) if self.snapshot is not None else []
        return [row for row in rows if row["state"] == "established"]

    @property
    def is_in_our_network(self) -> bool:
        """Whether the instance is in the network namespace of this process. One that does not run would be."""
        if self.snapshot is None:
            return True
        try:
            own, its = (os.stat(f"/proc/{pid}/ns/net") for pid in ("self", self.snapshot["pid"]))
        except OSError:
            return True  # nothing says otherwise
        return os.path.samestat(own, its)
