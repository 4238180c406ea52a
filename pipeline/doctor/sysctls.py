"""The settings of the kernel's network: reverse path filter, forwarding, congestion control, queue of connections."""

from __future__ import annotations

import os
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

from pipeline.config.values import parse_prefix
from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.routes import Way, ways_to
from pipeline.doctor.subject import Subject
from pipeline.policy.congestion import AUTO, COST_OF_LOSS, LOSSY, algorithm, cure
from pipeline.policy.kernel_entries import Network

NET = Path("/proc/sys/net")
MODULES = Path("/lib/modules")
LISTEN_BACKLOG = 4096  # pipeline.supervisor.kernel.listener
STRICT, LOOSE = 1, 2  # of rp_filter (ip-sysctl)
SOMEWHERE = ip_network("198.51.100.0/24")  # for documentation (RFC 5737): its route is that of the Internet


def read_words(name: str) -> list[str]:
    """The words of a sysctl below net; none if it is not there."""
    try:
        return (NET / name).read_text().split()
    except OSError:
        return []


def read_number(name: str) -> int:
    """The number of a sysctl below net; 0 if it is not there."""
    words = read_words(name)
    return int(words[0]) if words and words[0].isdigit() else 0


# -- reverse path filter


def reverse_path(subject: Subject) -> list[Finding]:
    """Packets that come out of the tunnel are dropped if the way back to their source leads elsewhere."""
    networks = [each for each in _beyond(subject) if each.version == 4]
    if not subject.runs:
        return []
    tun = subject.tun_name
    strength = max(read_number("ipv4/conf/all/rp_filter"), read_number(f"ipv4/conf/{tun}/rp_filter"))
    return judge_reverse_path(tun, strength, ways_to(networks))


def _beyond(subject: Subject) -> list[Network]:
    """Networks whose packets come out of the tunnel, or may."""
    texts = [text for peer in subject.peers or () for text in (*peer["allowed"], *peer["addresses"])]
    left_out = (subject.snapshot or {}).get("left_out", [])
    texts += [row["entry"] for row in left_out if row["kind"] == "route"]
    if subject.config is not None:
        texts += subject.config.routes
    return list(dict.fromkeys(map(parse_prefix, map(_with_length, texts))))


def _with_length(text: str) -> str:
    return text if "/" in text else f"{text}/{128 if ':' in text else 32}"


def judge_reverse_path(tun: str, strength: int, ways: Sequence[tuple[Network, Way | None]]) -> list[Finding]:
    """`strength`: rp_filter in force on the device."""
    found = []
    for network, way in ways:
        leads = f"the way back leads to {way.device}" if way is not None else "there is no way back"
        is_dropped = strength == STRICT and (way is None or way.device != tun)
        if is_dropped or (strength == LOOSE and way is None):
            found.append(
                problem(
                    f"rp_filter drops packets from {network} that come out of {tun}: {leads}",
                    f"Set net.ipv4.conf.{tun}.rp_filter and net.ipv4.conf.all.rp_filter to 0 (sysctl -w), or add "
                    f"{network} to `routes`.",
                )
            )
    return found or [ok(f"rp_filter ({strength}) drops nothing that the tunnel brings")]


def uplink_reverse_path(subject: Subject) -> list[Finding]:
    """With the Internet behind the tunnel, hosts that reach this machine by its uplink are not answered there."""
    if not (subject.is_client and subject.runs):
        return []
    hosts = {row["address"].rpartition(":")[0].strip("[]") for row in subject.established}
    servers = [ip_network(host.partition("%")[0]) for host in hosts]
    way_to_server = next((way for _, way in ways_to(servers) if way is not None), None)
    (_, way_out), *_ = ways_to([SOMEWHERE])
    if way_to_server is None or way_out is None or way_out.device != subject.tun_name:
        return []
    uplink = way_to_server.device
    strength = max(read_number("ipv4/conf/all/rp_filter"), read_number(f"ipv4/conf/{uplink}/rp_filter"))
    return judge_uplink(uplink, subject.tun_name, strength)


