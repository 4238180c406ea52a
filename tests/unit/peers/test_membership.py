"""The members of a hub: indexes, sessions, routes, changed configurations. Each test is one rule."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.packet.route_table import NO_PEER
from pipeline.peers.address_assignment import Address, PeerPolicy
from pipeline.peers.membership import REPLACED_MAX, SESSION_MAX, Assigned
from pipeline.wire.messages import (
    ADDRESS_TAKEN,
    BUSY,
    FULL,
    REVOKED,
    SUPERSEDED,
)
from tests.harness.hub_model import ANN, BOB, CYD, DAN, INTERFACES, HubModel, policy

# -- sessions and indexes


def test_each_peer_has_one_index_in_every_session() -> None:
    hub = HubModel(ANN, BOB)
    assert [hub.admit(ANN), hub.admit(BOB), hub.admit(ANN), hub.admit(ANN, 2), hub.admit(BOB, 7)] == [0, 1, 0, 0, 1]


def test_a_further_connection_of_one_session_changes_nothing() -> None:
    hub = HubModel(ANN)
    first = hub.ask(ANN, 5, "10.0.0.9")
    before = hub.state()
    assert hub.ask(ANN, 5) == first == hub.ask(ANN, 5, "10.0.0.77")
    assert hub.state() == before


def test_a_newer_session_replaces_the_older_one() -> None:
    hub = HubModel(ANN)
    peer = hub.admit(ANN, 5)
    assert hub.admit(ANN, 6) == peer
    assert hub.session(ANN) == 6


def test_an_older_session_is_refused_while_a_newer_one_is_connected() -> None:
    hub = HubModel(ANN)
    hub.admit(ANN, 4)
    hub.admit(ANN, 5)
    assert hub.refuses(ANN, 4) == SUPERSEDED


def test_a_client_that_was_started_again_with_its_clock_set_back_replaces_its_old_session_at_once() -> None:
    """Its old connections still count as connected: the machine has lost its power, and has no clock of its own."""
    hub = HubModel(ANN)
    peer = hub.admit(ANN, 5_000)
    assert hub.admit(ANN, 3) == peer
    assert hub.session(ANN) == 3


def test_two_machines_with_one_identity_do_not_take_it_from_each_other_for_ever() -> None:
    """The one with the higher number has it in the end, whichever came first."""
    for first, second in ((5, 9), (9, 5)):
        hub = HubModel(ANN)
        hub.admit(ANN, first)
        hub.admit(ANN, second)
        for _ in range(3):
            hub.ask(ANN, 9)
            assert hub.refuses(ANN, 5) == SUPERSEDED
            assert hub.session(ANN) == 9


def test_the_replaced_sessions_that_are_remembered_are_bounded() -> None:
    hub = HubModel(ANN)
    for session in range(1000, 1000 + 3 * REPLACED_MAX):
        hub.admit(ANN, session)
    (member,) = hub.membership.list_members()
    assert len(member.replaced) == REPLACED_MAX
    assert hub.refuses(ANN, session - REPLACED_MAX) == SUPERSEDED


def test_a_client_whose_clock_went_back_is_admitted_after_its_old_connection_has_ended() -> None:
    hub = HubModel(ANN)
    peer = hub.admit(ANN, 5)
    hub.disconnect(ANN)
    assert hub.admit(ANN, 4) == peer
    assert hub.session(ANN) == 4


def test_a_session_number_that_no_later_one_can_follow_is_refused() -> None:
    hub = HubModel(ANN)
    assert hub.refuses(ANN, SESSION_MAX + 1) == SUPERSEDED
    assert hub.admit(ANN, SESSION_MAX) == 0


def test_the_end_of_an_old_connection_does_not_remove_a_client_that_has_just_returned() -> None:
    hub = HubModel(ANN, BOB, capacity=2)
    peer = hub.admit(ANN, 5, "10.0.0.9")
    assert hub.admit(ANN, 6, "10.0.0.9") == peer  # the old connection is not known to be dead
    hub.disconnect(ANN)  # now it is, and the new one not established for a moment
    assert hub.index_at("10.0.0.9") == peer
    assert hub.session(ANN) == 6
    assert hub.refuses(BOB, 1, "10.0.0.9") == ADDRESS_TAKEN
    assert hub.admit(BOB) != peer
    assert hub.assigns(ANN, 6, "10.0.0.9") == ["10.0.0.9"]


def test_a_peer_keeps_index_address_and_routes_while_it_is_away() -> None:
    hub = HubModel(ANN, BOB)
    peer, other = hub.admit(ANN), hub.admit(BOB)
    hub.disconnect(ANN)
    assert (hub.index_at("10.0.0.2"), hub.index_at("10.0.0.3")) == (peer, other)


def test_an_unused_index_is_assigned_before_that_of_a_peer_that_is_away() -> None:
    hub = HubModel(ANN, BOB, capacity=2)
    peer = hub.admit(ANN)
    hub.disconnect(ANN)
    assert hub.admit(BOB) != peer


def test_without_an_unused_index_a_new_peer_gets_that_of_the_least_recently_admitted_peer_that_is_away() -> None:
    hub = HubModel(ANN, BOB, CYD, DAN, capacity=3)
    hub.admit(ANN)
    second = hub.admit(BOB)
    hub.admit(CYD)
    hub.admit(ANN, 2)
    for away in (ANN, BOB, CYD):
        hub.disconnect(away)
    assert hub.admit(DAN) == second
    assert hub.index(BOB) == NO_PEER
    assert hub.index_at("10.0.0.3") == NO_PEER


def test_while_all_indexes_are_connected_a_new_peer_is_refused() -> None:
    hub = HubModel(ANN, BOB, CYD, capacity=2)
    hub.admit(ANN)
    hub.admit(BOB)
    assert hub.refuses(CYD) == FULL
    assert hub.admit(ANN, 2) == 0
    hub.disconnect(BOB)
    assert hub.admit(CYD) == 1


# -- a changed configuration


def test_a_peer_that_is_no_longer_configured_is_revoked() -> None:
    hub = HubModel(ANN, BOB)
    peer = hub.admit(ANN)
    hub.admit(BOB)
    ended = hub.membership.configure([BOB])
    assert {index: refusal.reason for index, refusal in ended.items()} == {peer: REVOKED}
    assert hub.index(ANN) == NO_PEER
    assert hub.index_at("10.0.0.2") == NO_PEER


def test_the_index_of_a_revoked_peer_is_not_given_away_before_its_last_connection_has_ended() -> None:
    hub = HubModel(ANN, BOB, capacity=1)
    peer = hub.admit(ANN)
    hub.membership.configure([BOB])
    assert hub.refuses(BOB) == FULL
    hub.connected.discard(peer)
    assert hub.admit(BOB) == peer
    assert hub.session(BOB) == 1


def test_a_peer_that_is_configured_again_gets_its_old_address() -> None:
    hub = HubModel(ANN, BOB)
    first = hub.assigns(ANN)
    hub.membership.configure([BOB])
    assert hub.assigns(BOB) != first
    hub.membership.configure([ANN, BOB])
    assert hub.assigns(ANN) == first


def test_a_peer_that_was_never_configured_is_not_revoked() -> None:
    hub = HubModel()
    peer = hub.admit(policy("client-2a"))
    assert hub.membership.configure([ANN]) == {}
    assert hub.index_at("10.0.0.2") == peer


def test_an_unchanged_configuration_ends_nothing() -> None:
    peers = (ANN, policy("bob", "192.168.5.0/24", "10.0.0.64/26", fixed=["10.0.0.9"], rate=7), CYD, DAN)
    hub = HubModel(*peers, interfaces=INTERFACES)
    hub.admit(ANN)
    hub.admit(peers[1], 1, "fd00::77")
    hub.admit(CYD, 1, "10.0.0.33")
    before = hub.state()
    assert hub.membership.configure(peers) == {}
    assert hub.state() == before


def test_changed_prefixes_and_rates_take_effect_while_the_peer_is_connected() -> None:
    hub = HubModel(policy("ann", "192.168.5.0/24", rate=7))
    peer = hub.admit(policy("ann", "192.168.5.0/24", rate=7))
    changed = policy("ann", "192.168.6.0/24", rate=8)
    assert hub.membership.configure([changed]) == {}
    assert (hub.index_at("192.168.5.1"), hub.index_at("192.168.6.1")) == (NO_PEER, peer)
    assert [member.policy for member in hub.membership.list_members()] == [changed]


@pytest.mark.parametrize(
    "configured",
    [
        [policy("ann", fixed=["10.0.0.33"]), BOB],  # it has another now
        [ANN, policy("bob", fixed=["10.0.0.9"])],  # another peer has it now
        [ANN, policy("bob", "10.0.0.8/29")],
    ],
    ids=str,
)
def test_a_peer_that_cannot_keep_its_address_must_connect_again(configured: list[PeerPolicy]) -> None:
    hub = HubModel(ANN, BOB)
    peer = hub.admit(ANN, 5, "10.0.0.9")
    ended = hub.membership.configure(configured)
    assert {index: refusal.reason for index, refusal in ended.items()} == {peer: ADDRESS_TAKEN}
    assert hub.index(ANN) == NO_PEER
    hub.connected.clear()
    assert hub.assigns(configured[0], 5) != ["10.0.0.9"]


def test_a_peer_that_loses_the_prefix_around_its_address_must_connect_again() -> None:
    site = policy("ann", "192.168.5.0/24")
    hub = HubModel(site)
    peer = hub.admit(site, 1, "192.168.5.7")
    assert set(hub.membership.configure([ANN])) == {peer}


# -- routes


def test_a_member_has_its_addresses_and_its_allowed_prefixes() -> None:
    site = policy("bob", "192.168.5.0/24", "fd05::/48")
    hub = HubModel(ANN, site, interfaces=INTERFACES)
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
def test_no_allowed_prefix_leads_the_servers_own_address_to_a_peer(allowed: str) -> None:
    greedy = policy("ann", allowed)
    hub = HubModel(greedy)
    hub.admit(greedy)
    assert hub.index_at("10.0.0.1") == NO_PEER


def test_a_wide_prefix_gives_a_peer_no_further_addresses_of_a_subnet() -> None:
    exit_node = policy("ann", "0.0.0.0/0")
    hub = HubModel(exit_node, BOB)
    peer, other = hub.admit(exit_node), hub.admit(BOB)
    assert [hub.index_at(a) for a in ("9.9.9.9", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.255")] == [
        peer,
        peer,
        other,
        NO_PEER,
        NO_PEER,
    ]


def test_the_networks_of_an_absent_peer_do_not_fall_to_a_wider_prefix_of_another() -> None:
    wide, narrow = policy("ann", "192.168.0.0/16"), policy("bob", "192.168.5.0/24", fixed=["192.168.9.9"])
    hub = HubModel(wide, narrow)
    peer = hub.admit(wide)
    assert [hub.index_at(a) for a in ("192.168.1.1", "192.168.5.1", "192.168.9.9")] == [peer, NO_PEER, NO_PEER]
    other = hub.admit(narrow)
    assert [hub.index_at(a) for a in ("192.168.1.1", "192.168.5.1", "192.168.9.9")] == [peer, other, other]


def test_of_two_peers_with_one_prefix_the_first_owns_it() -> None:
    first, second = policy("ann", "192.168.5.0/24"), policy("bob", "192.168.5.0/24")
    hub = HubModel(first, second)
    hub.admit(second)
    peer = hub.admit(first)
    assert hub.index_at("192.168.5.1") == peer


def test_there_is_no_route_without_effect() -> None:
    hub = HubModel(ANN, policy("bob", "192.168.5.0/24"), interfaces=INTERFACES)
    assert hub.routes() == set()
    hub.admit(ANN, 1, "10.0.0.9")
    assert hub.routes() == {("10.0.0.9/32", 0)}


def test_the_list_has_every_peer_that_is_configured_or_a_member() -> None:
    site = policy("bob", "192.168.5.0/24", rate=7)
    hub = HubModel(site, policy("cyd", fixed=["10.0.0.9"]), ANN, remembered={"bob": ["10.0.0.5"]})
    hub.admit(policy("client-2a"), 3)
    assert [
        (m.policy.name, m.peer, m.session, tuple(map(str, m.addresses))) for m in hub.membership.list_members()
    ] == [
        ("ann", NO_PEER, 0, ()),
        ("bob", NO_PEER, 0, ("10.0.0.5",)),
        ("client-2a", 0, 3, ("10.0.0.2",)),
        ("cyd", NO_PEER, 0, ("10.0.0.9",)),
    ]
    assert hub.membership.list_members()[1].policy == site


# -- a server for one client


def test_a_server_for_one_client_routes_everything_to_it() -> None:
    hub = HubModel.for_one_client()
    assert hub.routes() == {("0.0.0.0/0", 0), ("::/0", 0)}
    assert hub.admit(policy("client-1"), 1, "192.168.7.7") == 0
    assert hub.routes() == {("0.0.0.0/0", 0), ("::/0", 0)}


def test_a_server_for_one_client_is_busy_while_another_is_connected() -> None:
    hub = HubModel.for_one_client()
    one, two = policy("client-1"), policy("client-2")
    hub.admit(one, 4)
    hub.admit(one, 5)
    assert hub.refuses(two, 9) == BUSY
    assert hub.refuses(one, 4) == SUPERSEDED
    assert hub.admit(one, 6) == 0
    hub.disconnect(one)
    assert hub.assigns(two, 1, "10.0.0.2") == ["10.0.0.2"]
    assert hub.refuses(one, 7) == BUSY
    assert hub.membership.remembered == {}


def test_a_server_for_one_client_assigns_an_address_without_a_request() -> None:
    hub = HubModel.for_one_client(*INTERFACES)
    assert hub.assigns(policy("client-1")) == ["10.0.0.2", "fd00::2"]


def test_the_one_client_may_request_any_address_except_the_servers() -> None:
    hub = HubModel.for_one_client()
    assert hub.refuses(policy("client-1"), 1, "10.0.0.1") == ADDRESS_TAKEN
    assert hub.ask(policy("client-1"), 1, "10.0.0.9", "fd07::9") == Assigned(
        0, (ip_interface("10.0.0.9/24"), ip_interface("fd07::9/128"))
    )


# -- any sequence of events


NAMES = ("a", "b", "c", "d", "e")


ALLOWED = ("0.0.0.0/0", "10.0.0.0/29", "10.0.0.4/30", "10.0.0.1/32", "10.0.0.6/32", "192.168.0.0/16", "192.168.5.0/24")


ADDRESSES = (*(f"10.0.0.{number}" for number in range(8)), "192.168.5.5", "192.168.6.6", "fd00::3", "fd00::4")


PEERS = st.builds(
    lambda name, allowed, fixed: policy(name, *allowed, fixed=fixed),
    st.sampled_from(NAMES),
    st.lists(st.sampled_from(ALLOWED), max_size=2, unique=True),
    st.lists(st.sampled_from(ADDRESSES), max_size=1),
)


CONFIGURATIONS = st.lists(PEERS, max_size=4, unique_by=lambda peer: peer.name)


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("admit"),
            st.sampled_from(NAMES),
            st.integers(0, 5),
            st.lists(st.sampled_from(ADDRESSES), max_size=2),
        ),
        st.tuples(st.just("leave"), st.integers(0, 2)),
        st.tuples(st.just("configure"), CONFIGURATIONS),
    ),
    max_size=30,
)


class WatchedHub(HubModel):
    """A hub, and the peer that is really connected under each index."""

    def __init__(self, *configured: PeerPolicy, **kwargs: Any) -> None:
        super().__init__(*configured, **kwargs)
        self.configured = {peer.name: peer for peer in configured}
        self.really: dict[int, str] = {}

    def step(self, what: str, *how: Any) -> None:
        if what == "admit":
            name, session, requested = how
            decision = self.ask(self.configured.get(name, policy(name)), session, *requested)
            if isinstance(decision, Assigned):
                assert self.really.setdefault(decision.peer, name) == name, "two peers under one index"
        elif what == "leave":
            self.connected.discard(how[0])
            self.really.pop(how[0], None)
        else:
            self.configured = {peer.name: peer for peer in how[0]}
            self.membership.configure(how[0])

    def members(self) -> dict[int, tuple[str, tuple[Address, ...]]]:
        return {m.peer: (m.policy.name, m.addresses) for m in self.membership.list_members() if m.peer != NO_PEER}


@given(CONFIGURATIONS, STEPS)
def test_no_two_peers_ever_share_an_index_or_an_address(configured: list[PeerPolicy], steps: list[tuple]) -> None:
    hub = WatchedHub(*configured, interfaces=["10.0.0.1/29", "fd00::1/125"], capacity=3)
    for step in steps:
        hub.step(*step)
        listed = [m for m in hub.membership.list_members() if m.peer != NO_PEER]
        members = hub.members()
        assert len(listed) == len(members)
        had = [address for _, addresses in members.values() for address in addresses]
        assert len(had) == len(set(had))
        assert not {ip_address("10.0.0.1"), ip_address("fd00::1")} & set(had)
        for index, name in hub.really.items():
            assert index not in members or members[index][0] == name


@given(CONFIGURATIONS, STEPS)
def test_routes_of_a_members_address_always_lead_to_that_member(
    configured: list[PeerPolicy], steps: list[tuple]
) -> None:
    hub = WatchedHub(*configured, interfaces=["10.0.0.1/29", "fd00::1/125"], capacity=3)
    for step in steps:
        hub.step(*step)
    for index, (_, had) in hub.members().items():
        assert {hub.index_at(str(address)) for address in had} == {index}
    assert hub.index_at("10.0.0.1") == hub.index_at("fd00::1") == NO_PEER


@given(STEPS)
def test_a_configured_peer_always_gets_its_address_again(steps: list[tuple]) -> None:
    hub = WatchedHub(interfaces=["10.0.0.1/29", "fd00::1/125"], capacity=3)
    before: dict[str, set[Address]] = {}
    for what, *how in steps:
        if what == "admit":
            hub.step(what, how[0], how[1], [])
            for name, had in hub.members().values():
                assert before.setdefault(name, set(had)) == set(had)
        elif what == "configure":
            hub.step(what, [policy(name) for name in NAMES])
        else:
            hub.step(what, *how)
