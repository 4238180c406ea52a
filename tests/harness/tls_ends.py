"""Two ends of TLS that drive their channels until bytes are there, and certificates for them."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pipeline.credentials import certificates
from pipeline.transport.tls_channel import TlsChannel
from pipeline.transport.tls_context import TlsContext

NAME = "server.test"
VIEW = 131072  # of a slot
DEADLINE = 10.0  # seconds that a test waits for anything


class Pair(NamedTuple):
    """A certificate and its key, PEM; and the key itself, to sign others with."""

    certificate: str
    key: str
    signer: ec.EllipticCurvePrivateKey


def issue(
    name: str, issuer: Pair | None = None, is_ca: bool = False, age: timedelta = timedelta(0), strict: bool = True
) -> Pair:
    """A certificate of its own, or of an issuer, that began an hour before `age` ago and is good for a day.

    Servers and clients may use it. `strict`: with every extension that RFC 5280 asks for.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime.now(UTC) - age - timedelta(hours=1)
    names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ip_address("127.0.0.1"))])
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        certificates._builder(subject, key.public_key(), begin, begin + timedelta(days=1), is_ca)
        .add_extension(names, critical=False)
        .add_extension(usages, critical=False)
    )
    signer = issuer.signer if issuer else key
    if strict:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(identifier, critical=False)
    authority = x509.load_pem_x509_certificate(issuer.certificate.encode()).subject if issuer else subject
    made = certificates._signed(builder, authority, signer, key)
    return Pair(made.certificate.decode(), made.key.decode(), key)


def wait(sock: socket.socket, events: int) -> None:
    poll = select.poll()
    poll.register(sock, events)
    assert poll.poll(DEADLINE * 1000), "nothing happened on the socket"


class End:
    """A socket and its channel, driven until bytes are there."""

    def __init__(self, sock: socket.socket, context: TlsContext, server: bool, hostname: str | None = NAME) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.channel = TlsChannel(sock, context, server, None if server else hostname)

    def step(self) -> bool:
        """Do one step of the handshake. Whether it is done."""
        try:
            return self.channel.ready or self.channel.handshake()
        except BlockingIOError:
            return False

    def send(self, data: bytes) -> None:
        self.send_raw(self.channel.seal([data]))

    def send_raw(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self.socket.send(rest) :]
            except BlockingIOError:
                wait(self.socket, select.POLLOUT)

    def receive(self, size: int = VIEW) -> bytes:
        """The next bytes, at most `size`."""
        view = memoryview(bytearray(size))
        while True:
            try:
                return bytes(view[: self.channel.receive(view)])
            except BlockingIOError:
                assert not self.channel.pending
                wait(self.socket, select.POLLIN)

    def receive_all(self, size: int, at_most: int = VIEW) -> bytes:
        data = b""
        while len(data) < size:
            part = self.receive(min(at_most, size - len(data)))
            assert part, "the end"
            data += part
        return data


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def shake_hands(client: End, server: End) -> None:
    """Drive two handshakes until both are done. OSError of the end that fails."""
    deadline = time.monotonic() + DEADLINE
    while not client.step() & server.step():
        assert time.monotonic() < deadline, "no handshake"


@contextmanager
def connected(
    client: TlsContext, server: TlsContext, sockets: Callable[[], tuple[socket.socket, socket.socket]] = tcp_pair
) -> Iterator[tuple[End, End]]:
    """A client and a server whose handshake is done."""
    near, far = sockets()
    with near, far:
        ends = End(near, client, server=False), End(far, server, server=True)
        shake_hands(*ends)
        yield ends
