"""A client takes a partner from its hub alone, and nothing of one that has ended."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.errors import PeerError
from pipeline.packet.route_table import OWN, RouteTable
from pipeline.peers.sealed_sessions import SealedSessions
from pipeline.policy import partner_verdict
from pipeline.policy.carrier import PASSES, CarrierStatus, State
from pipeline.policy.direct_pairs import PARTNERS_MAX
from pipeline.policy.partner_verdict import GIVE_UP_NS, HUB_GONE_NS, IDLE_NS, TRIP_NS
from pipeline.sealing.key_schedule import AES_256_GCM, Session
from pipeline.sealing.session import SealedSession, session_of_pair
from pipeline.shm import datagram_status, peer_table, segment
from pipeline.shm.datagram_secrets import DatagramSecretTable, DatagramServer, unpack_places
from pipeline.shm.datagram_status import DatagramStatus
from pipeline.shm.key_table import KeyTable
from pipeline.shm.layout import (
    DATAGRAM_PATH,
    DATAGRAM_ROUND_TRIP,
    DATAGRAM_SENT_BYTES,
    DATAGRAM_SENT_SEGMENTS,
    LINK_ESTABLISHED,
    PEER_OFFLOADS,
    RECORD_WORDS,
)
from pipeline.shm.peer_table import RouteReader
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.roles.only_peer import write_only_peer
from pipeline.supervisor.roles.partners import HERE_AGAIN_NS, LEAVES_NS, LOOK_NS, Partners
from pipeline.wire import notes
from pipeline.wire.notes import Here, Network, Pair, PairState, Place
from pipeline.wire.notes import State as StateNote

HUB_HANDLE = 5 << 12
PLACE = Place(*DatagramServer.at("192.0.2.7", 700)[:2])
HERE = Place(*DatagramServer.at("192.168.1.2", 900)[:2])
THEIRS, OURS = Network(bytes([10, 9, 0, 3]), 32), Network(bytes([10, 9, 0, 2]), 32)
PAIR = Pair(77, 1, AES_256_GCM, bytes(range(32)), 5, 50_000, "two", (PLACE,), (THEIRS,), (OURS,))


def hub_session(number: int = 1) -> tuple[SealedSession, SealedSession]:
    """At the hub, and at the client."""
    context = Session(AES_256_GCM, bytes(32), bytes(32), 1, number)
    hub, client = (SealedSession(context, b"s" * 32, b"", is_server) for is_server in (True, False))
    return hub, client


class World:
    def __init__(self) -> None:
        self.table = peer_table.create(f"/tunnel@parttest@{secrets.token_hex(4)}@peer-table", 8, 1, 4, True)
        write_only_peer(self.table, HUB_HANDLE)
        self.keys, keys_fd = KeyTable.create(8)
        self.secrets, secrets_fd = DatagramSecretTable.create(8)
        for fd in (keys_fd, secrets_fd):
            os.close(fd)
        self.hub, client = hub_session()
        self.client: tuple[int, SealedSession] | None = (HUB_HANDLE, client)
        self.seen: list[tuple[str, str, str]] = []
        events = Events()
        events.subscribe(lambda event: self.seen.append((event.kind.name, event.subject, event.text)))
        self.places = [HERE]
        self.partners = Partners(events, lambda: self.places)
        self.sent: list[bytes] = []
        self.partners.tell_workers = lambda note: self.sent.append(bytes.fromhex(note["note"]))
        self.partners.start(self.table, SealedSessions(self.keys, self.table, self.secrets))
        self.now = 10**12
        self.connections(8)

    def connections(self, count: int) -> None:
        self.table.links[0][LINK_ESTABLISHED] = count

    def hear(self, note: notes.Note, peer_handle: int = HUB_HANDLE) -> None:
        sealed = self.hub.notes.seal(note.pack()).hex()
        self.partners.heard({"heard": sealed, "peer_handle": peer_handle}, self.client, self.now)

    def after(self, nanoseconds: int = LOOK_NS) -> list[Any]:
        """The notes that the hub gets."""
        self.now += nanoseconds
        self.partners.tick(self.client, self.now)
        found = [self.hub.notes.open(each) for each in self.sent]
        self.sent.clear()
        return [notes.unpack(each) for each in found if each is not None]

    def handle(self, index: int = 1) -> int:
        return self.table.peer_handle(index)

    def path(self, is_open: bool, index: int = 1) -> None:
        state = State.OPEN if is_open else State.DARK
        status = DatagramStatus(CarrierStatus(state, self.now, PASSES), PLACE.host, PLACE.port, 1200)
        datagram_status.publish(self.table.datagrams_in[0], index, status)
        self.table.datagrams_in[0][index * RECORD_WORDS + DATAGRAM_PATH] = self.handle(index) if is_open else 0

    def use(self, index: int = 1) -> None:
        self.table.datagrams_out[0][index * RECORD_WORDS + DATAGRAM_SENT_BYTES] += 100

    def route(self, address: bytes) -> int:
        routes = RouteTable()
        RouteReader(self.table).read_into(routes)
        return routes.lookup(address)

    @property
    def rows(self) -> list[tuple[list[str], str]]:
        return [(row["peers"], row["state"]) for row in self.partners.rows(self.now)]

    def close(self) -> None:
        segment.unlink(self.table.memory.name)
        self.table.close()
        self.keys.close()
        self.secrets.close()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def test_a_partner_has_keys_candidates_offloads_and_its_networks_and_all_else_goes_to_the_hub(world: World) -> None:
    world.hear(PAIR)
    handle, session = world.handle(), session_of_pair(AES_256_GCM, 77, PAIR.secret, 1)
    keys, secret = world.keys.read(handle), world.secrets.read(handle)
    assert keys is not None and keys.send == session.keys().send
    assert secret is not None and unpack_places(secret.places) == [PLACE]
    assert secret.send == session.datagram_secrets().send
    assert world.table.records[RECORD_WORDS + PEER_OFFLOADS] == 5
    assert world.route(THEIRS.address) == handle and world.route(OURS.address) == OWN
    assert world.route(bytes([10, 9, 0, 4])) == world.route(bytes(16)) == HUB_HANDLE
    assert world.table.established_count(1) == 0


def assert_nothing_is_left(world: World, handle: int) -> None:
    assert world.keys.read(handle) is None and world.secrets.read(handle) is None
    assert world.route(THEIRS.address) == world.route(OURS.address)
    assert world.handle() != handle


def test_a_pair_that_the_hub_ends_leaves_no_key_and_no_route(world: World) -> None:
    world.hear(PAIR)
    handle = world.handle()
    world.hear(StateNote(PAIR.number, PairState.FORBIDDEN, "one has been revoked"))
    assert_nothing_is_left(world, handle)
    assert world.seen == [("direct-ended", "two", "the hub: one has been revoked")]
    assert world.rows == [(["two"], "relayed")]


def test_a_pair_that_ends_for_another_reason_has_its_keys_a_moment_longer_than_its_datagrams(world: World) -> None:
    world.hear(PAIR)
    handle = world.handle()
    world.hear(StateNote(PAIR.number, PairState.ENDED, "two: idle"))
    assert world.secrets.read(handle) is None and world.keys.read(handle) is not None
    world.after()
    assert world.handle() == handle and world.rows == [(["two"], "relayed")]
    world.after(LEAVES_NS)
    assert_nothing_is_left(world, handle)


def test_a_pair_ends_with_the_session_in_which_the_hub_has_begun_it(world: World) -> None:
    world.hear(PAIR)
    handle = world.handle()
    world.hub, client = hub_session(2)
    world.client = (HUB_HANDLE + (1 << 12), client)
    write_only_peer(world.table, world.client[0])
    world.after()
    assert_nothing_is_left(world, handle)


def test_a_note_of_another_session_or_that_the_hub_has_not_sealed_makes_no_partner(world: World) -> None:
    world.hear(PAIR, HUB_HANDLE + (1 << 12))
    assert world.handle() == 0
    world.hub, _ = hub_session(3)
    with pytest.raises(PeerError):
        world.hear(PAIR)
    assert world.handle() == 0


def test_a_note_that_comes_twice_begins_a_pair_once_and_one_that_has_ended_never_again(world: World) -> None:
    sealed = world.hub.notes.seal(PAIR.pack()).hex()
    request: Any = {"heard": sealed, "peer_handle": HUB_HANDLE}
    world.partners.heard(request, world.client, world.now)
    handle = world.handle()
    world.partners.heard(request, world.client, world.now)
    assert world.handle() == handle
    world.hear(StateNote(PAIR.number, PairState.FORBIDDEN))
    world.partners.heard(request, world.client, world.now)
    assert world.keys.read(world.handle()) is None


def test_a_hub_that_begins_a_pair_anew_replaces_it_and_no_more_than_there_may_be_begin(world: World) -> None:
    world.hear(PAIR)
    before = world.handle()
    world.hear(PAIR._replace(number=78, secret=bytes(32)))
    assert world.keys.read(before) is None and world.keys.read(world.handle()) is not None
    for number in range(1, PARTNERS_MAX):
        world.hear(PAIR._replace(number=number, name=f"peer{number}"))
    with pytest.raises(PeerError):
        world.hear(PAIR._replace(number=99, name="one more"))
    assert len(world.rows) == PARTNERS_MAX
    assert len({world.handle(index) for index in range(1, 8)}) == PARTNERS_MAX


def test_the_hub_is_told_of_a_path_that_opens_and_goes_dark_and_people_too(world: World) -> None:
    world.hear(PAIR)
    world.after()
    world.path(True)
    assert StateNote(77, PairState.OPEN) in world.after() and world.rows == [(["two"], "direct")]
    world.path(False)
    assert StateNote(77, PairState.DARK) in world.after() and world.rows == [(["two"], "relayed")]
    assert world.seen[0] == ("direct-open", "two", "at 192.0.2.7:700") and world.seen[1][0] == "direct-dark"


def test_a_path_that_does_not_open_in_time_ends_the_pair_and_the_hub_hears_why(world: World) -> None:
    world.hear(PAIR)
    handle = world.handle()
    world.after(GIVE_UP_NS)
    assert world.handle() == handle
    assert world.after() == [StateNote(77, PairState.ENDED, partner_verdict.NOT_THROUGH)]
    world.after(LEAVES_NS)
    assert_nothing_is_left(world, handle)


def test_a_pair_goes_on_while_it_is_used(world: World) -> None:
    world.hear(PAIR)
    world.path(True)
    for _ in range(4):
        world.use()
        world.after(IDLE_NS - LOOK_NS)
    assert world.rows == [(["two"], "direct")]
    world.after(IDLE_NS + 1)
    assert world.rows == [(["two"], "relayed")]
    world.after(LEAVES_NS)
    assert world.seen[-1][2] == partner_verdict.IDLE


def test_a_path_that_takes_longer_than_the_way_by_the_hub_is_given_up(world: World) -> None:
    world.hear(PAIR)
    world.path(True)
    words = world.table.datagrams_out[0]
    words[RECORD_WORDS + DATAGRAM_SENT_SEGMENTS] = 1
    for trip in (300_000, 60_000, 200_000):  # a queue of our own
        words[RECORD_WORDS + DATAGRAM_ROUND_TRIP] = trip
        world.after()
    words[RECORD_WORDS + DATAGRAM_ROUND_TRIP] = 90_000
    world.after(TRIP_NS)
    assert world.rows == [(["two"], "direct")]
    world.after()
    assert "90 ms, that by the hub 50 ms" in world.after(TRIP_NS)[-1].reason
    assert world.rows == [(["two"], "relayed")]


def test_without_a_connection_to_the_hub_a_pair_ends_soon(world: World) -> None:
    world.after()
    world.hear(PAIR)
    world.path(True)
    world.after()
    world.connections(0)
    world.use()
    world.after(HUB_GONE_NS)
    assert world.rows == [(["two"], "direct")]
    world.after()
    assert world.rows == [(["two"], "relayed")] and world.seen[-1][2] == partner_verdict.HUB_GONE


def test_a_client_says_where_it_is_once_and_again_if_that_changes(world: World) -> None:
    assert world.after() == [Here((HERE,))]
    assert world.after(4 * 10**9) == []
    world.places = [HERE._replace(port=901)]
    assert world.after(4 * 10**9) == [Here((HERE._replace(port=901),))]
    assert world.after(HERE_AGAIN_NS) == [] and len(world.after()) == 1
