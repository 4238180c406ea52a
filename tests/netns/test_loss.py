"""The lossy lab over real tunnels, short; and the link's way to let one connection vanish."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tests.support import eventually
from tools.bench.loss import main
from tools.bench.loss_report import Cell
from tools.bench.loss_testbed import Bed, carriers, cut, open_bed
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError
from tools.lab.network import Lab
from tools.load.flows import TcpFlow, UdpFlow, ping

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

LOSSY = [sys.executable, "-P", "-m", "tools.bench.loss"]
SHORT = LinkSpec(delay_ms=2, rate_mbit=50)


@pytest.fixture
def bed() -> Iterator[Bed]:
    left: list[str] = []
    cell = Cell(scenario="none", configuration="two")
    with open_bed(cell, SHORT, ["connections=2", "fec=off", "timeout=0.6", "keepalive=0.2"], left) as made:
        yield made
    assert left == []


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_a_silenced_connection_vanishes_and_its_neighbour_goes_on(six: bool) -> None:
    with Lab(link=LinkSpec(rate_mbit=20)) as lab:
        a, b = lab
        address = b.address6 if six else b.address
        with (
            TcpFlow(a, b, address, seconds=60, rate_mbit=2) as one,
            TcpFlow(a, b, address, seconds=60, rate_mbit=2) as other,
        ):
            one.wait_for_bytes(10_000)
            other.wait_for_bytes(10_000)
            lab.link.silence(one.port)
            before = one.samples[-1].bytes
            eventually(lambda: lab.link.stats()["forward"].dropped_silenced > 2)
            other.wait_for_bytes(100_000)
            assert one.samples[-1].bytes - before < 50_000, "what was on its way"
            lab.link.silence()
            one.wait_for_bytes(10_000)


def test_a_stream_that_was_told_to_end_knows_what_it_sent_and_what_is_missing() -> None:
    with Lab(link=LinkSpec(delay_ms=5)) as lab:
        a, b = lab
        with UdpFlow(a, b, b.address, rate=500) as flow:
            eventually(lambda: len(flow.arrivals) >= 20)
            lab.link.blackout(True)
            seen = len(flow.arrivals)
            eventually(lambda: lab.link.stats()["forward"].dropped_blackout >= 10)
            sent = flow.end()
            assert flow.missing() == sent - len(flow.arrivals) >= 10
            assert len(flow.arrivals) == seen
            assert all(5 <= arrival.delay_ms < 50 for arrival in flow.arrivals)


def test_the_busiest_connection_is_cut_and_dialled_anew(bed: Bed) -> None:
    with TcpFlow(bed.source, bed.sink, bed.address, seconds=60) as bulk:
        bulk.wait_for_bytes(200_000)
        bed.look()
        bulk.wait_for_bytes(200_000)
        before = carriers(bed.source)
        bed.strike("cut")
        gone = set(before) - set(carriers(bed.source))
        assert gone == {max(before, key=before.get)}
        bulk.wait_for_bytes(200_000)
    eventually(lambda: len(carriers(bed.source)) == 2)


def test_a_black_holed_connection_is_given_up_and_another_takes_its_place(bed: Bed) -> None:
    before = set(carriers(bed.source))
    bed.look()
    ping(bed.source, bed.address, count=5, interval=0.01)
    bed.strike("black-hole")
    eventually(lambda: len(carriers(bed.source)) == 2 and set(carriers(bed.source)) != before)
    assert not ping(bed.source, bed.address, count=3, interval=0.01).lost
    bed.note()
    assert bed.cell.to_server.silenced + bed.cell.to_client.silenced > 0
    assert bed.cell.counters["client"]["tcp.connections_timed_out"] == 1


def test_a_bed_without_the_connection_to_strike_rests_and_says_why() -> None:
    cell = Cell(scenario="cut", configuration="bare")
    with open_bed(cell, SHORT, None, []) as bed:
        with bed.step():
            bed.strike("cut")
        assert not bed.works
        assert cell.error == "cut: expected an established connection to port 9000, there is none"
        with pytest.raises(LabError, match="unknown_setting"), open_bed(cell, SHORT, ["unknown_setting=1"], []):
            pass


def test_cutting_what_is_not_there_is_no_error(bed: Bed) -> None:
    cut(bed.source, 1)
    assert len(carriers(bed.source)) == 2


def test_a_short_run_measures_everything_it_says() -> None:
    done = subprocess.run(
        [
            *LOSSY,
            "--seconds",
            "1",
            "--scenario",
            "random-5",
            "--scenario",
            "cut",
            "--only",
            "bare",
            "--only",
            "five",
            "--json",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["schema_version"] == 1
    assert [(cell["scenario"], cell["configuration"]) for cell in result["cells"]] == [
        ("random-5", "bare"),
        ("random-5", "five"),
        ("cut", "five"),
    ]
    bare, five, event = result["cells"]
    for cell in (bare, five):
        assert cell["ping"]["p50"] >= 40
        assert 20 <= cell["alone"]["light"]["p50"] < 100
        assert cell["beside"]["bulk_mbit"] > 0
        assert 0 < cell["to_server"]["lost"] < 0.15 * cell["to_server"]["offered"]
    assert five["ping"]["lost"] == five["alone"]["light"]["lost"] == 0
    assert five["counters"]["client"]["tcp.bytes_sent"] > 0
    assert event["ping"] is None
    assert event["counters"]["client"]["tcp.connections_lost"] == 1
    assert 0 < event["beside"]["bulk_gap_ms"] < 10_000
    assert result["left_behind"] == []


def test_a_congestion_control_that_is_not_there_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["--congestion", "none-such"]) == 1
    assert "got 'none-such'" in capsys.readouterr().err


def _instances(pid: int) -> int:
    """Supervisors below this process, among helpers that come and go."""
    return sum(_starts(child) for child in psutil.Process(pid).children())


def _starts(process: psutil.Process) -> bool:
    try:
        return "start" in process.cmdline()
    except psutil.NoSuchProcess:  # ZombieProcess is one
        return False


def test_an_interrupt_takes_everything_down() -> None:
    with subprocess.Popen(
        [*LOSSY, "--seconds", "60", "--scenario", "loss-0", "--only", "one"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            said = [process.stderr.readline(), process.stderr.readline()]
            assert "loss-0" in said[1]
            eventually(lambda: _instances(process.pid) == 2, 20)
        finally:
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == "bench fec: interrupted; everything is taken down\n"
