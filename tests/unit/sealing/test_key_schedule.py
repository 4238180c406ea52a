"""From key shares to keys: the published vectors, and another key for each purpose."""

from __future__ import annotations

import hashlib
import hmac
import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from pipeline.sealing import key_schedule
from pipeline.sealing.aead import TAG_BYTES, InvalidTag, aead
from pipeline.sealing.key_schedule import (
    AES_256_GCM,
    CHACHA20_POLY1305,
    CLIENT_TO_SERVER,
    SERVER_TO_CLIENT,
    DatagramSecret,
    EpochSecret,
    HeaderSecret,
    Session,
)

SESSION = Session(AES_256_GCM, b"c" * 32, b"s" * 32, 5, 6)
ROOT = bytes(range(32))

# -- published vectors

HKDF_VECTORS = {  # RFC 5869, A.1 to A.3: key material, salt, info, pseudorandom key, first bytes of what is expanded
    "basic": (
        b"\x0b" * 22,
        bytes(range(13)),
        bytes(range(0xF0, 0xFA)),
        "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf",
    ),
    "long": (
        bytes(range(0x50)),
        bytes(range(0x60, 0xB0)),
        bytes(range(0xB0, 0x100)),
        "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c",
    ),
    "empty": (
        b"\x0b" * 22,
        b"",
        b"",
        "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d",
    ),
}


@pytest.mark.parametrize(
    ("material", "salt", "info", "key", "expanded"), HKDF_VECTORS.values(), ids=HKDF_VECTORS.keys()
)
def test_secrets_are_extracted_and_expanded_as_in_the_vectors(
    material: bytes, salt: bytes, info: bytes, key: str, expanded: str
) -> None:
    assert key_schedule._extract(salt, material).hex() == key
    assert key_schedule._expand(bytes.fromhex(key), info).hex() == expanded


def test_shares_agree_as_in_the_vectors() -> None:
    # RFC 7748, 5.2: the first vector, and a value iterated
    private = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    )
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    shared = private.exchange(X25519PublicKey.from_public_bytes(point))
    assert shared.hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    scalar = u = (9).to_bytes(32, "little")
    for _ in range(1000):
        made = X25519PrivateKey.from_private_bytes(scalar)
        scalar, u = made.exchange(X25519PublicKey.from_public_bytes(u)), scalar
    assert scalar.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


SUNSCREEN = (
    b"Ladies and Gentlemen of the class of '99: "
    b"If I could offer you only one tip for the future, sunscreen would be it."
)
AEAD_VECTORS = {  # suite, key, nonce, plaintext, associated data, what is sealed
    "zeros": (  # McGrew and Viega, The Galois/Counter Mode of Operation, test case 14
        AES_256_GCM,
        bytes(32),
        bytes(12),
        bytes(16),
        b"",
        "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
    ),
    "four blocks": (  # test case 15
        AES_256_GCM,
        bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2),
        bytes.fromhex("cafebabefacedbaddecaf888"),
        bytes.fromhex(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
        ),
        b"",
        (
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
            "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
            "b094dac5d93471bdec1a502270e3cc6c"
        ),
    ),
    "sunscreen": (  # RFC 8439, 2.8.2
        CHACHA20_POLY1305,
        bytes(range(0x80, 0xA0)),
        bytes.fromhex("070000004041424344454647"),
        SUNSCREEN,
        bytes.fromhex("50515253c0c1c2c3c4c5c6c7"),
        (
            "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
            "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
            "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
            "3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691"
        ),
    ),
}


@pytest.mark.parametrize(
    ("suite", "key", "nonce", "plaintext", "associated", "sealed"), AEAD_VECTORS.values(), ids=AEAD_VECTORS.keys()
)
def test_each_suite_seals_and_opens_as_in_its_vectors(
    suite: int, key: bytes, nonce: bytes, plaintext: bytes, associated: bytes, sealed: str
) -> None:
    made = aead(suite, key)
    into = memoryview(bytearray(len(plaintext) + TAG_BYTES))
    made.encrypt_into(bytearray(nonce), memoryview(plaintext), associated or None, into)
    assert into.hex() == sealed
    back = memoryview(bytearray(len(plaintext)))
    made.decrypt_into(bytearray(nonce), into, associated or None, back)
    assert back == plaintext
    into[0] ^= 1
    with pytest.raises(InvalidTag):
        made.decrypt_into(bytearray(nonce), into, associated or None, back)


