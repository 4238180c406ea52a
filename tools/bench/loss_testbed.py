"""The testbed of one configuration in one scenario: a lab over the emulated link, a tunnel in it or none, its results.

    open_testbed    a lab, a tunnel with all its connections established, and its path of datagrams open
    mark_sent       begin to count which connection is the busiest
    cpu_seconds     the processor time of the ends so far
    strike          cut the busiest connection, or let it vanish from the path
    note            add the counters of the link and of the tunnel to the results

A step that fails ends up in the cell's `error`, and the testbed rests from then on. So a configuration that does not
work costs the others nothing.

A cut is `ss --kill` (iproute2; the kernel needs CONFIG_INET_DIAG_DESTROY): an error for the client, a reset for the
server. A black hole is made by the emulated link (tools/lab/link_emulator.py): both ends keep the connection and
receive nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tools.bench.loss_report import Cell, Way
from tools.bench.measure import cpu_seconds
from tools.lab import congestion
from tools.lab.link_emulator import DirectionStats
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError, Namespace
from tools.lab.network import Lab
from tools.lab.waiting import Overdue, until
from tools.tunnel_pair import CARRIER_PORT, TunnelPair

CONNECTED_SECONDS = 15.0
SOCKET_LINE = re.compile(r":(\d+) +\S+:\d+ .*?\bbytes_sent:(\d+)")
"""Of `ss --oneline --info`: the local port, and the bytes sent so far."""


class Testbed:
    """The client's node is the source of all traffic, the server's the sink. Made by open_testbed()."""

    def __init__(self, lab: Lab, pair: TunnelPair | None, cell: Cell) -> None:
        self.lab = lab
        self.pair = pair
        self.cell = cell
        self.sink, self.source = lab.nodes
        self.address = self.sink.address if pair is None else pair.server.address
        self._sent: dict[int, int] = {}
        self._link_before = lab.link.stats()

    @property
    def works(self) -> bool:
        return not self.cell.error

    @contextmanager
    def step(self) -> Iterator[None]:
        try:
            yield
        except (LabError, Overdue) as error:
            self.cell.error = str(error)

    def mark_sent(self) -> None:
        """From now on it is counted which connection is the busiest."""
        self._sent = carriers(self.source)

    def cpu_seconds(self) -> list[float]:
        """Of all processes of the server, and of the client; nothing without a tunnel."""
        ends = [] if self.pair is None else self.pair.ends().values()
        return [sum(map(cpu_seconds, tunnel.pids().values())) for tunnel in ends]

    def strike(self, event: str) -> None:
        """The connection that has sent most since look() is cut, or black-holed."""
        sent = {port: count - self._sent.get(port, 0) for port, count in carriers(self.source).items()}
        if not sent:
            raise LabError(f"{event}: expected an established connection to port {CARRIER_PORT}, there is none")
        port = max(sent, key=lambda one: sent[one])
        if event == "cut":
            cut(self.source, port)
        else:
            self.lab.link.silence(port)

    def note(self) -> None:
        """Note the link's counters since open_testbed(), and the tunnel's since its start."""
        now, before = self.lab.link.stats(), self._link_before
        self.cell.to_client = _way(now["forward"], before["forward"])
        self.cell.to_server = _way(now["backward"], before["backward"])
        if self.pair is not None:
            for end, tunnel in self.pair.ends().items():
                counters = tunnel.running()["counters"]
                self.cell.counters[end] = {name: count for name, count in counters.items() if count}


@contextmanager
def open_testbed(
    cell: Cell, link: LinkSpec, overrides: Sequence[str] | None, left_behind: list[str], control: str = ""
) -> Iterator[Testbed]:
    """No tunnel if `overrides` is None. Names that the instances did not take with them go to `left_behind`.
    `control`: the congestion control of both hosts; "": the machine's."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(link=link))
        if control:
            congestion.set_default(lab.nodes, control)
        pair = None
        if overrides is not None:
            server, client = lab.nodes
            pair = TunnelPair(server, client, overrides=overrides)
            stack.callback(lambda: left_behind.extend(pair.left_behind))
            stack.enter_context(pair)
            until(
                lambda: _all_established(pair) and has_path(pair),
                f"every connection of {cell.configuration!r} established, and its datagrams through",
                CONNECTED_SECONDS,
            )
        yield Testbed(lab, pair, cell)


def carriers(node: Namespace) -> dict[int, int]:
    """Of each established connection of the client: its local port, and the bytes that it has sent."""
    said = node.run(
        [
            "ss",
            "--tcp",
            "--numeric",
            "--info",
            "--oneline",
            "--no-header",
            "state",
            "established",
            f"( dport = :{CARRIER_PORT} )",
        ]
    )
    return {int(port): int(sent) for port, sent in SOCKET_LINE.findall(said.stdout)}


def cut(node: Namespace, port: int) -> None:
    """End the client's connection with this local port."""
    node.run(["ss", "--kill", "--tcp", "--numeric", f"( sport = :{port} and dport = :{CARRIER_PORT} )"])
    if port in carriers(node):
        raise LabError("cut: ss --kill ended no connection; the kernel needs CONFIG_INET_DIAG_DESTROY")


def _all_established(pair: TunnelPair) -> bool:
    return all(one["state"] == "established" for one in pair.client.running()["connections"])


def has_path(pair: TunnelPair) -> bool:
    """Where blocks are to travel in datagrams, they do both ways."""
    found = [each["datagrams"] for tunnel in pair.ends().values() for each in tunnel.running()["peers"]]
    return all(each is None or each["state"] == "open" for each in found)


def _way(now: DirectionStats, before: DirectionStats) -> Way:
    """The counts since `before`; the worst lateness is that of all time."""
    return Way(
        offered=now.offered - before.offered,
        lost=now.lost - before.lost,
        queue_full=now.dropped_queue_full - before.dropped_queue_full,
        silenced=now.dropped_silenced - before.dropped_silenced,
        writes=now.writes - before.writes,
        writes_late=now.writes_late - before.writes_late,
        worst_late_ms=now.worst_late_us / 1000,
    )
