"""The DNS servers of the network beneath, asked directly: for the server's name, while everything is in the tunnel.

The system's resolver may be one that goes through the tunnel, or that the kill switch holds back. The workers' own
packets go around the tunnel, so a worker can ask the servers of the network itself. It does so if the resolver fails.

    uplink_servers()      the servers to ask
    look_up_around(...)   ask them
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.policy.server_addresses import ServerAddress
from pipeline.wire import dns

RESOLV_CONF = Path("/etc/resolv.conf")
BY_RESOLVED = Path("/run/systemd/resolve/resolv.conf")  # the servers behind its stub
BY_RESOLVCONF = (Path("/run/resolvconf/interface"), Path("/run/resolvconf/interfaces"))  # resolvconf, openresolv
OF_TUNNELS = "tun."  # records of resolvconf
BY_NETWORK_MANAGER = Path("/run/NetworkManager/conf.d")  # NetworkManager.conf(5)
NOTED = "#: "

SERVERS_MAX = 6
ANSWER_SECONDS = 2.0
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def uplink_servers() -> list[str]:
    """The files of those who know the network beneath come first; what they do not know, nobody does."""
    noted = BY_NETWORK_MANAGER.glob(network_manager_config("*").name)
    files = [*noted, BY_RESOLVED, *(path for place in BY_RESOLVCONF for path in _records(place)), RESOLV_CONF]
    found = [server for path in files for server in servers_in(read(path)) if not _is_loopback(server)]
    return list(dict.fromkeys(found))[:SERVERS_MAX]


def resolv_conf() -> str:
    return read(RESOLV_CONF)


def network_manager_config(instance_name: str) -> Path:
    """The file by which an instance gives NetworkManager other servers, with those of the network in comments."""
    return BY_NETWORK_MANAGER / f"tunnel-{instance_name}.conf"


def servers_in(resolv_conf: str) -> list[str]:
    """resolv.conf(5), and comments that begin with NOTED."""
    lines = (line.removeprefix(NOTED).split() for line in resolv_conf.splitlines())
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def look_up_around(host: str, port: int, servers: Sequence[str]) -> list[ServerAddress]:
    """The addresses of the first answer that has any; this may block for a while."""
    for server in servers:
        found = [address for version in FAMILIES for address in _ask(server, host, version)]
        if found:
            return [_sockaddr(str(address), port) for address in found]
    return []


def _ask(server: str, host: str, version: int) -> Iterable[object]:
    number = secrets.randbelow(1 << 16)
    try:
        family, *_, address = socket.getaddrinfo(server, dns.PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(ANSWER_SECONDS)
            sock.connect(address)  # an answer from elsewhere does not arrive
            sock.send(dns.question(number, host, version))
            return dns.addresses_in(sock.recv(dns.ANSWER_BYTES), number, version)
    except (OSError, ValueError):
        return []


def _sockaddr(address: str, port: int) -> ServerAddress:
    if ipaddress.ip_address(address).version == 4:
        return ServerAddress(socket.AF_INET, (address, port))
    return ServerAddress(socket.AF_INET6, (address, port, 0, 0))


def _is_loopback(server: str) -> bool:
    try:
        return ipaddress.ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return True  # no server at all


def _records(place: Path) -> list[Path]:
    try:
        return sorted(path for path in place.iterdir() if not path.name.startswith(OF_TUNNELS))
    except OSError:
        return []


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
