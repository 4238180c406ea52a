"""A hub makes pairs of clients that talk and may be one, tells both, and ends what may no longer be."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from pipeline.errors import PeerError
from pipeline.policy import direct_pairs
from pipeline.policy.carrier import PASSES, CarrierStatus, State
from pipeline.policy.direct_pairs import LOOKS, RETRY_NS, Facts
from pipeline.sealing.key_schedule import AES_256_GCM, CHACHA20_POLY1305, Session
from pipeline.sealing.session import SealedSession
from pipeline.shm import datagram_status, peer_table, segment
from pipeline.shm.datagram_secrets import DatagramServer
from pipeline.shm.datagram_status import DatagramStatus
from pipeline.shm.layout import (
    ARRIVED_TRANSIT_BULK_BYTES,
    ARRIVED_TRANSIT_FROM,
    DATAGRAM_ROUND_TRIP,
    PEER_INDEX_MASK,
    RECORD_WORDS,
)
from pipeline.shm.peer_table import Route
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.roles.introductions import (
    LOOK_NS,
    REFUSED_MOST,
    REFUSED_NS,
    STALE_NS,
    ClientSession,
    Introductions,
)
from pipeline.wire import notes
from pipeline.wire.notes import Here, Network, Pair, PairState, Place
from pipeline.wire.notes import State as StateNote

ONE, TWO, THREE = ((number + 1) << 12 | number for number in range(3))
NAMES = {ONE: "one", TWO: "two", THREE: "three"}


def place(address: str, port: int) -> Place:
    found = DatagramServer.at(address, port)
    return Place(found.host, found.port)


class FakeHub:
    """Three clients, each with an address in 10.9.0.0/24."""

    def __init__(self, table: peer_table.PeerTable) -> None:
        self.isolates = False
        self.version = 0
        self.own: dict[int, list[str]] = {handle: [f"10.9.0.{2 + number}/32"] for number, handle in enumerate(NAMES)}
        self.facts = {handle: Facts(NAMES[handle], True, False, False, False, False) for handle in NAMES}
        self.suites = dict.fromkeys(NAMES, AES_256_GCM)
        self.ends: dict[int, tuple[SealedSession, SealedSession]] = {}
        for handle in NAMES:
            self.begin(handle)
        for handle in NAMES:
            table.write_record(handle, 0)

    def begin(self, handle: int) -> None:
        context = Session(self.suites[handle], bytes(32), bytes([handle & 255]) * 32, handle, 1)
        hub, client = (SealedSession(context, b"s" * 32, b"", is_server) for is_server in (True, False))
        self.ends[handle] = hub, client

    def sessions(self, peers: Iterable[int] | None = None) -> dict[int, ClientSession]:
        return {
            handle: ClientSession(handle, NAMES[handle], hub, 7 + handle, self.facts[handle])
            for handle, (hub, _) in self.ends.items()
            if peers is None or handle & PEER_INDEX_MASK in peers
        }

    def routes(self) -> list[Route]:
        found = []
        for handle, networks in self.own.items():
            for text in networks:
                address, _, length = text.partition("/")
                found.append((ip_address(address).packed, int(length), handle & PEER_INDEX_MASK))
        return found

    def is_inside(self, host: bytes) -> bool:
        return host[12:14] == bytes([10, 9])


class World:
    def __init__(self) -> None:
        self.table = peer_table.create(f"/tunnel@introtest@{secrets.token_hex(4)}@peer-table", 3, 2, 4, True)
        self.hub = FakeHub(self.table)
        self.events = Events()
        self.seen: list[tuple[str, str, str]] = []
        self.events.subscribe(lambda event: self.seen.append((event.kind.name, event.subject, event.text)))
        self.introductions = Introductions(self.events)
        self.sent: list[tuple[int, bytes]] = []
        self.introductions.tell_workers = lambda note: self.sent.append(
            (note["peer_handle"], bytes.fromhex(note["note"]))
        )
        self.introductions.start(self.table)
        self.now = 10**12
        for number, handle in enumerate(NAMES):
            self.see(handle, place(f"192.0.2.{number}", 1000 + number))

    def see(self, handle: int, where: Place | None, lane: int = 0) -> None:
        """The hub's socket of a lane has a path to this client."""
        state = State.OPEN if where is not None else State.DARK
        host, port = where or (bytes(16), 0)
        status = DatagramStatus(CarrierStatus(state, self.now, PASSES), host, port, 1200)
        datagram_status.publish(self.table.datagrams_in[lane], handle & PEER_INDEX_MASK, status)

    def talk(self, source: int, sink: int, looks: int = LOOKS) -> None:
        """Packets pass from one to the other, and the supervisor looks."""
        for _ in range(looks):
            self.look()
            words = self.table.arrived[1]
            at = (sink & PEER_INDEX_MASK) * RECORD_WORDS
            words[at + ARRIVED_TRANSIT_FROM] = source
            words[at + ARRIVED_TRANSIT_BULK_BYTES] += 100
        self.look()

    def look(self) -> None:
        self.now += LOOK_NS
        self.introductions.tick(self.hub, self.now)

    def hear(self, handle: int, note: notes.Note) -> None:
        _, client = self.hub.ends[handle]
        sealed = client.notes.seal(note.pack()).hex()
        self.introductions.heard({"heard": sealed, "peer_handle": handle}, self.hub, self.now)

    def told(self) -> dict[int, list[Any]]:
        """The notes that were sent since the last call, as the clients open them."""
        found: dict[int, list[Any]] = {}
        for handle, sealed in self.sent:
            note = self.hub.ends[handle][1].notes.open(sealed)
            assert note is not None
            found.setdefault(handle, []).append(notes.unpack(note))
        self.sent.clear()
        return found

    def pair(self) -> dict[int, Pair]:
        """ONE and TWO talk, and are a pair."""
        self.talk(ONE, TWO)
        told = self.told()
        assert {handle: len(each) for handle, each in told.items()} == {ONE: 1, TWO: 1}
        return {handle: each[0] for handle, each in told.items()}

    @property
    def rows(self) -> list[tuple[list[str], str, str]]:
        return [(row["peers"], row["state"], row["reason"]) for row in self.introductions.rows(self.now)]

    def close(self) -> None:
        segment.unlink(self.table.memory.name)
        self.table.close()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def test_two_clients_that_talk_get_one_secret_opposite_sides_and_each_others_places(world: World) -> None:
    world.hear(TWO, Here((place("192.168.7.7", 77),)))
    for handle, trip in ((ONE, 20_000), (TWO, 30_000)):
        world.table.datagrams_out[0][(handle & PEER_INDEX_MASK) * RECORD_WORDS + DATAGRAM_ROUND_TRIP] = trip
    told = world.pair()
    one, two = told[ONE], told[TWO]
    assert one.number == two.number and one.secret == two.secret and {one.side, two.side} == {0, 1}
    assert one.places == (place("192.168.7.7", 77), place("192.0.2.1", 1001))
    assert two.places == (place("192.0.2.0", 1000),)
    assert one.networks == two.own == (Network(bytes([10, 9, 0, 3]), 32),)
    assert (one.name, one.offloads, one.relayed_us, one.suite) == ("two", 7 + TWO, 50_000, AES_256_GCM)
    assert world.rows == [(["one", "two"], "relayed", "it is tried")]


