"""From start to stop: signals, what a start may lack, its surroundings, and that nothing is left."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pipeline.errors import NotRunning
from pipeline.supervisor.instance import Instance as InstanceFiles
from tests.netns.harness.checked_flow import Flow, transfer
from tests.netns.harness.instance import (
    NOBODY,
    Instance,
    Instances,
    client_config,
    command,
    reaches,
    server_config,
    traces,
    tunnel,
    unique_name,
)
from tests.netns.test_process_faults import broken
from tests.support import eventually
from tools.instance import EXECUTABLE, leftovers
from tools.lab.network import Lab

NO_NET_ADMIN = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
SHM_OF_64_MB = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh"]
STOP_UNDER_LOAD_SECONDS = 5.0
FOLLOW_SECONDS = 1.0
"""Until a killed supervisor's workers are gone too."""

TWO_THAT_START_AND_STOP = """
import threading
from pipeline.supervisor.instance import Instance

def start_and_stop(name):
    for _ in range(500):
        instance = Instance(name)
        instance.acquire()
        instance.release()

both = [threading.Thread(target=start_and_stop, args=(name,)) for name in ("one", "other")]
for each in both:
    each.start()
"""


def ended(pid: int) -> bool:
    """The process has ended, whether or not its new parent has noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def fails_to_start(instance: Instance, exit_status: int, *texts: str) -> None:
    """The start ends by itself with this status, and one message with these texts that is no stack trace."""
    with instance:
        eventually(lambda: instance.process.poll() is not None or instance.is_running())
        assert instance.process.poll() is not None, "it runs"
        assert instance.wait() == exit_status, instance.log
        assert all(text in instance.log for text in texts), instance.log
        assert "Traceback" not in instance.log


# -- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_by_signal_is_a_success_and_leaves_no_trace(lab: Lab, tmp_path: Path, number: int) -> None:
    names = unique_name("s"), unique_name("c")
    before = [traces(node, name) for node, name in zip(lab, names, strict=True)]
    with tunnel(
        lab,
        tmp_path,
        lanes=2,
        server={"name": names[0]},
        client={"name": names[1], "routes": ["10.98.0.0/16", "fd98::/48"]},
    ) as instances:
        transfer(*instances, streams=2, size=100_000)
        for instance in instances:
            assert leftovers(instance.name) and instance.tun_name in traces(instance.node, instance.name)["-o link"]
            instance.signal(number)
        assert [instance.wait() for instance in instances] == [0, 0]
    assert [traces(node, name) for node, name in zip(lab, names, strict=True)] == before


def test_stop_waits_until_everything_is_gone(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    name = unique_name("s")
    before = traces(a, name)
    with Instance(a, server_config(a, name=name), tmp_path) as instance:
        instance.wait_until_running()
        said = instance.command("stop")
        assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
        assert leftovers(name) == []
        assert instance.wait() == 0
    assert traces(a, name) == before


@pytest.mark.alone
@pytest.mark.parametrize("which", [0, 1], ids=["server", "client"])
def test_a_stop_under_load_takes_a_bounded_time(lab: Lab, tmp_path: Path, which: int) -> None:
    with tunnel(lab, tmp_path) as instances:
        server, client = instances
        with Flow(client, server) as up, Flow(server, client) as down:
            up.wait_for(1_000_000)
            down.wait_for(1_000_000)
            asked = time.monotonic()
            instances[which].stop()
            assert time.monotonic() - asked < STOP_UNDER_LOAD_SECONDS
            with instances[which].start_again() as back:
                back.wait_until_connected()
                up.finish()
                down.finish()


def test_a_worker_that_hangs_holds_up_a_stop_for_a_bounded_time(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    with Instance(a, server_config(a, drain_timeout=0.2), tmp_path) as instance:
        instance.wait_until_running()
        instance.signal_worker("tun-0", signal.SIGSTOP)
        instance.stop()
        assert leftovers(instance.name) == []


@pytest.mark.alone
def test_a_second_signal_ends_a_stop_that_takes_long(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    with Instance(a, server_config(a, drain_timeout=60), tmp_path) as instance:
        instance.wait_until_running()
        instance.signal_worker("tun-0", signal.SIGSTOP)
        instance.signal(signal.SIGTERM)
        instance.wait_for_log("stopping: signal SIGTERM")
        instance.signal(signal.SIGTERM)
        assert instance.wait(3.0) == 0
        assert "asked to stop again" in instance.log and leftovers(instance.name) == []


def test_a_signal_while_workers_start_is_a_stop(lab: Lab, tmp_path: Path) -> None:
    """The last workers never get ready, and the others are."""
    a = lab.nodes[0]
    name = unique_name("s")
    before = traces(a, name)
    config = server_config(a, name=name, lanes=3)
    with broken("tun", "import time; time.sleep(600)", tmp_path), Instance(a, config, tmp_path) as instance:
        eventually(lambda: states(instance) >= {"starting", "running"}, what="some workers run, and others start")
        instance.signal(signal.SIGTERM)
        assert instance.wait() == 0
        assert "running:" not in instance.log
    assert traces(a, name) == before


def states(instance: Instance) -> set[str]:
    """Of its workers; none while it does not answer yet."""
    return {worker["state"] for worker in (instance.status() or {"workers": []})["workers"]}


@pytest.mark.alone
def test_a_killed_supervisor_takes_its_workers_along_and_the_next_cleans_up(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    name = unique_name("s")
    before = traces(a, name)
    with Instance(a, server_config(a, name=name, lanes=2), tmp_path) as instance:
        instance.wait_until_running()
        workers, run = instance.worker_pids(), instance.running()["run"]
        instance.kill()
        eventually(lambda: all(map(ended, workers.values())), FOLLOW_SECONDS, "all workers gone")
        assert "duty failed" not in instance.log
        assert leftovers(name)
        said = instance.command("status")
        assert said.returncode == 3 and "its last supervisor died" in said.stderr
        with instance.start_again() as successor:
            successor.wait_until_running()
            assert not any(f"@{run}@" in path.name for path in leftovers(name))
            successor.stop()
    assert traces(a, name) == before


def test_commands_pass_over_a_dead_instance_and_name_it(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    dead, alive = (server_config(a, name=unique_name("s"), tunnel_addr=f"10.97.{i}.1/24") for i in range(2))
    with Instance(a, dead, tmp_path) as killed:
        killed.wait_until_running()
        killed.kill()
        note = f'dead, since the supervisor was killed: "{killed.name}" (its next start removes what is left)'
        for words in (["status"], ["stop"], ["reload"], ["restart"], ["peers"]):
            said = command(*words)
            assert said.returncode == 3 and said.stderr.endswith(f"no instance runs on this machine; {note}\n")
        for of in ((), ("--config", str(killed.file))):
            said = command("doctor", *of)
            assert said.returncode == 1 and f"{killed.name} does not run: its supervisor was killed" in said.stdout
        with Instance(a, alive, tmp_path) as instance:
            instance.wait_until_running()
            said = command("status", "--json")
            assert (said.returncode, said.stderr) == (0, f"note: {note}\n")
            assert json.loads(said.stdout)["name"] == instance.name
            assert command("reload").returncode == command("restart").returncode == command("stop").returncode == 0
            assert instance.wait() == 0
        assert command("status", "--name", "absent").returncode == 3


def test_files_that_somebody_removes_from_run_are_made_again(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    name = unique_name("s")
    before = traces(a, name)
    with Instance(a, server_config(a, name=name), tmp_path) as instance:
        instance.wait_until_running()
        files, pids = InstanceFiles(name), instance.worker_pids()
        files.lock_path.unlink()
        files.socket_path.unlink()
        files.lock_path.parent.rmdir()
        eventually(lambda: command("status", "--name", name).returncode == 0, what="a socket")
        instance.wait_for_log(f"{files.lock_path} was removed: made again")
        fails_to_start(instance.start_again(), 1, f'instance "{name}" runs already (pid {instance.process.pid})')
        assert instance.worker_pids() == pids
        assert command("stop", "--name", name).returncode == 0 == instance.wait()
    assert traces(a, name) == before


# -- what a start may lack


def test_a_second_supervisor_of_one_name_is_refused_and_the_first_stays(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path) as (server, client):
        before, files = client.worker_pids(), leftovers(client.name)
        fails_to_start(
            client.start_again(), 1, "--set name=", f'instance "{client.name}" runs already (pid {client.process.pid})'
        )
        assert (client.worker_pids(), leftovers(client.name)) == (before, files)
        assert reaches(client, server)


def test_two_instances_run_side_by_side(lab: Lab, tmp_path: Path) -> None:
    other = {"server": {"tunnel_addr": "10.97.0.1/24"}, "client": {"tunnel_addr": "10.97.0.2/24"}}
    with tunnel(lab, tmp_path) as first, tunnel(lab, tmp_path, **other) as second:
        for server, client in (first, second):
            transfer(client, server, streams=1, size=1_000_000)
        assert second[1].command("stop").returncode == 0 == second[1].wait()
        transfer(first[0], first[1], streams=1, size=1_000_000)


def test_a_full_dev_shm_is_a_message_at_the_start(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    name = unique_name("s")
    before = traces(a, name)
    fails_to_start(
        Instance(a, server_config(a, name=name), tmp_path, wrap=in_shm_of("size=2m")),
        1,
        f"tunnel@{name}@",
        "needs ",
        "/dev/shm has ",
        "enlarge it",
        "left in /dev/shm: nothing",
    )
    assert traces(a, name) == before


def test_a_dev_shm_without_room_for_a_doorbell_is_a_message_at_the_start(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    fails_to_start(
        Instance(a, server_config(a, fec="off"), tmp_path, wrap=in_shm_of("size=64m,nr_inodes=8")),
        1,
        "doorbell",
        "No space left on device",
        "left in /dev/shm: nothing",
    )


def test_a_read_only_dev_shm_is_a_message_at_the_start(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    name = unique_name("s")
    before = traces(a, name)
    config = server_config(a, name=name)
    fails_to_start(Instance(a, config, tmp_path, wrap=in_shm_of("ro")), 1, f"tunnel@{name}@", "Read-only file system")
    assert traces(a, name) == before


def test_a_dev_shm_of_64_mb_that_is_filled_while_an_instance_runs_costs_no_byte(lab: Lab, tmp_path: Path) -> None:
    """Containers have this size. All memory is allocated at the start, so nobody meets a page that is not there."""
    a, b = lab
    serving = server_config(a)
    with (
        Instance(a, serving, tmp_path, wrap=SHM_OF_64_MB) as server,
        Instance(b, client_config(serving, a.address), tmp_path) as client,
    ):
        for instance in (server, client):
            instance.wait_until_connected()
        inside = ["nsenter", "--mount", f"--target={server.running()['pid']}"]
        filled = a.run([*inside, "dd", "if=/dev/zero", "of=/dev/shm/filler", "bs=1M"], check=False)
        assert "No space left on device" in filled.stderr
        with Flow(client, server) as up, Flow(server, client) as down:
            for worker in server.workers():
                up.wait_for(100_000)
                down.wait_for(100_000)
                server.wait_until_replaced(worker, server.signal_worker(worker, signal.SIGKILL))
            up.wait_for(100_000)
            down.wait_for(100_000)
        a.run([*inside, "rm", "/dev/shm/filler"])


def in_shm_of(options: str) -> list[str]:
    """Words in front of a command: it has a /dev/shm of its own; what it leaves there is told afterwards."""
    script = (
        f'mount -t tmpfs -o {options} tmpfs /dev/shm && "$@"; status=$?; left=$(ls /dev/shm); '
        'echo "left in /dev/shm: ${left:-nothing}"; exit $status'
    )
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


def test_a_port_in_use_is_a_message_at_the_start(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    name = unique_name("s")
    config = server_config(a, name=name)
    before = traces(a, name)
    with a.socket() as other:
        other.bind(("0.0.0.0", int(config["local_addr"].rpartition(":")[2])))
        other.listen()
        fails_to_start(Instance(a, config, tmp_path), 1, config["local_addr"], "another program listens there")
    assert traces(a, name) == before


def test_an_address_that_is_not_ours_is_a_message_at_the_start(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    fails_to_start(
        Instance(a, server_config(a, local_addr="192.0.2.1:9000"), tmp_path),
        1,
        "local_addr 192.0.2.1:9000",
        "Cannot assign requested address",
    )


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_a_device_name_that_another_instance_holds_is_a_message_at_the_start(
    instances: Instances, tmp_path: Path, lanes: int
) -> None:
    server, client = instances
    config = server_config(server.node, tun_name=server.tun_name, tunnel_addr="10.97.0.1/24", lanes=lanes)
    fails_to_start(
        Instance(server.node, config, tmp_path), 1, f"TUN device {server.tun_name}: ", "set another tun_name"
    )
    assert server.is_running() and reaches(client, server)


def test_a_device_name_of_another_kind_is_a_message_at_the_start(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    before = traces(a, "")
    fails_to_start(
        Instance(a, server_config(a, tun_name=a.interface), tmp_path),
        1,
        f"TUN device {a.interface}",
        "set another tun_name",
    )
    assert traces(a, "") == before


def test_a_missing_dev_net_tun_is_a_message_at_the_start(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    name = unique_name("s")
    before = traces(a, name)
    without = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/net && exec "$@"', "sh"]
    fails_to_start(
        Instance(a, server_config(a, name=name), tmp_path, wrap=without),
        1,
        "/dev/net/tun: No such file or directory",
        "load the tun module",
    )
    assert traces(a, name) == before


@pytest.mark.parametrize("wrap", [NOBODY, NO_NET_ADMIN], ids=["nobody", "root-without-net-admin"])
def test_a_start_without_the_right_to_do_so_has_a_status_of_its_own(lab: Lab, wrap: list[str]) -> None:
    a = lab.nodes[0]
    name = unique_name("c")
    before = traces(a, name)
    said = a.run(
        [
            *wrap,
            EXECUTABLE,
            "start",
            "--mode",
            "client",
            "--remote",
            "192.0.2.1:9000",
            "--tunnel",
            "10.99.0.2/24",
            "--set",
            "encryption=none",
            "--set",
            f"name={name}",
        ],
        check=False,
        cwd="/",
    )
    assert said.returncode == 77, said.stderr
    assert "root" in said.stderr and "Traceback" not in said.stderr
    assert traces(a, name) == before


# -- its surroundings


@contextmanager
def service_manager(address: Path) -> Iterator[queue.Queue[bytes]]:
    """What it hears. It reads at once: a socket has room for ten messages, and no more than that are kept."""
    heard: queue.Queue[bytes] = queue.Queue()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(address))

        def listen() -> None:
            while said := sock.recv(4096):
                heard.put(said)

        reader = threading.Thread(target=listen)
        reader.start()
        try:
            yield heard
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
                own.sendto(b"", str(address))
            reader.join()


def test_a_service_manager_hears_of_every_step(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    address = tmp_path / "notify"
    with service_manager(address) as manager:
        heard: set[str] = set()

        def hear(word: str) -> None:
            while (said := manager.get(timeout=20).decode().split("\n"))[0] != word:
                assert said[0].startswith(("WATCHDOG=1", "STATUS=")), f"expected {word}, got {said}"
                heard.update(said)

        with Instance(
            a, server_config(a), tmp_path, environment={"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "200000"}
        ) as instance:
            assert manager.get(timeout=20) == b"READY=1"
            assert instance.is_running()
            hear("WATCHDOG=1")
            assert instance.command("reload").returncode == 0
            hear("RELOADING=1")
            hear("READY=1")
            instance.file.write_text("nonsense")
            instance.signal(signal.SIGHUP)
            hear("RELOADING=1")
            hear("READY=1")
            instance.signal(signal.SIGTERM)
            hear("STOPPING=1")
            assert instance.wait() == 0
        assert "STATUS=0 peers connected" in heard


def test_a_supervisor_that_hangs_is_silent_until_it_goes_on(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "40000"}
        with Instance(a, server_config(a), tmp_path, environment=environment) as instance:
            instance.wait_until_running()
            instance.signal(signal.SIGSTOP)
            manager.settimeout(0.5)
            with pytest.raises(TimeoutError):
                while manager.recv(4096):  # what was sent before
                    pass
            instance.signal(signal.SIGCONT)
            manager.settimeout(20)
            assert manager.recv(4096) == b"WATCHDOG=1"


def test_a_watchdog_is_not_fed_while_a_worker_is_down(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        with Instance(
            a,
            server_config(a, drain_timeout=30),
            tmp_path,
            environment={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "40000"},
        ) as instance:
            instance.wait_until_running()
            instance.signal_worker("tcp-0", signal.SIGSTOP)
            assert instance.command("restart", "tcp-0").returncode == 0  # stopped, it cannot end before it goes on
            manager.setblocking(False)
            with suppress(BlockingIOError):
                while manager.recv(4096):
                    pass
            manager.settimeout(0.5)
            with pytest.raises(TimeoutError):
                manager.recv(4096)
            os.kill(instance.worker_pids()["tcp-0"], signal.SIGCONT)
            manager.settimeout(20)
            assert manager.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"], ids=["full", "closed"])
def test_a_lost_standard_error_costs_the_log_alone(lab: Lab, tmp_path: Path, redirection: str) -> None:
    a, b = lab
    serving = server_config(a)
    silent = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    with (
        Instance(a, serving, tmp_path, wrap=silent) as server,
        Instance(b, client_config(serving, a.address), tmp_path, wrap=silent) as client,
    ):
        for instance in (server, client):
            instance.wait_until_connected()
        transfer(client, server, streams=1, size=100_000)
        pid = client.signal_worker("tcp-0", signal.SIGKILL)
        client.wait_until_replaced("tcp-0", pid)
        eventually(lambda: reaches(client, server))


def test_a_log_of_json_has_an_object_in_every_line(lab: Lab, tmp_path: Path) -> None:
    a = lab.nodes[0]
    with Instance(a, server_config(a, log_format="json", log_level="debug"), tmp_path) as instance:
        instance.wait_until_running()
        pid = instance.signal_worker("tun-0", signal.SIGKILL)
        instance.wait_until_replaced("tun-0", pid)
        instance.stop()
        said = [json.loads(line) for line in instance.log.splitlines()]
    assert all({"time", "level", "instance", "process", "text"} == set(line) for line in said)
    assert {"supervisor", "tcp-0", "tun-0"} >= {line["process"] for line in said}


def test_asking_for_an_instance_never_keeps_it_from_starting() -> None:
    name = unique_name("x")
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            with suppress(NotRunning):
                InstanceFiles(name).supervisor_pid()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(300):
            instance = InstanceFiles(name)
            instance.acquire()
            instance.release()
    finally:
        done.set()
        asking.join()
        for path in leftovers(name):
            path.unlink()


def test_instances_that_start_while_others_stop_do_not_disturb_each_other() -> None:
    """In a /run of their own, where the last one to stop removes the directory."""
    alone = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh"]
    said = subprocess.run(
        [*alone, sys.executable, "-c", TWO_THAT_START_AND_STOP], capture_output=True, text=True, timeout=60
    )
    assert (said.returncode, said.stderr) == (0, "")
