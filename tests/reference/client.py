"""A client of the tunnel, written from docs/wire.md alone. Neither it nor its imports use the program's code.

    client = WireClient(sock, key=key)       a connected socket
    client.secure(tls(...))                  TLS, and the certificate hash
    client.shake_hands()                     hello, challenge, proof, welcome; or each step by itself
    client.send(packet, ...)                 packets in a block; also send_bare, send_run, keepalive
    client.receive_packets(seconds)          bare IP packets, from frames of any type

It blocks, with a deadline for each step. A Violation is an act of the server that the document forbids; Refused is an
answer of the server.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from tests.reference.blocks import BLOCK, DATA, FRAME, RUN, Runs, Violation, block_frame, frame, packets_of, run_frame

KEEPALIVE, HELLO, WELCOME, REFUSED, CHALLENGE, PROOF, DONE = 0x02, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15
EXCHANGE = 1  # an extension of a hello
HELLO_FIELDS = struct.Struct(">4sBBHHHQQBBB8s32sB")
WELCOME_FIELDS = struct.Struct(">BBHB32sB")
MAGIC = b"tnl\x01"
LENGTH_LIMIT, WELCOME_LIMIT = 133155, 16384
ALPN = "tunnel/1"
ACCEPTS_RUNS = 1


class Refused(Exception):
    """The server has refused the connection, with this reason and text."""

    def __init__(self, reason: int, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason, self.text = reason, text


class Ended(Exception):
    """The server has closed the connection. `how`: "closed", "close_notify" (of TLS), "reset", or an alert."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class Welcome(NamedTuple):
    version: int
    offloads: int
    mtu: int
    features: int
    addresses: tuple[ipaddress.IPv4Interface | ipaddress.IPv6Interface, ...]
    routes: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


