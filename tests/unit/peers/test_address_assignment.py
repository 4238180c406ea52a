"""The addresses that a peer gets from a hub. Each test is one rule."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

import pytest

from pipeline.packet.route_table import NO_PEER
from pipeline.peers import address_assignment
from pipeline.peers.membership import Assigned
from pipeline.wire.messages import (
    ADDRESS_OUTSIDE,
    ADDRESS_TAKEN,
    ADDRESSES_MAX,
    NO_ADDRESS,
)
from tests.harness.hub_model import ANN, BOB, CYD, DAN, INTERFACES, HubModel, policy


def test_a_peer_without_a_request_gets_the_lowest_free_address_of_each_subnet() -> None:
    hub = HubModel(ANN, BOB, interfaces=INTERFACES)
    assert hub.ask(ANN) == Assigned(0, (ip_interface("10.0.0.2/24"), ip_interface("fd00::2/64")))
    assert hub.assigns(BOB) == ["10.0.0.3", "fd00::3"]


def test_a_peer_with_a_request_gets_the_requested_addresses_only() -> None:
    hub = HubModel(ANN, BOB, CYD, interfaces=INTERFACES)
    assert hub.ask(ANN, 1, "10.0.0.9") == Assigned(0, (ip_interface("10.0.0.9/24"),))
    assert hub.assigns(BOB, 1, "fd00::9") == ["fd00::9"]
    assert hub.assigns(CYD, 1, "fd00::a", "10.0.0.10", "fd00::a") == ["fd00::a", "10.0.0.10"]


def test_a_peer_gets_its_address_again_after_others_have_connected() -> None:
    hub = HubModel(ANN, BOB, CYD, DAN, interfaces=INTERFACES, capacity=1)
    first = hub.assigns(ANN)
    for other in (BOB, CYD, DAN):
        hub.connected.clear()
        assert hub.assigns(other) != first
    hub.connected.clear()
    assert hub.assigns(ANN, 2) == first


def test_a_peer_gets_its_address_again_after_a_restart_of_the_server() -> None:
    hub = HubModel(ANN, BOB, interfaces=INTERFACES)
    hub.assigns(BOB)
    first = hub.assigns(ANN)
    written = {name: list(map(str, kept)) for name, kept in hub.membership.remembered.items()}
    assert HubModel(ANN, BOB, interfaces=INTERFACES, remembered=written).assigns(ANN) == first


def test_a_peer_without_a_request_gets_the_address_that_it_requested_before() -> None:
    hub = HubModel(ANN)
    hub.assigns(ANN, 1, "10.0.0.9")
    assert hub.assigns(ANN, 2) == ["10.0.0.9"]


def test_another_request_frees_the_old_address() -> None:
    hub = HubModel(ANN, BOB)
    hub.assigns(ANN, 1, "10.0.0.9")
    assert hub.assigns(ANN, 2, "10.0.0.10") == ["10.0.0.10"]
    assert hub.index_at("10.0.0.9") == NO_PEER
    assert hub.assigns(BOB, 1, "10.0.0.9") == ["10.0.0.9"]


@pytest.mark.parametrize("away", [False, True])
def test_a_request_for_the_address_of_another_peer_is_refused(away: bool) -> None:
    hub = HubModel(ANN, BOB)
    hub.admit(ANN, 1, "10.0.0.9")
    if away:
        hub.disconnect(ANN)
    assert hub.refuses(BOB, 1, "10.0.0.9") == ADDRESS_TAKEN
    assert hub.assigns(BOB) == ["10.0.0.2"]


def test_one_invalid_request_among_valid_ones_is_refused() -> None:
    assert HubModel(ANN).refuses(ANN, 1, "10.0.0.9", "192.168.1.1") == ADDRESS_OUTSIDE


@pytest.mark.parametrize(
    ("requested", "reason"),
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
def test_no_peer_may_request_this_address(requested: str, reason: int) -> None:
    assert HubModel(ANN, interfaces=INTERFACES).refuses(ANN, 1, requested) == reason


@pytest.mark.parametrize(
    "requested", ["127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", "fe80::9", "ff02::1", "::"]
)
def test_an_address_that_no_host_can_have_is_refused_even_inside_an_allowed_prefix(requested: str) -> None:
    exit_node = policy("ann", "0.0.0.0/0", "::/0")
    assert HubModel(exit_node, interfaces=INTERFACES).refuses(exit_node, 1, requested) == ADDRESS_OUTSIDE


def test_a_refusal_names_the_address_and_says_what_to_do() -> None:
    text = HubModel(ANN).ask(ANN, 1, "10.0.1.2").text
    assert text == (
        '10.0.1.2 is not in 10.0.0.0/24, nor allowed to this peer: choose another tunnel_addr, or "auto" to get one '
        "from the server"
    )


def test_the_longest_text_of_a_refusal_fits_into_refused() -> None:
    long = "fd00:1111:2222:3333:4444:5555:6666:777"
    hub = HubModel(
        policy("ann", fixed=[long + "9"]), BOB, policy("cyd", fixed=[long + "9"]), DAN, interfaces=[long + "0/112"]
    )
    assert hub.refuses(policy("cyd", fixed=[long + "9"])) == ADDRESS_TAKEN
    assert hub.refuses(DAN, 1, long + "9") == ADDRESS_TAKEN
    assert hub.refuses(DAN, 1, long + "0") == ADDRESS_TAKEN
    assert hub.refuses(DAN, 1, long.replace("6666", "7777") + "9") == ADDRESS_OUTSIDE


def test_a_peer_may_request_an_address_inside_its_allowed_prefixes() -> None:
    site = policy("ann", "192.168.5.0/24")
    hub = HubModel(site, BOB)
    assert hub.ask(site, 1, "192.168.5.7") == Assigned(0, (ip_interface("192.168.5.7/32"),))
    assert hub.refuses(BOB, 1, "192.168.5.8") == ADDRESS_OUTSIDE


def test_a_peer_may_not_request_an_address_inside_a_longer_prefix_of_another_peer() -> None:
    wide, narrow = policy("ann", "192.168.0.0/16"), policy("bob", "192.168.5.0/24")
    hub = HubModel(wide, narrow)
    assert hub.refuses(wide, 1, "192.168.5.7") == ADDRESS_TAKEN
    assert hub.assigns(narrow, 1, "192.168.5.7") == ["192.168.5.7"]


def test_a_prefix_allowed_inside_a_subnet_is_reserved_for_its_peer() -> None:
    site = policy("ann", "10.0.0.0/25")
    hub = HubModel(site, BOB, CYD)
    assert hub.assigns(BOB) == ["10.0.0.128"]
    assert hub.refuses(CYD, 1, "10.0.0.9") == ADDRESS_TAKEN
    assert hub.assigns(site, 1, "10.0.0.9") == ["10.0.0.9"]
    assert HubModel(site).assigns(site) == ["10.0.0.2"]


def test_a_prefix_allowed_around_a_subnet_leaves_the_subnet_open_to_all() -> None:
    exit_node = policy("ann", "0.0.0.0/0", "10.0.0.0/24")
    hub = HubModel(exit_node, BOB)
    assert hub.assigns(BOB) == ["10.0.0.2"]
    assert hub.assigns(exit_node) == ["10.0.0.3"]


def test_a_fixed_address_replaces_the_requested_and_the_previous_one() -> None:
    hub = HubModel(ANN)
    assert hub.assigns(ANN) == ["10.0.0.2"]
    hub.disconnect(ANN)
    fixed = policy("ann", fixed=["10.0.0.9"])
    hub.membership.configure([fixed])
    assert hub.assigns(fixed, 2) == ["10.0.0.9"]
    assert hub.assigns(fixed, 3, "10.0.0.33") == ["10.0.0.9"]


def test_a_fixed_address_of_one_ip_version_leaves_the_other_version_to_the_request_or_the_pool() -> None:
    fixed = policy("ann", fixed=["10.0.0.9"])
    assert HubModel(fixed, interfaces=INTERFACES).assigns(fixed) == ["10.0.0.9", "fd00::2"]
    assert HubModel(fixed, interfaces=INTERFACES).assigns(fixed, 1, "10.0.0.3", "fd00::3") == ["10.0.0.9", "fd00::3"]
    assert HubModel(fixed, interfaces=INTERFACES).assigns(fixed, 1, "10.0.0.3") == ["10.0.0.9"]
    elsewhere = policy("ann", fixed=["192.168.7.7"])
    assert HubModel(elsewhere, interfaces=INTERFACES).assigns(elsewhere) == ["192.168.7.7", "fd00::2"]


def test_no_other_peer_gets_a_fixed_address_even_before_its_peer_has_connected() -> None:
    hub = HubModel(policy("ann", fixed=["10.0.0.2"]), BOB, CYD)
    assert hub.assigns(BOB) == ["10.0.0.3"]
    assert hub.refuses(CYD, 1, "10.0.0.2") == ADDRESS_TAKEN


def test_a_fixed_address_is_taken_from_a_holder_that_is_away() -> None:
    hub = HubModel(ANN, BOB)
    index = hub.admit(ANN)
    hub.disconnect(ANN)
    fixed = policy("bob", fixed=["10.0.0.2"])
    hub.membership.configure([ANN, fixed])
    assert hub.assigns(fixed) == ["10.0.0.2"]
    assert hub.index_at("10.0.0.2") == hub.index(fixed)
    assert (hub.index(ANN), hub.membership.remembered["ann"]) == (NO_PEER, ())
    assert hub.assigns(ANN, 2) == ["10.0.0.3"]
    assert index in (hub.index(ANN), hub.index(fixed))


def test_a_fixed_address_is_not_taken_from_a_holder_that_is_connected() -> None:
    hub = HubModel(ANN)
    hub.admit(ANN, 1, "10.0.0.9")
    assert hub.refuses(policy("other", fixed=["10.0.0.9"])) == ADDRESS_TAKEN


def test_a_fixed_address_that_is_the_servers_own_or_another_peers_is_refused() -> None:
    own, first, second = (
        policy("ann", fixed=["10.0.0.1"]),
        policy("bob", fixed=["10.0.0.9"]),
        policy("cyd", fixed=["10.0.0.9"]),
    )
    hub = HubModel(own, first, second)
    assert hub.refuses(own) == ADDRESS_TAKEN
    assert hub.refuses(second) == ADDRESS_TAKEN
    assert hub.assigns(first) == ["10.0.0.9"]


def test_an_exhausted_subnet_reclaims_nothing_from_configured_or_connected_peers() -> None:
    unconfigured = policy("other")
    hub = HubModel(ANN, BOB, interfaces=["10.0.0.1/30"])
    hub.admit(ANN)
    hub.disconnect(ANN)
    assert hub.refuses(BOB) == NO_ADDRESS
    hub = HubModel(BOB, interfaces=["10.0.0.1/30"])
    hub.admit(unconfigured)
    assert hub.refuses(BOB) == NO_ADDRESS


def test_an_exhausted_subnet_reclaims_from_the_unconfigured_peer_that_was_away_for_longest() -> None:
    one, two = policy("one"), policy("two")
    hub = HubModel(
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
    hub.admit(policy("dan"))
    hub.admit(one)
    hub.disconnect(one)
    assert hub.assigns(BOB) == ["10.0.0.3"]  # of `two`, since `one` was here in the meantime
    assert hub.membership.remembered["two"] == ()
    assert hub.assigns(two) == ["10.0.0.5"]  # of `cyd`
    assert hub.assigns(CYD) == ["10.0.0.2"]  # of `one`, which has lost its index, too
    assert hub.index(one) == NO_PEER
    assert hub.refuses(one) == NO_ADDRESS


def test_only_usable_addresses_are_reclaimed() -> None:
    hub = HubModel(ANN, interfaces=["10.0.0.1/30", "fd00::1/64"], remembered={"six": ["fd00::5"], "four": ["10.0.0.2"]})
    assert hub.assigns(ANN) == ["10.0.0.2", "fd00::2"]
    assert hub.membership.remembered["six"] == (ip_address("fd00::5"),)
    hub = HubModel(
        policy("ann", fixed=["10.0.0.2"]), BOB, interfaces=["10.0.0.1/30"], remembered={"four": ["10.0.0.2"]}
    )
    assert hub.refuses(BOB) == NO_ADDRESS


def test_a_request_reclaims_nothing() -> None:
    hub = HubModel(ANN, interfaces=["10.0.0.1/30"], remembered={"other": ["10.0.0.2"]})
    assert hub.refuses(ANN, 1, "10.0.0.2") == ADDRESS_TAKEN


def test_a_server_without_a_subnet_admits_a_peer_that_requests_an_allowed_address() -> None:
    site = policy("ann", "192.168.5.0/24")
    hub = HubModel(site, BOB, interfaces=["10.0.0.1/32"])
    assert hub.refuses(BOB) == NO_ADDRESS
    assert hub.assigns(site, 1, "192.168.5.7") == ["192.168.5.7"]
    assert HubModel(BOB, interfaces=["10.0.0.1/32", "fd00::1/64"]).assigns(BOB) == ["fd00::2"]


def test_a_second_address_of_the_server_in_its_subnet_is_never_assigned() -> None:
    hub = HubModel(ANN, BOB, interfaces=["10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24"])
    assert hub.assigns(ANN) == ["10.0.0.4"]
    assert hub.refuses(BOB, 1, "10.0.0.2") == ADDRESS_TAKEN


def test_a_remembered_address_that_is_no_longer_valid_is_forgotten_when_the_peer_connects() -> None:
    hub = HubModel(
        ANN, BOB, CYD, remembered={"ann": ["10.0.0.1"], "bob": ["192.168.1.1"], "cyd": ["10.0.0.7", "10.0.0.255"]}
    )
    assert [hub.assigns(ANN), hub.assigns(BOB), hub.assigns(CYD)] == [["10.0.0.2"], ["10.0.0.3"], ["10.0.0.7"]]


def test_of_two_peers_remembered_with_one_address_the_first_keeps_it() -> None:
    hub = HubModel(ANN, BOB, remembered={"ann": ["10.0.0.7"], "bob": ["10.0.0.7"]})
    assert [hub.assigns(BOB), hub.assigns(ANN)] == [["10.0.0.2"], ["10.0.0.7"]]


def test_a_peer_never_gets_more_addresses_than_a_welcome_holds() -> None:
    fixed = policy("ann", fixed=["10.0.0.9"])
    hub = HubModel(fixed, interfaces=INTERFACES)
    requested = [f"fd00::{number:x}" for number in range(16, 16 + ADDRESSES_MAX)]
    assert len(hub.assigns(fixed, 1, *requested)) == ADDRESSES_MAX
    hub = HubModel(BOB, interfaces=INTERFACES)
    hub.assigns(BOB, 1, *requested)
    assert len(hub.assigns(BOB, 2)) == ADDRESSES_MAX


def test_names_made_up_by_unauthenticated_clients_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_assignment, "UNCONFIGURED_MAX", 5)
    hub = HubModel(ANN, interfaces=["fd00::1/64"], capacity=2)
    first = hub.assigns(ANN)
    hub.admit(policy("connected"))
    hub.disconnect(ANN)
    for number in range(50):
        hub.connected.discard(hub.admit(policy(f"client-{number:x}")))
        assert len(hub.membership.remembered) <= 5 + 3  # unconfigured peers, and the members
    assert hub.assigns(ANN, 2) == first
    assert {"ann", "connected"} < set(hub.membership.remembered)
