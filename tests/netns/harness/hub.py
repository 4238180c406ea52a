"""A hub and its clients for the tests. Clients join by invitations alone, as people do it.

    with Hub(lab, directory) as hub:         a server on the lab's first node, with defaults but for its directories
        one = hub.join(lab["one"])           a client that was invited under its node's name, connected

All of them are stopped as the block ends, the server last. Inside the tunnel there are IPv4 and IPv6.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from pipeline.config import parse
from tests.netns.harness.instance import REACHED_SECONDS, Instance, unique_name
from tests.support import eventually
from tools.lab.namespace import Namespace
from tools.lab.network import Lab, Node
from tools.load import generators

ALPN = "tunnel/1"
CALL_SECONDS = 10.0

INSIDE = ["10.99.0.1/24", "fd99::1/64"]
PLAIN = {"fec": "off"}
"""Settings of a client that opens one connection, and has a worker less."""

BOTH = pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])


def reaches(source: Namespace, address: str, *, count: int = 2, seconds: float = REACHED_SECONDS) -> bool:
    """Whether every one of `count` pings comes back."""
    return not source.inside(lambda: generators.ping(address, count, 0.01, 56, seconds)).lost


def inside(instance: Instance, six: bool) -> str:
    """Its address in the tunnel."""
    return instance.address6 if six else instance.address


def port_of(server: Instance) -> int:
    return int(server.config["local_addr"].rpartition(":")[2])


def established(instance: Instance) -> int:
    """Connections that carry packets now."""
    return sum(row["state"] == "established" for row in instance.running()["connections"])


def tls_context(
    *,
    oldest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    pair: tuple[Path, Path] | None = None,
) -> ssl.SSLContext:
    """For a connection to a hub by hand; it accepts every certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # else every end is a close_notify; Debian sets it
    if oldest < ssl.TLSVersion.TLSv1_2:
        context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = oldest, newest
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


def call(node: Node, address: str, port: int, context: ssl.SSLContext | None = None, source: str = "") -> socket.socket:
    """A connection from a node, from its address `source`. With a context, its TLS handshake is done.

    A server that rejects a connection resets it, perhaps before connect() returns; then recv() fails as well.
    """
    sock = node.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.settimeout(CALL_SECONDS)
    if source:
        sock.bind((source, 0))
    with suppress(ConnectionResetError):
        sock.connect((address, port))
    return context.wrap_socket(sock) if context is not None else sock


class Client(Instance):
    """A client that has joined by an invitation, which is in a file."""

    def __init__(
        self, node: Node, invitation: str, directory: Path, *, wrap: Sequence[str] = (), **settings: Any
    ) -> None:
        self.invitation = invitation
        file = directory / unique_name("invitation")
        file.touch(0o600)
        file.write_text(invitation)
        super().__init__(
            node,
            {"mode": "client", "reconnect_max": 0.5, **settings},
            directory,
            wrap=wrap,
            words=["--join", f"@{file}"],
        )

    def start_again(self) -> Client:
        return Client(self.node, self.invitation, self._directory, wrap=self._wrap, **self.config)

    @property
    def connections(self) -> int:
        """How many it makes."""
        effective = parse({**self.config, "remote_addr": "192.0.2.1:9"})
        return effective.connections + effective.light_connections

    def wait_until_joined(self) -> None:
        """Until it has all its connections, addresses and routes."""
        self.wait_until_connected(self.connections)
        eventually(self._tunnel_addresses, what=f"addresses of {self.name}")
        for _ in range(2):  # a whole turn of its supervisor lies between the answers: all that follows is there as well
            self.running()

    def routes(self) -> list[str]:
        """Networks that are routed into its tunnel, its own subnets included."""
        found = []
        for version in ("-4", "-6"):
            shown = self.node.run(["ip", "-j", version, "route", "show", "dev", self.tun_name]).stdout
            found += [row["dst"] for row in json.loads(shown or "[]")]
        return found

    def _tunnel_addresses(self) -> list[str]:
        (shown,) = json.loads(self.node.run(["ip", "-j", "address", "show", "dev", self.tun_name]).stdout)
        return [f"{row['local']}/{row['prefixlen']}" for row in shown["addr_info"] if row["scope"] == "global"]


class Hub:
    """The server, and the clients that have joined and run, by name."""

    def __init__(self, lab: Lab, directory: Path, *, wrap: Sequence[str] = (), **settings: Any) -> None:
        self.lab = lab
        self.node = lab.nodes[0]
        self.directory = directory
        self.clients: dict[str, Client] = {}
        self.server = Instance(self.node, hub_config(self.node, directory, **settings), directory, wrap=wrap)
        self._stack = ExitStack()

    def __enter__(self) -> Hub:
        self._stack.enter_context(self.server)
        self.server.wait_until_running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def __getitem__(self, name: str) -> Client:
        return self.clients[name]

    @property
    def port(self) -> int:
        return port_of(self.server)

    def invite(self, peer: str, *words: str) -> str:
        """An invitation for this peer."""
        done = self.server.command("invite", peer, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def join(self, node: Node, peer: str = "", *words: str, **settings: Any) -> Client:
        """Invite a peer and start it on the node, after which it is named by default; both ends know then that it is
        connected. A client knows so a moment before the server."""
        peer = peer or node.name
        client = self.start(node, peer, *words, **settings)
        client.wait_until_joined()
        eventually(
            lambda: self.peers()[peer]["connections"] >= client.connections,
            what=f"the server knows all connections of {peer}",
        )
        return client

    def start(self, node: Node, peer: str, *words: str, **settings: Any) -> Client:
        """Invite a peer and start it on the node, without waiting for it."""
        return self.adopt(peer, Client(node, self.invite(peer, *words), self.directory, **settings))

    def adopt(self, peer: str, client: Client) -> Client:
        """Stop this client with the hub, before the server."""
        self.clients[peer] = self._stack.enter_context(client)
        return client

    def start_again(self) -> None:
        """Start the server after it has ended, and wait until all clients are back."""
        self.server = self._stack.enter_context(self.server.start_again())
        self.server.wait_until_running()
        self.wait_for_all()

    def configure(self, *, anew: bool = False, **settings: Any) -> None:
        """Reload the server with other settings; `anew`: and wait until its workers are replaced."""
        before = self.server.worker_pids()
        self.server.config = {**self.server.config, **settings}
        self.server.write(self.server.config)
        done = self.server.command("reload")
        assert done.returncode == 0, done.stderr
        for name, pid in before.items() if anew else ():
            self.server.wait_until_replaced(name, pid)

    def peers(self) -> dict[str, dict[str, Any]]:
        """The output of the command `peers`, by name."""
        answer = self.server.ask({"command": "peers"})
        return {peer["name"]: peer for peer in answer["peers"]}

    def connected(self) -> set[str]:
        return {name for name, peer in self.peers().items() if peer["state"] == "connected"}

    def wait_for_all(self, seconds: float = 15.0) -> None:
        """Until the server and every client that has joined reach each other."""
        for client in self.clients.values():
            eventually(
                lambda: reaches(client.node, self.server.address, count=1, seconds=0.3),
                seconds,
                f"{client.name} reaches the server",
            )


def hub_config(node: Node, directory: Path, **settings: Any) -> dict[str, Any]:
    """A server on a free port of the node, on all its addresses, with a state directory of its own."""
    name, port = unique_name("s"), node.free_port()
    return {
        "mode": "server",
        "name": name,
        "local_addr": f":{port}",
        "public_addr": f"{node.address}:{port}",
        "tunnel_addr": INSIDE,
        "state_dir": str(directory / f"state-{name}"),
        **settings,
    }
