"""Greetings: what is on the wire, what is refused, and whom a server of one client admits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import session, wire
from pipeline.errors import PeerError
from pipeline.session import BUSY, SUPERSEDED, WRONG_VERSION, Hello, Holder, Refused, Welcome, admit, decode, gives_way

U8, U16, U64 = st.integers(0, 255), st.integers(0, 65535), st.integers(0, (1 << 64) - 1)
HELLOS = st.builds(Hello, U8, U8, U16, U16, U16, U64, U64, U8, U8)

OURS, THEIRS = 11, 22  # identities
NOBODY = Holder(0, 0, 0)


def hello(client: int = OURS, number: int = 5, version: int = session.VERSION) -> Hello:
    return Hello(version, 0, 0, 1, 1400, client, number, 0, 0)


def grown(frame: bytes, more: bytes) -> bytes:
    """The same frame with a longer body, as a later version may send it."""
    kind, body = frame[4], frame[5:]
    return wire.frame(kind, body + more)


def test_a_hello_on_the_wire() -> None:
    frame = Hello(1, 0x6F, 2, 5, 1400, 0x1122334455667788, 3, wire.LIGHT, session.DECODES).frame()
    assert frame == (b"\x00\x00\x00\x1f\x10" b"tnl\x01" b"\x01\x6f" b"\x00\x02\x00\x05\x05\x78"
                     b"\x11\x22\x33\x44\x55\x66\x77\x88" b"\x00\x00\x00\x00\x00\x00\x00\x03\x01\x01")


def test_the_answers_on_the_wire() -> None:
    assert Welcome(1, 0x6F, 1400, 1).frame() == b"\x00\x00\x00\x06\x11\x01\x6f\x05\x78\x01"
    assert Refused(BUSY, "no").frame() == b"\x00\x00\x00\x04\x12\x01no"


@given(st.one_of(HELLOS, st.builds(Welcome, U8, U8, U16, U8), st.builds(Refused, U8, st.text(max_size=50))))
def test_any_greeting_comes_back_as_it_was_sent(greeting: Hello | Welcome | Refused) -> None:
    assert decode(greeting.frame()) == greeting


@given(st.one_of(HELLOS, st.builds(Welcome, U8, U8, U16, U8)), st.binary(max_size=30))
def test_a_body_that_has_grown_at_its_end_is_still_understood(greeting: Hello | Welcome, more: bytes) -> None:
    assert decode(grown(greeting.frame(), more)) == greeting


def test_every_greeting_fits_the_limit_before_a_connection_is_established() -> None:
    assert len(hello().frame()) < wire.HELLO_LENGTH_LIMIT
    for reason, text in session.REASONS.items():
        assert len(Refused(reason, text).frame()) < wire.HELLO_LENGTH_LIMIT


@pytest.mark.parametrize("frame", [
    b"\x00\x00\x00\x00",
    wire.KEEPALIVE_FRAME,
    wire.frame(wire.DATA, b"E" * 40),
    wire.frame(wire.HELLO),
    wire.frame(wire.REFUSED),
    wire.frame(wire.WELCOME, b"\x01\x00\x05"),
    hello().frame()[:-1],
    wire.frame(wire.HELLO, b"TNL\x01" + bytes(24)),
    wire.frame(wire.HELLO, b"tnl\x02" + bytes(24)),
    wire.frame(0xFF, b"tnl\x01" + bytes(24)),
], ids=repr)
def test_a_frame_that_is_no_greeting_is_the_peers_fault(frame: bytes) -> None:
    with pytest.raises(PeerError):
        decode(frame)


@given(st.binary(max_size=100))
def test_any_bytes_decode_or_are_the_peers_fault(data: bytes) -> None:
    try:
        decode(data)
    except PeerError:
        pass


def test_a_reason_in_bytes_that_are_no_text_is_readable_all_the_same() -> None:
    assert decode(wire.frame(wire.REFUSED, b"\x01caf\xe9")) == Refused(1, "caf�")


# -- whom a server admits


@pytest.mark.parametrize(("newcomer", "holders", "answer"), [
    (hello(), [], 0),
    (hello(), [NOBODY, NOBODY], 0),
    (hello(), [Holder(0, THEIRS, 9)], 0),                            # it has gone
    (hello(), [Holder(1, OURS, 5)], 0),                              # a further connection of the same session
    (hello(), [Holder(1, OURS, 4)], 0),                              # a newer session
    (hello(), [Holder(1, OURS, 6)], SUPERSEDED),
    (hello(), [Holder(1, THEIRS, 1)], BUSY),
    (hello(), [NOBODY, Holder(3, THEIRS, 9)], BUSY),                 # in another worker
    (hello(), [Holder(2, OURS, 4), Holder(1, OURS, 6)], SUPERSEDED),
    (hello(version=2), [], WRONG_VERSION),
    (hello(version=0), [Holder(1, THEIRS, 1)], WRONG_VERSION),
])
def test_a_server_admits_its_one_client_and_nobody_else(newcomer: Hello, holders: list[Holder], answer: int) -> None:
    assert admit(newcomer, holders) == answer


def test_every_refusal_has_a_text() -> None:
    assert set(session.REASONS) == {BUSY, WRONG_VERSION, SUPERSEDED}
    assert 0 not in session.REASONS


@pytest.mark.parametrize(("own", "others", "answer"), [
    (Holder(1, OURS, 5), [], False),
    (Holder(1, OURS, 5), [Holder(1, OURS, 5)], False),
    (Holder(1, OURS, 5), [Holder(1, OURS, 6)], True),
    (Holder(1, OURS, 5), [Holder(0, OURS, 6)], False),
    (Holder(1, OURS, 5), [Holder(1, OURS, 4)], False),
    (Holder(1, min(OURS, THEIRS), 5), [Holder(1, max(OURS, THEIRS), 4)], True),
    (Holder(1, max(OURS, THEIRS), 5), [Holder(1, min(OURS, THEIRS), 6)], False),
    (Holder(1, OURS, 5), [NOBODY, Holder(2, OURS, 6)], True),
])
def test_a_worker_gives_way_to_a_newer_session_and_of_two_clients_the_lower_does(
        own: Holder, others: list[Holder], answer: bool) -> None:
    assert gives_way(own, others) is answer
