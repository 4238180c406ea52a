"""`bench hub`: a server with many clients; what clients, and connections that never authenticate, cost the others.

    idle       many light clients connect at once and then send keepalives alone: time, memory, CPU, answered pings
    returns    the server ends (SIGTERM, SIGKILL), another takes its place: time until all clients are back
    clients    one TCP stream from client to client, and from client to server, beside the bare link
    deaf       one TCP stream to a client while packets go to a peer that reads them, and to one that reads nothing
    hostile    one TCP stream and echoes of a client beside a peer that sends what costs most (tools/bench/hostile.py)
    garbage    one TCP stream from a client while others open connections and send garbage, here and at a closed port
    hellos     the same beside TLS handshakes that others begin, here and at a server without TLS; and how soon a new
               client is connected beside connections from one address

Each has a lab and a server of its own (tools/bench/hub_testbed.py). Compared values are measured in turn, `--rounds`
times. A value is the median of its rounds, a ratio is the median of the rounds' ratios. Clients, load and garbage
share this machine's cores.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import msgspec

from tools.bench import measure
from tools.bench.command import Log, progress, run_command
from tools.bench.hostile import CONNECTIONS, Hostility
from tools.bench.hub_report import Compared, Garbage, Hellos, HubResult, Idle, Return, table
from tools.bench.hub_testbed import CLIENT_ADDRESSES, SERVER_ADDRESS, SWARM_NETWORK, Testbed, open_testbed
from tools.bench.machine import machine
from tools.lab.namespace import stop
from tools.lab.network import Node
from tools.lab.waiting import until
from tools.load.flood import Flooded
from tools.load.hostile_bytes import KINDS
from tools.tunnel_pair import CARRIER_PORT

MEASUREMENTS = ("idle", "returns", "clients", "deaf", "hostile", "garbage", "hellos")
FLOOD_SPARE_SECONDS = 10.0
FLOOD_MARGIN_SECONDS = 2.0
PACKET_BYTES = 1200
PACKETS, FILL_PACKETS = 200, 5000  # a second: so few that they cost nothing by themselves, and enough to fill a window
FILL_SECONDS = 60
HOSTILE_SECONDS_MOST = 5  # all that is sent in that time is made ahead, in memory
PLAIN_PORT = 7  # echo (RFC 862), in a namespace of our own
NEWCOMERS = 3
NOBODYS_PORT = 9
"""Discard (RFC 863); nobody listens there in a namespace of our own."""


class Bench:
    """All measurements, each with a testbed of its own."""

    def __init__(self, options: argparse.Namespace, result: HubResult, log: Log) -> None:
        self._options = options
        self._result = result
        self._log = log

    @contextmanager
    def _testbed(self, what: str) -> Iterator[Testbed]:
        self._log(f"{what}: starting the server")
        with tempfile.TemporaryDirectory(prefix="tunnel-hub-") as directory:
            with open_testbed(Path(directory), self._options.set) as testbed:
                yield testbed
            self._result.left_behind += testbed.left_behind

    def idle(self) -> None:
        """Without clients, and with all of them, which send keepalives alone."""
        clients = self._options.clients
        with self._testbed("idle") as testbed:
            time.sleep(self._options.settle)
            empty, cpu_empty = testbed.memory(), self._cpu(testbed)
            self._log(f"idle: {clients} clients connect")
            swarm = testbed.swarm(clients)
            swarm.wait()
            time.sleep(self._options.settle)
            full, cpu_full = testbed.memory(), self._cpu(testbed)
            pingable = testbed.reachable(testbed.addresses())
            summary = swarm.finish()
            self._result.idle = Idle(
                clients=clients,
                connections=summary.connections_each,
                invited_seconds=summary.invited_seconds,
                first_seconds=summary.first_seconds,
                complete_seconds=summary.complete_seconds,
                handshake_p50_ms=summary.handshake_p50_ms,
                handshake_p99_ms=summary.handshake_p99_ms,
                failed=summary.failed,
                pingable=pingable,
                bytes_empty=empty,
                bytes_full=full,
                bytes_per_client=(sum(full.values()) - sum(empty.values())) / clients,
                cpu_percent_empty=cpu_empty,
                cpu_percent_full=cpu_full,
            )

    def returns(self) -> None:
        """Clients come back after the server has ended, twice."""
        clients = self._options.returning
        with self._testbed("returns") as testbed:
            swarm = testbed.swarm(clients)
            swarm.wait()
            for number in (signal.SIGTERM, signal.SIGKILL):
                name = signal.Signals(number).name
                self._log(f"returns: {name} to the server with {clients} clients")
                attempts = swarm.samples[-1].attempts
                ended, running = testbed.restart(number)
                first, complete = swarm.wait(complete=False, after=running), swarm.wait(after=running)
                self._result.returns.append(
                    Return(
                        how=name,
                        clients=clients,
                        down_seconds=(running - ended) / 1e9,
                        back_seconds=(first.time_ns - running) / 1e9,
                        complete_seconds=(complete.time_ns - running) / 1e9,
                        attempts=complete.attempts - attempts,
                    )
                )
            swarm.finish()

    def clients(self) -> None:
        """From one to another, and from one to the server."""
        with self._testbed("clients") as testbed:
            for name in CLIENT_ADDRESSES:
                testbed.client(name)
            hub, one, two = (testbed.lab[name] for name in ("hub", "one", "two"))
            self._result.client_to_server = self._compared(
                "client to server",
                partial(self._gbit, one, hub, hub.address),
                partial(self._gbit, one, hub, SERVER_ADDRESS),
            )
            self._result.client_to_client = self._compared(
                "client to client",
                partial(self._gbit, one, two, two.address),
                partial(self._gbit, one, two, CLIENT_ADDRESSES["two"]),
            )

    def deaf(self) -> None:
        """Once as much waits for the deaf one as ever will."""
        with self._testbed("deaf") as testbed:
            testbed.client("one")
            stream = partial(self._gbit, testbed.lab["hub"], testbed.lab["one"], CLIENT_ADDRESSES["one"])
            hearing = self._member(testbed)
            deaf = self._member(testbed, "--deaf", 1)
            self._log("deaf: its queue fills")
            with self._packets(testbed, deaf, FILL_PACKETS):
                until(
                    lambda: testbed.server.running()["counters"]["tcp.dropped_peer_full"],
                    "packets dropped for the peer that reads nothing",
                    FILL_SECONDS,
                )
            self._result.deaf = self._compared(
                "deaf",
                partial(self._beside_packets, testbed, hearing, stream),
                partial(self._beside_packets, testbed, deaf, stream),
            )

    def _member(self, testbed: Testbed, *options: object) -> str:
        """The address of another light client, which is connected."""
        before = set(testbed.addresses())
        testbed.swarm(1, *options).wait()
        (address,) = set(testbed.addresses()) - before
        return address

    def hostile(self) -> None:
        """Each kind in turn, a new session of one peer."""
        with self._testbed("hostile") as testbed:
            testbed.client("one")
            hostility = Hostility(testbed, min(self._options.seconds, HOSTILE_SECONDS_MOST), self._log)
            self._result.hostile += hostility.rows(self._options.kind, self._options.hostile_connections or CONNECTIONS)

    def garbage(self) -> None:
        """At the server, and at a port where nobody listens."""
        with self._testbed("garbage") as testbed:
            testbed.client("one")
            hub, one = testbed.lab["hub"], testbed.lab["one"]
            stream = partial(self._gbit, one, hub, SERVER_ADDRESS, seconds=self._options.garbage_seconds)
            before = testbed.server.running()["counters"]
            floods: list[Flooded] = []
            at_server = self._compared(
                "garbage at the server", stream, partial(self._beside_flood, testbed, CARRIER_PORT, stream, floods)
            )
            after = testbed.server.running()["counters"]
            at_nobody = self._compared(
                "garbage at nobody", stream, partial(self._beside_flood, testbed, NOBODYS_PORT, stream, [])
            )
            counted = {
                name.removeprefix("tcp."): count - before[name]
                for name, count in after.items()
                if name.startswith("tcp.closed_") and count != before[name]
            }
            self._result.garbage = Garbage(at_server, at_nobody, floods[-1], counted)

    def hellos(self) -> None:
        """At the server and at one without TLS, from many addresses; then newcomers, beside one address."""
        with self._testbed("hellos") as testbed:
            testbed.client("one")
            hub, one = testbed.lab["hub"], testbed.lab["one"]
            stream = partial(self._gbit, one, hub, SERVER_ADDRESS, seconds=self._options.seconds)
            floods: list[Flooded] = []
            many = ("--hellos", "--rate", self._options.hello_rate, "--source", SWARM_NETWORK)
            at_server = self._compared(
                "hellos at the server",
                stream,
                partial(self._beside_hellos, testbed, CARRIER_PORT, stream, floods, many),
            )
            with self._running(hub, "tools.load.plain_server", hub.address, PLAIN_PORT) as plain:
                assert plain.stdout is not None
                plain.stdout.readline()
                at_plain = self._compared(
                    "hellos without TLS", stream, partial(self._beside_hellos, testbed, PLAIN_PORT, stream, [], many)
                )
                plain.terminate()
            one_address = ("--hellos", "--rate", self._options.hello_rate)
            newcomer = partial(self._newcomer_seconds, testbed)
            self._log("hellos: newcomers")
            alone = [newcomer() for _ in range(NEWCOMERS)]
            beside = [self._beside_hellos(testbed, CARRIER_PORT, newcomer, [], one_address) for _ in range(NEWCOMERS)]
            self._result.hellos = Hellos(at_server, at_plain, alone, beside, floods[-1])

    def _newcomer_seconds(self, testbed: Testbed) -> float:
        """From the first attempt of another light client until it has a connection."""
        swarm = testbed.swarm(1)
        swarm.wait(complete=False)
        seconds = swarm.finish().first_seconds
        assert seconds is not None
        return seconds

    def _beside_hellos(
        self,
        testbed: Testbed,
        port: int,
        measured: Callable[[], float],
        floods: list[Flooded],
        options: Sequence[object],
    ) -> float:
        """What is measured while the flood lasts, which is a little longer than a stream."""
        with self._running(
            testbed.lab["swarm"],
            "tools.load.flood",
            testbed.lab["hub"].address,
            port,
            "--patience",
            1,
            "--seconds",
            self._options.seconds + FLOOD_MARGIN_SECONDS,
            *options,
        ) as flood:
            value = measured()
            said, _ = flood.communicate(timeout=FLOOD_SPARE_SECONDS)
        floods.append(msgspec.json.decode(said, type=Flooded))
        return value

    # -- how

    def _compared(self, what: str, plain: Callable[[], float], beside: Callable[[], float]) -> Compared:
        pairs = []
        for number in range(self._options.rounds):
            self._log(f"{what}: round {number + 1} of {self._options.rounds}")
            pairs.append((plain(), beside()))
        alone, together = ([pair[side] for pair in pairs] for side in (0, 1))
        return Compared(
            statistics.median(alone),
            statistics.median(together),
            statistics.median(other / one for one, other in pairs),
            *map(list, zip(*pairs, strict=True)),
        )

    def _gbit(self, source: Node, sink: Node, address: str, seconds: float = 0) -> float:
        return measure.tcp_gbit(source, sink, address, seconds or self._options.seconds)

    def _beside_packets(self, testbed: Testbed, address: str, stream: Callable[[], float]) -> float:
        with self._packets(testbed, address, PACKETS):
            return stream()

    def _packets(self, testbed: Testbed, address: str, rate: int) -> AbstractContextManager:
        """From the server's node, while the block runs."""
        return self._running(
            testbed.lab["hub"],
            "tools.load.generators",
            "udp-source",
            address,
            NOBODYS_PORT,
            "--rate",
            rate,
            "--size",
            PACKET_BYTES,
            "--count",
            rate * FILL_SECONDS,
        )

    def _beside_flood(self, testbed: Testbed, port: int, stream: Callable[[], float], floods: list[Flooded]) -> float:
        with self._running(
            testbed.lab["swarm"],
            "tools.load.flood",
            testbed.lab["hub"].address,
            port,
            "--rate",
            self._options.garbage_rate,
            "--seconds",
            self._options.garbage_seconds,
            "--source",
            SWARM_NETWORK,
        ) as flood:
            gbit = stream()
            said, _ = flood.communicate(timeout=FLOOD_SPARE_SECONDS)
        floods.append(msgspec.json.decode(said, type=Flooded))
        return gbit

    @staticmethod
    @contextmanager
    def _running(node: Node, *module: object) -> Iterator[subprocess.Popen]:
        process = node.popen([sys.executable, "-P", "-m", *module], stdout=subprocess.PIPE)
        with process:
            try:
                yield process
            finally:
                stop([process], FLOOD_SPARE_SECONDS)

    def _cpu(self, testbed: Testbed) -> dict[str, float]:
        """Percent of one core over `--seconds`, by process."""
        pids = testbed.server.pids()
        before = {name: measure.cpu_seconds(pid) for name, pid in pids.items()}
        began = time.monotonic()
        time.sleep(self._options.seconds)
        took = time.monotonic() - began
        return {name: 100 * (measure.cpu_seconds(pid) - before[name]) / took for name, pid in pids.items()}


