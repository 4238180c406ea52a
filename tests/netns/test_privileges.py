"""Real tunnels whose workers have no rights: what they are, and that everything works nevertheless."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.netns.harness.checked_flow import Flow, transfer
from tests.netns.harness.instance import Instance, Instances, client_config, reaches, server_config, tunnel
from tests.support import eventually
from tools.lab.network import Lab

OTHER = next((each for each in pwd.getpwall() if each.pw_uid), None)
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
FEC = {"fec": "on"}
AT_ONCE_SECONDS = 0.4
"""Six workers do not all happen to look within it."""

CONGESTION = Path("/proc/sys/net/ipv4")
FOR_ROOT = [
    name
    for name in (CONGESTION / "tcp_available_congestion_control").read_text().split()
    if name not in (CONGESTION / "tcp_allowed_congestion_control").read_text().split()
]

LAUNCH = """
import sys
from pipeline.cli.main import main
sys.executable, *sys.argv = sys.argv[1:]
sys.exit(main())
"""
"""`tunnel-supervisor`, whose workers are started by the program that is named first."""

LISTEN = """
import os, signal, sys
from pipeline.runtime import privileges
from pipeline.transport.resolver import Resolver
from workers.__main__ import main

def say(event, arguments):
    if event == "import" and arguments[0] != "ast":  # for marks in a traceback, which does without
        os.write(2, f"imported late: {arguments[0]}\\n".encode())

def drop_and_listen(account, drop=privileges.drop):
    drop(account)
    sys.addaudithook(say)
    os.write(2, b"listening\\n")

def fail(*_):
    raise RuntimeError("made to fail")

def break_resolver(*_):
    Resolver.begin = fail

privileges.drop = drop_and_listen
signal.signal(signal.SIGUSR1, break_resolver)
sys.argv = ["workers", *sys.argv[4:]]  # behind -I -m workers
sys.exit(main())
"""
"""A worker that says what it imports once it has dropped its rights; the next look-up of a name after SIGUSR1 fails."""


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instances]:
    with Lab() as lab, tunnel(lab, tmp_path_factory.mktemp("privileges"), lanes=2, **FEC) as made:
        yield made


def statuses(instance: Instance, worker: str) -> list[dict[str, list[str]]]:
    """proc_pid_status(5) of every thread of a worker."""
    found = []
    for thread in Path(f"/proc/{instance.worker_pids()[worker]}/task").iterdir():
        lines = (line.partition(":") for line in (thread / "status").read_text().splitlines())
        found.append({name: value.split() for name, _, value in lines})
    return found


def default_ids(instance: Instance) -> tuple[int, int]:
    """User and group of the workers, without the setting `user`, by the log."""
    (name,) = re.findall(r"workers run as (?:user )?([^,\n]+)", instance.log)
    if name.isdecimal():
        return int(name), int(name)
    entry = pwd.getpwnam(name)
    return entry.pw_uid, entry.pw_gid


def belongs_to(instance: Instance, worker: str, uid: int, gid: int) -> bool:
    """Every thread is that user's, in no other group, and has no capability and no way to get one."""
    return all(
        status["Uid"] == [str(uid)] * 4
        and status["Gid"] == [str(gid)] * 4
        and status["NoNewPrivs"] == ["1"]
        and (not status["Groups"] or uid == 0)
        and all(int(status[name][0], 16) == 0 for name in CAPABILITIES)
        for status in statuses(instance, worker)
    )


# -- what they are


def test_every_worker_is_a_user_without_rights_and_the_supervisor_is_not(instances: Instances) -> None:
    for instance in instances:
        assert {name.split("-")[0] for name in instance.workers()} == {"tcp", "fec", "tun"}
        for worker in instance.workers():
            assert belongs_to(instance, worker, *default_ids(instance))
        assert os.stat(f"/proc/{instance.running()['pid']}").st_uid == 0
    assert default_ids(instances[0]) != default_ids(instances[1]) or "tunnel" in instances[0].log


def test_no_worker_leaves_a_core_dump_or_can_be_looked_into(instances: Instances) -> None:
    for instance in instances:
        for pid in instance.worker_pids().values():
            assert "Max core file size 0 0 bytes" in " ".join(Path(f"/proc/{pid}/limits").read_text().split())
            assert os.stat(f"/proc/{pid}/environ").st_uid == 0  # proc(5): so it is of a process that is not dumpable
            assert os.getsid(pid) == pid


