"""A machine that joins for good: from nothing, through kills and restarts, to leaving without a trace.

The commands are typed in a node of a lab. There is no systemd, so instances are processes of their own.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import joined_client, service_manager
from pipeline.config.schema import STATE_DIRECTORY
from pipeline.credentials import invitation, keys
from tests.harness.process_memory import forms_of, found_in
from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.hub import Hub, reaches
from tests.netns.harness.instance import unique_name
from tests.support import eventually
from tools.instance import EXECUTABLE, leftovers
from tools.lab.network import Lab, Node

WAIT = ["--wait", "20"]
SERVER = "10.99.0.1"


class Machine:
    """A node on which a person types commands about one instance."""

    def __init__(self, node: Node, name: str = "") -> None:
        self.node = node
        self.name = name or unique_name("j")
        self.directory = joined_client.ETC / self.name

    def type(self, *words: str, line: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        done = self.node.run([EXECUTABLE, *words], check=False, input=line)
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def join(self, line: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.type("join", "-", "--name", self.name, *WAIT, *words, line=line + "\n", check=check)

    def start_join(self, line: str, *words: str) -> subprocess.Popen[str]:
        process = self.node.popen(
            [EXECUTABLE, "join", "-", "--name", self.name, *WAIT, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.stdin.write(line + "\n")
        process.stdin.close()
        process.stdin = None  # communicate() would flush it
        return process

    def status(self) -> dict[str, Any]:
        return json.loads(self.type("status", "--json", "--name", self.name).stdout)

    def pids(self) -> list[int]:
        """Of the supervisor and its workers."""
        status = self.status()
        return [status["pid"], *(worker["pid"] for worker in status["workers"])]

    def key(self) -> bytes:
        return keys.read_key(self.directory / "key", "key")

    def is_running(self) -> bool:
        return service_manager.is_running(self.name)

    def kill_everything(self) -> None:
        """As a machine that loses its power: the supervisor's workers die with it."""
        if self.is_running():
            pids = self.pids()
            os.kill(pids[0], signal.SIGKILL)
            eventually(lambda: not any(_is_alive(pid) for pid in pids), what="everything dead")

    def clean(self) -> None:
        """Leave; and whatever a test that has failed has left, nothing of it stays on this machine."""
        self.type("leave", self.name, check=False)
        is_clean = not self.is_running() and not self.directory.exists() and leftovers(self.name) == []
        self.kill_everything()
        shutil.rmtree(self.directory, ignore_errors=True)
        service_manager.forget(self.name)
        with suppress(OSError):
            joined_client.ETC.rmdir()
        assert is_clean


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture(scope="module")
def join_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Lab(names=("hub", "one", "two")) as lab, Hub(lab, tmp_path_factory.mktemp("join"), spares=False) as made:
        yield made


@pytest.fixture
def one(join_hub: Hub) -> Iterator[Machine]:
    machine = Machine(join_hub.lab["one"])
    yield machine
    machine.clean()


@pytest.fixture
def two(join_hub: Hub) -> Iterator[Machine]:
    machine = Machine(join_hub.lab["two"])
    yield machine
    machine.clean()


def invite(hub: Hub, *words: str) -> tuple[str, str]:
    """The name of a new peer, and its line."""
    peer = f"p-{secrets.token_hex(3)}"
    return peer, hub.invite(peer, *words)


# -- from nothing


def test_a_machine_joins_survives_a_loss_of_power_and_leaves_no_trace(join_hub: Hub, one: Machine) -> None:
    peer, line = invite(join_hub)
    done = one.join(line)
    address = join_hub.peers()[peer]["addresses"][0]
    assert done.stdout.startswith(f"connected to {join_hub.node.address} as {one.name}, address {address}")
    assert f"tunnel-supervisor up {one.name}" in done.stderr and line not in done.stderr
    assert reaches(one.node, SERVER)
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in one.directory.iterdir()}
    assert files == dict.fromkeys(("config.json", "key", "joined", "README"), 0o600)
    assert stat.S_IMODE(one.directory.stat().st_mode) == 0o700
    log = service_manager.LOG_DIRECTORY / f"{one.name}.log"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600 and "running:" in log.read_text()
    assert os.getsid(one.status()["pid"]) == one.status()["pid"], "no terminal takes it along"
    one.kill_everything()
    assert one.type("up", one.name, *WAIT).stdout == done.stdout and reaches(one.node, SERVER)
    assert one.type("up", one.name, *WAIT).stdout == done.stdout, "it runs already"
    assert one.type("down", one.name).stdout.startswith(f"down: {one.name}")
    assert not one.is_running() and one.type("down", one.name, check=False).returncode == 3
    one.type("up", one.name, *WAIT)
    assert one.type("leave", one.name).stdout == f"left: {one.name}\n"
    assert peer not in join_hub.peers(), "the server has forgotten it"
    assert not one.directory.exists() and not log.exists() and leftovers(one.name) == [] and not one.is_running()
    assert not (Path(STATE_DIRECTORY) / one.name).exists()


