"""The doctor asks each of several servers, and has one line for each."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import parse
from pipeline.contact import first_contact
from pipeline.contact.first_contact import FirstContactError
from pipeline.credentials import keys
from pipeline.doctor import servers as look
from pipeline.doctor.finding import Level
from pipeline.doctor.subject import Subject
from tests.harness.config_problems import CLIENT, SERVER

A, B = "fra.test:9000", "192.0.2.2:9000"
AWAY = FirstContactError("connection refused")


def test_a_server_that_knows_the_client_is_all_right() -> None:
    (finding,) = look.judge({A: None})
    assert finding.level is Level.OK and finding.text.startswith(f"server {A} answers") and "knows" in finding.text


@pytest.mark.parametrize(
    ("answer", "text", "cure"),
    [
        (FirstContactError(first_contact.UNKNOWN, is_open=True), "does not know this client", "Copy the peer's file"),
        (FirstContactError(first_contact.NOT_THE_MAKER, is_final=True), "not that of tls_fingerprint", "Take tls_fing"),
        (FirstContactError("the certificate has expired", is_final=True), "has expired", "settings of TLS"),
        (FirstContactError("this peer is disabled on the server", is_final=True), "is disabled", "its log"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_server_that_does_not_take_the_client_is_a_problem_though_another_one_does(
    answer: FirstContactError, text: str, cure: str
) -> None:
    found = look.judge({A: answer, B: None})
    assert [each.level for each in found] == [Level.PROBLEM, Level.OK]
    assert found[0].text.startswith(f"server {A}: ") and text in found[0].text and cure in found[0].cure


def test_a_server_that_is_away_is_a_note_where_another_one_takes_its_place() -> None:
    assert [each.level for each in look.judge({A: AWAY, B: None})] == [Level.NOTE, Level.OK]
    assert [each.level for each in look.judge({A: AWAY, B: AWAY})] == [Level.PROBLEM, Level.PROBLEM]


@pytest.fixture
def addresses() -> Iterator[list[str]]:
    """Of servers that refuse connections."""
    with socket.socket() as one, socket.socket() as other:
        for sock in (one, other):
            sock.bind(("127.0.0.1", 0))
        yield [f"127.0.0.1:{sock.getsockname()[1]}" for sock in (one, other)]


@pytest.fixture
def several(tmp_path: Path, addresses: list[str]) -> dict[str, object]:
    keys.write_secret(tmp_path / "key", keys.generate().encode())
    return CLIENT | {"key_file": str(tmp_path / "key"), "remote_addr": addresses}


def test_each_server_of_the_list_is_asked(several: dict[str, object], addresses: list[str]) -> None:
    found = look.servers(Subject("office", parse(several)))
    assert [each.text.split(": connection refused")[0] for each in found] == [f"server {each}" for each in addresses]


def test_of_srv_records_those_are_asked_that_a_running_instance_knows(
    several: dict[str, object], addresses: list[str]
) -> None:
    records = several | {"remote_addr": "srv:_tunnel._tcp.hub.test"}
    assert look.servers(Subject("office", parse(records))) == []
    snapshot = {"server": {"list": [{"server": addresses[1], "state": ""}]}}
    (finding,) = look.servers(Subject("office", parse(records), snapshot))
    assert finding.text.startswith(f"server {addresses[1]}: connection refused")


def test_nothing_is_asked_without_several_servers_or_a_key_or_around_a_full_tunnel(several: dict[str, object]) -> None:
    for config in (CLIENT, SERVER, several | {"key_file": ""}, several | {"remote_addr": "192.0.2.1:9000"}):
        assert look.servers(Subject("office", parse(config))) == []
    assert look.servers(Subject("office", parse(several), {"full_tunnel": {"on": True}})) == []
    assert look.servers(Subject()) == []
