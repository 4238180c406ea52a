"""The port of a server that does not run yet: the doctor tries TCP, and UDP where blocks travel in datagrams."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.config import Config, parse
from pipeline.doctor.finding import Finding, Level
from pipeline.doctor.port import port
from pipeline.doctor.subject import Subject
from pipeline.runtime.privileges import _set_capabilities


@pytest.fixture
def taken() -> Iterator[int]:
    """A UDP port that a program has; TCP is free there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        yield other.getsockname()[1]


def config(number: int, carrier: str) -> Config:
    return parse({"mode": "server", "local_addr": f"127.0.0.1:{number}", "carrier": carrier})


@pytest.mark.parametrize(
    ("carrier", "levels"),
    [("tcp", [Level.OK]), ("auto", [Level.OK, Level.NOTE, Level.OK]), ("udp", [Level.OK, Level.PROBLEM])],
)
def test_a_udp_port_that_a_program_has_is_told_where_datagrams_need_it(
    taken: int, carrier: str, levels: list[Level]
) -> None:
    found = port(Subject(config=config(taken, carrier)))
    assert [each.level for each in found] == levels
    if carrier != "tcp":
        assert found[1].text == f"no datagrams on 127.0.0.1:{taken}: Address already in use"


@pytest.mark.parametrize("carrier", ["udp", "auto"])
def test_a_port_that_is_free_for_both_is_said_to_be(carrier: str) -> None:
    found = port(Subject(config=config(0, carrier)))
    assert [each.text for each in found][:2] == ["127.0.0.1:0 is free", "127.0.0.1:0 is free for datagrams"]
    assert [each.text.endswith("is free for fake TCP") for each in found[2:]] == [True] * (carrier == "auto")


@pytest.mark.parametrize(("carrier", "level"), [("auto", Level.NOTE), ("faketcp", Level.PROBLEM)])
def test_a_port_of_fake_tcp_that_a_program_has_is_told(carrier: str, level: Level) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        settings = {"mode": "server", "local_addr": "127.0.0.1:0", "carrier": carrier, "fake_tcp_port": taken}
        found = port(Subject(config=parse(settings)))[-1]
    assert found.level is level and found.text == f"fake TCP: port {taken}: another program has it"
    assert "fake_tcp_port" in found.cure


def test_without_the_right_to_packet_sockets_the_doctor_says_how_to_have_it() -> None:
    def look() -> Finding:
        _set_capabilities(0, 0, inheritable=0)  # of this thread alone
        return port(Subject(config=config(0, "faketcp")))[-1]

    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(look).result()
    assert found.level is Level.PROBLEM and "CAP_NET_RAW" in found.text
    assert "install-service --fake-tcp NAME" in found.cure


def test_a_port_that_is_taken_for_tcp_is_told_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        (found,) = port(Subject(config=config(other.getsockname()[1], "udp")))
    assert found.level is Level.PROBLEM
