"""The name of the server: whether this machine can look it up, within a bounded time, and where it leads."""

from __future__ import annotations

import socket
import threading
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.routes import ways_to
from pipeline.doctor.subject import Subject
from pipeline.policy.kernel_entries import IPAddress
from pipeline.transport.failure_words import of_error

ANSWER_SECONDS = 3.0
RESOLVERS = Path("/etc/resolv.conf")
WHOSE = {"remote_addr": "server", "proxy": "proxy", "websocket": "web server"}
NO_ANSWER = "the DNS server does not answer"


class Lookup(NamedTuple):
    addresses: list[IPAddress]
    trouble: str = ""  # "" for none


def look_up(host: str, seconds: float = ANSWER_SECONDS) -> Lookup:
    """Ask the resolver, and do not wait for longer. The thread that asks ends by itself."""
    answers: list[Lookup] = []

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            answers.append(Lookup([], of_error(error) if isinstance(error, OSError) else "the name is invalid"))
            return
        texts = [str(address[0]).partition("%")[0] for *_, address in found]
        answers.append(Lookup(list(dict.fromkeys(map(ip_address, texts)))))

    thread = threading.Thread(target=ask, name="lookup", daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else Lookup([], NO_ANSWER)


def judge_name(
    host: str,
    found: Lookup,
    connected_to: list[IPAddress],
    resolvers_in_tunnel: list[str],
    setting: str = "remote_addr",
) -> list[Finding]:
    """`connected_to`: addresses of the connections that stand. `resolvers_in_tunnel`: DNS servers behind the tunnel.
    `setting`: that names this host."""
    whose = WHOSE[setting]
    if found.trouble:
        text = f"the {whose}'s name, {host}, cannot be looked up: {found.trouble}"
        if resolvers_in_tunnel:
            cure = (
                f"The DNS server {', '.join(resolvers_in_tunnel)} is reached through the tunnel: name one outside it, "
                f"or write the {whose}'s address into {setting}."
            )
        else:
            cure = f"Check the name in {setting} and the DNS server in /etc/resolv.conf, or write the address instead."
        return [problem(text, cure)]
    findings = [ok(f"{host} is {', '.join(map(str, found.addresses))}")]
    if connected_to and not set(connected_to) & set(found.addresses):
        listed = ", ".join(map(str, connected_to))
        text = f"{host} leads elsewhere by now than to {listed}, where the connections go"
        findings.append(note(text, f"If the {whose} has moved: tunnel-supervisor restart."))
    if resolvers_in_tunnel:
        findings.append(
            note(
                f"the DNS server {', '.join(resolvers_in_tunnel)} is reached through the tunnel: while the tunnel is "
                f"down, {host} cannot be looked up",
                f"Write the {whose}'s address into {setting}, or its name into /etc/hosts.",
            )
        )
    return findings


def resolvers_in(subject: Subject) -> list[str]:
    """The DNS servers of this machine that are reached through the tunnel."""
    try:
        lines = RESOLVERS.read_text().splitlines()
    except OSError:
        return []
    listed = []
    for words in map(str.split, lines):
        if len(words) > 1 and words[0] == "nameserver":
            try:
                listed.append(ip_address(words[1].partition("%")[0]))
            except ValueError:
                continue
    ways = ways_to(ip_network(address) for address in listed)
    return [str(network.network_address) for network, way in ways if way is not None and way.device == subject.tun_name]