def test_a_worker_has_no_thread_but_its_duties(instances: Instances) -> None:
    for instance in instances:
        assert {worker: len(statuses(instance, worker)) for worker in instance.workers()} == dict.fromkeys(
            instance.workers(), 3
        )


@pytest.mark.skipif(OTHER is None, reason="no second user on this machine")
def test_workers_are_the_user_of_the_configuration(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, server={"user": OTHER.pw_name}, client={"user": "root"}) as (server, client):
        assert all(belongs_to(server, worker, OTHER.pw_uid, OTHER.pw_gid) for worker in server.workers())
        assert all(belongs_to(client, worker, 0, 0) for worker in client.workers())
        transfer(client, server, streams=1, size=1_000_000)


def test_a_user_who_does_not_exist_is_a_message_at_the_start(lab: Lab, tmp_path: Path) -> None:
    name = f"x{secrets.token_hex(6)}"
    with Instance(lab.nodes[0], server_config(lab.nodes[0], user=name), tmp_path) as instance:
        assert instance.wait(20) == 78
        assert "user: " in instance.log and name in instance.log and "Traceback" not in instance.log


@pytest.mark.parametrize("lacking", ["setuid", "kill"])
def test_without_the_right_to_change_users_workers_keep_theirs(lab: Lab, tmp_path: Path, lacking: str) -> None:
    a, b = lab
    serving = server_config(a)
    less = ["setpriv", f"--bounding-set=-{lacking}", f"--inh-caps=-{lacking}"]
    with (
        Instance(a, serving, tmp_path, wrap=less) as server,
        Instance(b, client_config(serving, a.address), tmp_path, wrap=less) as client,
    ):
        for instance in (server, client):
            instance.wait_until_connected()
            assert all(belongs_to(instance, worker, 0, 0) for worker in instance.workers())
        transfer(client, server, streams=1, size=1_000_000)


@pytest.mark.alone
def test_workers_end_with_their_supervisor_at_once(lab: Lab, tmp_path: Path) -> None:
    """By the kernel's signal, which they asked for as the user that they are; their own look is one in a second."""
    with Instance(lab.nodes[0], server_config(lab.nodes[0], lanes=2, **FEC), tmp_path) as instance:
        instance.wait_until_running()
        fds = [os.pidfd_open(pid) for pid in instance.worker_pids().values()]
        try:
            instance.signal(signal.SIGKILL)
            eventually(lambda: select.select(fds, [], [], 0)[0] == fds, AT_ONCE_SECONDS, "all workers gone")
            instance.wait()
        finally:
            for fd in fds:
                os.close(fd)


# -- that everything goes on all the same


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_traffic_passes_both_ways(instances: Instances, six: bool) -> None:
    server, client = instances
    transfer(client, server, streams=2, size=3_000_000, six=six)
    transfer(server, client, streams=2, size=3_000_000, six=six)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT], ids=["killed", "aborted"])
@pytest.mark.parametrize("kind", ["tcp", "fec", "tun"])
def test_the_successor_of_a_dead_worker_has_no_rights_either(instances: Instances, kind: str, number: int) -> None:
    server, client = instances
    with Flow(client, server) as up, Flow(server, client) as down:
        for instance in instances:
            pid = instance.signal_worker(f"{kind}-0", number)
            instance.wait_until_replaced(f"{kind}-0", pid)
            assert belongs_to(instance, f"{kind}-0", *default_ids(instance))
        up.wait_for(100_000)
        down.wait_for(100_000)


def test_a_worker_that_hangs_leaves_its_stack_and_is_replaced(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, client={"heartbeat_timeout": 1.5}, **FEC) as (server, client):
        for worker in client.workers():
            pid = client.signal_worker(worker, signal.SIGSTOP)
            client.wait_until_replaced(worker, pid)
            assert belongs_to(client, worker, *default_ids(client))
        assert client.log.count("Fatal Python error: Aborted") == len(client.workers())
        # A stopped process runs on for its end, and of threads that run the interpreter cannot always read the stack.
        assert len(re.findall("died: (?:SIGABRT|SIGSEGV)", client.log)) == len(client.workers())
        eventually(lambda: reaches(client, server))


def test_offloads_are_agreed_upon_with_each_server_anew(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path) as (server, client):
        transfer(client, server, streams=1, size=1_000_000)
        server.stop()
        with Instance(server.node, {**server.config, "offload": False}, tmp_path) as weaker:
            weaker.wait_until_connected()
            transfer(client, weaker, streams=1, size=1_000_000)
            client.wait_for_log("offloads in force: 0x0 of")


