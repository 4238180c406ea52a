"""Which addresses of clients count, now and a while after their connections have ended."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

from pipeline.policy.client_addresses import GONE_MAX, ClientAddresses
from pipeline.policy.kernel_entries import IPAddress

ALL = [ip_network("0.0.0.0/0"), ip_network("::/0")]
ANN, BOB = ip_address("198.18.0.1"), ip_address("2001:db8::1")


def test_a_change_is_told_once_and_a_client_that_has_gone_still_counts_until_it_is_forgotten() -> None:
    clients = ClientAddresses()
    assert not clients.update([]) and not clients.were_any
    assert clients.update([ANN, BOB]) and not clients.update([BOB, ANN]) and clients.were_any
    assert clients.update([BOB]) and clients.within(ALL) == [ANN, BOB]
    clients.forget_gone()
    assert clients.within(ALL) == [BOB] and clients.were_any
    assert clients.update([]) and clients.within(ALL) == [BOB] and clients.were_any
    clients.forget_gone()
    assert clients.within(ALL) == [] and not clients.were_any


def test_an_address_counts_in_networks_that_hold_it() -> None:
    clients = ClientAddresses()
    clients.update([ANN, BOB])
    assert clients.within([ip_network("198.18.0.0/15")]) == [ANN] and clients.within([]) == []


def test_clients_that_have_gone_are_the_latest_few_and_those_that_are_connected_are_all() -> None:
    clients = ClientAddresses()
    many: list[IPAddress] = [IPv4Address(number) for number in range(4 * GONE_MAX)]
    clients.update(many)
    assert clients.within(ALL) == many
    for left in range(len(many) - 1, -1, -1):
        clients.update(many[:left])
    assert clients.within(ALL) == many[:GONE_MAX]
