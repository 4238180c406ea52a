"""The measurement `hostile` of `bench hub`: one client beside a peer that sends what costs most.

Each kind of bytes (tools.load.hostile_bytes), on few connections and on many, is sent at full speed. Meanwhile a client
measures its TCP throughput to the server, and then its echoes. The kind `full` is no attack: it is the equal neighbour
with which the others are compared.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from tools.bench import measure
from tools.bench.command import Log
from tools.bench.hub_report import HostileRow
from tools.bench.hub_testbed import CLIENT_ADDRESSES, SERVER_ADDRESS, Testbed
from tools.lab.namespace import LabError, stop
from tools.load.hostile_bytes import DISCARD_PORT, KINDS
from tools.load.hostile_peer import Attack
from tools.load.quantiles import quantile
from tools.tunnel_pair import CARRIER_PORT

NEIGHBOUR = "full"
CONNECTIONS = (8, 40)
SPARE_SECONDS = 60.0
MB_A_SECOND = {"full": 250, "keep": 60, "type": 60, "run1": 40, "one": 60, "gso": 150}
"""Bytes that are made ahead for each second of an attack: more than the server takes."""
MB_OTHERWISE = 60
SMALL_BUFFER = 2000  # of the socket that swallows what is sent to the server


class Hostility:
    """`seconds`: of each of the two measurements beside an attack."""

    def __init__(self, testbed: Testbed, seconds: int, log: Log) -> None:
        self._testbed = testbed
        self._seconds = seconds
        self._log = log
        self._lines = {name: testbed.invite(name) for name in ("hostile", "sink")}

    def rows(self, kinds: Sequence[str], connections: Sequence[int]) -> Iterator[HostileRow]:
        """One row for each kind and number of connections, those of the neighbour first."""
        with self._discard():
            for number in connections:
                for kind in (NEIGHBOUR, *(kind for kind in kinds or KINDS if kind != NEIGHBOUR)):
                    self._log(f"hostile: {kind} on {number} connections")
                    yield self._row(kind, number)

    @contextmanager
    def _discard(self) -> Iterator[None]:
        """Packets for the server end here, so that nothing answers them."""
        with self._testbed.lab["hub"].socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            sink.bind((SERVER_ADDRESS, DISCARD_PORT))
            yield

    def _row(self, kind: str, connections: int) -> HostileRow:
        hub, one = self._testbed.lab["hub"], self._testbed.lab["one"]
        process = self._start(kind, connections)
        with process:
            try:
                gbit = measure.tcp_gbit(one, hub, SERVER_ADDRESS, self._seconds)
                echoes = measure.ping_idle(one, hub, SERVER_ADDRESS, self._seconds)
                said, _ = process.communicate(timeout=SPARE_SECONDS)
            finally:
                stop([process], SPARE_SECONDS)
        attack = msgspec.json.decode(said, type=Attack)
        p50, p99 = (quantile(echoes.rtts_ms, share) for share in (0.5, 0.99))
        return HostileRow(kind, connections, gbit, p50, p99, attack.mbit, attack.seconds, attack.ended)

    def _start(self, kind: str, connections: int) -> subprocess.Popen:
        """A hostile peer that has begun."""
        seconds = 2 * self._seconds + 1
        process = self._testbed.lab["swarm"].popen(
            [
                *(sys.executable, "-P", "-m", "tools.load.hostile_peer", kind),
                *("--join", self._lines["hostile"], "--sink", self._lines["sink"]),
                *("--server", f"{self._testbed.lab['hub'].address}:{CARRIER_PORT}", "--inside", SERVER_ADDRESS),
                *("--victim", CLIENT_ADDRESSES["one"], "--connections", connections),
                *("--seconds", seconds, "--mb", seconds * MB_A_SECOND.get(kind, MB_OTHERWISE)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin and process.stdout
        ready = process.stdout.readline()
        if not ready or json.loads(ready) != {"ready": connections}:
            raise LabError(f"the hostile peer ({kind}) did not get its connections")
        process.stdin.write(b"\n")
        process.stdin.flush()
        return process
