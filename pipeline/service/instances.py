"""The running instances of this installation, as its files on disk are replaced or removed.

    upgraded()    their workers are replaced one after the other by the new program: connections inside survive
    stop_all()    they end, before the program is removed, and what killed ones have left is removed

An instance of another installation, such as a checkout, is left alone: the interpreter of its supervisor is another's.
A supervisor keeps the program that it has loaded until its next start. Where the new program is of no use to it, since
shared memory has another layout, its service is restarted: that takes about a second, and addresses stay. Then
the new program has to accept the configuration first, lest an upgrade through the tunnel ends the tunnel.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import LocalError, NotRunning, TunnelError
from pipeline.service import remains
from pipeline.supervisor.control import control_socket
from pipeline.supervisor.instance import Instance, find_instances
from pipeline.version import NAME

ROLLING_SECONDS = 120.0  # a step that takes too long is given up long before
STOP_SECONDS = 30.0
POLL_SECONDS = 0.1
_UNIT = re.compile(rf"/({NAME}@[^/]+\.service)$", re.MULTILINE)


class Owned(NamedTuple):
    """A running instance of this installation."""

    instance: Instance
    pid: int
    unit: str  # the service that runs it; "" if it was started by hand
    config: str  # its configuration file; "" for none


def find_owned() -> list[Owned]:
    found = []
    for name in find_instances().running:
        instance = Instance(name)
        try:
            pid = instance.supervisor_pid()
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            groups = Path(f"/proc/{pid}/cgroup").read_text()
        except (TunnelError, OSError):
            continue  # it has just ended
        if words[0] == sys.executable:
            unit = _UNIT.search(groups)
            config = words[words.index("--config") + 1] if "--config" in words[:-1] else ""
            found.append(Owned(instance, pid, unit[1] if unit else "", config))
    return found


def upgraded() -> Iterator[str]:
    """Bring the new program to all instances. A sentence about each."""
    for owned in find_owned():
        name = owned.instance.name
        try:
            roll(owned.instance)
            yield f'tunnel "{name}": its workers run the new version; its supervisor does so from its next start on'
        except TunnelError as error:
            yield f'tunnel "{name}": {_restart(owned, error)}'


def stop_all() -> Iterator[str]:
    """Stop all instances, and clean up behind those that were killed. A sentence about each."""
    for owned in find_owned():
        name = owned.instance.name
        try:
            if owned.unit:
                _run("systemctl", "stop", owned.unit)
            else:
                control_socket.send_request(owned.instance, {"command": "stop"})
                _wait_until_stopped(owned.instance)
            yield f'tunnel "{name}": stopped'
        except NotRunning:
            yield f'tunnel "{name}": stopped'
        except TunnelError as error:
            yield f'tunnel "{name}": not stopped: {error}'
    yield from remove_remains()


def remove_remains() -> Iterator[str]:
    """Remove what instances that were killed have left, of any installation. A sentence about each."""
    for name in remains.find_dead():
        try:
            remains.remove(name)
            yield f'tunnel "{name}": it had been killed; what was left of it is removed'
        except TunnelError as error:
            yield f'tunnel "{name}": what is left of it stays: {error}'


def roll(which: Instance) -> None:
    """Replace the workers one after the other. LocalError if that is given up, NotRunning if the instance ends."""
    answer = control_socket.send_request(which, {"command": "restart", "worker": "", "rolling": True})
    if not answer["ok"]:
        raise LocalError(answer["error"])
    for _ in follow_rolling_restart(which):
        pass


def follow_rolling_restart(which: Instance) -> Iterator[str]:
    """The name of each worker once it has been replaced. LocalError if that is given up, or takes too long."""
    until = time.monotonic() + ROLLING_SECONDS
    left: list[str] | None = None
    while left is None or left:
        before, rolling = left or [], control_socket.send_request(which, {"command": "status"})["rolling"]
        if rolling["error"]:
            raise LocalError(rolling["error"])
        left = rolling["left"]
        yield from before[: len(before) - len(left)]
        if time.monotonic() > until:
            raise LocalError(f"{', '.join(left)} not replaced within {ROLLING_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def _restart(owned: Owned, why: TunnelError) -> str:
    """Start the service anew; the sentence about it."""
    if not owned.unit:
        return f"its workers keep the old version ({why}): stop it, and start it again"
    by_hand = f"restart it when it suits you: systemctl restart {owned.unit}"
    if owned.config:
        try:
            _run(sys.executable, "-I", "-m", "pipeline.cli.main", "check", "--offline", owned.config)
        except LocalError as refused:
            return f"it keeps the old version, since the new one refuses its configuration: {refused}; then {by_hand}"
    try:
        _run("systemctl", "restart", owned.unit)
    except LocalError as error:
        return f"it does not start with the new version: {error}"
    return f"restarted, since its workers could not be replaced one after the other ({why})"


def _wait_until_stopped(which: Instance) -> None:
    until = time.monotonic() + STOP_SECONDS
    while time.monotonic() < until:
        which.supervisor_pid()  # NotRunning once it has ended
        time.sleep(POLL_SECONDS)
    raise LocalError(f"it runs still after {STOP_SECONDS:g} s")


def _run(*words: str) -> None:
    """LocalError if the command fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ROLLING_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LocalError(f"{words[0]}: {error}") from None
    if done.returncode:
        raise LocalError(done.stderr.strip() or f"{' '.join(words)}: exit status {done.returncode}")
