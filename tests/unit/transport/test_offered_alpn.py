"""The names in a ClientHello: those of real ones, and an answer to any bytes."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.transport.offered_alpn import offered


def client_hello(*names: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if names:
        context.set_alpn_protocols(names)
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="example.org").do_handshake()
    return out.read()


HELLO = client_hello("h2", "http/1.1")


@pytest.mark.parametrize("names", [(), ("http/1.1",), ("h2", "http/1.1"), ("x" * 255, "y")])
def test_the_names_are_those_that_the_client_offers(names: tuple[str, ...]) -> None:
    assert offered(client_hello(*names)) == list(names)


def test_a_hello_that_is_not_whole_is_none() -> None:
    assert all(offered(HELLO[:size]) is None for size in range(len(HELLO)))


@given(st.integers(0, len(HELLO) - 1), st.integers(0, 255))
def test_a_changed_byte_gives_names_or_none(at: int, value: int) -> None:
    offered(HELLO[:at] + bytes([value]) + HELLO[at + 1 :])


@given(st.binary(max_size=400))
def test_any_bytes_give_names_or_none(data: bytes) -> None:
    offered(data)
