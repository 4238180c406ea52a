"""The AEAD of a suite: seal and open into memory of the caller, without a copy.

encrypt_into(nonce, data, associated_data, buf)    len(data) + TAG_BYTES bytes into buf
decrypt_into(nonce, data, associated_data, buf)    len(data) - TAG_BYTES bytes into buf; InvalidTag
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from pipeline.sealing.key_schedule import AES_256_GCM, CHACHA20_POLY1305

__all__ = ["NONCE_BYTES", "TAG_BYTES", "Aead", "InvalidTag", "aead"]

NONCE_BYTES = 12
TAG_BYTES = 16

Aead = AESGCM | ChaCha20Poly1305

_KINDS: dict[int, type[Aead]] = {AES_256_GCM: AESGCM, CHACHA20_POLY1305: ChaCha20Poly1305}


def aead(suite: int, key: bytes) -> Aead:
    """The AEAD of a suite with a key of 32 bytes. KeyError for a suite that there is not."""
    return _KINDS[suite](key)
