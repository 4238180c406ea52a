"""The table of checks, and an examination: all of them side by side, within a bounded time.

A check that fails, or takes too long, is a note of its own and costs no other.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.doctor import (
    clock,
    datagrams,
    ends,
    fallback,
    files,
    firewall,
    machine,
    names,
    ordering,
    path,
    port,
    proxy,
    receive_offload,
    routes,
    servers,
    sysctls,
    uplinks,
)
from pipeline.doctor.finding import Finding, Level, note
from pipeline.doctor.subject import Subject
from pipeline.errors import TunnelError
from pipeline.policy.kernel_entries import IPAddress

SECONDS = 9.0

Look = Callable[[Subject], list[Finding]]


class Check(NamedTuple):
    """`network`: it looks at the network namespace that this process is in. `start`: it tells whether a start would
    succeed, so the command `check` makes it, too."""

    name: str
    looks_at: str
    look: Look
    network: bool = False
    start: bool = False


def _server_name(subject: Subject) -> list[Finding]:
    config = subject.config
    if config is None or not subject.is_client:
        return []
    hosts = [each.host for each in config.dialed_endpoints if each.address is None]
    connected_to = routes.server_addresses(subject) if len(config.dialed) == 1 else []
    resolvers = names.resolvers_in(subject)
    settings = {"proxy": config.named_proxy, "websocket": config.named_websocket}
    setting = next((name for name, url in settings.items() if url is not None), "remote_addr")
    found = []
    for host in hosts:
        found += names.judge_name(host, names.look_up(host), connected_to, resolvers, setting)
    return found


def _way_to_server(subject: Subject) -> list[Finding]:
    return routes.loop(subject, _addresses(subject))


def _uplinks(subject: Subject) -> list[Finding]:
    return uplinks.look(subject, _addresses(subject))


def _path_to_server(subject: Subject) -> list[Finding]:
    if subject.config is None or subject.config.way_text:
        return []  # a proxy understands nothing but its own protocol
    return path.outside(subject, _addresses(subject))


def _addresses(subject: Subject) -> list[IPAddress]:
    """Of a client's server, or of the proxy to it, looked up if need be."""
    if not subject.is_client or subject.config is None:
        return []
    found = routes.server_addresses(subject)
    if not found and subject.config.dialed_endpoints:
        found = names.look_up(subject.config.dialed_endpoints[0].host).addresses
    return found


CHECKS = (
    Check("processor", "the architecture of this machine", ordering.processor, start=True),
    Check("instance", "whether it works, and how well", ends.instance),
    Check("notes", "what the instance itself notes", ends.notes),
    Check("unapplied", "settings in the file that the instance has not read", ends.unapplied),
    Check("tun", "/dev/net/tun", machine.tun, start=True),
    Check("rights", "the capabilities of the caller", machine.rights),
    Check("user", "the user of the workers", machine.user),
    Check("shared memory", "the size of /dev/shm", machine.shared_memory, start=True),
    Check("offloads", "super-packets of the device", machine.offloads, network=True),
    Check("clock", "the clock, and that of the server", clock.clock),
    Check("files", "keys, certificates and peers", files.contents),
    Check("expiry", "how long certificates hold", files.expiry, start=True),
    Check("state", "the state directory", files.state_directory, start=True),
    Check("unit", "whether the service starts with the machine", files.unit),
    Check("port", "whether the port is free, and who has it", port.port, network=True, start=True),
    Check(
        "name",
        "the name of the server, or of its proxy, in DNS",
        _server_name,
        network=True,
        start=True,
    ),
    Check("proxy", "whether the proxy connects with the server", proxy.proxy, network=True, start=True),
    Check("web server", "whether it answers, and in which protocol", fallback.fallback, network=True, start=True),
    Check("servers", "each of several servers", servers.servers, network=True, start=True),
    Check("way", "the route to the server", _way_to_server, network=True),
    Check("uplinks", "each of several uplinks", _uplinks, network=True, start=True),
    Check("overlaps", "devices and networks like ours", routes.overlaps, network=True, start=True),
    Check("rp_filter", "the reverse path filter of the device", sysctls.reverse_path, network=True),
    Check("uplink", "the reverse path filter of the uplink", sysctls.uplink_reverse_path, network=True),
    Check("forwarding", "whether this machine forwards", sysctls.forwarding, network=True),
    Check("congestion", "the congestion control", sysctls.congestion, network=True),
    Check("backlog", "how many connections may wait", sysctls.backlog, network=True),
    Check("firewall", "rules of nftables", firewall.firewall, network=True),
    Check("kill switch", "kill switches of instances that do not run", firewall.left_shut, network=True),
    Check("datagrams", "whether blocks travel in them", datagrams.datagrams),
    Check("LRO", "devices that join segments for fake TCP", receive_offload.receive_offload, network=True, start=True),
    Check("path", "long packets on the way to the server", _path_to_server, network=True),
    Check("tunnel", "long packets through the tunnel", path.inside, network=True),
    Check("versions", "the programs of both ends", ends.versions),
    Check("settings", "mtu and fec of both ends", ends.settings),
)

Findings = list[tuple[str, Finding]]
"""Each with the name of its check."""


def examine(subject: Subject, checks: Sequence[Check] = CHECKS, seconds: float = SECONDS) -> Findings:
    """The findings in the order of the table."""
    here = subject.is_in_our_network
    wanted = [check for check in checks if here or not check.network]
    answers: queue.SimpleQueue[tuple[Check, list[Finding]]] = queue.SimpleQueue()
    for check in wanted:
        threading.Thread(target=_make, args=(check, subject, answers), name=check.name, daemon=True).start()
    made: dict[str, list[Finding]] = {}
    until = time.monotonic() + seconds
    while len(made) < len(wanted) and (left := until - time.monotonic()) > 0:
        try:
            check, findings = answers.get(timeout=left)
        except queue.Empty:
            break
        made[check.name] = findings
    late = [note(f"this look has not ended within {seconds:g} s", "Run it again on a quieter machine.")]
    found = [(check.name, finding) for check in wanted for finding in made.get(check.name, late)]
    if not here and subject.snapshot is not None:
        cure = f"Run it there: nsenter --net --target {subject.snapshot['pid']} tunnel-supervisor doctor."
        found.append(("network", note("the instance is in another network namespace, which is not looked at", cure)))
    return found


def _make(check: Check, subject: Subject, answers: queue.SimpleQueue[tuple[Check, list[Finding]]]) -> None:
    try:
        findings = check.look(subject)
    except TunnelError as error:
        findings = [note(f"this look has failed: {error}", "Mend that, and run it again.")]
    except Exception as error:
        findings = [note(f"this look has failed: {type(error).__name__}: {error}", "Report it: it is our mistake.")]
    answers.put((check, findings))


def worst(findings: Findings) -> Level:
    levels = [finding.level for _, finding in findings]
    return next((level for level in (Level.PROBLEM, Level.NOTE) if level in levels), Level.OK)