def run(options: argparse.Namespace) -> HubResult:
    """LabError or Overdue when anything of it does not work."""
    measure.require_iperf3()
    result = HubResult(machine=machine(), seconds=options.seconds, rounds=options.rounds, settings=options.set)
    with progress(options) as log:
        bench = Bench(options, result, log)
        for name in options.only or MEASUREMENTS:
            getattr(bench, name)()
    return result


def main(argv: list[str]) -> int:
    return run_command("bench hub", _parser().parse_args(argv), run, table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tunnel-supervisor bench hub", description="Measure a server with many clients on this machine."
    )
    parser.add_argument("--clients", type=int, default=200, metavar="N", help="that are idle (%(default)s)")
    parser.add_argument("--returning", type=int, default=100, metavar="N", help="that come back (%(default)s)")
    parser.add_argument("--seconds", type=int, default=5, metavar="N", help="length of a measurement (%(default)s)")
    parser.add_argument(
        "--settle",
        type=float,
        default=8,
        metavar="S",
        help="before clients count as idle, so that their last handshakes are over (%(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="one and the other in turn (%(default)s)")
    parser.add_argument("--garbage-rate", type=float, default=1000, metavar="N", help="a second (%(default)s)")
    parser.add_argument("--hello-rate", type=float, default=4000, metavar="N", help="a second (%(default)s)")
    parser.add_argument(
        "--garbage-seconds",
        type=int,
        default=20,
        metavar="N",
        help="length of a measurement with garbage (%(default)s)",
    )
    parser.add_argument("--kind", choices=KINDS, action="append", help="of hostile bytes, alone; may be repeated")
    parser.add_argument(
        "--hostile-connections", type=int, action="append", metavar="N", help="of the hostile peer; may be repeated"
    )
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="measure this alone; may be repeated")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for the server and the real clients"
    )
    parser.add_argument("--json", action="store_true", help="for programs; carries schema_version")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
