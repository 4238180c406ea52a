"""Who is a member of the hub: indexes, sessions, addresses and routes. Each test is one rule."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.packet.route_table import NOBODY, RouteTable
from pipeline.peers import address_assignment as addresses
from pipeline.peers.address_assignment import Address, PeerPolicy, Refusal
from pipeline.peers.membership import ENDED, SESSION_MAX, Admitted, Membership
from pipeline.wire.messages import (
    ADDRESS_OUTSIDE,
    ADDRESS_TAKEN,
    ADDRESSES_MAX,
    BUSY,
    FULL,
    NO_ADDRESS,
    REVOKED,
    SUPERSEDED,
    TEXT_BYTES_MAX,
)

INTERFACES = ("10.0.0.1/24", "fd00::1/64")
V4 = ("10.0.0.1/24",)


def identity(name: str, *allowed: str, fixed: Iterable[str] = (), rate: int = 0) -> PeerPolicy:
    return PeerPolicy(name, tuple(map(ip_network, allowed)), tuple(map(ip_address, fixed)), rate)


ANN, BOB, CYD, DAN = map(identity, ("ann", "bob", "cyd", "dan"))


class Hub:
    """A server, its configuration, and what is connected under which index."""

    def __init__(
        self, *configured: PeerPolicy, interfaces: Iterable[str] = V4, capacity: int = 8, remembered: dict | None = None
    ) -> None:
        self.membership = Membership(tuple(map(ip_interface, interfaces)), capacity, remembered or {})
        self.membership.configure(configured)
        self.connected: set[int] = set()

    @classmethod
    def open_to_one(cls, *interfaces: str) -> Hub:
        hub = cls()
        hub.membership = Membership.open_to_one(tuple(map(ip_interface, interfaces or V4)))
        return hub

    def answer(self, peer: PeerPolicy, session: int = 1, *wishes: str) -> Admitted | Refusal:
        found = self.membership.admit(peer, session, tuple(map(ip_address, wishes)), self.connected.__contains__)
        if isinstance(found, Admitted):
            self.connected.add(found.peer)
        return found

    def admit(self, peer: PeerPolicy, session: int = 1, *wishes: str) -> int:
        """The index of a peer that is let in."""
        found = self.answer(peer, session, *wishes)
        assert isinstance(found, Admitted), found
        return found.peer

    def gets(self, peer: PeerPolicy, session: int = 1, *wishes: str) -> list[str]:
        """The addresses of a peer that is let in."""
        found = self.answer(peer, session, *wishes)
        assert isinstance(found, Admitted), found
        return [str(address.ip) for address in found.addresses]

    def refuses(self, peer: PeerPolicy, session: int = 1, *wishes: str) -> int:
        """The reason for not letting it in, and that nothing has changed by it."""
        before = self.state()
        found = self.answer(peer, session, *wishes)
        assert isinstance(found, Refusal), found
        assert self.state() == before
        assert len(found.text.encode()) <= TEXT_BYTES_MAX
        return found.reason

    def state(self) -> tuple:
        membership = self.membership
        return membership.listing(), membership.routes(), list(membership.sessions), list(membership.remembered.items())

    def leaves(self, peer: PeerPolicy) -> None:
        self.connected.discard(self.index(peer))

    def index(self, peer: PeerPolicy) -> int:
        return next((m.peer for m in self.membership.listing() if m.identity.name == peer.name), NOBODY)

    def whose(self, address: str) -> int:
        """Whose index packets to and from this address have."""
        table = RouteTable()
        table.replace(self.membership.routes())
        return table.peer_of(ip_address(address).packed)

    def routes(self) -> set[tuple[str, int]]:
        return {(str(ip_network((network, length))), peer) for network, length, peer in self.membership.routes()}


# -- sessions and indexes


def test_each_peer_has_one_index_however_often_it_comes() -> None:
    hub = Hub(ANN, BOB)
    assert [hub.admit(ANN), hub.admit(BOB), hub.admit(ANN), hub.admit(ANN, 2), hub.admit(BOB, 7)] == [0, 1, 0, 0, 1]


def test_the_same_session_again_is_one_more_connection_and_changes_nothing() -> None:
    hub = Hub(ANN)
    first = hub.answer(ANN, 5, "10.0.0.9")
    before = hub.state()
    assert hub.answer(ANN, 5) == first == hub.answer(ANN, 5, "10.0.0.77")
    assert hub.state() == before


def test_the_newest_session_wins() -> None:
    hub = Hub(ANN)
    peer = hub.admit(ANN, 5)
    assert hub.admit(ANN, 6) == peer
    assert hub.membership.sessions[peer] == 6


def test_a_session_that_is_not_the_newest_is_refused_while_that_is_connected() -> None:
    hub = Hub(ANN)
    hub.admit(ANN, 5)
    assert hub.refuses(ANN, 4) == SUPERSEDED


def test_a_client_whose_clock_went_back_is_let_in_when_its_old_connection_has_ended() -> None:
    hub = Hub(ANN)
    peer = hub.admit(ANN, 5)
    hub.leaves(ANN)
    assert hub.admit(ANN, 4) == peer
    assert hub.membership.sessions[peer] == 4


def test_a_session_number_that_no_later_one_can_follow_is_refused() -> None:
    hub = Hub(ANN)
    assert hub.refuses(ANN, SESSION_MAX + 1) == SUPERSEDED
    assert hub.admit(ANN, SESSION_MAX) == 0


def test_a_client_that_has_just_come_back_is_not_thrown_out_by_the_end_of_its_old_connection() -> None:
    hub = Hub(ANN, BOB, capacity=2)
    peer = hub.admit(ANN, 5, "10.0.0.9")
    assert hub.admit(ANN, 6, "10.0.0.9") == peer  # the old connection is not known to be dead
    hub.leaves(ANN)  # now it is, and the new one not established for a moment
    assert hub.whose("10.0.0.9") == peer
    assert hub.membership.sessions[peer] == 6
    assert hub.refuses(BOB, 1, "10.0.0.9") == ADDRESS_TAKEN
    assert hub.admit(BOB) != peer
    assert hub.gets(ANN, 6, "10.0.0.9") == ["10.0.0.9"]


def test_a_peer_keeps_index_address_and_routes_while_it_is_away() -> None:
    hub = Hub(ANN, BOB)
    peer, other = hub.admit(ANN), hub.admit(BOB)
    hub.leaves(ANN)
    assert (hub.whose("10.0.0.2"), hub.whose("10.0.0.3")) == (peer, other)


def test_an_index_that_nobody_has_is_taken_before_one_of_a_peer_that_is_away() -> None:
    hub = Hub(ANN, BOB, capacity=2)
    peer = hub.admit(ANN)
    hub.leaves(ANN)
    assert hub.admit(BOB) != peer


def test_when_all_are_used_the_index_goes_to_the_newcomer_that_its_owner_has_not_used_for_longest() -> None:
    hub = Hub(ANN, BOB, CYD, DAN, capacity=3)
    hub.admit(ANN)
    second = hub.admit(BOB)
    hub.admit(CYD)
    hub.admit(ANN, 2)
    for away in (ANN, BOB, CYD):
        hub.leaves(away)
    assert hub.admit(DAN) == second
    assert hub.index(BOB) == NOBODY
    assert hub.whose("10.0.0.3") == NOBODY


def test_when_all_are_connected_there_is_no_room() -> None:
    hub = Hub(ANN, BOB, CYD, capacity=2)
    hub.admit(ANN)
    hub.admit(BOB)
    assert hub.refuses(CYD) == FULL
    assert hub.admit(ANN, 2) == 0
    hub.leaves(BOB)
    assert hub.admit(CYD) == 1


# -- addresses


def test_who_wishes_nothing_gets_the_lowest_free_address_of_each_subnet() -> None:
    hub = Hub(ANN, BOB, interfaces=INTERFACES)
    assert hub.answer(ANN) == Admitted(0, (ip_interface("10.0.0.2/24"), ip_interface("fd00::2/64")))
    assert hub.gets(BOB) == ["10.0.0.3", "fd00::3"]


def test_who_wishes_gets_what_it_wishes_and_nothing_else() -> None:
    hub = Hub(ANN, BOB, CYD, interfaces=INTERFACES)
    assert hub.answer(ANN, 1, "10.0.0.9") == Admitted(0, (ip_interface("10.0.0.9/24"),))
    assert hub.gets(BOB, 1, "fd00::9") == ["fd00::9"]
    assert hub.gets(CYD, 1, "fd00::a", "10.0.0.10", "fd00::a") == ["fd00::a", "10.0.0.10"]


def test_the_same_peer_gets_the_same_address_again_while_others_come_and_go() -> None:
    hub = Hub(ANN, BOB, CYD, DAN, interfaces=INTERFACES, capacity=1)
    first = hub.gets(ANN)
    for other in (BOB, CYD, DAN):
        hub.connected.clear()
        assert hub.gets(other) != first
    hub.connected.clear()
    assert hub.gets(ANN, 2) == first


def test_the_same_peer_gets_the_same_address_again_after_a_restart_of_the_server() -> None:
    hub = Hub(ANN, BOB, interfaces=INTERFACES)
    hub.gets(BOB)
    first = hub.gets(ANN)
    written = {name: list(map(str, kept)) for name, kept in hub.membership.remembered.items()}
    assert Hub(ANN, BOB, interfaces=INTERFACES, remembered=written).gets(ANN) == first


def test_what_a_peer_once_wished_it_gets_without_a_wish() -> None:
    hub = Hub(ANN)
    hub.gets(ANN, 1, "10.0.0.9")
    assert hub.gets(ANN, 2) == ["10.0.0.9"]


def test_a_changed_wish_frees_the_old_address() -> None:
    hub = Hub(ANN, BOB)
    hub.gets(ANN, 1, "10.0.0.9")
    assert hub.gets(ANN, 2, "10.0.0.10") == ["10.0.0.10"]
    assert hub.whose("10.0.0.9") == NOBODY
    assert hub.gets(BOB, 1, "10.0.0.9") == ["10.0.0.9"]


@pytest.mark.parametrize("away", [False, True])
def test_of_two_that_wish_the_same_address_the_second_is_refused(away: bool) -> None:
    hub = Hub(ANN, BOB)
    hub.admit(ANN, 1, "10.0.0.9")
    if away:
        hub.leaves(ANN)
    assert hub.refuses(BOB, 1, "10.0.0.9") == ADDRESS_TAKEN
    assert hub.gets(BOB) == ["10.0.0.2"]


def test_one_bad_wish_among_good_ones_is_refused() -> None:
    assert Hub(ANN).refuses(ANN, 1, "10.0.0.9", "192.168.1.1") == ADDRESS_OUTSIDE


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ("10.0.0.1", ADDRESS_TAKEN),  # the server's own
        ("fd00::1", ADDRESS_TAKEN),
        ("10.0.0.0", ADDRESS_OUTSIDE),  # the subnet
        ("10.0.0.255", ADDRESS_OUTSIDE),  # its broadcast
        ("fd00::", ADDRESS_OUTSIDE),  # its routers
        ("10.0.1.2", ADDRESS_OUTSIDE),
        ("fd00:0:0:1::2", ADDRESS_OUTSIDE),
        ("::ffff:10.0.0.9", ADDRESS_OUTSIDE),
        ("0.0.0.0", ADDRESS_OUTSIDE),
        ("::", ADDRESS_OUTSIDE),
        ("127.0.0.1", ADDRESS_OUTSIDE),
        ("224.0.0.1", ADDRESS_OUTSIDE),
        ("255.255.255.255", ADDRESS_OUTSIDE),
        ("fe80::9", ADDRESS_OUTSIDE),
    ],
)
def test_what_nobody_may_wish(wish: str, reason: int) -> None:
    assert Hub(ANN, interfaces=INTERFACES).refuses(ANN, 1, wish) == reason


@pytest.mark.parametrize("wish", ["127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", "fe80::9", "ff02::1", "::"])
def test_what_is_no_hosts_address_is_not_had_by_a_prefix_that_is_allowed_either(wish: str) -> None:
    exit_node = identity("ann", "0.0.0.0/0", "::/0")
    assert Hub(exit_node, interfaces=INTERFACES).refuses(exit_node, 1, wish) == ADDRESS_OUTSIDE


def test_a_refusal_names_the_address_and_says_what_to_do() -> None:
    text = Hub(ANN).answer(ANN, 1, "10.0.1.2").text
    assert text == (
        '10.0.1.2 is not in 10.0.0.0/24, nor allowed to this peer: choose another tunnel_addr, or "auto" '
        "to be given one"
    )


def test_the_longest_texts_of_refusals_fit_into_one() -> None:
    long = "fd00:1111:2222:3333:4444:5555:6666:777"
    hub = Hub(
        identity("ann", fixed=[long + "9"]), BOB, identity("cyd", fixed=[long + "9"]), DAN, interfaces=[long + "0/112"]
    )
    assert hub.refuses(identity("cyd", fixed=[long + "9"])) == ADDRESS_TAKEN
    assert hub.refuses(DAN, 1, long + "9") == ADDRESS_TAKEN
    assert hub.refuses(DAN, 1, long + "0") == ADDRESS_TAKEN
    assert hub.refuses(DAN, 1, long.replace("6666", "7777") + "9") == ADDRESS_OUTSIDE


def test_an_address_inside_the_peers_allowed_prefixes_may_be_wished() -> None:
    site = identity("ann", "192.168.5.0/24")
    hub = Hub(site, BOB)
    assert hub.answer(site, 1, "192.168.5.7") == Admitted(0, (ip_interface("192.168.5.7/32"),))
    assert hub.refuses(BOB, 1, "192.168.5.8") == ADDRESS_OUTSIDE


def test_an_address_inside_a_longer_prefix_of_somebody_else_may_not() -> None:
    wide, narrow = identity("ann", "192.168.0.0/16"), identity("bob", "192.168.5.0/24")
    hub = Hub(wide, narrow)
    assert hub.refuses(wide, 1, "192.168.5.7") == ADDRESS_TAKEN
    assert hub.gets(narrow, 1, "192.168.5.7") == ["192.168.5.7"]


def test_a_prefix_allowed_inside_a_subnet_is_kept_for_its_peer() -> None:
    site = identity("ann", "10.0.0.0/25")
    hub = Hub(site, BOB, CYD)
    assert hub.gets(BOB) == ["10.0.0.128"]
    assert hub.refuses(CYD, 1, "10.0.0.9") == ADDRESS_TAKEN
    assert hub.gets(site, 1, "10.0.0.9") == ["10.0.0.9"]
    assert Hub(site).gets(site) == ["10.0.0.2"]


def test_a_prefix_allowed_around_a_subnet_keeps_nobody_out_of_it() -> None:
    exit_node = identity("ann", "0.0.0.0/0", "10.0.0.0/24")
    hub = Hub(exit_node, BOB)
    assert hub.gets(BOB) == ["10.0.0.2"]
    assert hub.gets(exit_node) == ["10.0.0.3"]


def test_a_fixed_address_wins_over_what_the_peer_wishes_and_had() -> None:
    hub = Hub(ANN)
    assert hub.gets(ANN) == ["10.0.0.2"]
    hub.leaves(ANN)
    fixed = identity("ann", fixed=["10.0.0.9"])
    hub.membership.configure([fixed])
    assert hub.gets(fixed, 2) == ["10.0.0.9"]
    assert hub.gets(fixed, 3, "10.0.0.33") == ["10.0.0.9"]


def test_a_fixed_address_of_one_version_leaves_the_other_version_to_the_wish_or_the_pool() -> None:
    fixed = identity("ann", fixed=["10.0.0.9"])
    assert Hub(fixed, interfaces=INTERFACES).gets(fixed) == ["10.0.0.9", "fd00::2"]
    assert Hub(fixed, interfaces=INTERFACES).gets(fixed, 1, "10.0.0.3", "fd00::3") == ["10.0.0.9", "fd00::3"]
    assert Hub(fixed, interfaces=INTERFACES).gets(fixed, 1, "10.0.0.3") == ["10.0.0.9"]
    elsewhere = identity("ann", fixed=["192.168.7.7"])
    assert Hub(elsewhere, interfaces=INTERFACES).gets(elsewhere) == ["192.168.7.7", "fd00::2"]


def test_nobody_else_gets_a_fixed_address_also_before_its_peer_has_ever_come() -> None:
    hub = Hub(identity("ann", fixed=["10.0.0.2"]), BOB, CYD)
    assert hub.gets(BOB) == ["10.0.0.3"]
    assert hub.refuses(CYD, 1, "10.0.0.2") == ADDRESS_TAKEN


def test_a_fixed_address_is_taken_from_who_has_it_and_is_away() -> None:
    hub = Hub(ANN, BOB)
    index = hub.admit(ANN)
    hub.leaves(ANN)
    fixed = identity("bob", fixed=["10.0.0.2"])
    hub.membership.configure([ANN, fixed])
    assert hub.gets(fixed) == ["10.0.0.2"]
    assert hub.whose("10.0.0.2") == hub.index(fixed)
    assert (hub.index(ANN), hub.membership.remembered["ann"]) == (NOBODY, ())
    assert hub.gets(ANN, 2) == ["10.0.0.3"]
    assert index in (hub.index(ANN), hub.index(fixed))


def test_an_address_fixed_for_a_stranger_is_not_taken_from_who_is_connected_with_it() -> None:
    hub = Hub(ANN)
    hub.admit(ANN, 1, "10.0.0.9")
    assert hub.refuses(identity("stranger", fixed=["10.0.0.9"])) == ADDRESS_TAKEN


def test_a_fixed_address_that_is_the_servers_own_or_somebody_elses_is_refused() -> None:
    own, first, second = (
        identity("ann", fixed=["10.0.0.1"]),
        identity("bob", fixed=["10.0.0.9"]),
        identity("cyd", fixed=["10.0.0.9"]),
    )
    hub = Hub(own, first, second)
    assert hub.refuses(own) == ADDRESS_TAKEN
    assert hub.refuses(second) == ADDRESS_TAKEN
    assert hub.gets(first) == ["10.0.0.9"]


def test_when_a_subnet_is_exhausted_nobody_is_robbed_who_is_configured_or_connected() -> None:
    stranger = identity("stranger")
    hub = Hub(ANN, BOB, interfaces=["10.0.0.1/30"])
    hub.admit(ANN)
    hub.leaves(ANN)
    assert hub.refuses(BOB) == NO_ADDRESS
    hub = Hub(BOB, interfaces=["10.0.0.1/30"])
    hub.admit(stranger)
    assert hub.refuses(BOB) == NO_ADDRESS


def test_when_a_subnet_is_exhausted_the_stranger_that_was_away_for_longest_loses_its_address() -> None:
    one, two = identity("one"), identity("two")
    hub = Hub(
        ANN,
        interfaces=["10.0.0.1/29"],
        remembered={
            "dan": ["10.0.0.6"],
            "ann": ["10.0.0.4"],
            "one": ["10.0.0.2"],
            "two": ["10.0.0.3"],
            "cyd": ["10.0.0.5"],
        },
    )
    hub.admit(identity("dan"))
    hub.admit(one)
    hub.leaves(one)
    assert hub.gets(BOB) == ["10.0.0.3"]  # of `two`, since `one` was here in the meantime
    assert hub.membership.remembered["two"] == ()
    assert hub.gets(two) == ["10.0.0.5"]  # of `cyd`
    assert hub.gets(CYD) == ["10.0.0.2"]  # of `one`, which has an index no more either
    assert hub.index(one) == NOBODY
    assert hub.refuses(one) == NO_ADDRESS


def test_nothing_is_taken_from_a_stranger_that_would_be_of_no_use() -> None:
    hub = Hub(ANN, interfaces=["10.0.0.1/30", "fd00::1/64"], remembered={"six": ["fd00::5"], "four": ["10.0.0.2"]})
    assert hub.gets(ANN) == ["10.0.0.2", "fd00::2"]
    assert hub.membership.remembered["six"] == (ip_address("fd00::5"),)
    hub = Hub(identity("ann", fixed=["10.0.0.2"]), BOB, interfaces=["10.0.0.1/30"], remembered={"four": ["10.0.0.2"]})
    assert hub.refuses(BOB) == NO_ADDRESS


def test_a_wish_robs_nobody() -> None:
    hub = Hub(ANN, interfaces=["10.0.0.1/30"], remembered={"stranger": ["10.0.0.2"]})
    assert hub.refuses(ANN, 1, "10.0.0.2") == ADDRESS_TAKEN


def test_a_server_without_a_subnet_admits_who_brings_an_allowed_address() -> None:
    site = identity("ann", "192.168.5.0/24")
    hub = Hub(site, BOB, interfaces=["10.0.0.1/32"])
    assert hub.refuses(BOB) == NO_ADDRESS
    assert hub.gets(site, 1, "192.168.5.7") == ["192.168.5.7"]
    assert Hub(BOB, interfaces=["10.0.0.1/32", "fd00::1/64"]).gets(BOB) == ["fd00::2"]


def test_a_second_address_of_the_server_in_its_subnet_is_given_to_nobody() -> None:
    hub = Hub(ANN, BOB, interfaces=["10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24"])
    assert hub.gets(ANN) == ["10.0.0.4"]
    assert hub.refuses(BOB, 1, "10.0.0.2") == ADDRESS_TAKEN


def test_what_is_remembered_and_no_longer_possible_is_forgotten_when_the_peer_comes() -> None:
    hub = Hub(
        ANN, BOB, CYD, remembered={"ann": ["10.0.0.1"], "bob": ["192.168.1.1"], "cyd": ["10.0.0.7", "10.0.0.255"]}
    )
    assert [hub.gets(ANN), hub.gets(BOB), hub.gets(CYD)] == [["10.0.0.2"], ["10.0.0.3"], ["10.0.0.7"]]


def test_of_two_that_are_remembered_with_one_address_the_first_has_it() -> None:
    hub = Hub(ANN, BOB, remembered={"ann": ["10.0.0.7"], "bob": ["10.0.0.7"]})
    assert [hub.gets(BOB), hub.gets(ANN)] == [["10.0.0.2"], ["10.0.0.7"]]


def test_a_peer_never_has_more_addresses_than_fit_into_a_greeting() -> None:
    fixed = identity("ann", fixed=["10.0.0.9"])
    hub = Hub(fixed, interfaces=INTERFACES)
    wishes = [f"fd00::{number:x}" for number in range(16, 16 + ADDRESSES_MAX)]
    assert len(hub.gets(fixed, 1, *wishes)) == ADDRESSES_MAX
    hub = Hub(BOB, interfaces=INTERFACES)
    hub.gets(BOB, 1, *wishes)
    assert len(hub.gets(BOB, 2)) == ADDRESSES_MAX


def test_names_made_up_by_strangers_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "STRANGERS_MAX", 5)
    hub = Hub(ANN, interfaces=["fd00::1/64"], capacity=2)
    first = hub.gets(ANN)
    hub.admit(identity("connected"))
    hub.leaves(ANN)
    for number in range(50):
        hub.connected.discard(hub.admit(identity(f"client-{number:x}")))
        assert len(hub.membership.remembered) <= 5 + 3  # strangers, and the members that they come beside
    assert hub.gets(ANN, 2) == first
    assert {"ann", "connected"} < set(hub.membership.remembered)


# -- a changed configuration


def test_who_is_configured_no_more_is_revoked() -> None:
    hub = Hub(ANN, BOB)
    peer = hub.admit(ANN)
    hub.admit(BOB)
    ended = hub.membership.configure([BOB])
    assert {index: refusal.reason for index, refusal in ended.items()} == {peer: REVOKED}
    assert hub.membership.sessions[peer] == ENDED
    assert hub.whose("10.0.0.2") == NOBODY


def test_the_index_of_a_revoked_peer_is_not_given_away_before_its_last_connection_has_ended() -> None:
    hub = Hub(ANN, BOB, capacity=1)
    peer = hub.admit(ANN)
    hub.membership.configure([BOB])
    assert hub.refuses(BOB) == FULL
    hub.connected.discard(peer)
    assert hub.admit(BOB) == peer
    assert hub.membership.sessions[peer] == 1


def test_a_peer_that_is_configured_again_gets_its_old_address() -> None:
    hub = Hub(ANN, BOB)
    first = hub.gets(ANN)
    hub.membership.configure([BOB])
    assert hub.gets(BOB) != first
    hub.membership.configure([ANN, BOB])
    assert hub.gets(ANN) == first


def test_who_was_never_configured_is_not_revoked() -> None:
    hub = Hub()
    peer = hub.admit(identity("client-2a"))
    assert hub.membership.configure([ANN]) == {}
    assert hub.whose("10.0.0.2") == peer


def test_an_unchanged_configuration_ends_nothing() -> None:
    peers = (ANN, identity("bob", "192.168.5.0/24", "10.0.0.64/26", fixed=["10.0.0.9"], rate=7), CYD, DAN)
    hub = Hub(*peers, interfaces=INTERFACES)
    hub.admit(ANN)
    hub.admit(peers[1], 1, "fd00::77")
    hub.admit(CYD, 1, "10.0.0.33")
    before = hub.state()
    assert hub.membership.configure(peers) == {}
    assert hub.state() == before


def test_changed_prefixes_and_rates_take_effect_while_the_peer_is_connected() -> None:
    hub = Hub(identity("ann", "192.168.5.0/24", rate=7))
    peer = hub.admit(identity("ann", "192.168.5.0/24", rate=7))
    changed = identity("ann", "192.168.6.0/24", rate=8)
    assert hub.membership.configure([changed]) == {}
    assert (hub.whose("192.168.5.1"), hub.whose("192.168.6.1")) == (NOBODY, peer)
    assert [member.identity for member in hub.membership.listing()] == [changed]


@pytest.mark.parametrize(
    "configured",
    [
        [identity("ann", fixed=["10.0.0.33"]), BOB],  # it has another now
        [ANN, identity("bob", fixed=["10.0.0.9"])],  # somebody else has it now
        [ANN, identity("bob", "10.0.0.8/29")],
    ],
    ids=str,
)
def test_who_cannot_keep_its_address_must_come_again(configured: list[PeerPolicy]) -> None:
    hub = Hub(ANN, BOB)
    peer = hub.admit(ANN, 5, "10.0.0.9")
    ended = hub.membership.configure(configured)
    assert {index: refusal.reason for index, refusal in ended.items()} == {peer: ADDRESS_TAKEN}
    assert hub.membership.sessions[peer] == ENDED
    hub.connected.clear()
    assert hub.gets(configured[0], 5) != ["10.0.0.9"]


def test_who_loses_the_prefix_that_its_address_is_in_must_come_again() -> None:
    site = identity("ann", "192.168.5.0/24")
    hub = Hub(site)
    peer = hub.admit(site, 1, "192.168.5.7")
    assert set(hub.membership.configure([ANN])) == {peer}


# -- routes


def test_a_member_has_its_addresses_and_its_allowed_prefixes() -> None:
    site = identity("bob", "192.168.5.0/24", "fd05::/48")
    hub = Hub(ANN, site, interfaces=INTERFACES)
    hub.admit(ANN)
    peer = hub.admit(site)
    assert hub.routes() == {
        ("10.0.0.2/32", 0),
        ("fd00::2/128", 0),
        ("10.0.0.3/32", peer),
        ("fd00::3/128", peer),
        ("192.168.5.0/24", peer),
        ("fd05::/48", peer),
    }


@pytest.mark.parametrize("allowed", ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/30", "10.0.0.1/32"])
def test_the_servers_own_addresses_are_nobodys_whatever_is_allowed(allowed: str) -> None:
    greedy = identity("ann", allowed)
    hub = Hub(greedy)
    hub.admit(greedy)
    assert hub.whose("10.0.0.1") == NOBODY


def test_of_a_subnet_a_peer_has_what_it_was_given_and_not_the_rest_by_a_wide_prefix() -> None:
    exit_node = identity("ann", "0.0.0.0/0")
    hub = Hub(exit_node, BOB)
    peer, other = hub.admit(exit_node), hub.admit(BOB)
    assert [hub.whose(a) for a in ("9.9.9.9", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.255")] == [
        peer,
        peer,
        other,
        NOBODY,
        NOBODY,
    ]


def test_what_belongs_to_a_peer_that_is_no_member_is_not_somebody_elses_by_a_wider_prefix() -> None:
    wide, narrow = identity("ann", "192.168.0.0/16"), identity("bob", "192.168.5.0/24", fixed=["192.168.9.9"])
    hub = Hub(wide, narrow)
    peer = hub.admit(wide)
    assert [hub.whose(a) for a in ("192.168.1.1", "192.168.5.1", "192.168.9.9")] == [peer, NOBODY, NOBODY]
    other = hub.admit(narrow)
    assert [hub.whose(a) for a in ("192.168.1.1", "192.168.5.1", "192.168.9.9")] == [peer, other, other]


def test_of_two_peers_with_one_prefix_the_first_has_it() -> None:
    first, second = identity("ann", "192.168.5.0/24"), identity("bob", "192.168.5.0/24")
    hub = Hub(first, second)
    hub.admit(second)
    peer = hub.admit(first)
    assert hub.whose("192.168.5.1") == peer


def test_there_is_no_entry_that_changes_nothing() -> None:
    hub = Hub(ANN, identity("bob", "192.168.5.0/24"), interfaces=INTERFACES)
    assert hub.routes() == set()
    hub.admit(ANN, 1, "10.0.0.9")
    assert hub.routes() == {("10.0.0.9/32", 0)}


def test_the_listing_has_everybody_who_is_configured_or_a_member() -> None:
    site = identity("bob", "192.168.5.0/24", rate=7)
    hub = Hub(site, identity("cyd", fixed=["10.0.0.9"]), ANN, remembered={"bob": ["10.0.0.5"]})
    hub.admit(identity("client-2a"), 3)
    assert [(m.identity.name, m.peer, m.session, tuple(map(str, m.addresses))) for m in hub.membership.listing()] == [
        ("ann", NOBODY, 0, ()),
        ("bob", NOBODY, 0, ("10.0.0.5",)),
        ("client-2a", 0, 3, ("10.0.0.2",)),
        ("cyd", NOBODY, 0, ("10.0.0.9",)),
    ]
    assert hub.membership.listing()[1].identity == site


# -- a server that is open to one client


def test_a_server_that_is_open_to_one_gives_it_everything() -> None:
    hub = Hub.open_to_one()
    assert hub.routes() == {("0.0.0.0/0", 0), ("::/0", 0)}
    assert hub.admit(identity("client-1"), 1, "192.168.7.7") == 0
    assert hub.routes() == {("0.0.0.0/0", 0), ("::/0", 0)}


def test_a_server_that_is_open_to_one_is_busy_while_another_is_connected() -> None:
    hub = Hub.open_to_one()
    one, two = identity("client-1"), identity("client-2")
    hub.admit(one, 5)
    assert hub.refuses(two, 9) == BUSY
    assert hub.refuses(one, 4) == SUPERSEDED
    assert hub.admit(one, 6) == 0
    hub.leaves(one)
    assert hub.gets(two, 1, "10.0.0.2") == ["10.0.0.2"]
    assert hub.refuses(one, 7) == BUSY
    assert hub.membership.remembered == {}


def test_who_wishes_nothing_of_a_server_that_is_open_to_one_is_given_an_address() -> None:
    hub = Hub.open_to_one(*INTERFACES)
    assert hub.gets(identity("client-1")) == ["10.0.0.2", "fd00::2"]


def test_the_one_client_may_have_any_address_but_the_servers() -> None:
    hub = Hub.open_to_one()
    assert hub.refuses(identity("client-1"), 1, "10.0.0.1") == ADDRESS_TAKEN
    assert hub.answer(identity("client-1"), 1, "10.0.0.9", "fd07::9") == Admitted(
        0, (ip_interface("10.0.0.9/24"), ip_interface("fd07::9/128"))
    )


# -- whatever happens

NAMES = ("a", "b", "c", "d", "e")
ALLOWED = ("0.0.0.0/0", "10.0.0.0/29", "10.0.0.4/30", "10.0.0.1/32", "10.0.0.6/32", "192.168.0.0/16", "192.168.5.0/24")
WISHES = (*(f"10.0.0.{number}" for number in range(8)), "192.168.5.5", "192.168.6.6", "fd00::3", "fd00::4")

PEERS = st.builds(
    lambda name, allowed, fixed: identity(name, *allowed, fixed=fixed),
    st.sampled_from(NAMES),
    st.lists(st.sampled_from(ALLOWED), max_size=2, unique=True),
    st.lists(st.sampled_from(WISHES), max_size=1),
)
CONFIGURATIONS = st.lists(PEERS, max_size=4, unique_by=lambda peer: peer.name)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("admit"), st.sampled_from(NAMES), st.integers(0, 5), st.lists(st.sampled_from(WISHES), max_size=2)
        ),
        st.tuples(st.just("leave"), st.integers(0, 2)),
        st.tuples(st.just("configure"), CONFIGURATIONS),
    ),
    max_size=30,
)


class Watched(Hub):
    """A hub, and beside it whose connections are really there under each index."""

    def __init__(self, *configured: PeerPolicy, **kwargs: object) -> None:
        super().__init__(*configured, **kwargs)
        self.configured = {peer.name: peer for peer in configured}
        self.really: dict[int, str] = {}

    def step(self, what: str, *how: object) -> None:
        if what == "admit":
            name, session, wishes = how
            found = self.answer(self.configured.get(name, identity(name)), session, *wishes)
            if isinstance(found, Admitted):
                assert self.really.setdefault(found.peer, name) == name, "two peers under one index"
        elif what == "leave":
            self.connected.discard(how[0])
            self.really.pop(how[0], None)
        else:
            self.configured = {peer.name: peer for peer in how[0]}
            self.membership.configure(how[0])

    def members(self) -> dict[int, tuple[str, tuple[Address, ...]]]:
        return {m.peer: (m.identity.name, m.addresses) for m in self.membership.listing() if m.peer != NOBODY}


@given(CONFIGURATIONS, STEPS)
def test_no_two_peers_ever_share_an_index_or_an_address(configured: list[PeerPolicy], steps: list[tuple]) -> None:
    hub = Watched(*configured, interfaces=["10.0.0.1/29", "fd00::1/125"], capacity=3)
    for step in steps:
        hub.step(*step)
        listed = [m for m in hub.membership.listing() if m.peer != NOBODY]
        members = hub.members()
        assert len(listed) == len(members)
        had = [address for _, addresses in members.values() for address in addresses]
        assert len(had) == len(set(had))
        assert not {ip_address("10.0.0.1"), ip_address("fd00::1")} & set(had)
        for index, name in hub.really.items():
            assert (index not in members and hub.membership.sessions[index] == ENDED) or members[index][0] == name


@given(CONFIGURATIONS, STEPS)
def test_packets_of_a_members_address_are_always_that_members(configured: list[PeerPolicy], steps: list[tuple]) -> None:
    hub = Watched(*configured, interfaces=["10.0.0.1/29", "fd00::1/125"], capacity=3)
    for step in steps:
        hub.step(*step)
    for index, (_, had) in hub.members().items():
        assert {hub.whose(str(address)) for address in had} == {index}
    assert hub.whose("10.0.0.1") == hub.whose("fd00::1") == NOBODY


@given(STEPS)
def test_a_configured_peer_gets_the_same_address_again_whatever_happened(steps: list[tuple]) -> None:
    hub = Watched(interfaces=["10.0.0.1/29", "fd00::1/125"], capacity=3)
    before: dict[str, set[Address]] = {}
    for what, *how in steps:
        if what == "admit":
            hub.step(what, how[0], how[1], [])
            for name, had in hub.members().values():
                assert before.setdefault(name, set(had)) == set(had)
        elif what == "configure":
            hub.step(what, [identity(name) for name in NAMES])
        else:
            hub.step(what, *how)
