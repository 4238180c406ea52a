"""The bypass: its rules, their order, and when there is to be one."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.bypass import PRIORITY_BASE, Action, Rule, compare, fences, is_needed, numbers, rules
from pipeline.policy.kernel_entries import MAIN_TABLE

OWN = numbers("town")
UID, MARK = 1_879_048_200, OWN.table
MAIN_PRIORITY = 32766  # of the kernel's own rule
SERVER = ip_address("198.18.0.1")


def walk(present: list[Rule], uid: int, mark: int) -> list[int]:
    """The tables that the kernel asks for packets of a user with a mark, in its order."""
    found, at = [], 0
    for rule in sorted(present, key=lambda rule: rule.priority):
        fits = rule.uid in (None, uid) and rule.mark in (0, mark)
        if rule.priority < at or not fits:
            continue
        if rule.action is Action.GOTO and any(each.priority == rule.target for each in present):
            at = rule.target
        elif rule.action is Action.LOOKUP:
            found.append(rule.table)
    return found


def test_packets_of_the_workers_pass_by_and_all_others_go_by_the_lan_or_into_the_tunnel() -> None:
    made = list(rules(OWN, UID))
    assert walk(made, UID, 0) == walk(made, 0, MARK) == []
    assert walk(made, 0, 0) == walk(made, UID + 1, MARK + 1) == [MAIN_TABLE, OWN.table]
    (near,) = (rule for rule in made if rule.table == MAIN_TABLE)
    assert near.suppress == 0


@pytest.mark.parametrize("before", [[], list(rules(OWN, UID + 1))])
def test_at_no_moment_of_a_change_packets_of_the_workers_are_led_into_the_tunnel(before: list[Rule]) -> None:
    present = list(before)
    changes = compare(rules(OWN, UID), present, OWN)
    for rule in changes.add:
        present.append(rule)
        assert OWN.table not in walk(present, UID, 0) or before
    assert walk(present, UID, 0) == []
    for rule in changes.remove:
        present.remove(rule)
        assert walk(present, UID, 0) == []
    assert sorted(present) == sorted(rules(OWN, UID))


def test_the_end_takes_the_way_into_the_tunnel_first() -> None:
    present = list(rules(OWN, UID))
    for rule in compare((), present, OWN).remove:
        present.remove(rule)
        assert OWN.table not in walk(present, UID, 0)
    assert present == []


def test_the_rules_of_other_instances_stay() -> None:
    others = list(rules(numbers("other"), UID))
    assert compare(rules(OWN, UID), others, OWN).remove == []


@given(st.text(min_size=1, max_size=32))
def test_the_rules_of_any_instance_come_before_the_main_table(name: str) -> None:
    found = numbers(name)
    assert found.priorities[0] >= PRIORITY_BASE and found.priorities[-1] < MAIN_PRIORITY
    assert found.table == numbers(name).table < 1 << 32 and {each.table for each in fences(4, found)} == {found.table}


@pytest.mark.parametrize(
    ("route", "needed"),
    [("0.0.0.0/0", True), ("128.0.0.0/1", True), ("198.18.0.0/15", True), ("198.18.0.1/32", True), ("::/0", True)]
    + [("10.0.0.0/8", False), ("203.0.113.0/24", False), ("fd00::/8", False)],
)
def test_routes_to_the_server_or_to_much_of_the_internet_need_a_bypass(route: str, needed: bool) -> None:
    assert is_needed([ip_network(route)], [SERVER]) is needed
