"""The approaches through HTTP and SOCKS5 proxies: bytes in, bytes and words out."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from pipeline.wire.approach import Approach, Step
from pipeline.wire.http_connect import ConnectApproach
from pipeline.wire.socks import SocksApproach

LOGIN = ("user", "pass:word")
GREETED, LET_IN = b"\x05\x00", b"\x05\x00\x00\x01\x0a\x00\x00\x01\x1f\x90"
BASIC = b"Proxy-Authorization: Basic " + base64.b64encode(b"user:pass:word")


def answered(approach: Approach, data: bytes, size: int = 0) -> Step:
    """The end of an approach, with all bytes that were used and sent; `size`: of the pieces in which bytes come."""
    used, sent = 0, b""
    step = Step(0)
    while not (step.done or step.failure) and used < len(data):
        step = approach.feed(data[used : used + (size or len(data))])
        used += step.used
        sent += step.send
    return step._replace(used=used, send=sent)


def http(answer: bytes, port: int = 9000, login: tuple[str, str] | None = None, size: int = 0) -> Step:
    approach = ConnectApproach("hub.test", port, login)
    approach.begin()
    return answered(approach, answer, size)


def socks(answer: bytes, login: tuple[str, str] | None = None, size: int = 0, host: str = "hub.test") -> Step:
    approach = SocksApproach(host, 9000, login)
    approach.begin()
    return answered(approach, answer, size)


# -- HTTP


@pytest.mark.parametrize(
    ("host", "target"),
    [("hub.test", b"hub.test:9000"), ("192.0.2.1", b"192.0.2.1:9000"), ("fd00::1", b"[fd00::1]:9000")],
)
def test_connect_names_the_server_as_the_client_knows_it(host: str, target: bytes) -> None:
    request = ConnectApproach(host, 9000, None).begin()
    assert request == b"CONNECT " + target + b" HTTP/1.1\r\nHost: " + target + b"\r\n\r\n"


def test_a_login_is_sent_at_once() -> None:
    assert BASIC + b"\r\n" in ConnectApproach("hub.test", 9000, LOGIN).begin()


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 Connection established\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nProxy-agent: tinyproxy/1.11.1\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",  # of no meaning here
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",  # nor this: real proxies send it
    ],
)
def test_a_2xx_leads_to_the_server_whose_bytes_are_left_alone(head: bytes, size: int) -> None:
    step = http(head + b"\x16\x03\x03server", size=size)
    assert (step.done, step.used, step.failure) == (True, len(head), "")


def test_an_answer_that_is_not_whole_decides_nothing() -> None:
    assert http(b"HTTP/1.1 200 OK\r\nProxy-agent: x\r\n") == Step(35 - 2)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            b"HTTP/1.1 403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\n\r\n",
            "port 443 alone (403 Forbidden, ERR_",
        ),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not understand CONNECT"),
        (b"HTTP/1.1 405 Method Not Allowed\r\n\r\n", "is a web server and no proxy"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\n\r\n", "(status 302, http://login.test/)"),
        (b"HTTP/1.1 511 Network Authentication Required\r\n\r\n", "captive portal"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "cannot connect to the server, or not find its name (503"),
        (b"HTTP/1.1 504 Gateway Timeout\r\n\r\n", "gets no answer from the server"),
        (b"HTTP/1.1 418 \r\n\r\n", "the proxy refuses (418)"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 9\r\n\r\n", "captive portal"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>log in</html>", "captive portal"),
        (b"\x05\xff", "speaks no HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "speaks no HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "speaks no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000, "longer than any proxy's"),
    ],
)
def test_any_other_answer_is_a_failure_in_words(answer: bytes, words: str) -> None:
    step = http(answer)
    assert words in step.failure and not step.done


def test_port_443_is_no_advice_for_a_server_that_has_it() -> None:
    assert http(b"HTTP/1.1 403 Forbidden\r\n\r\n", 443).failure == "the proxy forbids this server (403 Forbidden)"


@pytest.mark.parametrize(
    ("challenges", "login", "words"),
    [
        ([b'Basic realm="squid"'], None, "wants a user and a password (setting: proxy_login_file) (407)"),
        ([b'Basic realm="squid"'], LOGIN, "does not accept this user and password (407)"),
        ([b"NTLM", b'basic realm="x, NTLM"'], LOGIN, "does not accept"),
        ([b'Digest realm="a, b", nonce="basic", Basic realm=x'], LOGIN, "does not accept"),
        ([b"Negotiate", b"NTLM"], LOGIN, "wants a login by Negotiate or NTLM and takes no Basic"),
        ([b'Digest realm="basic", qop="auth"'], None, "wants a login by Digest and takes no Basic"),
        ([], None, "wants a user and a password"),
    ],
)
def test_a_407_says_which_login_is_wanted(challenges: list[bytes], login: tuple[str, str] | None, words: str) -> None:
    headers = b"".join(b"Proxy-Authenticate: " + each + b"\r\n" for each in challenges)
    assert words in http(b"HTTP/1.1 407 Proxy Authentication Required\r\n" + headers + b"\r\n", login=login).failure


# -- SOCKS5


@pytest.mark.parametrize(
    ("host", "destination"),
    [
        ("hub.test", b"\x03\x08hub.test"),
        ("192.0.2.1", b"\x01\xc0\x00\x02\x01"),
        ("fd00::1", b"\x04\xfd" + bytes(14) + b"\x01"),
    ],
)
def test_socks_is_asked_for_the_server_as_the_client_knows_it(host: str, destination: bytes) -> None:
    approach = SocksApproach(host, 9000, None)
    assert approach.begin() == b"\x05\x01\x00"
    assert approach.feed(GREETED) == Step(2, b"\x05\x01\x00" + destination + b"\x23\x28")


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize(
    "bound", [b"\x01" + bytes(6), b"\x04" + bytes(18), b"\x03\x03abc\x00\x01", b"\x03\x00\x00\x01"]
)
def test_a_reply_of_0_leads_to_the_server_whose_bytes_are_left_alone(bound: bytes, size: int) -> None:
    answer = GREETED + b"\x05\x00\x00" + bound
    step = socks(answer + b"\x05\x01server", size=size)
    assert (step.done, step.used, step.failure) == (True, len(answer), "")


@pytest.mark.parametrize("size", [0, 1])
def test_a_login_is_sent_to_a_proxy_that_asks_for_it(size: int) -> None:
    step = socks(b"\x05\x02\x01\x00" + LET_IN, LOGIN, size)
    assert step.done and step.send.startswith(b"\x01\x04user\x09pass:word\x05\x01\x00\x03")
    assert b"user" not in socks(GREETED + LET_IN, LOGIN).send


@pytest.mark.parametrize(
    ("answer", "login", "words"),
    [
        (b"HTTP/1.0 400 Bad Request\r\n", None, "speaks no SOCKS5"),
        (b"\x00\x5b", None, "speaks no SOCKS5"),
        (b"\x05\xff", None, "wants a user and a password (setting: proxy_login_file)"),
        (b"\x05\xff", LOGIN, "accepts no login that we know"),
        (b"\x05\x01", LOGIN, "accepts no login that we know"),
        (b"\x05\x02", None, "wants a user and a password"),
        (b"\x05\x02\x01\x01", LOGIN, "does not accept this user and password"),
        (GREETED + b"\x05\x02\x00\x01", None, "port 443 alone (SOCKS reply 2)"),
        (GREETED + b"\x05\x05\x00\x01", None, "the server has refused the connection of the proxy"),
        (GREETED + b"\x05\x63\x00\x01", None, "the proxy refuses (SOCKS reply 99)"),
        (GREETED + b"\x04\x00\x00\x01", None, "speaks no SOCKS5"),
        (GREETED + b"\x05\x00\x00\x07", None, "speaks no SOCKS5"),
    ],
)
def test_any_other_reply_is_a_failure_in_words(answer: bytes, login: tuple[str, str] | None, words: str) -> None:
    step = socks(answer, login)
    assert words in step.failure and not step.done


@pytest.mark.parametrize("make", [ConnectApproach, SocksApproach])
def test_a_proxy_that_hangs_up_is_said_to(make: Callable[..., Approach]) -> None:
    approach = make("hub.test", 9000, None)
    approach.begin()
    assert "closed the connection without an answer" in approach.closed()