def test_no_two_pairs_have_a_secret_in_common(world: World) -> None:
    first = world.pair()[ONE]
    world.hear(ONE, StateNote(first.number, PairState.ENDED, "no"))
    world.now += RETRY_NS
    world.told()
    again = world.pair()[ONE]
    assert again.secret != first.secret and again.number != first.number


def test_a_suite_that_one_of_them_does_not_prefer_is_not_used(world: World) -> None:
    world.hub.suites[TWO] = CHACHA20_POLY1305
    world.hub.begin(TWO)
    assert world.pair()[ONE].suite == CHACHA20_POLY1305


def test_without_packets_from_client_to_client_there_is_no_pair(world: World) -> None:
    for _ in range(100):
        world.look()
    world.talk(ONE, TWO, looks=1)
    assert world.told() == {} and world.rows == []


def test_a_pair_is_direct_once_both_clients_say_so_and_then_both_are_told_of_its_end(world: World) -> None:
    number = world.pair()[ONE].number
    world.hear(ONE, StateNote(number, PairState.OPEN))
    assert world.rows[0][1] == "relayed"
    world.hear(TWO, StateNote(number, PairState.OPEN))
    assert world.rows == [(["one", "two"], "direct", "")]
    world.hear(TWO, StateNote(number, PairState.ENDED, "idle"))
    told = world.told()
    assert told == {each: [StateNote(number, PairState.ENDED, "two: idle")] for each in (ONE, TWO)}
    assert world.rows == [(["one", "two"], "relayed", "two: idle")]
    assert [kind for kind, *_ in world.seen] == ["direct-open", "direct-ended"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda world: setattr(world.hub, "isolates", True), direct_pairs.ISOLATED),
        (lambda world: world.hub.facts.update({TWO: world.hub.facts[TWO]._replace(has_rules=True)}), "rules of reach"),
        (lambda world: world.hub.facts.update({ONE: world.hub.facts[ONE]._replace(has_rate=True)}), "has a rate"),
    ],
    ids=["isolation", "rules", "rate"],
)  # fmt: skip
def test_what_forbids_a_pair_ends_it_at_once_and_begins_none(world: World, change: Any, reason: str) -> None:
    number = world.pair()[ONE].number
    change(world)
    world.hub.version += 1
    world.look()
    told = world.told()
    assert [each[0][:2] for each in told.values()] == [(number, PairState.FORBIDDEN)] * 2
    assert all(reason in each[0].reason for each in told.values()) and reason in world.rows[0][2]
    world.now += RETRY_NS
    world.talk(ONE, TWO)
    assert world.told() == {}


