"""How a client and a server prove to each other that they have the same key; `docs/wire.md` for others.

    key id          first 8 bytes of HMAC(key, "tunnel key id")
    transcript      SHA-256 of: "tunnel greeting", HELLO, CHALLENGE, SHA-256 of the server's certificate in DER; each
                    behind its length as u32, the frames whole
    client's proof  HMAC(key, "tunnel client", transcript)
    server's proof  HMAC(key, "tunnel server", transcript, SHA-256 of the WELCOME body without its mac)

A challenge and a response with HMAC-SHA256 (RFC 2104) inside TLS; what encrypts is TLS alone. The labels have one
length and the three messages different ones, so that none is ever another.

    attack                              what fails
    replay of a recorded greeting       each end's own nonce, made for this connection, is in the transcript
    reflection of a proof to its maker  the label says whose proof it is
    man in the middle of the TLS        each end takes the certificate that it shows or sees; his is another, so that
                                        the transcripts differ (the idea of tls-server-end-point, RFC 5929, 4)
    a field made weaker on its way      every byte of HELLO and CHALLENGE is in both proofs, every byte of WELCOME in
                                        the server's, those that a later version may add too
    no challenge at all                 a client with a key takes no WELCOME without the server's proof
    timing of the comparison            it takes the same time wherever two macs differ

The key is 256 bits from the system's random numbers, never a password: a false server is shown a key id and a client's
proof, and can try keys against them at leisure (RFC 9257, 4 and 6). By the same RFC it belongs to one client and one
server that never change roles: with one key for both directions an end could be led to greet itself.

Not protected: from whoever has the certificate's private key, a connection (that would take a secret of the TLS
session, RFC 9266, which Python's ssl does not give); a REFUSED, which has no mac; a client's key id, by which a false
server can tell that it is the same client.
"""

from __future__ import annotations

import hashlib
import hmac

from pipeline.errors import LocalError
from pipeline.wire import framing
from pipeline.wire.messages import KEY_ID_BYTES, MAC_BYTES, WELCOME_MAC_AT

KEY_BYTES = 32
CERTIFICATE_HASH_BYTES = 32

_KEY_ID, _TRANSCRIPT, _CLIENT, _SERVER = b"tunnel key id", b"tunnel greeting", b"tunnel client", b"tunnel server"


def key_id(key: bytes) -> bytes:
    """What a client calls its key, so that the server finds it."""
    return _mac(key, _KEY_ID)[:KEY_ID_BYTES]


def transcript(hello_frame: bytes, challenge_frame: bytes, certificate_sha256: bytes) -> bytes:
    """What both ends have seen of this connection before the proofs."""
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
    """Whether the client that sent this mac has the key. For an unknown key id, try a random one: it takes as long."""
    return hmac.compare_digest(client_proof(key, transcript), mac)


def server_proof(key: bytes, transcript: bytes, welcome_frame: bytes) -> bytes:
    """The mac of a WELCOME; what `welcome_frame` has in its place does not matter."""
    body = welcome_frame[framing.FRAME.size : WELCOME_MAC_AT] + welcome_frame[WELCOME_MAC_AT + MAC_BYTES :]
    return _mac(key, _SERVER + transcript + hashlib.sha256(body).digest())


def server_proved(key: bytes, transcript: bytes, welcome_frame: bytes) -> bool:
    """Whether the server that sent this WELCOME has the key."""
    mac = welcome_frame[WELCOME_MAC_AT : WELCOME_MAC_AT + MAC_BYTES]
    return hmac.compare_digest(server_proof(key, transcript, welcome_frame), mac)


def _mac(key: bytes, message: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise LocalError(f"key of {len(key)} bytes, expected {KEY_BYTES}")
    return hmac.digest(key, message, "sha256")
