"""The Debian package on fresh machines, with systemd as their first process: installed, rebooted, upgraded, removed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import pytest

from tests.netns.harness.fresh_machine import FreshRoot, Machine, outside
from tests.support import ROOT, eventually
from tools.lab.network import Lab

CAPABILITIES = int(re.findall(r"^CapBnd:\t(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)[0], 16)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MADE = "TUNNEL_TEST_PACKAGES"
"""For work on these tests: a directory with `root`, a base system, and a package, instead of making them each time."""
NO_INDEX = ("No matching distribution found", "Failed to establish a new connection", "Temporary failure in name")
UNIT, LAPTOP_UNIT = "tunnel-supervisor@hub.service", "tunnel-supervisor@laptop.service"
TEMPLATE = "tunnel-supervisor@.service"
COPY = "/var/cache/program"  # beside what files() looks at
LAYOUT = "/usr/lib/tunnel-supervisor/venv/lib/python3.11/site-packages/pipeline/shm/layout.py"
UPGRADED = ["/usr/lib/tunnel-supervisor/venv/bin/python3", "-I", "-m", "pipeline.service", "upgraded"]
CONFIG = "/etc/tunnel-supervisor/hub/config.json"
SCORE_MAX = 4.0  # of systemd-analyze security: 0 is best
STOOD_STILL = "paused: the supervisor did not run for"  # it tells about this machine, not about the unit
LOST_MAX = 3  # datagrams, while each worker is replaced once
MISSING_HERE = {number for number in range(64) if not CAPABILITIES >> number & 1}
PLACES = ("/etc", "/usr", "/var", "/run", "/dev/shm", "/home", "/root", "/tmp", "/opt")
OF_THE_SYSTEM = re.compile(
    r"^/(var/(lib/(dpkg|apt|systemd)|cache|log|tmp)|run/(systemd|log|lock|credentials)|etc/(ld.so.cache|.*-$))|__pycache__"
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, Path]]:
    """A base system, this package, and the same one with an older version."""
    if made := os.environ.get(MADE):
        (new,) = Path(made).glob("*.deb")
        yield Path(made, "root"), new, older(new, tmp_path_factory.mktemp("packages"))
        return
    directory = tmp_path_factory.mktemp("packages")
    base = FreshRoot(directory)
    try:
        words = outside(ROOT / "tools/package", "deb", "--out", directory)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if any(text in done.stderr for text in NO_INDEX):
            pytest.skip("no index of Python packages can be reached")
        assert done.returncode == 0, done.stderr
        base.finish()
        (new,) = directory.glob("*.deb")
        yield base.path, new, older(new, directory)
    finally:
        base.close()


def older(package: Path, directory: Path) -> Path:
    """The same package with the version 0.0.1, whose workers say so."""
    files = directory / "older"
    subprocess.run(["dpkg-deb", "-R", package, files], check=True)
    control = files / "DEBIAN/control"
    control.write_text(re.sub("^Version: .*$", "Version: 0.0.1", control.read_text(), flags=re.MULTILINE))
    made = directory / "older.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", files, made], check=True, capture_output=True)
    shutil.rmtree(files)
    return made


class Pair(NamedTuple):
    """A hub and its client, with the older package. They were connected, and have been rebooted since."""

    hub: Machine
    laptop: Machine
    package: Path
    before: set[str]  # the files of the laptop before the installation
    config: dict[str, Any]  # of the hub
    addresses: list[str]  # of the hub in the tunnel, IPv4 and IPv6


@pytest.fixture(scope="module")
def pair(packages: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    base, package, old = packages
    directory = tmp_path_factory.mktemp("machines")
    with (
        Lab(names=("hub", "laptop")) as lab,
        Machine(base, lab["hub"], directory) as hub,
        Machine(base, lab["laptop"], directory) as laptop,
    ):
        before = files(laptop)
        for machine in (hub, laptop):
            install(machine, old)
        line = hub.run("tunnel-supervisor", "invite", "laptop", "--address", f"{hub.node.address}:443")
        assert "connected to" in laptop.run("tunnel-supervisor", "join", "-", input=line)
        config = json.loads(hub.run("cat", CONFIG))
        made = Pair(hub, laptop, package, before, config, [each.partition("/")[0] for each in config["tunnel_addr"]])
        eventually(lambda: reaches(made), 30, "the hub reached")
        for machine in (laptop, hub):
            machine.reboot()
        yield made


def install(machine: Machine, package: Path) -> str:
    shutil.copy(package, machine.root / "root")
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--no-install-recommends", "-y", "-q"]
    said = machine.run(*apt, f"/root/{package.name}")
    (machine.root / "root" / package.name).unlink()
    return said


def files(machine: Machine) -> set[str]:
    """Every file, without those that belong to the package manager or to systemd."""
    found = machine.run("find", *PLACES, "-xdev").splitlines()
    return {path for path in found if not OF_THE_SYSTEM.search(path)}


def status(machine: Machine, name: str = "hub") -> dict[str, Any]:
    return json.loads(machine.attempt("tunnel-supervisor", "status", "--json", "--name", name).stdout)


def pids(machine: Machine, name: str = "hub") -> dict[str, int]:
    return {each["name"]: each["pid"] for each in status(machine, name)["workers"]}


def reaches(pair: Pair) -> bool:
    """Whether the laptop reaches the hub through the tunnel."""
    return all(pair.laptop.attempt("ping", "-c1", "-W1", address).returncode == 0 for address in pair.addresses)


def test_the_wheel_has_every_file_of_the_program_and_of_the_tools_what_demo_and_bench_need(
    packages: tuple[Path, Path, Path],
) -> None:
    (wheel,) = packages[1].parent.glob("*.whl")
    has = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name and ".data/" not in name}
    git = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in git if name.startswith(("pipeline/", "workers/"))} | {"tunnel_supervisor.py"}
    assert {name for name in has if not name.startswith("tools/")} == ours
    tools = {name.split("/")[1] for name in has if name.startswith("tools/")}
    assert {name for name in tools if not name.endswith(".py")} == {"bench", "lab", "load"}


def test_package_invite_join_and_nothing_else_give_a_tunnel_that_survives_a_reboot_of_both_machines(pair: Pair) -> None:
    eventually(lambda: reaches(pair), 30, "the hub reached again")


def test_the_unit_takes_all_rights_that_the_program_does_not_need(pair: Pair) -> None:
    hub = pair.hub
    main = hub.property(UNIT, "MainPID")
    said = dict(line.split(":\t", 1) for line in hub.run("cat", f"/proc/{main}/status").splitlines() if ":\t" in line)
    assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
    assert bits(said["CapBnd"]) == {5, 6, 7, 8, 10, 12, 23, 24} - MISSING_HERE  # linux/capability.h
    inside = ["nsenter", f"--target={main}", "--mount", "--", "sh", "-c"]
    for place in ("/usr/x", "/etc/x", "/etc/tunnel-supervisor/x", "/proc/sys/net/ipv4/ip_forward"):
        assert "Read-only" in hub.attempt(*inside, f"echo 1 > {place}").stderr
    score = hub.run("systemd-analyze", "security", "--no-pager", UNIT).splitlines()[-1]
    assert float(re.findall(r": ([0-9.]+) ", score)[0]) <= SCORE_MAX, score
    assert hub.run("systemd-analyze", "verify", "--man=no", UNIT) == ""
    assert "table inet tunnel-hub" in hub.run("nft", "list", "tables")
    tunnel = hub.run("id", "-u", "tunnel").strip()
    for pid in pids(hub).values():
        assert hub.run("stat", "-c", "%u", f"/proc/{pid}/environ").strip() == "0"  # no process of that user reads it
        assert re.search(rf"Uid:\t{tunnel}\t", hub.run("cat", f"/proc/{pid}/status"))
    warnings = hub.run("journalctl", "-q", "-p", "warning", "-u", UNIT).splitlines()
    assert [line for line in warnings if STOOD_STILL not in line] == []


def test_the_demonstration_runs_from_the_package(pair: Pair) -> None:
    assert "nothing is left behind" in pair.hub.run("tunnel-supervisor", "demo", "--seconds", "3")


def test_systemctl_shows_how_the_tunnel_is(pair: Pair) -> None:
    eventually(lambda: pair.hub.property(UNIT, "StatusText").startswith("1 peer connected"), 20)
    text = f"connected to {pair.hub.node.address}"
    eventually(lambda: pair.laptop.property(LAPTOP_UNIT, "StatusText").startswith(text), 20)


def test_a_reload_by_systemctl_is_applied_or_fails_and_the_tunnel_goes_on(pair: Pair) -> None:
    hub = pair.hub
    main, workers = hub.property(UNIT, "MainPID"), pids(hub)
    hub.write(CONFIG, json.dumps(pair.config | {"rate_mbit": 500}))
    hub.run("systemctl", "reload", UNIT)
    hub.write(CONFIG, json.dumps(pair.config | {"client_isolations": True}))
    assert hub.attempt("systemctl", "reload", UNIT).returncode == 1
    hub.write(CONFIG, json.dumps(pair.config))
    hub.run("systemctl", "reload", UNIT)
    assert (hub.property(UNIT, "ActiveState"), hub.property(UNIT, "MainPID")) == ("active", main)
    assert pids(hub) == workers
    eventually(lambda: reaches(pair), 20, "the hub reached")


@pytest.mark.alone
def test_a_supervisor_that_was_killed_or_hangs_is_started_again(pair: Pair) -> None:
    hub = pair.hub
    hub.write(f"/etc/systemd/system/{UNIT}.d/watchdog.conf", "[Service]\nWatchdogSec=5\nRestartSec=0.1\n", 0o644)
    hub.run("systemctl", "daemon-reload")
    hub.run("systemctl", "restart", UNIT)
    for sign, result in (("KILL", "signal"), ("STOP", "watchdog")):
        main = hub.property(UNIT, "MainPID")
        hub.run("kill", f"-{sign}", main)
        eventually(partial(has_other, hub, main), 30, f"a start after {result}")
        eventually(lambda: hub.property(UNIT, "ActiveState") == "active", 20)
    assert hub.property(UNIT, "NRestarts") == "2"
    hub.run("rm", "-r", f"/etc/systemd/system/{UNIT}.d")
    hub.run("systemctl", "daemon-reload")
    eventually(lambda: reaches(pair), 20, "the hub reached again")


def test_instances_come_and_go_beside_each_other(pair: Pair) -> None:
    hub, other = pair.hub, UNIT.replace("@hub", "@other")
    config = pair.config | {"name": "other", "local_addr": ":8443", "tunnel_addr": "10.83.48.1/24"}
    hub.write("/etc/tunnel-supervisor/other/config.json", json.dumps(config))
    hub.run("systemctl", "start", other)
    eventually(lambda: status(hub, "other")["state"] == status(hub)["state"] == "running", 10, "both running")
    hub.run("systemctl", "stop", other)
    eventually(lambda: status(hub)["state"] == "running", 10, "the other one running")
    hub.write("/etc/tunnel-supervisor/other/config.json", "{}}")
    assert hub.attempt("systemctl", "start", other).returncode == 1
    assert hub.property(other, "ExecMainStatus") == "78"
    assert hub.property(other, "ActiveState") == "failed"  # and is not tried again
    hub.run("systemctl", "reset-failed", other)
    hub.run("rm", "-r", "/etc/tunnel-supervisor/other")


@pytest.mark.alone
def test_an_upgrade_replaces_the_workers_and_traffic_goes_on(pair: Pair) -> None:
    laptop = pair.laptop
    main, before = laptop.property(LAPTOP_UNIT, "MainPID"), pids(laptop, "laptop")
    words = laptop.inside("ping", "-q", "-i", "0.05", pair.addresses[0])
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ping:
        said = install(laptop, pair.package)
        laptop.run("sh", "-c", "kill -INT $(pidof ping)")
        summary = ping.communicate(timeout=20)[0]
    sent, received = map(int, re.findall(r"(\d+) packets transmitted, (\d+) received", summary)[0])
    assert sent > 20 and sent - received <= LOST_MAX, summary
    assert "its workers run the new version" in said
    after = pids(laptop, "laptop")
    assert laptop.property(LAPTOP_UNIT, "MainPID") == main
    assert before.keys() == after.keys() and not set(before.values()) & set(after.values())


def test_a_service_that_starts_without_a_network_waits_for_it_and_connects(pair: Pair) -> None:
    laptop = pair.laptop
    laptop.node.ip("link set link0 down")
    laptop.run("systemctl", "restart", LAPTOP_UNIT)
    eventually(lambda: laptop.property(LAPTOP_UNIT, "StatusText").startswith("not connected to"), 20)
    laptop.node.ip("link set link0 up")
    eventually(lambda: reaches(pair), 30, "the hub reached again")


def test_the_program_needs_python_by_its_own_name_alone(pair: Pair) -> None:
    hub = pair.hub
    hub.run("ln", "-sf", "/nowhere", "/usr/bin/python3")  # as after an upgrade to the next release of the distribution
    try:
        hub.run("systemctl", "restart", UNIT)
        eventually(lambda: reaches(pair), 30, "the hub reached again")
    finally:
        hub.run("ln", "-sf", "python3.11", "/usr/bin/python3")


def test_an_upgrade_from_another_layout_restarts_the_service_if_the_configuration_is_right(
    pair: Pair,
) -> None:
    hub = pair.hub
    hub.run("sed", "-i", "s/^LAYOUT_VERSION = .*/LAYOUT_VERSION = 999/", LAYOUT)
    hub.run("systemctl", "restart", UNIT)
    main = hub.property(UNIT, "MainPID")
    hub.write(CONFIG, json.dumps(pair.config | {"unknown": 1}))
    said = install(hub, pair.package)
    assert "the new one refuses its configuration" in said, said
    assert (hub.property(UNIT, "MainPID"), hub.property(UNIT, "ActiveState")) == (main, "active")
    hub.write(CONFIG, json.dumps(pair.config))
    said = hub.run(*UPGRADED)
    assert "restarted, since its workers could not be replaced" in said, said
    assert hub.property(UNIT, "MainPID") != main
    eventually(lambda: reaches(pair), 30, "the hub reached again")


def test_a_removed_package_leaves_the_configuration_and_a_purged_one_nothing(pair: Pair) -> None:
    laptop = pair.laptop
    copy_program(laptop)
    kill_one(laptop)
    said = laptop.run("apt-get", "remove", "-y", "-q", "tunnel-supervisor")
    assert 'tunnel "laptop": stopped' in said and 'tunnel "killed": it had been killed' in said, said
    assert not laptop.run("ip", "-o", "link", "show", "type", "tun")
    assert "tunnel-" not in laptop.run("nft", "list", "tables")
    assert {path.split("/")[1] for path in files(laptop) - pair.before} == {"etc", "var"}
    assert laptop.run("cat", "/etc/tunnel-supervisor/laptop/key")
    install(laptop, pair.package)
    laptop.run("systemctl", "start", LAPTOP_UNIT)
    eventually(lambda: reaches(pair), 20, "the hub reached again")
    laptop.run("apt-get", "purge", "-y", "-q", "tunnel-supervisor")
    assert files(laptop) - pair.before == set()
    assert laptop.attempt("id", "tunnel").returncode != 0
    assert not laptop.run("systemctl", "list-units", "--all", "--no-legend", "tunnel-supervisor@*").strip()


def test_an_installation_that_came_from_no_package_becomes_a_service_and_goes_again(pair: Pair) -> None:
    hub, laptop = pair.hub, pair.laptop
    assert "from a package" in hub.attempt("tunnel-supervisor", "install-service").stderr
    laptop.run("mv", COPY, "/opt/program")  # it was no difference to the purge
    before, program = files(laptop), "/opt/program/bin/tunnel-supervisor"
    assert f"written: /etc/systemd/system/{TEMPLATE}" in laptop.run(program, "install-service")
    assert f"unchanged: /etc/systemd/system/{TEMPLATE}" in laptop.run(program, "install-service")
    assert laptop.run("systemd-analyze", "verify", "--man=no", LAPTOP_UNIT) == ""
    line = hub.run("tunnel-supervisor", "invite", "laptop", "--again")
    assert "connected to" in laptop.run(program, "join", "-", input=line)
    assert laptop.run("systemctl", "is-enabled", LAPTOP_UNIT).strip() == "enabled"
    laptop.run("systemctl", "restart", LAPTOP_UNIT)
    eventually(lambda: reaches(pair), 30, "the hub reached again")
    assert "still in use by" in laptop.attempt(program, "install-service", "--remove").stderr
    laptop.run(program, "leave", "laptop")
    laptop.run(program, "install-service", "--remove")
    left = {
        path for path in files(laptop) - before if not path.startswith(("/etc/passwd", "/etc/group", "/etc/shadow"))
    }
    assert left <= {"/etc/sysusers.d", "/etc/tmpfiles.d"}, left


def copy_program(machine: Machine) -> None:
    """Copy what the package has installed, as if pip had put it there."""
    machine.run("cp", "-a", "/usr/lib/tunnel-supervisor/venv", COPY)
    machine.run("sed", "-i", "1s|.*|#!/opt/program/bin/python3 -I|", f"{COPY}/bin/tunnel-supervisor")


def kill_one(machine: Machine) -> None:
    """The supervisor of an instance that was started by hand is killed: names, a socket and a table of it are left."""
    words = ["--set", "name=killed", "--set", "tun_name=killed0", "--set", "local_addr=:8443"]
    machine.run("systemd-run", "-q", "--unit=killed", "tunnel-supervisor", "start", "--mode=server", *words)
    look = ["tunnel-supervisor", "status", "--name=killed"]
    eventually(lambda: machine.attempt(*look).returncode == 0, 20, "an instance started by hand")
    machine.run("systemctl", "kill", "-s", "KILL", "killed")
    eventually(lambda: machine.attempt(*look).returncode == 3, 20, "its end")
    assert "tunnel-killed" in machine.run("nft", "list", "tables")
    machine.run("rm", "-r", "/var/lib/tunnel-supervisor/killed")


def has_other(machine: Machine, pid: str) -> bool:
    return machine.property(UNIT, "MainPID") not in (pid, "0")


def bits(hexadecimal: str) -> set[int]:
    return {number for number in range(64) if int(hexadecimal, 16) >> number & 1}
