"""The messages of the handshake as values, and their frames.

    client                                             server
    HELLO  version, addresses, key id, nonce      ->
                                                  <-   CHALLENGE  nonce         with a key only
    PROOF  mac                                    ->                            with a key only
                                                  <-   WELCOME    mac, addresses, routes
                                                  or   REFUSED    reason, text, and the connection is closed
                                                  or   DONE       mac, what was asked for, and the connection is closed

`pipeline.wire.handshake` has their order, `pipeline.wire.auth` the macs. Without a key a mac is zeros, and a TLS
certificate says who the client is, or nothing does. Each start of a client is a session; its number is higher than
that of the session before.

A HELLO can ask for something else than a connection, in an extension behind its addresses. `exchange`: it wants a new
key in place of the one that it proves. `leaves`: it wants to be forgotten. The answer is DONE. A server that does not
know the extension ignores it.

decode() is total: any bytes give a message or a PeerError. A body may be longer than a reader knows: the reader ignores
the bytes at its end. HELLO and WELCOME may end in extensions, which a reader that does not know them ignores. An end
tells the version of its program only to an end that has proved who it is. An address or a route has a family and a
prefix here; `pipeline.peers` judges whether it may be.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Sized
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, NamedTuple, TypeVar

from pipeline.errors import LocalError, PeerError
from pipeline.wire import framing
from pipeline.wire.uplink import Uplink
from pipeline.wire.uplink import unpack as unpack_uplink

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

MAGIC = b"tnl\x01"
VERSION = 2

KEY_ID_BYTES = 8
NONCE_BYTES = 32  # from the system's random numbers: no two nonces are equal
MAC_BYTES = 32  # HMAC-SHA256
ADDRESSES_MAX = 8  # requested or assigned: a few subnets, IPv4 and IPv6 each
PUSHED_ROUTES_MAX = 512  # in a WELCOME; with the addresses about 10 kB, below framing.WELCOME_LENGTH_LIMIT
DNS_SERVERS_MAX = 4  # in a WELCOME
TEXT_BYTES_MAX = 200  # in a REFUSED
PROGRAM_BYTES_MAX = 64  # of the version of a program; a HELLO with it and eight addresses is below HELLO_LENGTH_LIMIT
PUBLIC_BYTES = 32  # a public value of X25519 (RFC 7748)
NAME_BYTES_MAX = 32  # of a peer, in a DONE

_HELLO = struct.Struct(f">4sBBHHHQQBBB{KEY_ID_BYTES}s{NONCE_BYTES}s")
_WELCOME = struct.Struct(f">BBHB{MAC_BYTES}s")
_COUNT = struct.Struct(">H")
_CLOCK = struct.Struct(">Q")
_PORT = struct.Struct(">H")
_ADDRESS_BYTES = {4: 4, 6: 16}
WELCOME_MAC_AT = framing.FRAME.size + _WELCOME.size - MAC_BYTES  # offset in the frame

EXCHANGE, LEAVE, PROGRAM, CLOCK, KEY_SHARE, LANE, MOVES, DNS, UPLINK, DATAGRAM_PORT, FAKE_TCP_PORT = range(
    1, 12
)  # types of extensions
KNOCK, PADDING = 16, 17

ACCEPTS_SHARDS, ANSWERS, TAKES_PADDING, TAKES_DATAGRAMS, TAKES_NOTES = 1, 2, 4, 8, 16
"""Feature bits: this end accepts shards (pipeline.fec.shard), and on sealed connections it answers questions and takes
padding. A client takes datagrams; a server says so by its ports. A client takes notes (pipeline.wire.notes)."""


def features(accepts_shards: bool, takes_datagrams: bool = False, takes_notes: bool = False) -> int:
    """The features of this program."""
    news = TAKES_DATAGRAMS * takes_datagrams | TAKES_NOTES * takes_notes
    return ANSWERS | TAKES_PADDING | ACCEPTS_SHARDS * accepts_shards | news


AUTH_NONE, AUTH_KEY = 0, 1
ASKS = 0
"""A version that no program speaks: the client asks whether the server knows its key, and wants nothing else."""


(
    BUSY,
    WRONG_VERSION,
    SUPERSEDED,
    FULL,
    ADDRESS_TAKEN,
    ADDRESS_OUTSIDE,
    NO_ADDRESS,
    TOO_MANY_CONNECTIONS,
    REVOKED,
    TOO_MANY_SESSIONS,
    INVITATION_USED,
    INVITATION_EXPIRED,
    SHUT_OUT,
    NOT_RECORDED,
    NEEDS_JOIN,
    QUOTA_USED,
    INVITATION_REVOKED,
) = range(1, 18)
REASONS = {
    BUSY: "another client is connected",
    WRONG_VERSION: f"this server speaks version {VERSION}",
    SUPERSEDED: "a newer session of the same peer is connected",
    FULL: "this server has its maximum number of peers",
    ADDRESS_TAKEN: "another peer has the requested address",
    ADDRESS_OUTSIDE: "the requested address is not in the server's subnets, or not allowed to this peer",
    NO_ADDRESS: "no address is left in the server's pool",
    TOO_MANY_CONNECTIONS: "this peer has its maximum number of connections",
    REVOKED: "this peer has been revoked",
    TOO_MANY_SESSIONS: "this peer begins too many sessions",
    INVITATION_USED: "this invitation has been used; ask for another",
    INVITATION_EXPIRED: "this invitation has expired; ask for another",
    SHUT_OUT: "this peer is disabled on the server",
    NOT_RECORDED: "the server cannot record a new key at the moment; try again later",
    NEEDS_JOIN: "this invitation is for several machines, each with a key of its own: use `tunnel-supervisor join`",
    QUOTA_USED: "this peer has used up its quota",
    INVITATION_REVOKED: "this invitation has been revoked or replaced; ask for another",
}


class Hello(NamedTuple):
    """The client's first message."""

    version: int
    offloads: int  # TUN_F_* bits that the client's device accepts in packets written to it
    connection_index: int  # of this connection among those of the client
    connections: int  # of traffic class bulk that the client opens
    mtu: int  # of the client's device
    client_id: int  # constant over restarts of the client
    session: int  # number of this start of the client
    traffic_class: int  # of this connection
    features: int  # ACCEPTS_SHARDS, ANSWERS, TAKES_PADDING, TAKES_DATAGRAMS, TAKES_NOTES
    auth: int = AUTH_NONE
    key_id: bytes = bytes(KEY_ID_BYTES)
    nonce: bytes = bytes(NONCE_BYTES)
    requested_addresses: tuple[Address, ...] = ()
    program: str = ""  # version of the client's program; "": not told
    exchange: bytes = b""  # the client's public value for a new key; b"": none is asked for
    leaves: bool = False  # the client asks to be forgotten
    key_share: bytes = b""  # of the client, for sealed blocks (pipeline.sealing.session); b"": it offers none
    lane: int = 0  # of the client, that sends on this connection (pipeline.policy.lane_pairs)
    moves: bool = False  # the client has another server, and goes there if this one is about to stop
    knock: bytes = b""  # a mac that is good on this TLS connection alone (pipeline.wire.auth); b"": none
    uplink: Uplink | None = None  # of this connection; a client with one uplink tells none
    padding: bytes = b""  # means nothing

    def frame(self) -> bytes:
        _exactly(KEY_ID_BYTES, self.key_id, "key id")
        _exactly(NONCE_BYTES, self.nonce, "nonce")
        _at_most(ADDRESSES_MAX, self.requested_addresses, "requested addresses")
        count = bytes([len(self.requested_addresses)])
        addresses = b"".join(bytes([address.version]) + address.packed for address in self.requested_addresses)
        fields = self[: self._fields.index("requested_addresses")]
        return framing.frame(framing.HELLO, _HELLO.pack(MAGIC, *fields) + count + addresses + self._extensions())

    def _extensions(self) -> bytes:
        exchange = b""
        if self.exchange:
            exchange = _extension(EXCHANGE, _exactly(PUBLIC_BYTES, self.exchange, "public value"))
        program = _extension(PROGRAM, self.program.encode()) if self.program else b""
        leave = _extension(LEAVE, b"") * self.leaves
        moves = _extension(MOVES, b"") * self.moves
        knock = _extension(KNOCK, _exactly(MAC_BYTES, self.knock, "knock")) if self.knock else b""
        uplink = _extension(UPLINK, self.uplink.pack()) if self.uplink is not None else b""
        rest = _key_share(self.key_share) + _lane(self.lane) + moves + knock + uplink + _padding(self.padding)
        return exchange + leave + program + rest


