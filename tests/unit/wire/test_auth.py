"""Proofs of a shared key: their definition, and why each attack on the handshake fails."""

from __future__ import annotations

import hashlib
import random
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import LocalError
from pipeline.wire import auth, framing
from pipeline.wire.messages import AUTH_KEY, WELCOME_MAC_AT, Challenge, Hello, Welcome, decode

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
CERTIFICATE, OTHER_CERTIFICATE = hashlib.sha256(b"ours").digest(), hashlib.sha256(b"theirs").digest()
KEYS = st.binary(min_size=32, max_size=32)

HELLO = Hello(
    1,
    0x6F,
    0,
    1,
    1400,
    1,
    2,
    framing.BULK,
    1,
    AUTH_KEY,
    auth.key_id(KEY),
    b"c" * 32,
    (ip_address("10.0.0.2"), ip_address("fd00::2")),
).frame()
CHALLENGE = Challenge(b"s" * 32).frame()
TRANSCRIPT = auth.transcript(HELLO, CHALLENGE, CERTIFICATE)
WELCOME = Welcome(1, 0x6F, 1400, 1, bytes(32), (ip_interface("10.0.0.2/24"),), (ip_network("10.1.0.0/16"),))
SEALED = WELCOME._replace(mac=auth.server_proof(KEY, TRANSCRIPT, WELCOME.frame())).frame()


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """As RFC 2104 defines it, for a key that is shorter than a block of 64 bytes."""
    inner, outer = (bytes(byte ^ pad for byte in key.ljust(64, b"\0")) for pad in (0x36, 0x5C))
    return hashlib.sha256(outer + hashlib.sha256(inner + message).digest()).digest()


def with_byte(data: bytes, at: int, change: int) -> bytes:
    return data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]


# -- the definition of the macs


@given(KEYS)
def test_the_macs_are_what_their_definition_says(key: bytes) -> None:
    assert auth.key_id(key) == hmac_sha256(key, b"tunnel key id")[:8]
    assert auth.client_proof(key, TRANSCRIPT) == hmac_sha256(key, b"tunnel client" + TRANSCRIPT)
    rest = SEALED[5:10] + SEALED[42:]
    assert auth.server_proof(key, TRANSCRIPT, SEALED) == hmac_sha256(
        key, b"tunnel server" + TRANSCRIPT + hashlib.sha256(rest).digest()
    )


def test_the_transcript_is_what_its_definition_says() -> None:
    assert (
        hashlib.sha256(
            b"\0\0\0\x0ftunnel greeting"
            + bytes([0, 0, 0, len(HELLO)])
            + HELLO
            + bytes([0, 0, 0, len(CHALLENGE)])
            + CHALLENGE
            + b"\0\0\0\x20"
            + CERTIFICATE
        ).digest()
        == TRANSCRIPT
    )


def test_two_ends_that_share_a_key_prove_it_to_each_other() -> None:
    assert auth.client_proved(KEY, TRANSCRIPT, auth.client_proof(KEY, TRANSCRIPT))
    assert auth.server_proved(KEY, TRANSCRIPT, SEALED)
    welcome = decode(SEALED)
    assert isinstance(welcome, Welcome) and welcome._replace(mac=bytes(32)) == WELCOME


def test_bytes_in_the_place_of_the_mac_do_not_change_the_servers_proof() -> None:
    assert auth.server_proof(KEY, TRANSCRIPT, SEALED) == auth.server_proof(KEY, TRANSCRIPT, WELCOME.frame())


# -- attacks


def test_every_change_of_a_byte_of_hello_or_challenge_changes_the_transcript() -> None:
    found = {TRANSCRIPT}
    for at in range(len(HELLO)):
        found |= {auth.transcript(with_byte(HELLO, at, change), CHALLENGE, CERTIFICATE) for change in range(1, 256)}
    for at in range(len(CHALLENGE)):
        found |= {auth.transcript(HELLO, with_byte(CHALLENGE, at, change), CERTIFICATE) for change in range(1, 256)}
    assert len(found) == 1 + 255 * (len(HELLO) + len(CHALLENGE))


def test_no_change_of_a_byte_of_the_welcome_passes_its_proof() -> None:
    body = range(framing.FRAME.size, len(SEALED))
    assert not any(
        auth.server_proved(KEY, TRANSCRIPT, with_byte(SEALED, at, change)) for at in body for change in range(1, 256)
    )


def test_bytes_that_only_a_later_version_knows_are_protected_too() -> None:
    later = framing.frame(framing.HELLO, HELLO[5:] + b"later")
    assert auth.transcript(later, CHALLENGE, CERTIFICATE) != TRANSCRIPT
    assert not auth.server_proved(KEY, TRANSCRIPT, framing.frame(framing.WELCOME, SEALED[5:] + b"later"))


