"""What the tools for many clients make of packets and of what they found, without any."""

from __future__ import annotations

import msgspec
import pytest

from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.wire.block import lengths
from tests.reference.packets import echo_request, is_reply, reply_to
from tools.bench.hub_report import Compared, Garbage, HubResult, Idle, Return, table
from tools.bench.throughput_report import Machine
from tools.load.flood import HELLO, KINDS, Flooded
from tools.load.icmp_echo import answer, block_of

PAIRS = [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")]


@pytest.mark.parametrize(("source", "destination"), PAIRS, ids=["IPv4", "IPv6"])
def test_an_echo_request_gets_the_reply_that_the_documents_say(source: str, destination: str) -> None:
    for number in (0, 1, 0x01FF, 0xFF00, 0xFFFF):
        request = echo_request(source, destination, number, bytes([number & 0xFF]) * 9)
        reply = answer(request)
        assert is_reply(reply, request)
        expected = reply_to(request)
        if ":" in source:
            assert reply == expected
        else:
            assert reply[20:] == expected[20:] and reply[10:12] == request[10:12]  # the header's sum is the same


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        bytes(100),
        reply_to(echo_request(*PAIRS[0], 1)),
        reply_to(echo_request(*PAIRS[1], 1)),
        echo_request(*PAIRS[0], 1)[:27],
    ],
    ids=["nothing", "a byte", "zeros", "a reply", "a reply in IPv6", "cut off"],
)
def test_anything_else_gets_none(packet: bytes) -> None:
    assert answer(packet) is None


def test_a_block_has_its_packets_in_order() -> None:
    packets = [bytes([number]) * (20 + number) for number in range(5)]
    frame = memoryview(block_of(packets))
    at, sizes = lengths(frame, 0, len(frame))
    found = []
    for size in sizes:
        found.append(bytes(frame[at + VNET_HEADER_BYTES : at + size]))
        at += size
    assert found == packets


def test_the_kinds_of_garbage_are_what_they_are_called() -> None:
    assert KINDS["http"]().startswith(b"GET / HTTP/1.1\r\n") and KINDS["ssh"]().startswith(b"SSH-2.0-")
    assert HELLO[:3] == b"\x16\x03\x01" and int.from_bytes(HELLO[3:5], "big") == len(HELLO) - 5
    assert HELLO.startswith(KINDS["half"]()) and KINDS["silence"]() == b"" and KINDS["leaves"]() is None
    assert len({KINDS["garbage"]() for _ in range(10)}) > 1


def result() -> HubResult:
    compared = Compared(plain=4.0, beside=3.8, ratio=0.95, plain_rounds=[4.0], beside_rounds=[3.8])
    return HubResult(
        machine=Machine(cores=2, cpu="Some CPU", kernel="6.18", python="3.11.7"),
        seconds=5,
        rounds=3,
        settings=[],
        idle=Idle(
            clients=200,
            connections=8,
            invited_seconds=4.0,
            first_seconds=6.0,
            complete_seconds=8.0,
            greeting_p50_ms=300.0,
            greeting_p99_ms=900.0,
            failed={"closed": 7},
            pingable=199,
            bytes_empty={"tcp-0": 14_000_000},
            bytes_full={"tcp-0": 46_000_000},
            bytes_per_client=160_000.0,
            cpu_percent_empty={"tcp-0": 0.5},
            cpu_percent_full={"tcp-0": 9.5},
        ),
        returns=[
            Return(how="SIGKILL", clients=100, down_seconds=1.5, back_seconds=2.5, complete_seconds=5.0, attempts=900)
        ],
        garbage=Garbage(
            compared,
            compared,
            Flooded(20.0, 20_000, 19_000, 1000, {"closed": 19_000}, 1000.0),
            {"closed_hello_invalid": 12},
        ),
        client_to_client=compared,
        deaf=compared,
        left_behind=["/dev/shm/x"],
    )


def test_the_table_says_what_each_thing_costs() -> None:
    text = table(result())
    lines = [line.split() for line in text.splitlines()]
    assert "200 clients with 8 connections each, 199 pingable; invited in 4.0 s" in text
    assert "memory of a client in all processes of the server: 160 kB" in text
    assert ["tcp-0", "14000", "46000", "160.0", "0.5", "9.5"] in lines
    assert ["after", "SIGKILL", "100", "1.5", "2.5", "5.0", "900"] in lines
    assert ["client", "to", "client,", "beside", "the", "bare", "link", "4.00", "3.80", "0.95"] in lines
    assert "1000 connections a second; the server counted closed_hello_invalid 12" in text
    assert lines[-1] == ["LEFT", "BEHIND:", "/dev/shm/x"]


def test_what_was_not_measured_is_not_in_the_table() -> None:
    few = HubResult(machine=result().machine, seconds=1, rounds=1, settings=["lanes=2"])
    assert table(few).splitlines()[1:] == ["settings: lanes=2"]


def test_the_json_comes_back_the_same() -> None:
    text = msgspec.json.encode(result())
    assert msgspec.json.decode(text)["schema_version"] == 1
    assert msgspec.json.decode(text, type=HubResult) == result()
