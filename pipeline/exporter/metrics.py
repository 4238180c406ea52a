"""The table of metrics: each family once, with its meaning, its labels, and how its samples come from a snapshot.

    FAMILIES             all of them; docs/metrics.md is made from it
    Collector(moment)    for prometheus_client: the families of one moment

Names follow the conventions of Prometheus: base units (bytes, seconds), `_total` behind what only grows. Each counter
of `pipeline.counters` is a family, or a sample of a family that several counters share.
"""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from pipeline.counters import COUNTERS, Counter
from pipeline.exporter.reading import Snapshot, hindrance
from pipeline.observe.glance import Glance, SegmentTotals
from pipeline.policy.carrier_order import NAMES
from pipeline.wire import framing

REFUSALS = ("not_ours", "late", "full", "bad_frames", "bare_frames", "failed")
GAUGE, COUNTER, INFO = "gauge", "counter", "info"
SUFFIXES = {GAUGE: "", COUNTER: "_total", INFO: "_info"}


class Moment(NamedTuple):
    """All that samples are made of. `peers`: those with metrics of their own, of all `peers_known`."""

    snapshot: Snapshot
    glance: Glance
    segments: SegmentTotals
    peers: list[dict[str, Any]]
    peers_known: int


Sample = tuple[tuple[str, ...], float]
"""The values of the labels, and the value."""

Samples = Callable[[Moment], Iterable[Sample]]


class Family(NamedTuple):
    """`name`: without the suffix that its kind adds."""

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...]
    samples: Samples

    @property
    def shown_name(self) -> str:
        """As it stands in expressions."""
        return self.name + SUFFIXES[self.kind]


# -- samples of one instance


def _one(value: Callable[[Snapshot], float | None]) -> Samples:
    """One sample without labels, or none."""

    def samples(moment: Moment) -> Iterator[Sample]:
        found = value(moment.snapshot)
        if found is not None:
            yield (), float(found)

    return samples


def _build(moment: Moment) -> Iterator[Sample]:
    yield (str(moment.snapshot["version"]), platform.python_version()), 1


def _instance(moment: Moment) -> Iterator[Sample]:
    snapshot = moment.snapshot
    yield (snapshot["name"], snapshot["mode"], snapshot["tun_name"], snapshot["fec"]["mode"]), 1


def _server(key: str) -> Samples:
    return _one(lambda snapshot: (snapshot["server"] or {}).get(key))


def _part(part: str, key: str) -> Samples:
    """Of a part of the status that may be null."""
    return _one(lambda snapshot: (snapshot.get(part) or {}).get(key))


def _supervisor(key: str) -> Samples:
    return _one(lambda snapshot: snapshot["supervisor"][key])


def _fec(key: str) -> Samples:
    return _one(lambda snapshot: snapshot["fec"].get(key, 0))


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _connections(moment: Moment) -> Iterator[Sample]:
    for name, traffic_class in (("bulk", framing.BULK), ("light", framing.LIGHT)):
        yield (name,), moment.glance.established(traffic_class)


def _round_trip(which: int) -> Samples:
    def samples(moment: Moment) -> Iterator[Sample]:
        found = moment.glance.round_trips()[which]
        if not math.isnan(found):
            yield (), found

    return samples


# -- samples of each worker, ring and peer


def _of_each(rows: Callable[[Moment], Iterable[dict[str, Any]]], labels: tuple[str, ...]) -> Callable[..., Samples]:
    """A function that makes samples of one value of each row; the labels are fields of the row."""

    def samples_of(value: Callable[[dict[str, Any]], float | None]) -> Samples:
        def samples(moment: Moment) -> Iterator[Sample]:
            for row in rows(moment):
                found = value(row)
                if found is not None:
                    yield tuple(_text(row[label]) for label in labels), float(found)

        return samples

    return samples_of


_workers = _of_each(lambda moment: moment.snapshot["workers"], ("name", "kind", "lane"))
_rings = _of_each(lambda moment: moment.snapshot["rings"], ("name", "kind", "lane"))
_peers = _of_each(lambda moment: moment.peers, ("name",))
_uplinks = _of_each(lambda moment: (moment.snapshot["server"] or {}).get("uplinks", ()), ("interface", "role"))


def _by_class(key: str) -> Callable[[Moment], Iterator[Sample]]:
    """The bytes of each peer by class, under this key."""

    def samples(moment: Moment) -> Iterator[Sample]:
        for peer in moment.peers:
            for name, count in peer[key].items():
                yield (_text(peer["name"]), name), float(count)

    return samples


