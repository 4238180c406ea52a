"""bench: its measuring functions against a bare link, and the whole of it over a real tunnel, short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.bench import measure
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError
from tools.lab.network import Lab
from tools.load.quantiles import quantile

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]
needs_iperf3 = pytest.mark.skipif(
    not any((Path(place) / "iperf3").exists() for place in os.get_exec_path()), reason="iperf3 is not installed"
)


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


@needs_iperf3
def test_the_whole_bench_over_a_real_tunnel_leaves_nothing() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "tools.bench",
            "--seconds",
            "1",
            "--rounds",
            "1",
            "--streams",
            "2",
            "--json",
            "--kills",
            "2",
            "--kill-pause",
            "0.1",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["schema_version"] == 1
    assert set(result["tcp_gbit"]) == {"1", "2"}
    assert all(values["ratio"] > 0 for values in (*result["tcp_gbit"].values(), result["udp_packets"]))
    assert result["ping_idle"]["lost"] == 0
    assert {"server supervisor", "server tun-0", "client tcp-0"} <= set(result["cpu_seconds_per_gb"])
    assert all(size > 0 for end in result["private_bytes"].values() for size in end.values())
    assert all(size > 0 for size in result["shared_bytes"].values())
    assert len(result["kills"]["each"]) == 2
    assert result["left_behind"] == []