def test_there_is_no_other_suite() -> None:
    with pytest.raises(KeyError):
        aead(3, bytes(32))


# -- what docs/wire.md says, written once more


def expand(secret: bytes, info: bytes) -> bytes:
    return HKDFExpand(SHA256(), 32, info).derive(secret)


@pytest.mark.parametrize("key", [b"", b"k" * 32])
def test_the_secrets_are_those_of_the_document(key: bytes) -> None:
    shared = b"x" * 32
    root = hmac.digest(key or bytes(32), shared, "sha256")
    assert key_schedule.root(shared, key) == root
    context = hashlib.sha256(
        b"tunnel session 1" + b"\1" + b"c" * 32 + b"s" * 32 + (5).to_bytes(8, "big") + (6).to_bytes(8, "big")
    ).digest()
    connection = hashlib.sha256(b"tunnel connection 1\0\0\0\5hello\0\0\0\0\0\0\0\7welcome\0\0\0\4hash").digest()
    assert key_schedule.connection(b"hello", b"", b"welcome", b"hash") == connection
    for direction in (b"client to server", b"server to client"):
        secret = expand(root, b"tunnel blocks " + direction + context)
        epoch = EpochSecret.first(root, direction, SESSION)
        for number in range(4):
            assert epoch.epoch == number
            assert epoch.block_key() == expand(secret, b"tunnel block key")
            secret, epoch = expand(secret, b"tunnel next epoch"), epoch.next()
        header_root = expand(root, b"tunnel headers" + context)
        assert key_schedule.header_root(root, SESSION) == header_root
        headers = expand(header_root, b"tunnel headers " + direction + connection)
        stretch = HeaderSecret.first(header_root, direction, connection)
        for _ in range(4):
            assert stretch.header_key() == expand(headers, b"tunnel header key")
            headers, stretch = expand(headers, b"tunnel next headers"), stretch.next()
        datagrams = DatagramSecret.of(header_root, direction)
        assert datagrams.secret == expand(header_root, b"tunnel datagrams " + direction)
        assert datagrams.data_token().to_bytes(4, "big") == expand(datagrams.secret, b"tunnel data token")[:4]
        assert datagrams.control_token().to_bytes(4, "big") == expand(datagrams.secret, b"tunnel control token")[:4]
        assert datagrams.mask_key() == expand(datagrams.secret, b"tunnel mask key")
        for number in (0, 1, 2**35 + 1, 2**64 - 1):
            info = b"tunnel control key" + number.to_bytes(8, "big")
            assert datagrams.control_key(number) == expand(datagrams.secret, info)
    assert (CLIENT_TO_SERVER, SERVER_TO_CLIENT) == (b"client to server", b"server to client")


def test_each_label_direction_epoch_session_and_suite_gives_another_key() -> None:
    sessions = [
        SESSION,
        SESSION._replace(suite=CHACHA20_POLY1305),
        SESSION._replace(client_key_share=b"d" * 32),
        SESSION._replace(server_key_share=b"d" * 32),
        SESSION._replace(client_key_share=SESSION.server_key_share, server_key_share=SESSION.client_key_share),
        SESSION._replace(client_id=7),
        SESSION._replace(session=7),
        SESSION._replace(client_id=6, session=5),
    ]
    connections = [key_schedule.connection(*each) for each in itertools.product((b"", b"a", b"ab"), repeat=4)]
    assert len(set(connections)) == 3**4
    keys: list[bytes] = []
    for root, session, direction in itertools.product(
        (ROOT, b"r" * 32), sessions, (CLIENT_TO_SERVER, SERVER_TO_CLIENT)
    ):
        epoch = EpochSecret.first(root, direction, session)
        header_root = key_schedule.header_root(root, session)
        for _ in range(3):
            keys += epoch.secret, epoch.block_key()
            epoch = epoch.next()
        for connection in connections[:3]:
            stretch = HeaderSecret.first(header_root, direction, connection)
            keys += stretch.secret, stretch.header_key(), stretch.next().secret, stretch.next().header_key()
        datagrams = DatagramSecret.of(header_root, direction)
        keys += datagrams.secret, datagrams.mask_key(), datagrams.control_key(0), datagrams.control_key(1)
        keys += (token.to_bytes(4, "big") for token in (datagrams.data_token(), datagrams.control_token()))
    assert len(set(keys)) == len(keys) == 2 * 8 * 2 * (6 + 12 + 6)
