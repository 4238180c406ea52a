"""Reach in words for a person: an explanation, a refusal, and what an invited peer reaches. Pure.

An explanation asks the very Policy that is enforced (`pipeline.policy.reach`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.policy.reach import PeerFacts, Policy
from pipeline.policy.targets import (
    ANY_PROTOCOL,
    EVERY_PORT,
    GROUP,
    HUB,
    ICMP,
    ICMPV6,
    NETWORK,
    PEER,
    PROTOCOLS,
    TCP,
    UDP,
    WITH_PORTS,
    Address,
    Target,
    parse_target,
)

NAMES = {number: name for name, number in PROTOCOLS.items()} | {ICMPV6: "icmp"}
RULES_SHOWN = 8  # of a peer, in an explanation that none of them fits

BY_TUN = "it goes from peer to peer: the tun worker decides"
BY_NFT = "the hub's kernel decides: nftables"


class Explained(NamedTuple):
    """`may`: whether all of it passes; `lines`: why."""

    may: bool
    lines: list[str]


class Asked(NamedTuple):
    """Addresses that somebody asks about, and where they are. `where`: "" for beyond the hub, else a peer's name."""

    address: Address
    where: str


def question(text: str) -> Target:
    """A target as somebody asks about it: a port without a protocol is one of TCP."""
    target = parse_target(text)
    return parse_target(f"{text}/tcp") if target.protocols == (TCP, UDP) else target


def resolve(target: Target, peers: Sequence[PeerFacts], own: Sequence[Address]) -> list[Address]:
    """The addresses that a question is about. ValueError for a question about more than addresses."""
    if target.kind == NETWORK and target.network is not None and target.network.num_addresses == 1:
        return [target.network.network_address]
    if target.kind == HUB:
        return list(own)
    if target.kind in (GROUP, PEER):
        meant = [peer for peer in peers if target.name in (peer.groups if target.kind == GROUP else (peer.name,))]
        if found := [address for peer in meant for address in peer.addresses]:
            return found
        raise ValueError(f"a {target.kind} that has addresses; {target.name} has none")
    raise ValueError('one address and a port, such as "192.168.10.5:443/tcp", or peer:NAME, group:NAME, hub')


def explain(name: str, policy: Policy | None, target: Target, asked: Sequence[Asked], isolated: bool) -> Explained:
    """Whether a peer may begin this. `policy`: None if it has no rules; `isolated`: client_isolation is in force."""
    verdicts = [_explain_one(name, policy, target, each, isolated) for each in asked]
    return Explained(all(may for may, _ in verdicts), [line for _, lines in verdicts for line in lines])


def _explain_one(
    name: str, policy: Policy | None, target: Target, asked: Asked, isolated: bool
) -> tuple[bool, list[str]]:
    what = describe(asked.address, _service(target))
    of_peer = f", which is peer {asked.where}" if asked.where else ""
    how = BY_TUN if asked.where else BY_NFT
    if asked.where == name:
        return False, [f"{what} is {name}'s own: the hub sends a peer nothing of its own"]
    if asked.where and isolated:
        return False, [f"{name} may not reach {what}{of_peer}: client_isolation drops all packets between peers"]
    if policy is None:
        return True, [f"{name} may reach {what}{of_peer}: it may reach everything"]
    protocols = [ICMPV6 if each == ICMP and asked.address.version == 6 else each for each in target.protocols]
    found = [
        policy.find(asked.address, protocol, first, last) for protocol in protocols for first, last in target.ports
    ]
    rules = [rule for rule in found if rule is not None]
    if len(rules) == len(found):
        by = ", ".join(dict.fromkeys(rule.words for rule in rules))
        return True, [f"{name} may reach {what}{of_peer}, by {by}", how]
    about = policy.about(asked.address)
    if target.protocols == (ANY_PROTOCOL,) and about:
        by = ", ".join(rule.words for rule in about)
        return False, [f"{name} may reach {asked.address}{of_peer} in part, by {by}", how]
    shown = [rule.words for rule in policy.rules[:RULES_SHOWN]]
    more = len(policy.rules) - len(shown)
    has = ", ".join(shown) + (f" and {more} more" if more else "")
    return False, [
        f"{name} may not reach {what}{of_peer}: no rule of it names that. It has {has or 'no rule, so nothing'}",
        how,
    ]


def _service(target: Target) -> str:
    ports = "" if target.ports == EVERY_PORT else ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in target.ports)
    protocols = "" if target.protocols == (ANY_PROTOCOL,) else f"/{NAMES[target.protocols[0]]}"
    return (f":{ports}" if ports else "") + protocols


def describe(address: Address, service: str) -> str:
    return f"[{address}]{service}" if address.version == 6 and service.startswith(":") else f"{address}{service}"


def refused(address: Address, protocol: int, port: int) -> str:
    """The text of the event of a packet that was refused."""
    service = (
        f":{port}/{NAMES.get(protocol, protocol)}" if protocol in WITH_PORTS else f"/{NAMES.get(protocol, protocol)}"
    )
    return f"may not reach {describe(address, service)}"


def in_short(policy: Policy) -> str:
    """The targets of a peer, the first of many; "nothing" for none."""
    texts = [rule.target.text for rule in policy.rules]
    more = f" and {len(texts) - RULES_SHOWN} more" if len(texts) > RULES_SHOWN else ""
    return (", ".join(texts[:RULES_SHOWN]) or "nothing") + more


def about_invited(policy: Policy | None, isolated: bool) -> str:
    """A sentence for the operator who has invited a peer."""
    if policy is not None:
        others = "; client_isolation keeps it from other peers" if isolated else ""
        return f"the peer may reach {in_short(policy)}, and answers what others begin{others}"
    if isolated:
        return "the peer reaches what this server reaches, and no other peer: client_isolation is on"
    return "the peer reaches all other peers, and they reach it; --may-reach and --group limit that (docs/reach.md)"
