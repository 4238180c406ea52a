"""Clocks that stand still or begin: all of an instance is stopped for a while; it starts as the machine does."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.instance import Instance, client_config, reaches, server_config, tunnel
from tests.support import eventually
from tools.lab.network import Lab

PAUSE_SECONDS = 6.0  # longer than heartbeat_timeout and timeout
YEAR = 365 * 24 * 3600
TIMEOUTS = {"heartbeat_timeout": 2.0, "timeout": 3.0, "keepalive": 0.5}
PATIENT = {"timeout": 60.0, "keepalive": 0.5}
"""Of the far end: it keeps its connections, and keeps them from being silent."""


def clock_at(seconds: int) -> list[str]:
    """Words in front of a command that make CLOCK_MONOTONIC and CLOCK_BOOTTIME begin there: a time namespace."""
    ahead = seconds - int(time.clock_gettime(time.CLOCK_BOOTTIME))
    words = ["unshare", "--time", f"--monotonic={ahead}", f"--boottime={ahead}"]
    shown = subprocess.run([*words, "cat", "/proc/uptime"], capture_output=True, text=True, check=True).stdout
    if abs(float(shown.split()[0]) - seconds) > 60:
        pytest.skip("a command that is executed stays in its time namespace; Linux 6.3 lets it enter")
    return words


def stop_all(instance: Instance, seconds: float) -> None:
    """What docker pause, the cgroup freezer and a live migration do to a process."""
    pids = [instance.process.pid, *instance.worker_pids().values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    threading.Event().wait(seconds)
    for pid in pids:  # the supervisor looks first, before any worker has written a heartbeat
        os.kill(pid, signal.SIGCONT)


def test_an_instance_that_was_stopped_for_a_while_goes_on_with_its_workers_and_connections(
    lab: Lab, tmp_path: Path
) -> None:
    """The far end has patience. A flow through the tunnel goes on, and the connections are those from before."""
    with tunnel(lab, tmp_path, client=TIMEOUTS, server=PATIENT, connections=2) as (server, client):
        pids = client.worker_pids()
        with Flow(client, server) as flow:
            flow.wait_for(1_000_000)
            stop_all(client, PAUSE_SECONDS)
            client.wait_for_log("paused: the supervisor did not run for")
            flow.wait_for(flow.received + 10_000_000)
        assert client.worker_pids() == pids
        assert set(client.restarts().values()) == {0}
        assert client.counter("tcp.connections_lost") == server.counter("tcp.connections_lost") == 0
        assert "hangs" not in client.log


@pytest.mark.alone
def test_connections_that_the_far_end_has_given_up_meanwhile_are_dialed_at_once(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, server=TIMEOUTS, client=PATIENT, connections=2) as (server, client):
        pids = client.worker_pids()
        stop_all(client, PAUSE_SECONDS)
        eventually(lambda: client.counter("tcp.connections_established") == 10, 2.0, "all five dialed again")
        assert reaches(client, server)
        assert client.worker_pids() == pids


@pytest.mark.alone
def test_instances_run_on_machines_that_have_been_up_for_a_second_and_for_ten_years(lab: Lab, tmp_path: Path) -> None:
    """Times near 0 are times like others, though a 0 stands for "never"."""
    server, client = lab.nodes[:2]
    serving = server_config(server, fec="on")
    with (
        Instance(server, serving, tmp_path, wrap=clock_at(1)) as young,
        Instance(client, client_config(serving, server.address, fec="on"), tmp_path, wrap=clock_at(10 * YEAR)) as old,
    ):
        young.wait_until_running()
        old.wait_until_connected(8)
        assert reaches(old, young)
        young.wait_until_replaced("fec-0", young.signal_worker("fec-0", signal.SIGKILL))
        assert reaches(old, young)
        for instance in (young, old):
            assert "hangs" not in instance.log and "paused" not in instance.log
