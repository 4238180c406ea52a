"""Two nodes, and several cables between them: a client with more than one way to the network of its server.

    with Cables(LinkSpec(rate_mbit=40), LinkSpec(rate_mbit=10)) as lab:
        lab.server, lab.client            nodes of tools/lab/network.py
        first, second = lab.cables
        first.pull("end")                 out of the client's socket: its kernel says that the carrier has gone
        first.pull("middle")              somewhere on its way: all packets vanish, and no kernel knows
        first.plug()                      undoes either

Cable N, from 1, is an emulated link (tools/lab/link_emulator.py). The client's interface `cableN` has 10.77.N.2/24 and
fd77:N::2/64, the server's `portN` has the addresses that end with 1. A node's own address is on its loopback and is
reached by every cable, by the first one that can be used. So the network takes an answer back by the cable on which the
question has come, and packets of no tunnel have one way, as on a machine with two uplinks.

Nothing survives the block, as in tools/lab/network.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from tools.lab.link_emulator import Direction, Link
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError
from tools.lab.network import DEVICE_QUEUE, Lab, Node
from tools.lab.waiting import until

Where = Literal["end", "middle"]
WHERES: tuple[Where, ...] = get_args(Where)
UP: Direction = "forward"
"""From the client to the server."""

DOWN: Direction = "backward"
CABLES_MAX = 9


class Cable:
    """One cable of a lab. The client's end is `interface` with `address`, the server's end is the far one."""

    def __init__(self, number: int, client: Node, server: Node, specs: tuple[LinkSpec, LinkSpec]) -> None:
        self.interface, self.far_interface = f"cable{number}", f"port{number}"
        self.address, self.far_address = f"10.77.{number}.2", f"10.77.{number}.1"
        self.address6, self.far_address6 = f"fd77:{number}::2", f"fd77:{number}::1"
        self._number = number
        self._client, self._server = client, server
        self.link = Link(client, server, specs, (self.interface, self.far_interface))

    def pull(self, where: Where) -> None:
        """Nothing passes any more. What is on its way is lost as well."""
        self.link.blackout(True)
        if where == "end":
            self._client.ip(f"link set {self.interface} carrier off")
            until(lambda: not self.has_carrier(), f"{self.interface} without a carrier")

    def plug(self) -> None:
        """Undo pull()."""
        self.link.blackout(False)
        self._client.ip(f"link set {self.interface} carrier on")

    def has_carrier(self) -> bool:
        """The client's kernel says so."""
        return "LOWER_UP" in self._client.run(["ip", "link", "show", self.interface]).stdout

    def change(self, spec: LinkSpec) -> None:
        """From now on both directions are like `spec`."""
        self.link.change(spec)

    def carried(self) -> dict[str, int]:
        """Bytes that have arrived at the other end so far, by direction: UP and DOWN."""
        return {
            UP: _bytes_received(self._server, self.far_interface),
            DOWN: _bytes_received(self._client, self.interface),
        }

    def set_up(self) -> None:
        """Give both ends their addresses, and both nodes a route by this cable, worse than those made before."""
        ends = (
            (self._client, self.interface, self.address, self.address6, 2),
            (self._server, self.far_interface, self.far_address, self.far_address6, 1),
        )
        for (node, device, address, address6, last), far in zip(ends, reversed(ends), strict=True):
            far_node, _, far_address, far_address6, far_last = far
            node.sysctl(
                f"net.ipv6.conf.{device}.router_solicitations=0",
                f"net.ipv6.conf.{device}.keep_addr_on_down=1",
                f"net.ipv4.conf.{device}.rp_filter=0",
            )
            node.ip(
                f"link set {device} address {self._mac(last)} txqueuelen {DEVICE_QUEUE} addrgenmode none",
                f"address add {address}/24 dev {device}",
                f"address add {address6}/64 dev {device} nodad",
                f"link set {device} up",
                f"neighbour replace {far_address} lladdr {self._mac(far_last)} dev {device} nud permanent",
                f"neighbour replace {far_address6} lladdr {self._mac(far_last)} dev {device} nud permanent",
                f"route add {far_node.address} via {far_address} dev {device} metric {100 * self._number}",
                f"route add {far_node.address6} via {far_address6} dev {device} metric {100 * self._number}",
            )

    def _mac(self, last: int) -> str:
        return f"02:77:00:00:{self._number:02x}:{last:02x}"


def _bytes_received(node: Node, device: str) -> int:
    for line in Path(f"/proc/{node.pid}/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == device:
            return int(counts.split()[0])
    raise LabError(f"expected a device {device!r} in {node.name!r}, there is none")


class Cables(Lab):
    """See the head of this file. A cable's spec may be a pair: (client to server, server to client)."""

    def __init__(self, *specs: LinkSpec | tuple[LinkSpec, LinkSpec]) -> None:
        if not 1 <= len(specs) <= CABLES_MAX:
            raise LabError(f"cables: expected 1 to {CABLES_MAX}, got {len(specs)}")
        super().__init__(names=("server", "client"))
        self._pairs = [(spec, spec) if isinstance(spec, LinkSpec) else spec for spec in specs]
        self.cables: list[Cable] = []

    @property
    def server(self) -> Node:
        return self.nodes[0]

    @property
    def client(self) -> Node:
        return self.nodes[1]

    def _build(self) -> None:
        for number, name in enumerate(self._names, start=1):
            node = Node(name, number, self._term_seconds)
            self.nodes.append(node)
            node.sysctl("net.ipv4.conf.all.rp_filter=0")
            node.ip(
                "link set lo up",
                f"address add {node.address}/32 dev lo",
                f"address add {node.address6}/128 dev lo nodad",
            )
        for number, pair in enumerate(self._pairs, start=1):
            cable = Cable(number, self.client, self.server, pair)
            self.links.append(cable.link)
            self.cables.append(cable)
            cable.set_up()
        until(lambda: all(cable.has_carrier() for cable in self.cables), "every cable up")
