"""The approach through an HTTP proxy: CONNECT (RFC 9110, 9.3.6), with a login by Basic (RFC 7617). Pure.

Not every answer to CONNECT is a proxy's: a portal answers with a page, and a web server does not know the method. So a
2xx counts only if no page comes with it. Lengths in its header count for nothing, as the standard says.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable

import h11

from pipeline.wire.approach import CLOSED, NO_LOGIN, WRONG_LOGIN, Step, forbidden

HTTP = b"HTTP/"
DETAIL_MAX = 120  # characters of the proxy's own words that are passed on
DETAILS = (b"proxy-status", b"x-squid-error")  # RFC 9209, and squid's own
SCHEME = re.compile(r"(?:^|,)\s*([A-Za-z][\w-]*)(?=\s|,|$)")  # in Proxy-Authenticate; a parameter has an equals sign

NO_HTTP = "what answers there speaks no HTTP: is it this proxy's port, or a proxy of another kind?"
LONG_ANSWER = "the proxy's answer is longer than any proxy's should be"
PORTAL = "a page answers in place of the proxy: a network that wants a login first (captive portal), or a web server"
NO_PROXY = "what answers there is a web server and no proxy: it does not connect for others"
OTHER_LOGIN = "the proxy wants a login by {methods} and takes no Basic: such a proxy needs proxy_command (cntlm, px)"
UNREACHED = "the proxy cannot connect to the server, or not find its name"

OF_STATUS = {
    400: "the proxy does not understand CONNECT: is it an HTTP proxy, without TLS?",
    401: WRONG_LOGIN,
    404: NO_PROXY,
    405: NO_PROXY,
    426: "the proxy wants TLS: https:// in place of http://",
    429: "the proxy takes no more connections from us for now",
    500: UNREACHED,
    501: NO_PROXY,
    502: UNREACHED,
    503: UNREACHED,
    504: "the proxy gets no answer from the server",
    511: PORTAL,
}


class ConnectApproach:
    """`host`: an address or a name of ASCII characters."""

    def __init__(self, host: str, port: int, login: tuple[str, str] | None) -> None:
        self._target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._port = port
        self._login = login
        self._talk = h11.Connection(h11.CLIENT)
        self._start = b""  # of the answer: h11 would wait for the end of a header that is none

    def begin(self) -> bytes:
        headers = [("Host", self._target)]
        if self._login is not None:
            secret = base64.b64encode(":".join(self._login).encode()).decode()
            headers.append(("Proxy-Authorization", f"Basic {secret}"))
        request = h11.Request(method="CONNECT", target=self._target, headers=headers)
        return (self._talk.send(request) or b"") + (self._talk.send(h11.EndOfMessage()) or b"")

    def feed(self, data: bytes) -> Step:
        self._start += data[: len(HTTP) - len(self._start)]
        if not HTTP.startswith(self._start):
            return Step(len(data), failure=NO_HTTP)
        self._talk.receive_data(data)
        try:
            event = self._talk.next_event()
            while isinstance(event, h11.InformationalResponse):
                event = self._talk.next_event()
        except h11.RemoteProtocolError as error:
            return Step(len(data), failure=LONG_ANSWER if error.error_status_hint == 431 else NO_HTTP)
        if not isinstance(event, h11.Response):
            return Step(len(data))
        if not 200 <= event.status_code < 300:
            return Step(len(data), failure=self._refused(event))
        behind, _ = self._talk.trailing_data
        failure = PORTAL if _is_page(event, behind) else ""
        return Step(len(data) - len(behind), done=not failure, failure=failure)

    def closed(self) -> str:
        return CLOSED

    def _refused(self, answer: h11.Response) -> str:
        status = answer.status_code
        if status == 407:
            return _of_login(_values(answer, b"proxy-authenticate"), self._login is not None)
        if 300 <= status < 400:
            return f"{PORTAL}{_in_brackets([f'status {status}', *_values(answer, b'location')])}"
        words = forbidden(self._port) if status == 403 else OF_STATUS.get(status, "the proxy refuses")
        reason = bytes(answer.reason).decode("latin-1").strip()
        details = [value for name in DETAILS for value in _values(answer, name)]
        return words + _in_brackets([f"{status} {reason}".strip(), *details])


def _of_login(challenges: list[str], was_given: bool) -> str:
    """Of a 407, by the methods that the proxy offers."""
    methods = [method for challenge in challenges for method in SCHEME.findall(challenge)]
    if methods and not any(method.lower() == "basic" for method in methods):
        return OTHER_LOGIN.format(methods=" or ".join(dict.fromkeys(methods))[:DETAIL_MAX])
    return f"{WRONG_LOGIN if was_given else NO_LOGIN} (407)"


def _is_page(answer: h11.Response, behind: bytes) -> bool:
    """Whether a page comes with a 2xx: the server behind a proxy says nothing before we do."""
    if behind.lstrip()[:1] == b"<":
        return True
    length = _values(answer, b"content-length")
    is_text = any(value.lower().startswith("text/html") for value in _values(answer, b"content-type"))
    return is_text and bool(behind or (length and length[0] != "0"))


def _values(answer: h11.Response, wanted: bytes) -> list[str]:
    return [bytes(value).decode("latin-1") for name, value in answer.headers if bytes(name) == wanted]


def _in_brackets(parts: Iterable[str]) -> str:
    return f" ({', '.join(part[:DETAIL_MAX] for part in parts if part)})"
