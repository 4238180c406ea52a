"""The doctor tries the proxy of a client, and says what to do about its answer."""

from __future__ import annotations

import pytest

from pipeline.config import parse
from pipeline.doctor import proxy as look
from pipeline.doctor.finding import Level
from pipeline.doctor.subject import Subject
from tests.harness.config_problems import CLIENT, SERVER
from tests.harness.fake_proxy import FakeProxy


def subject(port: int) -> Subject:
    return Subject("office", parse(CLIENT | {"proxy": f"http://127.0.0.1:{port}"}))


def test_a_proxy_that_connects_is_all_right() -> None:
    with FakeProxy(b"HTTP/1.1 200 OK\r\n\r\n") as fake:
        (finding,) = look.proxy(subject(fake.port))
        assert fake.asked == [b"CONNECT 192.0.2.1:9000 HTTP/1.1\r\nHost: 192.0.2.1:9000\r\n\r\n"]
    assert finding.level is Level.OK and "connects with 192.0.2.1 port 9000" in finding.text


@pytest.mark.parametrize(
    ("answer", "text", "cure"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "speaks no HTTP", "scheme in `proxy`"),
        (b"HTTP/1.1 418 \x1b\r\n\r\n", "(418 \\x1b)", "ask the proxy's administrator"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "forbids this server", "listen on port 443"),
        (b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\n\r\n", "a login by NTLM", "docs/proxy.md"),
    ],
)
def test_one_that_does_not_is_a_problem_with_its_cure(answer: bytes, text: str, cure: str) -> None:
    with FakeProxy(answer) as fake:
        (finding,) = look.proxy(subject(fake.port))
    assert finding.level is Level.PROBLEM
    assert text in finding.text and cure in finding.cure


def test_each_server_is_asked_for() -> None:
    several = CLIENT | {"remote_addr": ["192.0.2.1:9000", "fra.test:9001", "srv:_tunnel._tcp.hub.test"]}
    with FakeProxy(b"HTTP/1.1 200 OK\r\n\r\n") as fake:
        found = look.proxy(Subject("office", parse(several | {"proxy": f"http://127.0.0.1:{fake.port}"})))
    assert [finding.level for finding in found] == [Level.OK, Level.OK]
    assert "fra.test port 9001" in found[1].text


def test_with_a_full_tunnel_nothing_is_tried_since_only_workers_go_around_it() -> None:
    snapshot = {"full_tunnel": {"on": True}}
    assert look.proxy(subject(1)._replace(snapshot=snapshot)) == []


def test_without_a_proxy_nothing_is_tried() -> None:
    assert look.proxy(Subject("office", parse(CLIENT))) == []
    assert look.proxy(Subject("hub", parse(SERVER | {"proxy": "http://127.0.0.1:1"}))) == []
    assert look.proxy(Subject()) == []
