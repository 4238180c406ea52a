"""Questions to a DNS server about addresses, and what is read from its answers."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.wire import dns

NUMBER = 7
QUESTION = dns.question(NUMBER, "vpn.example.org", 4)
POINTER = b"\xc0\x0c"  # to the name of the question
FOUR, SIX = ip_address("198.18.0.1"), ip_address("2001:db8::1")


def record(data: bytes, kind: int = 1, klass: int = 1, size: int | None = None, name: bytes = POINTER) -> bytes:
    return name + struct.pack(">HHIH", kind, klass, 60, len(data) if size is None else size) + data


def answer(*records: bytes, number: int = NUMBER, flags: int = 0x8180) -> bytes:
    return struct.pack(">HHHHHH", number, flags, 1, len(records), 0, 0) + QUESTION[12:] + b"".join(records)


def test_a_question_has_the_name_in_labels_and_asks_for_recursion() -> None:
    asked = dns.question(NUMBER, "vpn.example.org", 4)
    assert asked == b"\x00\x07\x01\x00\x00\x01" + bytes(6) + b"\x03vpn\x07example\x03org\x00\x00\x01\x00\x01"
    assert dns.question(NUMBER, "vpn.example.org.", 6)[-4:] == b"\x00\x1c\x00\x01"


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64, ".".join(["x" * 60] * 5)])
def test_what_is_no_name_is_not_asked_for(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        dns.question(NUMBER, name, 4)


def test_the_addresses_of_the_family_are_read_behind_aliases_too() -> None:
    alias = record(b"\x01a\xc0\x10", kind=5)
    told = answer(alias, record(FOUR.packed, name=b"\x01a\x00"), record(SIX.packed, kind=28))
    assert dns.addresses_in(told, NUMBER, 4) == [FOUR]
    assert dns.addresses_in(told, NUMBER, 6) == [SIX]


@pytest.mark.parametrize(
    "told",
    [
        b"",
        answer(record(FOUR.packed), number=8),
        answer(record(FOUR.packed), flags=0x0180),
        answer(record(FOUR.packed), flags=0x8183),
        answer(record(b"\x01\x02\x03")),
        answer(record(FOUR.packed, size=5)),
        answer(record(FOUR.packed, klass=3)),
        answer(record(FOUR.packed))[:-1],
    ],
    ids=["nothing", "another number", "a question", "an error", "too short", "too long", "another class", "cut off"],
)
def test_anything_else_has_no_address(told: bytes) -> None:
    assert dns.addresses_in(told, NUMBER, 4) == []


@given(st.binary(max_size=300), st.sampled_from([4, 6]))
def test_any_bytes_give_a_list(told: bytes, version: int) -> None:
    dns.addresses_in(told, NUMBER, version)
    dns.addresses_in(answer() + told, NUMBER, version)
