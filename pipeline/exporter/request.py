"""A request of HTTP/1, as far as a read-only server needs it (RFC 9112). Pure: bytes in, values out.

    take(buffer)    the first request in a buffer and its length; None while more bytes are needed; or Refused

Any bytes give one of these three, and a request is never longer than REQUEST_BYTES_MAX. There is no body: a request
that announces one is refused.
"""

from __future__ import annotations

import re
from typing import NamedTuple

REQUEST_BYTES_MAX = 8192  # the cookies and headers of a browser have a tenth of that
METHODS = ("GET", "HEAD")

_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([\x21-\x7e]{1,2048}) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t\x80-\xff]*)")


class Request(NamedTuple):
    """`headers`: names in lower case. `query`: what follows the question mark, as it was sent."""

    method: str
    path: str
    query: str
    minor: int  # of HTTP/1
    headers: dict[str, str]

    @property
    def keeps_alive(self) -> bool:
        """Whether the client may send another request on this connection."""
        words = [word.strip().lower() for word in self.headers.get("connection", "").split(",")]
        return "close" not in words if self.minor else "keep-alive" in words

    def accepts_gzip(self) -> bool:
        """Whether an answer may be compressed (RFC 9110, 12.5.3)."""
        for part in self.headers.get("accept-encoding", "").lower().split(","):
            coding, _, parameters = part.strip().partition(";")
            if coding.strip() in ("gzip", "*"):
                return not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", parameters)
        return False


class Refused(NamedTuple):
    """Bytes that are no request that this server answers; the connection ends with this answer."""

    status: int
    reason: str


def take(buffer: bytes) -> tuple[Request, int] | Refused | None:
    """See the head of this file."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0 or end + 4 > REQUEST_BYTES_MAX:
        too_long = end >= 0 or len(buffer) >= REQUEST_BYTES_MAX
        return Refused(431, f"a request of at most {REQUEST_BYTES_MAX} bytes is expected") if too_long else None
    line, *rest = buffer[:end].split(b"\r\n")
    matched = _LINE.fullmatch(line)
    if matched is None:
        return Refused(400, "a request line such as GET / HTTP/1.1 is expected")
    method, target, minor = (part.decode("ascii") for part in matched.groups())
    if method not in METHODS:
        return Refused(405, "this server only shows: GET and HEAD are expected")
    headers: dict[str, str] = {}
    for each in rest:
        found = _HEADER.fullmatch(each)
        if found is None:
            return Refused(400, "headers such as Host: localhost are expected")
        name, value = found[1].decode("ascii").lower(), found[2].decode("latin-1").strip(" \t")
        if name in headers and name in ("host", "authorization", "content-length"):
            return Refused(400, f"one header {name} is expected")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        return Refused(413, "a request without a body is expected")
    if minor == "1" and "host" not in headers:
        return Refused(400, "a header Host is expected")
    path, _, query = target.partition("?")
    return Request(method, path, query, int(minor), headers), end + 4
