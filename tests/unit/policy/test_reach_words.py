"""Reach in words: questions, explanations, refusals, and the sentence about an invited peer."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from pipeline.policy.reach import PeerFacts, Policy, Terms, compile_policies
from pipeline.policy.reach_words import (
    Asked,
    Explained,
    about_invited,
    explain,
    in_short,
    question,
    refused,
    resolve,
)
from pipeline.policy.targets import TCP

PEERS = (
    PeerFacts("nas", (ip_address("10.0.0.9"), ip_address("fd00::9")), groups=("servers",)),
    PeerFacts("laptop", (ip_address("10.0.0.2"),), may_reach=("192.168.10.0/24:443/tcp", "peer:nas/icmp")),
)
TERMS = Terms(groups={"servers": ("any",)}, own=(ip_address("10.0.0.1"),))
LAPTOP = compile_policies(PEERS, TERMS)["laptop"]


def explained(text: str, policy: Policy | None = LAPTOP, isolated: bool = False) -> Explained:
    target = question(text)
    where = {"10.0.0.9": "nas", "fd00::9": "nas", "10.0.0.2": "laptop"}
    asked = [Asked(address, where.get(str(address), "")) for address in resolve(target, PEERS, TERMS.own)]
    return explain("laptop", policy, target, asked, isolated)


@pytest.mark.parametrize(
    ("text", "may", "said"),
    [
        ("192.168.10.5:443", True, 'laptop may reach 192.168.10.5:443/tcp, by "192.168.10.0/24:443/tcp" its own'),
        ("192.168.10.5:443/udp", False, "laptop may not reach 192.168.10.5:443/udp: no rule of it names that"),
        ("192.168.10.5", False, "laptop may reach 192.168.10.5 in part, by"),
        ("192.168.11.5", False, "laptop may not reach 192.168.11.5: no rule of it names that"),
        ("10.0.0.9/icmp", True, "laptop may reach 10.0.0.9/icmp, which is peer nas, by"),
        ("peer:nas/icmp", True, "laptop may reach fd00::9/icmp, which is peer nas, by"),
        ("group:servers:22", False, "laptop may not reach [fd00::9]:22/tcp, which is peer nas: no rule"),
        ("hub:53/udp", False, "laptop may not reach 10.0.0.1:53/udp: no rule of it names that"),
        ("10.0.0.2", False, "10.0.0.2 is laptop's own"),
    ],
)
def test_an_explanation_has_the_rule_or_says_that_there_is_none(text: str, may: bool, said: str) -> None:
    found = explained(text)
    assert found.may is may and any(line.startswith(said) for line in found.lines), found.lines


def test_an_explanation_says_who_decides() -> None:
    assert explained("192.168.10.5:443").lines[-1] == "the hub's kernel decides: nftables"
    assert explained("10.0.0.9/icmp").lines[-1] == "it goes from peer to peer: the tun worker decides"


def test_a_peer_without_rules_may_reach_everything_but_other_peers_in_isolation() -> None:
    assert explained("192.168.11.5", None) == (True, ["laptop may reach 192.168.11.5: it may reach everything"])
    assert explained("192.168.11.5", None, isolated=True).may
    found = explained("10.0.0.9/icmp", isolated=True)
    assert not found.may and "client_isolation drops all packets between peers" in found.lines[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.168.10.0/24:443", "one address and a port"),
        ("any", "one address and a port"),
        ("peer:nobody", "a peer that has addresses; nobody has none"),
        ("192.168.10.5:https", "ports from 1 to 65535"),
    ],
)
def test_a_question_is_about_addresses(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        explained(text)


def test_a_refusal_names_address_protocol_and_port() -> None:
    assert refused(ip_address("192.168.10.5"), TCP, 22) == "may not reach 192.168.10.5:22/tcp"
    assert refused(ip_address("fd00::5"), 17, 53) == "may not reach [fd00::5]:53/udp"
    assert refused(ip_address("fd00::5"), 58, 0) == "may not reach fd00::5/icmp"
    assert refused(ip_address("10.0.0.1"), 89, 0) == "may not reach 10.0.0.1/89"


def test_many_targets_are_shown_in_short() -> None:
    many = [PeerFacts("laptop", may_reach=tuple(f"10.{number}.0.0/16" for number in range(20)))]
    assert in_short(compile_policies(many, Terms())["laptop"]).endswith("10.7.0.0/16 and 12 more")


@pytest.mark.parametrize(
    ("policy", "isolated", "said"),
    [
        (None, False, "the peer reaches all other peers, and they reach it; --may-reach and --group limit that"),
        (None, True, "the peer reaches what this server reaches, and no other peer: client_isolation is on"),
        (LAPTOP, False, "the peer may reach 192.168.10.0/24:443/tcp, peer:nas/icmp, and answers what others begin"),
        (LAPTOP, True, "client_isolation keeps it from other peers"),
    ],
)
def test_an_invitation_says_whether_peers_reach_each_other(policy: Policy | None, isolated: bool, said: str) -> None:
    assert said in about_invited(policy, isolated)
