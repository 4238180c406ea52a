"""The firewall (nftables): our own table, which should be there, and rules of others that drop packets of the tunnel.

Chains of iptables-nft are among them; those of iptables-legacy are not seen.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.programs import run_program
from pipeline.doctor.subject import Subject
from pipeline.policy.carrier_order import KINDS, Kind
from pipeline.supervisor.instance import find_instances
from pipeline.supervisor.kernel import nft
from pipeline.supervisor.kernel.hub_nat import HubNat
from pipeline.supervisor.kernel.kill_switch import KillSwitch, guarded_instance
from pipeline.supervisor.kernel.reach_table import ReachTable
from pipeline.version import NAME

DROPS = ("drop", "reject")
HOOKS = ("input", "forward", "output")
NFT_SECONDS = 3.0


class Chain(NamedTuple):
    """A base chain of another's: a hook, and what becomes of packets that no rule decides about."""

    where: str  # table and chain, as nft names them
    hook: str
    drops: bool  # by its policy
    accepting: frozenset[str]  # devices and ports that a rule with a verdict of accept or jump names
    dropping: frozenset[str]  # devices that a rule with a verdict of drop or reject names
    accepting_udp: frozenset[str] = frozenset()  # of `accepting`, what is not of a rule for TCP alone


def firewall(subject: Subject) -> list[Finding]:
    config = subject.config
    if config is None or not subject.runs:
        return []
    ruleset = run_program(["nft", "-j", "list", "ruleset"], NFT_SECONDS)
    if ruleset is None:
        return _without_nft(config.mss_clamp)
    own = f"tunnel-{config.name}"
    reach = ReachTable(("", 0), config.name).table
    nat, guard = (kind("", config.name).table for kind in (HubNat, KillSwitch))
    entries = json.loads(ruleset).get("nftables", [])
    port = config.listen_endpoint.port if subject.is_server else 0
    forwards = bool(subject.is_server and (config.push_routes or config.nat))
    return [
        *judge_own_table(own, config.mss_clamp, _has_table(entries, own), subject.tun_name),
        *judge_reach_table(reach, _has_rules(subject), _has_table(entries, reach)),
        *judge_nat_table(nat, config.nat, _has_table(entries, nat)),
        *judge_kill_switch(guard, (subject.snapshot or {}).get("full_tunnel"), _has_table(entries, guard)),
        *judge_chains(
            chains_of(entries, own),
            subject.tun_name,
            port,
            forwards=forwards,
            datagrams=Kind.UDP in KINDS[config.carrier],
            fake_tcp=config.fake_tcp_port_beside(port) if port and Kind.FAKE_TCP in KINDS[config.carrier] else 0,
        ),
    ]


def left_shut(subject: Subject) -> list[Finding]:
    """Kill switches of instances that do not run: then this machine reaches nothing but its LAN."""
    shut = [name for table in nft.tables() if (name := guarded_instance(table))]
    return judge_left_shut(shut, find_instances().running) if shut else []


def judge_left_shut(shut: Iterable[str], running: Collection[str]) -> list[Finding]:
    return [
        problem(
            f"the kill switch of {name} is shut, and {name} does not run: this machine reaches nothing but its LAN",
            f"Start it, or open the kill switch: {NAME} down {name}.",
        )
        for name in shut
        if name not in running
    ]


def _without_nft(mss_clamp: bool) -> list[Finding]:
    if not mss_clamp:
        return []
    return [
        note("the firewall cannot be read: nft is missing or fails", "Install nftables, or set mss_clamp to false.")
    ]


def _has_table(entries: Iterable[Mapping[str, Any]], name: str) -> bool:
    return any(entry.get("table", {}).get("name") == name for entry in entries)


def judge_own_table(name: str, wanted: bool, is_there: bool, tun: str) -> list[Finding]:
    if not wanted:
        return []
    if is_there:
        return [ok(f"the table inet {name} limits the segments of forwarded connections")]
    return [
        problem(
            f"the table inet {name} is missing: TCP that is forwarded through {tun} may hang",
            "tunnel-supervisor reload puts it back; if it goes again, find the program that flushes the firewall.",
        )
    ]


def _has_rules(subject: Subject) -> bool:
    """Whether any peer has rules of reach, as a running server tells."""
    return any(peer.get("may_reach") is not None for peer in subject.peers or ())


def judge_reach_table(name: str, wanted: bool, is_there: bool) -> list[Finding]:
    if not wanted:
        return []
    if is_there:
        return [ok(f"the table inet {name} has the rules of who may reach what")]
    return [
        problem(
            f"the table inet {name} is missing: peers with rules reach nothing but other peers",
            "tunnel-supervisor reload puts it back; if it goes again, find the program that flushes the firewall.",
        )
    ]


def judge_nat_table(name: str, wanted: bool, is_there: bool) -> list[Finding]:
    if not wanted:
        return []
    if is_there:
        return [ok(f"the table inet {name} gives packets of clients this machine's address")]
    return [
        problem(
            f"the table inet {name} is missing: clients reach only networks that know the way back to the tunnel",
            "tunnel-supervisor reload puts it back; if it goes again, find the program that flushes the firewall.",
        )
    ]


