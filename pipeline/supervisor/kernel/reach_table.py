"""Reach, in nftables: packets of peers that this machine forwards, or that are for itself.

    chain forward, input    packets out of the tunnel: of flows that others have begun, they pass; else the address that
                            they come from leads to the chain of its peer
    chain peer-N            the rules of the peer; what they do not name is counted, told and refused
    chain rules-N           rules; peers with equal ones share a chain

A packet of a peer that begins a flow is compared with the rules as often as it comes. So a rule that goes ends the
flows that it has allowed: their TCP is reset. Every refused packet is answered, so that programs need not wait.

The device is named twice: by its name, which it has again when it was deleted and made anew, and by its index, which it
keeps when others rename it.

The address is the peer's: a tun worker has looked at it. Names of peers are not in the rules, as a certificate may have
any. They are in the names of counters, where nft takes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import NamedTuple

from pipeline.policy.reach import Policy
from pipeline.policy.targets import ANY_PROTOCOL, EVERY_PORT, ICMP, ICMPV6, Network
from pipeline.supervisor.kernel.own_table import OwnTable

TOLD_PER_SECOND = 5  # refusals of a peer that the supervisor is told of
TOLD_BYTES = 128  # of each: the headers
FAMILIES = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}
PLAIN_NAME = re.compile("[A-Za-z0-9_.-]{1,64}")

DEVICES = """\
        iifname "{name}" jump peers
        iifname != "{name}" iif {index} jump peers
"""
TOP = """\
    chain forward {{
        type filter hook forward priority filter; policy accept;
{devices}    }}
    chain input {{
        type filter hook input priority filter; policy accept;
{devices}    }}
    chain peers {{
        ct direction reply accept
        ct state related accept
        ct status expected accept
{sources}    }}
"""


class Guarded(NamedTuple):
    """A peer with rules, and the addresses that are its own."""

    name: str
    sources: tuple[Network, ...]
    policy: Policy


class ReachTable(OwnTable):
    """The rules of one instance. `tun`: name and index of the device.

    `log_group`: of the packets to be told; None: they are not.
    """

    def __init__(
        self,
        tun: tuple[str, int],
        instance_name: str,
        guarded: Sequence[Guarded] = (),
        log_group: int | None = None,
    ) -> None:
        cost = "Peers with rules reach nothing beyond other peers until the table is there"
        chains = describe(tun, guarded, log_group)
        super().__init__(f"tunnel-{instance_name}/reach", chains, "may_reach", cost)


def describe(tun: tuple[str, int], guarded: Sequence[Guarded], log_group: int | None) -> str:
    numbers: dict[int, int] = {}  # of each policy, by its identity
    parts = []
    for peer in guarded:
        if id(peer.policy) not in numbers:
            numbers[id(peer.policy)] = len(numbers)
            parts.append(f"    chain rules-{numbers[id(peer.policy)]} {{\n{_rules(peer.policy)}    }}\n")
    for index, peer in enumerate(guarded):
        counter = counter_of(index, peer.name)
        parts.append(f"    counter {counter} {{ }}\n")
        parts.append(_chain(index, counter, numbers[id(peer.policy)], log_group))
    devices = DEVICES.format(name=tun[0], index=tun[1])
    return "".join([*parts, TOP.format(devices=devices, sources=_sources(guarded))])


def counter_of(index: int, name: str) -> str:
    """The name of the counter of refusals of a peer; no plain name has a slash."""
    return f"refused-{name}" if PLAIN_NAME.fullmatch(name) else f"refused/{index}"


def _chain(index: int, counter: str, rules: int, log_group: int | None) -> str:
    tell = (
        f"        limit rate {TOLD_PER_SECOND}/second burst {TOLD_PER_SECOND} packets "
        f'log prefix "{index}" group {log_group} snaplen {TOLD_BYTES}\n'
        if log_group is not None
        else ""
    )
    return (
        f"    chain peer-{index} {{\n"
        f"        jump rules-{rules}\n"
        f"        counter name {counter}\n"
        "        meta l4proto tcp tcp flags & syn == 0 reject with tcp reset\n"
        f"{tell}"
        "        reject with icmpx type admin-prohibited\n"
        "    }\n"
    )


def _rules(policy: Policy) -> str:
    """A line for each service and IP version: targets of one service are one set of addresses."""
    services: dict[tuple[tuple[int, ...], tuple[tuple[int, int], ...]], list[Network]] = {}
    for rule in policy.rules:
        services.setdefault((rule.target.protocols, rule.target.ports), []).extend(rule.networks)
    lines = []
    for (protocols, ports), networks in services.items():
        for version, collapsed in _by_version(networks).items():
            family, _ = FAMILIES[version]
            service = _service(version, protocols, ports)
            lines.append(f"        {family} daddr {_set(map(str, collapsed))}{service} accept\n")
    return "".join(lines)


def _by_version(networks: Iterable[Network]) -> Mapping[int, Sequence[Network]]:
    found = list(networks)
    fours = list(collapse_addresses(each for each in found if isinstance(each, IPv4Network)))
    sixes = list(collapse_addresses(each for each in found if isinstance(each, IPv6Network)))
    return {version: of_version for version, of_version in ((4, fours), (6, sixes)) if of_version}


def _service(version: int, protocols: tuple[int, ...], ports: tuple[tuple[int, int], ...]) -> str:
    if protocols == (ANY_PROTOCOL,):
        return ""
    numbers = [ICMPV6 if each == ICMP and version == 6 else each for each in protocols]
    found = f" meta l4proto {_set(map(str, numbers))}"
    if ports == EVERY_PORT:
        return found
    return f"{found} th dport {_set(_merged(ports))}"


def _merged(ports: Iterable[tuple[int, int]]) -> list[str]:
    """Ranges that overlap are one, since a set takes none that do."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ports):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return [str(first) if first == last else f"{first}-{last}" for first, last in merged]


def _set(elements: Iterable[str]) -> str:
    return f"{{ {', '.join(elements)} }}"


def _sources(guarded: Sequence[Guarded]) -> str:
    lines = []
    for version, (family, _) in FAMILIES.items():
        elements = [
            f"{source} : goto peer-{index}"
            for index, peer in enumerate(guarded)
            for source in peer.sources
            if source.version == version
        ]
        if elements:
            lines.append(f"        {family} saddr vmap {_set(elements)}\n")
    return "".join(lines)
