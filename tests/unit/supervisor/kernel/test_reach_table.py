"""The rules of reach as nftables gets them. That the kernel takes and obeys them, tests/netns/test_reach.py tries."""

from __future__ import annotations

from ipaddress import ip_network

from pipeline.policy.reach import PeerFacts, Terms, compile_policies
from pipeline.supervisor.kernel.reach_table import Guarded, ReachTable, counter_of, describe


def text(*targets: str, name: str = "laptop", log_group: int | None = 7) -> str:
    policy = compile_policies([PeerFacts(name, may_reach=targets)], Terms())[name]
    return describe(
        ("tun0", 12), [Guarded(name, (ip_network("10.0.0.2/32"), ip_network("fd00::2/128")), policy)], log_group
    )


def test_targets_of_one_service_are_one_set_without_overlaps() -> None:
    found = text("192.168.0.0/16:443/tcp", "192.168.10.0/24:443/tcp", "[fd00::/64]:443/tcp", "10.1.0.0/16/icmp")
    assert "ip daddr { 192.168.0.0/16 } meta l4proto { 6 } th dport { 443 } accept" in found
    assert "ip6 daddr { fd00::/64 } meta l4proto { 6 } th dport { 443 } accept" in found
    assert "ip daddr { 10.1.0.0/16 } meta l4proto { 1 } accept" in found


def test_ranges_of_ports_that_overlap_are_one() -> None:
    found = text("10.1.0.0/16:80,443,8000-8100,8050-8200,8201")
    assert "meta l4proto { 6, 17 } th dport { 80, 443, 8000-8201 } accept" in found


def test_every_protocol_needs_no_match_and_icmp_is_that_of_the_version() -> None:
    assert "ip daddr { 10.1.0.0/16 } accept" in text("10.1.0.0/16")
    assert "ip6 daddr { fd00::/64 } meta l4proto { 58 } accept" in text("fd00::/64/icmp")


def test_the_address_leads_to_the_chain_of_the_peer_and_answers_pass_before() -> None:
    found = text("10.1.0.0/16")
    assert "ip saddr vmap { 10.0.0.2/32 : goto peer-0 }" in found and "ip6 saddr vmap { fd00::2/128" in found
    assert 'iifname "tun0" jump peers' in found and 'iifname != "tun0" iif 12 jump peers' in found
    assert found.index("ct direction reply accept") < found.index("saddr vmap")


def test_a_peer_without_any_right_has_a_chain_without_rules() -> None:
    assert "chain rules-0 {\n    }" in text()


def test_where_the_kernel_has_no_log_nothing_is_told() -> None:
    assert 'log prefix "0" group 7' in text() and "log" not in text(log_group=None)


def test_peers_with_equal_rules_share_a_chain() -> None:
    facts = [PeerFacts(name, may_reach=("10.1.0.0/16",)) for name in ("one", "two")]
    found = describe(("tun0", 12), [Guarded(name, (), p) for name, p in compile_policies(facts, Terms()).items()], None)
    assert found.count("chain rules-") == 1 and found.count("jump rules-0") == 2


def test_no_name_of_a_peer_can_be_more_than_a_name() -> None:
    """A certificate may have any name."""
    assert counter_of(3, "laptop-2.home") == "refused-laptop-2.home"
    for name in ('a"; flush ruleset; "', "a b", "client:00ff", "x" * 65, "ü", "a\n"):
        assert counter_of(3, name) == "refused/3" and name not in text(name=name)


def test_the_table_is_that_of_one_instance() -> None:
    assert ReachTable(("tun0", 12), "hub").table == "tunnel-hub/reach"
