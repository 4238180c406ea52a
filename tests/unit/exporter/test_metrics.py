"""/metrics under the parsers of the library, in both formats, and by the rules of Prometheus for names."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from pipeline.counters import COUNTERS
from pipeline.exporter.metrics import FAMILIES, Collector, Moment, place_of
from pipeline.exporter.reading import Snapshot
from pipeline.observe.glance import SegmentTotals
from tests.harness.snapshots import Source, columns, connection, counters, datagrams, peer, snapshot, worker

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
FORMS = pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPENMETRICS, parse_openmetrics)])
NASTY = 'a "b" \\ c\nd {e="f"} \ud800 ü'

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (prometheus) is not installed")


def exposed(shown: Snapshot, accept: str = "", peers_max: int = 200) -> str:
    encode, _ = choose_encoder(accept)
    return encode(Collector(moment(shown, SegmentTotals(), peers_max))).decode()


def moment(shown: Snapshot, segments: SegmentTotals, peers_max: int) -> Moment:
    source = Source(lambda: shown)
    taken = source.glance()
    return Moment(source.outline(), taken, segments, source.peers(peers_max), source.peers_known)


def value(text: str, name: str, **labels: str) -> float | None:
    """Of the one sample with these labels, perhaps among others."""
    found = [
        sample.value
        for family in parse_text(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) <= 1
    return found[0] if found else None


def busy_hub() -> Snapshot:
    return snapshot(
        mode="server",
        server=None,
        peers=[
            peer("one", quota_bytes=50, quota_used_bytes=45),
            peer("two", state="away", rtt_ms=None, session_seconds=None),
            peer(NASTY),
        ],
        workers=[worker("tcp-0", counters=counters("tcp", bytes_sent=7, dropped_partial=3)), worker("tun-0")],
    )


@FORMS
@pytest.mark.parametrize("shown", [snapshot(), busy_hub(), snapshot(fec={"mode": "off"}, connections=[])])
def test_the_parsers_of_the_library_take_every_format_without_a_duplicate(
    shown: Snapshot, accept: str, parse: Any
) -> None:
    families = list(parse(exposed(shown, accept)))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert len([name for name in names if name.startswith("tunnel_")]) == len(FAMILIES)
    series = [(sample.name, *sorted(sample.labels.items())) for family in families for sample in family.samples]
    assert len(series) == len(set(series)) > 100
    assert {family.type for family in families} <= {"gauge", "counter", "info", "unknown"}
    for family in families:
        assert family.documentation
        assert {"job", "instance"}.isdisjoint(label for sample in family.samples for label in sample.labels)


@needs_promtool
@pytest.mark.parametrize("shown", [snapshot(), busy_hub()])
def test_promtool_has_nothing_to_say(shown: Snapshot) -> None:
    said = subprocess.run(["promtool", "check", "metrics"], input=exposed(shown), capture_output=True, text=True)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


def test_names_follow_the_conventions() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"tunnel(_[a-z0-9]+)+", family.name), family.name
        assert not re.search(r"_(total|info|gauge|counter|milliseconds|ms|kb|percent)(_|$)", family.name), family.name
        assert family.kind == "counter" or not family.shown_name.endswith("_total")
        assert family.meaning[0].islower() or family.meaning[0].isdigit() or family.meaning.startswith(("TCP", "IP"))
        if "bytes" in family.name:
            assert family.name.endswith("_bytes")
        if "seconds" in family.name:
            assert family.name.endswith("_seconds")
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("counter", COUNTERS, ids=lambda counter: counter.name)
def test_every_counter_is_there_for_each_worker_of_its_kind(counter: Any) -> None:
    kind, _, name = counter.name.partition(".")
    lanes = [worker(f"{kind}-{lane}", lane=lane, counters=counters(kind, **{name: 5 + lane})) for lane in range(2)]
    text = exposed(snapshot(workers=lanes))
    name, _, labels = place_of(counter).partition("{")
    wanted = dict(re.findall(r'(\w+)="(\w+)"', labels))
    assert [value(text, name, worker=f"{kind}-{lane}", **wanted) for lane in range(2)] == [5, 6]


def test_labels_that_peers_choose_are_escaped() -> None:
    names = [sample.labels["peer"] for family in parse_text(exposed(busy_hub())) for sample in family.samples
             if sample.name == "tunnel_peer_connected"]  # fmt: skip
    assert names == sorted(["one", "two", NASTY.replace("\ud800", "?")])


def test_of_many_peers_the_first_by_name_have_metrics_and_the_others_are_counted() -> None:
    shown = snapshot(peers=[peer(f"p{number:03}") for number in reversed(range(30))])
    text = exposed(shown, peers_max=7)
    assert value(text, "tunnel_peers_left_out") == 23
    assert len(re.findall(r"^tunnel_peer_connected{", text, re.MULTILINE)) == 7
    assert value(text, "tunnel_peer_connected", peer="p006") == 1
    assert "tunnel_peer_connected{" not in exposed(shown, peers_max=0)


def test_two_peers_of_one_name_are_one_series() -> None:
    assert value(exposed(snapshot(peers=[peer("one"), peer("one")])), "tunnel_peer_connected", peer="one") == 1


def test_what_is_unknown_has_no_sample_and_what_is_zero_has_one() -> None:
    text = exposed(snapshot(connections=[], peers=[peer("one", rtt_ms=None)]))
    assert value(text, "tunnel_round_trip_seconds") is None
    assert value(text, "tunnel_peer_round_trip_seconds", peer="one") is None
    assert value(text, "tunnel_connections", traffic_class="bulk") == 0


def test_a_quota_has_samples_where_there_is_one() -> None:
    text = exposed(busy_hub())
    names = "tunnel_peer_quota_used_bytes", "tunnel_peer_quota_bytes"
    assert [value(text, name, peer="one") for name in names] == [45, 50]
    assert [value(text, name, peer="two") for name in names] == [None, None]


def test_seconds_and_bytes_are_the_units() -> None:
    text = exposed(snapshot(connections=[connection(1, rtt_ms=20.0), connection(2, rtt_ms=40.0)]))
    assert value(text, "tunnel_round_trip_seconds") == pytest.approx(0.03)
    assert value(text, "tunnel_round_trip_worst_seconds") == pytest.approx(0.04)
    assert value(text, "tunnel_worker_heartbeat_age_seconds", worker="tun-0") == pytest.approx(0.0125)
    assert value(text, "tunnel_worker_memory_bytes", worker="tun-0") == 30_000_000


def test_a_worker_that_is_stopped_and_one_that_died_are_told() -> None:
    workers = [worker("tun-0", process="stopped"), worker("tcp-0", state="dead", process="", restarts=3)]
    text = exposed(snapshot(workers=workers))
    assert value(text, "tunnel_worker_stopped", worker="tun-0") == 1
    assert value(text, "tunnel_worker_up", worker="tcp-0") == 0
    assert value(text, "tunnel_worker_restarts_total", worker="tcp-0") == 3
    assert value(text, "tunnel_ready") == 0


def test_segments_grow_with_connections_that_come_and_go() -> None:
    totals = SegmentTotals()
    for connections in (
        [connection(1, sent_segments=100, resent_segments=5)],
        [connection(1, sent_segments=150, resent_segments=8)],
        [connection(2, sent_segments=10, resent_segments=1)],
        [],
        [connection(2, sent_segments=30, resent_segments=1)],
    ):
        totals.add(columns(connections))
    assert (totals.sent, totals.resent) == (50 + 10 + 30, 3 + 1 + 1)
    assert b"tunnel_segments_resent_total 5.0" in generate_latest(Collector(moment(snapshot(), totals, 0)))


def test_the_bytes_for_a_peer_are_told_by_class() -> None:
    text = exposed(snapshot(peers=[peer("one")]))
    assert value(text, "tunnel_peer_class_bytes_total", **{"peer": "one", "class": "normal_bulk"}) == 4000
    assert value(text, "tunnel_peer_class_bytes_total", **{"peer": "one", "class": "voice"}) == 0


def test_the_bytes_from_a_peer_and_of_others_for_it_are_told_by_class() -> None:
    text = exposed(snapshot(peers=[peer("one")]))
    for family, of_class, count in (("received", "bulk", 6000), ("received", "light", 0), ("transit", "light", 70)):
        labels = {"peer": "one", "class": of_class}
        assert value(text, f"tunnel_peer_{family}_class_bytes_total", **labels) == count


def test_each_of_several_uplinks_has_its_series_and_a_client_without_has_none() -> None:
    assert value(exposed(snapshot()), "tunnel_uplink_connections") is None
    uplink = {"interface": "eth0", "role": "main", "connections": 5, "connections_wanted": 5, "rtt_ms": 20.0}
    dead = {"interface": "wwan0", "role": "backup", "connections": 0, "connections_wanted": 3, "rtt_ms": 0.0}
    uplink, dead = uplink | {"carries": True}, dead | {"carries": False}
    text = exposed(snapshot(server=snapshot()["server"] | {"uplinks": [uplink, dead]}))
    assert value(text, "tunnel_uplink_connections", uplink="eth0", role="main") == 5
    assert value(text, "tunnel_uplink_carries", uplink="eth0", role="main") == 1
    assert value(text, "tunnel_uplink_carries", uplink="wwan0", role="backup") == 0
    assert value(text, "tunnel_uplink_round_trip_seconds", uplink="eth0") == 0.02
    assert value(text, "tunnel_uplink_connections_wanted", uplink="wwan0", role="backup") == 3
    assert value(text, "tunnel_uplink_round_trip_seconds", uplink="wwan0") is None


def test_datagrams_of_a_peer_are_there_where_there_may_be_some() -> None:
    about = datagrams()
    peers = [
        peer("one", carrier="udp", datagrams=about),
        peer("two", datagrams=datagrams(state="dark", rate_mbit=0.0, rtt_ms=None)),
        peer("three"),
    ]
    text = exposed(snapshot(mode="server", server=None, peers=peers))
    assert value(text, "tunnel_peer_datagrams_open", peer="one") == 1
    assert value(text, "tunnel_peer_datagrams_open", peer="two") == 0
    assert value(text, "tunnel_peer_datagram_state", peer="two", state="dark") == 1
    assert value(text, "tunnel_peer_datagram_sent_bytes_total", peer="one") == about["sent_bytes"]
    assert value(text, "tunnel_peer_datagram_received_bytes_total", peer="one") == about["received_bytes"]
    assert value(text, "tunnel_peer_datagram_segments_lost", peer="one") == about["lost_segments"]
    assert value(text, "tunnel_peer_datagram_blocks_recovered_total", peer="one") == about["recovered_blocks"]
    assert value(text, "tunnel_peer_datagram_rate_bytes", peer="one") == 6_000_000
    assert value(text, "tunnel_peer_datagram_round_trip_seconds", peer="two") is None
    assert not [line for line in text.splitlines() if "datagram" in line and 'peer="three"' in line]