def judge_kill_switch(name: str, full_tunnel: Mapping[str, Any] | None, is_there: bool) -> list[Finding]:
    """`full_tunnel`: as `status --json` has it."""
    if not (full_tunnel and full_tunnel["on"]):
        return []
    if not full_tunnel["kill_switch"]:
        return [
            note(
                "there is a full tunnel without a kill switch: packets may leave around it when the instance dies",
                "Set kill_switch to true.",
            )
        ]
    if is_there:
        return [ok(f"the kill switch is shut: table inet {name}")]
    return [
        problem(
            f"the kill switch is gone: the table inet {name} is missing",
            "tunnel-supervisor reload puts it back; if it goes again, find the program that flushes the firewall.",
        )
    ]


def chains_of(entries: Iterable[Mapping[str, Any]], own: str) -> list[Chain]:
    """The base chains of all tables but ours that look at packets of input, forward or output."""
    chains: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    accepting: dict[tuple[str, str, str], set[str]] = {}
    accepting_udp: dict[tuple[str, str, str], set[str]] = {}
    dropping: dict[tuple[str, str, str], set[str]] = {}
    for entry in entries:
        if (
            (chain := entry.get("chain")) is not None
            and chain.get("hook") in HOOKS
            and not _is_own(chain["table"], own)
        ):
            chains[chain["family"], chain["table"], chain["name"]] = chain
        if (rule := entry.get("rule")) is not None:
            key = rule["family"], rule["table"], rule["chain"]
            into = dropping if any(verdict in part for part in rule["expr"] for verdict in DROPS) else accepting
            into.setdefault(key, set()).update(_named(rule["expr"]))
            if into is accepting and not _is_of_tcp(rule["expr"]):
                accepting_udp.setdefault(key, set()).update(_named(rule["expr"]))
    return [
        Chain(
            f"{key[0]} {key[1]} {key[2]}",
            chain["hook"],
            chain.get("policy") == "drop",
            frozenset(accepting.get(key, ())),
            frozenset(dropping.get(key, ())),
            frozenset(accepting_udp.get(key, ())),
        )
        for key, chain in chains.items()
    ]


def _is_own(table: str, own: str) -> bool:
    return table.partition("/")[0] == own


def _named(expressions: Iterable[Any]) -> set[str]:
    """The devices and ports that a rule compares with; "*" stands for a rule without any comparison."""
    named: set[str] = set()
    compares = False
    for part in expressions:
        match = part.get("match") if isinstance(part, dict) else None
        if match is None or match.get("op", "==") == "!=":
            continue
        compares = True
        left = match.get("left", {})
        if not isinstance(left, dict):
            continue
        key = left.get("meta", {}).get("key") or left.get("payload", {}).get("field", "")
        if key in ("iifname", "oifname", "iif", "oif", "dport"):
            named |= set(map(str, _flat(match.get("right"))))
    return named if compares else {"*"}


def _is_of_tcp(expressions: Iterable[Any]) -> bool:
    """Whether a rule compares with a field of TCP, or with that protocol alone."""
    for part in expressions:
        match = part.get("match", {}) if isinstance(part, dict) else {}
        left = match.get("left", {})
        if isinstance(left, dict) and left.get("payload", {}).get("protocol") == "tcp":
            return True
        if isinstance(left, dict) and _is_protocol(left) and set(map(str, _flat(match.get("right")))) <= {"tcp", "6"}:
            return True
    return False


def _is_protocol(left: Mapping[str, Any]) -> bool:
    key = left.get("meta", {}).get("key") or left.get("payload", {}).get("field", "")
    return key in ("l4proto", "protocol", "nexthdr")


def _flat(right: Any) -> list[Any]:
    """The values on the right side of a comparison, those of a set too."""
    if isinstance(right, dict):
        return [value for each in right.get("set", []) for value in _flat(each)]
    if isinstance(right, list):
        return [value for each in right for value in _flat(each)]
    return [right]


def judge_chains(
    chains: Iterable[Chain], tun: str, port: int, *, forwards: bool, datagrams: bool = False, fake_tcp: int = 0
) -> list[Finding]:
    """`port`: on which a server listens, 0 at a client. `forwards`: this end passes packets on. `datagrams`: blocks may
    come in them. `fake_tcp`: the port of a server for datagrams behind TCP headers, 0 if there is none."""
    found = []
    for chain in chains:
        if tun in chain.dropping:
            text = f"a rule in {chain.where} drops packets of {tun} ({chain.hook})"
            found.append(problem(text, f"Look at `nft list chain {chain.where}`, and remove or narrow that rule."))
        if not chain.drops or "*" in chain.accepting:
            continue
        if chain.hook == "forward" and forwards and tun not in chain.accepting:
            text = f"{chain.where} drops what it does not accept, and names {tun} nowhere: forwarding may fail"
            found.append(
                note(text, f"Accept it there: nft insert rule {chain.where} iifname {tun} accept, and oifname.")
            )
        if chain.hook == "input" and port and str(port) not in chain.accepting:
            text = f"{chain.where} drops what it does not accept, and names port {port} nowhere"
            found.append(note(text, f"Accept it there: nft insert rule {chain.where} tcp dport {port} accept."))
        if chain.hook == "input" and fake_tcp and str(fake_tcp) not in chain.accepting:
            text = f"{chain.where} drops what it does not accept, and names port {fake_tcp} of fake TCP nowhere"
            found.append(note(text, f"Accept it there: nft insert rule {chain.where} tcp dport {fake_tcp} accept."))
        if chain.hook == "input" and port and datagrams and str(port) not in chain.accepting_udp:
            text = f"{chain.where} drops what it does not accept, and names UDP port {port} nowhere: no datagram comes"
            found.append(note(text, f"Accept it there: nft insert rule {chain.where} udp dport {port} accept."))
    return found or [ok(f"no rule of the firewall drops packets of {tun}")]
