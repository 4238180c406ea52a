"""The datagrams of a client: what a WELCOME says of them, and what its dgram workers read then."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from pipeline.config import parse
from pipeline.peers.peer_datagrams import OWN_RATE, TAKES_NO_DATAGRAMS
from pipeline.runtime.client_hello import client_hello
from pipeline.sealing.key_schedule import AES_256_GCM
from pipeline.sealing.session import KeyShare, answer_key_share, answer_offer
from pipeline.shm import peer_table, segment
from pipeline.shm.datagram_secrets import DatagramSecretTable, DatagramServer
from pipeline.shm.key_table import KeyTable
from pipeline.supervisor.roles.client_role import ClientRole
from pipeline.supervisor.run.worker_settings import worker_settings
from pipeline.wire.messages import Welcome
from tests.unit.supervisor.roles.test_client_role import Device

SESSION = 7


class Client:
    """A client without a key, in a session that its server has begun."""

    def __init__(self, **settings: Any) -> None:
        self.keys, keys_fd = KeyTable.create(1)
        self.secrets, secrets_fd = DatagramSecretTable.create(1)
        for fd in (keys_fd, secrets_fd):
            os.close(fd)
        self.table = peer_table.create(f"/tunnel@roletest@{secrets.token_hex(4)}@peer-table", 1, 1, 4)
        given = {"mode": "client", "remote_addr": "vpn.example.org:9000", "tls_skip_verify": True, "accounting": False}
        config = parse(given | {"carrier": "auto"} | settings)
        self.role = ClientRole(config)
        self.role.use_keys(self.keys, self.secrets)
        self.role.start(self.table, cast(Any, Device()))
        made = worker_settings(config, self.role.credentials, Device(), SESSION, None)
        self.settings = made._replace(key_share=self.role.key_share, carrier=config.carrier)
        self.role.expect(self.settings)
        offer = KeyShare.of_client(bytes.fromhex(self.settings.key_share))
        assert offer is not None
        self.session = answer_offer(offer, AES_256_GCM, b"", self.settings.client_id, SESSION)

    def welcome(self, port: int | None, server: str = "192.0.2.1", fake_tcp_port: int = 0) -> tuple[object, ...] | None:
        """A WELCOME with this port comes from there: where datagrams go then."""
        hello = client_hello(self.settings, b"", 0, bytes(32)).frame()
        key_share = answer_key_share(self.session, b"").pack()
        frame = Welcome(2, 0, 1400, 0, key_share=key_share, datagram_port=port, fake_tcp_port=fake_tcp_port).frame()
        report = {"serial": 1, "hello": hello.hex(), "challenge": "", "hash": "", "welcome": frame.hex()}
        answer: Any = self.role.answer_request(cast(Any, report | {"server": server}))
        assert answer["distrust"] == "" and answer["seal"]
        found = self.secrets.read(answer["seal"]["peer_handle"])
        return (found.host, found.port, found.scope, found.fake_tcp_port) if found else None

    def close(self) -> None:
        segment.unlink(self.table.memory.name)
        self.table.close()
        self.keys.close()
        self.secrets.close()


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.close()


def test_datagrams_go_to_the_port_that_the_server_tells_or_to_the_one_that_was_dialed(client: Client) -> None:
    assert client.welcome(443) == DatagramServer.at("192.0.2.1", 443)
    assert client.welcome(0) == DatagramServer.at("192.0.2.1", 9000)


@pytest.mark.parametrize(
    ("carrier", "both", "takes_fake_tcp"),
    [("auto", (443, 444), True), ("faketcp", (0, 444), True), ("udp", (443, 0), False)],
)
def test_a_client_takes_of_what_the_server_offers_the_kinds_that_it_has_itself(
    carrier: str, both: tuple[int, int], takes_fake_tcp: bool
) -> None:
    made = Client(carrier=carrier)
    try:
        assert made.welcome(443, fake_tcp_port=444) == DatagramServer.at("192.0.2.1", both[0], 0, both[1])
        found = made.welcome(None, fake_tcp_port=444)
        assert found == (DatagramServer.at("192.0.2.1", 0, 0, 444) if takes_fake_tcp else None)
    finally:
        made.close()


def test_a_later_connection_says_where_the_server_is_now(client: Client) -> None:
    assert client.welcome(0) == DatagramServer.at("192.0.2.1", 9000)
    assert client.welcome(0, "2001:db8::1") == DatagramServer.at("2001:db8::1", 9000)
    assert client.welcome(None) is None


def test_a_link_local_server_is_behind_its_interface(client: Client) -> None:
    lo = socket.if_nametoindex("lo")
    assert (
        client.welcome(0, "fe80::1%lo") == client.welcome(0, f"fe80::1%{lo}") == DatagramServer.at("fe80::1", 9000, lo)
    )
    assert client.welcome(0, "fe80::1%nowhere0") == DatagramServer.at("fe80::1", 9000, 0)


@pytest.mark.parametrize("settings", [{"carrier": "tcp"}, {"send_rate_mbit": 5}])
def test_a_client_that_takes_no_datagrams_has_none_whatever_the_server_says(settings: dict[str, Any]) -> None:
    made = Client(**settings)
    try:
        assert made.welcome(443) is None
    finally:
        made.close()


def test_observers_learn_why_a_client_has_no_datagrams(client: Client) -> None:
    client.welcome(None)
    (row,) = client.role.peer_rows()
    assert (row.carrier, row.no_datagrams) == ("auto", TAKES_NO_DATAGRAMS)
    client.welcome(443)
    (row,) = client.role.peer_rows()
    assert (row.carrier, row.no_datagrams) == ("auto", "")


def test_a_client_with_a_rate_says_that_this_is_why() -> None:
    made = Client(send_rate_mbit=5)
    try:
        made.welcome(443)
        (row,) = made.role.peer_rows()
        assert row.no_datagrams == OWN_RATE
    finally:
        made.close()
