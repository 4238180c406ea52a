"""What `status` and `peers` say of the carrier of blocks."""

from __future__ import annotations

from typing import Any

from pipeline.cli import datagram_text
from pipeline.cli.peer_table import render
from pipeline.cli.status_text import brief, verbose
from tests.harness.snapshots import datagrams, peer, snapshot


def by_udp(name: str = "one", **others: Any) -> dict[str, Any]:
    return peer(name, carrier="udp", datagrams=datagrams(**others))


def by_tcp(
    name: str = "two", state: str = "dark", reason: str = "3 probes in a row without an answer"
) -> dict[str, Any]:
    return peer(name, carrier="tcp", datagrams=datagrams(state=state, reason=reason))


def test_nothing_is_said_where_the_carrier_is_tcp_and_of_an_older_instance() -> None:
    old = peer("one")
    del old["carrier"], old["datagrams"]
    for each in (peer("one"), old):
        shown = snapshot(mode="server", peers=[each])
        for text in (brief(shown), verbose(shown), render([each])):
            assert "carrier" not in text and "datagram" not in text


def test_a_client_says_where_its_datagrams_go_and_what_they_carry() -> None:
    text = brief(snapshot(mode="client", peers=[by_udp("vpn.example.org")]))
    assert (
        "datagrams since 3 min to 192.0.2.7:443: 41.0 ms, 0.25 % lost, rows 10 + 2, at 48 Mbit/s, of 1452 bytes\n"
        in text
    )


def test_a_client_whose_blocks_go_behind_tcp_headers_says_so_and_why() -> None:
    behind = datagrams(reason="UDP: 3 probes in a row without an answer", endpoint="192.0.2.7:444")
    (line,) = datagram_text.brief([peer("a", carrier="faketcp", datagrams=behind)])
    assert line.startswith(
        "datagrams by fake TCP since 3 min to 192.0.2.7:444 (UDP: 3 probes in a row without an answer): 41.0 ms"
    )
    assert datagram_text.note(peer("a", carrier="faketcp", datagrams=behind)) == ""


def test_a_client_whose_blocks_go_by_tcp_says_why() -> None:
    (line,) = datagram_text.brief([by_tcp()])
    assert line == "blocks go by TCP, no datagram passes since 3 min: 3 probes in a row without an answer"
    (line,) = datagram_text.brief([by_tcp(state="probing", reason="no probe has been answered yet")])
    assert line == "blocks go by TCP, no path for datagrams yet since 3 min: no probe has been answered yet"
    off = peer("a", carrier="none", datagrams=datagrams(state="off", reason="it has a rate", state_seconds=None))
    assert datagram_text.brief([off]) == [
        "blocks go nowhere, since `carrier` names datagrams alone, no datagrams: it has a rate",
    ]


def test_a_server_counts_the_peers_that_use_datagrams_and_names_others_with_the_reason() -> None:
    peers = [by_udp(), *(by_tcp(f"peer{number}\x1b") for number in range(5))]
    (line,) = datagram_text.brief(peers)
    assert line.startswith("datagrams: 1 of 6 peers (peer0\\x1b: blocks go by TCP, no datagram passes since 3 min: 3 ")
    assert line.count("peer0") == line.count("peer2") == 1 and "peer3" not in line
    assert line.endswith("; and 2 more)")
    assert datagram_text.brief([by_udp("a"), by_udp("b")]) == ["datagrams: 2 of 2 peers"]


def test_verbose_has_a_row_for_each_peer() -> None:
    text = verbose(snapshot(mode="server", peers=[by_udp(), by_tcp()]))
    head, first, second, *_ = text[text.index("\npeer  carrier") + 1 :].splitlines()
    assert head.split() == ["peer", "carrier", "since", "to", "rtt", "lost", "rows", "pace", "segments", "why"]
    assert first.split()[:2] == ["one", "udp"] and "192.0.2.7:443" in first and first.endswith("probes are answered")
    assert second.split()[:2] == ["two", "tcp"] and second.endswith("3 probes in a row without an answer")
    assert "41.0 ms" not in second


def test_the_table_of_peers_has_a_column_for_the_carrier_and_a_note_for_who_has_no_datagrams() -> None:
    head, *rows = render([by_udp(), by_tcp()]).splitlines()
    assert head.split()[-1] == "carrier"
    assert [row.split()[-1] for row in rows[:2]] == ["udp", "tcp"]
    assert rows[2:] == ["two: blocks go by TCP, no datagram passes since 3 min: 3 probes in a row without an answer"]


def test_the_sentence_has_the_share_of_datagrams_that_were_lost() -> None:
    text = brief(snapshot(mode="client", peers=[by_udp(sent_segments=10_000, lost_segments=41)]))
    assert "0.41 % of datagrams lost" in text.splitlines()[0]
    text = brief(snapshot(mode="client", peers=[by_udp(sent_segments=10, lost_segments=1)]))
    assert "1 datagram lost" in text.splitlines()[0]
    text = brief(snapshot(mode="client", peers=[by_udp(lost_segments=0)]))
    assert "lost" not in text.splitlines()[0]
