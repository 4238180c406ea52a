"""PEM texts into a TLS context, without a file. ConfigError says what is wrong with which text.

OpenSSL wants a path for a certificate and its key. A key must not lie on a disk, so the path is that of a memfd. A
process may open its own descriptors, whatever user it has become and even if it cannot be dumped (proc_fd_permission,
fs/proc/fd.c).
"""

from __future__ import annotations

import os
import ssl

from pipeline.errors import ConfigError, Problem

CERTIFICATE, KEY, CAS = "certificate", "private key", "CA certificates"
"""The paths of the problems in a ConfigError: which text is wrong."""

_OTHER_KEY = KEY, "expected the certificate's, found another one's: if both are being replaced, try again after that"
_COMPLAINTS = {
    None: (KEY, "expected PEM, found nothing of the kind that can be read"),
    "KEY_VALUES_MISMATCH": _OTHER_KEY,
    "NO_CERTIFICATE_ASSIGNED": _OTHER_KEY,  # a key of another kind, RSA for EC
    "EE_KEY_TOO_SMALL": (
        CERTIFICATE,
        "its key is too short to be safe: expected EC P-256, or RSA of 2048 bits or more",
    ),
    "CA_KEY_TOO_SMALL": (CERTIFICATE, "the key of a CA in its chain is too short to be safe"),
    "CA_MD_TOO_WEAK": (CERTIFICATE, "a signature in its chain is too weak to be safe: expected SHA-256 or better"),
}
"""Meanings of OpenSSL's reasons when the certificate has been read before."""


def load_cas(context: ssl.SSLContext, ca_pem: str) -> None:
    """Trust these CAs."""
    _load_certificates(context, ca_pem, CAS)


def load_pair(context: ssl.SSLContext, certificate_pem: str, key_pem: str) -> None:
    """Load our own certificate, with the chain from it to its CA, and its private key."""
    _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate_pem, CERTIFICATE)
    with (
        open(os.memfd_create("certificate"), "wb", buffering=0) as certificate,
        open(os.memfd_create("key"), "wb", buffering=0) as key,
    ):
        certificate.write(certificate_pem.encode())
        key.write(key_pem.encode())
        certificate_path, key_path = (f"/proc/self/fd/{file.fileno()}" for file in (certificate, key))
        try:
            context.load_cert_chain(certificate_path, key_path, _no_password)
        except ssl.SSLError as error:
            other = CERTIFICATE, f"it and its key: expected what OpenSSL takes, it says {error.reason}"
            raise _error(*_COMPLAINTS.get(error.reason, other)) from None


def _load_certificates(context: ssl.SSLContext, pem: str, what: str) -> None:
    try:
        context.load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError, TypeError):  # the last two: of a text that is empty, or not ASCII
        count = pem.count("-----BEGIN ")
        found = f"{count} blocks of which one cannot be read" if count > 1 else "nothing of the kind that can be read"
        raise _error(what, f"expected PEM, found {found}") from None


def _no_password() -> str:
    """Without this function OpenSSL would ask for a password on the terminal."""
    raise _error(KEY, "expected one without a password, found an encrypted one")


def _error(what: str, text: str) -> ConfigError:
    return ConfigError([Problem(what, text)])
