"""Warnings about settings of the other end: of FEC and of padding once, of an MTU with each connection."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import cast

import pytest

from pipeline.sealing.records import RecordWriter
from pipeline.transport.connection import ESTABLISHED, Connection
from tests.harness.settings import WORKER_SETTINGS
from workers.tcp.peer_settings import PeerSettingsCheck

OURS = WORKER_SETTINGS._replace(fec="auto", mtu=1400)


@pytest.fixture
def connection() -> Iterator[Connection]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        made = Connection(ours, ("192.0.2.1", 9000), ESTABLISHED, 7, 0)
        made.accepts_shards = True
        yield made


def test_settings_that_fit_give_no_warning(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    PeerSettingsCheck(OURS).warn(connection, connections=2, mtu=1400)
    assert caplog.messages == []


def test_a_single_connection_with_fec_is_warned_of_once(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    check = PeerSettingsCheck(OURS)
    for _ in range(3):
        check.warn(connection, connections=1, mtu=1400)
    (message,) = caplog.messages
    assert message.startswith("fec is auto, but there is one connection")


def test_an_end_that_accepts_no_shards_is_warned_of_once(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    connection.accepts_shards = False
    check = PeerSettingsCheck(OURS)
    for _ in range(3):
        check.warn(connection, connections=1, mtu=1400)
    (message,) = caplog.messages
    assert message.startswith("fec: the other end has fec off")


def test_without_fec_nothing_is_said_of_it(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    connection.accepts_shards = False
    PeerSettingsCheck(OURS._replace(fec="off")).warn(connection, connections=1, mtu=1400)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("ours", "takes", "seals", "said"),
    [(True, False, True, 1), (True, True, True, 0), (True, False, False, 0), (False, False, True, 0)],
)
def test_an_end_that_takes_no_padding_is_warned_of_once_where_there_is_some(
    connection: Connection, caplog: pytest.LogCaptureFixture, ours: bool, takes: bool, seals: bool, said: int
) -> None:
    connection.takes_padding = takes
    connection.send.writer = cast("RecordWriter", object()) if seals else None
    check = PeerSettingsCheck(OURS._replace(padding=ours))
    for _ in range(3):
        check.warn(connection, connections=2, mtu=1400)
    assert (
        caplog.messages == ["padding: 192.0.2.1:9000 has a version that takes none, so nothing to it is padded"] * said
    )


def test_another_mtu_is_warned_of_with_each_connection(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    check = PeerSettingsCheck(OURS)
    for _ in range(2):
        check.warn(connection, connections=2, mtu=1300)
    assert (
        caplog.messages
        == ["connection 7 to 192.0.2.1:9000: its tunnel MTU is 1300, ours is 1400: set both to the same value"] * 2
    )
