"""The labels of peers: one rule, whatever the order of the peers, and no answer that leads to another peer."""

from __future__ import annotations

import pytest

from pipeline.policy.peer_names import PeerNames, assign, hosts_text, label_of

HERE, ONE, TWO = ["10.0.0.1"], ["10.0.0.2", "fd00::2"], ["10.0.0.3"]


def names(peers: dict[str, list[str]], own: str = "hub") -> PeerNames:
    found = assign(own, HERE, peers)
    assert assign(own, HERE, dict(reversed(peers.items()))) == found, "the order of the peers says nothing"
    return found


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("laptop", "laptop"),
        ("Anna_PC", "anna-pc"),
        ("web.office", "web-office"),
        ("-x-", "x"),
        ("xn--bcher-kva", "xn--bcher-kva"),
        ("9", "9"),
        ("__", ""),
        ("b\xfccher", "b-cher"),
        ("\u0130", "i"),
        ("a" * 62 + "._b", "a" * 62),
        ("a" * 200, "a" * 63),
    ],
)
def test_a_label_has_what_dns_has(name: str, label: str) -> None:
    assert label_of(name) == label


def test_each_peer_and_the_hub_have_their_names() -> None:
    assert names({"laptop": ONE, "Phone": TWO}) == PeerNames({"hub": HERE, "phone": TWO, "laptop": ONE}, [])


def test_a_label_belongs_to_the_peer_that_is_called_so() -> None:
    found = names({"Web": ONE, "web": TWO, "WEB": ONE})
    assert found.addresses["web"] == TWO
    assert [note.split('"')[1] for note in found.notes] == ["WEB", "Web"]
    assert all('"web" is that of peer "web"' in note for note in found.notes)


def test_of_several_peers_that_come_to_one_label_none_has_it() -> None:
    found = names({"a_b": ONE, "a.b": TWO})
    assert found.addresses == {"hub": HERE}
    assert len(found.notes) == 2 and all("several peers" in note for note in found.notes)


def test_no_peer_has_the_name_of_the_hub() -> None:
    found = names({"vpn.example": ONE, "vpn-example": TWO}, own="vpn_example")
    assert found.addresses == {"vpn-example": HERE}
    assert len(found.notes) == 2 and all("this server" in note for note in found.notes)


def test_a_peer_of_whose_name_nothing_is_left_is_told_of() -> None:
    assert names({"__": ONE}).notes == ['peer "__" has no name in DNS: its name has neither letter nor digit']


def test_a_hub_without_a_label_leaves_its_peers_theirs() -> None:
    assert names({"laptop": ONE}, own="_").addresses == {"laptop": ONE}


def test_the_hosts_file_has_a_line_for_each_address_and_says_whose_it_is() -> None:
    first, *lines = hosts_text("hub", "tunnel", names({"laptop": ONE}).addresses).splitlines()
    assert first.startswith("# ") and "instance hub" in first
    assert lines == ["10.0.0.1\thub.tunnel", "10.0.0.2\tlaptop.tunnel", "fd00::2\tlaptop.tunnel"]
