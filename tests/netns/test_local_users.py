"""Other users of the machine, and a worker that has been taken over: what they can read, stop and replace."""

from __future__ import annotations

import json
import mmap
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.shm import layout
from pipeline.shm.segment import SHM_DIRECTORY
from pipeline.supervisor.instance import RUN_DIRECTORY
from tests.netns.harness.hub import Hub, hub_config
from tests.netns.harness.instance import Instance, command, reaches, tunnel
from tests.support import eventually
from tools.lab.network import Lab

SOMEBODY = 4242
NOBODY = 65534
WINDOW = 1 << 24  # bytes of a process that are searched at a time


@pytest.fixture(scope="module")
def hub(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub and one client, whose certificate and invitation are their secrets."""
    with Hub(lab, tmp_path_factory.mktemp("local"), fec="on") as made:
        made.join(lab.nodes[1], "one", fec="on")
        yield made


# -- another user's process


LOOK = """
import ctypes, json, os, resource, signal, socket, sys
shm, run, name, *pids = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def connect():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{run}/{name}.sock")

allowed = []
def tried(what, act, *arguments):
    try:
        act(*arguments)
        allowed.append(what)
    except OSError:
        pass

for pid in map(int, pids):
    for file in ("mem", "environ", "maps", "auxv", "stack", "syscall"):
        tried(f"{file} of {pid}", lambda: open(f"/proc/{pid}/{file}", "rb").read(1))
    for directory in ("fd", "map_files", "cwd", "root"):
        tried(f"{directory} of {pid}", os.listdir, f"/proc/{pid}/{directory}")
    tried(f"ptrace {pid}", call, 101, 16, pid, 0, 0)
    tried(f"kill {pid}", os.kill, pid, 0)
    tried(f"stop {pid}", os.kill, pid, signal.SIGSTOP)
    tried(f"pidfd signal {pid}", lambda: signal.pidfd_send_signal(os.pidfd_open(pid), 0))
    tried(f"limits of {pid}", lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, 8)))
    tried(f"cores of {pid}", lambda: os.sched_setaffinity(pid, os.sched_getaffinity(pid)))
    tried(f"niceness of {pid}", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
    tried(f"scheduler of {pid}", lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)))
for file in os.listdir(shm):
    if f"tunnel@{name}@" in file:
        for how in ("r", "w", "a"):
            tried(f"{how} {file}", open, f"{shm}/{file}", how)
        tried(f"remove {file}", os.unlink, f"{shm}/{file}")
        tried(f"rename {file}", os.rename, f"{shm}/{file}", f"{shm}/mine")
tried("run directory", os.listdir, run)
tried("control socket", connect)
print(json.dumps(allowed))
"""


@pytest.mark.parametrize("uid", [SOMEBODY, NOBODY])
def test_another_user_can_neither_look_into_nor_disturb_an_instance(hub: Hub, uid: int) -> None:
    instance = hub.server
    pids = [instance.process.pid, *instance.worker_pids().values()]
    said = subprocess.run(
        [*as_user(uid), sys.executable, "-c", LOOK, SHM_DIRECTORY, RUN_DIRECTORY, instance.name, *map(str, pids)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(said.stdout or said.stderr) == []
    assert set(instance.restarts().values()) == {0}


def as_user(uid: int) -> list[str]:
    """Words in front of a command: it runs as that user, but may read where Python lies."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]


# -- names and files that another user has made


def test_names_that_another_user_has_made_stop_no_start(lab: Lab, tmp_path: Path) -> None:
    config = hub_config(lab.nodes[0], tmp_path)
    names = [f"{SHM_DIRECTORY}/tunnel@{config['name']}@00000000@{what}" for what in ("scoreboard", "ring")]
    make = f"mkdir '{names[0]}'; touch '{names[1]}'; chmod 666 '{names[1]}'"
    subprocess.run([*as_user(NOBODY), "sh", "-c", make], check=True)
    try:
        with Instance(lab.nodes[0], config, tmp_path) as instance:
            instance.wait_until_running()
            assert instance.log.count("2 names like ours that are not ours") == 1
        assert all(map(os.path.lexists, names))
    finally:
        os.rmdir(names[0])
        os.unlink(names[1])