def test_a_session_that_ends_ends_its_pairs_and_the_other_client_is_told(world: World) -> None:
    number = world.pair()[TWO].number
    del world.hub.ends[ONE]
    world.hub.version += 1
    world.look()
    assert world.told() == {TWO: [StateNote(number, PairState.FORBIDDEN, "the session of one has ended")]}


def test_networks_that_overlap_those_of_a_third_peer_stay_with_the_hub(world: World) -> None:
    world.hub.own[TWO].append("10.5.0.0/16")
    world.hub.own[THREE].append("10.5.7.0/24")
    world.hub.version += 1
    world.talk(ONE, TWO)
    assert world.told() == {} and "overlap" in world.rows[0][2]
    world.hub.own[THREE].pop()
    world.hub.version += 1
    world.now += REFUSED_NS
    world.talk(ONE, TWO)
    told = world.told()
    assert Network(bytes([10, 5, 0, 0]), 16) in told[ONE][0].networks


def test_a_client_without_a_path_of_datagrams_has_no_direct_one(world: World) -> None:
    world.see(TWO, None)
    world.talk(ONE, TWO)
    assert world.told() == {} and "no datagram of two" in world.rows[0][2]


def test_public_places_of_a_client_and_those_inside_the_tunnel_are_told_to_nobody(world: World) -> None:
    inside, public, own = place("10.9.0.3", 1), place("8.8.8.8", 53), place("172.16.0.1", 5)
    world.hear(TWO, Here((inside, public, own)))
    assert world.pair()[ONE].places == (own, place("192.0.2.1", 1001))


def test_a_client_speaks_for_its_own_pairs_alone(world: World) -> None:
    number = world.pair()[ONE].number
    world.hear(THREE, StateNote(number, PairState.ENDED, "mine now"))
    assert world.told() == {} and world.rows[0][2] == "it is tried"


def test_a_note_that_the_client_has_not_sealed_is_refused_and_one_that_is_repeated_ignored(world: World) -> None:
    number = world.pair()[ONE].number
    with pytest.raises(PeerError):
        world.introductions.heard({"heard": "00" * 40, "peer_handle": ONE}, world.hub, world.now)
    sealed = world.hub.ends[ONE][1].notes.seal(StateNote(number, PairState.OPEN).pack()).hex()
    for handle in (ONE, ONE):
        world.introductions.heard({"heard": sealed, "peer_handle": handle}, world.hub, world.now)
    with pytest.raises(PeerError):
        world.introductions.heard({"heard": sealed, "peer_handle": TWO}, world.hub, world.now)


def test_packets_that_go_on_by_the_hub_end_a_pair_whose_notes_were_lost(world: World) -> None:
    number = world.pair()[ONE].number
    world.now += STALE_NS
    world.talk(ONE, TWO)
    assert world.told()[ONE] == [StateNote(number, PairState.ENDED, "packets still go by the hub")]


def test_the_rows_for_people_are_few_however_many_pairs_are_refused(world: World) -> None:
    refused = world.introductions._refused
    for number in range(1000):
        refused[number, number + 1] = ("one", "two"), "no", world.now
    world.pair()
    world.hub.isolates = True
    world.hub.version += 1
    world.look()
    assert len(world.rows) == REFUSED_MOST
