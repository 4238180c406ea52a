"""The text of the kill switch, and which networks are near. With nft: tests/netns."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from pipeline.policy.kernel_entries import contains
from pipeline.supervisor.kernel.kill_switch import NO_DNS, KillSwitch, near_networks


def is_near(address: str, *connected: str) -> bool:
    return any(contains(each, ip_address(address)) for each in near_networks(map(ip_network, connected)))


@pytest.mark.parametrize(
    "address", ["10.1.2.3", "192.168.1.1", "169.254.3.4", "239.255.255.250", "fe80::1", "ff02::fb"]
)
def test_the_lan_is_near(address: str) -> None:
    assert is_near(address)


@pytest.mark.parametrize("address", ["198.51.100.9", "2001:db8::1", "230.1.1.1", "ff0e::1", "1.1.1.1"])
def test_the_internet_is_not(address: str) -> None:
    assert not is_near(address)


@pytest.mark.parametrize(
    ("network", "address", "near"),
    [
        ("203.0.113.0/24", "203.0.113.7", True),
        ("203.0.112.0/20", "203.0.113.7", True),
        ("128.0.0.0/1", "203.0.113.7", False),
        ("0.0.0.0/0", "203.0.113.7", False),
        ("2001:db8:1:2::/64", "2001:db8:1:2::7", True),
        ("2000::/3", "2001:db8::7", False),
    ],
)
def test_a_public_network_of_the_machine_is_near_if_it_is_small(network: str, address: str, near: bool) -> None:
    assert is_near(address, network) is near


def test_another_network_or_address_makes_another_switch_and_the_same_ones_do_not() -> None:
    made = KillSwitch("tun0", "town", 7, [ip_network("10.0.0.0/24")])
    assert made.inputs == KillSwitch("tun0", "town", 7, [ip_network("10.0.0.0/24")]).inputs
    for other in (
        KillSwitch("tun0", "town", 8, [ip_network("10.0.0.0/24")]),
        KillSwitch("tun0", "town", 7),
        KillSwitch("tun0", "town", 7, [ip_network("10.0.0.0/24")], [ip_interface("10.9.0.2/24")]),
        KillSwitch("tun0", "town", 7, [ip_network("10.0.0.0/24")], lan_dns=True),
    ):
        assert made.inputs != other.inputs


def test_dns_of_the_lan_is_shut_unless_it_is_the_only_one() -> None:
    assert NO_DNS in KillSwitch("tun0", "town").text
    assert NO_DNS not in KillSwitch("tun0", "town", lan_dns=True).text
