"""Commands of the control socket: each is answered, and what it has changed is published before that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import LocalError
from pipeline.runtime.plan import PeerTablePlan, Plan, WorkerPlan
from pipeline.supervisor.commands.commands import CHANGE_NOTHING, Commands
from pipeline.supervisor.control.control_socket import PEER_COMMANDS
from pipeline.supervisor.run.failures import Failures
from tests.harness.settings import WORKER_SETTINGS


class Instance:
    """`did` has what happened, in order: commands, and the publications of the overview."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.failures = Failures()
        workforce: Any = SimpleNamespace(
            names=["tun-0", "tcp-0"],
            lifecycle=SimpleNamespace(is_stopping=False),
            rolling=SimpleNamespace(is_under_way=False),
            spares=SimpleNamespace(discard=lambda: self.did.append("no spares")),
            restart=lambda names: self.did.append(f"restart {names}"),
            roll=lambda names: self.did.append(f"roll {names}"),
            stop=lambda status, reason: self.did.append("stop"),
        )
        publisher: Any = SimpleNamespace(publish_now=lambda: self.did.append("published"), status=dict)
        reloader: Any = SimpleNamespace(reload=lambda: {"ok": True})
        workers = [WorkerPlan(name, name[:3], 0, page, {}) for page, name in enumerate(workforce.names)]
        plan = Plan("test", "0", "client", 1, "", "", "", PeerTablePlan("", 1, 1), workers, [], WORKER_SETTINGS)
        run: Any = SimpleNamespace(failures=self.failures, plan=plan)
        self.workforce = workforce
        self.commands = Commands(run, workforce, self, publisher, reloader, workforce)

    def run_command(self, request: dict[str, Any]) -> dict[str, Any] | None:
        self.did.append(str(request["command"]))
        match request["command"]:
            case "revoke":
                raise LocalError("the disk is full")
            case "disable":
                raise RuntimeError("a fault")
        return {"ok": True} if request["command"] in PEER_COMMANDS else None

    def take_back(self, request: dict[str, Any]) -> None:
        raise RuntimeError("a fault")

    @property
    def failed(self) -> int:
        return self.failures.count

    def ask(self, command: object, **more: Any) -> dict[str, Any]:
        self.did.clear()
        return self.commands.answer({"command": command, **more})


@pytest.fixture
def instance() -> Instance:
    return Instance()


def test_what_a_command_has_changed_is_published_before_its_answer(instance: Instance) -> None:
    for command in ("stop", "reload", "restart", *PEER_COMMANDS):
        instance.ask(command)
        assert (instance.did[-1:] == ["published"]) is (command not in CHANGE_NOTHING), command


@pytest.mark.parametrize("command", ["nonsense", None, 7, [], {}, "Stop"])
def test_any_other_command_is_refused(instance: Instance, command: object) -> None:
    assert instance.ask(command) == {"ok": False, "error": f"unknown command {command!r}"}


def test_an_error_is_an_answer_and_a_fault_of_the_program_is_one_as_well(instance: Instance) -> None:
    assert instance.ask("revoke") == {"ok": False, "error": "the disk is full"}
    assert instance.failed == 0
    assert "the command 'disable' failed (RuntimeError: a fault)" in instance.ask("disable")["error"]
    assert instance.failed == 1 and instance.did[-1] == "published"


def test_a_command_that_cannot_be_taken_back_ends_nothing(instance: Instance) -> None:
    instance.commands.take_back({"command": "invite"}, {"ok": False})
    assert instance.failed == 0
    instance.commands.take_back({"command": "invite"}, {"ok": True})
    assert instance.failed == 1


def test_workers_are_restarted_all_or_one_and_at_once_or_in_turn(instance: Instance) -> None:
    assert instance.ask("restart", worker="") == {"ok": True, "workers": ["tun-0", "tcp-0"]}
    assert instance.did[:2] == ["no spares", "restart ['tun-0', 'tcp-0']"]
    assert instance.ask("restart", worker="tcp-0", rolling=True) == {"ok": True, "workers": ["tcp-0"]}
    assert instance.did[0] == "roll ['tcp-0']"
    assert instance.ask("restart", worker="x")["error"] == 'no worker "x": there are tun-0, tcp-0'
    instance.workforce.rolling.is_under_way = True
    assert "under way" in instance.ask("restart")["error"]
    instance.workforce.lifecycle.is_stopping = True
    assert "is stopping" in instance.ask("restart")["error"]
