"""bench peers with real contenders: those that are here answer and leave nothing; those that fail are rows."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support import eventually, needs_iperf3
from tools.bench import contenders, peers
from tools.bench.contenders import BARE, Contender, Opened, Site
from tools.bench.machine import machine
from tools.bench.other_programs import PROGRAMS
from tools.bench.peers_report import MEASURES, Conditions, PeersResult, table
from tools.bench.programs import NotHere, Programs
from tools.lab import congestion
from tools.lab.link_model import LinkSpec
from tools.lab.network import Lab, Node
from tools.load.flows import ping

pytestmark = pytest.mark.tools
DEFAULT_CONTROL = congestion.DEFAULT.read_text().strip()
SHORT_SECONDS = 0.2


def run(*words: str) -> PeersResult:
    """One round of measurements that are as short as possible."""
    options = peers._parser().parse_args(["--rounds", "1", "--congestion", DEFAULT_CONTROL, *words])
    options.seconds = SHORT_SECONDS
    return peers.run(options)


def program(folder: Path, script: str) -> Path:
    """It passes for an OpenVPN until it is to work."""
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n[ $1 != --version ] || {{ echo OpenVPN 1.0; exit; }}\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(peers, "WARM_UP_SECONDS", 0.1)


@pytest.fixture
def hasty(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PATIENCE_SECONDS", 3.0)
    monkeypatch.setattr(contenders, "READY_SECONDS", 3.0)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    with Lab() as lab:
        yield lab.nodes[0], lab.nodes[1]


def inside(nodes: tuple[Node, Node]) -> list[object]:
    return [thing for node in nodes for thing in (*node.devices(), *node.processes())]


@pytest.mark.parametrize("contender", PROGRAMS, ids=lambda one: one.name)
def test_a_program_that_is_here_carries_packets_and_leaves_nothing(
    contender: Contender, nodes: tuple[Node, Node]
) -> None:
    site = Site(*nodes, Programs())
    before = inside(nodes)
    try:
        for _ in range(2):  # with other keys, and over what the first may have left
            with contender.open(site) as opened:
                assert opened.address != site.server.address
                assert ping(site.client, opened.address, count=5, interval=0.01).lost == []
                assert peers._mtu(site.client, opened.address) >= 1400
                assert len(site.server.devices()) > 2, "a device of its own"
                assert contender.version(site.programs)
            eventually(lambda: inside(nodes) == before)
    except NotHere as reason:
        pytest.skip(str(reason))
    finally:
        eventually(lambda: inside(nodes) == before)


@needs_iperf3
@pytest.mark.parametrize(("path", "here"), [("clean", "bare"), ("lossy", "plain")])
def test_a_run_measures_what_is_here_and_says_why_the_rest_is_not(
    path: str, here: str, short: None, tmp_path: Path
) -> None:
    ends_at_once = program(tmp_path, "echo 'no such option'; exit 3")
    chosen = [word for name in (here, "openvpn-udp", "fastd") for word in ("--only", name)]
    named = ["--program", f"openvpn={ends_at_once}", "--program", "fastd=/nowhere/fastd"]
    result = run("--path", path, *chosen, *named, "--set", "spares=false")
    measured, failed, absent = result.rows
    assert measured.error == ""
    assert measured.mtu == {"bare": 1500, "plain": 1400}[here]
    assert set(measured.rounds[0]) == {one.name for one in MEASURES if one.path == path}
    assert absent.missing == "--program fastd: no program at /nowhere/fastd"
    assert (absent.rounds, absent.error) == ([{}], "")
    assert "exit status 3: no such option" in failed.error
    assert result.left_behind == [] and result.failed
    assert "no such option" in table(result)
    if path == "lossy":
        assert measured.rounds[0]["ping_lost"] == 0
        assert measured.rounds[0]["ping_p50"] >= 40


@needs_iperf3
def test_a_program_that_never_answers_is_given_up_once(hasty: None, tmp_path: Path) -> None:
    silent = program(tmp_path, f"echo started >> {tmp_path / 'starts'}; echo thinking; exec sleep 600")
    result = run("--only", "openvpn-tcp", "--path", "lossy", "--rounds", "3", "--program", f"openvpn={silent}")
    (row,) = result.rows
    assert "expected within 3 s: a ping to 10.79.0.1 through the tunnel\nthinking\nthinking" in row.error
    assert row.rounds == [{}, {}, {}]
    assert (tmp_path / "starts").read_text() == "started\nstarted\n"
    assert result.left_behind == []


def test_what_a_contender_leaves_is_named_once_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "GONE_SECONDS", 0.1)
    monkeypatch.setattr(peers, "STEPS", {"clean": {"nothing": lambda *_: {"tcp": 1.0}}})
    monkeypatch.setattr(peers, "SETTLE_SECONDS", 0.0)

    @contextmanager
    def open_careless(site: Site) -> Iterator[Opened]:
        site.client.ip("link add careless type bridge")
        yield Opened(site.server.address)

    conditions = Conditions(
        machine=machine(), congestion=DEFAULT_CONTROL, rate_mbit=1, rtt_ms=0, queue_bytes=1, loss_percent=0
    )
    result = PeersResult(conditions=conditions)
    with Lab() as lab:
        site = Site(lab.nodes[0], lab.nodes[1], Programs(), (), result.left_behind)
        both = [Contender("careless", "other", "careless", open_careless), BARE]
        rows = {one: peers.new_row("clean", one, 0) for one in both}
        peers.Meeting("clean", lab, rows, site, result, lambda text: None).round(0, LinkSpec())
    assert [row.rounds for row in result.rows] == [[{"tcp": 1.0}]] * 2
    assert result.left_behind == ["careless: careless in 'b'"]
    assert result.failed


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_ends_early_takes_its_programs_down(sign: signal.Signals, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    silent = program(tmp_path, f"echo $$ >> {pids}; exec sleep 600")
    words = ["--only", "openvpn-udp", "--path", "lossy", "--congestion", DEFAULT_CONTROL]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "tools.bench", "peers", *words, "--program", f"openvpn={silent}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        eventually(lambda: pids.exists() and len(pids.read_text().split()) == 2, 20)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(sign)
        _, said = process.communicate(timeout=30)
    eventually(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split()))
    eventually(lambda: not any(child.is_running() for child in children))
    if sign == signal.SIGINT:
        assert process.returncode == 130
        assert said.endswith("bench peers: interrupted; everything is taken down\n")
