"""The doctor asks the web server behind a server, and says what visitors would get."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from pipeline.config import parse
from pipeline.doctor import fallback as look
from pipeline.doctor.fallback import Answer, judge_h2, judge_http, judge_plain
from pipeline.doctor.finding import Level
from pipeline.doctor.subject import Subject
from tests.harness.config_problems import SERVER
from tests.harness.web_site import ANSWER, WebSite

PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
HTTPS_PORT = b"HTTP/1.1 400 Bad Request\r\n\r\n<title>400 The plain HTTP request was sent to HTTPS port</title>"
ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
WEB = {"encryption": "tls", "insecure": False}


def subject(**settings: Any) -> Subject:
    return Subject("hub", parse(SERVER | WEB | settings))


def page(connection: socket.socket) -> bytes:
    asked = connection.recv(1 << 16)
    connection.sendall(PAGE)
    return asked


def test_a_web_server_that_shows_a_page_is_all_right_and_is_asked_by_the_public_name() -> None:
    with WebSite(page) as site:
        (finding,) = look.fallback(subject(fallback=site.address, public_addr="vpn.example.org:443"))
    assert finding.level is Level.OK and f"fallback, {site.address}, answers in HTTP/1.1 after " in finding.text
    assert site.got[0].startswith(b"GET / HTTP/1.1\r\nHost: vpn.example.org\r\n")


def test_the_header_of_the_proxy_protocol_comes_first_where_it_is_set() -> None:
    with WebSite(page) as site:
        look.fallback(subject(fallback=site.address, fallback_proxy_protocol=True))
    assert site.got[0].startswith(b"\r\n\r\n\0\r\nQUIT\n\x21\x11")


def test_one_that_is_not_there_is_a_problem() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        (finding,) = look.fallback(subject(fallback="{}:{}".format(*sock.getsockname())))
    assert finding.level is Level.PROBLEM and "cannot be reached: connection refused" in finding.text


def test_without_a_fallback_nothing_is_asked() -> None:
    assert look.fallback(subject()) == look.fallback(Subject()) == []


@pytest.mark.parametrize(
    ("judge", "answer", "level", "text"),
    [
        (judge_http, Answer(PAGE, 0.2), Level.OK, "answers in HTTP/1.1 after 200 ms"),
        (judge_http, Answer(PAGE, 1.2), Level.NOTE, "after 1200 ms"),
        (judge_http, Answer(b"HTTP/1.1 502 Bad Gateway\r\n"), Level.NOTE, "answers with 502"),
        (judge_http, Answer(ANSWER), Level.PROBLEM, "400 Bad Request"),
        (judge_http, Answer(HTTPS_PORT), Level.PROBLEM, "wants TLS"),
        (judge_http, Answer(ALERT), Level.PROBLEM, "wants TLS"),
        (judge_http, Answer(b""), Level.PROBLEM, "closes the connection without an answer"),
        (judge_http, Answer(SETTINGS), Level.PROBLEM, "does not answer in HTTP/1.1"),
        (judge_http, Answer(b"HTTP/1.1 what"), Level.OK, "answers in HTTP/1.1"),
        (judge_http, Answer(why="has not answered within 3 s"), Level.PROBLEM, "has not answered within 3 s"),
        (judge_h2, Answer(SETTINGS), Level.OK, "answers in HTTP/2"),
        (judge_h2, Answer(ANSWER), Level.PROBLEM, "does not answer in HTTP/2"),
        (judge_h2, Answer(ALERT), Level.PROBLEM, "wants TLS"),
        (judge_h2, Answer(SETTINGS[:8]), Level.PROBLEM, "does not answer in HTTP/2"),
        (judge_plain, Answer(HTTPS_PORT), Level.OK, "answers as a port with TLS does"),
        (judge_plain, Answer(ALERT), Level.OK, "answers as a port with TLS does"),
        (judge_plain, Answer(b""), Level.OK, "closes the connection"),
        (judge_plain, Answer(PAGE), Level.NOTE, "shows the site without TLS"),
        (judge_plain, Answer(b"SSH-2.0"), Level.PROBLEM, "is no web server"),
        (judge_plain, Answer(why="cannot be reached: x"), Level.PROBLEM, "cannot be reached: x"),
    ],
)
def test_each_answer_has_one_clear_line(judge: Any, answer: Answer, level: Level, text: str) -> None:
    finding = judge("fallback, 127.0.0.1:80,", answer)
    assert finding.level is level and text in finding.text
    assert bool(finding.cure) is (level is not Level.OK)
