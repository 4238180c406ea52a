"""The port of a server that does not run yet: the doctor tries TCP, and UDP where blocks travel in datagrams."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pipeline.config import Config, parse
from pipeline.doctor.finding import Level
from pipeline.doctor.port import port
from pipeline.doctor.subject import Subject


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
    [("tcp", [Level.OK]), ("auto", [Level.OK, Level.NOTE]), ("udp", [Level.OK, Level.PROBLEM])],
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
    assert [each.text for each in found] == ["127.0.0.1:0 is free", "127.0.0.1:0 is free for datagrams"]


def test_a_port_that_is_taken_for_tcp_is_told_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        (found,) = port(Subject(config=config(other.getsockname()[1], "udp")))
    assert found.level is Level.PROBLEM