def _datagrams(value: Callable[[Mapping[str, Any], Mapping[str, Any]], float | None]) -> Samples:
    """Of each peer with which datagrams could be used: `value(peer, about them)`; None: there is no sample."""

    def samples(moment: Moment) -> Iterator[Sample]:
        for peer in moment.peers:
            if peer["datagrams"] and (found := value(peer, peer["datagrams"])) is not None:
                yield (_text(peer["name"]),), float(found)

    return samples


def _carrier(moment: Moment) -> Iterator[Sample]:
    for peer in moment.peers:
        if peer["datagrams"]:
            yield (_text(peer["name"]), peer["carrier"]), 1.0


def _datagram_state(moment: Moment) -> Iterator[Sample]:
    for peer in moment.peers:
        if peer["datagrams"]:
            yield (_text(peer["name"]), peer["datagrams"]["state"]), 1.0


def _ring_waiting(moment: Moment) -> Iterator[Sample]:
    for ring in moment.snapshot["rings"]:
        for stage in ring["stages"][1:]:
            for worker, depth in stage["depth"].items():
                yield (ring["name"], ring["kind"], str(ring["lane"]), worker), depth


def _text(value: object) -> str:
    """A label as UTF-8 has it: a client that proves nothing chooses its own name."""
    return str(value).encode("utf-8", "replace").decode()


# -- counters


class _Shared(NamedTuple):
    """A family that counters share: those whose names match. The groups of the pattern are its labels."""

    pattern: re.Pattern[str]
    name: str
    meaning: str
    labels: tuple[str, ...]


# fmt: off
_SHARED = (
    _Shared(re.compile(r"(\w+)\.dropped_(\w+)"), "tunnel_dropped",
            "packets, blocks, frames and runs that were dropped, by kind of worker and reason", ("kind", "reason")),
    _Shared(re.compile(r"tcp\.closed_(\w+)"), "tunnel_connections_closed",
            "connections that were closed before their client was admitted, or since it broke the protocol",
            ("reason",)),
    _Shared(re.compile(r"fec\.blocks_recovered_(\d)"), "tunnel_fec_blocks_recovered",
            "blocks that were recovered, by the number of data shards that were missing", ("missing",)),
    _Shared(re.compile(r"(\w+)\.rings_(\w+)_mended"), "tunnel_rings_mended",
            "rings whose cursors contradicted each other: slots were skipped", ("kind", "duty")),
)
# fmt: on

_Labelled = tuple[Counter, tuple[str, ...]]
"""A counter, and the labels that its sample has beside the worker."""


def _shared(counter: Counter) -> tuple[_Shared, tuple[str, ...]] | None:
    for each in _SHARED:
        if matched := each.pattern.fullmatch(counter.name):
            return each, matched.groups()
    return None


def place_of(counter: Counter) -> str:
    """Where a counter is found in /metrics: the name of its family, with the labels that tell it from others."""
    found = _shared(counter)
    if found is None:
        return f"{_family_name(counter)}_total"
    labels = ",".join(f'{name}="{value}"' for name, value in zip(found[0].labels, found[1], strict=True))
    return f"{found[0].name}_total{{{labels}}}"


def _family_name(counter: Counter) -> str:
    """Of a counter with a family of its own; a unit stands last."""
    kind, _, rest = counter.name.partition(".")
    if rest.startswith("bytes_"):
        rest = f"{rest.removeprefix('bytes_')}_bytes"
    return f"tunnel_{kind}_{rest}"


def _counted(counters: list[_Labelled]) -> Samples:
    def samples(moment: Moment) -> Iterator[Sample]:
        for worker in moment.snapshot["workers"]:
            for counter, labels in counters:
                if counter.name in worker["counters"]:
                    yield (worker["name"], *labels), worker["counters"][counter.name]

    return samples


def _counter_families() -> Iterator[Family]:
    shared: dict[str, list[_Labelled]] = {each.name: [] for each in _SHARED}
    for counter in COUNTERS:
        if found := _shared(counter):
            shared[found[0].name].append((counter, found[1]))
        else:
            yield Family(_family_name(counter), COUNTER, counter.meaning, ("worker",), _counted([(counter, ())]))
    for each in _SHARED:
        yield Family(each.name, COUNTER, each.meaning, ("worker", *each.labels), _counted(shared[each.name]))


