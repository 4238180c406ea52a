"""Network namespaces joined by links, for tests, bench and demo. Needs root; leaves nothing behind.

    with Lab() as lab:                                    two nodes, a bare veth pair
    with Lab(link=LinkSpec(delay_ms=20)) as lab:          the same over an emulated link
    with Lab(names=("hub", "one", "two")) as lab:         every further node has its own link to the first
        a, b = lab.nodes
        a.run(["ping", "-c1", b.address])

A node has the interfaces `link0` and `lo`, and the addresses 10.77.0.N/24 and fd77::N/64, N from 1 in the order of
names. With three nodes or more, the first one's `link0` is a bridge over its links, so all nodes are in one network.

Nothing survives. When the lab closes, a node's processes get SIGTERM, then SIGKILL. That is so after SIGINT and SIGTERM
to this process too, which are held off while the lab closes. If this process is killed, the kernel kills the nodes'
processes (tools/lab/namespace.py).
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Any, Self

from tools.lab.link_emulator import Direction, Link
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import TERM_SECONDS, LabError, Namespace, signals_held_off, stop
from tools.lab.waiting import until

INTERFACE = "link0"
SIGTERM_STATUS = 128 + signal.SIGTERM
DEVICE_QUEUE = 10000
"""txqueuelen of an emulated link's devices: the model drops packets, the device should not."""


class Node(Namespace):
    """One namespace of a lab and its addresses; Namespace has its operations."""

    def __init__(self, name: str, number: int, term_seconds: float) -> None:
        super().__init__(name, term_seconds)
        self.interface = INTERFACE
        self.address = f"10.77.0.{number}"
        self.address6 = f"fd77::{number:x}"
        self.mac = f"02:77:00:00:00:{number:02x}"

    def ip(self, *commands: str) -> None:
        """Run commands of `ip` inside, in this order: node.ip("link set link0 down")."""
        self.run(["ip", "-batch", "-"], input="\n".join(commands))