def test_a_second_machine_is_told_that_the_invitation_has_been_used(join_hub: Hub, one: Machine, two: Machine) -> None:
    peer, line = invite(join_hub)
    one.join(line)
    second = two.join(line, check=False)
    assert second.returncode == 1 and "this invitation has been used; ask for another" in second.stderr
    assert f"peer {peer}: its invitation is refused: this invitation has been used" in join_hub.server.log
    assert not two.directory.exists() and not two.is_running()
    assert "has joined with this invitation already" in one.join(line).stderr, "twice on one machine is once"
    _, other = invite(join_hub)
    again = one.join(other, check=False)
    assert again.returncode == 1 and f"`leave {one.name}` first" in again.stderr and reaches(one.node, SERVER)
    two.join(other)
    assert reaches(two.node, SERVER)


def test_of_two_machines_that_join_at_the_same_instant_with_one_line_one_does(
    join_hub: Hub, one: Machine, two: Machine
) -> None:
    _, line = invite(join_hub)
    begun = [machine.start_join(line) for machine in (one, two)]
    ended = [process.communicate(timeout=60) for process in begun]
    assert sorted(process.returncode for process in begun) == [0, 1], ended
    (refused,) = (err for process, (_, err) in zip(begun, ended, strict=True) if process.returncode)
    assert "this invitation has been used" in refused


def test_an_invitation_for_two_machines_makes_two_peers(join_hub: Hub, one: Machine, two: Machine) -> None:
    peer, line = invite(join_hub, "--uses", "2")
    begun = [machine.start_join(line) for machine in (one, two)]
    said = [process.communicate(timeout=60) for process in begun]
    assert [process.returncode for process in begun] == [0, 0], said
    assert sum(f"the server names this machine {peer}-2" in err for _, err in said) == 1
    assert join_hub.connected() >= {peer, f"{peer}-2"} and one.key() != two.key()
    second = (one, two)[f"{peer}-2" in said[1][1]]
    third = Machine(join_hub.lab["two"])
    assert "has been used" in third.join(line, check=False).stderr
    second.type("leave", second.name)
    assert peer in join_hub.connected() and f"{peer}-2" not in join_hub.peers()
    assert "has been used" in third.join(line, check=False).stderr, "a use is used"


def test_an_invitation_that_has_expired_or_was_revoked_leaves_nothing(join_hub: Hub, one: Machine) -> None:
    peer = f"p-{secrets.token_hex(3)}"
    answer = join_hub.server.ask(
        {"command": "invite", "name": peer, "allowed": [], "rate_mbit": None, "expires": int(time.time()) + 1}
    )
    eventually(lambda: join_hub.peers()[peer]["state"] == "expired", what="it expires")
    said = one.join(answer["line"], check=False)
    assert said.returncode == 1 and "this invitation has expired; ask for another" in said.stderr
    assert not one.directory.exists()
    peer, line = invite(join_hub)
    assert join_hub.server.command("revoke", peer).returncode == 0
    said = one.join(line, check=False)
    assert said.returncode == 1 and "this invitation has been revoked or replaced" in said.stderr
    one.join(invite(join_hub)[1])
    assert reaches(one.node, SERVER), "an earlier attempt is in nobody's way"


def test_settings_go_into_the_configuration_and_wrong_ones_cost_no_invitation(join_hub: Hub, one: Machine) -> None:
    _, line = invite(join_hub)
    for words, text in (
        (["--set", "mtuu=1"], "mtuu"),
        (["--set", "routes"], "expected KEY=VALUE"),
        (["--set", "name=x"], "--name"),
    ):
        said = one.join(line, *words, check=False)
        assert said.returncode in (2, 78) and text in said.stderr and not one.directory.exists()
    one.join(line, "--set", "fec=off", "--set", 'routes=["10.55.0.0/16"]')
    config = json.loads((one.directory / "config.json").read_text())
    assert config["fec"] == "off" and config["routes"] == ["10.55.0.0/16"] and config["name"] == one.name
    assert "10.55.0.0/16" in one.node.run(["ip", "route"]).stdout


def test_start_with_join_goes_on_with_the_key_of_the_line_and_a_join_ends_that(join_hub: Hub, one: Machine) -> None:
    client = join_hub.join(join_hub.lab["two"], f"k-{secrets.token_hex(3)}")
    assert reaches(client.node, SERVER)
    one.join(client.invitation)
    assert reaches(one.node, SERVER)
    client.wait_for_log("this invitation has been used; ask for another")
    client.stop()


def test_files_of_others_in_the_directory_stay_when_a_client_leaves(join_hub: Hub, one: Machine) -> None:
    one.join(invite(join_hub)[1])
    foreign = one.directory / "notes.txt"
    foreign.write_text("mine")
    said = one.type("leave", one.name)
    assert "notes.txt" in said.stderr and os.listdir(one.directory) == ["notes.txt"]
    foreign.unlink()
    one.directory.rmdir()
    with suppress(OSError):
        joined_client.ETC.rmdir()


