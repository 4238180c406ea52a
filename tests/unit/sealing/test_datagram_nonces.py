"""No nonce of a control datagram repeats under a key, and none is opened twice, whatever is killed at whatever instant.

A kill comes at each instruction of the code that counts, seals, opens and marks. What a process has stored stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sealing import datagram_memory, datagram_seal
from pipeline.sealing.datagram_memory import DatagramMemory
from pipeline.sealing.datagram_seal import (
    LANE_BITS,
    NUMBER_BITS,
    NUMBERS_MAX,
    STRETCH_BITS,
    WINDOW,
    ControlOpener,
    ControlSealer,
    ControlWindows,
)
from pipeline.sealing.key_schedule import AES_256_GCM, DatagramSecret
from tests.harness.kill_instant import each_kill, killed_at
from tests.harness.sealed_lane import handle

SECRET = DatagramSecret(b"s" * 32)
LANE = 3
INSTRUCTIONS_MOST = 200  # of one seal: there are fewer


class Recorder:
    """An AEAD that seals nothing, and knows every pair of key and nonce that it was ever given."""

    def __init__(self) -> None:
        self.used: set[tuple[bytes, bytes]] = set()

    def aead(self, suite: int, key: bytes) -> _Recording:
        return _Recording(self, key)


class _Recording:
    def __init__(self, recorder: Recorder, key: bytes) -> None:
        self._recorder, self._key = recorder, key

    def encrypt_into(self, nonce: bytearray, data: Any, associated: None, into: memoryview) -> int:
        pair = self._key, bytes(nonce)
        assert pair not in self._recorder.used, "this nonce was used before"
        self._recorder.used.add(pair)
        return len(into)


@contextmanager
def recording() -> Iterator[Recorder]:
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder()
        patch.setattr(datagram_seal, "aead", recorder.aead)
        yield recorder


class Sender:
    """The dgram workers of one end, in its lanes: each that dies has a successor with a higher number."""

    def __init__(self, secret: DatagramSecret, numbers: Iterator[int]) -> None:
        self._secret, self._numbers = secret, numbers
        self._sealers: dict[int, ControlSealer] = {}
        self._room = memoryview(bytearray(100))

    def of(self, lane: int) -> ControlSealer:
        if lane not in self._sealers:
            self._sealers[lane] = ControlSealer(AES_256_GCM, self._secret, next(self._numbers), lane)
        return self._sealers[lane]

    def seal(self, lane: int, die_at: int | None = None) -> None:
        sealer = self.of(lane)
        if die_at is None:
            sealer.seal(b"body", self._room)
        elif killed_at(die_at, lambda: sealer.seal(b"body", self._room), datagram_seal):
            self.bury(lane)

    def bury(self, lane: int) -> None:
        """Its process has died."""
        del self._sealers[lane]

    def jump(self, lane: int, number: int) -> None:
        """So many datagrams later."""
        sealer = self.of(lane)
        sealer._number = max(sealer._number, number)


NUMBERS = (1 << STRETCH_BITS) - 1, 5 << STRETCH_BITS, NUMBERS_MAX - 1
STEPS = st.one_of(
    st.tuples(st.just("seal"), st.integers(0, 2), st.none() | st.integers(0, INSTRUCTIONS_MOST)),
    st.tuples(st.just("jump"), st.integers(0, 2), st.sampled_from(NUMBERS)),
    st.tuples(st.just("session")),
)


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=30))
def test_no_nonce_repeats_under_a_key_whatever_dies_and_when(steps: list[tuple[Any, ...]]) -> None:
    """Sessions have secrets of their own, and numbers of processes go on over all of them."""
    numbers = count(1)
    secrets = (DatagramSecret(bytes([number]) * 32) for number in range(1, 256))
    with recording():
        sender = Sender(next(secrets), numbers)
        for step, *given_ in steps:
            match step:
                case "seal":
                    sender.seal(*given_)
                case "jump":
                    sender.jump(*given_)
                case "session":
                    sender = Sender(next(secrets), numbers)


def test_a_kill_at_each_instruction_of_a_seal_makes_no_nonce_repeat_in_a_successor() -> None:
    with recording() as recorder:
        numbers = count(1)

        def begin() -> Sender:
            sender = Sender(SECRET, numbers)
            sender.seal(LANE)
            return sender

        kills = 0
        for sender, was_killed in each_kill(begin, lambda sender: sender.seal(LANE), datagram_seal):
            if was_killed:
                sender.bury(LANE)
            for _ in range(3):
                sender.seal(LANE)
            kills += was_killed
        assert kills > 20 and len(recorder.used) > 4 * kills


def test_a_seal_that_ends_in_the_middle_and_goes_on_later_makes_no_nonce_repeat() -> None:
    """As by an error of any kind that somebody catches: the count has gone on before."""
    with recording() as recorder:
        sender = Sender(SECRET, count(1))
        sender.seal(LANE)  # so that each of the others takes as many instructions
        kills = sum(was_killed for _, was_killed in each_kill(lambda: sender, lambda it: it.seal(LANE), datagram_seal))
        assert len(recorder.used) > kills // 4 > 5
        sender.seal(LANE)


# -- what is opened


def opens(memory: memoryview, datagram: bytes) -> bool:
    """Whether a new process with these windows opens it."""
    opener = ControlOpener(AES_256_GCM, SECRET, ControlWindows(memory))
    return opener.open(memoryview(datagram), memoryview(bytearray(100))) >= 0


def datagrams(process: int, number: int) -> list[bytes]:
    """The first of a process, all of them."""
    sealer, room = ControlSealer(AES_256_GCM, SECRET, process, LANE), memoryview(bytearray(100))
    return [bytes(room[: sealer.seal(b"body", room)]) for _ in range(number)]


@pytest.mark.parametrize("jump", [1, 5, 20, WINDOW, 3 * WINDOW])
def test_a_kill_at_each_instruction_of_a_mark_opens_nothing_again(jump: int) -> None:
    """A datagram whose mark was under way may open once more: nothing had come of it."""
    every = datagrams(7, 4 + jump)
    first, late = [every[0], every[1], every[3]], every[3 + jump]

    def begin() -> memoryview:
        there = memoryview(bytearray(ControlWindows.BYTES))
        assert all(opens(there, each) for each in first)
        return there

    again = 0
    for there, was_killed in each_kill(begin, lambda there: opens(there, late), datagram_seal):
        assert not any(opens(there, each) for each in first)
        if opens(there, late):
            assert was_killed
            again += 1
        assert not opens(there, late)
    assert again > 5


def test_a_kill_at_each_instruction_where_a_process_follows_another_opens_nothing_again() -> None:
    old, new = datagrams(7, 3), datagrams(8, 2)

    def begin() -> memoryview:
        there = memoryview(bytearray(ControlWindows.BYTES))
        assert all(opens(there, each) for each in old)
        return there

    for there, was_killed in each_kill(begin, lambda there: opens(there, new[1]), datagram_seal):
        assert not any(opens(there, each) for each in old)
        opens(there, new[1])
        assert not any(opens(there, each) for each in (*old, new[1]))
        assert was_killed or opens(there, new[0]), "else bits of the process before may stand for it"


def test_a_kill_at_each_instruction_of_the_beginning_of_a_session_leaves_it_a_memory_of_its_own() -> None:
    """The session before had higher numbers, and addresses of another peer."""
    low = 1 << LANE_BITS + NUMBER_BITS
    with ExitStack() as stack:

        def begin() -> int:
            fd = os.memfd_create("datagram memory test")
            stack.callback(os.close, fd)
            os.ftruncate(fd, DatagramMemory.bytes_of(2))
            before = DatagramMemory(fd, 2)
            before.begin(handle(5, 1))
            before.windows_of(1).mark(9 * low)
            before.addresses_of(1)[:] = b"x" * len(before.addresses_of(1))
            return fd

        for fd, _ in each_kill(begin, lambda fd: DatagramMemory(fd, 2).begin(handle(6, 1)), datagram_memory):
            successor = DatagramMemory(fd, 2)
            successor.begin(handle(6, 1))
            assert successor.windows_of(1).may_open(low) and not any(successor.addresses_of(1))
            successor.windows_of(1).mark(low)
            assert DatagramMemory(fd, 2).begin(handle(6, 1))
            assert not DatagramMemory(fd, 2).windows_of(1).may_open(low)


def test_a_call_dies_where_it_is_told_to_and_nowhere_else() -> None:
    window = ControlWindows(memoryview(bytearray(ControlWindows.BYTES)))
    assert killed_at(0, lambda: window.mark(5), datagram_seal)
    assert window.may_open(5)
    assert not killed_at(10_000, lambda: window.mark(5), datagram_seal)
    assert not window.may_open(5)
