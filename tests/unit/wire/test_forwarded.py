"""Whose request it is, by what proxies have written and clients may have written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.wire.forwarded import FORWARDED, address_of, find_client

LIST = "x-forwarded-for"
PROXIES = {"127.0.0.1", "10.0.0.1", "2001:db8:1::1"}


def found(*values: bytes, name: str = LIST, at: str = "127.0.0.1") -> str:
    return find_client(at, name, values, PROXIES.__contains__)


@pytest.mark.parametrize(
    ("values", "client"),
    [
        ([], "127.0.0.1"),
        ([b"192.0.2.7"], "192.0.2.7"),
        ([b"192.0.2.7, 10.0.0.1"], "192.0.2.7"),
        ([b"192.0.2.7", b"10.0.0.1"], "192.0.2.7"),
        ([b"10.0.0.1"], "10.0.0.1"),
        ([b"192.0.2.7:40000"], "192.0.2.7"),
        ([b"2001:db8::7"], "2001:db8::7"),
        ([b"[2001:db8::7]:40000"], "2001:db8::7"),
        ([b"::ffff:192.0.2.7"], "192.0.2.7"),
        ([b"198.51.100.1", b"203.0.113.1, 192.0.2.7,2001:db8:1::1"], "192.0.2.7"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxy(values: list[bytes], client: str) -> None:
    assert found(*values) == client


@pytest.mark.parametrize("written", [b"203.0.113.1", b"203.0.113.1, 10.0.0.1", b"10.0.0.1, 127.0.0.1"])
def test_a_client_cannot_say_that_it_is_another(written: bytes) -> None:
    assert found(written + b", 192.0.2.7") == "192.0.2.7"
    assert found(written, b"192.0.2.7") == "192.0.2.7"


def test_a_client_that_is_no_proxy_is_where_it_is() -> None:
    assert found(b"203.0.113.1", at="192.0.2.7") == "192.0.2.7"
    assert found(b"203.0.113.1", at="::ffff:192.0.2.7") == "192.0.2.7"
    assert found(b"203.0.113.1", at="::ffff:127.0.0.1") == "203.0.113.1"


@pytest.mark.parametrize("last", [b"unknown", b"_hidden", b"", b"192.0.2.7, ", b"fe80::1%eth0", b"1.2.3.4.5", b"\xff"])
def test_an_entry_without_an_address_leaves_the_proxy_that_has_written_it(last: bytes) -> None:
    assert found(b"203.0.113.1, " + last) == "127.0.0.1"


@pytest.mark.parametrize(
    ("value", "client"),
    [
        (b"for=192.0.2.7;proto=https;by=10.0.0.1", "192.0.2.7"),
        (b'For="[2001:db8::7]:4711"', "2001:db8::7"),
        (b'proto=https; for = "192.0.2.7:1"', "192.0.2.7"),
        (b"for=203.0.113.1, for=192.0.2.7, for=10.0.0.1", "192.0.2.7"),
        (b"for=203.0.113.1, for=_x", "127.0.0.1"),
        (b"proto=https", "127.0.0.1"),
        (b'for="192.0.2.7', "127.0.0.1"),
        (b"notfor=192.0.2.7", "127.0.0.1"),
    ],
)
def test_forwarded_has_pairs(value: bytes, client: str) -> None:
    assert found(value, name=FORWARDED) == client


@given(st.lists(st.binary(max_size=60), max_size=4), st.sampled_from([LIST, FORWARDED]))
def test_whatever_is_written_there_is_an_address_in_the_end(values: list[bytes], name: str) -> None:
    assert address_of(found(*values, name=name))
