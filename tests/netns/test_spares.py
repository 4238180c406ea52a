"""Spares take the place of workers that die; a rolling restart replaces one worker after the other."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.instance import Instance, reaches, tunnel
from tests.support import eventually
from tools.lab.network import Lab

SPARES_SECONDS = 60.0  # a busy machine gives them a tenth of what it gives others


def spares(instance: Instance) -> dict[str, int]:
    """The pids of the spares that wait, by kind."""
    return {row["kind"]: row["pid"] for row in instance.running()["spares"] if row["state"] == "waiting"}


def wait_for_spares(instance: Instance, *kinds: str) -> dict[str, int]:
    eventually(lambda: set(spares(instance)) >= set(kinds), SPARES_SECONDS, f"spares {kinds} of {instance.name}")
    return spares(instance)


def test_a_spare_of_each_kind_takes_over_under_load_with_the_settings_of_now(lab: Lab, tmp_path: Path) -> None:
    """New spares come after those. None stays where none is wanted, or when the supervisor is killed."""
    with tunnel(lab, tmp_path, fec="on") as (server, client):
        with Flow(client, server) as flow:
            before = wait_for_spares(client, "tun", "fec", "tcp")
            assert {group_nice(pid) for pid in before.values()} <= {"nice 10", ""}
            rights = {name: rights_of(pid) for name, pid in client.worker_pids().items()}
            for kind in ("tun", "fec", "tcp"):
                flow.wait_for(1_000_000)
                pid = client.signal_worker(f"{kind}-0", signal.SIGKILL)
                client.wait_until_replaced(f"{kind}-0", pid)
                flow.wait_for(1_000_000)
        assert client.worker_pids() == {f"{kind}-0": pid for kind, pid in before.items()}
        assert {name: rights_of(pid) for name, pid in client.worker_pids().items()} == rights
        for name, pid in client.worker_pids().items():
            process = psutil.Process(pid)
            assert (process.name(), process.nice()) == (name, 0)
            assert group_nice(pid) in ("nice 0", "")

        after = wait_for_spares(client, "tun", "fec", "tcp")
        client.write({**client.config, "log_format": "json"})
        assert client.command("reload").returncode == 0
        eventually(lambda: client.worker_pids() == {f"{kind}-0": pid for kind, pid in after.items()})
        eventually(lambda: any('"tcp-0"' in line for line in client.log.splitlines() if line.startswith("{")))

        wait_for_spares(client, "tun")
        client.write({**client.config, "log_format": "json", "spares": False})
        assert client.command("reload").returncode == 0
        assert spares(client) == {}
        assert client.worker_pids() == {f"{kind}-0": pid for kind, pid in after.items()}
        waiting = wait_for_spares(server, "tun", "fec", "tcp")
        server.kill()
        eventually(lambda: not any(psutil.pid_exists(pid) for pid in waiting.values()))


def test_of_two_workers_of_a_kind_that_die_together_one_is_the_spare_and_both_are_back(
    lab: Lab, tmp_path: Path
) -> None:
    """At both ends, in all lanes. The other one is started, as without spares."""
    with tunnel(lab, tmp_path, lanes=2, connections=2) as instances:
        waiting = [wait_for_spares(instance, "tun", "tcp") for instance in instances]
        with Flow(*instances) as one, Flow(*reversed(instances)) as other:
            for kind in ("tun", "tcp"):
                before = [instance.worker_pids() for instance in instances]
                for pids in before:
                    for lane in (0, 1):
                        os.kill(pids[f"{kind}-{lane}"], signal.SIGKILL)
                for instance, pids, spare in zip(instances, before, waiting, strict=True):
                    for lane in (0, 1):
                        instance.wait_until_replaced(f"{kind}-{lane}", pids[f"{kind}-{lane}"], 20.0)
                    assert spare[kind] in instance.worker_pids().values()
                for flow in (one, other):
                    flow.wait_for(1_000_000)
        for instance in instances:
            wait_for_spares(instance, "tun", "tcp")


def group_nice(pid: int) -> str:
    """Of the group of the process's session; "" where the kernel has no such groups."""
    path = Path(f"/proc/{pid}/autogroup")
    return path.read_text().partition(" ")[2].strip() if path.exists() else ""


def rights_of(pid: int) -> list[str]:
    fields = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
    return [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(fields)]


@pytest.mark.parametrize(("which", "lanes"), [(0, 1), (1, 2)], ids=["server", "client-with-two-lanes"])
def test_a_rolling_restart_replaces_every_worker_and_inner_connections_survive(
    lab: Lab, tmp_path: Path, which: int, lanes: int
) -> None:
    with tunnel(lab, tmp_path, lanes=lanes, fec="off", spares=False) as instances, Flow(*reversed(instances)) as flow:
        instance = instances[which]
        flow.wait_for(1_000_000)
        before = instance.worker_pids()
        said = instance.command("restart", "--rolling")
        assert (said.returncode, said.stderr) == (0, "")
        names = list(before)
        assert said.stdout.splitlines() == [f"workers: {', '.join(names)}", *(f"replaced: {name}" for name in names)]
        assert set(instance.restarts().values()) == {1}
        assert set(before.values()).isdisjoint(instance.worker_pids().values())
        flow.wait_for(1_000_000)
        assert reaches(*instances)
        assert "died" not in instance.log


def test_a_rolling_restart_goes_on_over_a_death_and_one_of_one_worker_leaves_the_others(
    lab: Lab, tmp_path: Path
) -> None:
    with tunnel(lab, tmp_path, fec="on", lanes=2) as (server, client):  # six workers take more than six seconds
        before = client.worker_pids()
        assert client.ask({"command": "restart", "rolling": True})["ok"]
        os.kill(before["tun-1"], signal.SIGKILL)  # the last one
        refused = client.command("restart", "--rolling")
        assert (refused.returncode, "a rolling restart is under way" in refused.stderr) == (1, True)
        eventually(lambda: not client.running()["rolling"]["left"], 30.0)
        assert client.running()["rolling"]["error"] == ""
        after = client.worker_pids()
        assert set(before.values()).isdisjoint(after.values())

        assert client.command("restart", "--rolling", "fec-0").returncode == 0
        assert {name for name, pid in client.worker_pids().items() if pid != after[name]} == {"fec-0"}
        assert reaches(client, server)
