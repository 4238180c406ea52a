"""Many light clients and many bad connections at a real server: the tools that make them, with small numbers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.netns.harness.handmade_clients import PEERS, Dialer, inviting_server
from tests.support import eventually, needs_iperf3
from tools.bench import hub as bench_hub
from tools.bench import hub_testbed
from tools.bench.hub_testbed import Testbed, open_testbed
from tools.lab.network import Lab
from tools.load import flows

pytestmark = pytest.mark.tools
SHORT_SECONDS = 0.2
SWARM = [sys.executable, "-P", "-m", "tools.load.client_swarm"]


@pytest.fixture(scope="module")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    with open_testbed(tmp_path_factory.mktemp("testbed")) as made:
        yield made
    assert made.left_behind == []


def test_a_swarm_by_invitation_lines_connects_and_answers_pings(tmp_path: Path) -> None:
    with Lab() as lab, inviting_server(lab, tmp_path) as dialer:
        lines = "\n".join(_line(dialer, f"client-{number}") for number in range(3))
        (tmp_path / "lines").write_text(lines)
        swarm = dialer.node.popen(
            [*SWARM, "--invitations", tmp_path / "lines", "--connections", 3, "--light", 1, "--interval", 0.1],
            stdout=subprocess.PIPE,
        )
        eventually(lambda: dialer.server.counter("tcp.connections_established") == 9, 20.0, "nine connections")
        peers = json.loads(dialer.server.command("peers", "--json").stdout)["peers"]
        addresses = {peer["name"]: peer["addresses"] for peer in peers if peer["state"] == "connected"}
        assert set(addresses) == {f"client-{number}" for number in range(3)}
        for address in (each for both in addresses.values() for each in both):
            assert flows.ping(dialer.server.node, address, count=3, interval=0.02, timeout=5.0).lost == []
        swarm.send_signal(signal.SIGTERM)
        said = [json.loads(line) for line in swarm.communicate(timeout=20)[0].splitlines()]
    summary = said[-1]["summary"]
    assert (summary["clients"], summary["connections_each"], summary["lost"]) == (3, 3, 0)
    assert summary["echoes"] == 18 and summary["attempts"] >= 9
    assert 0 < summary["handshake_p50_ms"] <= summary["handshake_max_ms"]
    assert 0 < summary["first_seconds"] <= summary["complete_seconds"]
    assert sorted(map(sorted, summary["addresses"])) == sorted(map(sorted, addresses.values()))
    last = said[-2]["sample"]
    assert (last["clients"], last["complete"], last["connections"]) == (3, 3, 9)


def test_a_line_that_is_no_invitation_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("tunnel1.nonsense\n")
    said = subprocess.run([*SWARM, "--invitations", str(tmp_path / "lines")], capture_output=True, text=True)
    assert said.returncode == 1 and said.stdout == ""
    assert said.stderr.startswith("swarm: invitation") and "nonsense" not in said.stderr


@pytest.mark.slow
def test_a_swarm_comes_back_after_the_server_was_killed(tmp_path: Path) -> None:
    with open_testbed(tmp_path) as testbed:
        swarm = testbed.swarm(5)
        swarm.wait()
        assert testbed.reachable(testbed.addresses()) == 5
        _, running = testbed.restart(signal.SIGKILL)
        assert swarm.wait(after=running).connections == 40
        assert testbed.reachable(testbed.addresses()) == 5
        summary = swarm.finish()
    assert testbed.left_behind == []
    (outage,) = summary.outages
    assert outage.clients == 5 and summary.lost == 40
    assert 0 < outage.p50_seconds <= outage.p99_seconds <= outage.seconds <= outage.complete_seconds


def test_a_deaf_member_is_connected_and_answers_nothing(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_testbed, "ECHO_SECONDS", 1.0)
    swarm = testbed.swarm(1, "--deaf", 1)
    swarm.wait()
    assert testbed.reachable(testbed.addresses()) == 0
    summary = swarm.finish()
    assert summary.echoes == summary.other_packets == 0


@pytest.mark.alone
def test_a_flood_is_as_fast_as_asked_and_every_end_is_counted(testbed: Testbed) -> None:
    before = testbed.server.running()["counters"]
    said = testbed.lab["swarm"].run(
        [
            sys.executable,
            "-P",
            "-m",
            "tools.load.flood",
            testbed.lab["hub"].address,
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
    after = testbed.server.running()["counters"]
    assert after["tcp.closed_hello_invalid"] > before["tcp.closed_hello_invalid"]
    assert after["tcp.closed_connects_of_address"] == before["tcp.closed_connects_of_address"]


def test_a_flood_to_a_port_where_nobody_listens_is_counted_as_failed(testbed: Testbed) -> None:
    said = testbed.lab["swarm"].run(
        [sys.executable, "-P", "-m", "tools.load.flood", testbed.lab["hub"].address, 9, "--rate", 50, "--seconds", 3]
    )
    flood = json.loads(said.stdout)
    assert flood["opened"] > 10 and flood["connected"] == 0
    assert flood["failed"] + flood["ended"].get("left", 0) == flood["opened"]


@pytest.mark.slow
def test_bench_hub_as_a_command_measures_idle_clients(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--only", "idle", "--clients", "4", "--seconds", "1", "--settle", "0", "--json"]
    assert bench_hub.main(options) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["schema_version"] == 1 and result["left_behind"] == []
    assert (result["idle"]["pingable"], result["idle"]["connections"]) == (4, 8)
    assert set(result["idle"]["bytes_full"]) >= {"supervisor", "tun-0", "fec-0", "tcp-0"}
    assert 1000 < result["idle"]["bytes_per_client"] < 1_000_000


def measure(*words: str) -> dict[str, Any]:
    """What `bench hub` has measured, as quickly as possible."""
    options = bench_hub._parser().parse_args(["--rounds", "1", *words])
    options.seconds = options.garbage_seconds = SHORT_SECONDS
    result = msgspec.to_builtins(bench_hub.run(options))
    assert result["left_behind"] == []
    return result


def expect_compared(*measured: dict[str, Any]) -> None:
    assert all(each["plain"] > 0 and each["ratio"] > 0 and len(each["plain_rounds"]) == 1 for each in measured)


@pytest.mark.slow
@needs_iperf3
def test_bench_hub_measures_clients_and_their_return() -> None:
    result = measure("--returning", "3", "--only", "returns", "--only", "clients", "--only", "deaf")
    assert [each["how"] for each in result["returns"]] == ["SIGTERM", "SIGKILL"]
    assert all(0 < each["back_seconds"] <= each["complete_seconds"] for each in result["returns"])
    expect_compared(*(result[name] for name in ("client_to_server", "client_to_client", "deaf")))


@pytest.mark.slow
@needs_iperf3
def test_bench_hub_measures_floods_of_unauthenticated_clients() -> None:
    result = measure("--only", "garbage", "--only", "hellos", "--garbage-rate", "100", "--hello-rate", "200")
    expect_compared(result["garbage"]["at_server"], result["garbage"]["at_nobody"])
    expect_compared(result["hellos"]["at_server"], result["hellos"]["at_plain"])
    assert result["hellos"]["flood"]["ended"]["answered"] > 0
    assert len(result["hellos"]["newcomer_seconds"]) == len(result["hellos"]["newcomer_seconds_beside"]) > 0
    assert result["garbage"]["flood"]["connected"] > 0


@pytest.mark.slow
@needs_iperf3
def test_bench_hub_measures_a_client_beside_a_hostile_peer() -> None:
    result = measure("--only", "hostile", "--kind", "run1", "--hostile-connections", "2")
    assert {row["kind"] for row in result["hostile"]} >= {"run1"}


def _line(dialer: Dialer, peer: str) -> str:
    assert peer not in PEERS
    return dialer.server.command("invite", peer, "--address", dialer.server.node.address).stdout.strip()
