"""TLS contexts of both ends: TLS 1.3 with an ALPN name of our own; 1.2 is allowed where the settings say so."""

from __future__ import annotations

import os
import ssl

from pipeline.errors import ConfigError, Problem
from pipeline.transport.tls_pem import load_cas, load_pair
from pipeline.transport.tls_records import RecordBuffer

ALPN = "tunnel/1"
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
CIPHERS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20"  # forward secret and AEAD, RFC 9325; 1.3 has no others


class TlsContext(ssl.SSLContext):
    """A context with the record buffer that its channels share."""

    record_buffer: RecordBuffer


def server_context(certificate_pem: str, key_pem: str, ca_pem: str = "", minimum: str = "1.3") -> TlsContext:
    """`ca_pem`: clients need a certificate of one of these CAs. ConfigError says what is wrong with a text."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, minimum)
    context.num_tickets = 0  # no client resumes a session, and a ticket's key would outlive it
    load_pair(context, certificate_pem, key_pem)
    if ca_pem:
        load_cas(context, ca_pem)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(
    minimum: str = "1.3",
    ca_pem: str = "",
    *,
    system_cas: bool,
    verify: bool,
    certificate_pem: str = "",
    key_pem: str = "",
) -> TlsContext:
    """Without `verify` any server is accepted here, and the caller checks the channel's certificate()."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, minimum)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif not ca_pem and not system_cas:
        raise ConfigError([Problem("", "the server's certificate must be verified, but no CA is given")])
    if ca_pem:
        load_cas(context, ca_pem)
    if system_cas:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if certificate_pem:
        load_pair(context, certificate_pem, key_pem)
    return context


def _context(protocol: int, minimum: str) -> TlsContext:
    os.environ.pop("SSLKEYLOGFILE", None)  # an OpenSSL from 3.5 on may be built to obey it by itself
    context = TlsContext(protocol)
    context.record_buffer = RecordBuffer()
    context.minimum_version = VERSIONS[minimum]
    context.set_ciphers(CIPHERS_1_2)
    context.set_alpn_protocols([ALPN])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN  # the defaults from Python 3.13 on
    return context
