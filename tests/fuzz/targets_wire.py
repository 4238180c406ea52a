"""Targets that are functions of their input alone: frames, blocks, messages, packets; texts and files of an operator.

Each is a context manager of a function that takes an input. It asserts what the callers of the parser rely on.
"""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

from pipeline.counters import ID
from pipeline.credentials import invitation, keys
from pipeline.credentials.invitation import Invitation
from pipeline.errors import ConfigError, PeerError
from pipeline.fec.shard import COPIES
from pipeline.packet import gso as superpacket
from pipeline.packet import ip as ippacket
from pipeline.packet.flow import ERROR, flow_of_packet, told_of
from pipeline.packet.flow_classifier import FlowClassifier
from pipeline.packet.refusal import refusal
from pipeline.packet.vnet import GSO_ECN, NEEDS_CSUM, NO_VNET, VNET, VNET_HEADER_BYTES
from pipeline.peers.peer_file import DIRECTORY, DIRECTORY_MODE, read_all, write
from pipeline.secret_text import INVITATION_PREFIX
from pipeline.transport.address_learner import AddressLearner
from pipeline.transport.offered_alpn import offered
from pipeline.wire import block, charge, dns, framing, messages
from pipeline.wire.proxy_protocol import Client, ProxyHeader, header
from tests.fuzz.fuzzer import Feed
from tests.reference.blocks import block_frame
from tests.reference.packets import echo_request

LIMITS = (framing.LENGTH_LIMIT, framing.COMPAT_LENGTH_LIMIT, framing.HELLO_LENGTH_LIMIT)
SECRET_PIECE = 16  # characters of a secret that no text may hold in a row
IP_BYTES_MAX = 65535
CLIENTS = ("10.0.0.2", "10.0.0.255", "fd00::2", "fe80::2", "0.0.0.0")
GUARD = b"\xdb" * 7  # around a packet: bytes that belong to no packet


def alone(take: Feed) -> Callable:
    """A target that needs nothing made."""

    @contextmanager
    def opened() -> Iterator[Feed]:
        yield take

    return opened


# -- the ALPN names of a client that nobody knows


def offered_alpn(data: bytes) -> None:
    """Names, or none: they stand in the bytes that have arrived."""
    for name in offered(data) or ():
        assert name.encode("latin-1") in data


def offered_alpn_seeds() -> list[bytes]:
    """As a browser and a bare client send it; random bytes and the list of ciphers are shorter."""
    alpn = b"\0\x10\0\x0e\0\x0c\x02h2\x08http/1.1"
    hellos = [
        b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\1\0" + struct.pack("!H", len(each)) + each
        for each in (b"", alpn, b"\0\x0a\0\x02\0\0" + alpn)
    ]
    whole = [b"\x01" + len(each).to_bytes(3, "big") + each for each in hellos]
    return [b"\x16\x03\x01" + struct.pack("!H", len(each)) + each for each in whole]


# -- what a proxy says about its client


def proxy_header(data: bytes) -> None:
    """No byte behind a header is taken, whatever the pieces are, and a client that is named has an address."""
    ends = []
    for piece in (1, len(data) or 1):
        reader, at = ProxyHeader(), 0
        while reader.needs and at < len(data):
            size = min(reader.needs, piece, len(data) - at)
            reader.feed(data[at : at + size])
            at += size
        ends.append((reader.client, at))
    assert ends[0] == ends[1]
    client, _ = ends[0]
    if client is not None:
        assert ip_address(client.host) and 0 <= client.port <= 65535


def proxy_header_seeds() -> list[bytes]:
    four = header(Client("192.0.2.7", 40000), Client("192.0.2.1", 443))
    return [
        four,
        header(Client("2001:db8::7", 40000), Client("2001:db8::1", 443)),
        four[:12] + b"\x20" + four[13:],
        b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 443\r\n\x16\x03\x01",
        b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n",
        b"PROXY UNKNOWN\r\n",
        b"GET / HTTP/1.1\r\n",
    ]


# -- the original program's frames on a hub


