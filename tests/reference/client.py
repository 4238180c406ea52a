"""A client of the tunnel, written from docs/wire.md alone. Neither it nor its imports use the program's code.

    client = WireClient(sock, key=key)       a connected socket
    client.secure(tls(...))                  TLS, and the certificate hash
    client.shake_hands()                     hello, challenge, proof, welcome; or each step by itself
    client.send(packet, ...)                 packets in a block; also send_run, send_sealed, keepalive
    client.receive_packets(seconds)          bare IP packets, from frames of any type
    client.end()                             the end of our direction

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

from tests.reference import key_schedule, records
from tests.reference.blocks import (
    BLOCK,
    DATA,
    FRAME,
    GOAWAY,
    KEEPALIVE,
    QUESTION,
    RUN,
    Runs,
    Violation,
    block_frame,
    frame,
    packets_of,
    run_frame,
)
from tests.reference.key_schedule import TO_CLIENT, TO_SERVER
from tests.reference.records import Header, HeaderSeal
from tests.reference.sealed_blocks import BULK, HASH_BYTES, LIGHT, Sealed, Session, extensions_of

HELLO, WELCOME, REFUSED, CHALLENGE, PROOF, DONE = 0x10, 0x11, 0x12, 0x13, 0x14, 0x15
VERSION = 2
EXCHANGE, LANE, MOVES, UPLINK, DATAGRAM_PORT = 1, 6, 7, 9, 10  # extensions
HELLO_FIELDS = struct.Struct(">4sBBHHHQQBBB8s32sB")
WELCOME_FIELDS = struct.Struct(">BBHB32sB")
MAGIC = b"tnl\x01"
LENGTH_LIMIT, WELCOME_LIMIT = 133163, 16384
ALPN = "tunnel/1"
ACCEPTS_RUNS, ANSWERS, TAKES_PADDING, TAKES_DATAGRAMS = 1, 2, 4, 8


class Refused(Exception):
    """The server has refused the connection, with this reason and text."""

    def __init__(self, reason: int, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason, self.text = reason, text


class Ended(Exception):
    """The server has closed the connection. `how`: "closed", "close_notify" (sealed or not), "reset", or an alert."""

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
    lane: int  # of the server, that sends on this connection
    datagram_port: int | None  # of the server; 0: the port that the client has dialed; None: no datagrams


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
        session: int | Session = 1,
        traffic_class: int = 0,
        lane: int = 0,
        moves: bool = False,
        uplink: tuple[int, bool, str] | None = None,
        runs: Runs | None = None,
        takes_padding: bool = False,
        takes_datagrams: bool = False,
        seconds: float = 5.0,
    ) -> None:
        """`session`: its number, or what this connection shares with others of the session. `lane`: that is told.
        `moves`: it has another server. `uplink`: number, whether it is a backup, and name."""
        self.socket = sock
        self.key = key
        self.runs = runs
        self.session = session if isinstance(session, Session) else Session(session, key=key, client=client)
        self.traffic_class = traffic_class
        self.tls_version = ""
        self.certificate_hash = b""  # none without TLS
        self.own_certificate_hash = bytes(HASH_BYTES)
        self.sent_hello = self.received_challenge = self.received_welcome = self.server_proof = b""
        self.welcome: Welcome | None = None
        self.unknown = 0  # frames received whose type is not in the document
        self.keepalives = 0  # keepalives received
        self.goaways = 0  # received: the server is about to stop
        self.frame_bytes: list[int] = []  # of each sealed frame that has come
        self._takes_padding = takes_padding
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
            self.session.number,
            traffic_class,
            (runs is not None) * ACCEPTS_RUNS | takes_padding * TAKES_PADDING | takes_datagrams * TAKES_DATAGRAMS,
        )
        self._lane = bytes([LANE, 1, lane]) if lane else b""
        self._moves = bytes([MOVES, 0]) if moves else b""
        self._uplink = b""
        if uplink is not None:
            number, is_backup, name = uplink
            value = bytes([number, is_backup]) + name.encode()
            self._uplink = bytes([UPLINK, len(value)]) + value
        self._addresses = b"".join(bytes([address.version]) + address.packed for address in requested)
        self._address_count = len(requested)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> WireClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # -- the handshake

    def secure(self, context: ssl.SSLContext, name: str | None = None, pin: bytes = b"", own: str = "") -> None:
        """TLS. `pin`: the certificate hash that the client has been given. `own`: path of the client's certificate."""
        self.socket.settimeout(self._seconds)
        try:
            self.socket = context.wrap_socket(self.socket, server_hostname=name, suppress_ragged_eofs=False)
        except (ConnectionError, ssl.SSLError) as error:
            raise Ended(_how(error)) from None
        if self.socket.selected_alpn_protocol() != ALPN:
            raise Violation(f"ALPN: expected {ALPN}, selected {self.socket.selected_alpn_protocol()}")
        self.certificate_hash = hashlib.sha256(self.socket.getpeercert(True)).digest()
        self.tls_version = self.socket.version() or ""
        if own:
            with open(own) as file:
                der = ssl.PEM_cert_to_DER_cert(file.read())
            self.own_certificate_hash = hashlib.sha256(der).digest()
        if pin and not hmac.compare_digest(pin, self.certificate_hash):
            raise Violation("another certificate than that of the pin")

    def shake_hands(self, wire_version: int = VERSION) -> Welcome:
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

    def hello(self, wire_version: int = VERSION, extensions: bytes | None = None) -> bytes:
        """The frame of a HELLO with a new nonce. `extensions`: others than the key share of a connection with TLS."""
        if extensions is None:
            extensions = self.session.hello_extension() if self.certificate_hash else b""
            extensions += self._lane + self._moves + self._uplink
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

    def send_hello(self, wire_version: int = VERSION, extensions: bytes | None = None) -> None:
        self.sent_hello = self.hello(wire_version, extensions)
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
        self.received_welcome = frame(WELCOME, body)
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
        if self.certificate_hash:
            self._leave_tls(body[at:])
        extensions = dict(reversed(list(extensions_of(body[at:]))))  # of two of one type the first counts
        lane, port = extensions.get(LANE, bytes(1))[0], extensions.get(DATAGRAM_PORT)
        datagrams = None if port is None else int.from_bytes(port, "big")
        self.welcome = Welcome._make([*fields[:4], tuple(addresses), tuple(routes), lane, datagrams])
        return self.welcome

    def _leave_tls(self, extensions: bytes) -> None:
        """From here on the connection is sealed."""
        self.session.accept_welcome(extensions, self.own_certificate_hash)
        self._sealer, opener = self.header_seals()
        self._reader = records.Reader(opener)
        if self._buffer or (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()):
            raise Violation("bytes behind the welcome in TLS")
        if isinstance(self.socket, ssl.SSLSocket):
            if self.socket.session is not None and self.socket.session.has_ticket:
                raise Violation("a session ticket")
            self.socket = socket.socket(fileno=self.socket.detach())

    def header_seals(self) -> tuple[HeaderSeal, HeaderSeal]:
        """For the headers that this client sends, and for those of the server, from the first on."""
        session = self.session
        parts = self.sent_hello, self.received_challenge, self.received_welcome, self.certificate_hash
        connection = key_schedule.connection(*parts)
        keys = (
            key_schedule.header_keys(session.root, session.context, direction, connection)
            for direction in (TO_SERVER, TO_CLIENT)
        )
        sealer, opener = (HeaderSeal(session.suite, each) for each in keys)
        return sealer, opener

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
            data = self._receive_bytes(deadline)
            if data is None:
                return None
            buffer += data

    def receive_sealed(self, seconds: float) -> tuple[Header, bytes] | None:
        """The next frame of a sealed connection; None if it does not arrive in time. Ended, if the connection has."""
        deadline = time.monotonic() + seconds
        while (found := self._reader.next()) is None:
            if self._reader.ended:
                raise Ended("close_notify")
            data = self._receive_bytes(deadline)
            if data is None:
                return None
            self._reader.feed(data)
        header, body = found
        if header.padding and not self._takes_padding:
            raise Violation("padding for an end that does not take it")
        self.frame_bytes.append(records.cut(len(body))[2] + header.padding)
        return found

    def _receive_bytes(self, deadline: float) -> bytes | None:
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
        return data

    def receive_packets(self, seconds: float, count: int = 1) -> list[bytes]:
        """Bare IP packets, as soon as `count` of them have arrived; fewer when the time is over."""
        deadline = time.monotonic() + seconds
        receive, add = (
            (self.receive_sealed, self._add_sealed) if self.certificate_hash else (self.receive_frame, self._add_frame)
        )
        while len(self._ready) < count:
            found = receive(deadline - time.monotonic())
            if found is None:
                break
            add(*found)
        ready, self._ready = self._ready, []
        return ready

    def _add_frame(self, kind: int, body: bytes) -> None:
        if kind == DATA:
            self._ready.append(body)
        elif kind == BLOCK:
            self._ready += packets_of(body)
        elif kind == RUN and self.runs is not None:
            for block in self.runs.add_run(body):
                self._ready += packets_of(block[FRAME.size :])
        else:
            self._add_other(kind)

    def _add_sealed(self, header: Header, body: bytes) -> None:
        if header.kind != RUN:
            self._add_other(header.kind)
            return
        if (header.n, header.m) != (1, 0) and self.runs is None:
            raise Violation("shards for an end that does not accept runs")
        each = header.shard_bytes
        shards = [body[at : at + each] for at in range(0, len(body), each)]
        sealed: bytes | None = shards[0]
        if header.n > 1:
            head = (header.n, header.m, header.size, header.epoch)
            sealed = self.runs.add((header.stream, header.number), head, header.first, shards)
        elif self.runs is not None:
            self.runs.blocks[1] += 1
        if sealed is not None:
            self._ready += self.session.open(header, sealed[: header.size]) or []

    def _add_other(self, kind: int) -> None:
        if kind == KEEPALIVE:
            self.keepalives += 1
        elif kind == GOAWAY:
            self.goaways += 1
        else:
            self.unknown += 1

    def send(self, *packets: bytes) -> None:
        """Send packets in one block."""
        if self.certificate_hash:
            self.send_sealed(self.session.seal(LIGHT if self.traffic_class else BULK, packets))
        else:
            self.socket.sendall(block_frame(*packets))

    def send_sealed(self, block: Sealed, first: int = 0, count: int = 0) -> None:
        """Send a sealed block, or `count` of its shards."""
        header, shards = block
        if header.n > 1:
            header = header._replace(first=first, shards=count or len(shards))
            shards = shards[first : first + header.shards]
        self.send_header(header, b"".join(shards))

    def send_header(self, header: Header, body: bytes = b"") -> None:
        """Send a frame of a sealed connection with any header."""
        self.socket.sendall(self.sealed_frame(header, body))

    def sealed_frame(self, header: Header, body: bytes = b"") -> bytes:
        """The records of the next frame. It counts as sent."""
        return records.records(self._sealer, header, body)

    def send_bare(self, packet: bytes) -> None:
        """Only without encryption."""
        self.socket.sendall(frame(DATA, packet))

    def send_run(self, *shards_of: object) -> None:
        """Send a run, without encryption: the arguments are those of run_frame."""
        self.socket.sendall(run_frame(*shards_of))

    def keepalive(self) -> None:
        self.socket.sendall(self.sealed_frame(Header(KEEPALIVE)) if self.certificate_hash else frame(KEEPALIVE))

    def question(self) -> None:
        """Ask whether the server's program is there. Only on a sealed connection."""
        self.socket.sendall(self.sealed_frame(Header(QUESTION)))

    def end(self) -> None:
        """End our direction."""
        if self.certificate_hash:
            self.socket.sendall(records.end_record(self._sealer))
        self.socket.shutdown(socket.SHUT_WR)


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


def read_to_end(sock: socket.socket) -> tuple[bytes, str]:
    """All that still comes, and how it ended."""
    said = b""
    try:
        while data := sock.recv(65536):
            said += data
    except ssl.SSLError as error:
        if not is_bare_end(error):
            raise
        return said, "closed"
    except ConnectionResetError:
        return said, "reset"
    return said, "close_notify" if isinstance(sock, ssl.SSLSocket) else "closed"


def _how(error: OSError) -> str:
    if is_bare_end(error):
        return "closed"
    return "reset" if isinstance(error, ConnectionError) else f"alert: {error.reason}"
