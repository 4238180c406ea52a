"""Requests: what is a request, what is refused, and that any bytes are one or the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.exporter.request import REQUEST_BYTES_MAX, Refused, Request, take

PLAIN = b"GET /metrics?x=1 HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip, br\r\n\r\n"


def taken(sent: bytes) -> tuple[Request, int]:
    found = take(sent)
    assert isinstance(found, tuple) and not isinstance(found, Refused)
    return found


def test_a_request_is_taken_with_its_length_and_the_rest_stays() -> None:
    request, length = taken(PLAIN + b"GET / HT")
    assert length == len(PLAIN)
    assert request == Request("GET", "/metrics", "x=1", 1, {"host": "localhost", "accept-encoding": "gzip, br"})
    assert request.keeps_alive
    assert request.accepts_gzip()


@pytest.mark.parametrize("cut", range(len(PLAIN)))
def test_a_part_of_a_request_waits_for_the_rest(cut: int) -> None:
    assert take(PLAIN[:cut]) is None


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 413),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * REQUEST_BYTES_MAX + b"\r\n\r\n", 431),
        (b"x" * REQUEST_BYTES_MAX, 431),
    ],
)
def test_what_is_no_request_for_something_to_read_is_refused(sent: bytes, status: int) -> None:
    found = take(sent)
    assert isinstance(found, Refused)
    assert found.status == status


@pytest.mark.parametrize(
    ("line", "keeps"),
    [
        (b"1.1\r\nHost: a", True),
        (b"1.1\r\nHost: a\r\nConnection: close", False),
        (b"1.0", False),
        (b"1.0\r\nConnection: Keep-Alive", True),
    ],
)
def test_a_connection_is_kept_as_the_client_asks(line: bytes, keeps: bool) -> None:
    request, _ = taken(b"GET / HTTP/" + line + b"\r\n\r\n")
    assert request.keeps_alive is keeps


@pytest.mark.parametrize(
    ("accepted", "may"), [("gzip", True), ("br, gzip;q=0.5", True), ("*", True), ("gzip;q=0", False), ("br", False)]
)
def test_an_answer_is_compressed_for_clients_that_take_it(accepted: str, may: bool) -> None:
    assert Request("GET", "/", "", 1, {"accept-encoding": accepted}).accepts_gzip() is may


@given(st.binary(max_size=300) | st.builds(lambda a, b: a + b"\r\n\r\n" + b, st.binary(max_size=200), st.binary()))
def test_any_bytes_are_a_request_or_refused_or_too_few(data: bytes) -> None:
    found = take(data)
    assert found is None or isinstance(found, Refused) or 0 < found[1] <= len(data)