def tls(
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    *,
    ca: str = "",
    certificate: str = "",
    key: str = "",
    alpn: str = ALPN,
) -> ssl.SSLContext:
    """A context for one version of TLS alone. With `ca`, a path, it checks the certificate as HTTPS does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # else every end is a close_notify; Debian sets it
    if alpn:
        context.set_alpn_protocols([alpn])
    if ca:
        context.load_verify_locations(ca)
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(certificate, key)
    return context


BARE_END = "(?i)unexpected.eof|EOF occurred"
"""In the text of an error: the stream has ended in the middle of TLS."""


class WireClient:
    """One connection. Connections of one client and one session belong together."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        key: bytes = b"",
        requested_addresses: Sequence[str] = (),
        offloads: int = 0,
        index: int = 0,
        connections: int = 1,
        mtu: int = 1400,
        client: int = 1,
        session: int = 1,
        traffic_class: int = 0,
        runs: Runs | None = None,
        seconds: float = 5.0,
    ) -> None:
        self.socket = sock
        self.key = key
        self.runs = runs
        self.certificate_hash = b""
        self.sent_hello = self.received_challenge = self.server_proof = b""
        self.welcome: Welcome | None = None
        self.unknown = 0  # frames received whose type is not in the document
        self.keepalives = 0  # keepalives received
        self._seconds = seconds
        self._buffer = bytearray()
        self._ready: list[bytes] = []
        requested = [ipaddress.ip_address(address) for address in requested_addresses]
        self._hello = (
            offloads,
            index,
            connections,
            mtu,
            client,
            session,
            traffic_class,
            ACCEPTS_RUNS if runs is not None else 0,
        )
        self._addresses = b"".join(bytes([address.version]) + address.packed for address in requested)
        self._address_count = len(requested)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> WireClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # -- the handshake

    def secure(self, context: ssl.SSLContext, name: str | None = None, pin: bytes = b"") -> None:
        """TLS. `pin`: the certificate hash that the client has been given."""
        self.socket.settimeout(self._seconds)
        try:
            self.socket = context.wrap_socket(self.socket, server_hostname=name, suppress_ragged_eofs=False)
        except (ConnectionError, ssl.SSLError) as error:
            raise Ended(_how(error)) from None
        if self.socket.selected_alpn_protocol() != ALPN:
            raise Violation(f"ALPN: expected {ALPN}, selected {self.socket.selected_alpn_protocol()}")
        self.certificate_hash = hashlib.sha256(self.socket.getpeercert(True)).digest()
        if pin and not hmac.compare_digest(pin, self.certificate_hash):
            raise Violation("another certificate than that of the pin")

    def shake_hands(self, wire_version: int = 1) -> Welcome:
        """The whole handshake inside TLS."""
        self.send_hello(wire_version)
        if self.key:
            self.receive_challenge()
            self.send_proof(self.proof())
        return self.receive_welcome()

    def exchange(self, private: bytes) -> tuple[str, bytes]:
        """A key of its own in place of an invitation's, and the name of the peer. `private`: 32 random bytes."""
        self.sent_hello = self.hello(extensions=self.exchange_extension(private))
        self.socket.sendall(self.sent_hello)
        self.receive_challenge()
        self.send_proof(self.proof())
        return self.receive_done(private)

    @staticmethod
    def exchange_extension(private: bytes) -> bytes:
        public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        return bytes([EXCHANGE, len(public)]) + public

    def receive_done(self, private: bytes) -> tuple[str, bytes]:
        body = self._receive_message(DONE)
        rest = hashlib.sha256(body[32:]).digest()
        if not hmac.compare_digest(body[:32], _mac(self.key, b"tunnel answer" + self.transcript() + rest)):
            raise Violation("the server's proof is wrong")
        own, other = X25519PrivateKey.from_private_bytes(private), body[32:64]
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
        info = b"tunnel exchanged key" + own.public_key().public_bytes_raw() + other
        return body[65 : 65 + body[64]].decode("ascii"), _mac(_mac(self.key, shared), info + b"\x01")

    def hello(self, wire_version: int = 1, extensions: bytes = b"") -> bytes:
        """The frame of a HELLO with a new nonce."""
        key_id, nonce = bytes(8), bytes(32)
        if self.key:
            key_id, nonce = _mac(self.key, b"tunnel key id")[:8], secrets.token_bytes(32)
        return frame(
            HELLO,
            HELLO_FIELDS.pack(
                MAGIC, wire_version, *self._hello, int(bool(self.key)), key_id, nonce, self._address_count
            )
            + self._addresses
            + extensions,
        )

    def send_hello(self, wire_version: int = 1) -> None:
        self.sent_hello = self.hello(wire_version)
        self.socket.sendall(self.sent_hello)

    def receive_challenge(self) -> None:
        self.received_challenge = frame(CHALLENGE, self._receive_message(CHALLENGE))
        if len(self.received_challenge) < FRAME.size + 32:
            raise Violation("a challenge without a whole nonce")

    def proof(self) -> bytes:
        """The mac of the client's proof for this connection."""
        return _mac(self.key, b"tunnel client" + self.transcript())

    def transcript(self) -> bytes:
        parts = b"tunnel greeting", self.sent_hello, self.received_challenge, self.certificate_hash
        return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()

    def send_proof(self, mac: bytes) -> None:
        self.socket.sendall(frame(PROOF, mac))

    def receive_welcome(self) -> Welcome:
        """The welcome. Refused, if the server refuses the connection."""
        body = self._receive_message(WELCOME)
        fields = WELCOME_FIELDS.unpack_from(body)
        self.server_proof = fields[4]
        if self.key:
            rest = hashlib.sha256(body[:5] + body[37:]).digest()
            if not hmac.compare_digest(fields[4], _mac(self.key, b"tunnel server" + self.transcript() + rest)):
                raise Violation("the server's proof is wrong")
        at = WELCOME_FIELDS.size
        addresses, at = _prefixed(body, at, fields[5], ipaddress.ip_interface)
        (count,) = struct.unpack_from(">H", body, at)
        routes, at = _prefixed(body, at + 2, count, ipaddress.ip_network)
        self.welcome = Welcome._make([*fields[:4], tuple(addresses), tuple(routes)])
        return self.welcome

    def _receive_message(self, expected: int) -> bytes:
        found = self.receive_frame(self._seconds, WELCOME_LIMIT)
        if found is None:
            raise TimeoutError(f"no answer within {self._seconds:g} s")
        kind, body = found
        if kind == REFUSED:
            raise Refused(body[0], body[1:].decode())
        if kind != expected:
            raise Violation(f"frame of type {kind:#04x}, expected {expected:#04x}")
        return body

    # -- frames

    def receive_frame(self, seconds: float, limit: int = LENGTH_LIMIT) -> tuple[int, bytes] | None:
        """The next frame; None if it does not arrive in time. Ended, if the connection has ended."""
        deadline = time.monotonic() + seconds
        buffer = self._buffer
        while True:
            while len(buffer) >= 4:
                length = int.from_bytes(buffer[:4], "big")
                if length > limit:
                    raise Violation(f"frame of {length} bytes, at most {limit} allowed")
                if len(buffer) < 4 + length:
                    break
                whole = bytes(buffer[4 : 4 + length])
                del buffer[: 4 + length]
                if length:
                    return whole[0], whole[1:]
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                return None
            except (ConnectionError, ssl.SSLError) as error:
                raise Ended(_how(error)) from None
            if not data:
                raise Ended("close_notify" if isinstance(self.socket, ssl.SSLSocket) else "closed")
            buffer += data

    def receive_packets(self, seconds: float, count: int = 1) -> list[bytes]:
        """Bare IP packets, as soon as `count` of them have arrived; fewer when the time is over."""
        deadline = time.monotonic() + seconds
        while len(self._ready) < count:
            found = self.receive_frame(deadline - time.monotonic())
            if found is None:
                break
            self._add_frame(*found)
        ready, self._ready = self._ready, []
        return ready

    def _add_frame(self, kind: int, body: bytes) -> None:
        if kind == DATA:
            self._ready.append(body)
        elif kind == BLOCK:
            self._ready += packets_of(body)
        elif kind == RUN and self.runs is not None:
            for block in self.runs.add(body):
                self._ready += packets_of(block[FRAME.size :])
        elif kind == KEEPALIVE:
            self.keepalives += 1
        else:
            self.unknown += 1

    def send(self, *packets: bytes) -> None:
        """Send packets in one block."""
        self.socket.sendall(block_frame(*packets))

    def send_bare(self, packet: bytes) -> None:
        self.socket.sendall(frame(DATA, packet))

    def send_run(self, *shards_of: object) -> None:
        """Send a run: the arguments are those of run_frame."""
        self.socket.sendall(run_frame(*shards_of))

    def keepalive(self) -> None:
        self.socket.sendall(frame(KEEPALIVE))


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def _prefixed(body: bytes, at: int, count: int, make: type) -> tuple[list, int]:
    found = []
    for _ in range(count):
        family, length = body[at : at + 2]
        size = {4: 4, 6: 16}[family]
        found.append(make((body[at + 2 : at + 2 + size], length)))
        at += 2 + size
    return found, at


def is_bare_end(error: OSError) -> bool:
    """Whether TLS has ended without close_notify. Python says it with SSLEOFError, some builds with SSLError."""
    return isinstance(error, ssl.SSLError) and re.search(BARE_END, str(error)) is not None


def _how(error: OSError) -> str:
    if is_bare_end(error):
        return "closed"
    return "reset" if isinstance(error, ConnectionError) else f"alert: {error.reason}"