class Challenge(NamedTuple):
    """The server asks a client that names a key to prove that it has the key."""

    nonce: bytes
    padding: bytes = b""  # means nothing

    def frame(self) -> bytes:
        return framing.frame(framing.CHALLENGE, _exactly(NONCE_BYTES, self.nonce, "nonce") + self.padding)


class Proof(NamedTuple):
    """The client proves that it has the key."""

    mac: bytes
    padding: bytes = b""  # means nothing

    def frame(self) -> bytes:
        return framing.frame(framing.PROOF, _exactly(MAC_BYTES, self.mac, "mac") + self.padding)


class Welcome(NamedTuple):
    """The server admits the connection."""

    version: int
    offloads: int  # TUN_F_* bits that the server's device accepts in packets written to it
    mtu: int  # of the server's device
    features: int  # ACCEPTS_SHARDS, ANSWERS, TAKES_PADDING
    mac: bytes = bytes(MAC_BYTES)  # the server's proof
    addresses: tuple[Interface, ...] = ()  # of the client in the tunnel, with the prefix of their subnet
    routes: tuple[Network, ...] = ()  # networks that the client reaches through the tunnel
    program: str = ""  # version of the server's program; "": not told
    clock: int = 0  # of the server: seconds since 1970; 0: not told
    key_share: bytes = b""  # of the server, for sealed blocks; b"": blocks are not sealed
    lane: int = 0  # of the server, that sends on this connection, as it tells this client
    dns: tuple[Address, ...] = ()  # DNS servers for a client that sends everything through the tunnel
    datagram_port: int | None = None  # of the server; 0: the one that the client has dialed; None: it takes none
    fake_tcp_port: int = 0  # at which the server takes datagrams behind TCP headers; 0: it takes none
    padding: bytes = b""  # means nothing

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
            + routes
            + (_extension(PROGRAM, self.program.encode()) if self.program else b"")
            + (_extension(CLOCK, _CLOCK.pack(self.clock)) if self.clock else b"")
            + _key_share(self.key_share)
            + _lane(self.lane)
            + _dns(self.dns)
            + (_extension(DATAGRAM_PORT, _PORT.pack(self.datagram_port)) if self.datagram_port is not None else b"")
            + (_extension(FAKE_TCP_PORT, _PORT.pack(self.fake_tcp_port)) if self.fake_tcp_port else b"")
            + _padding(self.padding),
        )


