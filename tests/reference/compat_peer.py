"""A peer that speaks the original program's wire format, written from its description. The program's code is not used.

    length u32 big-endian | type u8 | body      length counts type and body; it is at most 1496, more is an error
    0x01   one IP packet                        0x02   keepalive, no body

Other types and frames of length 0 are ignored. There is no handshake. The length and the rest are two writes.
`captured` holds every byte received, for comparison with frames that this file builds.

    in_tls(connection, version)    a client's connection in TLS as the original speaks it: no ALPN, no server name, any
                                   certificate
    Certificate                    a server's, as the original's script makes it: of its own, with a common name alone
    CompatHub                      a server of several such peers: the first source is a peer's address, packets for it
                                   go to it
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

LENGTH_MAX = 1496
DATA, KEEPALIVE = b"\x01", b"\x02"

ICMP, UDP = 1, 17  # protocol numbers of IPv4
ECHO_REQUEST, ECHO_REPLY = 8, 0


class FrameTooLong(Exception):
    """The other end has sent a length at which the original program ends its connection."""


def frame(kind: bytes, body: bytes = b"") -> bytes:
    return (len(kind) + len(body)).to_bytes(4, "big") + kind + body


class CompatPeer:
    """One end of a connection to a program that speaks this format. A read fails after `patience` seconds."""

    def __init__(self, connection: socket.socket, patience: float = 10.0) -> None:
        self.captured = bytearray()
        self._connection = connection
        self._consumed = 0
        connection.settimeout(patience)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as in the original

    def __enter__(self) -> CompatPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @property
    def port(self) -> int:
        """Of this end."""
        port: int = self._connection.getsockname()[1]
        return port

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._connection.sendall(data)

    def send(self, kind: bytes, body: bytes = b"") -> None:
        """Send a frame as the original program does: the length, and then the rest."""
        whole = frame(kind, body)
        self.write(whole[:4])
        self.write(whole[4:])

    def receive(self) -> tuple[bytes, bytes] | None:
        """Type and body of the next frame; None at the end of the stream. A frame of length 0 has neither."""
        header = self._read(4)
        if header is None:
            return None
        length = int.from_bytes(header, "big")
        if length > LENGTH_MAX:
            raise FrameTooLong(f"length {length}, the original allows {LENGTH_MAX}")
        rest = self._read(length)
        return None if rest is None else (rest[:1], rest[1:])

    def receive_packet(self) -> bytes | None:
        """The next IP packet, keepalives left out; None at the end of the stream."""
        while (got := self.receive()) is not None:
            if got[0] == DATA:
                return got[1]
        return None

    def ended(self) -> bool:
        """Wait until the other end has ended the connection. True if no further byte came before that."""
        try:
            return self._connection.recv(1) == b""
        except ConnectionResetError:
            return True

    def answer_pings(self, count: int) -> list[bytes]:
        """Answer so many echo requests, as the host behind the tunnel. Returns the requests."""
        requests = []
        while len(requests) < count:
            packet = self.receive_packet()
            if packet is None:
                break
            if packet[9] == ICMP and packet[20] == ECHO_REQUEST:
                requests.append(packet)
                self.send(DATA, echo_reply(packet))
        return requests

    def _read(self, count: int) -> bytes | None:
        while len(self.captured) - self._consumed < count:
            data = self._connection.recv(65536)
            if not data:
                return None
            self.captured += data
        start, self._consumed = self._consumed, self._consumed + count
        return bytes(self.captured[start : self._consumed])


VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def in_tls(connection: socket.socket, version: str) -> ssl.SSLSocket:
    """The connection of a client after its TLS handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = VERSIONS[version]
    wrapped = context.wrap_socket(connection)
    assert wrapped.version() == f"TLSv{version}" and wrapped.selected_alpn_protocol() is None
    return wrapped


class Certificate:
    """Files `path` and `key_path`, and the SHA-256 of the certificate."""

    def __init__(self, directory: Path) -> None:
        self.path, self.key_path = directory / "server.crt", directory / "server.key"
        words = "openssl req -x509 -newkey rsa:2048 -days 365 -nodes -subj /CN=localhost -keyout"
        subprocess.run([*words.split(), self.key_path, "-out", self.path], check=True, capture_output=True)
        self.key_path.chmod(0o600)
        self.fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.path.read_text())).hexdigest()

    def in_tls(self, connection: socket.socket, version: str) -> ssl.SSLSocket:
        """The connection of a server that shows this certificate, after its TLS handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path, self.key_path)
        context.minimum_version = context.maximum_version = VERSIONS[version]
        wrapped = context.wrap_socket(connection, server_side=True)
        assert wrapped.selected_alpn_protocol() is None
        return wrapped


class CompatHub:
    """Accepts peers, learns each one's address from its first packet, and passes packets on between them.

    It answers echo requests to `own` itself. IPv4 only, as the original.
    """

    def __init__(self, listener: socket.socket, own: str, wrap: Callable[[socket.socket], socket.socket]) -> None:
        """`wrap`: makes TLS of a connection, or nothing."""
        self._wrap = wrap
        self.peers: dict[bytes, CompatPeer] = {}
        self._own = socket.inet_aton(own)
        self._listener = listener
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        address = b""
        peer = CompatPeer(self._wrap(connection), 60.0)
        try:
            while (packet := peer.receive_packet()) is not None:
                if packet[0] >> 4 != 4:
                    continue
                if not address:
                    address = packet[12:16]
                    self.peers[address] = peer
                target = packet[16:20]
                if target in self.peers:
                    self.peers[target].send(DATA, packet)
                elif target == self._own and packet[9] == ICMP and packet[20] == ECHO_REQUEST:
                    peer.send(DATA, echo_reply(packet))
        except OSError:
            pass
        finally:
            self.peers.pop(address, None)
            peer.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for peer in list(self.peers.values()):
            peer.close()


def checksum(data: bytes) -> int:
    """RFC 1071."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source: str, target: str, protocol: int, payload: bytes, number: int = 1) -> bytes:
    """A whole IPv4 packet; `number` is its identification."""

    def header(check: int) -> bytes:
        return struct.pack(
            "!BBHHHBBH4s4s",
            0x45,
            0,
            20 + len(payload),
            number,
            0,
            64,
            protocol,
            check,
            socket.inet_aton(source),
            socket.inet_aton(target),
        )

    return header(checksum(header(0))) + payload


def udp(source: str, target: str, port: int, payload: bytes, number: int = 1) -> bytes:
    """A UDP datagram in an IPv4 packet, from and to the same port."""

    def header(check: int) -> bytes:
        return struct.pack("!HHHH", port, port, 8 + len(payload), check)

    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    pseudo = addresses + struct.pack("!BBH", 0, UDP, 8 + len(payload))
    check = checksum(pseudo + header(0) + payload) or 0xFFFF
    return ipv4(source, target, UDP, header(check) + payload, number)


def echo_request(source: str, target: str, payload: bytes, number: int = 1) -> bytes:
    return ipv4(source, target, ICMP, _echo(ECHO_REQUEST, struct.pack("!HH", 77, number) + payload), number)


def echo_reply(request: bytes) -> bytes:
    """The answer to an echo request without IP options."""
    source, target = socket.inet_ntoa(request[16:20]), socket.inet_ntoa(request[12:16])
    return ipv4(source, target, ICMP, _echo(ECHO_REPLY, request[24:]))


def _echo(kind: int, rest: bytes) -> bytes:
    check = checksum(struct.pack("!BBH", kind, 0, 0) + rest)
    return struct.pack("!BBH", kind, 0, check) + rest
