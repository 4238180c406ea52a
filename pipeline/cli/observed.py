"""A running instance for commands that only look: read from shared memory, so that no process has to answer.

    observer_of(instance)     an observer that is attached; NotRunning if nothing runs
    read_snapshot(instance)   one snapshot
    read_events(instance)     the events, as plain data

While the supervisor hangs or is stopped, these work as always.
"""

from __future__ import annotations

import os
from typing import Any

from pipeline.errors import LocalError, NotRunning
from pipeline.observe.observer import Observer, wait_for
from pipeline.observe.run_view import FOREIGN
from pipeline.observe.snapshot import event_dict
from pipeline.supervisor.instance import Instance
from pipeline.version import NAME

PATIENCE = 3.0  # seconds; an instance makes its shared memory anew within one


def observer_of(instance: Instance) -> Observer:
    """PermissionDenied without the right to look. NotRunning says where to look instead, and how to start it."""
    try:
        pid = instance.supervisor_pid()
    except NotRunning as error:
        raise NotRunning(f"{error}{_advice(instance.name)}") from None
    try:
        return wait_for(instance.name, _owner(instance), PATIENCE)
    except NotRunning:
        if instance.supervisor_pid() != pid:
            raise
        raise NotRunning(f'instance "{instance.name}" (pid {pid}) is starting or stopping') from None


def read_snapshot(instance: Instance) -> dict[str, Any]:
    """From shared memory; from the supervisor, if that is of another version and so is its memory."""
    try:
        observer = observer_of(instance)
    except LocalError as error:
        if FOREIGN not in str(error):
            raise
        from pipeline.supervisor.control import control_socket

        return control_socket.send_request(instance, {"command": "status"})
    try:
        return observer.snapshot()
    finally:
        observer.close()


def read_events(instance: Instance) -> list[dict[str, Any]]:
    """All events that are kept; none if those of its version cannot be read."""
    try:
        observer = observer_of(instance)
    except LocalError as error:
        if FOREIGN not in str(error):
            raise
        return []
    try:
        return [event_dict(event) for event in observer.read_events().events]
    finally:
        observer.close()


def _advice(name: str) -> str:
    """For an instance that does not run: its events have ended with it, and its log has them."""
    from pipeline.cli import service_manager
    from pipeline.cli.joined_client import configured_names

    is_configured = name in configured_names()
    log = service_manager.find_log(name, is_configured)
    parts = [f"what has happened is in its log: {log}"] if log else []
    if is_configured:
        parts.append(f"to start it: `{NAME} up {name}`")
    return "".join(f"; {part}" for part in parts)


def _owner(instance: Instance) -> int:
    """The supervisor's user."""
    try:
        return os.stat(instance.lock_path).st_uid
    except FileNotFoundError:
        raise NotRunning(f'instance "{instance.name}" does not run') from None
