"""bench: its measuring functions over a bare link, and each measurement through a real tunnel, as short as possible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support import needs_iperf3
from tools.bench import measure, throughput
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError
from tools.lab.network import Lab
from tools.load.quantiles import quantile

pytestmark = [pytest.mark.tools, pytest.mark.alone]
SHORT_SECONDS = 0.2


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(link=LinkSpec(delay_ms=2, rate_mbit=100)) as made:
        yield made


@needs_iperf3
def test_throughput_is_that_of_the_link(lab: Lab) -> None:
    a, b = lab
    assert measure.tcp_gbit(a, b, b.address, 1) == pytest.approx(0.1 * 1448 / 1514, rel=0.15)
    assert measure.tcp_gbit(a, b, b.address, 1, streams=3) == pytest.approx(0.1 * 1448 / 1514, rel=0.25)


@needs_iperf3
def test_udp_counts_what_arrived_not_what_was_sent() -> None:
    with Lab(link=LinkSpec(rate_mbit=4)) as lab:
        a, b = lab
        assert measure.udp_packets(a, b, b.address, 1) == pytest.approx(4e6 / 8 / 242, rel=0.15)


@needs_iperf3
def test_a_ping_beside_a_stream_waits_in_the_same_queue(lab: Lab) -> None:
    a, b = lab
    idle = measure.ping_idle(a, b, b.address, 0.3).rtts_ms
    loaded = measure.ping_loaded(a, b, b.address, 0.5).rtts_ms
    assert 4 <= quantile(idle, 0.5) < 5
    assert quantile(loaded, 0.9) > quantile(idle, 0.9) + 0.2


@needs_iperf3
def test_a_measurement_that_cannot_be_made_says_why(lab: Lab) -> None:
    a, b = lab
    with pytest.raises(LabError, match=r"iperf3 to 10.99.0.1: "):
        measure.tcp_gbit(a, b, "10.99.0.1", 1)


def test_cpu_time_and_memory_are_those_of_the_process() -> None:
    before = measure.cpu_seconds(os.getpid())
    while measure.cpu_seconds(os.getpid()) < before + 0.05:
        pass
    assert measure.machine_cpu_seconds() > 0
    assert 1_000_000 < measure.private_bytes(os.getpid()) < 2_000_000_000


def test_shared_memory_is_what_the_instances_names_occupy() -> None:
    name = f"bench-test-{os.getpid()}"
    path = Path("/dev/shm") / f"before@{name}@after"
    try:
        path.write_bytes(bytes(64 * 1024))
        assert measure.shared_bytes(name) == 64 * 1024
    finally:
        path.unlink()


def test_without_iperf3_one_line_says_what_to_install(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tools.bench"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "bench: iperf3 is not installed; install it (on Debian: apt install iperf3)\n"


@pytest.mark.slow
@needs_iperf3
def test_every_measurement_of_bench_through_a_tunnel() -> None:
    options = throughput._parser().parse_args(
        ["--rounds", "1", "--streams", "2", "--kills", "2", "--kill-pause", "0.1"]
    )
    options.only = [name for name in throughput.MEASUREMENTS if name != "memory"]
    options.seconds = SHORT_SECONDS
    measured = throughput.run(options)
    assert "TCP, 2 streams, Gbit/s" in throughput.table(measured)
    result = msgspec.to_builtins(measured)
    assert set(result["tcp_gbit"]) == {"1", "2"}
    compared = [*result["tcp_gbit"].values(), result["udp_packets"], result["baseline_gbit"]]
    assert all(values["ratio"] > 0 for values in compared)
    assert result["ping_idle"]["lost"] == 0 and result["ping_loaded"]["sent"] > 0
    assert {"server supervisor", "server tun-0", "client tcp-0"} <= set(result["cpu_seconds_per_gb"])
    assert len(result["kills"]["each"]) == 2
    assert result["left_behind"] == []


def test_bench_as_a_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert throughput.main(["--only", "memory", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["schema_version"] == 1
    assert all(size > 0 for instance in result["private_bytes"].values() for size in instance.values())
    assert all(size > 0 for size in result["shared_bytes"].values())
    assert result["left_behind"] == []
