"""The web server behind a server (`fallback`): whether it answers, in the protocol that visitors get, and how soon.

Each of its addresses is asked once, from this machine, as the bytes of a visitor would ask it. Judges are pure.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from pipeline.config import Config
from pipeline.config.values import parse_endpoint
from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.subject import Subject
from pipeline.transport.failure_words import of_error
from pipeline.wire.proxy_protocol import Client, header

SECONDS = 3.0  # for an answer
SLOW_SECONDS = 1.0
ANSWER_BYTES = 4096
REQUEST = "GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tunnel-supervisor doctor\r\nConnection: close\r\n\r\n"
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # and empty SETTINGS (RFC 9113, 3.4)
PAGE = "See docs/port-443.md, which has the lines for nginx."
GET_NOTHING = f"Visitors get nothing: start the web server, or correct the address. {PAGE}"
BAD_REQUEST, SERVER_ERROR = 400, 500
PROXY_PROTOCOL = "Either both have the PROXY protocol or none: compare fallback_proxy_protocol with the web server."


class Answer(NamedTuple):
    """The first bytes, none if the other end has closed without any. `why`: there was no answer."""

    data: bytes = b""
    seconds: float = 0.0
    why: str = ""


def fallback(subject: Subject) -> list[Finding]:
    config = subject.config
    if config is None or not subject.is_server or not config.fallback:
        return []
    found = []
    for setting, judge in JUDGES.items():
        if address := getattr(config, setting):
            found.append(judge(f"{setting}, {address},", _ask(config, setting, address)))
    return found


def _ask(config: Config, setting: str, address: str) -> Answer:
    server = parse_endpoint(address)
    public = config.public_addresses
    host = parse_endpoint(public[0]).host if public else server.host
    begun = time.monotonic()
    try:
        with socket.create_connection((server.host, server.port), SECONDS) as sock:
            sock.settimeout(SECONDS)
            if config.fallback_proxy_protocol:
                near, far = (Client(*each[:2]) for each in (sock.getsockname(), sock.getpeername()))
                sock.sendall(header(near, far))
            sock.sendall(H2_PREFACE if setting == "fallback_h2" else REQUEST.format(host=host).encode())
            data = sock.recv(ANSWER_BYTES)
    except TimeoutError:
        return Answer(why=f"has not answered within {SECONDS:g} s")
    except ConnectionResetError:
        data = b""
    except OSError as error:
        return Answer(why=f"cannot be reached: {of_error(error)}")
    return Answer(data, time.monotonic() - begun)


def judge_http(what: str, answer: Answer) -> Finding:
    status = http_status(answer.data)
    if status == BAD_REQUEST and not speaks_tls(answer.data):
        return problem(f"{what} answers a plain request with 400 Bad Request", f"{PROXY_PROTOCOL} {PAGE}")
    if status >= SERVER_ERROR:
        return note(f"{what} answers with {status}", "Visitors get this error: look at the log of the web server.")
    return _judge(what, answer, "HTTP/1.1", is_http)


def judge_h2(what: str, answer: Answer) -> Finding:
    return _judge(what, answer, "HTTP/2", is_h2)


def judge_plain(what: str, answer: Answer) -> Finding:
    """Of a port with TLS, that gets plain HTTP: a page with 400, an alert, or the end of the connection."""
    if answer.why:
        return problem(f"{what} {answer.why}", GET_NOTHING)
    if not answer.data:
        return ok(f"{what} closes the connection")
    if is_alert(answer.data) or http_status(answer.data) == BAD_REQUEST:
        return ok(f"{what} answers as a port with TLS does")
    if is_http(answer.data):
        cure = f"Let it be a port with TLS, which answers plain HTTP as one does on port 443. {PAGE}"
        return note(f"{what} shows the site without TLS", cure)
    return problem(f"{what} is no web server", f"Name a port of the web server, with TLS. {PAGE}")


def _judge(what: str, answer: Answer, protocol: str, is_right: Callable[[bytes], bool]) -> Finding:
    if answer.why:
        return problem(f"{what} {answer.why}", GET_NOTHING)
    if not answer.data:
        return problem(f"{what} closes the connection without an answer to {protocol}", f"{PROXY_PROTOCOL} {PAGE}")
    if speaks_tls(answer.data):
        return problem(f"{what} wants TLS, and gets {protocol} without it", f"Name a port without TLS. {PAGE}")
    if not is_right(answer.data):
        return problem(f"{what} does not answer in {protocol}", f"Name a port that speaks it without TLS. {PAGE}")
    took = f"{what} answers in {protocol} after {answer.seconds * 1000:.0f} ms"
    if answer.seconds > SLOW_SECONDS:
        return note(took, "Visitors wait as long for each page: look at the web server.")
    return ok(took)


JUDGES: dict[str, Callable[[str, Answer], Finding]] = {
    "fallback": judge_http,
    "fallback_h2": judge_h2,
    "fallback_plain": judge_plain,
}


def is_http(data: bytes) -> bool:
    return data.startswith(b"HTTP/1.")


def http_status(data: bytes) -> int:
    """0: it is no HTTP."""
    words = data.split(b"\r\n", 1)[0].split()
    return int(words[1]) if is_http(data) and len(words) > 1 and words[1].isdigit() and len(words[1]) == 3 else 0


def is_h2(data: bytes) -> bool:
    """A SETTINGS frame of the connection (RFC 9113, 6.5)."""
    return len(data) >= 9 and data[3] == 4 and data[5:9] == bytes(4)


def is_alert(data: bytes) -> bool:
    """A record of TLS with an alert (RFC 8446, 5.1)."""
    return data[:2] == b"\x15\x03"


def speaks_tls(data: bytes) -> bool:
    """By an alert, or by the page of nginx or Apache for such a request."""
    return is_alert(data) or b"HTTPS port" in data or b"speaking plain HTTP to an SSL" in data
