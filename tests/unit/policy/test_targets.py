"""Targets: what can be written, and what it means."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from pipeline.policy.targets import (
    ANY_PROTOCOL,
    EVERY_PORT,
    GROUP,
    HUB,
    ICMP,
    INTERNET,
    NETWORK,
    PEER,
    PUBLIC,
    TCP,
    UDP,
    parse_target,
)


@pytest.mark.parametrize(
    ("text", "network", "protocols", "ports"),
    [
        ("192.168.10.0/24", "192.168.10.0/24", (ANY_PROTOCOL,), EVERY_PORT),
        ("192.168.10.5", "192.168.10.5/32", (ANY_PROTOCOL,), EVERY_PORT),
        ("192.168.10.0/24:443/tcp", "192.168.10.0/24", (TCP,), ((443, 443),)),
        ("192.168.10.5:443,8000-8100/UDP", "192.168.10.5/32", (UDP,), ((443, 443), (8000, 8100))),
        ("192.168.10.5:53", "192.168.10.5/32", (TCP, UDP), ((53, 53),)),
        ("192.168.10.0/24/icmp", "192.168.10.0/24", (ICMP,), EVERY_PORT),
        ("192.168.10.5/tcp", "192.168.10.5/32", (TCP,), EVERY_PORT),
        ("fd00::/64", "fd00::/64", (ANY_PROTOCOL,), EVERY_PORT),
        ("fd00::5/icmp", "fd00::5/128", (ICMP,), EVERY_PORT),
        ("[fd00::5]:443/tcp", "fd00::5/128", (TCP,), ((443, 443),)),
        ("[fd00::/64]:1-65535/udp", "fd00::/64", (UDP,), ((1, 65535),)),
        ("[fd00::5]", "fd00::5/128", (ANY_PROTOCOL,), EVERY_PORT),
    ],
)
def test_addresses_and_networks(text: str, network: str, protocols: tuple, ports: tuple) -> None:
    found = parse_target(text)
    assert (found.kind, found.network, found.protocols, found.ports) == (
        *(NETWORK, ip_network(network), protocols, ports),
    )
    assert found.text == text


@pytest.mark.parametrize(
    ("text", "kind", "name", "ports"),
    [
        ("group:office", GROUP, "office", EVERY_PORT),
        ("group:office:443/tcp", GROUP, "office", ((443, 443),)),
        ("peer:nas.home:445", PEER, "nas.home", ((445, 445),)),
        ("peer:nas/icmp", PEER, "nas", EVERY_PORT),
        ("hub:53/udp", HUB, "", ((53, 53),)),
        ("internet", INTERNET, "", EVERY_PORT),
    ],
)
def test_words_and_names(text: str, kind: str, name: str, ports: tuple) -> None:
    found = parse_target(text)
    assert (found.kind, found.name, found.ports) == (kind, name, ports)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a target, such as"),
        ("office", "a target, such as"),
        ("192.168.10.5/24", 'without bits after its prefix, such as "192.168.10.0/24"'),
        ("192.168.10.5:0", "ports from 1 to 65535"),
        ("192.168.10.5:443-80", "ports from 1 to 65535"),
        ("192.168.10.5:", "ports from 1 to 65535"),
        ("192.168.10.5:https", "ports from 1 to 65535"),
        ("192.168.10.5:443/tls", "one of tcp, udp, icmp"),
        ("192.168.10.5:443/icmp", "no port with icmp"),
        ("[fd00::5:443", "a target, such as"),
        ("[fd00::5]443", "a target, such as"),
        ("fe80::1%eth0", "a target, such as"),
        ("group:", 'the name of a group behind "group:"'),
        ("group:the office", 'the name of a group behind "group:"'),
        ("any:443:80", "ports from 1 to 65535"),
    ],
)
def test_what_is_no_target_is_told_what_one_is(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected.replace("[", r"\[")):
        parse_target(text)


def test_the_internet_is_every_public_address() -> None:
    for address, is_public in (
        *(("1.1.1.1", True), ("9.255.255.255", True), ("11.0.0.0", True), ("223.255.255.255", True)),
        *(("10.1.2.3", False), ("100.64.0.1", False), ("192.168.1.1", False), ("172.31.255.255", False)),
        *(("172.32.0.0", True), ("169.254.1.1", False), ("224.0.0.1", False), ("2001:db8::1", True)),
        *(("fd00::1", False), ("fe80::1", False), ("::1", False)),
    ):
        assert any(ip_address(address) in network for network in PUBLIC) is is_public, address