def claims(data: bytes) -> None:
    """A stream of a client. The frame that the learner names has a sound packet from an address that it can have."""
    view = memoryview(GUARD * 2 + data + GUARD)
    at = 2 * len(GUARD)
    whole, *_ = framing.scan(view, at, at + len(data), framing.COMPAT_LENGTH_LIMIT)
    learner = AddressLearner(["10.0.0.1/24", "fd00::1/64"])
    while not learner.is_done:
        found = learner.find_claim(view, at, whole)
        assert at <= found <= whole and (found == whole) == (learner.claim is None)
        if learner.claim is None:
            return
        length, kind = framing.FRAME.unpack_from(view, found)
        bare = bytes(view[found + framing.FRAME.size : found + 4 + length])
        assert kind == framing.DATA and ippacket.check(memoryview(NO_VNET + bare), 0, 10 + len(bare)) is None
        assert ip_address(ippacket.source(memoryview(NO_VNET + bare), 0)) == learner.claim
        assert learner.claim in ip_network("10.0.0.0/24") or learner.claim in ip_network("fd00::/64")
        assert learner.claim not in (ip_address("10.0.0.1"), ip_address("fd00::1"))
        learner.settle()
        at = found


def claims_seeds() -> list[bytes]:
    packets = [echo_request(source, "10.0.0.1" if "." in source else "fd00::1", 1) for source in CLIENTS]
    return [framing.KEEPALIVE_FRAME + framing.frame(framing.DATA, each) for each in packets]


# -- DNS

DNS_NUMBER = 0x0707


def dns_answer(data: bytes) -> None:
    """Each address that is read stands in the answer."""
    for version in (4, 6):
        for address in dns.addresses_in(data, DNS_NUMBER, version):
            assert address.version == version and address.packed in data


def dns_answer_seeds() -> list[bytes]:
    asked = dns.question(DNS_NUMBER, "vpn.example.org", 4)
    answered = asked[:2] + bytes([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]) + asked[12:]
    return [asked, answered + b"\xc0\x0c\x00\x01\x00\x01" + bytes(4) + b"\x00\x04\xc6\x12\x00\x01"]


# -- frames and blocks


def frames(data: bytes) -> None:
    """A byte that chooses the limit, and a stream. Up to the end that scan() gives, frames stand behind each other."""
    limit = LIMITS[(data[0] if data else 0) % len(LIMITS)]
    view = memoryview(data)[1:]
    end = len(view)
    whole, after, count, runs, bare, charged = framing.scan(view, 0, end, limit)
    assert 0 <= whole <= end
    assert after > end and after - whole - 4 <= limit if after else end - whole < 4
    at = found = found_runs = 0
    while at < whole:
        (length,) = struct.unpack_from(">I", view, at)
        assert length <= limit
        found += 1
        is_run = length > 0 and view[at + 4] == framing.RUN
        found_runs += is_run and (length < 9 or not view[at + 8] & COPIES)
        at += 4 + length
    assert (at, found, found_runs) == (whole, count, runs)
    assert framing.scan(view, 0, whole, limit) == (whole, 0, count, runs, bare, charged)
    assert charge.FRAME * count <= charged
    most = charged // 2 + 1
    part = framing.scan(view, 0, end, limit, most)
    rest = framing.scan(view, part[0], end, limit)
    assert (part[0] <= whole, part[2] + rest[2], part[5] + rest[5]) == (True, count, charged)


def frames_seeds() -> list[bytes]:
    stream = (
        framing.KEEPALIVE_FRAME
        + framing.frame(framing.RUN, bytes(30))
        + bytes(4)
        + framing.frame(framing.DATA, bytes(20))
    )
    return [bytes([which]) + stream + tail for which in range(3) for tail in (b"", b"\0\0", b"\0\0\0\x09ab")] + [
        b"\0\0\2\x08\x49"
    ]


def blocks(data: bytes) -> None:
    """A block's frame behind its length. The packets fill it."""
    frame = framing.LENGTH.pack(len(data)) + data
    view = memoryview(GUARD + frame + GUARD)
    at, end = len(GUARD), len(GUARD) + len(frame)
    first, lengths = block.lengths(view, at, end)
    assert at + framing.BLOCK_PREFIX.size + 4 * len(lengths) == first
    assert first + sum(lengths) == end
    assert len(lengths) <= framing.BLOCK_PACKETS_MAX


def blocks_seeds() -> list[bytes]:
    packet = echo_request("10.0.0.2", "10.0.0.1", 7)
    return [block_frame(*[packet] * count)[4:] for count in range(3)] + [b"", b"\x20\xff\xff"]


# -- messages of the handshake


def handshake_message(data: bytes) -> None:
    """A frame, and once more behind a length that is right. The decoded message, encoded again, has equal bytes."""
    with contextlib.suppress(PeerError):
        _encoded_again(data)
    _encoded_again(framing.LENGTH.pack(len(data)) + data)


def _encoded_again(frame: bytes) -> None:
    found = messages.decode(frame)
    again = found.frame()
    assert messages.decode(again).frame() == again
    if isinstance(found, messages.Refused):
        assert len(found.text) <= messages.TEXT_BYTES_MAX
        return
    assert messages.decode(again) == found
    known = _without_extensions(found).frame()
    assert frame[4 : len(known)] == known[4:]  # behind that are extensions, and bytes that are not known
    assert len(again) <= framing.WELCOME_LENGTH_LIMIT


