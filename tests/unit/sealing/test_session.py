"""A sealed session: both ends have equal keys, and an end that differs in anything has others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import PeerError
from pipeline.sealing.key_schedule import AES_256_GCM, CHACHA20_POLY1305
from pipeline.sealing.session import (
    NO_HASH,
    NO_KEY,
    KeyShare,
    Offer,
    SealedSession,
    answer_key_share,
    answer_offer,
    hash_of,
)

KEY = b"k" * 32
HANDSHAKE = {"hello": b"hello", "challenge": b"challenge", "welcome": b"welcome", "server_hash": b"h" * 32}
LOW_ORDER = [  # https://cr.yp.to/ecdh.html#validate: points whose X25519 is zero, whatever the private value is
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


def both(key: bytes = KEY, client_key: bytes = KEY, suite: int = AES_256_GCM) -> tuple[SealedSession, SealedSession]:
    """The session at the client, and at the server."""
    offer = Offer(suite)
    server = answer_offer(offer.key_share, suite, key, 5, 6)
    return offer.take_answer(answer_key_share(server, b""), client_key, 5, 6), server


def agree(client: SealedSession, server: SealedSession) -> bool:
    """Whether each end opens what the other one seals. Either both directions fit, or none does."""
    fits = {
        client.keys().send == server.keys().open_now,
        server.keys().send == client.keys().open_now,
    }
    ours, theirs = (each.connection_secrets(**HANDSHAKE) for each in (client, server))
    fits |= {ours.send == theirs.receive, theirs.send == ours.receive}
    near, far = client.datagram_secrets(), server.datagram_secrets()
    fits |= {near.send == far.receive, far.send == near.receive}
    assert len(fits) == 1
    return fits.pop()


@pytest.mark.parametrize("key", [KEY, b""])
def test_both_ends_have_equal_keys_for_each_direction(key: bytes) -> None:
    client, server = both(key, key)
    assert agree(client, server)
    secrets = client.connection_secrets(**HANDSHAKE)
    datagrams = client.datagram_secrets()
    assert datagrams.suite == server.datagram_secrets().suite == AES_256_GCM
    both_ways = (client.keys().send, server.keys().send, *secrets[1:], *datagrams[1:])
    assert len(set(both_ways)) == 6


@pytest.mark.parametrize(
    ("client_prefers", "server_prefers", "chosen"),
    [
        (AES_256_GCM, AES_256_GCM, AES_256_GCM),
        (AES_256_GCM, CHACHA20_POLY1305, CHACHA20_POLY1305),
        (CHACHA20_POLY1305, AES_256_GCM, CHACHA20_POLY1305),
        (CHACHA20_POLY1305, CHACHA20_POLY1305, CHACHA20_POLY1305),
        (77, AES_256_GCM, CHACHA20_POLY1305),
    ],
)
def test_aes_is_chosen_if_both_ends_prefer_it(client_prefers: int, server_prefers: int, chosen: int) -> None:
    offer = Offer(client_prefers)
    server = answer_offer(offer.key_share, server_prefers, KEY, 5, 6)
    client = offer.take_answer(answer_key_share(server, b""), KEY, 5, 6)
    assert agree(client, server)
    assert client.keys().suite == server.keys().suite == client.connection_secrets(**HANDSHAKE).suite == chosen


def test_who_has_another_key_or_none_has_other_keys() -> None:
    for other in (b"", b"x" * 32, KEY[:-1]):
        assert not agree(*both(KEY, other))
        assert not agree(*both(other, KEY))


Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize("what", ["suite", "public", "client id", "session", "offer"])
def test_who_sees_another_share_suite_or_number_has_other_keys(what: str) -> None:
    offer = Offer(AES_256_GCM)
    seen = offer.key_share
    if what == "offer":
        seen = Offer(AES_256_GCM).key_share
    server = answer_offer(seen, AES_256_GCM, KEY, 5, 6)
    answer = answer_key_share(server, b"")
    client_id, session = 5, 6
    match what:
        case "suite":
            answer = answer._replace(suite=CHACHA20_POLY1305)
        case "public":
            answer = answer._replace(public=Offer(AES_256_GCM).key_share.public)
        case "client id":
            client_id = 6
        case "session":
            session = 5
    assert not agree(offer.take_answer(answer, KEY, client_id, session), server)


@pytest.mark.parametrize("part", HANDSHAKE)
def test_a_connection_whose_handshake_differs_in_a_byte_has_other_keys(part: str) -> None:
    client, server = both()
    changed = HANDSHAKE | {part: HANDSHAKE[part][:-1] + b"?"}
    ours, theirs = client.connection_secrets(**HANDSHAKE), server.connection_secrets(**changed)
    assert ours.send != theirs.receive and ours.receive != theirs.send


def test_two_starts_have_no_key_in_common() -> None:
    keys = [key for _ in range(20) for end in both() for key in (end.keys().send, end.keys().open_after)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("point", LOW_ORDER)
@pytest.mark.parametrize("high_bit", [0, 0x80])  # which X25519 ignores
def test_a_share_of_low_order_is_the_peers_fault(point: bytes, high_bit: int) -> None:
    public = point[:-1] + bytes([point[-1] | high_bit])
    with pytest.raises(PeerError, match="low order"):
        answer_offer(KeyShare(AES_256_GCM, public), AES_256_GCM, KEY, 5, 6)
    with pytest.raises(PeerError, match="low order"):
        Offer(AES_256_GCM).take_answer(KeyShare(AES_256_GCM, public, bytes(32), NO_HASH), KEY, 5, 6)


# -- key shares as they travel


def test_a_share_comes_back_as_it_was_packed() -> None:
    offered = Offer(AES_256_GCM).key_share
    assert KeyShare.of_client(offered.pack()) == offered
    answer = answer_key_share(both()[1], b"certificate")
    assert KeyShare.of_server(answer.pack()) == answer
    assert answer.client_hash == hash_of(b"certificate") != NO_HASH
    assert answer_key_share(both()[1], b"").client_hash == NO_HASH


def test_each_connection_of_a_session_has_a_nonce_of_its_own_and_one_share() -> None:
    _, server = both()
    answers = [answer_key_share(server, b"") for _ in range(10)]
    assert len({each.public for each in answers}) == 1
    assert len({each.nonce for each in answers}) == 10


def test_bytes_of_another_length_or_suite_are_no_share() -> None:
    offered, answer = Offer(AES_256_GCM).key_share.pack(), answer_key_share(both()[1], b"").pack()
    for data in (b"", offered[:-1], offered + b"x", answer):
        assert KeyShare.of_client(data) is None
    for data in (b"", answer[:-1], answer + b"x", offered, b"\0" + answer[1:], b"\3" + answer[1:]):
        assert KeyShare.of_server(data) is None


# -- epochs


def test_keys_go_on_from_epoch_to_epoch_and_the_one_before_is_forgotten_on_demand() -> None:
    client, server = both()
    seen = []
    for epoch in range(4):
        assert client.send_epoch == server.open_epoch == epoch
        assert client.keys().send == server.keys().open_now
        seen.append(client.keys().send)
        client.send_next()
        assert client.keys().send == server.keys().open_after
        server.open_next()
        assert server.keys().open_before == seen[-1]
    server.forget_before()
    assert server.keys().open_before == NO_KEY
    assert len(set(seen)) == 4
    assert agree(client, server)
