"""Many light clients, and strangers, at a real server: the tools that make them, and bench hub, with small numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.harness.handmade_clients import PEERS, Door, hub
from tests.netns.harness.instance import needs_root
from tests.support import eventually
from tools.bench.hub_testbed import Bed, open_bed
from tools.lab.network import Lab
from tools.load import flows

pytestmark = needs_root
needs_iperf3 = pytest.mark.skipif(
    not any((Path(place) / "iperf3").exists() for place in os.get_exec_path()), reason="iperf3 is not installed"
)
CROWD = [sys.executable, "-P", "-m", "tools.load.client_swarm"]


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with open_bed(tmp_path_factory.mktemp("bed")) as made:
        yield made
    assert made.left_behind == []


def test_a_crowd_by_invitation_lines_connects_and_answers_pings(tmp_path: Path) -> None:
    with Lab() as lab, hub(lab, tmp_path) as door:
        lines = "\n".join(_line(door, f"guest-{number}") for number in range(3))
        (tmp_path / "lines").write_text(lines)
        crowd = door.node.popen(
            [*CROWD, "--invitations", tmp_path / "lines", "--connections", 3, "--light", 1, "--interval", 0.1],
            stdout=subprocess.PIPE,
        )
        eventually(lambda: door.server.counter("tcp.connections_established") == 9, 20.0, "nine connections")
        peers = json.loads(door.server.command("peers", "--json").stdout)["peers"]
        addresses = {peer["name"]: peer["addresses"] for peer in peers if peer["state"] == "connected"}
        assert set(addresses) == {f"guest-{number}" for number in range(3)}
        for address in (each for both in addresses.values() for each in both):
            assert flows.ping(door.server.node, address, count=3, interval=0.02, timeout=5.0).lost == []
        crowd.send_signal(signal.SIGTERM)
        said = [json.loads(line) for line in crowd.communicate(timeout=20)[0].splitlines()]
    summary = said[-1]["summary"]
    assert (summary["clients"], summary["connections_each"], summary["lost"]) == (3, 3, 0)
    assert summary["echoes"] == 18 and summary["attempts"] >= 9
    assert 0 < summary["greeting_p50_ms"] <= summary["greeting_max_ms"]
    assert 0 < summary["first_seconds"] <= summary["complete_seconds"]
    assert sorted(map(sorted, summary["addresses"])) == sorted(map(sorted, addresses.values()))
    last = said[-2]["sample"]
    assert (last["clients"], last["complete"], last["connections"]) == (3, 3, 9)


def test_a_line_that_is_no_invitation_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("tunnel1.nonsense\n")
    said = subprocess.run([*CROWD, "--invitations", str(tmp_path / "lines")], capture_output=True, text=True)
    assert said.returncode == 1 and said.stdout == ""
    assert said.stderr.startswith("crowd: invitation") and "nonsense" not in said.stderr


def test_a_crowd_comes_back_after_the_server_was_killed(tmp_path: Path) -> None:
    with open_bed(tmp_path) as bed:
        crowd = bed.crowd(5)
        crowd.wait()
        assert bed.reachable(bed.addresses()) == 5
        _, running = bed.restart(signal.SIGKILL)
        assert crowd.wait(after=running).connections == 40
        assert bed.reachable(bed.addresses()) == 5
        summary = crowd.finish()
    assert bed.left_behind == []
    (outage,) = summary.outages
    assert outage.clients == 5 and summary.lost == 40
    assert 0 < outage.p50_seconds <= outage.p99_seconds <= outage.seconds <= outage.complete_seconds


def test_a_deaf_member_is_connected_and_answers_nothing(bed: Bed) -> None:
    crowd = bed.crowd(1, "--deaf", 1)
    crowd.wait()
    assert bed.reachable(bed.addresses()) == 0
    summary = crowd.finish()
    assert summary.echoes == summary.other_packets == 0


def test_a_flood_is_as_fast_as_asked_and_every_end_is_counted(bed: Bed) -> None:
    before = bed.server.running()["counters"]
    said = bed.lab["crowd"].run(
        [
            sys.executable,
            "-P",
            "-m",
            "tools.load.flood",
            bed.lab["hub"].address,
            9000,
            "--rate",
            50,
            "--seconds",
            2,
            "--source",
            "10.81.0.0/16",
        ]
    )
    flood = json.loads(said.stdout)
    assert flood["opened"] == pytest.approx(100, abs=15) and flood["opened_a_second"] == pytest.approx(50, rel=0.2)
    assert sum(flood["ended"].values()) == flood["connected"] == flood["opened"] - flood["failed"]
    assert flood["failed"] == 0 and flood["ended"]["closed"] > 0
    after = bed.server.running()["counters"]
    assert after["tcp.closed_hello_invalid"] > before["tcp.closed_hello_invalid"]
    assert after["tcp.closed_connects_of_address"] == before["tcp.closed_connects_of_address"]


def test_a_flood_to_a_port_where_nobody_listens_is_counted_as_failed(bed: Bed) -> None:
    said = bed.lab["crowd"].run(
        [sys.executable, "-P", "-m", "tools.load.flood", bed.lab["hub"].address, 9, "--rate", 50, "--seconds", 0.5]
    )
    flood = json.loads(said.stdout)
    assert flood["opened"] > 10 and flood["connected"] == 0
    assert flood["failed"] + flood["ended"].get("left", 0) == flood["opened"]


@needs_iperf3
def test_bench_hub_measures_all_it_promises_and_leaves_nothing() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "tools.bench",
            "hub",
            "--clients",
            "4",
            "--returning",
            "3",
            "--seconds",
            "1",
            "--settle",
            "0",
            "--rounds",
            "1",
            "--garbage-rate",
            "100",
            "--garbage-seconds",
            "1",
            "--json",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["schema_version"] == 1 and result["left_behind"] == []
    assert (result["idle"]["pingable"], result["idle"]["connections"]) == (4, 8)
    assert set(result["idle"]["bytes_full"]) >= {"supervisor", "tun-0", "fec-0", "tcp-0"}
    assert 1000 < result["idle"]["bytes_per_client"] < 1_000_000
    assert [each["how"] for each in result["returns"]] == ["SIGTERM", "SIGKILL"]
    assert all(0 < each["back_seconds"] <= each["complete_seconds"] for each in result["returns"])
    compared = [result[name] for name in ("client_to_server", "client_to_client", "deaf")]
    compared += [result["garbage"]["at_server"], result["garbage"]["at_nobody"]]
    assert all(each["plain"] > 0 and each["ratio"] > 0 and len(each["plain_rounds"]) == 1 for each in compared)
    assert result["garbage"]["flood"]["connected"] > 0


def _line(door: Door, peer: str) -> str:
    assert peer not in PEERS
    return door.server.command("invite", peer, "--address", door.server.node.address).stdout.strip()
