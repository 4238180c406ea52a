"""The seal of control datagrams: each opens once, nothing else opens, and no nonce is used twice."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sealing import datagram_seal
from pipeline.sealing.aead import aead
from pipeline.sealing.datagram_seal import (
    NUMBERS_MAX,
    OVERHEAD,
    STRETCH_BITS,
    WINDOW,
    ControlOpener,
    ControlSealer,
    ControlWindows,
)
from pipeline.sealing.key_schedule import AES_256_GCM, CHACHA20_POLY1305, DatagramSecret

SECRET = DatagramSecret(b"s" * 32)
SUITES = pytest.mark.parametrize("suite", [AES_256_GCM, CHACHA20_POLY1305])
LANE, PROCESS = 3, 7


def sealer(process: int = PROCESS, lane: int = LANE, suite: int = AES_256_GCM) -> ControlSealer:
    return ControlSealer(suite, SECRET, process, lane)


def windows() -> ControlWindows:
    return ControlWindows(memoryview(bytearray(ControlWindows.BYTES)))


def opener(suite: int = AES_256_GCM, secret: DatagramSecret = SECRET) -> ControlOpener:
    return ControlOpener(suite, secret, windows())


def sealed(end: ControlSealer, body: bytes = b"body") -> bytes:
    into = bytearray(2000)
    return bytes(into[: end.seal(body, memoryview(into))])


def opened(end: ControlOpener, datagram: bytes) -> bytes | None:
    into = bytearray(2000)
    size = end.open(memoryview(datagram), memoryview(into))
    return None if size < 0 else bytes(into[:size])


@SUITES
def test_a_datagram_is_what_the_document_says(suite: int) -> None:
    end = sealer(suite=suite)
    sealed(end)
    datagram = sealed(end, b"second")
    count = PROCESS << 40 | LANE << 35 | 1
    body = aead(suite, SECRET.control_key(count >> 28)).encrypt(bytes(4) + count.to_bytes(8, "big"), b"second", None)
    mask = Cipher(AES(SECRET.mask_key()), ECB()).encryptor().update(body[:16])[:8]
    masked = bytes(a ^ b for a, b in zip(count.to_bytes(8, "big"), mask, strict=True))
    assert datagram == SECRET.control_token().to_bytes(4, "big") + masked + body


@SUITES
@given(bodies=st.lists(st.binary(max_size=1400), max_size=5))
def test_each_body_opens_once(suite: int, bodies: list[bytes]) -> None:
    out, into = sealer(suite=suite), opener(suite)
    datagrams = [sealed(out, body) for body in bodies]
    assert [opened(into, each) for each in datagrams] == bodies
    assert [opened(into, each) for each in datagrams] == [None] * len(bodies)


@given(st.permutations(range(40)))
def test_the_order_of_arrival_does_not_matter_within_the_window(order: list[int]) -> None:
    out, into = sealer(), opener()
    datagrams = [sealed(out, bytes([number])) for number in range(40)]
    assert all(opened(into, datagrams[number]) == bytes([number]) for number in order)


@SUITES
def test_a_datagram_that_differs_in_one_bit_or_is_cut_or_is_longer_does_not_open(suite: int) -> None:
    into = opener(suite)
    good = sealed(sealer(suite=suite))
    for at, bit in itertools.product(range(len(good)), range(8)):
        assert opened(into, good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :]) is None
    assert all(opened(into, good[:size]) is None for size in range(len(good)))
    assert opened(into, good + b"\0") is None
    assert opened(into, good) == b"body"


def test_another_secret_or_a_body_too_long_for_the_room_does_not_open() -> None:
    good = sealed(sealer())
    assert opened(opener(secret=DatagramSecret(b"t" * 32)), good) is None
    assert opener().open(memoryview(good), memoryview(bytearray(len(good) - OVERHEAD - 1))) == -1


@given(st.binary(max_size=100))
def test_noise_behind_the_token_costs_a_minus_one_and_nothing_else(noise: bytes) -> None:
    into = opener()
    assert opened(into, SECRET.control_token().to_bytes(4, "big") + noise) is None
    assert opened(into, sealed(sealer())) == b"body"


def test_forged_counts_leave_no_key_behind() -> None:
    into = opener()
    for number in range(300):
        opened(into, SECRET.control_token().to_bytes(4, "big") + number.to_bytes(8, "big") * 5)
    assert not into._aeads


def test_the_count_tells_the_opener_which_of_two_datagrams_is_newer() -> None:
    out, into = sealer(), opener()
    first, second = sealed(out), sealed(out)
    opened(into, second)
    newer = into.count
    opened(into, first)
    assert into.count == newer - 1


def test_a_successor_uses_no_nonce_of_the_process_before_and_its_datagrams_open_at_once() -> None:
    before, after, into = sealer(7), sealer(8), opener()
    late = [sealed(before) for _ in range(3)]
    assert opened(into, late[0]) == b"body"
    assert opened(into, sealed(after)) == b"body"
    assert [opened(into, each) for each in late] == [None] * 3
    other_lane = sealer(7, LANE + 1)
    assert opened(into, sealed(other_lane)) == b"body"


@given(st.dictionaries(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.integers(1, 4), min_size=1))
def test_no_two_datagrams_of_any_processes_and_lanes_have_one_count(processes: dict[tuple[int, int], int]) -> None:
    counts = []
    for (process, lane), datagrams in processes.items():
        out, into = sealer(process, lane), opener()
        for _ in range(datagrams):
            assert opened(into, sealed(out)) is not None
            counts.append(into.count)
    assert len(set(counts)) == len(counts)


def test_a_stretch_has_a_key_of_its_own_and_a_process_that_has_used_all_numbers_seals_no_more() -> None:
    out, into = sealer(), opener()
    for number in (0, (1 << STRETCH_BITS) - 1, 1 << STRETCH_BITS, NUMBERS_MAX - 1):
        out._number = number
        assert opened(into, sealed(out)) == b"body"
    assert len(into._aeads) == 3
    assert sealed(out) == b""


def test_keys_of_stretches_that_are_over_are_given_up() -> None:
    into = opener()
    with patch.object(datagram_seal, "_KEYS_MOST", 4):
        for process in range(10):
            assert opened(into, sealed(sealer(process))) == b"body"
    assert len(into._aeads) == 4


@pytest.mark.parametrize(("process", "lane"), [(1 << 24, 0), (-1, 0), (0, 32), (0, -1)])
def test_there_is_no_process_or_lane_beyond_the_bits_of_the_count(process: int, lane: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        sealer(process, lane)


# -- the window


def count(number: int, process: int = PROCESS, lane: int = LANE) -> int:
    return (process << 5 | lane) << 35 | number


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=200))
def test_the_window_agrees_with_a_plain_set(numbers: list[int]) -> None:
    window, seen = windows(), set()
    for number in numbers:
        expected = number not in seen and number > max(seen, default=0) - WINDOW
        assert window.may_open(count(number)) == expected
        if expected:
            window.mark(count(number))
            seen.add(number)


def test_a_number_that_has_left_the_window_is_old() -> None:
    window = windows()
    window.mark(count(WINDOW))
    assert window.may_open(count(1))
    assert not window.may_open(count(0))


def test_the_windows_outlive_the_process_that_opens() -> None:
    memory = memoryview(bytearray(ControlWindows.BYTES))
    datagram = sealed(sealer())
    assert opened(ControlOpener(AES_256_GCM, SECRET, ControlWindows(memory)), datagram) == b"body"
    assert opened(ControlOpener(AES_256_GCM, SECRET, ControlWindows(memory)), datagram) is None


def test_a_later_process_begins_a_window_and_ends_that_of_its_lane_alone() -> None:
    window = windows()
    window.mark(count(5, 7))
    window.mark(count(5, 7, LANE + 1))
    window.mark(count(2, 8))
    assert window.may_open(count(1, 8)) and window.may_open(count(5, 8)) and not window.may_open(count(2, 8))
    assert not window.may_open(count(6, 7)) and not window.may_open(count(NUMBERS_MAX - 1, 7))
    assert window.may_open(count(6, 7, LANE + 1))


@given(st.lists(st.integers(0, 2 * WINDOW), min_size=1, max_size=20), st.integers(2, 400))
def test_a_kill_between_two_steps_of_a_mark_makes_nothing_old_new(numbers: list[int], jump: int) -> None:
    """The top has moved, and some of the bits that it passed are cleared."""
    memory = memoryview(bytearray(ControlWindows.BYTES))
    window, seen = ControlWindows(memory), set()
    for number in numbers:
        if window.may_open(count(number)):
            window.mark(count(number))
            seen.add(number)
    cut = bytearray(memory)
    window.mark(count(max(seen) + jump))
    record = LANE * ControlWindows._RECORD_BYTES
    cut[record : record + 8] = memory[record : record + 8]
    assert not any(ControlWindows(memoryview(cut)).may_open(count(number)) for number in seen)
