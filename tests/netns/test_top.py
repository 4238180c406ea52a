"""`top` on a real terminal, beside real instances whose workers and supervisor are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.netns.harness.instance import Instance, Instances, command, tunnel
from tests.netns.harness.terminal import Terminal
from tests.support import eventually
from tools.instance import EXECUTABLE
from tools.lab.network import Lab


@pytest.fixture(scope="module")
def pair(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instances]:
    with tunnel(lab, tmp_path_factory.mktemp("top"), restart_intensity=100) as made:
        yield made


def top(instance: Instance, *words: str, **environment: str) -> Terminal:
    return Terminal([EXECUTABLE, "top", "--name", instance.name, "--interval", "0.2", *words], **environment)


def test_a_frame_shows_the_pipeline_the_workers_the_peers_and_the_events(pair: Instances) -> None:
    _, client = pair
    with top(client) as terminal:
        terminal.until("plain    tun-0")
        frame = terminal.until("connected: to")  # the supervisor says so a moment after the workers know
        lines = frame.splitlines()
        assert len(lines) == 24 and all(len(line) <= 80 for line in lines)
        for text in ("plain    tun-0", "coded    tun-0", "fec-0", "worker", "peer", "drops", "connected: to", "q quit"):
            assert text in frame
        terminal.press(b"\r")
        terminal.until("light")
        terminal.press(b"\x1b")
        terminal.press(b"f")
        terminal.until("FROZEN")
        terminal.press(b"f?")
        terminal.until("choose peers, workers or events:")
        terminal.press(b"xq")
        assert terminal.wait() == 0
        assert terminal.is_as_before()


def test_a_stopped_worker_and_a_stopped_supervisor_are_seen_while_nothing_answers(pair: Instances) -> None:
    _, client = pair
    with top(client) as terminal:
        terminal.until("running")
        client.signal(signal.SIGSTOP)  # first: else it would end the worker for its silence
        pid = pids_of(client)["tun-0"]
        os.kill(pid, signal.SIGSTOP)
        try:
            frame = terminal.until("STOPPED")
            assert "tun-0 STOPPED" in frame and "tcp-0 STOPPED" not in frame
            terminal.until("is stopped")
        finally:
            os.kill(pid, signal.SIGCONT)
            client.signal(signal.SIGCONT)
        terminal.until_not("STOPPED")
        terminal.until_not("is stopped")
        terminal.press(b"q")
        assert terminal.wait() == 0


def pids_of(instance: Instance) -> dict[str, int]:
    """The workers' pids, without a word from the supervisor."""
    text = instance.command("top", "--once").stdout
    rows = [line.split() for line in text.splitlines() if line.startswith((" tun-", " fec-", " tcp-"))]
    return {row[0]: int(row[2]) for row in rows}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_the_terminal_is_as_before(pair: Instances, number: int) -> None:
    with top(pair[0]) as terminal:
        terminal.until("pipeline")
        terminal.process.send_signal(number)
        assert terminal.wait() == 0
        assert terminal.is_as_before()


def test_it_follows_a_resize(pair: Instances) -> None:
    with top(pair[0]) as terminal:
        terminal.until("pipeline")
        for lines, columns in ((40, 120), (10, 40)):
            terminal.resize(lines, columns)
            eventually(lambda: len(terminal.read().splitlines()) == lines)
            assert all(len(line) <= columns for line in terminal.read().splitlines())
        terminal.press(b"q")
        assert terminal.wait() == 0
        assert terminal.is_as_before()


def test_it_is_suspended_by_a_key_and_continued_by_the_shell(pair: Instances) -> None:
    script = f"set -m; {EXECUTABLE} top --name {pair[0].name} --interval 0.2; echo SUSPENDED; read; fg"
    with Terminal(["bash", "-c", script]) as terminal:
        terminal.until("pipeline")
        terminal.press(b"\x1a")
        eventually(lambda: terminal.read() is not None and b"SUSPENDED" in terminal.data)
        assert terminal.is_as_before()
        terminal.data = b""
        terminal.press(b"\n")
        terminal.until("pipeline")
        assert not terminal.is_as_before()
        terminal.press(b"q")
        assert terminal.wait() == 0
        assert terminal.is_as_before()


def test_a_crash_leaves_the_terminal_as_before_and_a_traceback_on_it(pair: Instances) -> None:
    crash = "import sys; import pipeline.cli.top.frame as f; f.draw = None; from pipeline.cli.main import main; main()"
    with Terminal(
        [EXECUTABLE.replace("tunnel-supervisor", "python"), "-c", crash, "top", "--name", pair[0].name]
    ) as it:
        assert it.wait() == 1
        assert it.is_as_before()
        assert b"TypeError" in it.data[it.data.rfind(b"\x1b[?1049l") :]


def test_a_closed_terminal_ends_it(pair: Instances) -> None:
    with top(pair[0]) as terminal:
        terminal.until("pipeline")
        terminal.close()
        assert terminal.process.wait(10.0) in (0, -signal.SIGHUP)


def test_no_color_and_a_dumb_terminal_are_respected(pair: Instances) -> None:
    with top(pair[0], NO_COLOR="1") as terminal:
        terminal.until("running")
        terminal.press(b"q")
        terminal.wait()
        assert b"\x1b[32m" not in terminal.data and b"\x1b[36m" not in terminal.data
    with Terminal([EXECUTABLE, "top", "--name", pair[0].name], TERM="dumb") as terminal:
        assert terminal.wait() == 0
        assert b"\x1b" not in terminal.data and b"pipeline" in terminal.data


def test_without_a_terminal_it_is_one_frame_or_a_line_in_each_interval(pair: Instances) -> None:
    server, client = pair
    once = client.command("top")
    assert (once.returncode, once.stderr) == (0, "")
    assert "pipeline" in once.stdout and "\x1b" not in once.stdout and "q quit" not in once.stdout
    words = [EXECUTABLE, "top", "--name", server.name, "--interval", "0.1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as lines:
        read = [lines.stdout.readline() for _ in range(3)]
        lines.send_signal(signal.SIGINT)
        assert lines.wait(10.0) == 0
    assert all(f"{server.name} running sent" in line for line in read)
    assert command("top", "--name", server.name, "--interval", "0").returncode == 2


def test_with_closed_standard_files_it_is_text(pair: Instances) -> None:
    words = f"{EXECUTABLE} top --name {pair[0].name}"
    for closed, is_shown in (("<&-", True), ("<&- >&-", False), ("<&- 2>&-", True)):
        done = subprocess.run(["bash", "-c", f"{words} {closed}"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert ("pipeline" in done.stdout) is is_shown


def test_it_waits_for_an_instance_that_was_stopped_and_shows_the_next_one(lab: Lab, tmp_path) -> None:
    with tunnel(lab, tmp_path) as (_, client), top(client) as terminal:
        terminal.until("running")
        client.stop()
        terminal.until("waiting until it runs")
        with client.start_again() as again:
            again.wait_until_running()
            terminal.until("pipeline")
            terminal.press(b"q")
            assert terminal.wait() == 0