def test_a_client_that_cannot_tell_its_server_leaves_all_the_same_and_says_so(tmp_path: Path, two_nodes: Lab) -> None:
    with Hub(two_nodes, tmp_path, spares=False) as hub:
        machine = Machine(two_nodes.nodes[1])
        machine.join(invite(hub)[1])
        hub.server.stop()
        said = machine.type("leave", machine.name)
        assert "the server has not been told: connection refused" in said.stderr
        assert not machine.directory.exists() and not machine.is_running()


@pytest.fixture
def two_nodes() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


# -- disabled


@pytest.mark.alone
def test_a_disabled_peer_is_cut_off_under_traffic_and_goes_on_when_it_is_enabled(join_hub: Hub) -> None:
    client = join_hub.join(join_hub.lab["two"], peer := f"d-{secrets.token_hex(3)}")
    with Flow(client, join_hub.server) as flow:
        flow.wait_for(1_000_000)
        began = time.monotonic()
        assert join_hub.server.command("peers", "disable", peer).stdout == f"disabled: {peer}\n"
        eventually(lambda: not reaches(client.node, SERVER, count=1, seconds=0.2), what="it is out")
        assert time.monotonic() - began < 3
        client.wait_for_log("this peer is disabled on the server")
        assert join_hub.peers()[peer]["state"] == "disabled"
        assert join_hub.server.command("peers", "enable", peer).returncode == 0
        flow.wait_for(1_000_000)
    client.stop()


# -- cut off at any instant


def test_a_join_that_is_killed_at_any_instant_is_finished_by_the_next_one(join_hub: Hub, one: Machine) -> None:
    """The kill comes later each time, from before the first byte is sent until after the end."""
    seen = set()
    for milliseconds in (0, 5, 10, 20, 40, 400):
        _, line = invite(join_hub)
        process = one.start_join(line)
        eventually((one.directory / "invitation").exists, what="the join has begun")
        threading.Event().wait(milliseconds / 1000)
        if milliseconds == 400:  # a slow machine has not got so far by then
            eventually((one.directory / "config.json").exists, what="the key is there")
        process.kill()
        process.communicate()
        seen.add(frozenset(os.listdir(one.directory)))
        assert "connected to" in one.join(line).stdout and reaches(one.node, SERVER)
        one.type("leave", one.name)
    assert len(seen) > 1, "every kill came at the same instant"


@pytest.mark.slow
def test_a_server_that_is_killed_while_machines_join_loses_no_invitation(tmp_path: Path, two_nodes: Lab) -> None:
    with Hub(two_nodes, tmp_path, spares=False) as hub:
        for delay in (0.3, 0.5, 0.7):
            machine = Machine(two_nodes.nodes[1])
            _, line = invite(hub)
            process = machine.start_join(line)
            threading.Event().wait(delay)
            hub.server.signal(signal.SIGKILL)
            hub.server.process.wait()
            hub.server.exit_status = hub.server.process.returncode
            hub.start_again()
            out, err = process.communicate(timeout=60)
            if process.returncode:
                out = machine.join(line, check=False).stdout or machine.type("up", machine.name, *WAIT).stdout
            assert "connected to" in out, err
            assert reaches(machine.node, SERVER)
            machine.clean()


# -- secrets


def test_a_key_of_a_joined_client_is_in_its_files_and_the_supervisors_and_nowhere_else(
    join_hub: Hub, one: Machine, tmp_path: Path
) -> None:
    peer, line = invite(join_hub)
    one.join(line, "--set", "log_level=debug")
    wanted = {
        f"{name}, {form}": value
        for name, key in (("new", one.key()), ("line", invitation.decode(line).key))
        for form, value in forms_of(key).items()
    } | {"invitation": line.encode()}
    status = one.status()
    assert "new, bytes" in found_in(status["pid"], wanted)
    assert not {"invitation", "line, base64", "line, bytes"} & found_in(status["pid"], wanted), (
        "it has only the new key"
    )
    server = join_hub.server.pids()
    assert {"new, bytes", "line, bytes"} <= found_in(server["supervisor"], wanted)
    workers = [*(worker["pid"] for worker in status["workers"]), *(server[n] for n in server if n != "supervisor")]
    assert [found_in(pid, wanted) for pid in workers] == [set()] * len(workers)
    log = (service_manager.LOG_DIRECTORY / f"{one.name}.log").read_bytes()
    texts = [log, join_hub.server.log.encode(), json.dumps(status).encode(), json.dumps(join_hub.peers()).encode()]
    assert [name for name, secret in wanted.items() for text in texts if secret in text] == []
    state = Path(join_hub.server.config["state_dir"])
    for path in (*one.directory.rglob("*"), *state.rglob("*")):
        if path.is_file() and any(secret in path.read_bytes() for secret in wanted.values()):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.name in ("key", f"{peer}.json"), path
