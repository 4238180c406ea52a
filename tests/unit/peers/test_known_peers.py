"""The peers that a running server knows: read again, added, excluded."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pipeline.errors import Problem
from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.known_peers import KnownPeers
from pipeline.peers.peer_file import BrokenPeer
from pipeline.peers.registry import KnownPeer, Loaded

ANN, BOB = (KnownPeer(PeerPolicy(name), name[:1].encode() * 32) for name in ("ann", "bob"))
BROKEN = BrokenPeer("cyd", Problem("key_file", "cannot be read", "cyd.json"))


def loaded(known: Iterable[KnownPeer] = (ANN, BOB), broken: Iterable[BrokenPeer] = ()) -> Loaded:
    return Loaded(list(known), list(broken), set())


@pytest.fixture
def peers() -> KnownPeers:
    made = KnownPeers()
    made.take(loaded())
    return made


def test_a_peer_is_found_by_its_name(peers: KnownPeers) -> None:
    assert peers.find("bob") is BOB and peers.find("ann") is ANN and peers.find("cyd") is None


def test_an_excluded_peer_stays_out_while_its_file_has_the_same_key_and_no_other_one_does(peers: KnownPeers) -> None:
    peers.exclude("bob", is_named_by_client=False)
    assert peers.known == [ANN] and peers.barred == {"bob"}
    peers.take(loaded())
    assert peers.known == [ANN]
    changed = BOB._replace(key=b"n" * 32)
    peers.take(loaded([ANN, changed]))
    assert peers.known == [ANN, changed]


def test_a_peer_that_is_excluded_twice_stays_excluded_by_the_key_that_it_had(peers: KnownPeers) -> None:
    for _ in range(2):
        peers.exclude("bob", is_named_by_client=False)
    changed = BOB._replace(key=b"n" * 32)
    peers.take(loaded([BOB, changed]))
    assert peers.known == [changed]


def test_a_peer_that_came_back_with_another_key_is_excluded_by_that_one(peers: KnownPeers) -> None:
    changed = BOB._replace(key=b"n" * 32)
    peers.exclude("bob", is_named_by_client=False)
    peers.take(loaded([ANN, changed]))
    peers.exclude("bob", is_named_by_client=False)
    peers.take(loaded([ANN, changed]))
    assert peers.known == [ANN]


def test_a_peer_that_is_added_is_not_broken_any_more(peers: KnownPeers) -> None:
    peers.take(loaded(broken=[BROKEN]))
    peers.add(KnownPeer(PeerPolicy("cyd"), b"c" * 32))
    assert peers.broken == [] and peers.names() == ["ann", "bob", "cyd"]


def test_a_name_that_no_file_has_stays_barred_with_any_key_until_it_is_added(peers: KnownPeers) -> None:
    peers.exclude("eve", is_named_by_client=True)
    eve = KnownPeer(PeerPolicy("eve"), b"e" * 32)
    peers.take(loaded([ANN, eve]))
    assert peers.known == [ANN] and peers.barred == {"eve"}
    peers.add(eve)
    assert peers.known == [ANN, eve] and peers.barred == set()


def test_only_an_excluded_peer_that_no_file_names_is_named_by_its_client(peers: KnownPeers) -> None:
    peers.exclude("eve", is_named_by_client=True)
    peers.exclude("bob", is_named_by_client=False)
    assert [name for name in ("ann", "bob", "eve") if peers.is_named_by_client(name)] == ["eve"]


def test_the_exclusion_of_a_peer_ends_with_its_file(peers: KnownPeers) -> None:
    peers.exclude("bob", is_named_by_client=False)
    peers.take(loaded([ANN]))
    assert peers.barred == set()
    peers.take(loaded())
    assert peers.known == [ANN, BOB]


def test_a_broken_file_is_said_once_and_an_excluded_one_is_not_listed(
    peers: KnownPeers, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        peers.take(loaded(broken=[BROKEN]))
    assert len(caplog.messages) == 1 and peers.names() == ["ann", "bob", "cyd"]
    peers.exclude("cyd", is_named_by_client=False)
    peers.take(loaded(broken=[BROKEN]))
    assert peers.broken == [] and peers.names() == ["ann", "bob"]


def test_a_peer_of_this_run_is_still_known_of_when_its_exclusion_is_forgotten(peers: KnownPeers) -> None:
    peers.exclude("bob", is_named_by_client=False)
    assert peers.has("bob")
    peers.forget("bob")
    assert peers.has("bob") and peers.barred == set() and not peers.has("eve")
