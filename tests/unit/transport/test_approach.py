"""Approaches on real sockets, for a caller that waits. The dialer's: test_dialer.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.transport.approach import ApproachFailed, connect
from pipeline.wire.approach import Proxy
from tests.harness.fake_proxy import FakeProxy

LET_IN = b"HTTP/1.1 200 OK\r\n\r\n"
HELLO = b"the server speaks first"


def proxy_at(fake: FakeProxy, scheme: str = "http") -> Proxy:
    return Proxy(scheme, "127.0.0.1", fake.port)


@pytest.mark.parametrize("in_pieces", [False, True], ids=["at once", "byte by byte"])
def test_the_socket_leads_to_the_server_and_has_all_its_bytes(in_pieces: bool) -> None:
    with FakeProxy(LET_IN + HELLO, in_pieces=in_pieces) as fake, connect(proxy_at(fake), "hub.test", 9, 5.0) as sock:
        assert fake.asked[0].startswith(b"CONNECT hub.test:9 HTTP/1.1\r\n")
        found = b""
        while len(found) < len(HELLO):
            found += sock.recv(100)
        assert found == HELLO


@pytest.mark.parametrize(
    ("answer", "closes", "words"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", False, "the proxy forbids"),
        (b"", True, "closed the connection without an answer"),
        (None, False, "takes connections and says nothing"),
    ],
    ids=["refused", "closed", "silent"],
)
def test_a_proxy_that_does_not_let_us_through_is_named_with_the_reason(
    answer: bytes | None, closes: bool, words: str
) -> None:
    with FakeProxy(answer, closes=closes) as fake, pytest.raises(ApproachFailed) as caught:
        connect(proxy_at(fake), "hub.test", 9, 0.3)
    assert str(caught.value).startswith(f"proxy http://127.0.0.1:{fake.port}: ")
    assert words in str(caught.value)


def test_a_proxy_that_is_not_there_is_named() -> None:
    with FakeProxy(None) as fake:
        pass
    with pytest.raises(ApproachFailed, match="connection refused"):
        connect(proxy_at(fake), "hub.test", 9, 5.0)


def test_a_worker_loads_h11_for_no_other_proxy() -> None:
    look = "import sys, pipeline.transport.approach as a; from pipeline.wire.approach import Proxy as P; "
    for scheme, loaded in (("socks5", False), ("http", True)):
        code = f"{look}a.make_approach(P('{scheme}', 'p', 1), 'h', 2); print('h11' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == f"{loaded}\n"