def test_a_byte_that_moves_from_one_frame_to_the_next_changes_the_transcript() -> None:
    assert auth.transcript(HELLO + CHALLENGE[:1], CHALLENGE[1:], CERTIFICATE) != TRANSCRIPT


def test_a_proof_that_is_reflected_to_its_maker_does_not_verify() -> None:
    mine = auth.client_proof(KEY, TRANSCRIPT)
    assert not auth.server_proved(KEY, TRANSCRIPT, WELCOME._replace(mac=mine).frame())
    theirs = auth.server_proof(KEY, TRANSCRIPT, SEALED)
    assert not auth.client_proved(KEY, TRANSCRIPT, theirs)


def test_a_recorded_proof_of_a_client_does_not_verify_for_another_challenge() -> None:
    anew = auth.transcript(HELLO, Challenge(b"t" * 32).frame(), CERTIFICATE)
    assert not auth.client_proved(KEY, anew, auth.client_proof(KEY, TRANSCRIPT))


def test_a_recorded_welcome_does_not_verify_for_another_hello() -> None:
    nonce = HELLO.index(b"c" * 32)
    anew = auth.transcript(HELLO[:nonce] + b"d" * 32 + HELLO[nonce + 32 :], CHALLENGE, CERTIFICATE)
    assert not auth.server_proved(KEY, anew, SEALED)


def test_a_man_in_the_middle_with_another_certificate_cannot_pass_proofs_on() -> None:
    seen_by_the_client = auth.transcript(HELLO, CHALLENGE, OTHER_CERTIFICATE)
    assert not auth.client_proved(KEY, TRANSCRIPT, auth.client_proof(KEY, seen_by_the_client))
    assert not auth.server_proved(KEY, seen_by_the_client, SEALED)


@given(KEYS.filter(lambda key: key != KEY))
def test_another_key_proves_nothing(key: bytes) -> None:
    assert not auth.client_proved(KEY, TRANSCRIPT, auth.client_proof(key, TRANSCRIPT))
    assert not auth.server_proved(key, TRANSCRIPT, SEALED)
    assert auth.key_id(key) != auth.key_id(KEY)


def test_no_proof_is_another_and_none_is_the_key_id() -> None:
    macs = [auth.client_proof(KEY, TRANSCRIPT), auth.server_proof(KEY, TRANSCRIPT, SEALED)]
    assert len({mac[:8] for mac in macs} | {auth.key_id(KEY)}) == 3


@pytest.mark.parametrize(
    "mac",
    [
        b"",
        bytes(31),
        bytes(32),
        bytes(33),
        auth.client_proof(KEY, TRANSCRIPT)[:-1],
        auth.client_proof(OTHER_KEY, TRANSCRIPT),
    ],
    ids=len,
)
def test_a_mac_of_zeros_or_of_another_length_proves_nothing(mac: bytes) -> None:
    assert auth.client_proved(KEY, TRANSCRIPT, mac) is False


def test_a_welcome_that_is_cut_anywhere_proves_nothing() -> None:
    assert not any(auth.server_proved(KEY, TRANSCRIPT, SEALED[:length]) for length in range(len(SEALED)))


@given(st.binary(max_size=120))
def test_any_bytes_in_the_place_of_a_proof_prove_nothing(data: bytes) -> None:
    assert not auth.client_proved(KEY, TRANSCRIPT, data)
    assert not auth.server_proved(KEY, TRANSCRIPT, data)
    assert not auth.server_proved(KEY, TRANSCRIPT, SEALED[:WELCOME_MAC_AT] + data)


# -- our own mistakes


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_key_of_another_length_is_refused_and_not_shown(size: int) -> None:
    key = random.Random(size).randbytes(size)
    for use in (
        auth.key_id,
        lambda key: auth.client_proof(key, TRANSCRIPT),
        lambda key: auth.server_proof(key, TRANSCRIPT, SEALED),
    ):
        with pytest.raises(LocalError, match=f"^key of {size} bytes, expected 32$"):
            use(key)


@pytest.mark.parametrize("certificate", [b"", b"-----BEGIN CERTIFICATE-----", CERTIFICATE.hex().encode()], ids=len)
def test_a_certificate_in_the_place_of_its_hash_is_refused(certificate: bytes) -> None:
    with pytest.raises(LocalError, match=f"certificate: expected 32 bytes, found {len(certificate)}"):
        auth.transcript(HELLO, CHALLENGE, certificate)


def test_a_knock_is_good_for_one_key_one_nonce_and_one_connection() -> None:
    key, nonce, binding = bytes(range(32)), b"n" * 32, b"b" * 48
    mac = auth.knock(auth.knock_key(key), nonce, binding)
    assert auth.knocked(key, nonce, binding, mac)
    assert not auth.knocked(bytes(32), nonce, binding, mac)
    assert not auth.knocked(key, b"m" * 32, binding, mac)
    assert not auth.knocked(key, nonce, b"c" * 48, mac)
    assert not auth.knocked(key, nonce, binding, b"")