class Refused(NamedTuple):
    """The server does not admit the connection, and closes it after this message. A reader escapes `text`."""

    reason: int
    text: str

    def frame(self) -> bytes:
        whole_characters = self.text.encode(errors="replace")[:TEXT_BYTES_MAX].decode(errors="ignore")
        return framing.frame(framing.REFUSED, bytes([self.reason]) + whole_characters.encode())


class Done(NamedTuple):
    """The server has done what a HELLO has asked for. It closes the connection after this message."""

    mac: bytes = bytes(MAC_BYTES)  # the server's proof
    exchange: bytes = bytes(PUBLIC_BYTES)  # the server's public value for the new key; zeros if none was asked for
    name: str = ""  # of the peer that has the new key

    def frame(self) -> bytes:
        name = self.name.encode()
        _at_most(NAME_BYTES_MAX, name, "bytes in the name of a peer")
        mac, public = _exactly(MAC_BYTES, self.mac, "mac"), _exactly(PUBLIC_BYTES, self.exchange, "public value")
        return framing.frame(framing.DONE, mac + public + bytes([len(name)]) + name)


Message = Hello | Challenge | Proof | Welcome | Refused | Done


def _exactly(size: int, value: bytes, what: str) -> bytes:
    """Check the length: struct would pad a short value or cut a long one without an error."""
    if len(value) != size:
        raise LocalError(f"{what} of a handshake message: expected {size} bytes, found {len(value)}")
    return value