def test_what_is_made_is_ours_alone_however_we_were_started(lab: Lab, tmp_path: Path) -> None:
    """With umask 0, and with a secret in the environment that is no business of the workers."""
    state = tmp_path / "new/lib/state"
    config = hub_config(lab.nodes[0], tmp_path, state_dir=str(state))
    environment = {"SERVICE_TOKEN": "secret", "LC_TIME": "C"}
    carelessly = ["sh", "-c", 'umask 0; exec "$@"', "sh"]
    with Instance(lab.nodes[0], config, tmp_path, wrap=carelessly, environment=environment) as instance:
        instance.wait_until_running()
        assert instance.command("invite", "one").returncode == 0
        made = [tmp_path / "new", *(tmp_path / "new").rglob("*"), RUN_DIRECTORY, *RUN_DIRECTORY.glob("*")]
        made += Path(SHM_DIRECTORY).glob(f"*tunnel@{instance.name}@*")
        assert len(made) > 10
        assert [path for path in made if path.stat().st_mode & 0o077] == []
        for pid in instance.worker_pids().values():
            given = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert b"LC_TIME=C" in given and b"SERVICE_TOKEN=secret" not in given
        limits = Path(f"/proc/{instance.running()['pid']}/limits").read_text()
        assert "Max core file size 0 0 bytes" in " ".join(limits.split())


def test_a_state_directory_that_others_can_change_is_refused_by_start_and_by_check(lab: Lab, tmp_path: Path) -> None:
    state = tmp_path / "state"
    config = hub_config(lab.nodes[0], tmp_path, state_dir=str(state))
    with Instance(lab.nodes[0], config, tmp_path) as instance:
        instance.wait_until_running()
        assert instance.command("invite", "one").returncode == 0
    cures = {
        "state": lambda: state.chmod(0o777),
        "peers": lambda: (state / "peers").chmod(0o770),
        "key": lambda: os.chown(state / "server.key", NOBODY, NOBODY),
    }
    for what, expose in cures.items():
        expose()
        with instance.start_again() as again:
            assert again.wait() == 78, what
            assert "chmod go-w" in again.log or f"chown root {state}" in again.log
            assert "Traceback" not in again.log
        for path in (state, state / "peers", state / "peers/one.json", state / "server.key"):
            os.chown(path, 0, 0)
            path.chmod(0o700)
    os.chown(state / "peers/one.json", NOBODY, NOBODY)  # this costs that peer
    with instance.start_again() as again:
        again.wait_until_running()
        assert f"chown root {state}/peers/one.json" in again.log
    state.chmod(0o777)
    file = tmp_path / "checked.json"
    file.write_text(json.dumps(config))
    checked = command("check", file)
    assert checked.returncode == 78
    assert checked.stderr == (
        f"tunnel-supervisor: state_dir: other users can write to {state} (mode 0777): chmod go-w {state}\n"
    )


# -- a worker that has been taken over


