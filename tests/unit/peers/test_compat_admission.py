"""A hub of the original program: indexes for connections, and addresses that are claimed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.config import parse
from pipeline.packet.route_table import NO_PEER, RouteTable
from pipeline.peers import compat_admission
from pipeline.peers.compat_admission import CompatAdmission
from pipeline.shm import peer_table, segment
from pipeline.shm.connection_status import ConnectionStatus
from pipeline.shm.layout import LINK_ESTABLISHED, LINK_RECEIVED_BYTES, PEER_INDEX_MASK, RECORD_WORDS
from pipeline.shm.peer_table import RouteReader
from tests.harness.factory import factory

SETTINGS = {"mode": "server", "compat": True, "insecure": True, "tunnel_addr": ["10.0.0.1/24", "fd00::1/64"]}


class CompatServer:
    """The admission, and its tcp workers' part of the peer table. `now`: the clock, in seconds."""

    def __init__(self, capacity: int = 3, lanes: int = 2) -> None:
        self.table = peer_table.create(f"/tunnel@compattest@{secrets.token_hex(4)}@peer-table", capacity, lanes, 8)
        self.told: list[dict] = []
        self.admission = CompatAdmission(parse(SETTINGS | {"max_clients": capacity}), self.table, self.told.append)

    def close(self) -> None:
        segment.unlink(self.table.memory.name)
        self.table.close()

    def admit(self) -> int:
        """The handle of a new peer; NO_PEER for a refusal."""
        answer: Any = self.admission.handle_request(
            {"serial": 7, "hello": "", "challenge": "", "proof": "", "certificate": "", "hash": ""}
        )
        assert answer["serial"] == 7 and answer["frame"] == ""
        return answer.get("peer_handle", NO_PEER)

    def connect(self) -> int:
        """A peer that is connected and has sent something."""
        peer_handle = self.admit()
        if peer_handle != NO_PEER:
            self.table.links[0][self._at(peer_handle) + LINK_RECEIVED_BYTES] += 1
            self.set_connected(peer_handle, True)
        return peer_handle

    def set_connected(self, peer_handle: int, is_connected: bool) -> None:
        self.table.links[0][self._at(peer_handle) + LINK_ESTABLISHED] = is_connected

    def claim(self, peer_handle: int, address: str) -> str:
        """Empty, or the refusal."""
        answer: Any = self.admission.handle_request({"serial": 8, "claim": address, "peer_handle": peer_handle})
        assert (answer["serial"], answer["claim"]) == (8, address)
        return answer["refusal"]

    def owner(self, address: str) -> int:
        """The peer handle that packets for the address have."""
        routes = RouteTable()
        RouteReader(self.table).read_into(routes)
        return routes.lookup(ip_address(address).packed)

    @staticmethod
    def _at(peer_handle: int) -> int:
        return (peer_handle & PEER_INDEX_MASK) * RECORD_WORDS


Make = Callable[..., CompatServer]


@pytest.fixture
def make() -> Iterator[Make]:
    with factory(CompatServer) as made:
        yield made


def test_each_connection_is_a_peer_of_its_own_up_to_max_clients(make: Make) -> None:
    server = make(capacity=3)
    handles = [server.connect() for _ in range(3)]
    assert sorted(handle & PEER_INDEX_MASK for handle in handles) == [0, 1, 2] and len(set(handles)) == 3
    assert [server.table.peer_handle(index) for index in range(3)] == handles
    assert server.connect() == NO_PEER
    server.set_connected(handles[1], False)
    again = server.connect()
    assert again & PEER_INDEX_MASK == 1 and again not in handles


def test_a_peer_without_an_address_gets_no_packet_and_may_send_from_none(make: Make) -> None:
    server = make()
    server.connect()
    assert server.owner("10.0.0.2") == NO_PEER


def test_a_claimed_address_is_the_peers_while_it_is_connected(make: Make) -> None:
    server = make()
    first, second = server.connect(), server.connect()
    assert server.claim(first, "10.0.0.2") == server.claim(first, "fd00::2") == ""
    assert server.claim(second, "10.0.0.2") == "10.0.0.2 belongs to the client at another address"
    assert server.claim(second, "10.0.0.3") == ""
    owners = {address: server.owner(address) for address in ("10.0.0.2", "fd00::2", "10.0.0.3", "10.0.0.4")}
    assert list(owners.values()) == [first, first, second, NO_PEER]


def test_the_address_of_a_peer_that_has_left_goes_to_the_next_that_claims_it(make: Make) -> None:
    server = make()
    first = server.connect()
    server.claim(first, "10.0.0.2")
    server.claim(first, "fd00::2")
    server.set_connected(first, False)
    second = server.connect()
    assert server.claim(second, "10.0.0.2") == ""
    assert server.owner("10.0.0.2") == second
    third = server.connect()  # all indexes were used: that of the first is next
    assert server.connect() & PEER_INDEX_MASK == first & PEER_INDEX_MASK
    assert server.owner("fd00::2") == NO_PEER
    assert third != NO_PEER


def test_peers_are_listed_by_address_while_they_are_connected(make: Make) -> None:
    server = make(capacity=4)
    first, second, _, away = (server.connect() for _ in range(4))
    for peer, address in ((first, "10.0.0.9"), (second, "10.0.0.2"), (away, "10.0.0.3")):
        server.claim(peer, address)
    server.set_connected(away, False)
    rows = server.admission.list_peers(time.monotonic_ns())
    assert [(row["name"], row["addresses"]) for row in rows] == [
        ("10.0.0.2", ["10.0.0.2"]),
        ("10.0.0.9", ["10.0.0.9"]),
        ("-", []),
    ]


