"""A join that ends at any instant, on either side, and what the next one finds. Files and server role are real.

The death of the command is an exception that nobody catches, at each step in turn; that of the server, a restart from
its files. The network between them is a function call.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import (
    join_attempts,
    join_commands,
    joined_client,
    joining_machine,
    leave_command,
    service_manager,
    started_instance,
)
from pipeline.cli.main import main
from pipeline.contact import first_contact
from pipeline.contact.first_contact import Exchanged, FirstContactError, Server
from pipeline.credentials import key_exchange, keys
from pipeline.credentials.invitation import Invitation, encode
from pipeline.errors import LocalError
from pipeline.wire import messages
from pipeline.wire.messages import Done, Refused
from tests.harness.running_server import Running
from tests.unit.supervisor.roles.test_enrollment import Machine

FINGERPRINT = "ab" * 32


class Death(BaseException):
    """The process is killed."""


class World:
    """A server, and a machine on which `join` is typed. `dies_at`: the step before which the machine dies."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        (directory / "server").mkdir()
        self.server = Running(directory / "server")
        self.etc = directory / "etc"
        self.steps = 0
        self.dies_at = -1
        self.loses: Callable[[], bool] = lambda: False
        """Whether the answer of the server is lost."""
        self.started: list[str] = []
        self.asked: list[str] = []  # servers
        self.others: dict[str, FirstContactError] = {}
        """Further servers, and how they answer."""
        self._write, self._unlink = keys.write_secret, Path.unlink
        patch.setattr(joined_client, "ETC", self.etc)
        patch.setattr(joined_client.keys, "write_secret", self._write_secret)
        patch.setattr(first_contact, "exchange", self._exchange)
        patch.setattr(first_contact, "leave", self._leave)
        patch.setattr(join_commands, "start_and_wait", self._start)
        patch.setattr(join_attempts, "PAUSES", (0.0,))
        for commands in (join_commands, leave_command):
            patch.setattr(commands, "expect_root", lambda command: None)
        patch.setattr(joining_machine, "TUN_DEVICE", directory)
        patch.setattr(service_manager, "is_running", lambda name: False)
        patch.setattr(service_manager, "stop", lambda name: False)
        patch.setattr(service_manager, "forget", lambda name: None)

    def _start(self, name: str, *_: object) -> int:
        self.started.append(name)
        return 0

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.dies_at:
            raise Death

    def _write_secret(self, path: Path, data: bytes, *, replace: bool = False) -> None:
        if self.etc in Path(path).parents:
            self.step()
        self._write(path, data, replace=replace)
        if self.etc in Path(path).parents:
            self.step()

    def _machine(self, key: bytes, private: bytes) -> Machine:
        machine = Machine(self.server, key)
        machine.private = private
        return machine

    def _exchange(self, server: Server, key: bytes, private: bytes) -> Exchanged:
        self.step()
        self.asked.append(server.text)
        if server.text in self.others:
            raise self.others[server.text]
        machine = self._machine(key, private)
        answer = machine.exchange()
        self.step()
        if self.loses():
            raise FirstContactError("the server does not answer", is_open=True)
        if isinstance(answer, Refused):
            settled = answer.reason in first_contact.SETTLING_REASONS
            raise FirstContactError(answer.text, is_final=settled, is_settled=settled, is_open=not settled)
        if answer is None:
            raise FirstContactError(first_contact.UNKNOWN, is_open=True)
        assert isinstance(answer, Done)
        public = key_exchange.public_of(private)
        return Exchanged(
            key_exchange.new_key(key, private, client_public=public, server_public=answer.exchange), answer.name
        )

    def _leave(self, server: Server, key: bytes) -> bool:
        if server.text in self.others:
            raise self.others[server.text]
        return isinstance(self._machine(key, b"").ask(key, leaves=True), Done)

    def join(self, line: bytes, *words: str, name: str = "ann") -> int:
        file = self.etc.parent / "line"
        server, *others = [*self.others, "vpn.example.org:9000"]
        file.write_text(encode(Invitation(server, line, FINGERPRINT, "ann", others=tuple(others))))
        file.chmod(0o600)
        return main(["join", f"@{file}", "--name", name, "--wait", "1", *words])

    def key(self, name: str = "ann") -> bytes:
        return keys.read_key(self.etc / name / "key", "")

    def is_good(self, name: str = "ann") -> bool:
        """The machine has its files, and the server knows the key in them."""
        files = sorted(os.listdir(self.etc / name))
        return files == ["README", "config.json", "joined", "key"] and Machine(self.server, b"").may_connect(
            self.key(name)
        )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.server.close()


