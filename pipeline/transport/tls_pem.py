"""PEM texts into a TLS context, without a file. ConfigError says what is wrong with which text.

OpenSSL wants a path for a certificate and its key. A key must not lie on a disk, so the path is that of a memfd. A
process may open its own descriptors, whatever user it has become and even if it cannot be dumped (proc_fd_permission,
fs/proc/fd.c).
"""

from __future__ import annotations

import os
import ssl

from pipeline.errors import ConfigError, Problem

_OTHER_KEY = "private key: expected the certificate's, found another one's"
_COMPLAINTS = {
    None: "private key: expected PEM, found nothing of the kind that can be read",
    "KEY_VALUES_MISMATCH": _OTHER_KEY,
    "NO_CERTIFICATE_ASSIGNED": _OTHER_KEY,  # a key of another kind, RSA for EC
}
"""Meanings of OpenSSL's reasons when the certificate has been read before."""


def load_cas(context: ssl.SSLContext, ca_pem: str) -> None:
    """Trust these CAs."""
    _load_certificates(context, ca_pem, "CA certificates")


def load_pair(context: ssl.SSLContext, certificate_pem: str, key_pem: str) -> None:
    """Load our own certificate, with the chain from it to its CA, and its private key."""
    _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate_pem, "certificate")
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
            other = f"certificate or private key: expected what OpenSSL takes, it says {error.reason}"
            raise _error(_COMPLAINTS.get(error.reason, other)) from None


def _load_certificates(context: ssl.SSLContext, pem: str, what: str) -> None:
    try:
        context.load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError, TypeError):  # the last two: of a text that is empty, or not ASCII
        raise _error(f"{what}: expected PEM, found nothing of the kind that can be read") from None


def _no_password() -> str:
    """Without this function OpenSSL would ask for a password on the terminal."""
    raise _error("private key: expected one without a password, found an encrypted one")


def _error(text: str) -> ConfigError:
    return ConfigError([Problem("", text)])
