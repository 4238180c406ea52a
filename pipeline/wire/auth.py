"""Proofs that a client and a server have the same key; docs/wire.md describes them for other implementations.

    key id          first 8 bytes of HMAC(key, "tunnel key id")
    transcript      SHA-256 of: "tunnel greeting", HELLO, CHALLENGE, SHA-256 of the server's certificate in DER; each
                    behind its length as u32, the frames whole
    client's proof  HMAC(key, "tunnel client", transcript)
    server's proof  HMAC(key, "tunnel server", transcript, SHA-256 of the WELCOME body without its mac)
                    HMAC(key, "tunnel answer", transcript, SHA-256 of the DONE body without its mac)
    knock           HMAC(HMAC(key, "tunnel knock key"), "tunnel knock", nonce of HELLO, binding)

A knock is in the HELLO of a client with a key. The binding is the client's Finished message of this TLS connection, so
the knock is good on no other connection. A server that has a fallback answers a HELLO only if its knock is right. The
key of knocks alone may be where the key itself may not: it proves nothing else.

This is a challenge and a response with HMAC-SHA256 (RFC 2104) inside TLS; only TLS encrypts. The labels of the three
proofs have one length, and the three inputs of HMAC have different lengths: no input can stand for another.

    attack                              why it fails
    replay of a recorded handshake      the transcript has a nonce of each end, made for this connection
    reflection of a proof to its maker  the label says which end has made the proof
    man in the middle of the TLS        each end takes the certificate that it shows or sees; the attacker's is another,
                                        so the transcripts differ (the idea of tls-server-end-point, RFC 5929, 4)
    a field weakened on its way         both proofs cover every byte of HELLO and CHALLENGE, the server's proof every
                                        byte of WELCOME; this holds for bytes that a later version adds too
    a challenge left out                a client with a key rejects a WELCOME without the server's proof
    a HELLO repeated, to find servers   the knock has the binding of the TLS connection that it was made for
    timing of the comparison            a comparison takes equally long wherever two macs differ

A key is 256 bits from the system's random numbers, never a password. A false server sees a key id and a client's
proof, and can try keys against them offline (RFC 9257, 4 and 6). By RFC 9257 too, a key belongs to one client and one
server that never change roles. With one key for both directions, an end could be made to prove itself to itself.

Not protected: a connection from an attacker that has the certificate's private key; a REFUSED, which has no mac; the
privacy of a client's key id, by which a false server can recognise the client. The first would take a secret of the TLS
session (RFC 9266), which Python's ssl does not give.
"""

from __future__ import annotations

import hashlib
import hmac

from pipeline.errors import LocalError
from pipeline.wire import framing
from pipeline.wire.messages import KEY_ID_BYTES, MAC_BYTES, WELCOME_MAC_AT

KEY_BYTES = 32
CERTIFICATE_HASH_BYTES = 32

# bytes of the wire format: they stay as they are
_KEY_ID, _TRANSCRIPT, _CLIENT, _SERVER = b"tunnel key id", b"tunnel greeting", b"tunnel client", b"tunnel server"
_ANSWER = b"tunnel answer"
_KNOCK_KEY, _KNOCK = b"tunnel knock key", b"tunnel knock"


def key_id(key: bytes) -> bytes:
    """The name of a key in a HELLO, by which the server finds the key."""
    return _mac(key, _KEY_ID)[:KEY_ID_BYTES]


def transcript(hello_frame: bytes, challenge_frame: bytes, certificate_sha256: bytes) -> bytes:
    """A hash of everything that both ends have seen of this connection before the proofs."""
    if len(certificate_sha256) != CERTIFICATE_HASH_BYTES:
        raise LocalError(
            f"hash of the server's certificate: expected {CERTIFICATE_HASH_BYTES} bytes, "
            f"found {len(certificate_sha256)}"
        )
    parts = (_TRANSCRIPT, hello_frame, challenge_frame, certificate_sha256)
    return hashlib.sha256(b"".join(framing.LENGTH.pack(len(part)) + part for part in parts)).digest()


def client_proof(key: bytes, transcript: bytes) -> bytes:
    """The mac of a PROOF."""
    return _mac(key, _CLIENT + transcript)


def client_proved(key: bytes, transcript: bytes, mac: bytes) -> bool:
    """Whether the client that sent this mac has the key. For an unknown key id, try a random key: it takes as long."""
    return hmac.compare_digest(client_proof(key, transcript), mac)


def server_proof(key: bytes, transcript: bytes, welcome_frame: bytes) -> bytes:
    """The mac of a WELCOME. The bytes that `welcome_frame` has in place of the mac do not matter."""
    body = welcome_frame[framing.FRAME.size : WELCOME_MAC_AT] + welcome_frame[WELCOME_MAC_AT + MAC_BYTES :]
    return _mac(key, _SERVER + transcript + hashlib.sha256(body).digest())


def server_proved(key: bytes, transcript: bytes, welcome_frame: bytes) -> bool:
    """Whether the server that sent this WELCOME has the key."""
    mac = welcome_frame[WELCOME_MAC_AT : WELCOME_MAC_AT + MAC_BYTES]
    return hmac.compare_digest(server_proof(key, transcript, welcome_frame), mac)


def done_proof(key: bytes, transcript: bytes, done_frame: bytes) -> bytes:
    """The mac of a DONE. The bytes that `done_frame` has in place of the mac do not matter."""
    body = done_frame[framing.FRAME.size + MAC_BYTES :]
    return _mac(key, _ANSWER + transcript + hashlib.sha256(body).digest())


def done_proved(key: bytes, transcript: bytes, done_frame: bytes) -> bool:
    """Whether the server that sent this DONE has the key."""
    mac = done_frame[framing.FRAME.size : framing.FRAME.size + MAC_BYTES]
    return hmac.compare_digest(done_proof(key, transcript, done_frame), mac)


def knock_key(key: bytes) -> bytes:
    """The key of knocks: from it nobody can compute the key."""
    return _mac(key, _KNOCK_KEY)


def knock(knock_key: bytes, nonce: bytes, binding: bytes) -> bytes:
    """The knock of a HELLO with this nonce. `binding`: of its TLS connection."""
    return _mac(knock_key, _KNOCK + nonce + binding)


def knocked(key: bytes, nonce: bytes, binding: bytes, mac: bytes) -> bool:
    """Whether the client that sent this HELLO has the key. For an unknown key id, try a random key."""
    return hmac.compare_digest(knock(knock_key(key), nonce, binding), mac)


def _mac(key: bytes, message: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise LocalError(f"key of {len(key)} bytes, expected {KEY_BYTES}")
    return hmac.digest(key, message, "sha256")