def _without_extensions(message: messages.Message) -> messages.Message:
    match message:
        case messages.Hello():
            return message._replace(program="", exchange=b"", leaves=False, key_share=b"", lane=0)
        case messages.Welcome():
            return message._replace(program="", clock=0, key_share=b"", lane=0)
    return message


def one_of_each() -> list[bytes]:
    """A whole frame of each message."""
    addresses = ip_address("10.0.0.7"), ip_address("fd00::7")
    hello = messages.Hello(1, 0x13, 0, 2, 1400, 5, 6, 1, 1, messages.AUTH_KEY, b"k" * 8, b"n" * 32, addresses, "0.1.0")
    welcome = messages.Welcome(
        1,
        0x13,
        1400,
        1,
        b"m" * 32,
        (ip_interface("10.0.0.7/24"), ip_interface("fd00::7/64")),
        (ip_network("10.1.0.0/16"), ip_network("fd01::/48")),
        "0.1.0+g1a2b3c4",
        1_800_000_000,
    )
    return [
        each.frame()
        for each in (
            hello,
            messages.Challenge(b"c" * 32),
            messages.Proof(b"p" * 32),
            welcome,
            messages.Refused(messages.FULL, "full é"),
        )
    ]


def handshake_message_seeds() -> list[bytes]:
    hello = messages.decode(one_of_each()[0])
    assert isinstance(hello, messages.Hello)
    frames = [
        *one_of_each(),
        hello._replace(exchange=b"x" * 32, leaves=True).frame(),
        hello._replace(key_share=b"\1" + b"s" * 32).frame(),
        messages.Done(b"m" * 32, b"x" * 32, "ann-2").frame(),
    ]
    return [frame[4:] for frame in frames] + frames


# -- packets


def packet(data: bytes) -> None:
    """A packet with its virtio-net header. A sound one has addresses, and what is made of it is sound and its own."""
    size = len(data)
    view = memoryview(data)
    reason = ippacket.check(view, 0, size)
    assert reason == ippacket.check(memoryview(GUARD + data + GUARD), len(GUARD), size)
    if reason is not None:
        assert reason in ID.values()
        return
    _found_sound(view)
    flags, _, _, _, start, _ = VNET.unpack_from(data)
    header = 40 if data[VNET_HEADER_BYTES] >> 4 == 6 else (data[VNET_HEADER_BYTES] & 15) * 4
    assert not flags & NEEDS_CSUM or start >= header  # or the checksum lands where an address was checked
    FlowClassifier(lambda: True).classify_light(view, 0, size, 5)
    flow = flow_of_packet(view, VNET_HEADER_BYTES, size)
    assert flow is not None and (flow.source, flow.destination) == (
        ippacket.source(view, 0),
        ippacket.destination(view, 0),
    )
    if flow.part == ERROR:
        told_of(view, flow, size)
    answer = refusal(view, VNET_HEADER_BYTES, size, flow, bytes(len(flow.source)))
    assert not answer or ippacket.check_bare(memoryview(answer), 0, len(answer)) is None
    finished = superpacket.finish(data)
    kind = data[1] & ~GSO_ECN
    assert len(finished) <= superpacket.SEGMENTS_MAX
    assert finished or kind
    for each in map(memoryview, finished):
        assert each[:VNET_HEADER_BYTES] == NO_VNET
        assert ippacket.check(each, 0, len(each)) is None
        _found_sound(each)
        assert (ippacket.source(each, 0), ippacket.destination(each, 0)) == (
            ippacket.source(view, 0),
            ippacket.destination(view, 0),
        )
    if len(finished) > 1:  # headers are all that is added, and the payload is all there in its order
        ip = data[VNET_HEADER_BYTES:]
        segments = [each[VNET_HEADER_BYTES:] for each in finished]
        head, odd = divmod(sum(map(len, segments)) - len(ip), len(segments) - 1)
        assert not odd
        assert b"".join(each[head:] for each in segments) == ip[head:]


def _found_sound(view: memoryview) -> None:
    assert len(view) - VNET_HEADER_BYTES <= IP_BYTES_MAX + ippacket.V6_HEADER_BYTES
    source, destination = ippacket.source(view, 0), ippacket.destination(view, 0)
    assert len(source) == len(destination) == (4 if view[VNET_HEADER_BYTES] >> 4 == 4 else 16)
    ippacket.is_multicast(destination)


