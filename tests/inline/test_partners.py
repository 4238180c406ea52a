"""Two clients of a hub that are partners: which way packets take, and what a client takes from a partner.

The test is the supervisor of both: it gives them the keys of a pair, candidates, and networks.
"""

from __future__ import annotations

import time
from ipaddress import ip_network

import pytest

from pipeline.packet.route_table import DEFAULT_ROUTES, OWN
from pipeline.peers.sealed_sessions import SealedSessions
from pipeline.sealing.key_schedule import AES_256_GCM
from pipeline.sealing.session import session_of_pair
from pipeline.shm.datagram_secrets import DatagramServer, pack_places
from pipeline.shm.layout import DATAGRAM_PATH, RECORD_WORDS, SERVER
from tests.inline.harness.datagrams import LOOPBACK
from tests.inline.harness.ends import End, Make, number_of, push, until
from tests.inline.harness.hub_ends import BULK_BYTES, between, inside, packet, tls

pytestmark = pytest.mark.usefixtures("patient")

CAPACITY, INDEX = 8, 3
HANDLE = 9 << 12 | INDEX
CLIENTS = 1, 2
NOBODY = "10.0.0.77"


class World:
    """A hub and two clients. Datagrams go between the clients alone."""

    def __init__(self, make: Make, lanes: tuple[int, int] = (1, 1)) -> None:
        serving, dialling = tls()
        common = {"seals": True, "carrier": "auto"}
        self.server = make("server", capacity=4, tls=serving, **common)
        self.clients = [
            make(
                "client",
                port=self.server.port,
                capacity=CAPACITY,
                lanes=lanes[number - 1],
                tls=dialling,
                client_id=number,
                session=1,
                connections=2,
                **common,
            )
            for number in CLIENTS
        ]
        until(lambda: self.server.established() == 4, *self.all)
        self.sessions = [
            SealedSessions(end.seal_memory.keys, end.memory.peer_table, end.datagrams.secrets) for end in self.clients
        ]

    @property
    def all(self) -> list[End]:
        return [self.server, *self.clients]

    def become_partners(self, networks: tuple[str, ...] = ()) -> None:
        """`networks`: that the first client believes to be the second one's as well."""
        for side, end in enumerate(self.clients):
            other = self.clients[1 - side]
            places = [DatagramServer.at(LOOPBACK, sock.getsockname()[1])[:2] for sock in other.datagrams.sockets]
            session = session_of_pair(AES_256_GCM, 5, b"p" * 32, side)
            self.sessions[side].begin(HANDLE, session, time.monotonic_ns())
            end.memory.peer_table.write_record(HANDLE, 0)
            self.sessions[side].use_datagrams(HANDLE, DatagramServer(), pack_places(places))
            theirs = [inside(CLIENTS[1 - side], version) for version in (4, 6)] + list(networks if side == 0 else ())
            self.write_routes(end, theirs, [inside(CLIENTS[side], version) for version in (4, 6)])

    def write_routes(self, end: End, theirs: list[str], own: list[str]) -> None:
        routes = [(*route, end.memory.peer_table.peer_handle(SERVER)) for route in DEFAULT_ROUTES]
        for texts, handle in ((theirs, HANDLE), (own, OWN)):
            networks = [ip_network(text) for text in texts]
            routes += [(each.network_address.packed, each.prefixlen, handle) for each in networks]
        end.memory.peer_table.write_routes(routes)

    def is_open(self, *numbers: int) -> bool:
        at = INDEX * RECORD_WORDS + DATAGRAM_PATH
        tables = [self.clients[number].memory.peer_table.datagrams_in for number in numbers or (0, 1)]
        return all(any(words[at] == HANDLE for words in table) for table in tables)

    def until(self, condition: object, seconds: float = 20.0) -> None:
        until(condition, *self.all, seconds=seconds)

    def carry(self, sender: int, packets: list[bytes]) -> None:
        source, sink, waiting = self.clients[sender], self.clients[1 - sender], list(packets)
        wanted = {number_of(each) for each in packets}
        self.until(lambda: push(source, waiting) and wanted <= {number_of(each) for each in sink.packets()})

    @property
    def relayed(self) -> int:
        return self.server.count("tun.packets_forwarded")