class Lab:
    """See the head of this file. `link` may be a pair: (first to other, other to first). `mtu` is that of the
    interfaces. A process inside has `term_seconds` between SIGTERM and SIGKILL."""

    def __init__(
        self,
        *,
        names: Sequence[str] = ("a", "b"),
        mtu: int = 1500,
        link: LinkSpec | tuple[LinkSpec, LinkSpec] | None = None,
        term_seconds: float = TERM_SECONDS,
    ) -> None:
        if not 2 <= len(names) <= 250 or len(set(names)) != len(names):
            raise LabError(f"names: expected 2 to 250 different ones, got {list(names)}")
        self._names = tuple(names)
        self._mtu = mtu
        self._term_seconds = term_seconds
        self._specs = (link, link) if isinstance(link, LinkSpec) else link
        self._sigterm_before: Any = None
        self.nodes: list[Node] = []
        self.links: list[Link] = []
        """The emulated links, in the order of nodes[1:]; none with veth."""

    def __enter__(self) -> Self:
        self._catch_sigterm()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> Node:
        return {node.name: node for node in self.nodes}[name]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def link(self) -> Link:
        """The emulated link of a lab of two."""
        if len(self.links) != 1:
            raise LabError(f"link: expected one emulated link, this lab has {len(self.links)}")
        return self.links[0]

    def cut(self, node: Node | None = None, direction: Direction | None = None) -> None:
        """Cut the link of `node`, or all links. An emulated link loses everything silently, or one direction if it is
        given. Of a veth pair the far end goes down, which both ends see."""
        for far, link in self._far_ends(node):
            if link is not None:
                link.blackout(True, direction)
            else:
                far.ip(f"link set {INTERFACE} down")

    def join(self, node: Node | None = None) -> None:
        """Undo cut()."""
        for far, link in self._far_ends(node):
            if link is not None:
                link.blackout(False)
            else:
                far.ip(f"link set {INTERFACE} up")

    def close(self) -> None:
        """End everything; a second call does nothing."""
        try:
            with signals_held_off(), ExitStack() as last_first:
                for node in self.nodes:
                    last_first.callback(node.close)
                for link in self.links:
                    last_first.callback(link.close)
                started = [process for node in self.nodes for process in node.started]
                last_first.callback(stop, started, self._term_seconds)
                self.nodes, self.links = [], []
        finally:
            if self._sigterm_before is not None:
                signal.signal(signal.SIGTERM, self._sigterm_before)
                self._sigterm_before = None

    def _build(self) -> None:
        for number, name in enumerate(self._names, start=1):
            self.nodes.append(Node(name, number, self._term_seconds))
        hub, *others = self.nodes
        bridged = len(others) > 1
        ports = [f"port{number}" if bridged else INTERFACE for number in range(len(others))]
        for port, other in zip(ports, others, strict=True):
            self._join_nodes(hub, port, other)
        if bridged:
            quiet = f"mtu {self._mtu} addrgenmode none"
            hub.ip(
                f"link add {INTERFACE} type bridge",
                *(f"link set {port} master {INTERFACE} {quiet}" for port in ports),
                *(f"link set {port} up" for port in ports),
            )
        for node in self.nodes:
            self._set_up(node, others if node is hub else [hub])
        until(lambda: all(_has_carrier(node) for node in self.nodes), f"{INTERFACE} up in {self._names}")

    def _join_nodes(self, hub: Node, near: str, other: Node) -> None:
        if self._specs is not None:
            self.links.append(Link(hub, other, self._specs, (near, INTERFACE)))
            hub.ip(f"link set {near} txqueuelen {DEVICE_QUEUE}")
            other.ip(f"link set {INTERFACE} txqueuelen {DEVICE_QUEUE}")
        else:
            add_veth_pair(hub, near, other)

    def _set_up(self, node: Node, others: list[Node]) -> None:
        """Give it addresses that work at once and stay through a cut. Nothing talks by itself on the link. Neighbours
        are permanent, so no loss can hold up an address resolution."""
        ipv6 = f"net.ipv6.conf.{INTERFACE}"
        node.sysctl(f"{ipv6}.router_solicitations=0", f"{ipv6}.keep_addr_on_down=1")
        node.ip(
            "link set lo up",
            f"link set {INTERFACE} address {node.mac} mtu {self._mtu} addrgenmode none",
            f"address add {node.address}/24 dev {INTERFACE}",
            f"address add {node.address6}/64 dev {INTERFACE} nodad",
            f"link set {INTERFACE} up",
            *(
                f"neighbour replace {address} lladdr {other.mac} dev {INTERFACE} nud permanent"
                for other in others
                for address in (other.address, other.address6)
            ),
        )

    def _far_ends(self, node: Node | None) -> list[tuple[Node, Link | None]]:
        links: list[Link | None] = [*self.links] or [None] * len(self.nodes)
        ends = list(zip(self.nodes[1:], links, strict=False))
        if node is None:
            return ends
        chosen = [(far, link) for far, link in ends if far is node]
        if not chosen:
            raise LabError(
                f"expected a node with a link of its own (all but {self.nodes[0].name!r}), got {node.name!r}"
            )
        return chosen

    def _catch_sigterm(self) -> None:
        """SIGTERM unwinds the stack as SIGINT does, unless the program has a handler of its own."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._sigterm_before = signal.signal(signal.SIGTERM, _terminate)


def add_veth_pair(near: Namespace, device: str, far: Namespace) -> None:
    """Join two namespaces by `device` in one and INTERFACE in the other."""
    words = f"ip link add {device} netns {near.pid} type veth peer name {INTERFACE} netns {far.pid}"
    made = subprocess.run(words.split(), capture_output=True, text=True)
    if made.returncode != 0:
        raise LabError(f"veth pair {near.name}-{far.name}: {made.stderr.strip()}")


def _has_carrier(node: Node) -> bool:
    return "LOWER_UP" in node.run(["ip", "link", "show", INTERFACE]).stdout


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(SIGTERM_STATUS)
