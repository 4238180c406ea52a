"""What an observer sees of real instances: the truth, while workers and supervisors are stopped, killed or replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.observe.observer import Observer
from pipeline.peers.dial_slots import UNSEEN_NS
from pipeline.shm.segment import SHM_DIRECTORY
from pipeline.supervisor.roles.peer_watch import LOOK_NS
from tests.netns.harness.instance import Instance, Instances, command, reaches, tunnel, unique_name
from tests.support import eventually
from tools.instance import EXECUTABLE
from tools.lab.network import Lab


@pytest.fixture(scope="module")
def pair(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instances]:
    with tunnel(lab, tmp_path_factory.mktemp("observe"), restart_intensity=100, spares=True) as made:
        yield made


def seen(instance: Instance) -> dict[str, Any]:
    """The snapshot of the command, which asks no process."""
    done = instance.command("status", "--json")
    assert done.returncode in (0, 1), done.stderr  # 1: it runs, and is not connected
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run_of(instance: Instance) -> str:
    """The run that the command shows; "" if there is none to show, while the memory is made anew."""
    done = instance.command("status", "--json")
    return str(json.loads(done.stdout)["run"]) if done.returncode in (0, 1) else ""


def worker(instance: Instance, name: str) -> dict[str, Any]:
    return next(each for each in seen(instance)["workers"] if each["name"] == name)


def kinds(instance: Instance) -> list[tuple[str, str]]:
    lines = instance.command("events", "--json").stdout.splitlines()
    return [(each["kind"], each["subject"]) for each in map(json.loads, lines)]


def test_the_snapshot_of_an_observer_is_that_of_the_supervisor(pair: Instances) -> None:
    for instance in pair:
        asked, read = instance.status(), seen(instance)
        assert asked.keys() == read.keys()
        for key in ("name", "mode", "state", "pid", "run", "tun_name", "version", "rolling", "peers_connected"):
            assert asked[key] == read[key]
        assert [w["pid"] for w in asked["workers"]] == [w["pid"] for w in read["workers"]]
        (peer,) = read["peers"]
        assert peer["state"] == "connected" and peer["connections"] == 8 and peer["rtt_ms"] > 0
        assert peer["sent_segments"] > 0 and peer["encryption"] == "none"


def test_a_stopped_worker_and_a_stopped_supervisor_are_shown_as_such(pair: Instances) -> None:
    server, client = pair
    pid = client.signal_worker("tun-0", signal.SIGSTOP)
    try:
        eventually(lambda: worker(client, "tun-0")["process"] == "stopped")
        assert worker(client, "tcp-0")["process"] != "stopped"
        client.signal(signal.SIGSTOP)
        try:
            taken = eventually(lambda: (found := seen(client))["supervisor"]["state"] == "stopped" and found)
            assert [w["process"] for w in taken["workers"]].count("stopped") == 1
            assert taken["supervisor"]["process"] == "stopped" and taken["peers"][0]["connections"] == 8
            assert "up" in dict(kinds(client))
        finally:
            client.signal(signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: seen(client)["supervisor"]["state"] == "running")
    assert reaches(client, server)


def test_a_death_a_restart_and_the_return_of_connections_are_events_at_both_ends(pair: Instances) -> None:
    _, client = pair
    before = len(kinds(client))
    client.signal_worker("tcp-0", signal.SIGKILL)
    eventually(lambda: ("worker-restarted", "tcp-0") in kinds(client)[before:])
    assert ("worker-died", "tcp-0") in kinds(client)[before:]
    eventually(lambda: seen(client)["peers"][0]["connections"] == 8)
    text = client.command("events").stdout
    assert "tcp-0 died: SIGKILL (out of memory?)" in text and "its predecessor died (SIGKILL" in text


def test_a_peer_whose_tcp_worker_is_killed_has_neither_left_nor_joined_again(pair: Instances) -> None:
    server, _ = pair

    def count(kind: str) -> int:
        return [found for found, _ in kinds(server)].count(kind)

    eventually(lambda: (seen(server)["peers"][0]["session_seconds"] or 0) * 1e9 > UNSEEN_NS)

    def connections() -> set[str]:
        """Those that are established, each by the address of the client."""
        return {each["address"] for each in seen(server)["connections"] if each["state"] == "established"}

    before = count("worker-restarted"), count("peer-joined"), count("peer-left")
    of_before = connections()
    pid = server.signal_worker("tcp-0", signal.SIGKILL)
    server.wait_until_replaced("tcp-0", pid)
    eventually(lambda: len(now := connections()) == 8 and not now & of_before, what="all its connections had ended")
    eventually(lambda: count("worker-restarted") == before[0] + 1)
    looked = time.monotonic_ns() + 2 * LOOK_NS
    eventually(lambda: time.monotonic_ns() > looked)
    assert (count("peer-joined"), count("peer-left")) == before[1:]


def follow_into_new_memory(server: Instance, client: Instance) -> None:
    """Remove the names of the client, with an observer attached."""
    names = [name for name in os.listdir(SHM_DIRECTORY) if f"tunnel@{client.name}@" in name]
    observer = Observer(client.name)
    run = observer.snapshot()["run"]
    assert observer.read_events().events[0].number == 0
    client.signal(signal.SIGSTOP)  # so that it does not notice before we have looked
    try:
        eventually(lambda: observer.snapshot()["supervisor"]["process"] == "stopped")
        for name in names:
            os.unlink(f"{SHM_DIRECTORY}/{name}")
        assert observer.snapshot()["run"] == run  # its mappings are good until the supervisor has noticed
    finally:
        client.signal(signal.SIGCONT)
    eventually(lambda: run_of(client) not in ("", run))
    observer.read_last()
    eventually(lambda: observer.snapshot()["run"] != run)
    observer.close()
    assert ("memory-lost", "") in kinds(client)
    assert kinds(client)[0] == ("starting", "")
    eventually(lambda: reaches(client, server), 10.0)


def test_an_observer_follows_an_instance_into_new_memory_and_to_its_end(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path) as (server, client):
        follow_into_new_memory(server, client)
        with subprocess.Popen(
            [EXECUTABLE, "events", "--follow", "--json", "--name", client.name], stdout=subprocess.PIPE, text=True
        ) as follower:
            first = json.loads(follower.stdout.readline())
            assert first["kind"] == "starting"
            client.stop()
            while (event := json.loads(follower.stdout.readline()))["kind"] != "down":
                assert event["number"] > first["number"]
            assert event["text"] == "exit status 0"
            follower.send_signal(signal.SIGINT)
            assert follower.wait(10.0) == 0
        joined = eventually(lambda: "peer-left" in dict(kinds(server)) and kinds(server), 5.0)
        assert joined[-1][0] == "peer-left"


def test_an_instance_that_does_not_run_is_named(tmp_path: Path) -> None:
    name = unique_name("none")
    for words in (["status"], ["events"], ["events", "--follow"]):
        done = command(*words, "--name", name)
        assert (done.returncode, done.stderr) == (3, f'tunnel-supervisor: instance "{name}" does not run\n')
