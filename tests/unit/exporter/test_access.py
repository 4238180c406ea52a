"""Access: loopback names without a token, the token, the cookie, and failures that are limited."""

from __future__ import annotations

import pytest

from pipeline.exporter.access import COOKIE, COOKIE_SECONDS, FAILURE_SECONDS, FAILURES, REMEMBERED, Access
from pipeline.exporter.request import Request

TOKEN = b"a token that is long"
DAY = 86400.0


def request(**headers: str) -> Request:
    return Request("GET", "/", "", 1, {"host": "192.0.2.1:9100", **headers})


def status(access: Access, asked: Request, address: str = "192.0.2.7", now: float = 0.0, today: float = DAY) -> int:
    denied = access.judge(asked, address, now, today)
    return denied.status if denied is not None else 200


def with_token(token: bytes = TOKEN) -> Request:
    return request(authorization=f"Bearer {token.decode()}")


def with_cookie(access: Access, today: float = DAY) -> Request:
    return request(cookie=f"other=1; {access.cookie(today).split(';')[0]}")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:9100",
        "LOCALHOST.",
        "127.0.0.1:8080",
        "127.1.2.3",
        "[::1]:9100",
        "[::1]",
        "a.localhost:1",
    ],
)
def test_without_a_token_names_of_this_machine_are_answered(host: str) -> None:
    assert status(Access(b""), request(host=host)) == 200


@pytest.mark.parametrize(
    "host",
    ["attacker.example", "attacker.example:9100", "localhost.attacker.example", "10.0.0.1", "", "[::2]:1", "[", "::"],
)
def test_without_a_token_another_name_is_not_answered_lest_a_page_read_by_dns_rebinding(host: str) -> None:
    assert status(Access(b""), request(host=host)) == 421


def test_with_a_token_any_name_will_do_and_nothing_is_shown_without_it() -> None:
    access = Access(TOKEN)
    assert status(access, request(host="tunnel.example.org")) == 401
    assert status(access, request(host="localhost")) == 401
    assert status(access, with_token()) == 200
    assert status(access, with_token(TOKEN[:-1])) == 401
    assert status(access, request(authorization="Basic dXNlcjpwYXNz")) == 401


def test_a_cookie_stands_for_the_token_for_its_time_and_no_script_reads_it() -> None:
    access = Access(TOKEN)
    assert status(access, with_cookie(access)) == 200
    assert status(access, with_cookie(access), today=DAY + COOKIE_SECONDS + 1) == 401
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {each.strip() for each in access.cookie(DAY).split(";")}
    assert TOKEN.decode() not in access.cookie(DAY)


def test_a_cookie_outlives_the_process_and_not_the_token() -> None:
    assert status(Access(TOKEN), with_cookie(Access(TOKEN))) == 200
    assert status(Access(b"another token, as long"), with_cookie(Access(TOKEN))) == 401


@pytest.mark.parametrize("value", ["", ".", "9999999999.", "9999999999." + "0" * 64, "x.y", "\xff.\xff"])
def test_a_cookie_that_is_made_up_opens_nothing(value: str) -> None:
    assert status(Access(TOKEN), request(cookie=f"{COOKIE}={value}")) == 401


def test_wrong_tokens_of_an_address_are_limited_and_others_are_not_kept_out() -> None:
    access = Access(TOKEN)
    guesses = [status(access, with_token(b"guess")) for _ in range(FAILURES + 5)]
    assert guesses == [401] * FAILURES + [429] * 5
    assert status(access, with_token(), address="192.0.2.8") == 200
    assert status(access, with_token()) == 429
    assert status(access, with_token(), now=FAILURE_SECONDS) == 200


def test_an_ipv6_network_is_one_address() -> None:
    access = Access(TOKEN)
    for host in range(FAILURES):
        assert status(access, with_token(b"guess"), address=f"2001:db8::{host:x}") == 401
    assert status(access, with_token(b"guess"), address="2001:db8::ffff") == 429
    assert status(access, with_token(b"guess"), address="2001:db8:0:1::1") == 401


def test_addresses_that_have_failed_need_bounded_memory() -> None:
    access = Access(TOKEN)
    for number in range(REMEMBERED + 50):
        status(access, with_token(b"guess"), address=f"10.0.{number // 256}.{number % 256}")
    assert len(access._failures) == REMEMBERED
