"""Settings that instances borrow: what is noted, and what becomes of them at the end."""

from __future__ import annotations

from pipeline.policy.borrowed import Borrowed, Note, borrow, give_back

ETH, ALL, RA = "ipv4/conf/eth0/forwarding", "ipv4/conf/all/forwarding", "ipv6/conf/eth0/accept_ra"
SIX, SIX_OF_ETH = "ipv6/conf/all/forwarding", "ipv6/conf/eth0/forwarding"
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
    along = {SIX_OF_ETH: "2", ETH: "2"}
    found = borrow({SIX: "2"}, {SIX: "0", SIX_OF_ETH: "1"}, {}, [], along)
    assert found.notes == {SIX_OF_ETH: Note("1", "2"), SIX: Note("0", "2")}
    assert list(give_back(found.notes, {SIX: "2", SIX_OF_ETH: "2"}, []).items()) == [(SIX, "0"), (SIX_OF_ETH, "1")]


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


def test_forwarding_of_ipv6_that_others_have_switched_on_stays_on_and_the_machine_goes_on_hearing_its_router() -> None:
    notes = {RA: Note("1", "2"), SIX: Note("0", "2")}
    assert give_back(notes, {SIX: "2", RA: "2"}, []) == {SIX: "0", RA: "1"}
    assert give_back(notes, {SIX: "1", RA: "2"}, []) == {}
    assert give_back(notes, {SIX: "0", RA: "2"}, []) == {RA: "1"}


def test_while_another_instance_forwards_ipv6_the_machine_goes_on_hearing_its_router() -> None:
    notes = {RA: Note("1", "2"), SIX: Note("0", "2")}
    assert give_back(notes, {SIX: "2", RA: "2"}, [{SIX: Note("0", "2")}]) == {}


def test_a_second_instance_notes_what_the_kernel_has_changed_along_for_the_first() -> None:
    first = {SIX_OF_ETH: Note("1", "2"), SIX: Note("0", "2")}
    other = "ipv6/conf/eth1/forwarding"
    found = borrow({SIX: "2"}, {SIX: "2", SIX_OF_ETH: "2", other: "2"}, {}, [first], {SIX_OF_ETH: "2", other: "2"})
    assert found == Borrowed(first, {})
