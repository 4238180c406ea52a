"""Random sizes and times: within their limits, and of many values."""

from __future__ import annotations

from ipaddress import ip_address

from pipeline.wire import framing, messages, noise
from pipeline.wire.messages import Challenge, Hello, Proof


def test_padding_has_any_length_up_to_the_most() -> None:
    sizes = {len(noise.padding(10)) for _ in range(500)}
    assert sizes == set(range(11))


def test_the_longest_hello_of_a_connection_has_room_for_padding() -> None:
    longest = Hello(
        *(0, 0, 0, 0, 0, 0, 0, 0, 0, messages.AUTH_KEY),
        requested_addresses=(ip_address("fd00::1"),) * messages.ADDRESSES_MAX,
        program="x" * messages.PROGRAM_BYTES_MAX,
        key_share=bytes(33),
        lane=31,
        knock=bytes(32),
        padding=bytes(noise.IN_HELLO),
    )
    assert len(longest.frame()) - framing.LENGTH.size <= framing.HELLO_LENGTH_LIMIT


def test_an_end_that_does_not_know_padding_reads_what_it_read_without_it() -> None:
    for plain in (Challenge(b"n" * 32), Proof(b"m" * 32)):
        assert messages.decode(plain._replace(padding=bytes(255)).frame()) == plain


def test_a_keepalive_comes_sooner_than_it_has_to_and_never_later() -> None:
    times = [noise.keepalive_ns(1000) for _ in range(500)]
    assert 500 <= min(times) < 550 and 950 < max(times) <= 1000
