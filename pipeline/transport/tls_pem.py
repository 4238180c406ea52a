"""PEM texts into a TLS context, by way of no file. ConfigError says what is wrong with which text.

OpenSSL wants a path for a certificate and its key, and a key has no business on a disk: it gets that of a memfd. A
process may open its own descriptors, whoever it has become and however undumpable it is (proc_fd_permission,
fs/proc/fd.c).
"""

from __future__ import annotations

import os
import ssl

from pipeline.errors import ConfigError, Problem


def load_cas(context: ssl.SSLContext, ca_pem: str) -> None:
    """Whom to trust."""
    _load_certificates(context, ca_pem, "CA certificates")


def load_pair(context: ssl.SSLContext, certificate_pem: str, key_pem: str) -> None:
    """Our own certificate, with what leads from it to its CA, and its private key."""
    _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate_pem, "certificate")
    with (
        open(os.memfd_create("certificate"), "wb", buffering=0) as certificate,
        open(os.memfd_create("key"), "wb", buffering=0) as key,
    ):
        certificate.write(certificate_pem.encode())
        key.write(key_pem.encode())
        try:
            context.load_cert_chain(*(f"/proc/self/fd/{file.fileno()}" for file in (certificate, key)), _no_password)
        except ssl.SSLError as error:
            said = f"certificate or private key: expected what OpenSSL takes, it says {error.reason}"
            raise _wrong(_MEANINGS.get(error.reason, said)) from None


def _load_certificates(context: ssl.SSLContext, pem: str, what: str) -> None:
    try:
        context.load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError, TypeError):  # of a text that is empty, or not ASCII
        raise _wrong(f"{what}: expected PEM, found nothing of the kind that can be read") from None


def _no_password() -> str:
    """Without this OpenSSL would ask for one on the terminal."""
    raise _wrong("private key: expected one without a password, found an encrypted one")


def _wrong(text: str) -> ConfigError:
    return ConfigError([Problem("", text)])


_NOT_ITS_KEY = "private key: expected the certificate's, found another one's"
_MEANINGS = {
    None: "private key: expected PEM, found nothing of the kind that can be read",
    "KEY_VALUES_MISMATCH": _NOT_ITS_KEY,
    "NO_CERTIFICATE_ASSIGNED": _NOT_ITS_KEY,  # it is of another kind
}
"""Reasons of OpenSSL, once the certificate is known to be one."""
