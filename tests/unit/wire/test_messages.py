"""Messages of the handshake: their bytes, and bytes that are no message."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import LocalError, PeerError
from pipeline.wire import framing, messages
from pipeline.wire.messages import (
    ADDRESS_OUTSIDE,
    ADDRESSES_MAX,
    AUTH_KEY,
    BUSY,
    DNS_SERVERS_MAX,
    PUSHED_ROUTES_MAX,
    TEXT_BYTES_MAX,
    Challenge,
    Done,
    Hello,
    Message,
    Proof,
    Refused,
    Welcome,
    decode,
)
from pipeline.wire.uplink import Uplink

PROGRAMS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64)
U8, U16, U64 = st.integers(0, 255), st.integers(0, 65535), st.integers(0, (1 << 64) - 1)


def of_size(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def prefixed(version: Literal[4, 6]) -> st.SearchStrategy[messages.Interface]:
    """Addresses of a family with every length of prefix."""
    return st.builds(
        lambda address, length: ip_interface((address.packed, length)),
        st.ip_addresses(v=version),
        st.integers(0, 32 if version == 4 else 128),
    )


def several(strategy: st.SearchStrategy, limit: int) -> st.SearchStrategy[tuple]:
    return st.lists(strategy, max_size=limit).map(tuple)


INTERFACES = st.one_of(prefixed(4), prefixed(6))
NETWORKS = INTERFACES.map(lambda interface: interface.network)
HELLOS = st.builds(
    Hello,
    U8,
    U8,
    U16,
    U16,
    U16,
    U64,
    U64,
    U8,
    U8,
    U8,
    of_size(8),
    of_size(32),
    several(st.ip_addresses(), ADDRESSES_MAX),
    st.one_of(st.just(""), PROGRAMS),
    st.one_of(st.just(b""), of_size(32)),
    st.booleans(),
    lane=U8,
    knock=st.one_of(st.just(b""), of_size(32)),
    uplink=st.none() | st.builds(Uplink, st.integers(0, 3), st.text("ethwlan0.-", max_size=15), st.booleans()),
    padding=st.binary(max_size=100),
)
CHALLENGES = st.builds(Challenge, of_size(32), st.just(b""))
PROOFS = st.builds(Proof, of_size(32), st.just(b""))
WELCOME_PARTS = (U8, U8, U16, U8, of_size(32), several(INTERFACES, ADDRESSES_MAX), several(NETWORKS, 20))
WELCOMES = st.one_of(
    st.builds(
        Welcome,
        *WELCOME_PARTS,
        st.just(""),
        st.just(0),
        lane=U8,
        dns=st.just(()),
        datagram_port=st.none(),
        fake_tcp_port=st.just(0),
        padding=st.just(b""),
    ),
    st.builds(
        Welcome,
        *WELCOME_PARTS,
        PROGRAMS,
        U64,
        lane=U8,
        dns=several(st.ip_addresses(), DNS_SERVERS_MAX),
        datagram_port=st.none() | U16,
        fake_tcp_port=U16,
        padding=st.binary(max_size=255),
    ),
)
REFUSALS = st.builds(Refused, U8, st.text(max_size=TEXT_BYTES_MAX // 4))
DONES = st.builds(Done, of_size(32), of_size(32), st.text(st.characters(max_codepoint=127), max_size=32))

FULL_HELLO = Hello(
    1,
    0x6F,
    2,
    5,
    1400,
    0x1122334455667788,
    3,
    framing.LIGHT,
    messages.ACCEPTS_SHARDS,
    AUTH_KEY,
    b"i" * 8,
    b"n" * 32,
    (ip_address("10.0.0.2"), ip_address("fd00::2")),
)
FULL_WELCOME = Welcome(
    1,
    0x6F,
    1400,
    1,
    b"m" * 32,
    (ip_interface("10.0.0.2/24"), ip_interface("fd00::2/64")),
    (ip_network("10.1.0.0/16"), ip_network("::/0")),
)
MESSAGES = [
    FULL_HELLO,
    FULL_WELCOME,
    Challenge(b"n" * 32),
    Proof(b"m" * 32),
    Done(b"m" * 32, b"x" * 32, "ann"),
]


def hello() -> Hello:
    return Hello(messages.VERSION, 0, 0, 1, 1400, 11, 5, 0, 0)


def grown(frame: bytes, more: bytes) -> bytes:
    """The frame with a longer body, as a later version may send it."""
    return framing.frame(frame[4], frame[5:] + more)


# -- on the wire


def test_a_hello_on_the_wire() -> None:
    assert FULL_HELLO.frame() == (
        b"\x00\x00\x00\x5f\x10tnl\x01\x01\x6f\x00\x02\x00\x05\x05\x78"
        b"\x11\x22\x33\x44\x55\x66\x77\x88\x00\x00\x00\x00\x00\x00\x00\x03\x01\x01"
        b"\x01iiiiiiiinnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"
        b"\x02\x04\x0a\x00\x00\x02\x06\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02"
    )


def test_a_hello_without_key_and_requested_addresses_ends_in_zeros() -> None:
    frame = hello().frame()
    assert frame[35:] == bytes(1 + 8 + 32 + 1)
    assert decode(frame) == hello()


def test_the_other_messages_on_the_wire() -> None:
    assert Challenge(b"n" * 32).frame() == b"\x00\x00\x00\x21\x13" + b"n" * 32
    assert Proof(b"m" * 32).frame() == b"\x00\x00\x00\x21\x14" + b"m" * 32
    assert Welcome(1, 0x6F, 1400, 1).frame() == b"\x00\x00\x00\x29\x11\x01\x6f\x05\x78\x01" + bytes(32 + 1 + 2)
    assert FULL_WELCOME.frame() == (
        b"\x00\x00\x00\x59\x11\x01\x6f\x05\x78\x01"
        + b"m" * 32
        + b"\x02\x04\x18\x0a\x00\x00\x02\x06\x40\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02"
        + b"\x00\x02\x04\x10\x0a\x01\x00\x00\x06\x00"
        + bytes(16)
    )
    assert Refused(BUSY, "no").frame() == b"\x00\x00\x00\x04\x12\x01no"


def test_the_mac_of_a_welcome_is_where_it_is_said_to_be() -> None:
    frame = FULL_WELCOME.frame()
    assert frame[messages.WELCOME_MAC_AT : messages.WELCOME_MAC_AT + messages.MAC_BYTES] == FULL_WELCOME.mac
    assert frame.count(b"m") == messages.MAC_BYTES


@given(st.one_of(HELLOS, CHALLENGES, PROOFS, WELCOMES, REFUSALS, DONES))
def test_any_message_is_decoded_as_it_was_sent(message: Message) -> None:
    assert decode(message.frame()) == message


@given(st.one_of(HELLOS, CHALLENGES, PROOFS, WELCOMES, DONES), st.binary(max_size=30))
def test_a_body_with_more_bytes_at_its_end_is_understood(message: Message, more: bytes) -> None:
    assert decode(grown(message.frame(), b"\xf0\x02no" + more)) == message


@given(st.one_of(HELLOS, WELCOMES), st.binary(max_size=90))
def test_whatever_stands_behind_an_older_message_its_fields_are_as_they_were(message: Any, more: bytes) -> None:
    is_hello = isinstance(message, Hello)
    bare = message._replace(program="", **({"exchange": b"", "leaves": False} if is_hello else {"clock": 0}))
    found = decode(grown(bare.frame(), more))
    fixed = message._fields.index("program")
    assert found[:fixed] == bare[:fixed]
    assert all(0x21 <= ord(character) < 0x7F for character in found.program)


def test_the_version_of_a_program_is_an_extension_behind_all_else() -> None:
    assert FULL_HELLO._replace(program="0.1.0").frame()[5:] == FULL_HELLO.frame()[5:] + b"\x03\x050.1.0"
    told = FULL_WELCOME._replace(program="0.1.0+g1a2b3c4", clock=0x0102030405060708)
    assert (
        told.frame()[5:] == FULL_WELCOME.frame()[5:] + b"\x03\x0e0.1.0+g1a2b3c4\x04\x08\x01\x02\x03\x04\x05\x06\x07\x08"
    )
    assert decode(told.frame()) == told


@pytest.mark.parametrize(
    "more",
    [
        b"\x03",
        b"\x03\x06short",
        b"\x03\x03a\nb",
        b"\x03\x02\xc3\xa4",
        b"\x03\x03a b",
        b"\x03A" + b"x" * 65,
        b"\x03\x00",
    ],
)
def test_a_version_that_is_nonsense_is_none(more: bytes) -> None:
    assert decode(grown(FULL_HELLO.frame(), more)) == FULL_HELLO
    assert decode(grown(FULL_WELCOME.frame(), more)) == FULL_WELCOME


def test_an_unknown_extension_is_passed_over_and_a_clock_of_another_size_is_none() -> None:
    told = decode(grown(FULL_WELCOME.frame(), b"\xf0\x01x\x04\x02ab\x03\x050.1.0\x03\x01y"))
    assert told == FULL_WELCOME._replace(program="0.1.0", clock=0)


def test_dns_servers_are_an_extension_and_one_that_is_not_whole_has_none() -> None:
    told = FULL_WELCOME._replace(dns=(ip_address("10.0.0.1"), ip_address("fd00::1")))
    listed = b"\x04\x0a\x00\x00\x01" + b"\x06" + ip_address("fd00::1").packed
    assert told.frame() == grown(FULL_WELCOME.frame(), b"\x08" + bytes([len(listed)]) + listed)
    assert decode(told.frame()) == told
    for broken in (listed[:-1], b"\x05" + listed, listed + b"\x04"):
        assert decode(grown(FULL_WELCOME.frame(), b"\x08" + bytes([len(broken)]) + broken)) == FULL_WELCOME


def test_a_server_tells_its_port_for_datagrams_behind_all_else_and_one_of_another_size_is_none() -> None:
    for port, value in ((0, b"\0\0"), (443, b"\x01\xbb"), (65535, b"\xff\xff")):
        told = FULL_WELCOME._replace(datagram_port=port)
        assert told.frame() == grown(FULL_WELCOME.frame(), b"\x0a\x02" + value) and decode(told.frame()) == told
    for value in (b"", b"\1", b"\0\1\0"):
        assert decode(grown(FULL_WELCOME.frame(), b"\x0a" + bytes([len(value)]) + value)) == FULL_WELCOME


def test_a_server_tells_its_port_for_fake_tcp_and_one_of_another_size_is_none() -> None:
    told = FULL_WELCOME._replace(fake_tcp_port=444)
    assert told.frame() == grown(FULL_WELCOME.frame(), b"\x0b\x02\x01\xbc") and decode(told.frame()) == told
    for value in (b"", b"\1", b"\0\1\0"):
        assert decode(grown(FULL_WELCOME.frame(), b"\x0b" + bytes([len(value)]) + value)) == FULL_WELCOME


@pytest.mark.parametrize("takes", [True, False])
def test_a_client_that_takes_datagrams_has_a_feature_and_the_others_are_as_they_were(takes: bool) -> None:
    features = messages.features(True, takes)
    assert bool(features & messages.TAKES_DATAGRAMS) == takes
    assert features & ~messages.TAKES_DATAGRAMS == messages.features(True)


def test_the_extensions_of_a_hello_on_the_wire_stand_behind_its_addresses_and_others_are_skipped() -> None:
    plain = FULL_HELLO.frame()
    asked = FULL_HELLO._replace(exchange=b"x" * 32, leaves=True)
    assert asked.frame() == grown(plain, b"\x01\x20" + b"x" * 32 + b"\x02\x00")
    assert decode(grown(plain, b"\xf0\x02ab\x02\x00\x01\x20" + b"x" * 32 + b"\x01\x20" + b"y" * 32)) == asked


@pytest.mark.parametrize("more", [b"\x01", b"\x01\x20xx", b"\x01\x1f" + b"x" * 31, b"\x02\x01x", b"\x02"], ids=repr)
def test_bytes_behind_a_hello_that_are_no_extension_of_ours_ask_for_nothing(more: bytes) -> None:
    assert decode(grown(FULL_HELLO.frame(), more)) == FULL_HELLO


def test_a_client_that_has_another_server_says_so_behind_all_else() -> None:
    told = FULL_HELLO._replace(moves=True)
    assert told.frame() == grown(FULL_HELLO.frame(), b"\x07\x00") and decode(told.frame()) == told
    assert decode(grown(FULL_HELLO.frame(), b"\x07\x01x")) == FULL_HELLO


def test_a_done_with_a_name_that_no_peer_has_is_no_message() -> None:
    for name, text in ((b"x" * 33, "name of 33 bytes"), (b"\xff", "not ASCII")):
        with pytest.raises(PeerError, match=text):
            decode(framing.frame(framing.DONE, bytes(64) + bytes([len(name)]) + name))


# -- lengths


def test_every_message_fits_the_limit_of_its_sender() -> None:
    addresses = (ip_address("fd00::2"),) * ADDRESSES_MAX
    for frame in (
        FULL_HELLO._replace(requested_addresses=addresses, program="x" * 64).frame(),
        Proof(bytes(32)).frame(),
    ):
        assert len(frame) - framing.LENGTH.size <= framing.HELLO_LENGTH_LIMIT
    longest = Welcome(
        1,
        0,
        1400,
        0,
        bytes(32),
        (ip_interface("fd00::2/64"),) * ADDRESSES_MAX,
        (ip_network("fd00::/64"),) * PUSHED_ROUTES_MAX,
        "x" * messages.PROGRAM_BYTES_MAX,
        1,
        dns=(ip_address("fd00::1"),) * DNS_SERVERS_MAX,
    )
    refusal = Refused(BUSY, "x" * 2 * TEXT_BYTES_MAX)
    for frame in (longest.frame(), refusal.frame(), Challenge(bytes(32)).frame()):
        assert len(frame) - framing.LENGTH.size <= framing.WELCOME_LENGTH_LIMIT
    assert decode(longest.frame()) == longest


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (FULL_HELLO._replace(key_id=b"short"), "key id of a handshake message: expected 8 bytes, found 5"),
        (FULL_HELLO._replace(nonce=bytes(33)), "nonce of a handshake message: expected 32 bytes, found 33"),
        (
            FULL_HELLO._replace(requested_addresses=(ip_address("::1"),) * 9),
            "requested addresses: at most 8 .* there are 9",
        ),
        (Challenge(bytes(31)), "nonce of a handshake message: expected 32 bytes, found 31"),
        (Proof(b""), "mac of a handshake message: expected 32 bytes, found 0"),
        (FULL_WELCOME._replace(mac=bytes(31)), "mac of a handshake message: expected 32 bytes, found 31"),
        (FULL_WELCOME._replace(addresses=FULL_WELCOME.addresses * 5), "addresses of a peer: at most 8 .* there are 10"),
        (FULL_WELCOME._replace(routes=FULL_WELCOME.routes * 257), "routes of a peer: at most 512 .* there are 514"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_does_not_fit_into_a_message_is_our_own_mistake(message: Message, text: str) -> None:
    with pytest.raises(LocalError, match=text):
        message.frame()


@given(U8, st.text(alphabet=st.characters(exclude_categories=()), max_size=10), st.integers(1, 60))
def test_the_text_of_a_refusal_is_cut_between_characters(reason: int, part: str, times: int) -> None:
    text = part * times
    received = decode(Refused(reason, text).frame())
    assert isinstance(received, Refused)
    assert text.encode(errors="replace").decode().startswith(received.text)
    assert len(received.text.encode()) <= TEXT_BYTES_MAX
    if len(received.text) < len(text):
        assert len(received.text.encode()) > TEXT_BYTES_MAX - 4


# -- bytes that are no message


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x00\x00\x00",
        framing.KEEPALIVE_FRAME,
        framing.frame(framing.DATA, b"E" * 40),
        framing.frame(framing.HELLO),
        framing.frame(framing.REFUSED),
        framing.frame(framing.WELCOME, b"\x01\x00\x05"),
        framing.frame(framing.HELLO, b"TNL\x01" + bytes(68)),
        framing.frame(framing.HELLO, b"tnl\x02" + bytes(68)),
        framing.frame(0xFF, b"tnl\x01" + bytes(68)),
        hello().frame() + b"more than it says",
    ],
    ids=repr,
)
def test_a_frame_that_is_no_message_is_the_peers_fault(frame: bytes) -> None:
    with pytest.raises(PeerError):
        decode(frame)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_that_is_cut_anywhere_is_the_peers_fault(message: Message) -> None:
    frame = message.frame()
    assert decode(frame) == message
    for length in range(len(frame)):
        with pytest.raises(PeerError):
            decode(frame[:length])
    for length in range(len(frame) - 5):
        with pytest.raises(PeerError, match="too early"):
            decode(framing.frame(frame[4], frame[5 : 5 + length]))


def hello_with(addresses: bytes) -> bytes:
    return framing.frame(framing.HELLO, hello().frame()[5:-1] + addresses)


def welcome_with(behind_the_mac: bytes) -> bytes:
    return framing.frame(framing.WELCOME, Welcome(1, 0, 1400, 0).frame()[5:-3] + behind_the_mac)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (hello_with(b"\x01\x05\x0a\x00\x00\x02"), "address of family 5 in a handshake message, expected 4 or 6"),
        (hello_with(b"\x01\x00"), "address of family 0 "),
        (hello_with(b"\x02\x04\x0a\x00\x00\x02"), "handshake message ends 1 bytes too early"),
        (hello_with(b"\x01\x06\x0a\x00\x00\x02"), "handshake message ends 12 bytes too early"),
        (
            hello_with(b"\x09" + b"\x04\x0a\x00\x00\x02" * 9),
            "9 addresses or routes in a handshake message, at most 8 allowed",
        ),
        (
            welcome_with(b"\x01\x04\x21\x0a\x00\x00\x02\x00\x00"),
            "10.0.0.2/33 in a handshake message: the prefix is longer",
        ),
        (welcome_with(b"\x01\x06\x81" + bytes(18)), "::/129 in a handshake message: the prefix is longer"),
        (welcome_with(b"\x01\x07\x18\x0a\x00\x00\x02\x00\x00"), "address of family 7 "),
        (welcome_with(b"\xff\x00\x00"), "255 addresses or routes in a handshake message, at most 8 allowed"),
        (
            welcome_with(b"\x00\x00\x01\x04\x10\x0a\x01\x00\x01"),
            "10.1.0.1/16 in a handshake message: .* bits behind its prefix",
        ),
        (welcome_with(b"\x00\x00\x01\x04\xff\x0a\x01\x00\x00"), "10.1.0.0/255 in a handshake message: "),
        (welcome_with(b"\x00\x00\x02\x04\x10\x0a\x01\x00\x00"), "handshake message ends 2 bytes too early"),
        (
            welcome_with(b"\x00\x02\x01" + b"\x04\x00\x00\x00\x00\x00" * 513),
            "513 addresses or routes in a handshake message",
        ),
    ],
)
def test_impossible_addresses_and_routes_are_the_peers_fault(frame: bytes, message: str) -> None:
    with pytest.raises(PeerError, match=message):
        decode(frame)


KINDS = st.one_of(
    st.sampled_from([framing.HELLO, framing.CHALLENGE, framing.PROOF, framing.WELCOME, framing.REFUSED]), U8
)


def decodes_or_is_rejected(frame: bytes) -> None:
    try:
        message = decode(frame)
    except PeerError:
        return
    assert isinstance(message, Message)
    frame = message.frame()
    assert isinstance(message, Refused) or decode(frame) == message


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_the_peers_fault(data: bytes) -> None:
    decodes_or_is_rejected(data)


@given(
    KINDS,
    st.sampled_from([b"", messages.MAGIC, hello().frame()[5:-1], Welcome(1, 0, 1400, 0).frame()[5:-3]]),
    st.binary(max_size=200),
)
def test_any_frame_decodes_or_is_the_peers_fault(kind: int, start: bytes, rest: bytes) -> None:
    decodes_or_is_rejected(framing.frame(kind, start + rest))


@given(st.sampled_from([message.frame() for message in MESSAGES]), st.data())
def test_a_message_with_changed_bytes_decodes_or_is_the_peers_fault(frame: bytes, data: st.DataObject) -> None:
    changed = bytearray(frame)
    for at in data.draw(st.lists(st.integers(4, len(frame) - 1), min_size=1, max_size=4)):
        changed[at] = data.draw(U8)
    decodes_or_is_rejected(bytes(changed))


def test_a_refusal_with_too_many_bytes_or_invalid_text_is_readable() -> None:
    assert decode(framing.frame(framing.REFUSED, b"\x01caf\xe9")) == Refused(1, "caf�")
    assert decode(framing.frame(framing.REFUSED, b"\x01" + b"x" * 400)) == Refused(1, "x" * TEXT_BYTES_MAX)


def test_every_reason_has_a_number_and_a_text_that_fits() -> None:
    assert list(messages.REASONS) == list(range(1, 18))
    assert messages.REASONS[ADDRESS_OUTSIDE].startswith("the requested address is not in the server's subnets")
    for reason, text in messages.REASONS.items():
        assert decode(Refused(reason, text).frame()) == Refused(reason, text)


# -- the lane


@pytest.mark.parametrize("message", [hello(), Welcome(messages.VERSION, 0, 1400, 0)], ids=["hello", "welcome"])
def test_a_lane_is_told_in_an_extension_and_lane_0_in_none(message: Hello | Welcome) -> None:
    told = message._replace(lane=3)
    assert told.frame()[5:] == message.frame()[5:] + b"\x06\x01\x03"
    assert decode(told.frame()) == told
    assert decode(message.frame()).lane == 0


@pytest.mark.parametrize("value", [b"", b"\x01\x02", b"\x00" * 200], ids=repr)
def test_a_lane_of_another_length_counts_as_none(value: bytes) -> None:
    body = hello().frame()[5:] + bytes([6, len(value)]) + value
    assert decode(framing.frame(framing.HELLO, body)).lane == 0
