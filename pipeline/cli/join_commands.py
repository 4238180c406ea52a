"""The commands of a machine that becomes a client for good: `join`, `up`, `down`.

    join LINE    exchange the invitation's key, write /etc/tunnel-supervisor/NAME, start the instance, wait for it
    up NAME      start an instance that has its configuration there, now and at boot; finish a join that was cut off
    down NAME    stop it, now and at boot

`pipeline.cli.joined_client` has the files and what becomes of a command that is cut off, `join_attempts` the exchange,
`service_manager` how an instance is started and stopped, `started_instance` what is waited for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from pipeline.cli.invitation_line import read_invitation
from pipeline.cli.join_attempts import complete
from pipeline.cli.joining_machine import checked_name, config_of, expect_free, expect_root
from pipeline.cli.started_instance import start_and_wait
from pipeline.errors import LocalError, NotRunning, UsageError

if TYPE_CHECKING:
    from pipeline.cli.command_line import AddCommand

WAIT_SECONDS = 60.0


def add_commands(command: AddCommand) -> None:
    join = command("join", _join, "become a client for good with an invitation: the line that `invite` has printed")
    join.add_argument(
        "line",
        metavar="LINE",
        help='the line; "-": read it from standard input; "@FILE": read it from a file. On a command line others can '
        "see it",
    )
    join.add_argument("--name", metavar="NAME", default="", help="name of the instance here; default: as invited")
    join.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="a setting for its config.json")
    up = command("up", _up, "start an instance of /etc/tunnel-supervisor, now and at boot")
    down = command("down", _down, "stop an instance, now and at boot")
    for sub in (up, down):
        sub.add_argument("instance_name", metavar="NAME", help="name of the instance")
    for sub in (join, up):
        sub.add_argument(
            "--wait",
            metavar="SECONDS",
            type=float,
            default=WAIT_SECONDS,
            help=f"how long to try, and to wait for a connection; default: {WAIT_SECONDS:g}",
        )


def _join(arguments: argparse.Namespace) -> int:
    from pipeline.cli.joined_client import CONFIG, JoinedClient
    from pipeline.credentials.invitation import encode

    until = time.monotonic() + arguments.wait
    line = read_invitation(arguments.line)
    expect_root("join")
    client = JoinedClient(checked_name(arguments.name or line.name))
    settings = _settings(arguments.set)
    config = config_of(client, line, settings)
    with client.locked(make=True):
        pending = client.pending()
        if pending is None and client.has_joined_with(line):
            more = f"; --set changes nothing now: edit {client.config_path}" if settings else ""
            print(f"note: {client.name} has joined with this invitation already{more}", file=sys.stderr)
            return start_and_wait(client.name, client.config_path, until)
        if pending is None and client.is_configured:
            raise LocalError(
                f"{client.directory / CONFIG} is there already: give another --name, or `leave {client.name}` first"
            )
        if pending is not None and encode(pending.line) != encode(line):
            if client.has_key:
                raise LocalError(
                    f"{client.directory} has joined with another invitation: `up {client.name}` finishes that, "
                    f"`leave {client.name}` gives it up"
                )
            print(f"note: an unfinished join of {client.name} with another invitation is given up", file=sys.stderr)
            pending = None
        expect_free(client.name)
        if pending is None:
            pending = client.begin(line, settings)
        elif settings:
            client.change_settings(pending, {**pending.settings, **settings})
            config = config_of(client, line, pending.settings)
        complete(client, pending, config, until)
        return start_and_wait(client.name, client.config_path, until)


def _up(arguments: argparse.Namespace) -> int:
    from pipeline.cli.joined_client import JoinedClient

    until = time.monotonic() + arguments.wait
    client = JoinedClient(checked_name(arguments.instance_name))
    expect_root("up")
    with client.locked():
        pending = client.pending()
        if pending is not None:
            complete(client, pending, config_of(client, pending.line, pending.settings), until)
        if not client.is_configured:
            raise LocalError(f"{client.config_path} is missing: nothing has joined under this name")
        return start_and_wait(client.name, client.config_path, until)


def _down(arguments: argparse.Namespace) -> int:
    from pipeline.cli import service_manager

    name = checked_name(arguments.instance_name)
    expect_root("down")
    if not service_manager.stop(name):
        raise NotRunning(f'instance "{name}" does not run')
    print(f"down: {name}; `tunnel-supervisor up {name}` brings it back")
    return 0


def _settings(texts: list[str]) -> dict[str, Any]:
    """--set as values for a configuration."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"--set: given {text!r}, expected KEY=VALUE")
        if key in ("name", "mode", "key_file"):
            raise UsageError(f"--set: {key} follows from the invitation; the name has an option of its own, --name")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
