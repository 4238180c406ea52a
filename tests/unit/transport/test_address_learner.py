"""The address learner: which frame of a stream has a source that may be the client's address."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.transport.address_learner import AddressLearner
from pipeline.wire import framing
from tests.reference.packets import echo_request

SUBNETS = ("10.0.0.1/24", "fd00::1/64")
OTHER = {4: "10.0.0.1", 6: "fd00::1"}


def packet(source: str) -> bytes:
    return echo_request(source, OTHER[ip_address(source).version], 1)


def data(source: str) -> bytes:
    return framing.frame(framing.DATA, packet(source))


def find(learner: AddressLearner, stream: bytes) -> int:
    view = memoryview(bytearray(100) + stream + b"\xff" * 20)
    return learner.find_claim(view, 100, 100 + len(stream)) - 100


@pytest.mark.parametrize("source", ["10.0.0.2", "10.0.0.254", "fd00::2", "fd00::ffff:ffff:ffff:ffff"])
def test_the_address_of_a_host_in_a_subnet_is_a_claim(source: str) -> None:
    learner = AddressLearner(SUBNETS)
    before = framing.KEEPALIVE_FRAME + bytes(4) + data("192.0.2.1")
    assert find(learner, before + data(source) + data("10.0.0.3")) == len(before)
    assert learner.claim == ip_address(source)


def test_an_empty_frame_at_the_very_end_of_a_slot_is_passed_over() -> None:
    assert AddressLearner(SUBNETS).find_claim(memoryview(bytes(4)), 0, 4) == 4


@pytest.mark.parametrize(
    "source",
    [
        "0.0.0.0",
        "10.0.0.0",
        "10.0.0.1",
        "10.0.0.255",
        "10.0.1.1",
        "127.0.0.1",
        "169.254.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fd00::",
        "fd00::1",
        "fd00:0:0:1::2",
        "fe80::2",
        "ff02::1",
        "::ffff:10.0.0.2",
    ],
)
def test_an_address_that_is_no_clients_is_no_claim(source: str) -> None:
    learner = AddressLearner(SUBNETS)
    stream = data(source)
    assert find(learner, stream) == len(stream)
    assert learner.claim is None


@pytest.mark.parametrize(
    "stream",
    [
        framing.frame(framing.KEEPALIVE, packet("10.0.0.2")),
        framing.frame(0x03, packet("10.0.0.2")),
        framing.frame(framing.DATA, packet("10.0.0.2")[:-1]),
        framing.frame(framing.DATA, packet("10.0.0.2") + b"?"),
        framing.frame(framing.DATA, b"\x45"),
        framing.frame(framing.DATA, b"\x65" + packet("10.0.0.2")[1:]),
        framing.frame(framing.DATA),
        bytes(4),
        b"",
    ],
)
def test_a_frame_without_a_sound_packet_is_no_claim(stream: bytes) -> None:
    assert find(AddressLearner(SUBNETS), stream) == len(stream)


def test_each_subnet_has_one_address() -> None:
    learner = AddressLearner(SUBNETS)
    find(learner, data("10.0.0.2"))
    learner.settle()
    assert learner.claim is None and not learner.is_done
    assert find(learner, data("10.0.0.3")) == len(data("10.0.0.3"))
    assert find(learner, data("10.0.0.3") + data("fd00::3")) == len(data("10.0.0.3"))
    learner.settle()
    assert learner.is_done


@given(st.lists(st.binary(max_size=80).map(lambda body: framing.LENGTH.pack(len(body)) + body)))
def test_any_bytes_in_whole_frames_are_an_answer(frames: list[bytes]) -> None:
    learner = AddressLearner(SUBNETS)
    stream = b"".join(frames)
    starts = {sum(map(len, frames[:count])) for count in range(len(frames) + 1)}
    at = find(learner, stream)
    assert at in starts and (learner.claim is None) == (at == len(stream))
