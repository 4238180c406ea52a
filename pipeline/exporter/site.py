"""The answers of the exporter, by path. All of it is read-only, and nothing of it is secret.

    /                    the page, one static file
    /metrics             for Prometheus: text or OpenMetrics, as the scraper asks
    /healthz             200 while this process answers
    /ready               200 if packets can pass, else 503 with the reason
    /api/present         for the page: this moment; /api/history, /api/peers: graphs and peers
    /api/session         with the token: a cookie for the page; /api/leave: takes it back

The page itself and /healthz need no token: they hold nothing about the instance.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client.exposition import choose_encoder

from pipeline.errors import TunnelError
from pipeline.exporter.access import NO_COOKIE, REALM, Access
from pipeline.exporter.history import SPANS
from pipeline.exporter.metrics import Collector, Moment
from pipeline.exporter.reading import hindrance
from pipeline.exporter.request import Request
from pipeline.exporter.server import TEXT, Answer
from pipeline.exporter.watch import Watch

PAGE = Path(__file__).with_name("page.html")
COMPRESSED_FROM = 1024  # bytes; below, the header costs more than is saved
COMPRESSION = 3  # zlib's level: fast, and two thirds of what is possible

HTML = "text/html; charset=utf-8"
JSON = "application/json"
OPENMETRICS = "application/openmetrics-text"
VARY = {"Vary": "Accept-Encoding"}


def page_policy(page: bytes) -> str:
    """The Content-Security-Policy: the scripts and styles of this page, by their hashes, and requests to ourselves."""
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
            for text in re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Site:
    """`peers_max`: of /metrics. `paths`: what depends on the instance."""

    def __init__(self, watch: Watch, access: Access, peers_max: int) -> None:
        self.watch = watch
        self._access = access
        self._peers_max = peers_max
        self._page = PAGE.read_bytes()
        self._made: dict[str, tuple[int, bytes]] = {}  # by name: the serial of the glance, and what was made of it
        self._compressed_page = gzip.compress(self._page, 9, mtime=0)
        self.paths: dict[str, Callable[[Request], Answer]] = {
            "/metrics": self._metrics,
            "/ready": self._ready,
            "/api/present": lambda request: self._shared(request, "present", self.watch.present()),
            "/api/peers": lambda request: self._shared(request, "peers", self.watch.peers()),
            "/api/history": self._history,
            "/api/session": self._session,
        }
        self.common = {
            "Cache-Control": "no-store",
            "Content-Security-Policy": page_policy(self._page),
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    def answer(self, request: Request, address: str) -> Answer:
        """`address`: of the client."""
        if request.path == "/healthz":
            return Answer(200, TEXT, b"ok\n")
        denied = self._access.judge(request, address, time.monotonic(), time.time())
        is_static = request.path in ("/", "/api/leave") and self._access.needs_token
        if denied is not None and not is_static:
            headers = (
                {"WWW-Authenticate": REALM} if denied.status == 401 and "sec-fetch-mode" not in request.headers else {}
            )
            return Answer(denied.status, TEXT, f"{denied.reason}\n".encode(), headers)
        if request.path == "/":
            return self._static(request)
        if request.path == "/api/leave":
            return Answer(204, TEXT, b"", {"Set-Cookie": NO_COOKIE})
        found = self.paths.get(request.path)
        if found is None:
            return Answer(404, TEXT, f"nothing here; there are /, /healthz, {', '.join(self.paths)}\n".encode())
        if request.path.startswith("/api/"):
            self.watch.follow()
        else:
            self.watch.look()
        try:
            return found(request)
        except TunnelError as error:  # the instance has ended since the glance
            return Answer(503, TEXT, f"{error}\n".encode())

    def _static(self, request: Request) -> Answer:
        if request.accepts_gzip():
            return Answer(200, HTML, self._compressed_page, {"Content-Encoding": "gzip", **VARY})
        return Answer(200, HTML, self._page, VARY)

    def _metrics(self, request: Request) -> Answer:
        watch = self.watch
        snapshot, glance = watch.snapshot, watch.glance
        if snapshot is None or glance is None:
            return Answer(503, TEXT, f"{watch.problem}\n".encode())
        wants_openmetrics = OPENMETRICS in request.headers.get("accept", "")
        # what else a scraper asks for is not handed on: the library fails at a version that is none
        encode, kind = choose_encoder(f"{OPENMETRICS}; version=1.0.0" if wants_openmetrics else "")

        def text() -> bytes:
            peers = [dict(each) for each in watch.source.peers(self._peers_max)]
            return encode(Collector(Moment(snapshot, glance, watch.segments, peers, watch.source.peers_known)))

        return self._shared(request, kind, self._once(kind, text), kind)

    def _ready(self, request: Request) -> Answer:
        snapshot = self.watch.snapshot
        why_not = self.watch.problem if snapshot is None else hindrance(snapshot)
        return Answer(503 if why_not else 200, TEXT, f"{why_not or 'ready'}\n".encode())

    def _history(self, request: Request) -> Answer:
        span = request.query.removeprefix("span=") or "minutes"
        if span not in SPANS:
            return Answer(404, TEXT, f"no such span; there are {', '.join(SPANS)}\n".encode())
        return self._shared(request, span, self.watch.history(span))

    def _session(self, request: Request) -> Answer:
        """The token was right, or there is none."""
        cookie = {"Set-Cookie": self._access.cookie(time.time())} if self._access.needs_token else {}
        return Answer(204, TEXT, b"", cookie)

    def _once(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The result of `make` for this glance: made once, for all requests until the next one."""
        serial, found = self._made.get(name, (-1, b""))
        if serial != self.watch.serial:
            found = make()
            self._made[name] = self.watch.serial, found
        return found

    def _shared(self, request: Request, name: str, body: bytes, kind: str = JSON) -> Answer:
        """An answer whose body all get until the next glance: compressed once, for clients that take that."""
        if len(body) < COMPRESSED_FROM or not request.accepts_gzip():
            return Answer(200, kind, body, VARY)
        compressed = self._once(f"{name} gzip", lambda: gzip.compress(body, COMPRESSION, mtime=0))
        return Answer(200, kind, compressed, {"Content-Encoding": "gzip", **VARY})
