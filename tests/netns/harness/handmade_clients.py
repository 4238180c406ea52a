"""A server, and clients in a node of the lab that know the wire format from docs/wire.md alone (WireClient).

with inviting_server(lab, directory) as dialer:     a server with TLS that has invited the peers of PEERS
    with dialer.dial("one") as client:              a WireClient that has been welcomed as that peer
    with EchoResponder(client) as responder:        it answers echo requests in a thread of its own
    with datagrams_of(dialer, client) as datagrams: its datagrams (DatagramClient), from a socket of its own
"""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.credentials.invitation import Invitation, decode
from tests.netns.harness.instance import Instance, server_config
from tests.reference.client import Ended, Refused, WireClient, tls
from tests.reference.datagram_client import DatagramClient
from tests.reference.packets import reply_to
from tests.reference.sealed_blocks import Session
from tools.lab.network import Lab, Node

PEERS = ("one", "two", "three")
TOO_MANY_SESSIONS = 10  # reason of a REFUSED, docs/wire.md
PLENTY = 65535
"""Limit of the server for unauthenticated clients: all tests come from one address."""

CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.1


def connect(node: Node, host: str, port: int) -> socket.socket:
    """A connected socket of the node."""
    sock = node.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.settimeout(CONNECT_SECONDS)
    sock.connect((host, port))
    return sock


class Dialer:
    """A server, and the node from which it is reached."""

    def __init__(self, server: Instance, node: Node, invitations: dict[str, Invitation]) -> None:
        self.server = server
        self.node = node
        self.invitations = invitations
        self.port = int(server.config["local_addr"].rpartition(":")[2])
        self._numbers = itertools.count(1)

    def connect(self) -> socket.socket:
        return connect(self.node, self.server.node.address, self.port)

    def key(self, peer: str) -> bytes:
        return self.invitations[peer].key

    def new_session(self, peer: str, **options: Any) -> Session:
        """A session, for several connections; it is later than those before."""
        return Session(next(self._numbers), key=self.key(peer) if peer else b"", **options)

    def dial_tls(self, peer: str = "", version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, **options: Any) -> WireClient:
        """A client whose TLS handshake is done, and that has sent nothing inside TLS."""
        options = {"session": self.new_session(peer), "key": self.key(peer) if peer else b"", **options}
        client = WireClient(self.connect(), **options)
        with closed_on_error(client):
            client.secure(tls(version), pin=bytes.fromhex(self.invitations[PEERS[0]].fingerprint))
        return client

    def dial(self, peer: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, **options: Any) -> WireClient:
        """A client that the server has welcomed as this peer."""
        return welcomed(lambda: self.dial_tls(peer, version, **options))


def welcomed(dial: Callable[[], WireClient]) -> WireClient:
    """A client that the server has welcomed. Like any other, it dials again if it was too quick."""
    until = time.monotonic() + CONNECT_SECONDS
    while True:
        client = dial()
        try:
            with closed_on_error(client):
                client.shake_hands()
            return client
        except Refused as refused:
            if refused.reason != TOO_MANY_SESSIONS or time.monotonic() > until:
                raise
            time.sleep(POLL_SECONDS)


@contextmanager
def closed_on_error(client: WireClient) -> Iterator[None]:
    try:
        yield
    except BaseException:
        client.socket.close()
        raise


@contextmanager
def inviting_server(lab: Lab, directory: Path, **settings: Any) -> Iterator[Dialer]:
    a, b = lab.nodes[:2]
    config = {
        **server_config(a),
        "encryption": "tls",
        "insecure": False,
        "state_dir": str(directory / "state"),
        "max_handshakes_per_address": PLENTY,
        "connects_per_address": PLENTY,
        **settings,
    }
    with Instance(a, config, directory) as server:
        server.wait_until_running()
        said = {peer: server.command("invite", peer, "--address", a.address) for peer in PEERS}
        assert all(each.returncode == 0 for each in said.values()), said
        yield Dialer(server, b, {peer: decode(each.stdout) for peer, each in said.items()})


@contextmanager
def datagrams_of(dialer: Dialer, client: WireClient, source: str = "") -> Iterator[DatagramClient]:
    """`source`: an address of the client's node."""
    host = dialer.server.node.address
    with dialer.node.socket(kind=socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.connect((host, client.welcome.datagram_port or dialer.port))
        yield DatagramClient(client, sock)


class EchoResponder:
    """A welcomed client in a thread, until the end of the block: it answers each echo request that it receives."""

    def __init__(self, client: WireClient) -> None:
        self.address, self.address6 = (str(each.ip) for each in client.welcome.addresses)
        self.answered = 0
        self.ended: Ended | None = None
        self._client = client
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)

    def __enter__(self) -> EchoResponder:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._client.socket.close()
        assert error is not None or self.ended is None, f"the server has ended the connection: {self.ended}"

    def _answer(self) -> None:
        try:
            while not self._stopping.is_set():
                packets = self._client.receive_packets(POLL_SECONDS)
                replies = [reply for packet in packets if (reply := reply_to(packet))]
                if replies:
                    self._client.send(*replies)
                    self.answered += len(replies)
        except Ended as ended:
            self.ended = ended
