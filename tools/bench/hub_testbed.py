"""The testbed of `bench hub`: a lab of four nodes, a server instance with TLS, real clients, a client swarm.

    with open_testbed(directory, overrides) as testbed:
        client = testbed.client("one")        a real client on the node of that name
        swarm = testbed.swarm(200)            light clients on the node "swarm", an address for each
        testbed.restart(signal.SIGKILL)       another server with the old one's state

The limits on one address are not measured here. The node "swarm" has a whole network of addresses, to which the
server's node has a route. Everything ends with the block. Names that instances leave are in `left_behind`.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from pipeline.credentials import keys
from tools.bench.measure import written_bytes
from tools.instance import EXECUTABLE, RunningInstance
from tools.lab.namespace import LabError, stop
from tools.lab.network import Lab
from tools.lab.waiting import until
from tools.load.generators import ICMP_ECHO_REPLY, ICMP_ECHO_REQUEST
from tools.load.swarm_loop import Outage, Sample, Summary
from tools.tunnel_pair import CARRIER_PORT, READY_SECONDS, TUN_NAME

SERVER_ADDRESS, PREFIX = "10.80.0.1", 16
CLIENT_ADDRESSES = {"one": "10.80.0.2", "two": "10.80.0.3"}
SWARM_NETWORK = "10.81.0.0/16"
CLIENTS_MOST = 1024
CONNECTED_SECONDS = 60.0
ECHO_SECONDS = 5.0
ECHO_BURST = 32  # a queue of the device or of a ring is not what is measured

IP_HEADER_BYTES = 20
ECHO_REQUEST = bytes([ICMP_ECHO_REQUEST, 0, 0xF7, 0xFF]) + bytes(4)
"""The checksum is that of eight bytes with nothing else in them."""


class Line(msgspec.Struct):
    """One line that a swarm prints."""

    sample: Sample | None = None
    outage: Outage | None = None
    summary: Summary | None = None


class Swarm:
    """A swarm that runs, and the samples that it has printed."""

    def __init__(self, process: subprocess.Popen[bytes], clients: int) -> None:
        self.clients = clients
        self.samples: list[Sample] = []
        self.outages: list[Outage] = []
        self.summary: Summary | None = None
        assert process.stdout is not None
        self._process, self._output = process, process.stdout
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, complete: bool = True, after: int = 0) -> Sample:
        """The first sample behind that time in which all clients have a connection, or all of theirs."""

        def connected() -> Sample | None:
            return next(
                (
                    each
                    for each in list(self.samples)
                    if each.time_ns > after and (each.complete if complete else each.clients) == self.clients
                ),
                None,
            )

        return until(connected, f"{self.clients} clients of the swarm connected", CONNECTED_SECONDS)

    def finish(self) -> Summary:
        """End the swarm; its summary."""
        self.close()
        if self.summary is None:
            raise LabError(f"the swarm ended without a summary, exit status {self._process.returncode}")
        return self.summary

    def close(self) -> None:
        stop([self._process], ECHO_SECONDS)
        self._reader.join()
        self._output.close()

    def _read(self) -> None:
        for text in self._output:
            line = msgspec.json.decode(text, type=Line)
            if line.sample:
                self.samples.append(line.sample)
            elif line.outage:
                self.outages.append(line.outage)
            else:
                self.summary = line.summary


class Testbed:
    """Made by open_testbed()."""

    def __init__(self, lab: Lab, directory: Path, overrides: Sequence[str], stack: ExitStack) -> None:
        self.lab = lab
        self.left_behind: list[str] = []
        self._directory = directory
        self._overrides = list(overrides)
        self._stack = stack
        self._unique = f"{os.getpid()}-{lab['hub'].pid}"
        self._keys = {name: directory / f"{name}.key" for name in CLIENT_ADDRESSES}
        for path in self._keys.values():
            keys.write_secret(path, keys.generate().encode())
        self._swarms = 0
        lab["swarm"].ip(f"route add local {SWARM_NETWORK} dev lo")
        lab["hub"].ip(f"route add {SWARM_NETWORK} via {lab['swarm'].address}")
        self.server = self._start_server()

    # -- instances

    def client(self, name: str) -> RunningInstance:
        """A real client on this node, connected."""
        client = self._start(
            name,
            name,
            {
                "mode": "client",
                "remote_addr": f"{self.lab['hub'].address}:{CARRIER_PORT}",
                "key_file": str(self._keys[name]),
                "tunnel_addr": f"{CLIENT_ADDRESSES[name]}/{PREFIX}",
            },
        )
        until(lambda: client.is_ready(connected=True), f"client {name!r} connected", READY_SECONDS)
        return client

    def invite(self, name: str) -> str:
        """The line that makes a peer of this name."""
        words = ["invite", name, "--address", self.lab["hub"].address, "--name", self.server.name]
        return self.lab["hub"].run([EXECUTABLE, *words]).stdout.strip()

    def swarm(self, clients: int, *options: object) -> Swarm:
        """Light clients, which the server has invited; wait() until they are connected."""
        self._swarms += 1
        process = self.lab["swarm"].popen(
            [
                sys.executable,
                "-P",
                "-m",
                "tools.load.client_swarm",
                "--invite",
                self.server.name,
                "--name",
                f"swarm-{self._swarms}",
                "--server",
                f"{self.lab['hub'].address}:{CARRIER_PORT}",
                "--clients",
                clients,
                "--source",
                f"10.81.{self._swarms}.0/24" if clients < 250 else SWARM_NETWORK,
                "--interval",
                0.1,
                *options,
            ],
            stdout=subprocess.PIPE,
        )
        swarm = Swarm(process, clients)
        self._stack.callback(swarm.close)
        return swarm

    def restart(self, number: int) -> tuple[int, int]:
        """End the server by this signal and start another with the same state. When it got the signal, and when the
        next one ran."""
        began = time.monotonic_ns()
        self.server.process.send_signal(number)
        self.server.process.wait(READY_SECONDS)
        self.server = self._start_server()
        return began, time.monotonic_ns()

    def _start_server(self) -> RunningInstance:
        server = self._start(
            "hub",
            "hub",
            {
                "mode": "server",
                "local_addr": f"0.0.0.0:{CARRIER_PORT}",
                "tunnel_addr": f"{SERVER_ADDRESS}/{PREFIX}",
                "state_dir": str(self._directory / "state"),
                "max_clients": CLIENTS_MOST,
                "log_level": "warning",
                "peers": [
                    {"name": name, "key_file": str(path), "address": CLIENT_ADDRESSES[name]}
                    for name, path in self._keys.items()
                ],
            },
        )
        until(lambda: server.is_ready(connected=False), "the server running", READY_SECONDS)
        return server

    def _start(self, node: str, name: str, settings: dict) -> RunningInstance:
        config = {"tun_name": TUN_NAME, **settings, "name": f"{name}-{self._unique}"}
        words = [word for override in self._overrides for word in ("--set", override)]
        instance = RunningInstance(self.lab[node], config, self._directory, words=words)
        self._stack.callback(self._stop, instance)
        return instance

    def _stop(self, instance: RunningInstance) -> None:
        ended = instance.process.poll() is not None
        status = instance.stop()
        if not ended:
            self.left_behind += instance.names()
            if status != 0:
                self.left_behind.append(f"{instance.name}: exit status {status}, expected 0")

    # -- what it costs

    def addresses(self) -> list[str]:
        """Of all peers that are connected."""
        said = self.lab["hub"].run([EXECUTABLE, "peers", "--json", "--name", self.server.name]).stdout
        return [peer["addresses"][0] for peer in json.loads(said)["peers"] if peer["state"] == "connected"]

    def memory(self) -> dict[str, int]:
        """Proportional set size of each process of the server, without files but with shared memory.

        The same processes each time: those of all spares are among them.
        """
        self.server.wait_for_spares()
        return {name: written_bytes(pid) for name, pid in self.server.pids().items()}

    def reachable(self, addresses: Sequence[str]) -> int:
        """How many of them answer an echo request from the server's node."""
        waiting = set(addresses)
        with self.lab["hub"].socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as echo:
            echo.setblocking(False)
            end = time.monotonic() + ECHO_SECONDS
            unsent = list(addresses)
            while waiting and time.monotonic() < end:
                burst, unsent = unsent[:ECHO_BURST], unsent[ECHO_BURST:]
                for address in burst:
                    echo.sendto(ECHO_REQUEST, (address, 0))
                while select.select([echo], [], [], 0.05 if unsent else 0.5)[0]:
                    packet, (address, _) = echo.recvfrom(2048)
                    if packet[IP_HEADER_BYTES] == ICMP_ECHO_REPLY:
                        waiting.discard(address)
        return len(addresses) - len(waiting)


@contextmanager
def open_testbed(directory: Path, overrides: Sequence[str] = ()) -> Iterator[Testbed]:
    """`directory` is the testbed's own; it gets the state of the server, configurations and logs."""
    with Lab(names=("hub", "one", "two", "swarm")) as lab, ExitStack() as stack:
        yield Testbed(lab, directory, overrides, stack)