def _refused(moment: Moment) -> Iterable[Sample]:
    about = moment.snapshot.get("websockets") or {}
    return [((reason,), about[reason]) for reason in REFUSALS if reason in about]


# -- the table

_WORKER, _RING, _PEER, _UPLINK = ("worker", "kind", "lane"), ("ring", "kind", "lane"), ("peer",), ("uplink", "role")

# fmt: off
OWN = (
    Family("tunnel_build", INFO, "versions of the program and of Python", ("version", "python"), _build),
    Family("tunnel_instance", INFO, "name, mode, device and FEC mode of the instance",
           ("name", "mode", "device", "fec"), _instance),
    Family("tunnel_running", GAUGE, "1 if the instance runs, 0 while it starts or stops", (),
           _one(lambda snapshot: snapshot["state"] == "running")),
    Family("tunnel_ready", GAUGE, "1 if packets can pass: every worker runs, and a client is connected", (),
           _one(lambda snapshot: not hindrance(snapshot))),
    Family("tunnel_uptime_seconds", GAUGE, "time since the start of the supervisor", (),
           _one(lambda snapshot: snapshot["uptime_seconds"])),
    Family("tunnel_supervisor_failures", COUNTER, "exceptions that the supervisor has survived, each a fault of the "
           "program", (), _one(lambda snapshot: snapshot["supervisor_failures"])),
    Family("tunnel_supervisor_heartbeat_age_seconds", GAUGE, "time since the loop of the supervisor last began", (),
           _one(lambda snapshot: _seconds(snapshot["supervisor"]["heartbeat_age_ms"]))),
    Family("tunnel_supervisor_cpu_seconds", COUNTER, "processor time of the supervisor", (),
           _supervisor("cpu_seconds")),
    Family("tunnel_supervisor_memory_bytes", GAUGE, "resident memory of the supervisor, shared memory included", (),
           _supervisor("rss_bytes")),
    Family("tunnel_notes", GAUGE, "notes in the status: things that are wrong or in doubt", (),
           _one(lambda snapshot: len(snapshot["notes"]))),
    Family("tunnel_entries_left_out", GAUGE, "addresses and routes that are wanted, and that the kernel does not have",
           (), _one(lambda snapshot: len(snapshot["left_out"]))),
    Family("tunnel_accounting_up", GAUGE, "1 if the account of bytes can be written, 0 while counts wait in memory", (),
           _one(lambda snapshot: not about["problem"] if (about := snapshot.get("accounting")) else None)),
    Family("tunnel_accounting_failures", COUNTER, "writes of the account that have failed", (),
           _part("accounting", "failures")),
    Family("tunnel_websockets_open", GAUGE, "open WebSockets at a server's bridge", (),
           _part("websockets", "open")),
    Family("tunnel_websockets_opened", COUNTER, "number of WebSockets that were opened at a server's bridge", (),
           _part("websockets", "opened")),
    Family("tunnel_websockets_refused", COUNTER, "requests and WebSockets that ended at a server's bridge, by reason: "
           "the keys of `websockets` in `status --json`", ("reason",), _refused),
    Family("tunnel_hooks_run", COUNTER, "commands of `on` that were run", (), _part("hooks", "run")),
    Family("tunnel_hooks_failed", COUNTER, "commands of `on` that have failed, or took too long", (),
           _part("hooks", "failed")),
    Family("tunnel_hooks_dropped", COUNTER, "events for which no command of `on` was run, since too many waited", (),
           _part("hooks", "dropped")),
    Family("tunnel_certificate_expiry_timestamp_seconds", GAUGE, "time at which the certificate of this end expires",
           (), _one(lambda snapshot: snapshot["certificate_expires"])),
    Family("tunnel_worker_up", GAUGE, "1 if the worker runs", _WORKER,
           _workers(lambda worker: worker["state"] == "running")),
    Family("tunnel_worker_stopped", GAUGE, "1 if the worker's process is stopped by a signal or a debugger", _WORKER,
           _workers(lambda worker: worker["process"] in ("stopped", "traced"))),
    Family("tunnel_worker_restarts", COUNTER, "restarts of the worker", _WORKER,
           _workers(lambda worker: worker["restarts"])),
    Family("tunnel_worker_heartbeat_age_seconds", GAUGE, "time since the loop of the worker last began, of the duty "
           "that is silent longest", _WORKER, _workers(lambda worker: _seconds(worker["heartbeat_age_ms"]))),
    Family("tunnel_worker_cpu_seconds", COUNTER, "processor time of the worker's present process", _WORKER,
           _workers(lambda worker: worker["cpu_seconds"])),
    Family("tunnel_worker_memory_bytes", GAUGE, "resident memory of the worker, shared memory included", _WORKER,
           _workers(lambda worker: worker["rss_bytes"])),
    Family("tunnel_ring_slots", GAUGE, "slots of a ring", _RING, _rings(lambda ring: ring["capacity"])),
    Family("tunnel_ring_waiting_slots", GAUGE, "slots of a ring that wait for a worker", (*_RING, "worker"),
           _ring_waiting),
    Family("tunnel_connections", GAUGE, "connections that carry packets", ("traffic_class",), _connections),
    Family("tunnel_round_trip_seconds", GAUGE, "median of the round trips of all connections, as the kernel measures "
           "them", (), _round_trip(0)),
    Family("tunnel_round_trip_worst_seconds", GAUGE, "longest round trip of all connections", (),
           _round_trip(1)),
    Family("tunnel_segments_sent", COUNTER, "TCP segments with data that the kernel has sent", (),
           lambda moment: [((), moment.segments.sent)]),
    Family("tunnel_segments_resent", COUNTER, "TCP segments that the kernel has sent again since they were lost", (),
           lambda moment: [((), moment.segments.resent)]),
    Family("tunnel_server_connections_wanted", GAUGE, "connections that a client keeps up", (),
           _server("connections_wanted")),
    Family("tunnel_server_failed_attempts", GAUGE, "attempts to reach the server that have failed since the trouble "
           "with it began", (), _server("failed_attempts")),
    Family("tunnel_uplink_connections", GAUGE, "connections of a client on the uplink", _UPLINK,
           _uplinks(lambda uplink: uplink["connections"])),
    Family("tunnel_uplink_connections_wanted", GAUGE, "connections that a client keeps up on the uplink", _UPLINK,
           _uplinks(lambda uplink: uplink["connections_wanted"])),
    Family("tunnel_uplink_carries", GAUGE, "1 if packets go on the uplink now", _UPLINK,
           _uplinks(lambda uplink: uplink["carries"])),
    Family("tunnel_uplink_round_trip_seconds", GAUGE, "round trip of the fastest connection on the uplink", _UPLINK,
           _uplinks(lambda uplink: _seconds(uplink["rtt_ms"] or None))),
    Family("tunnel_fec_data_shards", GAUGE, "data shards of a full block", (), _fec("data")),
    Family("tunnel_fec_parity_shards", GAUGE, "parity shards of a full block now, for the peer that needs most", (),
           _fec("parity")),
    Family("tunnel_fec_parity_shards_limit", GAUGE, "parity shards of a full block at most", (), _fec("parity_max")),
    Family("tunnel_peers_connected", GAUGE, "peers that are connected", (),
           _one(lambda snapshot: snapshot["peers_connected"])),
    Family("tunnel_peers_limit", GAUGE, "peers that can be connected at a time", (),
           _one(lambda snapshot: snapshot["peers_max"])),
    Family("tunnel_peers_left_out", GAUGE, "known peers without metrics of their own, beyond metrics_peers", (),
           lambda moment: [((), moment.peers_known - len(moment.peers))]),
    Family("tunnel_peer_connected", GAUGE, "1 if the peer is connected", _PEER,
           _peers(lambda peer: peer["state"] == "connected")),
    Family("tunnel_peer_connections", GAUGE, "connections of the peer", _PEER,
           _peers(lambda peer: peer["connections"])),
    Family("tunnel_peer_sent_bytes", COUNTER, "bytes sent to the peer in its present session", _PEER,
           _peers(lambda peer: peer["sent_bytes"])),
    Family("tunnel_peer_received_bytes", COUNTER, "bytes received from the peer in its present session", _PEER,
           _peers(lambda peer: peer["received_bytes"])),
    Family("tunnel_peer_dropped", COUNTER, "runs and blocks for the peer that were dropped in its present session",
           _PEER, _peers(lambda peer: peer["dropped"])),
    Family("tunnel_peer_class_bytes", COUNTER, "bytes of packets from TUN for the peer in its present session, by "
           "class: voice, normal_light, normal_bulk, bulk", (*_PEER, "class"), _by_class("class_bytes")),
    Family("tunnel_peer_received_class_bytes", COUNTER, "bytes of packets from the peer in its present session, by "
           "class: light, bulk", (*_PEER, "class"), _by_class("received_class_bytes")),
    Family("tunnel_peer_transit_class_bytes", COUNTER, "bytes of packets of other peers for the peer in its present "
           "session, by class: light, bulk", (*_PEER, "class"), _by_class("transit_class_bytes")),
    Family("tunnel_peer_round_trip_seconds", GAUGE, "round trip of the peer's fastest connection", _PEER,
           _peers(lambda peer: _seconds(peer["rtt_ms"]))),
    Family("tunnel_peer_segments_resent", GAUGE, "lost TCP segments sent again on the connections that the peer "
           "has now",
           _PEER, _peers(lambda peer: peer["resent_segments"])),
    Family("tunnel_peer_datagrams_open", GAUGE, "1 if blocks for the peer travel in datagrams, 0 if they do not; only "
           "where `carrier` is not tcp", _PEER, _datagrams(lambda peer, about: peer["carrier"] in NAMES)),
    Family("tunnel_peer_carrier", GAUGE, "1 for the carrier by which blocks for the peer go: udp, faketcp, tcp or "
           "none; only where `carrier` is not tcp", (*_PEER, "carrier"), _carrier),
    Family("tunnel_peer_datagram_state", GAUGE, "1 for the state of datagrams with the peer: off, probing, open, dark",
           (*_PEER, "state"), _datagram_state),
    Family("tunnel_peer_datagram_sent_bytes", COUNTER, "bytes of datagrams sent to the peer in its present session",
           _PEER, _datagrams(lambda peer, about: about["sent_bytes"])),
    Family("tunnel_peer_datagram_received_bytes", COUNTER, "bytes of datagrams received from the peer in its present "
           "session", _PEER, _datagrams(lambda peer, about: about["received_bytes"])),
    Family("tunnel_peer_datagram_segments_sent", COUNTER, "datagrams with rows of blocks sent to the peer in its "
           "present session", _PEER, _datagrams(lambda peer, about: about["sent_segments"])),
    Family("tunnel_peer_datagram_segments_lost", GAUGE, "how many of them were lost, as the peer reports: one that "
           "comes late is taken off again", _PEER, _datagrams(lambda peer, about: about["lost_segments"])),
    Family("tunnel_peer_datagram_blocks_recovered", COUNTER, "blocks of datagrams from the peer that were recovered "
           "with parity in its present session", _PEER, _datagrams(lambda peer, about: about["recovered_blocks"])),
    Family("tunnel_peer_datagram_rate_bytes", GAUGE, "pace of datagrams to the peer, a second",
           _PEER, _datagrams(lambda peer, about: about["rate_mbit"] * 125_000 or None)),
    Family("tunnel_peer_datagram_round_trip_seconds", GAUGE, "round trip of the peer's datagrams", _PEER,
           _datagrams(lambda peer, about: _seconds(about["rtt_ms"]))),
    Family("tunnel_peer_session_age_seconds", GAUGE, "age of the peer's session", _PEER,
           _peers(lambda peer: peer["session_seconds"])),
    Family("tunnel_peer_quota_bytes", GAUGE, "bytes that the peer may send and receive in a month, if it has a quota",
           _PEER, _peers(lambda peer: peer["quota_bytes"] or None)),
    Family("tunnel_peer_quota_used_bytes", GAUGE, "bytes of its quota that the peer has used in this month", _PEER,
           _peers(lambda peer: peer["quota_used_bytes"] if peer["quota_bytes"] else None)),
)
# fmt: on

FAMILIES = (*OWN, *_counter_families())


_EXPORTER = ProcessCollector(registry=None)
"""The families `process_...` about the exporter itself: those of every client library."""


class Collector:
    """The families of one moment."""

    def __init__(self, moment: Moment) -> None:
        self._moment = moment

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            yield _metric(family, dict(family.samples(self._moment)))  # equal labels would be one series twice
        yield from _EXPORTER.collect()


def _metric(family: Family, samples: dict[tuple[str, ...], float]) -> Metric:
    if family.kind == INFO:
        info = InfoMetricFamily(family.name, family.meaning)
        for values in samples:
            info.add_metric([], dict(zip(family.labels, values, strict=True)))
        return info
    kind = CounterMetricFamily if family.kind == COUNTER else GaugeMetricFamily
    metric = kind(family.name, family.meaning, labels=family.labels)
    for values, value in samples.items():
        metric.add_metric(values, value)
    return metric
