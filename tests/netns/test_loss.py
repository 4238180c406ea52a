"""The loss lab over real tunnels, short, and the emulated link that lets one connection vanish."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.support import eventually
from tools.bench import loss
from tools.bench.loss_report import Cell
from tools.bench.loss_testbed import Testbed, carriers, cut, open_testbed
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError
from tools.lab.network import Lab
from tools.load.flows import TcpFlow, UdpFlow, ping

pytestmark = pytest.mark.tools
LOSS = [sys.executable, "-P", "-m", "tools.bench.loss"]
SHORT = LinkSpec(delay_ms=2, rate_mbit=50)


@pytest.fixture
def testbed() -> Iterator[Testbed]:
    left: list[str] = []
    cell = Cell(scenario="none", configuration="two")
    with open_testbed(cell, SHORT, ["connections=2", "fec=off", "timeout=0.6", "keepalive=0.2"], left) as made:
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
            silent_ns = time.monotonic_ns()
            eventually(lambda: lab.link.stats()["forward"].dropped_silenced > 2)
            other.wait_for_bytes(100_000)
            before = max(sample.bytes for sample in one.samples if sample.time_ns <= silent_ns)
            assert one.samples[-1].bytes - before < 50_000, "what was on its way"
            lab.link.silence()
            one.wait_for_bytes(10_000)


@pytest.mark.alone
def test_a_stream_that_was_told_to_end_knows_what_it_sent_and_what_is_missing() -> None:
    with Lab(link=LinkSpec(delay_ms=5)) as lab:
        a, b = lab
        with UdpFlow(a, b, b.address, rate=500) as flow:
            eventually(lambda: len(flow.arrivals) >= 20)
            lab.link.blackout(True)
            eventually(lambda: lab.link.stats()["forward"].dropped_blackout >= 10)
            sent = flow.end()
        numbers = [arrival.number for arrival in flow.arrivals]
        assert numbers == list(range(len(numbers))), "the last ones are missing"
        assert flow.missing() == sent - len(numbers) >= 10
        assert all(5 <= arrival.delay_ms < 50 for arrival in flow.arrivals)


def test_the_busiest_connection_is_cut_and_dialled_anew(testbed: Testbed) -> None:
    with TcpFlow(testbed.source, testbed.sink, testbed.address, seconds=60) as bulk:
        bulk.wait_for_bytes(200_000)
        testbed.mark_sent()
        bulk.wait_for_bytes(200_000)
        before = carriers(testbed.source)
        testbed.strike("cut")
        gone = set(before) - set(carriers(testbed.source))
        assert gone == {max(before, key=before.get)}
        bulk.wait_for_bytes(200_000)
    eventually(lambda: len(carriers(testbed.source)) == 2)


@pytest.mark.alone
def test_a_black_holed_connection_is_given_up_and_another_takes_its_place(testbed: Testbed) -> None:
    before = set(carriers(testbed.source))
    testbed.mark_sent()
    ping(testbed.source, testbed.address, count=5, interval=0.01)
    testbed.strike("black-hole")
    eventually(lambda: len(carriers(testbed.source)) == 2 and set(carriers(testbed.source)) != before)
    assert not ping(testbed.source, testbed.address, count=3, interval=0.01).lost
    testbed.note()
    assert testbed.cell.to_server.silenced + testbed.cell.to_client.silenced > 0
    assert testbed.cell.counters["client"]["tcp.connections_timed_out"] == 1


def test_a_testbed_without_the_connection_to_strike_rests_and_says_why() -> None:
    cell = Cell(scenario="cut", configuration="bare")
    with open_testbed(cell, SHORT, None, []) as testbed:
        with testbed.step():
            testbed.strike("cut")
        assert not testbed.works
        assert cell.error == "cut: expected an established connection to port 9000, there is none"
        with pytest.raises(LabError, match="unknown_setting"), open_testbed(cell, SHORT, ["unknown_setting=1"], []):
            pass


def test_cutting_what_is_not_there_is_no_error(testbed: Testbed) -> None:
    cut(testbed.source, 1)
    assert len(carriers(testbed.source)) == 2


@pytest.mark.slow
def test_a_short_run_measures_everything_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loss, "WARM_UP_SECONDS", 0.3)
    monkeypatch.setattr(loss, "EVENT_AFTER_SECONDS", 0.3)
    chosen = ["--scenario", "random-5", "--scenario", "cut", "--only", "bare", "--only", "five"]
    assert loss.main(["--seconds", "1", *chosen, "--at-once", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
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
    assert loss.main(["--congestion", "none-such"]) == 1
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
        [*LOSS, "--seconds", "60", "--scenario", "loss-0", "--only", "one"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            process.stderr.readline()
            assert "loss-0" in process.stderr.readline()
            eventually(lambda: _instances(process.pid) == 2, 20)
        finally:
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == "bench fec: interrupted; everything is taken down\n"
