"""An end on an emulated arm64 machine and one on this machine understand each other, whichever is the server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support import eventually
from tools.emulation.machine import ENVIRONMENT, EmulatedMachine
from tools.instance import RunningInstance
from tools.lab.namespace import Namespace
from tools.lab.network import INTERFACE, add_veth_pair

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PORT = 9000
TUN = "tunnel0"
OUTSIDE = {"here": "10.77.0.1", "arm64": "10.77.0.2"}
INSIDE = {"here": "10.78.0.1", "arm64": "10.78.0.2"}
PROGRAM = ("env", "-C", "/src", "python3", "tunnel_supervisor.py")
SECONDS = 60.0  # an emulated program is some ten times slower

BULK_BYTES = 4_000_000

SETTINGS: dict[str, dict[str, Any]] = {
    "sealed-with-parity": {"fec": "on"},
    "sealed": {"fec": "off", "connections": 2},
    "clear": {"fec": "auto", "encryption": "none"},
    "compat": {"compat": True, "encryption": "none"},
}


SINK = """
import hashlib, socket, sys
with socket.create_server((sys.argv[1], 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as file:
        data = file.read()
print(len(data), hashlib.sha256(data).hexdigest())
"""
SOURCE = """
import hashlib, os, socket, sys
data = os.urandom(int(sys.argv[3]))
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as sock:
    sock.sendall(data)
print(len(data), hashlib.sha256(data).hexdigest())
"""


class Peers:
    """A network of two: a namespace of this machine, and the emulated machine."""

    def __init__(self, here: Namespace, arm64: EmulatedMachine) -> None:
        self.here = here
        self.arm64 = arm64

    def inside(self, end: str, *words: object) -> list[str]:
        """The words of a command of this machine in the network of an end."""
        pid = self.here.pid if end == "here" else self.arm64.pid
        return ["nsenter", f"--net=/proc/{pid}/ns/net", "--", *map(str, words)]

    def run(self, end: str, *words: object) -> str:
        return subprocess.run(self.inside(end, *words), capture_output=True, text=True, check=True).stdout


class _Far:
    """The emulated machine's network, by the process that a pair of devices is made with."""

    def __init__(self, machine: EmulatedMachine) -> None:
        self.name, self.pid = "arm64", machine.pid


@pytest.fixture(scope="module")
def peers(arm64: EmulatedMachine) -> Iterator[Peers]:
    with closing(Namespace("here")) as here:
        add_veth_pair(here, INTERFACE, _Far(arm64))
        made = Peers(here, arm64)
        for end, address in OUTSIDE.items():
            made.run(end, "ip", "address", "add", f"{address}/24", "dev", INTERFACE)
            made.run(end, "ip", "link", "set", INTERFACE, "up")
        yield made


class EmulatedEnd:
    """An instance of the tunnel on the emulated machine."""

    def __init__(self, machine: EmulatedMachine, config: dict[str, Any], directory: Path) -> None:
        self._machine = machine
        self._name = config["name"]
        self._log = directory / "arm64.log"
        machine.run("sh", "-c", "cat > /tmp/config.json", input=json.dumps(config | {"state_dir": "/tmp/state"}))
        words = machine.inside(*PROGRAM, "start", "--config", "/tmp/config.json")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=ENVIRONMENT)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def command(self, *words: str) -> str:
        return self._machine.run(*PROGRAM, *words, "--name", self._name, check=False)

    def workers(self) -> dict[str, int]:
        return {each["name"]: each["pid"] for each in json.loads(self.command("status", "--json"))["workers"]}

    def stop(self) -> int:
        self.command("stop")
        return self._process.wait(SECONDS)

    def close(self) -> None:
        """It is gone, however the test has ended."""
        if self._process.poll() is None:
            self.command("stop")
            try:
                self._process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("server", OUTSIDE)
def test_ends_of_both_machines_carry_packets_and_survive_the_end_of_a_worker(
    peers: Peers, server: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    client = next(end for end in OUTSIDE if end != server)
    common = {"name": "arm64test", "tun_name": TUN, **settings}
    configs = {
        server: common | {"mode": "server", "local_addr": f"0.0.0.0:{PORT}", "insecure": True},
        client: common | {"mode": "client", "remote_addr": f"{OUTSIDE[server]}:{PORT}", "tls_skip_verify": True},
    }
    if "encryption" in settings:
        del configs[client]["tls_skip_verify"]
    for end, config in configs.items():
        config["tunnel_addr"] = f"{INSIDE[end]}/24"
    here = RunningInstance(peers.here, configs["here"], tmp_path)
    with closing(EmulatedEnd(peers.arm64, configs["arm64"], tmp_path)) as there:
        try:
            eventually(lambda: here.is_ready(connected=True), SECONDS, "connected")
            # with compat the server knows the address of a client from its first packet
            eventually(lambda: echoes(peers, client, INSIDE[server]), SECONDS, f"an echo from {server}")
            eventually(lambda: echoes(peers, server, INSIDE[client]), SECONDS, f"an echo from {client}")
            for sender, receiver in (("here", "arm64"), ("arm64", "here")):
                assert carries(peers, sender, receiver)
            workers = there.workers()
            peers.arm64.run("kill", "-9", workers["tcp-0"])
            eventually(lambda: there.workers().get("tcp-0") not in (None, 0, workers["tcp-0"]), SECONDS, "a successor")
            eventually(lambda: echoes(peers, client, INSIDE[server]), SECONDS, "an echo after the end of a worker")
            assert "not in order" not in there.log and "Traceback" not in there.log
        except BaseException:
            print(f"--- here\n{here.log}\n--- arm64\n{there.log}")
            raise
        finally:
            here_status = here.stop()
        assert (here_status, there.stop()) == (0, 0), there.log


def echoes(peers: Peers, end: str, address: str) -> bool:
    words = peers.inside(end, "ping", "-c", "1", "-W", "2", address)
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def carries(peers: Peers, sender: str, receiver: str) -> bool:
    """Whether one TCP connection brings all bytes that were sent, and in their order."""
    sink = subprocess.Popen(
        peers.inside(receiver, sys.executable, "-c", SINK, INSIDE[receiver]), stdout=subprocess.PIPE, text=True
    )
    with sink:
        try:
            assert sink.stdout is not None
            port = sink.stdout.readline().strip()
            sent = peers.run(sender, sys.executable, "-c", SOURCE, INSIDE[receiver], port, BULK_BYTES)
            received, _ = sink.communicate(timeout=SECONDS)
            return received == sent
        finally:
            sink.kill()
