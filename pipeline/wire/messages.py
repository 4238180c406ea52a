"""The greeting on a connection.

    client                                      server
    HELLO  version, wishes, key id, nonce    ->
                                             <- CHALLENGE nonce          with a key only
    PROOF  mac                               ->                          with a key only
                                             <- WELCOME   mac, addresses, routes
                                             or REFUSED   reason, text, and close

`pipeline.wire.auth` has what the macs are made of. Without a key a mac is zeros, and a TLS certificate or nothing
says who the client is. A run of a client is a session with a higher number than the one before.

decode() is total: any bytes are a greeting or a PeerError. Bodies may grow at their end; a reader takes what it knows.
What an address or a route may be is for whoever acts on it to judge: here it has a family and a prefix, and no more.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple

from pipeline.errors import LocalError, PeerError
from pipeline.wire import framing

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

MAGIC = b"tnl\x01"
VERSION = 1

KEY_ID_BYTES = 8
NONCE_BYTES = 32  # of the system's random numbers: none comes twice
MAC_BYTES = 32  # HMAC-SHA256
ADDRESSES_MAX = 8  # wished or given: a few subnets, IPv4 and IPv6 each
PUSHED_ROUTES_MAX = 512  # in a WELCOME; with the addresses about 10 kB, below wire.WELCOME_LENGTH_LIMIT
TEXT_BYTES_MAX = 200  # of a refusal

_HELLO = struct.Struct(f">4sBBHHHQQBBB{KEY_ID_BYTES}s{NONCE_BYTES}s")
_WELCOME = struct.Struct(f">BBHB{MAC_BYTES}s")
_COUNT = struct.Struct(">H")
_ADDRESS_BYTES = {4: 4, 6: 16}
WELCOME_MAC_AT = framing.FRAME.size + _WELCOME.size - MAC_BYTES  # in the frame

ACCEPTS_SHARDS = 1  # feature bit: takes shards (pipeline.fec.shard)
AUTH_NONE, AUTH_KEY = 0, 1

(BUSY, WRONG_VERSION, SUPERSEDED, FULL, ADDRESS_TAKEN, ADDRESS_OUTSIDE, NO_ADDRESS, TOO_MANY_CONNECTIONS, REVOKED) = (
    range(1, 10)
)
REASONS = {
    BUSY: "another client is connected",
    WRONG_VERSION: f"this server speaks version {VERSION}",
    SUPERSEDED: "a newer session of the same peer is connected",
    FULL: "as many peers are connected as this server takes",
    ADDRESS_TAKEN: "another peer has the wished address",
    ADDRESS_OUTSIDE: "the wished address is not in the server's subnets, or not allowed to this peer",
    NO_ADDRESS: "no address is left in the server's pool",
    TOO_MANY_CONNECTIONS: "this peer has as many connections as this server takes from one",
    REVOKED: "this peer has been revoked",
}


class Hello(NamedTuple):
    """A client's first frame. `offloads`: TUN_F_* bits that its device accepts in packets written to it."""

    version: int
    offloads: int
    index: int
    connections: int
    mtu: int
    client: int
    session: int
    traffic_class: int
    features: int
    auth: int = AUTH_NONE
    key_id: bytes = bytes(KEY_ID_BYTES)
    nonce: bytes = bytes(NONCE_BYTES)
    wishes: tuple[Address, ...] = ()

    def frame(self) -> bytes:
        _exactly(KEY_ID_BYTES, self.key_id, "key id")
        _exactly(NONCE_BYTES, self.nonce, "nonce")
        _at_most(ADDRESSES_MAX, self.wishes, "wished addresses")
        wishes = b"".join(bytes([wish.version]) + wish.packed for wish in self.wishes)
        return framing.frame(framing.HELLO, _HELLO.pack(MAGIC, *self[:-1]) + bytes([len(self.wishes)]) + wishes)


class Challenge(NamedTuple):
    """The server asks a client with a key to prove that it has it."""

    nonce: bytes

    def frame(self) -> bytes:
        return framing.frame(framing.CHALLENGE, _exactly(NONCE_BYTES, self.nonce, "nonce"))


class Proof(NamedTuple):
    """The client proves it."""

    mac: bytes

    def frame(self) -> bytes:
        return framing.frame(framing.PROOF, _exactly(MAC_BYTES, self.mac, "mac"))


class Welcome(NamedTuple):
    """The server admits the connection: the client's addresses in the tunnel, and the networks that are behind it."""

    version: int
    offloads: int
    mtu: int
    features: int
    mac: bytes = bytes(MAC_BYTES)
    addresses: tuple[Interface, ...] = ()
    routes: tuple[Network, ...] = ()

    def frame(self) -> bytes:
        _exactly(MAC_BYTES, self.mac, "mac")
        _at_most(ADDRESSES_MAX, self.addresses, "addresses of a peer")
        _at_most(PUSHED_ROUTES_MAX, self.routes, "routes of a peer")
        addresses = b"".join(_prefixed(a.network.prefixlen, a) for a in self.addresses)
        routes = b"".join(_prefixed(route.prefixlen, route.network_address) for route in self.routes)
        return framing.frame(
            framing.WELCOME,
            _WELCOME.pack(*self[:5])
            + bytes([len(self.addresses)])
            + addresses
            + _COUNT.pack(len(self.routes))
            + routes,
        )