def _at_most(limit: int, values: Sized, what: str) -> None:
    if len(values) > limit:
        raise LocalError(f"{what}: at most {limit} fit into a handshake message, there are {len(values)}")


def _extension(kind: int, value: bytes) -> bytes:
    if kind == PROGRAM:
        _at_most(PROGRAM_BYTES_MAX, value, "bytes of a version")
    return bytes([kind, len(value)]) + value


def _key_share(key_share: bytes) -> bytes:
    return _extension(KEY_SHARE, key_share) if key_share else b""


def _lane(lane: int) -> bytes:
    return _extension(LANE, bytes([lane])) if lane else b""


def _dns(servers: tuple[Address, ...]) -> bytes:
    _at_most(DNS_SERVERS_MAX, servers, "DNS servers of a peer")
    listed = b"".join(bytes([server.version]) + server.packed for server in servers)
    return _extension(DNS, listed) if listed else b""


def _padding(padding: bytes) -> bytes:
    return _extension(PADDING, padding) if padding else b""


def _prefixed(length: int, address: Address) -> bytes:
    return bytes([address.version, length]) + address.packed


Prefixed = TypeVar("Prefixed", Interface, Network)


class _Body:
    """Reads the body of a frame from its front. PeerError if it ends too early or holds an impossible value."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) < size:
            raise PeerError(f"handshake message ends {size - len(piece)} bytes too early")
        self._at += size
        return piece

    def read_rest(self, limit: int) -> bytes:
        """The bytes up to the end of the body, at most `limit` of them."""
        return self._data[self._at : self._at + limit]

    def read_extensions(self) -> dict[int, bytes]:
        """The extensions up to the end of the body, by type: each is its type, its length and so many bytes.

        Of two of one type the first counts. Bytes at the end that are none are ignored.
        """
        found: dict[int, bytes] = {}
        data, at = self._data, self._at
        while at + 2 <= len(data) and at + 2 + data[at + 1] <= len(data):
            found.setdefault(data[at], data[at + 2 : at + 2 + data[at + 1]])
            at += 2 + data[at + 1]
        return found

    def read_u8(self) -> int:
        return self.read(1)[0]

    def read_fields(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self.read(form.size))

    def read_address(self) -> Address:
        return ipaddress.ip_address(self._read_packed(self.read_u8()))

    def read_prefixed(self, make: Callable[[tuple[bytes, int]], Prefixed]) -> Prefixed:
        """An address with the length of its prefix."""
        family, length = self.read(2)
        packed = self._read_packed(family)
        try:
            return make((packed, length))
        except ValueError:
            raise PeerError(
                f"{ipaddress.ip_address(packed)}/{length} in a handshake message: the prefix is longer than the "
                "address, or a route has bits behind its prefix"
            ) from None

    def _read_packed(self, family: int) -> bytes:
        if family not in _ADDRESS_BYTES:
            raise PeerError(f"address of family {family} in a handshake message, expected 4 or 6")
        return self.read(_ADDRESS_BYTES[family])


def _count(number: int, limit: int) -> range:
    if number > limit:
        raise PeerError(f"{number} addresses or routes in a handshake message, at most {limit} allowed")
    return range(number)


def decode(frame: bytes) -> Message:
    """The message in a whole frame. PeerError if there is none."""
    if len(frame) < framing.FRAME.size:
        raise PeerError("empty frame, expected a handshake message")
    length, kind = framing.FRAME.unpack_from(frame)
    if framing.LENGTH.size + length != len(frame):
        raise PeerError(f"handshake message of {len(frame) - framing.LENGTH.size} bytes that says {length}")
    if kind not in _READERS:
        raise PeerError(f"frame of type {kind:#04x}, expected a handshake message")
    return _READERS[kind](_Body(frame[framing.FRAME.size :]))


def _hello(body: _Body) -> Hello:
    magic, *fields = body.read_fields(_HELLO)
    if magic != MAGIC:
        raise PeerError(f"HELLO with magic {magic.hex()}, expected {MAGIC.hex()}")
    addresses = tuple(body.read_address() for _ in _count(body.read_u8(), ADDRESSES_MAX))
    extensions = body.read_extensions()
    exchange = extensions.get(EXCHANGE, b"")
    is_public = len(exchange) == PUBLIC_BYTES
    leaves = extensions.get(LEAVE) == b""
    knock = extensions.get(KNOCK, b"")
    return Hello._make(
        [
            *fields,
            addresses,
            _program(extensions),
            exchange if is_public else b"",
            leaves,
            extensions.get(KEY_SHARE, b""),
            _lane_of(extensions),
            extensions.get(MOVES) == b"",
            knock if len(knock) == MAC_BYTES else b"",
            unpack_uplink(extensions.get(UPLINK, b"")),
            extensions.get(PADDING, b""),
        ]
    )


def _program(extensions: dict[int, bytes]) -> str:
    """The version of the other end's program; "" if it does not tell it, or says nonsense: it is for people."""
    text = extensions.get(PROGRAM, b"")[: PROGRAM_BYTES_MAX + 1]
    is_version = len(text) <= PROGRAM_BYTES_MAX and all(0x21 <= byte < 0x7F for byte in text)
    return text.decode("ascii") if is_version else ""


