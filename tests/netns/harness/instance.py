"""Real tunnels for the tests: `tunnel-supervisor start` in the nodes of a lab, disturbed and watched.

    with Lab() as lab, tunnel(lab, directory, lanes=2) as (server, client):   both run and are connected
    with Instance(node, config, directory) as instance:                       one instance, running or not yet

At the end of its block an Instance gets SIGTERM and must end with exit status 0, unless the test has waited for its end
itself. When a test fails, the report shows the logs of the instances in STARTED (tests/netns/conftest.py).
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.config import parse
from tests.support import eventually
from tools.instance import EXECUTABLE, RunningInstance, leftovers
from tools.lab.network import Lab, Node
from tools.load import flows

START_SECONDS = 20.0
STOP_SECONDS = 10.0
LOG_SECONDS = 20.0
"""A server sums up the connections of a peer every ten seconds."""

REACHED_SECONDS = 4.0

NOBODY = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
]
"""Words in front of a command: it may read, wherever Python and the checkout are, and do nothing else."""

FEW_PROCESSES = {"lanes": 1, "split_workers": []}
"""Whatever machine the tests run on: its workers are tcp-0, fec-0 and tun-0."""

STARTED: list[Instance] = []
"""Instances that run, or have run during the current test."""


def unique_name(role: str) -> str:
    """An instance name that no other instance on this machine has, short enough for a TUN device."""
    return f"{role}-{secrets.token_hex(4)}"


class Instance(RunningInstance):
    """One `tunnel-supervisor start`, with checks. A name is chosen unless `config` has one."""

    def __init__(
        self,
        node: Node,
        config: dict[str, Any],
        directory: Path,
        *,
        wrap: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        words: Sequence[str] = (),
    ) -> None:
        named = {"name": unique_name(config["mode"][0]), **FEW_PROCESSES, **config}
        super().__init__(node, named, directory, wrap=wrap, environment=environment, words=words)
        self.exit_status: int | None = None
        self._directory = directory
        self._wrap = tuple(wrap)
        self._environment = environment
        STARTED.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unexpected = self.exit_status is None and self.process.poll() is not None
        try:
            if error is None and self.exit_status is None and not unexpected:
                self.stop()
        finally:
            self._clean_up()
        assert error is not None or not unexpected, f"{self.name} ended by itself:\n{self.log}"

    def start_again(self) -> Instance:
        """Another start with these settings, after this one has ended."""
        return Instance(self.node, self.config, self._directory, wrap=self._wrap, environment=self._environment)

    # -- what it shows

    def worker(self, name: str) -> dict[str, Any]:
        """The worker of this name in the status."""
        return next(each for each in self.running()["workers"] if each["name"] == name)

    def workers(self) -> list[str]:
        return [each["name"] for each in self.running()["workers"]]

    def worker_pids(self) -> dict[str, int]:
        return {worker["name"]: worker["pid"] for worker in self.running()["workers"]}

    def restarts(self) -> dict[str, int]:
        """How often each worker was started again."""
        return {worker["name"]: worker["restarts"] for worker in self.running()["workers"]}

    def counter(self, name: str) -> int:
        count: int = self.running()["counters"][name]
        return count

    def is_running(self) -> bool:
        """This very process runs, and not another instance of this name."""
        status = self.status() or {}
        return status.get("state") == "running" and status["pid"] == self.process.pid

    def device(self) -> dict[str, int]:
        """The kernel's counters of the TUN device: rx_packets, rx_bytes, tx_packets, tx_bytes."""
        (shown,) = json.loads(self.node.run(["ip", "-j", "-s", "link", "show", "dev", self.tun_name]).stdout)
        counts = shown["stats64"]
        return {f"{way}_{what}": counts[way][what] for way in ("rx", "tx") for what in ("packets", "bytes")}

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`tunnel-supervisor WORDS --name NAME` from another shell, in no namespace of the lab."""
        return command(*words, "--name", self.name)

    # -- what is done to it

    def wait_until_running(self, seconds: float = START_SECONDS) -> None:
        eventually(lambda: self.is_running() or self.process.poll() is not None, seconds, f"{self.name} running")
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{self.log}"

    def wait_until_connected(self, connections: int = 1, seconds: float = START_SECONDS) -> None:
        """Until it runs and so many connections have been established since its start."""
        self.wait_until_running(seconds)
        eventually(
            lambda: self.counter("tcp.connections_established") >= connections,
            seconds,
            f"{connections} connection(s) of {self.name}",
        )

    def wait_for_log(self, text: str, seconds: float = LOG_SECONDS) -> None:
        eventually(lambda: text in self.log, seconds, f'"{text}" in the log of {self.name}')

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def signal_worker(self, name: str, number: int) -> int:
        """Send a signal to a worker that runs; its pid."""
        pid = eventually(lambda: self._running_pid(name), what=f"{name} of {self.name} running")
        os.kill(pid, number)
        return pid

    def wait_until_replaced(self, name: str, pid: int, seconds: float = 10.0) -> None:
        """Until another process than `pid` runs as that worker."""
        eventually(lambda: self._running_pid(name) not in (None, pid), seconds, f"{name} of {self.name} replaced")

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for its end. The test has to check the exit status then."""
        self.exit_status = self.process.wait(seconds)
        return self.exit_status

    def stop(self) -> int:
        """SIGTERM, after which it must end with exit status 0."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, f"{self.name} ended with {self.exit_status}:\n{self.log}"
        return 0

    def kill(self) -> None:
        """SIGKILL to the supervisor. Its leftovers are removed by start_again(), or at the end of the block."""
        self.signal(signal.SIGKILL)
        self.wait()

    def _running_pid(self, name: str) -> int | None:
        worker = self.worker(name)
        return worker["pid"] if worker["state"] == "running" else None

    def _clean_up(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.returncode == -signal.SIGKILL:
            for path in leftovers(self.name):
                path.unlink(missing_ok=True)


Instances = tuple[Instance, Instance]
"""The server and the client of a tunnel."""


def command(*words: object) -> subprocess.CompletedProcess[str]:
    """Run `tunnel-supervisor WORDS` to its end."""
    return subprocess.run([EXECUTABLE, *map(str, words)], capture_output=True, text=True, timeout=60)


def server_config(node: Node, **settings: Any) -> dict[str, Any]:
    """A server on a free port of the node, without keys, IPv4 and IPv6 inside."""
    return {
        "mode": "server",
        "local_addr": f"0.0.0.0:{node.free_port()}",
        "encryption": "none",
        "insecure": True,
        "tunnel_addr": ["10.99.0.1/24", "fd99::1/64"],
        **settings,
    }


def client_config(server: dict[str, Any], host: str, **settings: Any) -> dict[str, Any]:
    """A client of that server, which it finds at `host`."""
    port = server["local_addr"].rpartition(":")[2]
    return {
        "mode": "client",
        "remote_addr": f"{host}:{port}",
        "encryption": "none",
        "reconnect_max": 0.5,
        "tunnel_addr": ["10.99.0.2/24", "fd99::2/64"],
        **settings,
    }


@contextmanager
def tunnel(
    lab: Lab,
    directory: Path,
    *,
    server: dict[str, Any] | None = None,
    client: dict[str, Any] | None = None,
    host: str = "",
    **both: Any,
) -> Iterator[Instances]:
    """A server on the lab's first node and a client on its second, connected. Settings for each and both."""
    a, b = lab.nodes[:2]
    serving = server_config(a, **both, **(server or {}))
    dialling = client_config(serving, host or a.address, **both, **(client or {}))
    effective = parse(dialling)
    connections = effective.connections + effective.light_connections
    with ExitStack() as stack:
        instances = Instance(a, serving, directory), Instance(b, dialling, directory)
        for instance in instances:
            stack.enter_context(instance)
        for instance in instances:
            instance.wait_until_connected(connections)
        yield instances


def reaches(
    source: Instance,
    sink: Instance,
    *,
    count: int = 2,
    size: int = 56,
    six: bool = False,
    seconds: float = REACHED_SECONDS,
) -> bool:
    """Whether every one of `count` pings through the tunnel comes back."""
    address = sink.address6 if six else sink.address
    return not flows.ping(source.node, address, count=count, interval=0.01, size=size, timeout=seconds).lost


def traces(node: Node, name: str) -> dict[str, Any]:
    """All that an instance may leave: compare what this says before and after."""
    said = {
        what: node.run(["ip", *what.split()]).stdout
        for what in (
            "-o address",
            "-o link",
            "-4 route show table all",
            "-6 route show table all",
            "-4 rule",
            "-6 rule",
        )
    }
    return {**said, "files": leftovers(name), "processes": node.processes()}
