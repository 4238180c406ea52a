"""TLS contexts of both ends: TLS 1.3 with an ALPN name of our own; 1.2 is allowed where the settings say so.

An end whose only ALPN name is our own needs it selected. With other names, those of web servers, the HELLO inside tells
what the other end is. The original program offers no ALPN name and selects none. So with compat `alpn` has none.

A worker makes its context from TlsMaterial. The supervisor makes the same one first and throws it away (prove_usable),
so that no file can bring a worker down. Only a handshake shows that a key and a certificate can be used in TLS 1.3:
OpenSSL also loads pairs with which no client could ever connect.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

from pipeline.errors import ConfigError, Problem
from pipeline.transport.settings import ALPN, TlsMaterial
from pipeline.transport.tls_pem import CERTIFICATE, load_cas, load_pair
from pipeline.transport.tls_records import RecordBuffer

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
CIPHERS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20"  # forward secret and AEAD, RFC 9325; 1.3 has no others


class TlsContext(ssl.SSLContext):
    """A context with the record buffer that its channels share, and the ALPN names."""

    record_buffer: RecordBuffer
    alpn: tuple[str, ...]  # empty: none is offered or selected

    def accepts(self, selected: str | None) -> bool:
        """Whether a connection goes on with this ALPN name."""
        if self.alpn in ((), (ALPN,)):
            return selected == (self.alpn[0] if self.alpn else None)
        return True


def server_context(
    certificate_pem: str,
    key_pem: str,
    ca_pem: str = "",
    minimum: str = "1.3",
    *,
    alpn: Sequence[str] = (ALPN,),
    like_a_web_server: bool = False,
) -> TlsContext:
    """`ca_pem`: clients need a certificate of one of these CAs. ConfigError says what is wrong with a text."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, minimum, alpn)
    if like_a_web_server:
        context.options &= ~ssl.OP_NO_TICKET
    else:
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
    alpn: Sequence[str] = (ALPN,),
) -> TlsContext:
    """Without `verify` any server is accepted here, and the caller checks the channel's certificate()."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, minimum, alpn)
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


def context_of(tls: TlsMaterial, *, server: bool) -> TlsContext:
    """The context of a worker. ConfigError says what is wrong with a text."""
    if server:
        return server_context(
            tls.certificate_pem,
            tls.key_pem,
            tls.ca_pem,
            tls.minimum_version,
            alpn=tls.alpn,
            like_a_web_server=tls.like_a_web_server,
        )
    return client_context(
        tls.minimum_version,
        tls.ca_pem,
        system_cas=tls.verify and not tls.ca_pem,
        verify=tls.verify,
        certificate_pem=tls.certificate_pem,
        key_pem=tls.key_pem,
        alpn=tls.alpn,
    )


def prove_usable(tls: TlsMaterial, *, server: bool) -> None:
    """ConfigError if a worker could not load this, or no other end could connect to it."""
    context_of(tls, server=server)
    if tls.certificate_pem:
        _shake_hands(tls)


def _shake_hands(tls: TlsMaterial) -> None:
    """A handshake in memory, with a client that accepts any certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = server_context(tls.certificate_pem, tls.key_pem, minimum=tls.minimum_version)
    dialing = client_context(tls.minimum_version, system_cas=False, verify=False)
    ends = dialing.wrap_bio(to_client, to_server), serving.wrap_bio(to_server, to_client, server_side=True)
    for end in ends * 2:  # ClientHello, the server's flight, the client's, the server's end
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            if error.reason == "NO_PROTOCOLS_AVAILABLE":
                text = f"this machine's OpenSSL does not allow TLS {tls.minimum_version}: see openssl.cnf, MaxProtocol"
                raise ConfigError([Problem("", text)]) from None
            text = f"nobody can connect to an end with it in TLS 1.3, OpenSSL says {error.reason}: expected EC P-256"
            raise ConfigError([Problem(CERTIFICATE, text)]) from None


def _context(protocol: int, minimum: str, alpn: Sequence[str]) -> TlsContext:
    os.environ.pop("SSLKEYLOGFILE", None)  # an OpenSSL from 3.5 on may be built to obey it by itself
    context = TlsContext(protocol)
    context.record_buffer = RecordBuffer()
    context.minimum_version = VERSIONS[minimum]
    context.set_ciphers(CIPHERS_1_2)
    context.alpn = tuple(alpn)
    if alpn:
        context.set_alpn_protocols(alpn)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN  # the defaults from Python 3.13 on
    return context
