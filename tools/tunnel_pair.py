"""A server and a client instance of the tunnel, one in each of two nodes of a lab, started as a person would.

    with TunnelPair(server_node, client_node, {"lanes": 2}) as pair:
        ... pair.server.address, pair.client.status() ...

Plain unless `encryption` is set, and open to all. Configuration, state and logs live in a temporary directory,
instances under names of their own. Ready means: both say "running", the client has an established connection, and a
ping has come back. The end is SIGTERM and exit status 0; `left_behind` says afterwards what they did not take with
them. They get SIGTERM as well when this process is killed: then only the temporary directory stays.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from tools.lab.namespace import LabError
from tools.lab.network import Node
from tools.lab.waiting import Overdue, until
from tools.load.flows import ping

EXECUTABLE = str(Path(sys.executable).with_name("tunnel-supervisor"))
CARRIER_PORT = 9000
"""Fixed, but in a namespace of its own."""

TUN_NAME = "tunnel0"
SERVER_ADDRESS, CLIENT_ADDRESS, PREFIX_LENGTH = "10.78.0.1", "10.78.0.2", 24
READY_SECONDS = 15.0
STOP_SECONDS = 15.0
LOG_LINES = 15
PLACES = ("/dev/shm", "/run/tunnel-supervisor")
"""Where an instance keeps names."""


class Tunnel:
    """One instance, from its start to its end."""

    def __init__(
        self,
        node: Node,
        name: str,
        settings: Mapping[str, Any],
        directory: Path,
        command: Sequence[str] = (EXECUTABLE,),
        overrides: Sequence[str] = (),
    ) -> None:
        self.node = node
        self.name = name
        self.address = str(settings["tunnel_addr"]).partition("/")[0]
        self._command = list(command)
        self._log = directory / f"{name}.log"
        config = directory / f"{name}.json"
        config.write_text(json.dumps({**settings, "name": name}, indent=2))
        given = [word for override in overrides for word in ("--set", override)]
        with self._log.open("wb") as log:
            self.process = node.popen(
                [*self._command, "start", "--config", config, *given],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                death_signal=signal.SIGTERM,
            )

    def status(self) -> dict[str, Any] | None:
        """What `status --json` says; None while it says nothing."""
        said = self.node.run([*self._command, "status", "--json", "--name", self.name], check=False)
        return json.loads(said.stdout) if said.returncode == 0 else None

    def running(self) -> dict[str, Any]:
        """The status of an instance that has to be there."""
        status = self.status()
        if status is None:
            raise LabError(f"instance {self.name!r}: expected to run, does not\n{self.log()}")
        return status

    def is_ready(self, connected: bool) -> bool:
        """In state "running"; with a connection if it should have one. Raises when the process has ended."""
        if self.process.poll() is not None:
            raise LabError(
                f"instance {self.name!r} ended while starting, exit status {self.process.returncode}\n{self.log()}"
            )
        status = self.status()
        if status is None or status["state"] != "running":
            return False
        return not connected or any(one["state"] == "established" for one in status["connections"])

    def pids(self) -> dict[str, int]:
        """By process name: the supervisor and each worker."""
        status = self.running()
        workers = {worker["name"]: worker["pid"] for worker in status["workers"] if worker["pid"]}
        return {"supervisor": status["pid"], **workers}

    def log(self) -> str:
        """The last lines of its log."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    def names(self) -> list[str]:
        """Files that carry the instance's name."""
        return [
            str(entry)
            for place in PLACES
            if os.path.isdir(place)
            for entry in Path(place).iterdir()
            if self.name in entry.name
        ]

    def stop(self) -> int:
        """SIGTERM; its exit status. KILL, and LabError, when that is not enough."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise LabError(f"instance {self.name!r} did not stop within {STOP_SECONDS:g} s\n{self.log()}") from None


class TunnelPair:
    """`settings` go to both ends, as `overrides` ("key=value", the command's --set) do."""

    def __init__(
        self,
        server_node: Node,
        client_node: Node,
        settings: Mapping[str, Any] | None = None,
        *,
        overrides: Sequence[str] = (),
        command: Sequence[str] = (EXECUTABLE,),
    ) -> None:
        self._nodes = server_node, client_node
        self._settings = dict(settings or {})
        self._options = {"command": command, "overrides": overrides}
        self._open = ExitStack()
        self.left_behind: list[str] = []

    def __enter__(self) -> TunnelPair:
        with self._open as opening:
            directory = Path(opening.enter_context(tempfile.TemporaryDirectory(prefix="tunnel-lab-")))
            server, client = self._nodes
            unique = f"{os.getpid()}-{server.pid}"
            self.server = self._start(
                opening,
                server,
                f"server-{unique}",
                directory,
                {
                    "mode": "server",
                    "local_addr": f"0.0.0.0:{CARRIER_PORT}",
                    "insecure": True,
                    "tunnel_addr": f"{SERVER_ADDRESS}/{PREFIX_LENGTH}",
                    "state_dir": str(directory / "state"),
                },
            )
            self.client = self._start(
                opening,
                client,
                f"client-{unique}",
                directory,
                {
                    "mode": "client",
                    "remote_addr": f"{server.address}:{CARRIER_PORT}",
                    "tls_skip_verify": True,
                    "tunnel_addr": f"{CLIENT_ADDRESS}/{PREFIX_LENGTH}",
                },
            )
            self._wait_until_ready()
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def ends(self) -> dict[str, Tunnel]:
        """Both, by name."""
        return {"server": self.server, "client": self.client}

    def _start(self, opening: ExitStack, node: Node, name: str, directory: Path, settings: dict[str, Any]) -> Tunnel:
        settings = {"tun_name": TUN_NAME, "encryption": "none", **settings, **self._settings}
        tunnel = Tunnel(node, name, settings, directory, **self._options)
        opening.callback(self._stop, tunnel)
        return tunnel

    def _stop(self, tunnel: Tunnel) -> None:
        status = tunnel.stop()
        self.left_behind += tunnel.names()
        if status != 0:
            self.left_behind.append(f"{tunnel.name}: exit status {status}, expected 0")

    def _wait_until_ready(self) -> None:
        try:
            until(lambda: self.server.is_ready(connected=False), "the server running", READY_SECONDS)
            until(lambda: self.client.is_ready(connected=True), "the client connected", READY_SECONDS)
            until(
                lambda: not ping(self.client.node, self.server.address, count=1, timeout=0.5).lost,
                f"a ping through the tunnel to {self.server.address}",
                READY_SECONDS,
            )
        except Overdue as overdue:
            raise LabError(f"{overdue}\n--- server\n{self.server.log()}\n--- client\n{self.client.log()}") from None
