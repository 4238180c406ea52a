"""Processes that cannot be made, die at once, or die in a row; signals at bad moments. The device is in test_faults."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import workers
from tests.harness.no_descriptors import no_descriptor_left
from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.instance import Instance, server_config, traces, tunnel, unique_name
from tests.support import eventually
from tools.lab.network import Lab

LINES_PER_DEATH = 8
"""Of the log, from a worker's death to its successor's readiness, at most; without its traceback."""

BROKEN = {
    "missing-module": ("import no_such_module", "No module named 'no_such_module'"),
    "syntax": ("this is no Python", "SyntaxError"),
    "exit-3": ("raise SystemExit(3)", "died: exit status 3"),
}


@contextmanager
def broken(kind: str, text: str, directory: Path) -> Iterator[None]:
    """The code of this kind of workers is another one, as in the middle of an upgrade; for our mounts alone."""
    code = Path(workers.__file__).parent / kind / "duties.py"
    other = directory / f"{kind}.py"
    other.write_text(text + "\n")
    subprocess.run(["mount", "--bind", other, code], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", code], check=True)  # a process may be reading it


# -- a worker that dies at once


@pytest.mark.slow
@pytest.mark.parametrize(("text", "said"), BROKEN.values(), ids=BROKEN)
def test_a_worker_that_dies_at_once_ends_the_start_after_a_few_attempts(
    lab: Lab, tmp_path: Path, text: str, said: str
) -> None:
    a = lab.nodes[0]
    name = unique_name("s")
    before = traces(a, name)
    config = server_config(a, name=name, restart_intensity=3)
    with broken("tun", text, tmp_path), Instance(a, config, tmp_path) as instance:
        seen = set()

        def ended() -> bool:
            worker = next((w for w in (instance.status() or {}).get("workers", ()) if w["name"] == "tun-0"), None)
            seen.add(worker and worker["state"])
            return instance.process.poll() is not None

        eventually(ended, 30.0)
        assert instance.wait() == 1
        assert said in instance.log and re.search(r"tun-0 died: exit status \d+\n", instance.log)
        assert re.search(r"tun-0 died: exit status \d+ \(repeated 3 times in \d+ s\)\n", instance.log)
        assert "stopping: tun-0 has died 4 times in 30 s" in instance.log
        assert "backoff" in seen
        assert "running:" not in instance.log
    assert traces(a, name) == before


@pytest.mark.slow
def test_code_that_is_missing_for_a_moment_costs_a_restart_and_not_the_tunnel(lab: Lab, tmp_path: Path) -> None:
    """As while a package is upgraded: the next attempts find the code again."""
    with tunnel(lab, tmp_path, spares=False) as (server, client), Flow(client, server) as flow:
        flow.wait_for(100_000)
        with broken("tun", "import no_such_module", tmp_path):
            client.signal_worker("tun-0", signal.SIGKILL)
            eventually(lambda: client.restarts()["tun-0"] >= 3, 30.0)
        flow.wait_for(100_000)
        eventually(client.is_running)  # the worker carries packets before the supervisor has said that all run
        assert client.restarts()["tun-0"] >= 3


# -- a process that cannot be made


def test_a_worker_that_cannot_be_started_for_a_moment_is_started_later(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, spares=False) as (server, client), Flow(client, server) as flow:
        flow.wait_for(100_000)
        pid = client.worker_pids()["tcp-0"]
        with no_descriptor_left(client.process.pid):
            os.kill(pid, signal.SIGKILL)
            client.wait_for_log("tcp-0 cannot be started: Too many open files; trying again")
        flow.wait_for(100_000)
        eventually(client.is_running)


def test_a_worker_that_can_never_be_started_again_ends_the_instance(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    name = unique_name("s")
    before = traces(a, name)
    with Instance(a, server_config(a, name=name, restart_intensity=2, spares=False), tmp_path) as instance:
        instance.wait_until_running()
        pid = instance.worker_pids()["tun-0"]
        with no_descriptor_left(instance.process.pid):
            os.kill(pid, signal.SIGKILL)
            assert instance.wait() == 1
        assert instance.log.count("tun-0 cannot be started: Too many open files") == 2
        assert "stopping: tun-0 cannot be started: Too many open files" in instance.log
    assert traces(a, name) == before


def test_without_proc_a_start_says_what_to_mount(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    wrap = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    with Instance(a, server_config(a), tmp_path, wrap=wrap) as instance:
        assert instance.wait() == 1
        assert "mount -t proc proc /proc" in instance.log and "Traceback" not in instance.log


# -- deaths in a row


@pytest.mark.slow
def test_deaths_in_turn_of_two_workers_are_survived_and_say_little(lab: Lab, tmp_path: Path) -> None:
    kills = 3
    with tunnel(lab, tmp_path, fec="off", restart_intensity=kills) as (server, client), Flow(client, server) as flow:
        flow.wait_for(100_000)
        before = len(server.log.splitlines())
        for _ in range(kills):
            for worker in ("tun-0", "tcp-0"):
                server.wait_until_replaced(worker, server.signal_worker(worker, signal.SIGKILL))
        flow.wait_for(100_000)
        lines = server.log.splitlines()[before:]
        assert len(lines) <= LINES_PER_DEATH * 2 * kills, "\n".join(lines)
        assert server.restarts() == {"tcp-0": kills, "tun-0": kills}


# -- signals


@pytest.mark.parametrize("worker", ["tcp-0", "tun-0"])
def test_a_stop_while_a_worker_is_restarted_leaves_no_trace(lab: Lab, tmp_path: Path, worker: str) -> None:
    a = lab.nodes[0]
    name = unique_name("s")
    before = traces(a, name)
    for how in (signal.SIGKILL, "restart"):
        with Instance(a, server_config(a, name=name), tmp_path) as instance:
            instance.wait_until_running()
            if how == "restart":
                assert instance.command("restart", worker).returncode == 0
            else:
                instance.signal_worker(worker, signal.SIGKILL)
            instance.stop()
        assert traces(a, name) == before


@pytest.mark.alone
@pytest.mark.slow
def test_a_storm_of_reloads_is_no_storm_for_the_tunnel(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path) as (server, client):
        pids = server.worker_pids()
        with Flow(client, server) as flow:
            flow.wait_for(100_000)
            for _ in range(100):
                server.signal(signal.SIGHUP)
                time.sleep(0.01)  # the storm itself: a signal that is still pending is not delivered twice
            flow.wait_for(100_000)
        eventually(lambda: server.command("reload").returncode == 0)
        assert server.worker_pids() == pids and server.log.count("reloaded: ") >= 2
        for _ in range(20):
            server.signal(signal.SIGHUP)
        asked = time.monotonic()
        server.stop()
        assert time.monotonic() - asked < 5.0


# -- two at once


def test_two_supervisors_with_one_configuration_at_the_same_moment_are_one(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    config = server_config(a, name=unique_name("s"))
    with Instance(a, config, tmp_path) as one, Instance(a, config, tmp_path) as other:
        eventually(lambda: one.process.poll() is not None or other.process.poll() is not None)
        loser, winner = (one, other) if one.process.poll() is not None else (other, one)
        assert loser.wait() == 1 and f'instance "{one.name}" runs already' in loser.log
        winner.wait_until_running()


# -- surroundings that the caller leaves

CARELESS = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_caller_that_ignores_sigchld_and_blocks_all_signals_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    wrap = [sys.executable, "-c", CARELESS]
    with Instance(lab.nodes[0], server_config(lab.nodes[0]), tmp_path, wrap=wrap) as instance:
        instance.wait_until_running()
        for name in ("tun-0", "tcp-0"):
            instance.wait_until_replaced(name, instance.signal_worker(name, signal.SIGKILL))
        instance.wait_for_log("tcp-0 died: SIGKILL")
        assert instance.stop() == 0
