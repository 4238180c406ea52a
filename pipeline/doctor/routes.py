"""The ways that packets take: to the server around the tunnel, to networks of the tunnel into it; overlaps."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.subject import Subject
from pipeline.errors import LocalError
from pipeline.policy import bypass
from pipeline.policy.kernel_entries import IPAddress, Network, share
from pipeline.supervisor.kernel.route_socket import RouteSocket
from pipeline.supervisor.kernel.rtnetlink import Sender


class Way(NamedTuple):
    """Where the kernel sends packets."""

    device: str
    gateway: IPAddress | None = None
    is_local: bool = False  # to this machine itself


def ways_to(networks: Iterable[Network]) -> list[tuple[Network, Way | None]]:
    """The way to an address of each network; None: there is none, or the kernel does not tell."""
    found: list[tuple[Network, Way | None]] = []
    with closing(RouteSocket()) as ask:
        for network in networks:
            inside = network.network_address if network.num_addresses < 3 else network.network_address + 1
            found.append((network, _way(ask, inside)))
    return found


def _way(ask: RouteSocket, address: IPAddress, sender: Sender | None = None) -> Way | None:
    try:
        route = ask.lookup(address, sender)
        return None if route is None else Way(_name(route.device), route.gateway, route.is_local)
    except (LocalError, OSError):
        return None


def _name(device: int) -> str:
    return socket.if_indextoname(device) if device else "several devices"


# -- the way to the server


def server_addresses(subject: Subject) -> list[IPAddress]:
    """Where a client's connections lead, or would, a proxy included; none while its name is not known."""
    config = subject.config
    rows = [] if config is not None and config.needs_bridge else subject.established  # the bridge is on this machine
    hosts = [row["address"].rpartition(":")[0].strip("[]") for row in rows]
    if not hosts and config is not None and subject.is_client:
        hosts = [str(each.address) for each in config.dialed_endpoints[:1] if each.address is not None]
    return list(dict.fromkeys(ip_address(host.partition("%")[0]) for host in hosts))


def loop(subject: Subject, addresses: Sequence[IPAddress]) -> list[Finding]:
    """`addresses`: of the server."""
    if not subject.is_client:
        return []
    with closing(RouteSocket()) as ask:
        sender = Sender(uid=user_of_workers(subject, ask))
        ways = [(address, _way(ask, address, sender)) for address in addresses]
    return judge_ways_to_server(ways, subject.tun_name)


def user_of_workers(subject: Subject, ask: RouteSocket) -> int | None:
    """Their packets may go another way than ours (policy.bypass); None if nothing says it.

    Where none is to be seen, the rules may have it: of a run that `check` knows nothing of, or of a killed one.
    """
    workers = subject.snapshot["workers"] if subject.snapshot is not None else []
    for worker in workers:
        try:
            status = Path(f"/proc/{worker['pid']}/status").read_text()
        except OSError:
            continue  # it has just ended
        return int(next(line for line in status.splitlines() if line.startswith("Uid:")).split()[2])
    priorities = bypass.numbers(subject.name).priorities
    rules = [rule for version in (4, 6) for rule in ask.rules(version)]
    return next((rule.uid for rule in rules if rule.priority in priorities and rule.uid is not None), None)


def judge_ways_to_server(ways: Sequence[tuple[IPAddress, Way | None]], tun: str) -> list[Finding]:
    """A way to one address is enough: a name may have addresses of a family that this machine does not have."""
    if not ways:
        return []
    if all(way is None for _, way in ways):
        addresses = ", ".join(str(address) for address, _ in ways)
        return [problem(f"this machine has no way to the server, {addresses}", "Look at `ip route` and at the uplink.")]
    looped = [
        problem(
            f"the way to the server, {address}, leads into the tunnel itself ({tun}): no connection lasts",
            f"Remove that route (ip route del {address} dev {tun}), or add a better one around the tunnel: "
            f"ip route add {address} via GATEWAY dev UPLINK.",
        )
        for address, way in ways
        if way is not None and way.device == tun
    ]
    return looped or [ok("the way to the server leads around the tunnel")]


# -- overlaps


def overlaps(subject: Subject) -> list[Finding]:
    """Of an instance that does not run; a running one notes them itself."""
    config = subject.config
    if config is None or subject.runs:
        return []
    with closing(RouteSocket()) as ask:
        others = [(_name(each.device), each.network) for each in ask.addresses() if not each.interface.is_loopback]
    own: list[Network] = [interface.network for interface in config.tunnel_interfaces]
    return [*judge_name(config.tun_name), *judge_overlaps(own, others)]


def judge_name(tun: str) -> list[Finding]:
    try:
        socket.if_nametoindex(tun)
    except OSError:
        return []
    return [
        problem(
            f"a device {tun} exists already",
            f"Stop what owns it, remove it (ip link delete {tun}), or set another tun_name.",
        )
    ]


def judge_overlaps(own: Sequence[Network], others: Sequence[tuple[str, Network]]) -> list[Finding]:
    return [
        note(
            f"the tunnel's subnet {network} overlaps {other} of {device}: hosts of one of them cannot be reached",
            "Choose another tunnel_addr: a subnet that few others use, such as 10.83.47.0/24.",
        )
        for network in own
        for device, other in others
        if share(network, other)
    ]