def test_a_peer_that_comes_back_at_once_has_its_address_again(make: Make) -> None:
    server = make()
    for _ in range(20):
        peer = server.connect()
        assert server.claim(peer, "10.0.0.2") == ""
        server.set_connected(peer, False)


def test_a_peer_that_is_just_connecting_keeps_its_index(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make(capacity=1)
    assert server.admit() != NO_PEER
    assert server.admit() == NO_PEER
    monkeypatch.setattr(compat_admission, "CONNECTING_NS", 0)
    assert server.admit() != NO_PEER


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.0", "10.0.0.255", "192.0.2.1", "224.0.0.1", "fe80::1", "::"])
def test_what_is_no_clients_address_is_refused_whatever_a_worker_says(make: Make, address: str) -> None:
    server = make()
    assert "no address of a client" in server.claim(server.connect(), address)
    assert server.owner(address) == NO_PEER


def test_a_second_address_in_one_subnet_and_the_claim_of_an_ended_session_are_refused(make: Make) -> None:
    server = make(capacity=1)
    peer = server.connect()
    assert server.claim(peer, "10.0.0.2") == ""
    assert "a second address" in server.claim(peer, "10.0.0.3")
    server.set_connected(peer, False)
    server.connect()
    assert server.claim(peer, "10.0.0.4") == "this peer is no longer connected"


def test_a_reload_changes_the_rate_of_all(make: Make) -> None:
    server = make()
    old = server.connect()
    server.admission.configure(parse(SETTINGS | {"rate_mbit": 8}))
    new = server.connect()
    assert {server.table.rate(peer & PEER_INDEX_MASK) for peer in (old, new)} == {1_000_000}
    assert server.table.peer_handle(old & PEER_INDEX_MASK) == old


@pytest.mark.parametrize("request_", [{"claim": "x", "serial": 1, "peer_handle": 1}, {"claim": "10.0.0.2"}, {}])
def test_an_invalid_request_costs_that_request_alone(make: Make, request_: dict) -> None:
    server = make()
    with pytest.raises((ValueError, LookupError)):
        server.admission.handle_request(request_)
    assert server.connect() != NO_PEER


class Model(RuleBasedStateMachine):
    """Clients come, claim and leave in any order: no two connected ones ever have one address."""

    ADDRESSES = ("10.0.0.2", "10.0.0.3", "fd00::2")

    def __init__(self) -> None:
        super().__init__()
        self.server = CompatServer(capacity=3, lanes=1)
        self.connected: dict[int, set[str]] = {}

    def teardown(self) -> None:
        self.server.close()

    @rule()
    def come(self) -> None:
        peer = self.server.connect()
        assert (peer == NO_PEER) == (len(self.connected) == 3)
        if peer != NO_PEER:
            self.connected[peer] = set()

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.connected:
            peer = data.draw(st.sampled_from(sorted(self.connected)))
            self.server.set_connected(peer, False)
            del self.connected[peer]

    @rule(data=st.data(), address=st.sampled_from(ADDRESSES))
    def claim(self, data: st.DataObject, address: str) -> None:
        if not self.connected:
            return
        peer = data.draw(st.sampled_from(sorted(self.connected)))
        version = ip_address(address).version
        taken = any(address in held for held in self.connected.values())
        has_one = any(ip_address(held).version == version for held in self.connected[peer])
        assert (self.server.claim(peer, address) == "") == (not taken and not has_one)
        if not taken and not has_one:
            self.connected[peer].add(address)

    @invariant()
    def packets_go_to_who_has_the_address(self) -> None:
        for peer, held in self.connected.items():
            for address in held:
                assert self.server.owner(address) == peer


Model.TestCase.settings = hypothesis_settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_no_order_of_events_gives_an_address_to_two_clients() -> None:
    case = Model.TestCase()
    case.runTest()


# -- a claim that may be the holder's own


def at_host(server: CompatServer, peer_handle: int, host: str) -> None:
    """The peer's connection as its worker publishes it."""
    index = peer_handle & PEER_INDEX_MASK
    row = ConnectionStatus("established", f"{host}:4{index}", 0, index, 0, 0, 0, 0, 0, 0, index)
    server.table.write_status_row(0, index, row)


@pytest.mark.parametrize(("host", "is_doubted"), [("192.0.2.1", True), ("192.0.2.2", False)])
def test_a_holder_is_asked_for_a_sign_of_life_only_if_the_claim_comes_from_its_own_host(
    make: Make, host: str, is_doubted: bool
) -> None:
    server = make()
    first, second = server.connect(), server.connect()
    at_host(server, first, "192.0.2.1")
    at_host(server, second, host)
    assert server.claim(first, "10.0.0.2") == ""
    assert "10.0.0.2 belongs to" in server.claim(second, "10.0.0.2")
    assert server.told == ([{"doubted": first}] if is_doubted else [])
    assert server.owner("10.0.0.2") == first


def test_nobody_is_asked_while_no_worker_shows_where_the_two_are(make: Make) -> None:
    server = make()
    first, second = server.connect(), server.connect()
    server.claim(first, "10.0.0.2")
    assert server.claim(second, "10.0.0.2") and server.told == []