def judge_uplink(uplink: str, tun: str, strength: int) -> list[Finding]:
    if strength != STRICT or uplink == tun:
        return []
    return [
        note(
            f"the Internet is reached through {tun}, so rp_filter drops connections from it that arrive on {uplink}",
            f"Where this machine serves the Internet by {uplink}: sysctl -w net.ipv4.conf.{uplink}.rp_filter=2.",
        )
    ]


# -- forwarding


def forwarding(subject: Subject) -> list[Finding]:
    """A server that sends its clients to networks behind it has to forward. With `nat` it does so while it runs."""
    config = subject.config
    if config is None or not subject.is_server or not (config.push_routes or (config.nat and subject.runs)):
        return []
    if config.nat and not subject.runs:
        return [ok("nat switches forwarding on at the start")]
    beyond = [SOMEWHERE] if config.nat and not config.push_routes else config.push_prefixes
    found: list[Finding] = []
    for network, way in ways_to(beyond):
        if way is not None and way.is_local:
            continue  # an address of this machine itself
        devices = [subject.tun_name if subject.runs else "default", *([way.device] if way is not None else [])]
        off = [device for device in dict.fromkeys(devices) if not _forwards(device, network.version)]
        found += judge_forwarding(network, off)
    return found or [ok("this machine forwards what its clients are sent to")]


def _forwards(device: str, version: int) -> bool:
    return bool(read_number(f"ipv{version}/conf/{device}/forwarding"))


def judge_forwarding(network: Network, off: Sequence[str]) -> list[Finding]:
    """`off`: the devices on the way that do not forward."""
    if not off:
        return []
    setting = "net.ipv4.ip_forward" if network.version == 4 else "net.ipv6.conf.all.forwarding"
    return [
        problem(
            f"clients are sent to {network} through this machine, which does not forward on {', '.join(off)}",
            f"Let it forward: sysctl -w {setting}=1, and write that into /etc/sysctl.d/.",
        )
    ]


# -- TCP


class Congestion(NamedTuple):
    wanted: str  # the setting
    default: str
    available: tuple[str, ...]  # none: this kernel does not tell
    loadable: bool  # a start would load what is wanted


def congestion(subject: Subject) -> list[Finding]:
    default = " ".join(read_words("ipv4/tcp_congestion_control")) or "unknown"
    available = tuple(read_words("ipv4/tcp_available_congestion_control"))
    wanted = subject.config.congestion if subject.config is not None else AUTO
    loadable = not subject.runs and _module_exists(LOSSY if wanted == AUTO else wanted)
    return [judge_congestion(Congestion(wanted, default, available, loadable))]


def _module_exists(name: str) -> bool:
    try:
        return f"/tcp_{name}.ko" in (MODULES / os.uname().release / "modules.dep").read_text()
    except OSError:
        return False


def judge_congestion(found: Congestion) -> Finding:
    """Whether a process may choose an algorithm does not matter: the supervisor sets what workers may not."""
    automatic = found.wanted == AUTO
    wanted = LOSSY if automatic else found.wanted
    there = found.loadable or not found.available or wanted in found.available
    if not automatic:
        if not wanted or there:
            return ok(f"congestion control is {wanted or found.default}")
        return problem(
            f"congestion control {wanted} is not there, so connections use {found.default}",
            f"Load its module (modprobe tcp_{wanted}), or set congestion to one of {', '.join(found.available)}.",
        )
    calm = algorithm(found.default, lossy=False)
    if there:
        return ok(f"congestion control is {calm}, and {wanted} while a path loses packets")
    return note(f"congestion control is {calm}, as {wanted} is not there: {COST_OF_LOSS}", cure(wanted))


def backlog(subject: Subject) -> list[Finding]:
    if not subject.is_server:
        return []
    return judge_backlog(read_number("core/somaxconn"))


def judge_backlog(allowed: int) -> list[Finding]:
    if not allowed or allowed >= LISTEN_BACKLOG:
        return []
    return [
        note(
            f"net.core.somaxconn is {allowed}: a flood of connections keeps new clients out sooner",
            f"Raise it: sysctl -w net.core.somaxconn={LISTEN_BACKLOG}.",
        )
    ]
