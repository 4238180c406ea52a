"""The commands to a running instance, from another shell: what they say and do, and their exit statuses."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.status_keys import KEYS, keys_of
from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.instance import NOBODY, Instances, command, reaches, tunnel, unique_name
from tests.support import eventually
from tools.instance import EXECUTABLE
from tools.lab.network import Lab


def test_status_tells_people_how_the_instance_is(instances: Instances) -> None:
    server, client = instances
    eventually(lambda: all(row["state"] == "established" for row in client.running()["connections"]))
    said = client.command("status")
    assert said.returncode == 0 and client.command("status", "--verbose").returncode == 0
    first, *rest = said.stdout.splitlines()
    host = server.node.address
    assert re.fullmatch(rf"{client.name}: connected to {host} since \d+ s, \S+ ms, .*B in, .*B out", first)
    assert sum(line.startswith(f"{host}:") for line in rest) == 8
    assert "plain-0" not in said.stdout and "plain-0" in client.command("status", "-v").stdout
    assert re.match(rf"{server.name}: .* connected since", server.command("status").stdout)


def test_status_for_programs_has_the_published_shape(instances: Instances) -> None:
    server, client = instances
    assert reaches(client, server)
    eventually(lambda: all(row["state"] == "established" for row in client.running()["connections"]))
    said = client.command("status", "--json")
    assert said.returncode == 0
    status = json.loads(said.stdout)
    assert (status["schema_version"], status["name"], status["mode"], status["state"]) == (
        2,
        client.name,
        "client",
        "running",
    )
    assert status["pid"] == client.process.pid
    assert sorted((each["name"], each["kind"], each["lane"]) for each in status["workers"]) == [
        ("fec-0", "fec", 0),
        ("fec-1", "fec", 1),
        ("tcp-0", "tcp", 0),
        ("tcp-1", "tcp", 1),
        ("tun-0", "tun", 0),
        ("tun-1", "tun", 1),
    ]
    for worker in status["workers"]:
        assert worker["state"] == "running" and worker["restarts"] == 0
        assert Path(f"/proc/{worker['pid']}").exists()
        assert 0 <= worker["heartbeat_age_ms"] < 5000
        assert worker["cpu_percent"] >= 0 and 1e6 < worker["rss_bytes"] < 1e9
    names = {ring["name"] for ring in status["rings"]}
    assert names == {f"{kind}-{i}" for kind in ("plain", "light", "coded", "inbound", "decoded") for i in range(2)}
    for ring in status["rings"]:
        depths = [depth for stage in ring["stages"] for depth in stage["depth"].values()]
        assert len(depths) >= 2 and all(0 <= depth <= ring["capacity"] for depth in depths)
    assert len(status["connections"]) == 8
    assert all(
        row["state"] == "established" and row["address"] == client.config["remote_addr"]
        for row in status["connections"]
    )
    assert status["counters"]["tun.packets_read"] >= 2
    assert all(isinstance(count, int) and count >= 0 for count in status["counters"].values())


def test_the_answers_of_both_ends_have_the_documented_keys_and_no_others(instances: Instances) -> None:
    found: set[str] = set()
    for instance in instances:
        eventually(lambda: instance.wait_for_spares("tun"), 60.0, "a spare of tun workers")
        found |= set(keys_of(json.loads(instance.command("status", "--json").stdout)))
    lists = {name.partition("[]")[0] for name in KEYS if "[]" in name}
    assert found - set(KEYS) - lists == set()
    sometimes = ("left_out[]", "accounting", "server.list[]", "server.uplinks[]", "websockets", "direct[]")
    assert {name for name in KEYS if not name.startswith(sometimes)} - found - {"hooks", "full_tunnel"} == set()


def test_an_instance_is_found_by_its_configuration_too(instances: Instances) -> None:
    said = command("status", "--json", "--config", instances[0].file)
    assert said.returncode == 0 and json.loads(said.stdout)["name"] == instances[0].name


def test_among_several_instances_one_must_be_named(instances: Instances) -> None:
    said = command("status")
    assert said.returncode != 0 and not said.stdout
    assert all(instance.name in said.stderr for instance in instances) and "--name" in said.stderr


@pytest.mark.parametrize(
    "words", [["status"], ["status", "--json"], ["stop"], ["reload"], ["restart"]], ids=lambda words: " ".join(words)
)
def test_commands_to_an_instance_that_does_not_run_say_so(words: list[str]) -> None:
    said = command(*words, "--name", "nobody-runs-this")
    assert (said.returncode, said.stdout) == (3, "")
    assert said.stderr == 'tunnel-supervisor: instance "nobody-runs-this" does not run\n'


def test_without_the_right_to_look_a_command_says_so(instances: Instances) -> None:
    for words in (["status"], ["status", "--name", instances[0].name]):
        said = subprocess.run([*NOBODY, EXECUTABLE, *words], capture_output=True, text=True, timeout=60)
        assert said.returncode == 77 and "Permission denied: run as root" in said.stderr


@pytest.mark.parametrize(
    "words", ["", "nonsense", "status --nonsense", "status --name a --config b", "start --mode sideways"]
)
def test_wrong_usage_is_told_from_failure(words: str) -> None:
    said = command(*shlex.split(words))
    assert said.returncode == 2 and "usage:" in said.stderr


@pytest.mark.parametrize("start", [["check"], ["start", "--config"]], ids=["check", "start"])
def test_a_wrong_configuration_is_refused_with_all_that_is_wrong(tmp_path: Path, start: list[str]) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps({"mode": "server", "mtuu": 1400, "lanes": "two", "insecure": True}))
    said = command(*start, file)
    assert said.returncode == 78
    assert "mtuu" in said.stderr and "lanes" in said.stderr and str(file) in said.stderr
    assert "Traceback" not in said.stderr


def test_a_configuration_that_is_not_there_is_a_wrong_configuration(tmp_path: Path) -> None:
    said = command("start", "--config", tmp_path / "missing.json")
    assert said.returncode == 78 and "missing.json" in said.stderr


def test_two_ends_start_without_any_file(lab: Lab, tmp_path: Path) -> None:
    a, b = lab
    server, client, port = unique_name("s"), unique_name("c"), a.free_port()
    start = [EXECUTABLE, "start", "--set", "encryption=none", "--set", "accounting=false", "--mode"]
    with (
        a.popen(
            [
                *start,
                "server",
                "--local",
                f"0.0.0.0:{port}",
                "--tunnel",
                "10.99.0.1/24",
                "--insecure",
                "--set",
                f"name={server}",
                "--set",
                "mtu=1300",
            ]
        ) as serving,
        b.popen(
            [*start, "client", "--remote", f"{a.address}:{port}", "--tunnel", "10.99.0.2/24", "--set", f"name={client}"]
        ) as dialling,
    ):
        eventually(lambda: '"established"' in command("status", "--json", "--name", client).stdout, 20)
        assert "mtu 1300" in a.run(["ip", "link", "show", server]).stdout
        for name, process in ((client, dialling), (server, serving)):
            assert command("stop", "--name", name).returncode == 0
            assert process.wait(10) == 0


def test_a_restarted_worker_is_another_process_and_the_others_stay(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path) as (server, client), Flow(client, server) as flow:
        before = client.worker_pids()
        flow.wait_for(100_000)
        said = client.command("restart", "tcp-0")
        assert (said.returncode, said.stdout) == (0, "workers: tcp-0\n")
        client.wait_until_replaced("tcp-0", before["tcp-0"])
        assert client.worker_pids() == {**before, "tcp-0": client.worker_pids()["tcp-0"]}
        flow.wait_for(100_000)
        said = client.command("restart")
        assert (said.returncode, said.stdout) == (0, "workers: tcp-0, fec-0, tun-0\n")
        for name in before:
            client.wait_until_replaced(name, before[name])
        flow.wait_for(100_000)
        assert client.process.poll() is None and "died" not in client.log


def test_a_worker_that_there_is_not_cannot_be_restarted(instances: Instances) -> None:
    said = instances[0].command("restart", "tcp-7")
    assert said.returncode == 1
    assert 'no worker "tcp-7"' in said.stderr and "tcp-0, tcp-1, fec-0, fec-1, tun-0, tun-1" in said.stderr


@pytest.mark.parametrize("words", [["status"], ["stop"], ["reload"], ["restart"]], ids=lambda words: words[0])
def test_another_user_may_not_talk_to_an_instance(instances: Instances, words: list[str]) -> None:
    said = subprocess.run(
        [*NOBODY, EXECUTABLE, *words, "--name", instances[0].name], capture_output=True, text=True, cwd="/"
    )
    assert said.returncode == 77, said.stderr
    assert "Permission denied" in said.stderr and "Traceback" not in said.stderr
    assert instances[0].is_running()


# -- reload


@pytest.mark.parametrize("how", ["command", "signal"])
def test_a_reload_applies_what_has_changed(lab: Lab, tmp_path: Path, how: str) -> None:
    routes = {"routes": ["10.96.0.0/16"]}
    with tunnel(lab, tmp_path, client=routes) as (server, client), Flow(client, server) as flow:
        before = client.worker_pids()
        flow.wait_for(100_000)
        client.write({**client.config, "routes": ["10.98.0.0/16"], "keepalive": 0.2})
        if how == "command":
            said = client.command("reload")
            assert said.returncode == 0 and said.stdout == "changed: routes, keepalive\n"
        else:
            client.signal(signal.SIGHUP)
            client.wait_for_log("reloaded: routes, keepalive")
            client.wait_for_log("reload: keepalive: workers are replaced, and connections made anew")
        for name in before:
            client.wait_until_replaced(name, before[name])
        routes = client.node.run(["ip", "route", "show", "dev", client.tun_name]).stdout
        assert "10.98.0.0/16" in routes and "10.96.0.0/16" not in routes
        flow.wait_for(100_000)
        flow.pause()
        eventually(lambda: client.counter("tcp.keepalives_sent") >= 3, 5.0)


def test_a_reload_of_routes_alone_replaces_no_worker(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path) as (_, client):
        before = client.worker_pids()
        client.write({**client.config, "routes": ["10.98.0.0/16"]})
        assert client.command("reload").returncode == 0
        assert "10.98.0.0/16" in client.node.run(["ip", "route", "show", "dev", client.tun_name]).stdout
        assert client.worker_pids() == before


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ('{"mode": ', "not JSON"),
        ({"lanes": 3}, "needs a restart: lanes"),
        ({"mtuu": 1400}, "mtuu"),
        ({"mtu": 1300, "routes": ["10.98.0.0/16"]}, "needs a restart: mtu"),
    ],
    ids=["no-json", "lanes", "unknown", "mtu-and-routes"],
)
@pytest.mark.parametrize("how", ["command", "signal"])
def test_a_reload_that_cannot_be_applied_changes_nothing_and_says_why(
    instances: Instances, how: str, change: str | dict[str, Any], text: str
) -> None:
    server, client = instances
    before, routes = client.worker_pids(), client.node.run(["ip", "route", "show"]).stdout
    refusals = client.log.count("reload refused")
    try:
        if isinstance(change, str):
            client.file.write_text(change)
        else:
            client.write({**client.config, **change})
        if how == "command":
            said = client.command("reload")
            assert said.returncode in (1, 78) and text in said.stderr and not said.stdout
        else:
            client.signal(signal.SIGHUP)
        eventually(lambda: client.log.count("reload refused") == refusals + 1)
        assert text in client.log
    finally:
        client.write(client.config)
    assert client.worker_pids() == before and client.is_running()
    assert client.node.run(["ip", "route", "show"]).stdout == routes
    assert reaches(client, server)


def test_a_storm_of_reloads_changes_nothing(instances: Instances) -> None:
    server, client = instances
    before = client.worker_pids()
    for _ in range(100):
        client.signal(signal.SIGHUP)
    assert client.command("reload").stdout == "changed: nothing\n"
    assert client.worker_pids() == before and client.is_running() and reaches(client, server)
