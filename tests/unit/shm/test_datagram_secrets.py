"""The secrets of datagrams: a record for each session that may use them, and where its server is."""

from __future__ import annotations

import os
import socket
from contextlib import closing

import pytest

from pipeline.shm.datagram_secrets import DatagramSecrets, DatagramSecretTable, DatagramServer
from tests.harness.sealed_lane import handle

SEND, RECEIVE = b"s" * 32, b"r" * 32


def test_a_reader_has_what_was_written_and_nothing_of_a_session_that_has_ended() -> None:
    table, fd = DatagramSecretTable.create(3)
    with closing(table), closing(DatagramSecretTable.attach(fd, 3)) as reader:
        os.close(fd)
        record = DatagramSecrets(handle(7, 2), 1, b"h" * 16, 65535, SEND, RECEIVE, 0xFFFFFFFF, 65534)
        table.write(record)
        assert reader.read(handle(7, 2)) == reader.read_index(2) == record
        assert reader.read(handle(8, 2)) is reader.read_index(1) is None
        table.erase(handle(7, 2))
        assert reader.read_index(2) is None


@pytest.mark.parametrize(
    ("address", "mapped"),
    [("192.0.2.1", "::ffff:192.0.2.1"), ("2001:db8::1", "2001:db8::1"), ("::ffff:192.0.2.1", "::ffff:192.0.2.1")],
)
def test_a_host_is_an_address_for_a_socket_of_both_families(address: str, mapped: str) -> None:
    assert DatagramServer.at(address, 443) == (socket.inet_pton(socket.AF_INET6, mapped), 443, 0, 0)


def test_a_link_local_host_has_its_interface_and_any_other_none() -> None:
    assert DatagramServer.at("fe80::1", 443, 3, 444) == (socket.inet_pton(socket.AF_INET6, "fe80::1"), 443, 3, 444)
    assert DatagramServer.at("192.0.2.1", 0, 3, 444)[1:] == (0, 0, 444)
    assert DatagramServer() == (bytes(16), 0, 0, 0)
