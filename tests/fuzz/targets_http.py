"""The target of the exporter: what an unknown client sends to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from pipeline.exporter.access import Access
from pipeline.exporter.request import METHODS, REQUEST_BYTES_MAX, Refused, take
from pipeline.exporter.site import Site
from pipeline.exporter.watch import Watch
from tests.fuzz.fuzzer import Feed
from tests.harness.snapshots import Source, snapshot

TOKEN = b"a token that nobody guesses"
OPEN = ("/", "/healthz", "/api/leave")


@contextmanager
def http_request() -> Iterator[Feed]:
    """Requests are taken, refused or waited for; nothing of the instance is answered without the token."""
    watch = Watch(Source(snapshot))
    watch.tick()
    site, open_site = Site(watch, Access(TOKEN), 10), Site(watch, Access(b""), 10)

    def feed(data: bytes) -> None:
        while data:
            found = take(data)
            if found is None:
                assert len(data) < REQUEST_BYTES_MAX
                return
            if isinstance(found, Refused):
                assert HTTPStatus(found.status) >= HTTPStatus.BAD_REQUEST
                return
            request, length = found
            assert 0 < length <= len(data)
            assert request.method in METHODS
            request.accepts_gzip()
            answer = site.answer(request, "192.0.2.1")
            headers = "".join(f"{name}{value}" for name, value in answer.headers.items())
            assert headers.isascii() and headers.isprintable()
            assert TOKEN not in answer.body
            if TOKEN.decode() not in request.headers.get("authorization", ""):
                assert request.path in OPEN or answer.status in (401, 429)
            open_site.answer(request, "127.0.0.1")
            data = data[length:]

    yield feed


def http_request_seeds() -> list[bytes]:
    get = b"GET /metrics?x HTTP/1.1\r\nHost: localhost:9100\r\n"
    return [
        get + b"Authorization: Bearer " + TOKEN + b"\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n",
        get + b"Authorization: Bearer guess\r\nAccept-Encoding: gzip;q=0, *\r\nConnection: close\r\n\r\n",
        b"GET /api/present HTTP/1.0\r\nCookie: tunnel_page=9999999999.ab; x=1\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\nConnection: keep-alive\r\nAccept-Encoding: gzip\r\n\r\n",
        b"GET /ready HTTP/1.1\r\nHost: a.localhost.:1\r\n\r\n",
        b"GET /api/peers HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /api/leave HTTP/1.1\r\nHost: [::2]\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [::1]:1\r\n\r\nHEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /api/history?span=day HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
        b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ]
