"""One instance of the tunnel in a node of a lab, started as a person would: `tunnel-supervisor start --config FILE`.

Configuration and log are files in a directory of the caller. The caller gives the instance a name that no other has.
The instance gets SIGTERM as well when this process is killed. `leftovers` lists the files that it has not removed.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.shm.segment import SHM_DIRECTORY
from pipeline.supervisor.instance import RUN_DIRECTORY, hosts_path
from tools.lab.namespace import LabError
from tools.lab.network import Node
from tools.lab.waiting import Overdue, until

EXECUTABLE = str(Path(sys.executable).with_name("tunnel-supervisor"))
STOP_SECONDS = 15.0
ANSWER_SECONDS = 10.0
LOG_LINES = 15
SPARE_SECONDS = 10.0  # after this an instance has no spares


def leftovers(name: str) -> list[Path]:
    """Every file of an instance in /dev/shm and in /run."""
    hosts = [path for path in (hosts_path(name),) if path.exists()]
    return sorted([*Path(SHM_DIRECTORY).glob(f"*tunnel@{name}@*"), *RUN_DIRECTORY.glob(f"{name}.*"), *hosts])


class RunningInstance:
    """An instance from its start to its end. `config` has its name; `wrap` are words in front of the command, such as
    `unshare --mount`, and `words` are words behind it."""

    def __init__(
        self,
        node: Node,
        config: Mapping[str, Any],
        directory: Path,
        *,
        command: Sequence[str] = (EXECUTABLE,),
        wrap: Sequence[str] = (),
        words: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.node = node
        self.name: str = config["name"]
        self.config = {"state_dir": str(directory / f"state-{self.name}"), **config}
        self.tun_name: str = self.config.get("tun_name", self.name)
        unique = f"{self.name}-{secrets.token_hex(2)}"
        self.file = directory / f"{unique}.json"
        self._log = directory / f"{unique}.log"
        self.write(self.config)
        with self._log.open("wb") as log:
            self.process = node.popen(
                [*wrap, *command, "start", "--config", self.file, *words],
                cwd=directory,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                death_signal=signal.SIGTERM,
            )

    def write(self, config: Mapping[str, Any]) -> None:
        """(Re)write the configuration file."""
        self.file.write_text(json.dumps(config, indent=2))

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def address(self) -> str:
        """Its IPv4 address in the tunnel."""
        return next(text for text in self._tunnel_addresses() if ":" not in text).partition("/")[0]

    @property
    def address6(self) -> str:
        """Its IPv6 address in the tunnel."""
        return next(text for text in self._tunnel_addresses() if ":" in text).partition("/")[0]

    def ask(self, request: Mapping[str, Any]) -> Any:
        """The answer of the control socket; None if there is none."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(ANSWER_SECONDS)
            try:
                sock.connect(str(RUN_DIRECTORY / f"{self.name}.sock"))
                sock.sendall(json.dumps(request).encode() + b"\n")
                with sock.makefile() as file:
                    return json.loads(file.readline() or "null")
            except OSError:
                return None

    def status(self) -> dict[str, Any] | None:
        """The status snapshot; None while the instance does not answer."""
        status: dict[str, Any] | None = self.ask({"command": "status"})
        return status

    def running(self) -> dict[str, Any]:
        """The status snapshot of an instance that must answer."""
        status = self.status()
        if status is None:
            raise LabError(f"instance {self.name!r}: expected to run, does not\n{self.end_of_log()}")
        return status

    def is_ready(self, connected: bool) -> bool:
        """In state "running", and with an established connection if `connected`. LabError when it has ended."""
        if self.process.poll() is not None:
            raise LabError(
                f"instance {self.name!r} ended while starting, exit status {self.process.returncode}\n"
                f"{self.end_of_log()}"
            )
        status = self.status()
        if status is None or status["state"] != "running" or status["pid"] != self.process.pid:
            return False
        return not connected or any(one["state"] == "established" for one in status["connections"])

    def pids(self) -> dict[str, int]:
        """Process ids by process name: the supervisor, each worker and each spare."""
        status = self.running()
        workers = {worker["name"]: worker["pid"] for worker in status["workers"] if worker["pid"]}
        spares = {f"spare {spare['kind']}": spare["pid"] for spare in status["spares"]}
        return {"supervisor": status["pid"], **workers, **spares}

    def wait_for_spares(self, *kinds: str) -> bool:
        """Wait until a spare of each of these kinds waits; without kinds, of every kind. False if they do not come."""
        wanted = set(kinds or (worker["kind"] for worker in self.running()["workers"]))

        def are_waiting() -> bool:
            return {spare["kind"] for spare in self.running()["spares"] if spare["state"] == "waiting"} >= wanted

        try:
            until(are_waiting, f"spares {wanted}", SPARE_SECONDS)
        except Overdue:
            return False
        return True

    def end_of_log(self) -> str:
        return "\n".join(self.log.splitlines()[-LOG_LINES:])

    def names(self) -> list[str]:
        """Paths of its leftovers."""
        return [str(path) for path in leftovers(self.name)]

    def stop(self) -> int:
        """SIGTERM; its exit status. SIGKILL, and LabError, when that is not enough."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise LabError(
                f"instance {self.name!r} did not stop within {STOP_SECONDS:g} s\n{self.end_of_log()}"
            ) from None

    def _tunnel_addresses(self) -> list[str]:
        given = self.config["tunnel_addr"]
        return [given] if isinstance(given, str) else list(given)
