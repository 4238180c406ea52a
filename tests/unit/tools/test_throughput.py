"""The results and tables of bench, from made-up measurements."""

from __future__ import annotations

import msgspec
import pytest

from tools.bench.kills import Kill, Kills, gaps_by_kind, longest_silence_ms
from tools.bench.machine import Machine
from tools.bench.measure import medians
from tools.bench.throughput_report import BenchResult, PingValues, Values, table
from tools.load.generators import Sample
from tools.load.quantiles import quantile

MS = 1_000_000


def arrivals(*milliseconds: int) -> list[Sample]:
    return [Sample(time_ns=when * MS, bytes=when) for when in milliseconds]


@pytest.mark.parametrize(
    ("samples", "begin", "end", "gap"),
    [
        (arrivals(0, 5, 10, 130, 135), 12, 140, 120.0),
        (arrivals(0, 5, 10, 130, 135), 0, 140, 120.0),
        (arrivals(0, 100, 105, 110), 102, 112, 5.0),
        (arrivals(0, 5, 10), 12, 500, 490.0),
        (arrivals(100, 105), 50, 105, 5.0),
        ([], 0, 70, 0.0),
    ],
    ids=[
        "touches the beginning",
        "inside",
        "before does not count",
        "silent at the end",
        "nothing before",
        "no sample",
    ],
)
def test_the_gap_is_the_longest_silence_that_touches_the_time_after_the_kill(
    samples: list[Sample], begin: int, end: int, gap: float
) -> None:
    assert longest_silence_ms(samples, begin * MS, end * MS) == gap


def test_kills_are_summed_up_by_kind() -> None:
    each = [Kill(end="server", worker="tun-0", kind="tun", gap_ms=gap, survived=gap < 400) for gap in (30, 50, 500)]
    each.append(Kill(end="client", worker="tcp-0", kind="tcp", gap_ms=90, survived=True))
    gaps = gaps_by_kind(each)
    assert (gaps["tun"].kills, gaps["tun"].survived) == (3, 2)
    assert (gaps["tun"].p50_ms, gaps["tun"].max_ms) == (50, 500)
    assert gaps["tcp"].survived == 1


def test_quantiles_and_medians() -> None:
    assert [quantile([3, 1, 2, 4], share) for share in (0, 0.5, 0.99, 1)] == [1, 3, 4, 4]
    assert medians([{"a": 1.0, "b": 9.0}, {"a": 3.0, "b": 5.0}, {"a": 2.0, "b": 7.0}]) == {"a": 2.0, "b": 7.0}


def result() -> BenchResult:
    both = Values(bare=20.0, tunnel=10.0, ratio=0.5, bare_rounds=[20.0], tunnel_rounds=[10.0])
    ping = PingValues(bare_p50_ms=0.04, bare_p99_ms=0.1, tunnel_p50_ms=0.34, tunnel_p99_ms=0.9, sent=300, lost=1)
    each = [Kill(end="server", worker="tun-0", kind="tun", gap_ms=66.0, survived=True)]
    return BenchResult(
        machine=Machine(cores=2, cpu="Some CPU", kernel="6.18", python="3.11.7"),
        seconds=3,
        rounds=3,
        settings=["lanes=2"],
        tcp_gbit={"1": both, "4": both},
        udp_packets=both,
        ping_idle=ping,
        cpu_seconds_per_gb={"server tun-0": 0.5},
        machine_cpu_seconds_per_gb=both,
        private_bytes={"server": {"tun-0": 9_000_000}},
        shared_bytes={"server": 8_700_000},
        kills=Kills(quiet_gap_ms=8.0, by_kind=gaps_by_kind(each), each=each),
    )


def test_the_table_shows_bare_tunnel_and_ratio_side_by_side() -> None:
    lines = [line.split() for line in table(result()).splitlines()]
    assert ["TCP,", "1", "stream,", "Gbit/s", "20.00", "10.00", "0.50"] in lines
    assert ["TCP,", "4", "streams,", "Gbit/s", "20.00", "10.00", "0.50"] in lines
    assert ["ping", "idle,", "p50,", "ms", "0.040", "0.340", "+0.300"] in lines
    assert ["1", "of", "300", "echoes", "through", "the", "tunnel", "never", "came", "back"] in lines
    assert ["server", "tun-0", "0.50", "9.0"] in lines
    assert ["server,", "in", "all", "9.0", "shared", "memory", "8.7", "MB"] in lines
    assert ["tun", "66", "66", "66", "1", "1"] in lines
    assert "LEFT" not in table(result())


def test_what_was_not_measured_is_not_in_the_table() -> None:
    machine = Machine(cores=2, cpu="Some CPU", kernel="6.18", python="3.11.7")
    few = table(BenchResult(machine=machine, seconds=1, rounds=1, settings=[], left_behind=["/dev/shm/x"]))
    assert few.splitlines()[-1] == "LEFT BEHIND: /dev/shm/x"
    assert "bare" not in few


def test_the_json_carries_its_schema_version_and_comes_back_the_same() -> None:
    text = msgspec.json.encode(result())
    assert msgspec.json.decode(text)["schema_version"] == 1
    assert msgspec.json.decode(text, type=BenchResult) == result()
