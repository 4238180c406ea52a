"""The uplinks of a client: whether each is there, leads to the server, and gets what the server answers."""

from __future__ import annotations

import platform
import re
import socket
from collections.abc import Sequence
from contextlib import closing
from itertools import combinations
from typing import NamedTuple

from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.routes import user_of_workers
from pipeline.doctor.subject import Subject
from pipeline.doctor.sysctls import STRICT, read_number
from pipeline.policy.kernel_entries import IPAddress, Network
from pipeline.policy.server_addresses import ServerAddress
from pipeline.supervisor.kernel.route_socket import RouteSocket
from pipeline.transport.kernel_route import KernelRoutes, Link

UNPRIVILEGED = (5, 7)  # Linux: since then SO_BINDTODEVICE needs no right (socket(7))


class Ways(NamedTuple):
    """The kernel's answers about one uplink.

    `routed`: addresses of the server to which a route leads by it; `best`: those to which it is the way without uplinks
    as well; `foreign`: those for which it has no source address of its own.
    """

    name: str
    link: Link
    networks: tuple[Network, ...] = ()  # of its addresses
    routed: tuple[IPAddress, ...] = ()
    best: tuple[IPAddress, ...] = ()
    foreign: tuple[IPAddress, ...] = ()
    rp_filter: int = 0
    arp_ignore: int = 0


def look(subject: Subject, addresses: Sequence[IPAddress]) -> list[Finding]:
    """`addresses`: of the server."""
    config = subject.config
    if config is None or not config.named_uplinks:
        return []
    with closing(RouteSocket()) as ask, closing(KernelRoutes(user_of_workers(subject, ask))) as routes:
        own = [(each.device, each.network) for each in ask.addresses() if not each.interface.is_link_local]
        found = []
        for _, name, _ in config.named_uplinks:
            link = routes.link(name)
            networks = tuple(network for device, network in own if device == link.device)
            found.append(_ways(routes, Ways(name, link, networks), addresses))
    release = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    return [*judge_kernel(release), *judge(found, addresses)]


def _ways(routes: KernelRoutes, ways: Ways, addresses: Sequence[IPAddress]) -> Ways:
    """With the answers about each address."""
    routed, best, foreign = [], [], []
    device = ways.link.device
    for address in addresses if device else ():
        six = address.version == 6
        end = ServerAddress(
            *((socket.AF_INET6, (str(address), 9, 0, 0)) if six else (socket.AF_INET, (str(address), 9)))
        )
        way, _, source = routes.find(end, device)
        if way is None:
            continue
        routed.append(address)
        free = routes.find(end).way
        if free is not None and free.device == device:
            best.append(address)
        if source and not routes.has(device, source):
            foreign.append(address)
    return ways._replace(
        routed=tuple(routed),
        best=tuple(best),
        foreign=tuple(foreign),
        rp_filter=max(read_number(f"ipv4/conf/{each}/rp_filter") for each in ("all", ways.name)),
        arp_ignore=max(read_number(f"ipv4/conf/{each}/arp_ignore") for each in ("all", ways.name)),
    )


def judge_kernel(release: tuple[int, ...]) -> list[Finding]:
    if release >= UNPRIVILEGED:
        return []
    return [
        problem(
            f"this kernel, Linux {'.'.join(map(str, release))}, lets no process without rights choose an interface",
            "Install Linux 5.7 or newer, or remove `uplinks`.",
        )
    ]


def judge(uplinks: Sequence[Ways], addresses: Sequence[IPAddress]) -> list[Finding]:
    found = [finding for each in uplinks for finding in _judge_one(each, addresses)]
    found += [finding for one, other in combinations(uplinks, 2) for finding in _judge_subnet(one, other)]
    return found or [ok(f"each uplink leads to the server: {', '.join(each.name for each in uplinks)}")]


def _judge_one(uplink: Ways, addresses: Sequence[IPAddress]) -> list[Finding]:
    name = uplink.name
    if not uplink.link.device:
        return [
            note(
                f"the uplink {name} does not exist now", "Plug it in, or correct `uplinks`. It is used when it appears."
            )
        ]
    if not uplink.link.running:
        what, cure = (
            ("has no carrier", "Look at its cable or modem.")
            if uplink.link.up
            else ("is down", f"Run: ip link set dev {name} up.")
        )
        return [note(f"the uplink {name} {what}", cure)]
    if not addresses:
        return []
    listed = ", ".join(map(str, addresses))
    if not uplink.routed:
        return [
            problem(
                f"no route leads to the server, {listed}, by the uplink {name}",
                f"Add one beside that of the others: ip route add {addresses[0]} via GATEWAY dev {name} metric 700.",
            )
        ]
    found = []
    if set(uplink.foreign) == set(uplink.routed):
        found.append(
            problem(
                f"the uplink {name} has no address to reach the server, {listed}, from",
                f"Look at `ip address show dev {name}`, and at its DHCP client.",
            )
        )
    hidden = [each for each in uplink.routed if each.version == 4 and each not in uplink.best]
    if hidden and uplink.rp_filter == STRICT:
        found.append(
            problem(
                f"rp_filter drops what the server answers on {name}, since the best way to {hidden[0]} is another",
                f"Run: sysctl -w net.ipv4.conf.{name}.rp_filter=2.",
            )
        )
    return found


def _judge_subnet(one: Ways, other: Ways) -> list[Finding]:
    shared = [network for network in one.networks if network.version == 4 and network in other.networks]
    if not shared or min(one.arp_ignore, other.arp_ignore) > 0:
        return []
    return [
        note(
            f"the uplinks {one.name} and {other.name} are both in {shared[0]}: each answers ARP for the other, "
            "so packets arrive on the wrong one and are dropped",
            "Run: sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2.",
        )
    ]
