"""Real tunnels for the tests: `tunnel-supervisor start` in the nodes of a lab, disturbed and watched.

    with Lab() as lab, tunnel(lab, directory, lanes=2) as (server, client):   both run and are connected
    with End(node, config, directory) as end:                                 one end, wherever it has come to

An End is stopped by SIGTERM at the end of its block and must then have ended with exit status 0, unless the
test has waited for its end itself. What it logs goes to our standard error too, where pytest keeps it for
failures.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from pipeline.config import parse
from pipeline.shm.segment import SHM_DIRECTORY
from pipeline.supervisor.instance import RUN_DIRECTORY
from tests.support import eventually
from tools.lab.network import Lab, Node
from tools.load import flows

COMMAND = str(Path(sys.executable).with_name("tunnel-supervisor"))
START_SECONDS = 20.0
STOP_SECONDS = 10.0

NOBODY = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
]
"""Words in front of a command: it may read, wherever Python and the checkout are, and do nothing else."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def unique_name(role: str) -> str:
    """An instance name that nobody else on this machine has, short enough for a TUN device."""
    return f"{role}-{secrets.token_hex(4)}"


class End:
    """One `tunnel-supervisor start`. `wrap`: words in front of the command, such as `unshare -m ...`; `words`: further
    ones behind it."""

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
        self.node = node
        self.config = {"name": unique_name(config["mode"][0]), **config}
        self.name = self.config["name"]
        self.tun_name = self.config.get("tun_name", self.name)
        self.file = directory / f"{self.name}-{secrets.token_hex(2)}.json"
        self.exit_status: int | None = None
        self.lines: list[str] = []
        self._directory = directory
        self._wrap = tuple(wrap)
        self._environment = environment or {}
        self.write(self.config)
        self.process = node.popen(
            [*wrap, COMMAND, "start", "--config", self.file, *words],
            cwd=directory,
            env=os.environ | self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> End:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unexpected = self.exit_status is None and self.process.poll() is not None
        try:
            if error is None and self.exit_status is None and not unexpected:
                self.stop()
        finally:
            self._end()
        assert error is not None or not unexpected, f"{self.name} ended by itself:\n{self.log}"

    def write(self, config: dict[str, Any]) -> None:
        """(Re)write the configuration file."""
        self.file.write_text(json.dumps(config))

    def again(self) -> End:
        """Another start with the same configuration, after this one has ended."""
        return End(self.node, self.config, self._directory, wrap=self._wrap, environment=self._environment)

    # -- what it says

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def address(self) -> str:
        return next(text for text in self._inside() if ":" not in text).partition("/")[0]

    @property
    def address6(self) -> str:
        return next(text for text in self._inside() if ":" in text).partition("/")[0]

    def status(self) -> dict[str, Any] | None:
        """The snapshot, from the control socket; None while nobody answers there."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(STOP_SECONDS)
            try:
                sock.connect(str(RUN_DIRECTORY / f"{self.name}.sock"))
                sock.sendall(b'{"command": "status"}\n')
                with sock.makefile() as file:
                    return json.loads(file.readline() or "null")
            except OSError:
                return None

    def worker(self, name: str) -> dict[str, Any]:
        return next(each for each in self.status()["workers"] if each["name"] == name)

    def workers(self) -> list[str]:
        return [each["name"] for each in self.status()["workers"]]

    def counter(self, name: str) -> int:
        return self.status()["counters"][name]

    def running(self) -> bool:
        """This very process runs, not another instance of the same name."""
        status = self.status() or {}
        return status.get("state") == "running" and status["pid"] == self.process.pid

    def device(self) -> dict[str, int]:
        """What the kernel counts on the TUN device: rx_packets, rx_bytes, tx_packets, tx_bytes."""
        (said,) = json.loads(self.node.run(["ip", "-j", "-s", "link", "show", "dev", self.tun_name]).stdout)
        counts = said["stats64"]
        return {f"{way}_{what}": counts[way][what] for way in ("rx", "tx") for what in ("packets", "bytes")}

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`tunnel-supervisor WORDS --name NAME` from another shell, in no namespace of the lab."""
        return command(*words, "--name", self.name)

    # -- what is done to it

    def wait_until_running(self, seconds: float = START_SECONDS) -> None:
        eventually(lambda: self.running() or self.process.poll() is not None, seconds, f"{self.name} running")
        assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}:\n{self.log}"

    def wait_until_connected(self, connections: int = 1, seconds: float = START_SECONDS) -> None:
        """Until it runs and so many connections have been established since its start."""
        self.wait_until_running(seconds)
        eventually(
            lambda: self.counter("tcp.connections_established") >= connections,
            seconds,
            f"{connections} connection(s) of {self.name}",
        )

    def wait_for_log(self, text: str, seconds: float = 10.0) -> None:
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
        """Wait for its end; the exit status, which is then the test's business."""
        self.exit_status = self.process.wait(seconds)
        self._reader.join(STOP_SECONDS)
        return self.exit_status

    def stop(self) -> None:
        """SIGTERM, and nothing but a clean end."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, f"{self.name} ended with {self.exit_status}:\n{self.log}"

    def kill(self) -> None:
        """SIGKILL to the supervisor. What it leaves is removed by again(), or by us at the end."""
        self.signal(signal.SIGKILL)
        self.wait()

    def _running_pid(self, name: str) -> int | None:
        worker = self.worker(name)
        return worker["pid"] if worker["state"] == "running" else None

    def _inside(self) -> list[str]:
        given = self.config["tunnel_addr"]
        return [given] if isinstance(given, str) else given

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            sys.stderr.write(line)

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(STOP_SECONDS)
        self.process.stdout.close()
        if self.process.returncode == -signal.SIGKILL:
            for path in leftovers(self.name):
                path.unlink(missing_ok=True)


Ends = tuple[End, End]
"""The server and the client of a tunnel."""


def command(*words: object) -> subprocess.CompletedProcess[str]:
    """Run `tunnel-supervisor WORDS` to its end."""
    return subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True, timeout=60)


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
) -> Iterator[Ends]:
    """A server on the lab's first node and a client on its second, connected. Settings for each and both."""
    a, b = lab.nodes[:2]
    serving = server_config(a, **both, **(server or {}))
    dialling = client_config(serving, host or a.address, **both, **(client or {}))
    effective = parse(dialling)
    connections = effective.connections + effective.light_connections
    with ExitStack() as stack:
        ends = End(a, serving, directory), End(b, dialling, directory)
        for end in ends:
            stack.enter_context(end)
        for end in ends:
            end.wait_until_connected(connections)
        yield ends


def reaches(source: End, sink: End, *, count: int = 2, size: int = 56, six: bool = False, seconds: float = 2.0) -> bool:
    """Whether every one of `count` pings through the tunnel comes back."""
    address = sink.address6 if six else sink.address
    return not flows.ping(source.node, address, count=count, interval=0.01, size=size, timeout=seconds).lost


def leftovers(name: str) -> list[Path]:
    """Every file of an instance in /dev/shm and in the run directory."""
    return sorted([*Path(SHM_DIRECTORY).glob(f"*tunnel@{name}@*"), *RUN_DIRECTORY.glob(f"{name}.*")])


def pids(end: End) -> dict[str, int]:
    """The workers' process ids."""
    return {worker["name"]: worker["pid"] for worker in end.status()["workers"]}


def restarts(end: End) -> dict[str, int]:
    """How often each worker was started again."""
    return {worker["name"]: worker["restarts"] for worker in end.status()["workers"]}


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