def _lane_of(extensions: dict[int, bytes]) -> int:
    """The lane that the other end tells; an end with one lane tells none."""
    lane = extensions.get(LANE, b"")
    return lane[0] if len(lane) == 1 else 0


def _challenge(body: _Body) -> Challenge:
    return Challenge(body.read(NONCE_BYTES))


def _proof(body: _Body) -> Proof:
    return Proof(body.read(MAC_BYTES))


def _welcome(body: _Body) -> Welcome:
    fields = body.read_fields(_WELCOME)
    addresses = tuple(body.read_prefixed(ipaddress.ip_interface) for _ in _count(body.read_u8(), ADDRESSES_MAX))
    (count,) = body.read_fields(_COUNT)
    routes = tuple(body.read_prefixed(ipaddress.ip_network) for _ in _count(count, PUSHED_ROUTES_MAX))
    extensions = body.read_extensions()
    clock = extensions.get(CLOCK, b"")
    known = int.from_bytes(clock, "big") if len(clock) == _CLOCK.size else 0
    key_share, lane, padding = extensions.get(KEY_SHARE, b""), _lane_of(extensions), extensions.get(PADDING, b"")
    dns = _dns_of(extensions.get(DNS, b""))
    port = extensions.get(DATAGRAM_PORT, b"")
    datagram_port = int.from_bytes(port, "big") if len(port) == _PORT.size else None
    fake_tcp = extensions.get(FAKE_TCP_PORT, b"")
    fake_tcp_port = int.from_bytes(fake_tcp, "big") if len(fake_tcp) == _PORT.size else 0
    told = _program(extensions), known, key_share, lane, dns, datagram_port, fake_tcp_port, padding
    return Welcome._make([*fields, addresses, routes, *told])


def _dns_of(listed: bytes) -> tuple[Address, ...]:
    """The DNS servers in an extension; none if it is not whole."""
    body = _Body(listed)
    found: list[Address] = []
    try:
        while body.read_rest(1):
            found.append(body.read_address())
    except PeerError:
        return ()
    return tuple(found[:DNS_SERVERS_MAX])


def _refused(body: _Body) -> Refused:
    return Refused(body.read_u8(), body.read_rest(TEXT_BYTES_MAX).decode(errors="replace"))


def _done(body: _Body) -> Done:
    mac, exchange, length = body.read(MAC_BYTES), body.read(PUBLIC_BYTES), body.read_u8()
    if length > NAME_BYTES_MAX:
        raise PeerError(f"name of {length} bytes in a handshake message, at most {NAME_BYTES_MAX} allowed")
    name = body.read(length)
    if not name.isascii():
        raise PeerError("name with bytes that are not ASCII in a handshake message")
    return Done(mac, exchange, name.decode())


_READERS: dict[int, Callable[[_Body], Message]] = {
    framing.HELLO: _hello,
    framing.CHALLENGE: _challenge,
    framing.PROOF: _proof,
    framing.WELCOME: _welcome,
    framing.REFUSED: _refused,
    framing.DONE: _done,
}