class Refused(NamedTuple):
    """The server closes the connection after this frame. `text` is for people; a reader escapes it."""

    reason: int
    text: str

    def frame(self) -> bytes:
        whole_characters = self.text.encode(errors="replace")[:TEXT_BYTES_MAX].decode(errors="ignore")
        return framing.frame(framing.REFUSED, bytes([self.reason]) + whole_characters.encode())


Message = Hello | Challenge | Proof | Welcome | Refused


def _exactly(size: int, value: bytes, what: str) -> bytes:
    """struct would fill it up or cut it off without a word."""
    if len(value) != size:
        raise LocalError(f"{what} of a greeting: expected {size} bytes, found {len(value)}")
    return value


def _at_most(limit: int, values: Sequence, what: str) -> None:
    if len(values) > limit:
        raise LocalError(f"{what}: at most {limit} fit into a greeting, there are {len(values)}")


def _prefixed(length: int, address: Address) -> bytes:
    return bytes([address.version, length]) + address.packed


class _Body:
    """The body of a frame, read from its front. PeerError where it ends too early or says what cannot be."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) < size:
            raise PeerError(f"greeting ends {size - len(taken)} bytes too early")
        self._at += size
        return taken

    def rest(self, size: int) -> bytes:
        """What is left, of it at most `size` bytes."""
        return self._data[self._at : self._at + size]

    def number(self) -> int:
        return self.take(1)[0]

    def fields(self, form: struct.Struct) -> tuple:
        return form.unpack(self.take(form.size))

    def count(self, number: int, limit: int) -> range:
        if number > limit:
            raise PeerError(f"{number} addresses or routes in a greeting, at most {limit} allowed")
        return range(number)

    def address(self) -> Address:
        return ipaddress.ip_address(self._packed(self.number()))

    def prefixed(self, make: Callable[[tuple[bytes, int]], Interface | Network]) -> Interface | Network:
        family, length = self.take(2)
        packed = self._packed(family)
        try:
            return make((packed, length))
        except ValueError:
            raise PeerError(
                f"{ipaddress.ip_address(packed)}/{length} in a greeting: the prefix is longer than the "
                "address, or a route has bits behind it"
            ) from None

    def _packed(self, family: int) -> bytes:
        if family not in _ADDRESS_BYTES:
            raise PeerError(f"address of family {family} in a greeting, expected 4 or 6")
        return self.take(_ADDRESS_BYTES[family])


def decode(frame: bytes) -> Message:
    """Decode a whole greeting frame. PeerError for anything else."""
    if len(frame) < framing.FRAME.size:
        raise PeerError("empty frame where a greeting is expected")
    length, kind = framing.FRAME.unpack_from(frame)
    if framing.LENGTH.size + length != len(frame):
        raise PeerError(f"greeting of {len(frame) - framing.LENGTH.size} bytes that says {length}")
    if kind not in _READERS:
        raise PeerError(f"frame of type {kind:#04x} where a greeting is expected")
    return _READERS[kind](_Body(frame[framing.FRAME.size :]))


def _hello(body: _Body) -> Hello:
    magic, *fields = body.fields(_HELLO)
    if magic != MAGIC:
        raise PeerError(f"greeting with magic {magic.hex()}, expected {MAGIC.hex()}")
    return Hello(*fields, tuple(body.address() for _ in body.count(body.number(), ADDRESSES_MAX)))


def _challenge(body: _Body) -> Challenge:
    return Challenge(body.take(NONCE_BYTES))


def _proof(body: _Body) -> Proof:
    return Proof(body.take(MAC_BYTES))


def _welcome(body: _Body) -> Welcome:
    fields = body.fields(_WELCOME)
    addresses = tuple(body.prefixed(ipaddress.ip_interface) for _ in body.count(body.number(), ADDRESSES_MAX))
    (routes,) = body.fields(_COUNT)
    return Welcome(
        *fields, addresses, tuple(body.prefixed(ipaddress.ip_network) for _ in body.count(routes, PUSHED_ROUTES_MAX))
    )


def _refused(body: _Body) -> Refused:
    return Refused(body.number(), body.rest(TEXT_BYTES_MAX).decode(errors="replace"))


_READERS = {
    framing.HELLO: _hello,
    framing.CHALLENGE: _challenge,
    framing.PROOF: _proof,
    framing.WELCOME: _welcome,
    framing.REFUSED: _refused,
}
