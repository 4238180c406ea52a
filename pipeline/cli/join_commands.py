"""The commands of a machine that becomes a client for good: `join`, `up`, `down`, `leave`.

    join LINE    exchange the invitation's key, write /etc/tunnel-supervisor/NAME, start the instance, wait for it
    up NAME      start an instance that has its configuration there, now and at boot; finish a join that was cut off
    down NAME    stop it, now and at boot
    leave NAME   stop it, let the server forget it, and remove its files

`pipeline.cli.joined_client` has the files and what becomes of a command that is cut off, `first_contact` what the
server is asked, `service_manager` how an instance is started and stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import LocalError, NotRunning, PermissionDenied, TunnelError, UsageError

if TYPE_CHECKING:
    from pipeline.cli.first_contact import Server
    from pipeline.cli.joined_client import JoinedClient, Pending
    from pipeline.cli.peer_commands import AddCommand
    from pipeline.config import Config
    from pipeline.credentials.invitation import Invitation

WAIT_SECONDS = 60.0
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds between attempts, the last one again and again
OPEN_ATTEMPTS = 3  # at a server that ends the connection behind our proof: it may have died just then
LEAVE_ATTEMPTS = 2
LOOK_SECONDS = 0.1
STARTING_SECONDS = 10.0  # an instance has its control socket long before
TUN_DEVICE = Path("/dev/net/tun")


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
    leave = command("leave", _leave, "give up being a client: the server forgets it, and its files are removed")
    for sub in (up, down, leave):
        sub.add_argument("instance_name", metavar="NAME", help="name of the instance")
    for sub in (join, up):
        sub.add_argument(
            "--wait",
            metavar="SECONDS",
            type=float,
            default=WAIT_SECONDS,
            help=f"how long to try, and to wait for a connection; default: {WAIT_SECONDS:g}",
        )


# -- join and up


def _join(arguments: argparse.Namespace) -> int:
    from pipeline.cli import peer_commands
    from pipeline.cli.joined_client import CONFIG, JoinedClient
    from pipeline.credentials.invitation import encode

    until = time.monotonic() + arguments.wait
    line = peer_commands.read_invitation(arguments.line)
    _expect_root("join")
    client = JoinedClient(_checked(arguments.name or line.name))
    settings = _settings(arguments.set)
    config = _config(client, line, settings)
    with client.locked(make=True):
        pending = client.pending()
        if pending is None and client.has_joined_with(line):
            print(f"note: {client.name} has joined with this invitation already", file=sys.stderr)
            return _start_and_wait(client.name, client.config_path, until)
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
        _expect_free(client.name)
        if pending is None:
            pending = client.begin(line, settings)
        _complete(client, pending, config, until)
        return _start_and_wait(client.name, client.config_path, until)


def _up(arguments: argparse.Namespace) -> int:
    from pipeline.cli.joined_client import JoinedClient

    until = time.monotonic() + arguments.wait
    client = JoinedClient(_checked(arguments.instance_name))
    _expect_root("up")
    with client.locked():
        pending = client.pending()
        if pending is not None:
            _complete(client, pending, _config(client, pending.line, pending.settings), until)
        if not client.is_configured:
            raise LocalError(f"{client.config_path} is missing: nothing has joined under this name")
        return _start_and_wait(client.name, client.config_path, until)


def _complete(client: JoinedClient, pending: Pending, config: Config, until: float) -> None:
    """Exchange the key, unless that is done, and finish. After an error nothing is left that was not there, or all
    that another attempt needs."""
    from pipeline.cli.first_contact import FirstContactError, Server

    if not client.has_key:
        try:
            name = _exchange(client, pending, Server.of(config, pending.line.key), until)
        except FirstContactError as error:
            end = "" if str(error).endswith("?") else "."
            raise LocalError(f"{config.remote_addr}: {error}{end} {_what_is_left(client, pending)}") from None
        except KeyboardInterrupt:
            raise LocalError(f"interrupted. {_what_is_left(client, pending)}") from None
        except BaseException:
            _what_is_left(client, pending)
            raise
        if not name:
            print(
                "note: this server does not exchange keys: the key of the invitation stays in use, so the line is a "
                "secret for as long as that",
                file=sys.stderr,
            )
        elif name != pending.line.name:
            print(f"note: the server names this machine {name}", file=sys.stderr)
    client.finish(pending)


def _what_is_left(client: JoinedClient, pending: Pending) -> str:
    """Remove a failed join, unless the server may have done its part; and say what has become of it."""
    if not pending.is_open:
        client.remove()
        return "Nothing is left of this attempt"
    return (
        f"The invitation is kept, since the server may have seen it: `up {client.name}` or `join` with the same line "
        f"goes on, `leave {client.name}` gives up"
    )


def _exchange(client: JoinedClient, pending: Pending, server: Server, until: float) -> str:
    """Keep the new key. The name at the server, "" if the key is the old one. FirstContactError after all attempts."""
    from pipeline.cli import first_contact
    from pipeline.cli.first_contact import FirstContactError

    attempts = opened = 0
    while True:
        was_open, pending.is_open = pending.is_open, True  # whatever ends this
        try:
            found = first_contact.exchange(server, pending.line.key, pending.private)
        except FirstContactError as error:
            pending.is_open = (was_open or error.is_open) and not error.is_settled
            attempts += 1
            opened += error.is_open
            pause = PAUSES[min(attempts, len(PAUSES)) - 1]
            if error.is_final or opened >= OPEN_ATTEMPTS or time.monotonic() + pause > until:
                raise
            if attempts == 1:
                print(f"{server.config.remote_addr}: {error}; trying again", file=sys.stderr)
            time.sleep(pause)
            continue
        client.keep_key(found.key)
        return found.name


def _start_and_wait(name: str, config: Path, until: float) -> int:
    from pipeline.cli import service_manager

    service_manager.start(name, config)
    advice = service_manager.find_advice(name)
    if advice:
        print(f"note: {advice}", file=sys.stderr)
    try:
        while not (result := _result(status := _status(name))) and time.monotonic() <= until:
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        raise LocalError(f"interrupted: {name} has started, and goes on trying") from None
    if result:
        print(result)
        return 0
    print(
        f"tunnel-supervisor: {name} has started, but {_trouble(status)}. It goes on trying; its log: "
        f"{service_manager.log_of(name)}",
        file=sys.stderr,
    )
    return 1


def _trouble(status: dict[str, Any]) -> str:
    """The reason why an instance is not what it should be yet."""
    server = status["server"]
    if server is None:
        return f"is {status['state']}"
    reasons = "; ".join([*server["trouble"], *status["notes"]])
    if server["connections"]:
        return f"has no address of the server: {reasons or 'the server gives none'}"
    return f"is not connected to {server['host']}: {reasons or 'no answer yet'}"


def _status(name: str) -> dict[str, Any]:
    """The status of an instance. One that begins or ends right now, such as that of a join before, is waited for."""
    from pipeline.cli import service_manager
    from pipeline.supervisor.control import control_socket
    from pipeline.supervisor.instance import Instance

    until = time.monotonic() + STARTING_SECONDS
    while True:
        try:
            return control_socket.send_request(Instance(name), {"command": "status"})
        except NotRunning:
            if not _holds_its_place(name) or time.monotonic() > until:
                raise LocalError(f"{name} has ended again: see {service_manager.log_of(name)}") from None
        time.sleep(LOOK_SECONDS)


def _holds_its_place(name: str) -> bool:
    from pipeline.supervisor.instance import Instance

    try:
        Instance(name).supervisor_pid()
    except NotRunning:
        return False
    return True


def _result(status: dict[str, Any]) -> str:
    """The sentence about an instance that has become what it should be; "" until then."""
    if status["state"] != "running":
        return ""
    server = status["server"]
    addresses = _addresses(status["tun_name"])
    if server is None:
        return f"{status['name']} is running, address {', '.join(addresses) or 'none'}"
    if not server["connections"] or not addresses:
        return ""
    return f"connected to {server['host']} as {status['name']}, address {', '.join(addresses)}"


def _addresses(device: str) -> list[str]:
    import ipaddress
    import socket

    import psutil

    families = socket.AF_INET, socket.AF_INET6
    texts = [each.address for each in psutil.net_if_addrs().get(device, ()) if each.family in families]
    return [text for text in texts if not ipaddress.ip_address(text.partition("%")[0]).is_link_local]


# -- down and leave


def _down(arguments: argparse.Namespace) -> int:
    from pipeline.cli import service_manager

    name = _checked(arguments.instance_name)
    _expect_root("down")
    if not service_manager.stop(name):
        raise NotRunning(f'instance "{name}" does not run')
    print(f"down: {name}; `tunnel-supervisor up {name}` brings it back")
    return 0


def _leave(arguments: argparse.Namespace) -> int:
    from pipeline.accounting.removal import remove_book
    from pipeline.cli import service_manager
    from pipeline.cli.joined_client import JoinedClient

    client = JoinedClient(_checked(arguments.instance_name))
    _expect_root("leave")
    with client.locked():
        untold = _tell(client)
        if untold:
            print(f"note: the server has not been told: {untold}. There, `revoke` removes the peer", file=sys.stderr)
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


def _not_ours(client: JoinedClient) -> LocalError:
    return LocalError(f"{client.config_path} was not made by `join`: `down {client.name}` stops the instance")


def _tell(client: JoinedClient) -> str:
    """Stop the instance, and let the server forget it. Returns the reason if the server has not been told, else "".

    An error changes nothing. A join that was cut off may have been done by the server: then its key is got first.
    """
    from pipeline import config
    from pipeline.cli import first_contact, service_manager
    from pipeline.cli.first_contact import FirstContactError, Server
    from pipeline.errors import ConfigError

    try:
        pending = client.pending()
        if pending is not None:
            found = _config(client, pending.line, pending.settings)
        elif client.is_configured:
            found = config.load(str(client.config_path))
        else:
            return "nothing has been exchanged with it"
    except ConfigError as error:
        if not client.is_ours:
            raise _not_ours(client) from None
        service_manager.stop(client.name)
        return str(error)
    if found.mode != "client" or found.key_file != str(client.key_path):
        raise _not_ours(client)
    service_manager.stop(client.name)
    try:
        server = Server.of(found, client.key() if client.has_key else pending.line.key if pending else b"")
        for attempt in range(LEAVE_ATTEMPTS):
            try:
                if not client.has_key and pending is not None:
                    client.keep_key(first_contact.exchange(server, pending.line.key, pending.private).key)
                return "" if first_contact.leave(server, client.key()) else "it is of an older version"
            except FirstContactError as error:
                if error.is_final or attempt == LEAVE_ATTEMPTS - 1:
                    return str(error)
    except ConfigError as error:
        return str(error)
    return ""


# -- the command line


def _expect_root(command: str) -> None:
    if os.geteuid() != 0:
        raise PermissionDenied(f"{command}: run as root")


def _expect_free(name: str) -> None:
    """The invitation is not used up for what cannot run."""
    from pipeline.cli import service_manager

    if service_manager.is_running(name):
        raise LocalError(f'instance "{name}" runs already: stop it first, or give another --name')
    if not TUN_DEVICE.exists():
        raise LocalError(f"{TUN_DEVICE} is missing: modprobe tun; in a container: --device /dev/net/tun")


def _checked(name: str) -> str:
    from pipeline.config.peer import check_peer_name

    check_peer_name(name)
    return name


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


def _config(client: JoinedClient, line: Invitation, settings: dict[str, Any]) -> Config:
    """The configuration that the client is going to have. ConfigError if a setting is wrong."""
    from pipeline import config

    return config.parse({**client.settings(line), **settings}, "--set")
