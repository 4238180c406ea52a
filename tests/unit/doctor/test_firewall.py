"""The firewall as nft lists it in JSON, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.doctor.finding import Level
from pipeline.doctor.firewall import (
    Chain,
    chains_of,
    judge_chains,
    judge_kill_switch,
    judge_left_shut,
    judge_nat_table,
    judge_own_table,
    judge_reach_table,
)
from pipeline.supervisor.kernel.kill_switch import guarded_instance

OWN = "tunnel-town"


def chain(name: str, hook: str | None, policy: str = "accept", table: str = "filter") -> dict[str, Any]:
    made = {"family": "inet", "table": table, "name": name}
    return {"chain": made | ({"hook": hook, "policy": policy, "prio": 0, "type": "filter"} if hook else {})}


def rule(name: str, *expressions: Any, table: str = "filter") -> dict[str, Any]:
    return {"rule": {"family": "inet", "table": table, "chain": name, "expr": list(expressions)}}


def meta(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def dport(right: Any, protocol: str = "tcp") -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": "dport"}}, "right": right}}


ACCEPT, DROP = {"accept": None}, {"drop": None}


def judged(
    *entries: dict[str, Any], port: int = 443, forwards: bool = True, datagrams: bool = False, fake_tcp: int = 0
) -> list[tuple[Level, str]]:
    found = judge_chains(
        chains_of(entries, OWN), "tun0", port, forwards=forwards, datagrams=datagrams, fake_tcp=fake_tcp
    )
    return [(each.level, f"{each.text}. {each.cure}") for each in found]


def test_a_firewall_that_drops_nothing_is_well() -> None:
    assert [level for level, _ in judged(chain("in", "input"), rule("in", dport(22), ACCEPT))] == [Level.OK]


@pytest.mark.parametrize("verdict", ["drop", "reject"])
@pytest.mark.parametrize("match", [meta("iifname", "tun0"), meta("oifname", {"set": ["eth0", "tun0"]})])
def test_a_rule_that_drops_what_the_tunnel_carries_is_a_problem(match: dict[str, Any], verdict: str) -> None:
    ((level, text),) = judged(chain("in", "input"), rule("in", match, {verdict: None}))
    assert level is Level.PROBLEM and "a rule in inet filter in drops packets of tun0 (input)" in text


def test_a_rule_about_all_devices_but_ours_is_none_about_ours() -> None:
    assert [level for level, _ in judged(chain("in", "input"), rule("in", meta("iifname", "tun0", "!="), DROP))] == [
        Level.OK
    ]


def test_a_chain_that_drops_by_policy_has_to_name_the_port_and_the_device() -> None:
    found = judged(chain("in", "input", "drop"), chain("fwd", "forward", "drop"))
    assert [level for level, _ in found] == [Level.NOTE, Level.NOTE]
    assert "tcp dport 443 accept" in found[0][1] and "iifname tun0 accept" in found[1][1]
    named = (rule("in", dport({"set": [22, 443]}), ACCEPT), rule("fwd", meta("iifname", "tun0"), ACCEPT))
    assert [level for level, _ in judged(chain("in", "input", "drop"), chain("fwd", "forward", "drop"), *named)] == [
        Level.OK
    ]


@pytest.mark.parametrize(
    "accepted",
    [
        [(dport(443, "udp"),)],
        [(dport(443), ACCEPT), (dport({"set": [53, 443]}, "udp"),)],
        [(meta("l4proto", {"set": ["tcp", "udp"]}), dport(443, "th"))],
        [(meta("l4proto", "udp"),), (dport(443, "th"),)],
    ],
)
def test_where_blocks_come_in_datagrams_a_rule_for_their_port_is_enough_if_it_is_not_for_tcp_alone(
    accepted: list[tuple[dict[str, Any], ...]],
) -> None:
    entries = [chain("in", "input", "drop"), *(rule("in", *each, ACCEPT) for each in accepted)]
    found = judged(*entries, datagrams=True)
    assert not [text for _, text in found if "udp dport" in text]


@pytest.mark.parametrize(
    "accepted", [(dport(443),), (meta("l4proto", "tcp"), dport(443, "th")), (meta("l4proto", 6), dport(443, "th"))]
)
def test_a_rule_for_tcp_alone_lets_no_datagram_in(accepted: tuple[dict[str, Any], ...]) -> None:
    entries = chain("in", "input", "drop"), rule("in", *accepted, ACCEPT)
    ((level, text),) = judged(*entries, datagrams=True)
    assert level is Level.NOTE and text.endswith("nft insert rule inet filter in udp dport 443 accept.")
    assert [level for level, _ in judged(*entries)] == [Level.OK]
    assert [level for level, _ in judged(*entries, datagrams=True, port=0)] == [Level.OK]


def test_the_port_of_fake_tcp_has_to_be_let_in_as_well() -> None:
    entries = chain("in", "input", "drop"), rule("in", dport(443), ACCEPT)
    ((level, text),) = judged(*entries, fake_tcp=444)
    assert level is Level.NOTE and text.endswith("nft insert rule inet filter in tcp dport 444 accept.")
    assert [level for level, _ in judged(*entries, rule("in", dport(444), ACCEPT), fake_tcp=444)] == [Level.OK]


def test_a_client_and_a_server_that_forwards_nothing_need_no_such_rules() -> None:
    entries = chain("in", "input", "drop"), chain("fwd", "forward", "drop")
    assert [level for level, _ in judged(*entries, port=0, forwards=False)] == [Level.OK]


def test_a_rule_that_accepts_everything_names_everything() -> None:
    assert [level for level, _ in judged(chain("in", "input", "drop"), rule("in", ACCEPT))] == [Level.OK]


def test_chains_without_a_hook_and_our_own_table_are_passed_over() -> None:
    entries = chain("helper", None), chain("clamp", "forward", "drop", OWN), rule("gone", DROP), {"metainfo": {}}
    assert chains_of(entries, OWN) == []


@pytest.mark.parametrize(
    ("wanted", "is_there", "levels"),
    [(True, True, [Level.OK]), (True, False, [Level.PROBLEM]), (False, False, []), (False, True, [])],
)
def test_our_own_table_is_missed_where_it_should_be(wanted: bool, is_there: bool, levels: list[Level]) -> None:
    assert [each.level for each in judge_own_table(OWN, wanted, is_there, "tun0")] == levels


def test_expressions_of_any_kind_are_read() -> None:
    odd = [{"counter": {"packets": 0}}, {"match": {"op": "in", "left": "x", "right": [1]}}, "masquerade", ACCEPT]
    assert chains_of([chain("in", "input"), rule("in", *odd)], OWN) == [
        Chain("inet filter in", "input", False, frozenset(), frozenset())
    ]


def test_a_table_with_the_rules_of_peers_has_to_be_there_if_there_are_any() -> None:
    table = f"{OWN}/reach"
    assert judge_reach_table(table, wanted=False, is_there=False) == []
    for is_there, level in ((True, Level.OK), (False, Level.PROBLEM)):
        assert [each.level for each in judge_reach_table(table, wanted=True, is_there=is_there)] == [level]


def test_chains_of_every_table_of_ours_are_ours() -> None:
    entries = chain("forward", "forward", table=f"{OWN}/reach"), chain("forward", "forward", table=f"{OWN}-2")
    assert [each.where for each in chains_of(entries, OWN)] == [f"inet {OWN}-2 forward"]


@pytest.mark.parametrize(
    ("wanted", "is_there", "levels"),
    [(False, False, []), (True, True, [Level.OK]), (True, False, [Level.PROBLEM])],
)
def test_the_table_of_nat_is_missed_where_it_is_wanted(wanted: bool, is_there: bool, levels: list[Level]) -> None:
    assert [each.level for each in judge_nat_table("tunnel-town/nat", wanted, is_there)] == levels


def test_all_tables_of_an_instance_are_its_own() -> None:
    assert chains_of([chain("way", "output", "drop", table=f"{OWN}/nat")], OWN) == []


def test_a_kill_switch_that_is_shut_while_its_instance_does_not_run_is_a_problem_with_its_cure() -> None:
    assert guarded_instance("tunnel-town/guard") == "town" and guarded_instance("tunnel-town/nat") == ""
    (found,) = judge_left_shut(["town", "village"], ["village"])
    assert found.level is Level.PROBLEM and "tunnel-supervisor down town" in found.cure


@pytest.mark.parametrize(
    ("on", "shut", "is_there", "levels"),
    [(False, False, False, []), (True, True, True, [Level.OK]), (True, True, False, [Level.PROBLEM])]
    + [(True, False, False, [Level.NOTE])],
)
def test_the_kill_switch_of_a_full_tunnel_is_missed(on: bool, shut: bool, is_there: bool, levels: list[Level]) -> None:
    found = judge_kill_switch("tunnel-town/guard", {"on": on, "kill_switch": shut, "dns": []}, is_there)
    assert [each.level for each in found] == levels


def test_an_instance_of_an_older_version_has_no_full_tunnel() -> None:
    assert judge_kill_switch("tunnel-town/guard", None, False) == []
