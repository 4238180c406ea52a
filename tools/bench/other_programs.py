"""Other programs of this kind, as contenders of `bench peers`: OpenVPN, WireGuard, fastd.

Each has a function that opens it. It makes keys and configurations, starts both ends, waits for a ping, and stops them
when its block ends. PROGRAMS is the table. They run with their defaults; where a program demands a choice, it is that
of its own manual.

    OpenVPN        a server and a client in TLS mode, with certificates of a CA made for this run. Configurations
                   come by standard input. It takes the kernel's data channel offload (DCO) by itself if it is there
    wireguard-go   Each has a file system of its own at /run, for its socket. Keys go through that socket
    WireGuard      the kernel's device. The kernel may load its module for it, which stays loaded
    fastd          two peers in tun mode, with the method and the MTU of its manual
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.credentials.certificates import CertificatePair, issue, make_ca
from pipeline.credentials.key_exchange import new_private, public_of
from tools.bench.contenders import Contender, Daemon, Opened, Site, Start, expect_running, running, wait_for_ping
from tools.bench.peers_report import OTHER
from tools.bench.programs import NotHere, Programs
from tools.lab.namespace import LabError
from tools.lab.network import Node
from tools.lab.waiting import until

DEVICE = "other0"
SERVER, CLIENT = (ipaddress.IPv4Interface(f"10.79.0.{number}/24") for number in (1, 2))
ANSWER_SECONDS = 5.0
START_SECONDS = 10.0

WIREGUARD_MTU = 1420  # wg-quick(8): that of the path less 80
FASTD_MTU = 1426  # its manual, for IPv4 in paths of 1492 bytes and more
FASTD_METHOD = "salsa2012+umac"  # recommended by its manual

OWN_RUN_FOLDER = ("unshare", "--mount", "--", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh")
"""Words in front of a command that puts sockets into /run: they are gone with the process, however it ends."""


class End(NamedTuple):
    """Of two that know each other by their keys."""

    node: Node
    inside: ipaddress.IPv4Interface
    port: int
    private: bytes
    public: bytes


# -- OpenVPN


def open_openvpn(transport: str) -> Callable[[Site], AbstractContextManager[Opened]]:
    """`transport`: "udp" or "tcp"."""

    @contextmanager
    def opened(site: Site) -> Iterator[Opened]:
        ca = make_ca("bench peers")
        pairs = [issue(ca, name, server=name == "server") for name in ("server", "client")]
        port = site.server.free_port(socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM)
        configurations = (
            openvpn_server(transport, site.server.address, port, ca.certificate, pairs[0]),
            openvpn_client(transport, site.server.address, port, ca.certificate, pairs[1]),
        )
        starts = [
            Start(node, ["openvpn", "--config", "stdin"], configuration)
            for node, configuration in zip((site.server, site.client), configurations, strict=True)
        ]
        with running(site.programs, *starts) as daemons:
            wait_for_ping(site, str(SERVER.ip), daemons)
            yield Opened(str(SERVER.ip), openvpn_note(daemons[1].log))

    return opened


def openvpn_server(transport: str, address: str, port: int, ca: bytes, pair: CertificatePair) -> str:
    protocol = "tcp-server" if transport == "tcp" else "udp"
    return (
        f"verb 3\ndev {DEVICE}\ndev-type tun\ntopology subnet\nproto {protocol}\nlocal {address}\nport {port}\n"
        f"server {SERVER.network.network_address} {SERVER.netmask}\nkeepalive 10 60\ndh none\n"
    ) + _inline(ca, pair)


def openvpn_client(transport: str, address: str, port: int, ca: bytes, pair: CertificatePair) -> str:
    protocol = "tcp-client" if transport == "tcp" else "udp"
    return (
        f"client\nverb 3\ndev {DEVICE}\ndev-type tun\nproto {protocol}\nremote {address} {port}\nnobind\n"
        "remote-cert-tls server\nconnect-retry 1 5\n"
    ) + _inline(ca, pair)


def openvpn_note(log: str) -> str:
    """The way of its packets, and the cipher that both ends agreed on, by its own log of level 3."""
    cipher = re.search(r"Data Channel: [Cc]ipher '([^']+)'", log)
    way = "DCO" if re.search(r"DCO device \S+ opened", log) else "no DCO"
    return ", ".join([way, *([cipher[1]] if cipher else [])])


def _inline(ca: bytes, pair: CertificatePair) -> str:
    parts = {"ca": ca, "cert": pair.certificate, "key": pair.key}
    return "".join(f"<{name}>\n{pem.decode().strip()}\n</{name}>\n" for name, pem in parts.items())


# -- WireGuard


@contextmanager
def open_wireguard_go(site: Site) -> Iterator[Opened]:
    ends = _wireguard_ends(site)
    starts = [Start(end.node, ["wireguard-go", "--foreground", DEVICE], wrap=OWN_RUN_FOLDER) for end in ends]
    with running(site.programs, *starts) as daemons:
        for daemon, end, other in zip(daemons, ends, reversed(ends), strict=True):
            _ask_wireguard_go(daemon, wireguard_request(end, other, client=end is ends[1]))
            _set_up(end, WIREGUARD_MTU)
        wait_for_ping(site, str(SERVER.ip), daemons)
        yield Opened(str(SERVER.ip))


def wireguard_request(end: End, other: End, *, client: bool) -> str:
    """What tells wireguard-go its keys (the "cross-platform userspace implementation" protocol of WireGuard)."""
    lines = {
        "private_key": end.private.hex(),
        "listen_port": end.port,
        "replace_peers": "true",
        "public_key": other.public.hex(),
        **({"endpoint": f"{other.node.address}:{other.port}"} if client else {}),
        "allowed_ip": f"{other.inside.ip}/32",
    }
    return "set=1\n" + "".join(f"{key}={value}\n" for key, value in lines.items()) + "\n"


def _ask_wireguard_go(daemon: Daemon, request: str) -> None:
    """Its socket is in a mount namespace of its own, which /proc shows."""
    path = Path(f"/proc/{daemon.process.pid}/root/run/wireguard/{DEVICE}.sock")

    def listens() -> bool:
        expect_running([daemon])
        return path.exists()

    until(listens, "the socket of wireguard-go", START_SECONDS)
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(ANSWER_SECONDS)
        control.connect(str(path))
        control.sendall(request.encode())
        with control.makefile() as answer:
            said = answer.readline().strip()
    if said != "errno=0":
        raise LabError(f"wireguard-go: expected errno=0 to its configuration, got {said!r}")


@contextmanager
def open_wireguard_kernel(site: Site) -> Iterator[Opened]:
    ends = _wireguard_ends(site)
    added: list[End] = []
    try:
        for end, other in zip(ends, reversed(ends), strict=True):
            made = end.node.run(["ip", "link", "add", DEVICE, "type", "wireguard"], check=False)
            if made.returncode != 0:
                raise NotHere(f"this kernel has no WireGuard: {made.stderr.strip()}")
            added.append(end)
            end.node.run(
                [*site.programs.argv("wg"), "setconf", DEVICE, "/dev/stdin"],
                input=wireguard_file(end, other, client=end is ends[1]),
                env=site.programs.environment(),
            )
            _set_up(end, WIREGUARD_MTU)
        wait_for_ping(site, str(SERVER.ip))
        yield Opened(str(SERVER.ip))
    finally:
        for end in added:
            end.node.ip(f"link del {DEVICE}")


def wireguard_file(end: End, other: End, *, client: bool) -> str:
    """A configuration of wg(8), in which keys are base64."""
    peer = f"Endpoint = {other.node.address}:{other.port}\n" if client else ""
    return (
        f"[Interface]\nPrivateKey = {_base64(end.private)}\nListenPort = {end.port}\n"
        f"[Peer]\nPublicKey = {_base64(other.public)}\nAllowedIPs = {other.inside.ip}/32\n{peer}"
    )


def _wireguard_ends(site: Site) -> list[End]:
    return _ends(site, lambda: (private := new_private(), public_of(private)))


# -- fastd


@contextmanager
def open_fastd(site: Site) -> Iterator[Opened]:
    def new_pair() -> tuple[bytes, bytes]:
        secret = site.programs.say("fastd", "--generate-key", "--machine-readable").strip()
        public = site.programs.say(
            "fastd", "--config", "-", "--show-key", "--machine-readable", given=f'secret "{secret}";\n'
        )
        return bytes.fromhex(secret), bytes.fromhex(public.strip())

    ends = _ends(site, new_pair)
    starts = [
        Start(end.node, ["fastd", "--config", "-"], fastd_file(end, other, client=end is ends[1]))
        for end, other in zip(ends, reversed(ends), strict=True)
    ]
    with running(site.programs, *starts) as daemons:
        for daemon, end in zip(daemons, ends, strict=True):
            until(partial(_has_device, daemon, end.node), f"fastd's {DEVICE}", START_SECONDS)
            _set_up(end, FASTD_MTU)
        wait_for_ping(site, str(SERVER.ip), daemons)
        yield Opened(str(SERVER.ip), FASTD_METHOD)


def fastd_file(end: End, other: End, *, client: bool) -> str:
    remote = f"  remote {other.node.address}:{other.port};\n" if client else ""
    return (
        f'interface "{DEVICE}";\nmode tun;\nmtu {FASTD_MTU};\nmethod "{FASTD_METHOD}";\n'
        f'bind {end.node.address}:{end.port};\nsecret "{end.private.hex()}";\n'
        f'peer "other" {{\n  key "{other.public.hex()}";\n{remote}}}\n'
    )


# -- of all


def _ends(site: Site, new_pair: Callable[[], tuple[bytes, bytes]]) -> list[End]:
    """The server's and the client's, with new keys and UDP ports that are free."""
    return [
        End(node, inside, node.free_port(socket.SOCK_DGRAM), *new_pair())
        for node, inside in ((site.server, SERVER), (site.client, CLIENT))
    ]


def _set_up(end: End, mtu: int) -> None:
    end.node.ip(f"link set {DEVICE} mtu {mtu} up", f"address add {end.inside} dev {DEVICE}")


def _has_device(daemon: Daemon, node: Node) -> bool:
    expect_running([daemon])
    return DEVICE in node.devices()


def _base64(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _first_words(command: str, argument: str, pattern: str) -> Callable[[Programs], str]:
    """What a command says about its version."""

    def version(programs: Programs) -> str:
        found = re.search(pattern, programs.say(command, argument))
        return found[1] if found else ""

    return version


def _kernel(programs: Programs) -> str:
    return f"Linux {Path('/proc/sys/kernel/osrelease').read_text().strip()}"


_OPENVPN_VERSION = _first_words("openvpn", "--version", r"OpenVPN (\S+)")

PROGRAMS = (
    Contender("openvpn-udp", OTHER, "OpenVPN, UDP", open_openvpn("udp"), ("openvpn",), _OPENVPN_VERSION),
    Contender("openvpn-tcp", OTHER, "OpenVPN, TCP", open_openvpn("tcp"), ("openvpn",), _OPENVPN_VERSION),
    Contender(
        "wireguard-go",
        OTHER,
        "wireguard-go",
        open_wireguard_go,
        ("wireguard-go",),
        _first_words("wireguard-go", "--version", r"v(\S+)"),
    ),
    Contender("wireguard", OTHER, "WireGuard, kernel", open_wireguard_kernel, ("wg",), _kernel),
    Contender("fastd", OTHER, "fastd", open_fastd, ("fastd",), _first_words("fastd", "--version", r"v?(\d\S*)")),
)
