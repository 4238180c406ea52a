"""Why a connection has failed, in words that help: for errors of sockets, of TLS and of the resolver.

Python's own texts name the source line of its module, and often nothing that a person can act upon.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl

NO_ROUTE = "this machine has no route to it"

WITHOUT_NEWS = frozenset({NO_ROUTE})
"""Reasons of an address that are normal on a machine with one family of addresses."""

OF_SOCKETS = {
    0: "refused on the way, and the kernel has lost the reason",  # SO_ERROR of a closed socket, one in thousands
    errno.ECONNREFUSED: "connection refused: nothing listens on this port there",
    errno.ETIMEDOUT: "no answer",
    errno.ENETUNREACH: NO_ROUTE,
    errno.EHOSTUNREACH: "no route to host: a router says so, or nobody on this link has the address",
    errno.EADDRNOTAVAIL: "this machine has no address to send from, or no port is free",
    errno.ECONNRESET: "connection reset by the other end, or by a firewall",
    errno.EPIPE: "connection reset by the other end, or by a firewall",
    errno.EACCES: "a route or a firewall of this machine forbids it",
    errno.EPERM: "a route or a firewall of this machine forbids it",
    errno.EINVAL: "a link-local address needs its interface, as in [fe80::1%eth0]:9000",
    errno.EAFNOSUPPORT: "this machine does not have this family of addresses",
    errno.EMFILE: "this process has no file descriptor left",
    errno.ENFILE: "this machine has no file descriptor left",
    errno.ENETDOWN: "the network interface is down",
    errno.ENODEV: "the network interface is gone",
}

NO_TLS = "what answers there speaks no TLS: is it this server's port, or a proxy?"
OTHER_VERSION = "the other end does not speak this version of TLS (setting: tls_min_version)"
OUR_CERTIFICATE = "the other end does not accept our certificate"
NO_TUNNEL = "what answers there is no tunnel, but speaks TLS: is it this server's port, or a proxy?"

OF_TLS = {
    "WRONG_VERSION_NUMBER": NO_TLS,
    "HTTP_REQUEST": NO_TLS,
    "HTTPS_PROXY_REQUEST": NO_TLS,
    "RECORD_LAYER_FAILURE": NO_TLS,
    "BAD_RECORD_TYPE": NO_TLS,
    "PACKET_LENGTH_TOO_LONG": NO_TLS,
    "UNEXPECTED_MESSAGE": NO_TLS,
    "UNKNOWN_PROTOCOL": NO_TLS,
    "UNSUPPORTED_PROTOCOL": OTHER_VERSION,
    "NO_PROTOCOLS_AVAILABLE": OTHER_VERSION,
    "TLSV1_ALERT_PROTOCOL_VERSION": OTHER_VERSION,
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": NO_TUNNEL,
    "TLSV1_UNRECOGNIZED_NAME": NO_TUNNEL,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the other end finds nothing in common with us (TLS handshake failure)",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server wants a certificate of this client (setting: tls_cert_file)",
    "SSLV3_ALERT_BAD_CERTIFICATE": OUR_CERTIFICATE,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": OUR_CERTIFICATE,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": OUR_CERTIFICATE,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": OUR_CERTIFICATE,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": f"{OUR_CERTIFICATE}: it has expired, or a clock is wrong",
    "TLSV1_ALERT_UNKNOWN_CA": f"{OUR_CERTIFICATE}: its CA is unknown there",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "bytes were altered on the way",
    "SSLV3_ALERT_BAD_RECORD_MAC": "bytes were altered on the way",
}
"""By the reason of OpenSSL, as ssl.SSLError has it."""

OF_RESOLVER = {
    socket.EAI_NONAME: "the name is unknown",
    socket.EAI_NODATA: "the name has no address",
    socket.EAI_AGAIN: "the DNS server does not answer",
    socket.EAI_FAIL: "the DNS server has failed",
}

ENDED_EARLY = "the other end has closed the connection before TLS: a server at its limits, a proxy, or another port?"


def of_errno(number: int) -> str:
    """Words for an errno of connect()."""
    return OF_SOCKETS.get(number) or os.strerror(number)


def of_error(error: OSError) -> str:
    """Words for an exception of a socket, of TLS or of the resolver. Text of the other end in it is not escaped."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the other end's certificate is not accepted here: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or _reason_in(str(error))
        return OF_TLS.get(reason) or f"TLS: {reason.lower().replace('_', ' ')}"
    text = error.strerror or str(error)
    if isinstance(error, socket.gaierror):
        return OF_RESOLVER.get(error.errno or 0) or text
    if error.errno and text == os.strerror(error.errno):
        return of_errno(error.errno)
    return text


def _reason_in(text: str) -> str:
    """A reason that is newer than Python's table of them: "[SSL] tlsv1 alert ... (_ssl.c:1006)"."""
    words = re.sub(r"\[.*?\]|\(.*?\)", "", text).strip() or "it failed"
    return words.upper().replace(" ", "_")
