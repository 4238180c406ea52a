"""Errors of sockets, TLS and the resolver in words. The errors are real ones."""

from __future__ import annotations

import errno
import os
import socket
import ssl

import pytest

from pipeline.transport import failure_words
from pipeline.transport.failure_words import of_errno, of_error


def tls_error_at(answer: bytes) -> ssl.SSLError:
    """What a TLS client makes of these bytes in place of a server's handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    client = context.wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(answer)
    with pytest.raises(ssl.SSLError) as raised:
        client.do_handshake()
    return raised.value


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"220 mail ESMTP\r\n", b"\xff" * 64],
    ids=["http", "ssh", "smtp", "ones"],
)
def test_a_server_without_tls_is_called_so(answer: bytes) -> None:
    assert of_error(tls_error_at(answer)) == failure_words.NO_TLS


@pytest.mark.parametrize(
    ("alert", "words"),
    [
        (40, "the other end finds nothing in common"),
        (42, failure_words.OUR_CERTIFICATE),
        (45, "it has expired"),
        (48, "its CA is unknown"),
        (70, failure_words.OTHER_VERSION),
        (112, failure_words.NO_TUNNEL),
        (120, failure_words.NO_TUNNEL),
        (116, "wants a certificate"),
    ],
)
def test_an_alert_of_the_server_is_explained(alert: int, words: str) -> None:
    assert words in of_error(tls_error_at(b"\x15\x03\x03\x00\x02\x02" + bytes([alert])))


def test_no_text_holds_the_source_line_of_a_module() -> None:
    for number in range(256):
        text = of_error(tls_error_at(b"\x15\x03\x03\x00\x02\x02" + bytes([number])))
        assert text and "_ssl" not in text and "[" not in text


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_errno_has_words(number: int) -> None:
    assert of_errno(number) == of_error(OSError(number, os.strerror(number)))
    assert of_errno(number)


def test_a_refusal_whose_errno_the_kernel_has_lost_is_no_success() -> None:
    assert of_errno(0).startswith("refused on the way")


def test_a_text_of_our_own_stays() -> None:
    assert of_error(ConnectionResetError(errno.ECONNRESET, "the stream ended without close_notify")) == (
        "the stream ended without close_notify"
    )


def test_an_error_without_an_errno_keeps_its_text() -> None:
    assert of_error(OSError("no context for TLS")) == "no context for TLS"


def test_a_refused_connection_says_what_refuses() -> None:
    with socket.socket() as bound, socket.socket() as client:
        bound.bind(("127.0.0.1", 0))
        assert "nothing listens" in of_errno(client.connect_ex(bound.getsockname()))


def test_an_unknown_name_is_called_so() -> None:
    with pytest.raises(OSError) as raised:
        socket.getaddrinfo("no-such-name.invalid", 9)
    assert of_error(raised.value) in failure_words.OF_RESOLVER.values()


def test_a_certificate_that_is_not_trusted_is_called_so() -> None:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] ... (_ssl.c:1006)")
    error.verify_message = "certificate has expired"
    assert of_error(error) == "the other end's certificate is not accepted here: certificate has expired"
