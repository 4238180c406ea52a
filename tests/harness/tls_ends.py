"""Two ends of TLS that drive their channels until something is there, and certificates for them."""

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
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pipeline.transport.tls_channel import TlsChannel
from pipeline.transport.tls_context import TlsContext

NAME = "server.test"
VIEW = 131072  # of a slot
DEADLINE = 10.0  # seconds for whatever a test waits for


class Pair(NamedTuple):
    """A certificate and its key, PEM; and the key itself, to sign others with."""

    certificate: str
    key: str
    signer: ec.EllipticCurvePrivateKey


def issue(
    name: str, issuer: Pair | None = None, is_ca: bool = False, age: timedelta = timedelta(0), strict: bool = True
) -> Pair:
    """A certificate of its own, or of an issuer, that began an hour before `age` ago and is good for a day.

    `strict`: with all that RFC 5280 asks for.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    parent = issuer and x509.load_pem_x509_certificate(issuer.certificate.encode())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime.now(UTC) - age - timedelta(hours=1)
    signer = issuer.signer if issuer else key
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ip_address("127.0.0.1"))])
    traffic_classes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(parent.subject if parent else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=1))
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=not is_ca, key_cert_sign=is_ca, crl_sign=is_ca, **usage), True)
        .add_extension(names, critical=False)
        .add_extension(traffic_classes, critical=False)
    )
    if strict:
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return Pair(certificate.public_bytes(Encoding.PEM).decode(), text, key)


def wait(sock: socket.socket, events: int) -> None:
    poll = select.poll()
    poll.register(sock, events)
    assert poll.poll(DEADLINE * 1000), "nothing happened on the socket"


class End:
    """A socket and its channel, driven until something is there."""

    def __init__(self, sock: socket.socket, context: TlsContext, server: bool, hostname: str | None = NAME) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.channel = TlsChannel(sock, context, server, None if server else hostname)

    def step(self) -> bool:
        """One of the handshake."""
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
        """Whatever comes next, up to so much."""
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
    """Until both are ready. OSError of whichever end fails."""
    deadline = time.monotonic() + DEADLINE
    while not client.step() & server.step():
        assert time.monotonic() < deadline, "no handshake"


@contextmanager
def connected(client: TlsContext, server: TlsContext, sockets: Callable = tcp_pair) -> Iterator[tuple[End, End]]:
    """A client and a server whose handshake is done."""
    near, far = sockets()
    with near, far:
        ends = End(near, client, server=False), End(far, server, server=True)
        shake_hands(*ends)
        yield ends