@pytest.fixture(scope="module")
def lanes(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    config = hub_config(lab.nodes[0], tmp_path_factory.mktemp("lanes"), lanes=2, fec="on")
    with Instance(lab.nodes[0], config, tmp_path_factory.mktemp("lanes")) as made:
        made.wait_until_running()
        yield made


CAN_WRITE = {
    "tun": {"plain-{0}", "light-{0}", "coded-{0}", "transit-{0}"},
    "fec": {"coded-{0}", "transit-{0}", "decoded-{0}"},
    "tcp": {"inbound-{0}"},
}
"""Rings whose slots a worker of lane {0} can write to."""


def test_a_worker_can_write_to_the_slots_of_its_own_lane_and_to_no_others(lanes: Instance) -> None:
    for worker, pid in lanes.worker_pids().items():
        kind, lane = worker.split("-")
        written: dict[str, list[tuple[int, int]]] = {}
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            area, rights, at, _, _, *path = line.split()
            if path and f"tunnel@{lanes.name}@" in path[0] and "/sem." not in path[0] and "w" in rights:
                begin, end = (int(part, 16) for part in area.split("-"))
                written.setdefault(path[0].split("@")[-1].split(".")[0], []).append((int(at, 16), end - begin))
        assert all(at >= layout.MAP_PAGE for areas in written.values() for at, _ in areas)
        slots = {
            name
            for name, areas in written.items()
            if any(at + size > layout.RING_CURSORS_AT + layout.MAP_PAGE for at, size in areas)
        }
        assert slots - {"scoreboard", "peer-table"} == {name.format(lane) for name in CAN_WRITE[kind]}
        ((page_at, size),) = written["scoreboard"]
        assert page_at >= layout.SCOREBOARD_PAGES_AT and size == layout.SCOREBOARD_PAGE_BYTES
        records = written.get("peer-table", [])
        assert records and all(at > layout.RECORDS_AT for at, _ in records)


def test_no_worker_has_a_descriptor_by_which_it_could_write_to_more(lanes: Instance) -> None:
    """Nor can it open one: its user is not that of the files, which others cannot even read."""
    for pid in lanes.worker_pids().values():
        found = 0
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(fd)
            except FileNotFoundError:
                continue  # closed while they are listed; those of the shared memory stay open
            if f"tunnel@{lanes.name}@" in target:
                found += 1
                flags = re.search(r"^flags:\s+(\d+)$", Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text(), re.MULTILINE)
                assert int(flags[1], 8) & os.O_ACCMODE == os.O_RDONLY
        assert found


def test_a_worker_that_overwrites_rings_ends_no_other_and_traffic_comes_back(lab: Lab, tmp_path: Path) -> None:
    """Here the test does it, for a second and until a ring was mended: cursors, headers of slots, the bytes behind."""
    rng = random.Random(1)
    values = (0, 1, 7, 4096, 135_168, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
    with tunnel(lab, tmp_path, fec="on") as (server, client):

        def overwrite(maps: list[mmap.mmap]) -> None:
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                each = rng.choice(maps)
                at = layout.RING_CURSORS_AT + 8 * rng.randrange((len(each) - layout.RING_CURSORS_AT) // 8)
                if rng.random() < 0.2:
                    at = layout.RING_CURSORS_AT + layout.CURSOR_STRIDE * rng.randrange(3)
                each[at : at + 8] = rng.choice(values).to_bytes(8, "little")
                if rng.random() < 0.05:
                    reaches(client, server, count=1, seconds=0.01)

        def has_mended(instance: Instance) -> bool:
            return any(instance.counter(f"{kind}.rings_inbound_mended") for kind in ("tcp", "tun", "fec"))

        for instance in (server, client):
            segments = [path for kind in CAN_WRITE.values() for name in kind for path in segments_of(instance, name)]
            assert len(segments) > 4
            with ExitStack() as stack:
                maps = []
                for path in segments:
                    file = stack.enter_context(path.open("r+b"))
                    maps.append(stack.enter_context(mmap.mmap(file.fileno(), 0)))
                for _ in range(10):
                    overwrite(maps)
                    if has_mended(instance):
                        break
        for instance in (server, client):
            eventually(lambda: reaches(client, server), 15.0, "traffic after the garbage")
            assert set(instance.restarts().values()) == {0}
            assert has_mended(instance)


def segments_of(instance: Instance, name: str) -> list[Path]:
    return list(Path(SHM_DIRECTORY).glob(f"tunnel@{instance.name}@*@{name.format(0)}.*"))
