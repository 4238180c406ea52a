"""Access to the exporter: the token, the cookie that stands for it, and the names under which a browser may come.

    judge(request, address, now)    "" if the request may be answered, else the reason, with its status
    cookie(now)                     a cookie for a browser that has given the token

Without a token the exporter listens on loopback alone. Any page in a browser of this machine can send requests there,
and by DNS rebinding it could read the answers: its own name leads to 127.0.0.1 then. The name is in the header Host, so
only names of loopback are answered. With a token that is not needed: the cookie belongs to the name of the server.

The cookie is a time and its HMAC under the token. It needs no memory, so it outlives the process, and a new token ends
it. Each address may fail FAILURES times at once, and then once in FAILURE_SECONDS.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from pipeline.exporter.request import Request

COOKIE = "tunnel_page"
COOKIE_SECONDS = 30 * 86400
FAILURES = 10
FAILURE_SECONDS = 5.0
REMEMBERED = 1024  # addresses that have failed, about 200 kB
REALM = 'Bearer realm="tunnel-supervisor"'


class Denied(NamedTuple):
    """Why a request is not answered."""

    status: int
    reason: str


class Access:
    """`token`: b"" for none. Times are seconds; `now` of judge() is CLOCK_MONOTONIC, `today` the wall clock."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._key = hashlib.sha256(b"tunnel-supervisor page\0" + token).digest()
        self._failures: OrderedDict[str | int, tuple[float, float]] = OrderedDict()  # level of the bucket, its time
        self.failed = 0

    @property
    def needs_token(self) -> bool:
        return bool(self._token)

    def judge(self, request: Request, address: str, now: float, today: float) -> Denied | None:
        """None: the request may be answered."""
        if not self._token:
            return None if is_loopback_name(request.headers.get("host")) else Denied(421, OTHER_HOST)
        given, cookie = bearer(request), cookie_of(request)
        if given is None and cookie is None:
            return Denied(401, "a token is needed: Authorization: Bearer TOKEN")
        source = _source(address)
        if self._level(source, now) < 1:
            return Denied(429, "too many wrong tokens from this address: wait a few seconds")
        if given is not None and hmac.compare_digest(_digest(given), _digest(self._token)):
            return None
        if given is None and cookie is not None and self._is_ours(cookie, today):
            return None
        if given is not None:  # a cookie that has expired is no attempt at guessing
            self._fail(source, now)
            return Denied(401, "the token is wrong")
        return Denied(401, "the sign-in has expired")

    def cookie(self, today: float) -> str:
        """The value of Set-Cookie. No `Secure`: the exporter itself speaks plain HTTP."""
        until = str(int(today) + COOKIE_SECONDS)
        value = f"{until}.{self._seal(until)}"
        return f"{COOKIE}={value}; Max-Age={COOKIE_SECONDS}; Path=/; HttpOnly; SameSite=Strict"

    def _is_ours(self, value: str, today: float) -> bool:
        until, _, seal = value.partition(".")
        genuine = hmac.compare_digest(seal.encode("latin-1", "replace"), self._seal(until).encode())
        return genuine and until.isascii() and until.isdigit() and int(until) > today

    def _seal(self, until: str) -> str:
        return hmac.new(self._key, until.encode("latin-1", "replace"), hashlib.sha256).hexdigest()

    # -- failures: a bucket of FAILURES for each address

    def _level(self, source: str | int, now: float) -> float:
        level, at = self._failures.get(source, (FAILURES, now))
        return min(FAILURES, level + (now - at) / FAILURE_SECONDS)

    def _fail(self, source: str | int, now: float) -> None:
        self.failed += 1
        self._failures[source] = self._level(source, now) - 1, now
        self._failures.move_to_end(source)
        if len(self._failures) > REMEMBERED:
            self._failures.popitem(last=False)


NO_COOKIE = f"{COOKIE}=; Max-Age=0; Path=/; HttpOnly; SameSite=Strict"
"""Ends the session of a browser."""

OTHER_HOST = (
    "this exporter has no token and answers requests for localhost, 127.0.0.1 and [::1] alone: "
    "let a proxy set the header Host, or set metrics_token_file"
)


def bearer(request: Request) -> bytes | None:
    """The token in the header Authorization; None if there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else None


def cookie_of(request: Request) -> str | None:
    for pair in request.headers.get("cookie", "").split(";"):
        name, equals, value = pair.strip().partition("=")
        if equals and name == COOKIE:
            return value
    return None


def is_loopback_name(host: str | None) -> bool:
    """Whether the header Host names this machine alone. Only clients older than HTTP/1.1, no browsers, send none."""
    if host is None:
        return True
    name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.rpartition(":")[0] or host
    name = name.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _source(address: str) -> str | int:
    """An IPv4 address, or the /64 of an IPv6 address, which is what one subscriber has."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        return str(found.ipv4_mapped) if found.ipv4_mapped else int(found) >> 64
    return str(found)


def _digest(token: bytes) -> bytes:
    """So that a comparison does not even tell the length."""
    return hashlib.sha256(token).digest()