def test_a_congestion_control_that_workers_may_not_choose_the_supervisor_sets(lab: Lab, tmp_path: Path) -> None:
    if not FOR_ROOT:
        pytest.skip("every congestion control that this kernel has is for everybody")
    with tunnel(lab, tmp_path, congestion=FOR_ROOT[0]) as instances:
        for instance in instances:
            wait_for_congestion(instance, FOR_ROOT[0])
            assert instance.running()["notes"] == []
        transfer(instances[1], instances[0], streams=1, size=100_000)
        for instance in instances:
            assert "invalid request" not in instance.log


def test_a_congestion_control_that_the_kernel_lacks_is_said_with_its_cure(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, congestion="no-such") as instances:
        for instance in instances:
            instance.wait_for_log("congestion control no-such cannot be had (the kernel does not have it)")
            (note,) = instance.running()["notes"]
            assert "modprobe tcp_no-such" in note
        transfer(instances[1], instances[0], streams=1, size=100_000)


def wait_for_congestion(instance: Instance, name: str) -> None:
    """Until all its connections have this congestion control."""
    eventually(lambda: {each["congestion"] for each in instance.running()["connections"]} == {name})


@pytest.mark.parametrize("encryption", ["none", "tls"])
def test_nothing_is_imported_once_the_rights_are_gone(lab: Lab, tmp_path: Path, encryption: str) -> None:
    """Python itself may lie where they cannot read. Everything happens to these workers: a server is found by its name,
    goes and comes back; bad connections, a duty that fails, an abort, a stop."""
    a, b = lab
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{a.address} server.test\n")
    wrap = [*with_hosts(hosts), *listening(tmp_path)]
    both = {"log_level": "debug", "encryption": encryption, **FEC}
    serving = server_config(a, log_format="json", state_dir=str(tmp_path / "state"), **both)
    dialling = client_config(serving, "server.test", tls_skip_verify=encryption == "tls", **both)
    with Instance(b, dialling, tmp_path, wrap=wrap) as client:
        with Instance(a, serving, tmp_path, wrap=wrap) as server:
            for instance in (server, client):
                instance.wait_until_connected()
            with b.socket() as sock:
                sock.connect((a.address, int(serving["local_addr"].rpartition(":")[2])))
                sock.sendall(b"\xff\x1b[31m" * 100)
                sock.settimeout(15)
                with suppress(ConnectionError):  # it hung up on the rest
                    while sock.recv(100):
                        pass
            transfer(client, server, streams=1, size=1_000_000)
        client.wait_for_log("connection refused")
        pid = client.signal_worker("tcp-0", signal.SIGUSR1)
        client.wait_for_log("inbound duty failed")
        client.wait_for_log("RuntimeError: made to fail")
        client.wait_until_replaced("tcp-0", pid)
        with server.start_again() as back:
            for instance in (back, client):
                instance.wait_until_connected()
            for worker in client.workers():
                client.wait_until_replaced(worker, client.signal_worker(worker, signal.SIGABRT))
            eventually(lambda: reaches(client, back))
    for instance in (server, back, client):
        assert instance.log.count("listening") >= len(("tcp", "fec", "tun"))
        assert "imported late" not in instance.log


def test_a_name_that_does_not_exist_is_said_and_tried_again(lab: Lab, tmp_path: Path) -> None:
    config = client_config(server_config(lab.nodes[0]), "no-such-server.invalid")
    with Instance(lab.nodes[1], config, tmp_path) as client:
        client.wait_until_running()
        client.wait_for_log("server no-such-server.invalid port", 30.0)
        eventually(lambda: client.counter("tcp.dials_failed") > 1, 30.0)
        assert "Traceback" not in client.log


def with_hosts(hosts: Path) -> list[str]:
    """Words in front of a command: it finds these names."""
    return ["unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]


def listening(directory: Path) -> list[str]:
    """Words in front of a command: its workers say what they import late."""
    listener, starter = directory / "listen.py", directory / "python"
    listener.write_text(LISTEN)
    starter.write_text(f'#!/bin/sh\nexec {sys.executable} -I {listener} "$@"\n')
    starter.chmod(0o755)
    return [sys.executable, "-c", LAUNCH, str(starter)]
