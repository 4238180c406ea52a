"""Who may reach what: compiled rules, decisions, and whose addresses are whose."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.reach import PeerFacts, Policy, Terms, compile_policies, sources
from pipeline.policy.targets import ANY_PROTOCOL, ICMP, ICMPV6, TCP, UDP

LAN = "192.168.10.0/24"
NAS = PeerFacts("nas", (ip_address("10.0.0.9"), ip_address("fd00::9")), groups=("servers",))


def policy(*targets: str, terms: Terms | None = None, peers: tuple[PeerFacts, ...] = (NAS,)) -> Policy:
    peer = PeerFacts("laptop", (ip_address("10.0.0.2"),), may_reach=targets)
    return compile_policies((*peers, peer), terms or Terms(groups={"servers": ("any",)}))["laptop"]


def may(found: Policy, address: str, protocol: int, port: int = 0) -> bool:
    return found.find(ip_address(address), protocol, port, port) is not None


def test_without_rules_a_peer_has_no_policy() -> None:
    assert compile_policies((PeerFacts("laptop"),), Terms()) == {}


def test_an_empty_array_is_a_policy_that_allows_nothing() -> None:
    found = policy()
    assert not may(found, "192.168.10.5", TCP, 443) and not may(found, "10.0.0.9", ICMP)


def test_a_rule_allows_its_addresses_ports_and_protocol_and_no_others() -> None:
    found = policy(f"{LAN}:443,8000-8100/tcp")
    assert may(found, "192.168.10.0", TCP, 443) and may(found, "192.168.10.255", TCP, 8100)
    assert not may(found, "192.168.11.5", TCP, 443) and not may(found, "192.168.10.5", TCP, 8101)
    assert not may(found, "192.168.10.5", UDP, 443) and not may(found, "fd00::5", TCP, 443)


def test_a_port_without_a_protocol_is_one_of_tcp_and_of_udp() -> None:
    found = policy("192.168.10.5:53")
    assert may(found, "192.168.10.5", TCP, 53) and may(found, "192.168.10.5", UDP, 53)
    assert not may(found, "192.168.10.5", ICMP)


def test_a_target_without_ports_allows_every_protocol() -> None:
    found = policy(LAN)
    assert all(may(found, "192.168.10.5", protocol, 7) for protocol in (TCP, UDP, ICMP, 47, 255))
    assert found.find(ip_address("192.168.10.5"), ANY_PROTOCOL) is not None


def test_icmp_is_that_of_the_ip_version() -> None:
    found = policy("any/icmp")
    assert may(found, "1.1.1.1", ICMP) and may(found, "2001:db8::1", ICMPV6)
    assert not may(found, "2001:db8::1", ICMP)


def test_a_group_means_the_addresses_of_its_members_and_not_the_networks_behind_them() -> None:
    gateway = PeerFacts("gateway", (ip_address("10.0.0.8"),), (ip_network("10.8.0.0/16"),), ("servers",))
    found = policy("group:servers:22/tcp", peers=(NAS, gateway))
    assert all(may(found, address, TCP, 22) for address in ("10.0.0.9", "fd00::9", "10.0.0.8"))
    assert not may(found, "10.8.1.1", TCP, 22) and not may(found, "10.0.0.9", TCP, 23)


def test_a_peer_without_addresses_and_one_that_there_is_not_are_nothing() -> None:
    assert policy("peer:nobody", "group:nobody").rows == []


def test_the_hub_is_its_own_addresses() -> None:
    found = policy("hub:53/udp", terms=Terms(own=(ip_address("10.0.0.1"), ip_address("fd00::1"))))
    assert may(found, "10.0.0.1", UDP, 53) and may(found, "fd00::1", UDP, 53) and not may(found, "10.0.0.2", UDP, 53)


def test_rules_of_groups_stand_beside_those_of_the_peer() -> None:
    peer = PeerFacts("laptop", groups=("office", "printers"), may_reach=("10.7.0.0/16",))
    terms = Terms(("any",), {"office": ("10.1.0.0/16",), "printers": ("10.2.0.0/16:9100/tcp",)})
    found = compile_policies((peer,), terms)["laptop"]
    assert may(found, "10.7.1.1", TCP, 1) and may(found, "10.1.1.1", UDP, 1) and may(found, "10.2.1.1", TCP, 9100)
    assert not may(found, "1.1.1.1", TCP, 1), "the rules of all clients are for those that have none"
    assert [rule.words for rule in found.rules] == [
        *('"10.7.0.0/16" its own', '"10.1.0.0/16" of group office', '"10.2.0.0/16:9100/tcp" of group printers'),
    ]


def test_the_rules_of_all_clients_are_for_peers_that_have_none() -> None:
    terms = Terms(("10.1.0.0/16",), {"office": ()})
    peers = (PeerFacts("one"), PeerFacts("two", groups=("office",)), PeerFacts("three", may_reach=("any",)))
    found = compile_policies(peers, terms)
    assert may(found["one"], "10.1.1.1", TCP, 1) and not may(found["one"], "10.2.1.1", TCP, 1)
    assert not may(found["two"], "10.1.1.1", TCP, 1)
    assert "three" not in found, "it may reach everything"


def test_a_group_that_nobody_describes_shuts_out() -> None:
    found = compile_policies((PeerFacts("laptop", groups=("ofice",)),), Terms())
    assert not may(found["laptop"], "10.1.1.1", TCP, 1)


def test_peers_with_the_same_rules_share_a_policy() -> None:
    peers = tuple(PeerFacts(f"p{number}", may_reach=(LAN,)) for number in range(3))
    assert len({id(each) for each in compile_policies(peers, Terms()).values()}) == 1


def test_a_later_fragment_needs_a_rule_of_all_ports() -> None:
    found = policy(f"{LAN}:1-65535/udp", "10.0.0.9/udp")
    assert found.find(ip_address("192.168.10.5"), UDP) is None
    assert found.find(ip_address("10.0.0.9"), UDP) is not None


# -- sources


def test_a_network_lacks_what_others_have_inside_it() -> None:
    owners = [
        (ip_network("10.0.0.0/8"), "wide"),
        (ip_network("10.1.0.0/16"), "narrow"),
        (ip_network("10.1.2.3/32"), "wide"),
        (ip_network("10.1.0.0/16"), "late"),
        (ip_network("fd00::/64"), "wide"),
    ]
    found = sources(owners)
    of = {name: [network for network, owner in found if owner == name] for name in ("wide", "narrow", "late")}
    assert of["late"] == []
    assert sum(network.num_addresses for network in of["narrow"]) == (1 << 16) - 1
    assert sum(network.num_addresses for network in of["wide"] if network.version == 4) == (1 << 24) - (1 << 16) + 1
    assert ip_network("fd00::/64") in of["wide"]


networks = st.builds(
    lambda address, length: IPv4Network((address >> 32 - length << 32 - length, length)),
    st.integers(0, (1 << 32) - 1).map(lambda number: 10 << 24 | number & 0xFFF),
    st.integers(20, 32),
)


@given(st.lists(st.tuples(networks, st.sampled_from("abc")), max_size=12), st.integers(0, 0xFFF))
def test_each_address_is_that_of_the_longest_prefix(owners: list[tuple[IPv4Network, str]], low: int) -> None:
    address = ip_address(10 << 24 | low)
    fitting = [(network, name) for network, name in owners if address in network]
    longest = max(fitting, key=lambda each: each[0].prefixlen, default=None)
    expected = [] if longest is None else [next(name for network, name in owners if network == longest[0])]
    assert [name for network, name in sources(owners) if address in network] == expected
