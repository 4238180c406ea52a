"""The commands of the control socket: each request gets an answer, whatever happens.

A command may have changed what observers see. Then the overview is published before the answer is sent: who has the
answer and looks sees the change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, Protocol

from pipeline.config import to_json
from pipeline.errors import LocalError, TunnelError
from pipeline.supervisor.commands.departure import Departure
from pipeline.supervisor.commands.reloader import Reloader
from pipeline.supervisor.control.publisher import Publisher
from pipeline.supervisor.processes.workforce import Workforce
from pipeline.supervisor.run.run import Run

Request = dict[str, Any]
Answer = dict[str, Any]

CHANGE_NOTHING = ("status", "configuration", "peers")


class Role(Protocol):
    """The part of a server or of a client."""

    def run_command(self, request: Request) -> Answer | None:
        """The answer to a command about peers; None for any other command."""

    def take_back(self, request: Request) -> None:
        """Undo a command whose answer did not arrive."""


class Commands:
    def __init__(
        self,
        run: Run,
        workforce: Workforce,
        role: Role,
        publisher: Publisher,
        reloader: Reloader,
        departure: Departure,
    ) -> None:
        self._run = run
        self._departure = departure
        self._workforce = workforce
        self._role = role
        self._publisher = publisher
        self._commands: dict[object, Callable[[Request], Answer]] = {
            "status": lambda request: publisher.status(),
            "configuration": lambda request: {"ok": True, "configuration": json.loads(to_json(run.config))},
            "reload": lambda request: reloader.reload(),
            "restart": self._restart,
            "stop": self._stop,
        }

    def answer(self, request: Request) -> Answer:
        command = request.get("command")
        try:
            answer = self._run_command(command, request)
        except TunnelError as error:
            answer = {"ok": False, "error": str(error)}
        except Exception:
            answer = {"ok": False, "error": self._run.failures.record(f"the command {command!r}")}
        if command not in CHANGE_NOTHING:
            self._run.failures.survive("the overview", self._publisher.publish_now)
        return answer

    def take_back(self, request: Request, answer: Answer) -> None:
        """The command has ended before it got its answer."""
        if answer.get("ok"):
            self._run.failures.survive("taking back a command", self._role.take_back, request)

    def _run_command(self, command: object, request: Request) -> Answer:
        if isinstance(command, str) and command in self._commands:
            return self._commands[command](request)
        return self._role.run_command(request) or {"ok": False, "error": f"unknown command {command!r}"}

    def _stop(self, request: Request) -> Answer:
        self._departure.stop(0, "asked by the control socket")
        return {"ok": True, "pid": os.getpid()}

    def _restart(self, request: Request) -> Answer:
        """Replace workers by ones with the program that is on disk now, all at once or one after the other."""
        workforce, worker = self._workforce, request.get("worker")
        plan = self._run.plan
        names = [each.name for each in (plan.named(worker) if isinstance(worker, str) and worker else plan.workers)]
        if not names:
            raise LocalError(f'no worker "{worker}": there are {", ".join(workforce.names)}')
        if workforce.lifecycle.is_stopping:
            raise LocalError("the instance is stopping: no worker is replaced")
        if workforce.rolling.is_under_way:
            raise LocalError("a rolling restart is under way")
        if request.get("rolling"):
            workforce.roll(names)
        else:
            workforce.spares.discard()
            workforce.restart(names)
        return {"ok": True, "workers": names}