STEPS = 12  # of an undisturbed join: five files, before and after each; the question, before and after


def test_an_undisturbed_join_has_so_many_steps(world: World) -> None:
    assert world.join(world.server.invite("ann")) == 0
    assert world.steps == STEPS and world.is_good() and world.started == ["ann"]


@pytest.mark.parametrize("server_dies", [False, True], ids=["", "server too"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_machine_that_dies_at_any_step_joins_with_the_same_line_again(
    world: World, step: int, server_dies: bool
) -> None:
    line = world.server.invite("ann")
    world.dies_at = step
    with pytest.raises(Death):
        world.join(line)
    if server_dies:
        world.server.start()
    assert world.join(line) == 0 and world.is_good()
    assert Machine(world.server, line).refusal() == messages.INVITATION_USED, "and nobody else does"


@pytest.mark.parametrize("step", range(2, STEPS + 1))
def test_up_finishes_what_was_cut_off_and_leave_ends_it_at_the_server(world: World, step: int) -> None:
    line = world.server.invite("ann")
    world.dies_at = step
    with pytest.raises(Death):
        world.join(line)
    pending = (world.etc / "ann" / "invitation").exists()
    if pending or step == STEPS:
        assert main(["up", "ann"]) == 0 and world.is_good()
    assert main(["leave", "ann"]) == 0 and not world.etc.exists()
    if pending or step == STEPS:
        assert world.server.states() == {}


@pytest.mark.parametrize("lost", [1, 2])
def test_an_answer_that_is_lost_is_asked_for_again(world: World, lost: int) -> None:
    answers = iter([True] * lost + [False] * 9)
    world.loses = lambda: next(answers)
    assert world.join(world.server.invite("ann")) == 0 and world.is_good()


def test_an_answer_that_never_comes_leaves_what_the_next_attempt_needs(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    line = world.server.invite("ann")
    world.loses = lambda: True
    assert world.join(line) == 1
    said = capsys.readouterr().err
    assert "The invitation is kept" in said and "`up ann` or `join` with the same line goes on" in said
    assert os.listdir(world.etc / "ann") == ["invitation"]
    world.loses = lambda: False
    world.server.start()
    assert world.join(line) == 0 and world.is_good()


def test_another_line_takes_the_place_of_a_join_that_nobody_finished(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    first = world.server.invite("ann")
    world.loses = lambda: True
    assert world.join(first) == 1
    world.loses = lambda: False
    assert world.join(world.server.invite("ann", again=True)) == 0 and world.is_good()
    assert "with another invitation is given up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (lambda world, line: Machine(world.server, line).join(), "this invitation has been used; ask for another"),
        (
            lambda world, line: world.server.command("revoke", name="ann"),
            "this invitation has been revoked or replaced",
        ),
    ],
    ids=["used", "revoked"],
)
def test_an_invitation_that_is_refused_leaves_nothing_that_blocks_another(
    world: World, capsys: pytest.CaptureFixture[str], prepare: Callable[..., object], text: str
) -> None:
    line = world.server.invite("ann")
    prepare(world, line)
    assert world.join(line) == 1 and text in capsys.readouterr().err
    world.server.command("revoke", name="ann")
    assert world.join(world.server.invite("ann")) == 0 and world.is_good()


@pytest.mark.parametrize("write", range(1, 6))
def test_a_disk_that_is_full_at_any_file_costs_no_invitation(
    world: World, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    line = world.server.invite("ann")
    count = 0

    def full(path: Path, data: bytes, *, replace: bool = False) -> None:
        nonlocal count
        count += world.etc in Path(path).parents
        if count == write and world.etc in Path(path).parents:
            raise LocalError(f"{path} cannot be written: No space left on device")
        world._write(path, data, replace=replace)

    with monkeypatch.context() as patch:
        patch.setattr(joined_client.keys, "write_secret", full)
        assert world.join(line) == 1
        if write == 1:
            assert not world.etc.exists()
    assert world.join(line) == 0 and world.is_good()


def test_a_damaged_file_of_an_unfinished_join_is_named_with_its_cure(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    line = world.server.invite("ann")
    world.dies_at = 3
    with pytest.raises(Death):
        world.join(line)
    for text in ("", "{", '{"line": "x", "private": "eA==", "settings": {}}', "[]"):
        (world.etc / "ann" / "invitation").write_text(text)
        assert world.join(line) == 78 and "damaged: remove it" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"mode": "server"}', '{"mode": "server",', '{"mode": "client", "mtu": 1}'])
def test_a_configuration_of_another_is_no_client_that_leaves(
    world: World, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    directory = world.etc / "hub"
    directory.mkdir(0o700, parents=True)
    (directory / "config.json").write_text(text)
    assert main(["leave", "hub"]) == 1 and "was not made by `join`" in capsys.readouterr().err
    assert os.listdir(directory) == ["config.json"]
    assert main(["up", "hub"]) == 0 and world.started == ["hub"]


def test_two_commands_do_not_work_on_one_client_at_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with joined_client.JoinedClient("ann").locked(make=True):
        assert world.join(world.server.invite("ann")) == 1
    assert "another command is at work" in capsys.readouterr().err
    assert not world.etc.exists()


@pytest.mark.parametrize(
    "words", [["up", "nobody"], ["leave", "nobody"], ["up", "../x"], ["join", "tunnel1.x"]], ids=" ".join
)
def test_what_is_not_there_is_said_in_one_line(
    world: World, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(words) in (1, 78)
    said = capsys.readouterr().err
    assert said.startswith("tunnel-supervisor: ") and said.count("\n") == 1 and not world.etc.exists()


# -- what people read


def status(**changed: Any) -> dict[str, Any]:
    server = {"host": "vpn.example.org", "connections": 8, "trouble": []}
    return {"name": "ann", "state": "running", "tun_name": "ann", "server": server, "notes": [], **changed}


def test_the_result_is_a_sentence_once_there_are_connections_and_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[str] = []
    monkeypatch.setattr(started_instance, "_addresses", lambda device: addresses)
    assert started_instance._result(status()) == ""
    addresses.append("10.0.0.2")
    assert started_instance._result(status()) == "connected to vpn.example.org as ann, address 10.0.0.2"
    assert started_instance._result(status(state="starting")) == ""
    assert started_instance._result(status(server={"host": "h", "connections": 0, "trouble": ["x"]})) == ""
    assert started_instance._result(status(server=None)) == "ann is running, address 10.0.0.2"


def test_the_result_has_all_addresses_though_they_come_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look comes while the supervisor is about to set them; it answers when it has set them all."""
    there: list[str] = ["10.0.0.2"]
    asked: list[str] = []

    def answer(name: str) -> dict[str, Any]:
        asked.append(name)
        there[:] = ["10.0.0.2", "fd00::2"]
        return status()

    monkeypatch.setattr(started_instance, "_addresses", lambda device: there)
    monkeypatch.setattr(started_instance, "_status", answer)
    assert started_instance._settled(status()) == "connected to vpn.example.org as ann, address 10.0.0.2, fd00::2"
    assert asked == ["ann", "ann"]
    there.clear()
    assert started_instance._settled(status(state="starting")) == "" and len(asked) == 2


def test_an_instance_that_is_not_connected_in_time_says_why() -> None:
    server = {"host": "h", "connections": 0, "trouble": []}
    assert started_instance._trouble(status(server=server)) == "is not connected to h: no answer yet"
    server["trouble"] = ["no answer"]
    assert started_instance._trouble(status(server=server, notes=["x"])) == "is not connected to h: no answer; x"
    server |= {"connections": 1, "trouble": []}
    said = started_instance._trouble(status(server=server, notes=["10.0.0.2 is in use here"]))
    assert said == "has no address of the server: 10.0.0.2 is in use here"
    assert started_instance._trouble(status(server=None, state="starting")) == "is starting"


def test_a_join_that_is_interrupted_before_the_server_was_asked_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    line = world.server.invite("ann")
    with monkeypatch.context() as patch:
        patch.setattr(first_contact.Server, "all_of", interrupt)
        assert world.join(line) == 1
    assert "interrupted. Nothing is left" in capsys.readouterr().err and not world.etc.exists()
    with monkeypatch.context() as patch:
        patch.setattr(first_contact, "exchange", interrupt)
        assert world.join(line) == 1
    assert "interrupted. The invitation is kept" in capsys.readouterr().err
    assert world.join(line) == 0 and world.is_good()


def test_each_join_has_a_private_value_of_its_own(world: World) -> None:
    world.loses = lambda: True
    found = set()
    for name in ("one", "two"):
        world.join(world.server.invite(name), name=name)
        found.add(json.loads((world.etc / name / "invitation").read_text())["private"])
    assert len(found) == 2


def test_another_attempt_with_other_settings_has_those_too(world: World) -> None:
    line = world.server.invite("ann")
    world.loses = lambda: True
    assert world.join(line, "--set", "mtu=1300", "--set", "fec=off") == 1
    world.loses = lambda: False
    assert world.join(line, "--set", "mtu=1280") == 0
    config = json.loads((world.etc / "ann" / "config.json").read_text())
    assert (config["mtu"], config["fec"]) == (1280, "off") and world.is_good()


def test_settings_of_a_join_that_is_done_are_not_taken_and_that_is_said(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    line = world.server.invite("ann")
    assert world.join(line) == 0 and "--set" not in capsys.readouterr().err
    assert world.join(line, "--set", "mtu=1280") == 0
    assert "--set changes nothing now: edit " in capsys.readouterr().err
    assert "mtu" not in json.loads((world.etc / "ann" / "config.json").read_text())


# -- several servers

AWAY = FirstContactError("no answer")
OTHER = FirstContactError(first_contact.NOT_THE_MAKER, is_final=True)
IGNORANT = FirstContactError(first_contact.UNKNOWN, is_open=True)


@pytest.mark.parametrize("answer", [AWAY, OTHER, IGNORANT], ids=str)
def test_of_several_servers_the_first_that_takes_the_line_is_enough(world: World, answer: FirstContactError) -> None:
    world.others = {"fra.example.org:9000": answer}
    assert world.join(world.server.invite("ann")) == 0 and world.is_good()
    assert world.asked == ["fra.example.org:9000", "vpn.example.org:9000"], "in the order of the line"
    written = json.loads((world.etc / "ann" / "config.json").read_text())
    assert written["remote_addr"] == world.asked and "tls_fingerprint" not in written


def test_a_server_that_has_not_made_the_invitation_is_not_asked_again(world: World) -> None:
    world.others = {"fra.example.org:9000": OTHER}
    world.loses = iter([True, True, False]).__next__
    assert world.join(world.server.invite("ann")) == 0 and world.is_good()
    assert world.asked.count("fra.example.org:9000") == 1


def test_if_no_server_takes_the_line_each_has_its_reason_in_the_error(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.others = {"fra.example.org:9000": AWAY, "ams.example.org:9000": OTHER}
    world.loses = lambda: True
    assert world.join(world.server.invite("ann"), "--wait", "0") == 1
    said = capsys.readouterr().err
    assert "fra.example.org:9000: no answer; ams.example.org:9000: this server has not made the invitation" in said
    assert "vpn.example.org:9000: the server does not answer. The invitation is kept" in said


def test_the_word_of_the_server_that_knows_the_line_is_the_last(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    line = world.server.invite("ann")
    assert Machine(world.server, line).exchange()
    world.others = {"fra.example.org:9000": IGNORANT}
    assert world.join(line) == 1 and world.asked == ["fra.example.org:9000", "vpn.example.org:9000"]
    said = capsys.readouterr().err
    assert "vpn.example.org:9000: this invitation has been used" in said and "Nothing is left" in said
    assert not world.etc.exists()


def test_a_machine_that_leaves_tells_each_of_its_servers(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.others = {"fra.example.org:9000": AWAY}
    assert world.join(world.server.invite("ann")) == 0
    assert main(["leave", "ann"]) == 0 and world.server.states() == {}
    said = capsys.readouterr().err
    assert "fra.example.org:9000 has not been told: no answer" in said and "vpn.example.org" not in said