def packet_seeds() -> list[bytes]:
    return [
        packet_of(version, protocol, gso)
        for version in (4, 6)
        for protocol in (6, 17)
        for gso in (0, 1, 4, 5, 0x81, 0x84)
    ] + [bytes(10) + echo_request("10.0.0.2", "224.0.0.1", 1)]


def packet_of(
    version: int, protocol: int, gso: int, payload: int = 100, source: str = "", destination: str = ""
) -> bytes:
    """TCP or UDP with a checksum to be completed, in segments of 40 bytes where `gso` says so."""
    start = 20 if version == 4 else 40
    head = 20 if protocol == 6 else 8
    size = start + head + payload
    ends = [
        ip_address(given or default).packed
        for given, default in zip(
            (source, destination), ("10.0.0.2", "10.9.9.9") if version == 4 else ("fd00::2", "fd09::9"), strict=True
        )
    ]
    ip = (
        struct.pack(">BBHIBBH", 0x45, 0, size, 0, 64, protocol, 0)
        if version == 4
        else struct.pack(">IHBB", 6 << 28, size - 40, protocol, 64)
    ) + b"".join(ends)
    transport = (
        struct.pack(">HHIIBBHHH", 1000, 2000, 1, 1, 0x50, 0x99, 9, 0, 0)
        if protocol == 6
        else struct.pack(">HHHH", 1000, 2000, head + payload, 0)
    )
    header = VNET.pack(1, gso, start + head, 40 if gso else 0, start, 16 if protocol == 6 else 6)
    return header + ip + transport + bytes(payload)


# -- texts and files


def invited(data: bytes) -> None:
    """A line, or behind an odd byte the object in it. Encoded again it means no other; no error shows a piece of it."""
    line = data[1:].decode(errors="surrogateescape")
    if data[:1] and data[0] & 1:
        line = INVITATION_PREFIX + base64.urlsafe_b64encode(data[1:]).decode().rstrip("=")
    try:
        found = invitation.decode(line)
    except ConfigError as error:
        said = str(error)
        assert not any(line[at : at + SECRET_PIECE] in said for at in range(len(line) - SECRET_PIECE))
        return
    assert invitation.decode(invitation.encode(found)) == found
    assert len(found.key) == 32


def invited_seeds() -> list[bytes]:
    lines = [
        invitation.encode(Invitation(server, bytes(range(32)), "ab" * 32, "ann"))
        for server in ("vpn.example.org:9000", "[fd00::1]:9000", "192.0.2.1:1")
    ]
    several = Invitation("a.example:1", bytes(range(32)), "ab" * 32, "ann", others=("b.example:1", "[fd00::1]:2"))
    lines.append(invitation.encode(several))
    objects = [base64.urlsafe_b64decode(line.removeprefix(INVITATION_PREFIX) + "==") for line in lines]
    return (
        [b"\0" + line.encode() for line in lines]
        + [b"\1" + each for each in objects]
        + [
            b"\1" + b"[" * 1400,
            b"\1" + json.dumps({"server": ":1", "key": "", "certificate": "", "name": "a/b"}).encode(),
        ]
    )


@contextmanager
def peer_file() -> Iterator[Feed]:
    """The file of an invited peer. One that is taken can be written, and is read again as it was."""
    with tempfile.TemporaryDirectory() as name:
        state = Path(name)
        directory = state / DIRECTORY
        directory.mkdir(DIRECTORY_MODE)
        path = directory / "ann.json"
        path.touch(keys.SECRET_MODE)

        def take(data: bytes) -> None:
            path.write_bytes(data)
            found, broken = read_all(state)
            if broken:
                assert not found and str(path) in str(broken[0].problem)
                return
            write(state, found[0], replace=True)
            assert read_all(state) == (found, [])

        yield take


def peer_file_seeds() -> list[bytes]:
    key = base64.b64encode(bytes(range(32))).decode()
    return [
        json.dumps({"key": key} | more).encode()
        for more in (
            {},
            {"allowed": ["10.1.0.0/16", "fd01::/48"], "address": "10.0.0.7", "rate_mbit": 20},
            {"address": ["10.0.0.7", "fd00::7"], "rate_mbit": 0.5},
            {"allowed": ["10.1.0.1/16"]},
            {"address": "x"},
            {"key": "x"},
            {"key": "", "invitation": {"key": key, "expires": 1_800_000_000, "uses": 3}, "until": 1_900_000_000},
            {"invitation": {"key": key, "expired": True, "kept": True}},
            {"agreed": {"invitation": "ab" * 8, "client": "cd" * 32, "server": "ef" * 32}},
        )
    ] + [b"{", b"[" * 2000]