@pytest.mark.parametrize("lanes", [(1, 1), (2, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("size", [100, BULK_BYTES], ids=["light", "bulk"])
def test_packets_go_by_the_hub_until_a_path_is_open_and_then_directly(
    make: Make, lanes: tuple[int, int], size: int
) -> None:
    world = World(make, lanes)
    for sender in (0, 1):
        world.carry(sender, between(1 + sender, 2 - sender, range(10), size=size))
    assert world.relayed == 20
    world.become_partners()
    world.until(world.is_open)
    for sender in (0, 1):
        for version in (4, 6):
            numbers = range(100 + 20 * version, 120 + 20 * version)
            world.carry(sender, between(1 + sender, 2 - sender, numbers, version, size))
    assert world.relayed == 20
    assert all(end.count("dgram.blocks_sent") for end in world.clients)


def test_packets_for_the_hub_and_for_others_still_go_to_the_hub(make: Make) -> None:
    world = World(make)
    world.become_partners()
    world.until(world.is_open)
    for number in range(10):
        world.clients[0].write(packet(inside(1, 4), inside(0, 4), number))
    world.until(lambda: len(world.server.packets()) == 10)


def test_a_partner_that_sends_from_or_to_other_addresses_is_refused(make: Make) -> None:
    world = World(make)
    world.become_partners(networks=(NOBODY,))
    world.until(world.is_open)
    one, two = world.clients
    one.write(packet(NOBODY, inside(2, 4), 1))
    world.until(lambda: two.count("tun.dropped_source_refused") == 1)
    one.write(packet(inside(1, 4), NOBODY, 2))
    world.until(lambda: two.count("tun.dropped_destination_refused") == 1)
    one.write(packet(inside(2, 4), inside(2, 4), 3))
    world.until(lambda: two.count("tun.dropped_source_refused") == 2)
    assert two.packets() == []
    world.carry(0, between(1, 2, range(10, 20)))


@pytest.mark.parametrize("size", [100, BULK_BYTES], ids=["light", "bulk"])
def test_no_packet_is_lost_when_the_partner_hears_no_datagram_any_more(make: Make, size: int) -> None:
    world = World(make)
    world.become_partners()
    world.until(world.is_open)
    world.clients[1].kill("dgram-0")
    world.carry(0, between(1, 2, range(100), size=size))
    assert not world.is_open(0)
    assert world.clients[0].count("dgram.blocks_returned")
    assert world.clients[0].count("dgram.dropped_no_path") == world.clients[0].count("tun.dropped_not_taken_back") == 0


def test_a_successor_goes_on_with_the_path(make: Make) -> None:
    world = World(make)
    world.become_partners()
    world.until(world.is_open)
    for end in world.clients:
        end.kill("dgram-0")
        end.start("dgram-0")
    assert world.is_open()
    world.carry(0, between(1, 2, range(20)))
    assert world.relayed == 0


def test_of_a_pair_that_has_ended_nothing_is_opened_from_that_moment_on(make: Make) -> None:
    world = World(make)
    world.become_partners()
    world.until(world.is_open)
    world.carry(0, between(1, 2, range(5)))
    two = world.clients[1]
    world.sessions[1].end(HANDLE)
    world.clients[0].write(packet(inside(1, 4), inside(2, 4), 50))
    world.until(lambda: two.count("tun.dropped_epoch_unknown") + two.count("dgram.dropped_token_unknown"))
    assert 50 not in {number_of(each) for each in two.packets()}
    world.until(lambda: two.count("dgram.paths_closed") == 1)
    world.carry(0, between(1, 2, range(100, 120)))
    assert world.relayed == 20 and not world.is_open(0)


def test_where_only_datagrams_of_a_pair_have_ended_no_packet_is_lost(make: Make) -> None:
    world = World(make)
    world.become_partners()
    world.until(world.is_open)
    world.sessions[1].use_datagrams(HANDLE, None)
    world.until(lambda: not world.is_open(1))
    world.carry(0, between(1, 2, range(100)))
    assert world.relayed >= 100 and world.clients[0].count("dgram.blocks_returned")
