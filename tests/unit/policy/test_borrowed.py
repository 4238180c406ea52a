"""Settings that instances borrow: what is noted, and what becomes of them at the end."""

from __future__ import annotations

from pipeline.policy.borrowed import Borrowed, Note, borrow, give_back

ETH, ALL, RA = "ipv4/conf/eth0/forwarding", "ipv4/conf/all/forwarding", "ipv6/conf/eth0/accept_ra"
OURS = {ETH: Note("0", "1")}


def test_a_setting_that_differs_is_noted_and_set() -> None:
    assert borrow({ETH: "1"}, {ETH: "0"}, {}, []) == Borrowed(OURS, {ETH: "1"})


def test_a_setting_that_is_as_wanted_is_nobodys_business() -> None:
    assert borrow({ETH: "1"}, {ETH: "1"}, {}, []) == Borrowed({}, {})


def test_a_setting_that_does_not_exist_is_left_out() -> None:
    assert borrow({ETH: "1"}, {}, {}, []) == Borrowed({}, {})


def test_a_second_instance_takes_over_the_note_of_the_first() -> None:
    assert borrow({ETH: "1"}, {ETH: "1"}, {}, [{RA: Note("1", "2")}, OURS]) == Borrowed(OURS, {})


def test_what_others_have_set_back_is_set_again_with_the_first_note() -> None:
    assert borrow({ETH: "1"}, {ETH: "0"}, OURS, []) == Borrowed(OURS, {ETH: "1"})


def test_what_the_kernel_changes_along_is_noted_as_it_is() -> None:
    found = borrow({"ipv6/conf/all/forwarding": "1"}, {"ipv6/conf/all/forwarding": "0", RA: "1"}, {}, [], [RA, ETH])
    assert found.notes == {RA: Note("1", "1"), "ipv6/conf/all/forwarding": Note("0", "1")}
    assert list(give_back(found.notes, {"ipv6/conf/all/forwarding": "1", RA: "1"}, [])) == [
        "ipv6/conf/all/forwarding",
        RA,
    ]


def test_the_end_sets_back_what_is_still_as_it_was_given() -> None:
    notes = {ETH: Note("0", "1"), RA: Note("1", "2")}
    assert give_back(notes, {ETH: "1", RA: "2"}, []) == {RA: "1", ETH: "0"}
    assert give_back(notes, {ETH: "0", RA: "0"}, []) == {}
    assert give_back(notes, {RA: "2"}, []) == {RA: "1"}


def test_the_last_of_several_instances_sets_back() -> None:
    assert give_back(OURS, {ETH: "1"}, [OURS]) == {}
    assert give_back(OURS, {ETH: "1"}, [{RA: Note("1", "2")}]) == {ETH: "0"}


def test_forwarding_that_others_have_switched_on_for_all_devices_stays_on() -> None:
    assert give_back({**OURS, RA: Note("1", "2")}, {ETH: "1", RA: "2", ALL: "1"}, []) == {RA: "1"}
    assert give_back(OURS, {ETH: "1", ALL: "0"}, []) == {ETH: "0"}
