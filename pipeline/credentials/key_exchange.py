"""The new key in place of an invitation's key, on which both ends agree: X25519 (RFC 7748) and HKDF (RFC 5869).

    new key = HKDF-SHA256(salt: the invitation's key, input: X25519(own private, other public),
                          info: "tunnel exchanged key", the client's public value, the server's public value)

Each end needs a private value to compute it, and private values never leave the process that made them. So neither the
holder of the line nor a tcp worker, which sees both public values, learns the new key. An end that has not the
invitation's key cannot put a public value of its own in place: the proofs of HELLO and DONE cover both values
(pipeline.wire.auth).
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pipeline.wire.auth import KEY_BYTES

_INFO = b"tunnel exchanged key"


def new_private() -> bytes:
    """A new private value, 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_of(private: bytes) -> bytes:
    """The public value of a private one, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def new_key(invitation_key: bytes, private: bytes, *, client_public: bytes, server_public: bytes) -> bytes:
    """The new key. `private`: of either end. ValueError if the other end's public value is none to agree with."""
    own = public_of(private)
    others = server_public if own == client_public else client_public
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(others))
    info = _INFO + client_public + server_public
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=invitation_key, info=info).derive(shared)
