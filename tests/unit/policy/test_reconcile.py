"""What is wanted against what the kernel has: the decisions, without a kernel."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.kernel_entries import (
    CONFIGURED_METRIC,
    MAIN_TABLE,
    PUSHED_METRIC,
    Address,
    Route,
    contains,
    is_within,
)
from pipeline.policy.reconcile import FarEnd, Plan, Seen, Wanted, plan

TUN, ETH = 7, 2
TUNNEL_TABLE = 1000
SERVER, GATEWAY = ip_address("198.18.0.1"), ip_address("192.168.1.254")
LAN = ip_network("192.168.1.0/24")
DEFAULT = ip_network("0.0.0.0/0")
OWN = ip_interface("10.99.0.2/24")
NETWORKS = st.builds(
    lambda address, length: ip_network((int(address), length), strict=False),
    st.integers(0, 2**32 - 1) | st.sampled_from([SERVER, GATEWAY, ip_address("192.168.1.77")]),
    st.integers(0, 32),
)
UPLINK = Address(ETH, ip_interface("192.168.1.2/24"), LAN)
WAYS = {
    SERVER: Route(DEFAULT, 100, ETH, GATEWAY, protocol=16),
    GATEWAY: Route(LAN, 100, ETH, protocol=2),
}


def seen(**changes: Any) -> Seen:
    return Seen(TUN, True, (UPLINK,), (), WAYS, {}, {ETH: "eth0", TUN: "tun0"})._replace(**changes)


def routed(made: Plan) -> dict:
    return {route.prefix: route for route in made.add_routes}


def networks(*texts: str) -> tuple:
    return tuple(map(ip_network, texts))


def applied(made: Plan, before: Seen) -> Seen:
    """The kernel after the plan was carried out."""
    stay = [route for route in before.routes if route not in made.remove_routes]
    kept = [each for each in before.addresses if each.device != TUN or each.interface not in made.remove_addresses]
    new = [Address(TUN, each, each.network) for each in made.add_addresses]
    return before._replace(routes=(*stay, *made.add_routes), addresses=(*kept, *new))


WANTED = st.builds(
    Wanted,
    addresses=st.just((OWN,)),
    routes=st.lists(NETWORKS, max_size=6, unique=True).map(tuple),
    pushed_addresses=st.lists(
        st.builds(lambda n, p: ip_interface((n, p)), st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=3
    ).map(tuple),
    pushed_routes=st.lists(NETWORKS, max_size=6).map(tuple),
    accept_routes=st.one_of(st.booleans(), st.lists(NETWORKS, max_size=3).map(tuple)),
    tunnel_table=st.sampled_from([None, TUNNEL_TABLE]),
)


@given(WANTED)
def test_a_plan_carried_out_leaves_nothing_to_do(wanted: Wanted) -> None:
    again = plan(wanted, applied(plan(wanted, seen()), seen()))
    assert not any((again.add_addresses, again.add_routes, again.remove_addresses, again.remove_routes))


@given(WANTED)
def test_no_plan_leads_the_way_to_the_server_into_the_tunnel(wanted: Wanted) -> None:
    """The tunnel table is none of its ways: the rules of the bypass see to that."""
    for route in (each for each in plan(wanted, seen()).add_routes if each.table == MAIN_TABLE):
        for address, way in WAYS.items():
            if contains(route.prefix, address):
                assert (way.prefix.prefixlen, -way.metric) >= (route.prefix.prefixlen, -route.metric)


@given(WANTED)
def test_nothing_that_a_server_sends_lies_in_a_network_of_the_host(wanted: Wanted) -> None:
    made = plan(wanted, seen())
    asked = {*wanted.routes, OWN.network, *(() if isinstance(wanted.accept_routes, bool) else wanted.accept_routes)}
    assert not [each for each in made.add_routes if is_within(each.prefix, LAN) and each.prefix not in asked]
    assert not [each for each in made.add_addresses if each.ip in LAN and each != OWN]


@given(WANTED)
def test_every_entry_is_there_or_has_a_reason(wanted: Wanted) -> None:
    made = plan(wanted, seen())
    assert {*wanted.addresses, *wanted.pushed_addresses, *wanted.routes, *wanted.pushed_routes} <= (
        made.taken | made.left_out.keys()
    )
    assert not made.taken & made.left_out.keys()


def test_with_a_tunnel_table_every_configured_route_is_there_and_what_the_server_pushes_is_judged_as_ever() -> None:
    wanted = Wanted((OWN,), (DEFAULT, LAN), pushed_routes=networks("198.18.0.0/16", "10.5.0.0/16"))
    made = plan(wanted._replace(tunnel_table=TUNNEL_TABLE), seen(rivals={DEFAULT: WAYS[SERVER]}))
    tables = {route.prefix: route.table for route in made.add_routes}
    assert tables == {
        OWN.network: MAIN_TABLE,
        DEFAULT: TUNNEL_TABLE,
        LAN: TUNNEL_TABLE,
        ip_network("10.5.0.0/16"): MAIN_TABLE,
    }
    assert list(made.left_out) == [ip_network("198.18.0.0/16")]
    assert not any("has no effect" in note for note in made.notes.values())


def test_a_route_of_others_that_leads_to_the_server_through_the_tunnel_is_said_with_its_cure() -> None:
    theirs = Route(ip_network("198.18.0.1/32"), 0, TUN, protocol=3)
    (note,) = plan(Wanted(), seen(ways={SERVER: theirs})).notes.values()
    assert "ip route del 198.18.0.1/32 dev tun0" in note
    assert not plan(Wanted(), seen(ways={SERVER: WAYS[SERVER]})).notes


def test_the_subnet_of_an_address_is_a_route_from_that_address() -> None:
    made = plan(Wanted(addresses=(OWN, ip_interface("10.5.0.1/32"))), seen())
    assert made.add_routes == [Route(OWN.network, CONFIGURED_METRIC, TUN, source=OWN.ip)]


def test_a_route_of_the_configuration_that_the_server_pushes_too_has_the_better_metric() -> None:
    both = networks("10.60.0.0/16")
    assert routed(plan(Wanted(routes=both, pushed_routes=both), seen()))[both[0]].metric == CONFIGURED_METRIC
    assert routed(plan(Wanted(pushed_routes=both), seen()))[both[0]].metric == PUSHED_METRIC


def test_a_route_whose_metric_or_source_changes_is_replaced_by_the_right_one() -> None:
    old = Route(OWN.network, PUSHED_METRIC, TUN, source=OWN.ip)
    made = plan(Wanted(addresses=(OWN,)), seen(routes=(old,)))
    assert made.remove_routes == [old] and made.add_routes == [old._replace(metric=CONFIGURED_METRIC)]


@pytest.mark.parametrize(
    ("way", "prefix", "is_taken"),
    [
        (Route(ip_network("198.18.0.1/32"), 0, ETH, GATEWAY), DEFAULT, True),
        (Route(ip_network("198.18.0.0/16"), 0, ETH, GATEWAY), ip_network("198.0.0.0/8"), True),
        (Route(ip_network("198.18.0.0/16"), 0, ETH, GATEWAY), ip_network("198.18.0.0/24"), False),
        (Route(DEFAULT, 0, ETH, GATEWAY), DEFAULT, True),  # it is shadowed
        (Route(DEFAULT, 100, ETH, GATEWAY), DEFAULT, False),
        (Route(DEFAULT, 10, TUN), DEFAULT, False),  # the loop is there already
        (Route(ip_network("198.18.0.1/32"), 0, 1, is_local=True), DEFAULT, True),
        (Route(ip_network("198.18.0.1/32"), 0, TUN, is_local=True), DEFAULT, True),
        (None, DEFAULT, False),
    ],
)
def test_a_route_over_the_server_is_taken_where_the_way_stays_outside(way: Any, prefix: Any, is_taken: bool) -> None:
    made = plan(Wanted(routes=(prefix,)), seen(ways={SERVER: way}))
    assert (prefix in made.taken) == is_taken
    assert (str(SERVER) in made.left_out.get(prefix, "")) != is_taken


@pytest.mark.parametrize("text", ["127.0.0.5/8", "169.254.3.3/16", "224.0.0.5/24", "192.168.1.77/24"])
def test_an_address_that_another_network_has_or_that_means_something_else_is_not_taken_from_a_server(text: str) -> None:
    made = plan(Wanted(pushed_addresses=(ip_interface(text), OWN)), seen())
    assert made.add_addresses == [OWN] and made.left_out[ip_interface(text)]
    assert ip_interface(text) in plan(Wanted(addresses=(ip_interface(text),)), seen()).add_addresses


def test_a_pushed_route_that_is_shadowed_says_how_to_prefer_it() -> None:
    prefix = ip_network("10.60.0.0/16")
    made = plan(Wanted(pushed_routes=(prefix,)), seen(rivals={prefix: Route(prefix, 100, ETH, GATEWAY)}))
    assert next(iter(made.notes.values())).endswith("To prefer the tunnel, list it in routes")


def test_the_gateway_to_the_server_is_protected_too() -> None:
    gateway = ip_network(GATEWAY)
    assert gateway in plan(Wanted(routes=(gateway,)), seen()).left_out


def test_before_the_server_is_known_routes_wait_and_subnets_do_not() -> None:
    made = plan(Wanted(addresses=(OWN,), routes=networks("10.60.0.0/16"), is_far_end_known=False), seen(ways={}))
    assert set(routed(made)) == {OWN.network} and "waits" in made.left_out[ip_network("10.60.0.0/16")]


def test_a_servers_route_to_most_of_the_internet_waits_for_the_first_client_and_others_do_not() -> None:
    large, small = networks("0.0.0.0/0", "128.0.0.0/1", "::/0", "2000::/3"), networks("10.0.0.0/8", "198.51.100.0/24")
    wanted = Wanted(routes=(*large, *small), far_end=FarEnd.CLIENT, is_far_end_known=False)
    made = plan(wanted, seen(ways={}))
    assert set(routed(made)) == set(small) and set(made.left_out) == set(large) and made.notes == {}
    assert all("waits until a client is connected" in why for why in made.left_out.values())
    after = plan(wanted._replace(is_far_end_known=True), seen(ways={}))
    assert set(routed(after)) == {*large, *small} and len(after.notes) == len(large)


@pytest.mark.parametrize("network", ["0.0.0.0/0", "192.0.0.0/2", "198.18.0.0/15", "198.18.0.1/32"])
def test_no_route_of_a_server_leads_to_a_connected_client_unless_another_goes_around(network: str) -> None:
    wanted = Wanted(routes=networks(network), far_end=FarEnd.CLIENT)
    (why,) = plan(wanted, seen()).left_out.values()
    assert "it leads to a client itself (198.18.0.1)" in why and "ip route add 198.18.0.1 via 192.168.1.254" in why
    ruled = WAYS[SERVER]._replace(is_by_rule=True)
    assert plan(wanted, seen(ways={SERVER: ruled})).left_out == {}
    inside = ruled._replace(device=TUN)
    assert plan(wanted, seen(ways={SERVER: inside})).left_out != {}


def test_without_ipv6_its_entries_are_left_out_and_no_others() -> None:
    six = ip_interface("fd99::2/64")
    made = plan(Wanted(addresses=(OWN, six), pushed_routes=networks("fd50::/64", "10.50.0.0/16")), seen(ipv6=False))
    assert made.taken == {OWN, OWN.network, ip_network("10.50.0.0/16")}
    assert made.left_out == {six: "IPv6 is off", ip_network("fd50::/64"): "IPv6 is off"}


def test_an_address_on_the_device_that_is_not_wanted_is_named_for_the_caller_to_judge() -> None:
    other = ip_interface("10.5.0.1/24")
    made = plan(Wanted(addresses=(OWN,)), seen(addresses=(UPLINK, Address(TUN, other, other.network))))
    assert made.remove_addresses == [other]


def test_a_rival_with_the_same_metric_is_named_and_ours_not_tried() -> None:
    prefix = ip_network("10.60.0.0/16")
    rival = Route(prefix, CONFIGURED_METRIC, ETH, GATEWAY, protocol=4)
    made = plan(Wanted(routes=(prefix,)), seen(rivals={prefix: rival}))
    assert made.add_routes == [] and "via 192.168.1.254 dev eth0" in made.left_out[prefix]


def test_a_route_through_several_gateways_is_named_without_one() -> None:
    prefix = ip_network("10.60.0.0/16")
    made = plan(Wanted(routes=(prefix,)), seen(rivals={prefix: Route(prefix, 0, 0)}))
    assert "dev ? has the better metric 0" in next(iter(made.notes.values()))


@pytest.mark.parametrize(
    ("own", "link", "is_said"),
    [
        ("2001:db8:1:2:7::1/80", "2001:db8:1:2::2/64", False),  # the hub answers there for its clients
        ("2001:db8:1:2:7::1/64", "2001:db8:1:2::2/64", True),
        ("2001:db8:1:2::1/48", "2001:db8:1:2::2/64", True),
        ("10.99.0.129/25", "10.99.0.2/24", True),
    ],
)
def test_a_part_of_the_ipv6_network_on_the_link_is_no_overlap(own: str, link: str, is_said: bool) -> None:
    wanted = Wanted(addresses=(ip_interface(own),), far_end=FarEnd.CLIENT)
    found = plan(wanted, seen(addresses=(Address(ETH, ip_interface(link), ip_interface(link).network),)))
    assert (f"tunnel_addr {own} overlaps" in " ".join(found.notes.values())) is is_said
