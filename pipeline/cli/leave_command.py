"""The command `leave`: stop the instance, let the server forget it, and remove its files.

Of several servers each is told. An error changes nothing. A machine whose server cannot be told leaves anyway, and
says so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.joining_machine import checked_name, config_of, expect_root
from pipeline.errors import LocalError, TunnelError

if TYPE_CHECKING:
    from pipeline.cli.command_line import AddCommand
    from pipeline.cli.joined_client import JoinedClient, Pending
    from pipeline.contact.first_contact import Server

ATTEMPTS = 2
THE_SERVER = "the server"


def add_command(command: AddCommand) -> None:
    leave = command("leave", _leave, "give up being a client: the server forgets it, and its files are removed")
    leave.add_argument("instance_name", metavar="NAME", help="name of the instance")


def _leave(arguments: argparse.Namespace) -> int:
    from pipeline.accounting.removal import remove_book
    from pipeline.cli import service_manager
    from pipeline.cli.joined_client import JoinedClient

    client = JoinedClient(checked_name(arguments.instance_name))
    expect_root("leave")
    with client.locked():
        for server, reason in _tell(client).items():
            print(f"note: {server} has not been told: {reason}. There, `revoke` removes the peer", file=sys.stderr)
        state = _state_of(client)
        others = client.remove()
        try:
            remove_book(state)
        except OSError as error:
            print(f"note: the account in {state} stays: {error.strerror}", file=sys.stderr)
        service_manager.forget(client.name)
    if others:
        print(f"note: {client.directory} stays, with what is not ours: {', '.join(others)}", file=sys.stderr)
    print(f"left: {client.name}")
    return 0


def _state_of(client: JoinedClient) -> Path:
    """The state directory of its instance."""
    from pipeline import config
    from pipeline.config.schema import STATE_DIRECTORY

    try:
        return Path(config.load(str(client.config_path)).state_dir)
    except TunnelError:  # what is wrong with it is said elsewhere
        return Path(STATE_DIRECTORY, client.name)


def _tell(client: JoinedClient) -> dict[str, str]:
    """Stop the instance, and let its servers forget it. Returns those that have not been told, each with the reason.

    An error changes nothing. A join that was cut off may have been done by the server: then its key is got first.
    """
    from pipeline import config
    from pipeline.cli import service_manager
    from pipeline.contact.first_contact import Server
    from pipeline.errors import ConfigError

    try:
        pending = client.pending()
        if pending is not None:
            found = config_of(client, pending.line, pending.settings)
        elif client.is_configured:
            found = config.load(str(client.config_path))
        else:
            return {THE_SERVER: "nothing has been exchanged with it"}
    except ConfigError as error:
        if not client.is_ours:
            raise _not_ours(client) from None
        service_manager.stop(client.name)
        return {THE_SERVER: str(error)}
    if found.mode != "client" or found.key_file != str(client.key_path):
        raise _not_ours(client)
    service_manager.stop(client.name)
    try:
        key = client.key() if client.has_key else pending.line.key if pending else b""
        pin = pending.line.pin if pending is not None and pending.line.others else b""
        servers = Server.all_of(found, key, pin if not client.has_key else b"")
    except ConfigError as error:
        return {THE_SERVER: str(error)}
    told = {THE_SERVER if each.is_alone else each.text: _tell_one(each, client, pending) for each in servers}
    return {server: reason for server, reason in told.items() if reason}


def _tell_one(server: Server, client: JoinedClient, pending: Pending | None) -> str:
    """The reason if this server has not been told, else ""."""
    from pipeline.contact import first_contact
    from pipeline.contact.first_contact import FirstContactError
    from pipeline.errors import ConfigError

    for attempt in range(ATTEMPTS):
        try:
            if not client.has_key and pending is not None:
                client.keep_key(first_contact.exchange(server, pending.line.key, pending.private).key)
            return "" if first_contact.leave(server, client.key()) else "it is of an older version"
        except FirstContactError as error:
            if error.is_final or attempt == ATTEMPTS - 1:
                return str(error)
        except ConfigError as error:
            return str(error)
    return ""


def _not_ours(client: JoinedClient) -> LocalError:
    return LocalError(f"{client.config_path} was not made by `join`: `down {client.name}` stops the instance")
