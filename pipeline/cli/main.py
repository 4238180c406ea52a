"""The command `tunnel-supervisor`: arguments in, one exit status out.

0 done   1 failed, or found something wrong   2 usage   3 not running   77 no permission   78 configuration
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pipeline.cli import (
    check_commands,
    event_command,
    help_text,
    invitation_line,
    invite_command,
    join_commands,
    key_commands,
    leave_command,
    peer_commands,
    service_commands,
    status_command,
    top_command,
    tune_command,
)
from pipeline.errors import LocalError, NotRunning, TunnelError, UsageError
from pipeline.plain_text import escape_output
from pipeline.runtime import privileges
from pipeline.secret_text import conceal
from pipeline.supervisor import instance
from pipeline.system import inherited

STOP_SECONDS = 30.0  # how long `stop` waits

Run = Callable[[argparse.Namespace], int]
"""A command: arguments in, exit status out."""


def main(argv: list[str] | None = None) -> int:
    """Run one command. An error is one text on standard error."""
    inherited.open_standard_files()
    if argv is None:  # this process is the command
        inherited.use_usual_signals()
        privileges.forbid_dumps()
        escape_output()
    arguments = make_parser().parse_args(argv)
    try:
        run: Run = arguments.run
        return run(arguments)
    except TunnelError as error:
        print(conceal(f"tunnel-supervisor: {error}"), file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Parser(argparse.ArgumentParser):
    """Its errors quote the command line."""

    def error(self, message: str) -> NoReturn:
        super().error(conceal(message))


class _Command(_Parser):
    """The command itself: its help has groups."""

    commands: argparse.Action

    def format_help(self) -> str:
        return help_text.overview(help_text.texts_of(self.commands))


class _ShowVersion(argparse.Action):
    """Read when it is asked for: no other command waits for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from pipeline.version import NAME, VERSION

        print(f"{NAME} {VERSION}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    parser = _Command(prog="tunnel-supervisor", description=help_text.DESCRIPTION)
    parser.add_argument("-V", "--version", nargs=0, action=_ShowVersion, help="the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    parser.commands = commands

    def command(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=help_text.EXIT_STATUS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    start = command("start", _start, "run an instance in the foreground until SIGTERM or SIGINT")
    _add_config(start)
    start.add_argument("--mode", choices=("server", "client"), help="short for --set mode=...")
    start.add_argument("--remote", metavar="HOST:PORT", help="short for --set remote_addr=...")
    start.add_argument("--local", metavar="HOST:PORT", help="short for --set local_addr=...")
    start.add_argument("--tunnel", metavar="ADDRESS/LENGTH", help="short for --set tunnel_addr=...")
    start.add_argument(
        "--join",
        metavar="LINE",
        help="be a client of the server whose `invite` printed this line; "
        '"-": read the line from standard input; "@FILE": read it from a file. On a command line others can see it',
    )
    start.add_argument("--insecure", action="store_true", help="short for --set insecure=true")

    for name, run, text in (
        ("stop", _stop, "stop a running instance, and wait until it has stopped"),
        ("reload", _reload, "make a running instance read its configuration again"),
        ("restart", _restart, "replace one worker, or all workers, of a running instance"),
    ):
        sub = command(name, run, text)
        _add_instance(sub)
        if name == "restart":
            sub.add_argument("worker", nargs="?", default="", help="a worker, such as tcp-0; without it, all workers")
            sub.add_argument(
                "--rolling",
                action="store_true",
                help="one after the other, each when the one before works again; new processes are started first, "
                "from the program that is on disk now",
            )

    top_command.add_commands(command, _add_instance)
    event_command.add_commands(command, _add_instance)
    key_commands.add_commands(command)
    invite_command.add_command(command, _add_instance)
    peer_commands.add_commands(command, _add_instance)
    join_commands.add_commands(command)
    leave_command.add_command(command)
    service_commands.add_commands(command)
    status_command.add_command(command, _add_instance)
    check_commands.add_commands(command, _add_instance, _add_set)
    tune_command.add_command(command, _add_instance, _add_set)
    command("version", _version, "print the version alone")
    shown = command("help", lambda arguments: _help(parser, arguments), "explain a command, or list them all")
    shown.add_argument("of", metavar="COMMAND", nargs="?", default="")
    for name, text in (
        ("bench", "compare the tunnel with the bare link on this machine"),
        ("demo", "run a tunnel between two namespaces, and kill its workers under load"),
    ):
        sub = command(name, _tool(name), text)
        sub.add_argument(
            "rest", nargs=argparse.REMAINDER, help=f"its arguments; `tunnel-supervisor {name} -- --help` lists them"
        )
        sub.prefix_chars = "\0"  # every word after the command is an argument of the tool
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="the configuration, a JSON file")
    _add_set(parser)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a setting")


def _add_instance(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--config", metavar="FILE", help="the instance that has this configuration")
    which.add_argument("--name", metavar="NAME", help="the instance that has this name")
    parser.set_defaults(instance=_instance)


def _start(arguments: argparse.Namespace) -> int:
    from pipeline.shm import litmus, memory_order

    if refusal := memory_order.find_refusal():
        raise LocalError(refusal)
    if memory_order.REORDERS:
        litmus.check_start()
    invitation = invitation_line.read_invitation(arguments.join) if arguments.join is not None else None

    from pipeline import config, log
    from pipeline.credentials import ownership
    from pipeline.supervisor.supervisor import Supervisor

    overrides = invitation_line.overrides(invitation) if invitation else []
    overrides += [
        f"{key}={json.dumps(value)}"
        for key, value in (
            ("mode", arguments.mode),
            ("remote_addr", arguments.remote),
            ("local_addr", arguments.local),
            ("tunnel_addr", arguments.tunnel),
            ("insecure", arguments.insecure or None),
        )
        if value is not None
    ]

    def reread() -> config.Config:
        loaded = config.load(arguments.config, overrides + arguments.set)
        ownership.check_source(loaded, arguments.config)
        return loaded

    first = reread()
    if invitation and first.mode != "client":
        raise UsageError("--join needs mode client: remove the setting or option that makes this a server")
    ownership.check(first)
    os.umask(0o077)  # of all that this process and its workers make, whatever they were started with
    os.environ.pop("SSLKEYLOGFILE", None)
    log.start(first.name, "supervisor", first.log_level, first.log_format)
    if arguments.config and (exposure := ownership.find_exposure(Path(arguments.config))):
        log.LOG.warning("configuration: %s", exposure)
    if caution := memory_order.find_caution():
        log.LOG.warning("%s", caution)
    for warning in config.find_warnings(first, invited=invitation is not None):
        log.LOG.warning("%s", warning)
    return Supervisor(first, reread, key=invitation.key if invitation else b"").run()


def _stop(arguments: argparse.Namespace) -> int:
    from pipeline.supervisor.control import control_socket

    which = _instance(arguments)
    control_socket.send_request(which, {"command": "stop"})
    until = time.monotonic() + STOP_SECONDS
    while time.monotonic() < until:
        try:
            which.supervisor_pid()
        except NotRunning:
            return 0
        time.sleep(0.02)
    raise LocalError(f'instance "{which.name}" did not stop within {STOP_SECONDS:g} s')


def _reload(arguments: argparse.Namespace) -> int:
    from pipeline.cli import reload_text

    answer = _send_command(arguments, {"command": "reload"})
    print("\n".join(reload_text.lines(answer)))
    problems = answer.get("problems", [])  # an instance of an older version has none, and no notes
    for note in answer.get("notes", []):
        print(f"note: {note}", file=sys.stderr)
    for problem in problems:
        print(f"tunnel-supervisor: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _restart(arguments: argparse.Namespace) -> int:
    request = {"command": "restart", "worker": arguments.worker, "rolling": arguments.rolling}
    print(f"workers: {', '.join(_send_command(arguments, request)['workers'])}")
    if arguments.rolling:
        from pipeline.service.instances import follow_rolling_restart

        for name in follow_rolling_restart(_instance(arguments)):
            print(f"replaced: {name}", flush=True)
    return 0


def _send_command(arguments: argparse.Namespace, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request. LocalError if it is refused."""
    from pipeline.supervisor.control import control_socket

    answer = control_socket.send_request(_instance(arguments), request)
    if not answer["ok"]:
        raise LocalError(answer["error"])
    return answer


def _version(arguments: argparse.Namespace) -> int:
    from pipeline.version import VERSION

    print(VERSION)
    return 0


def _help(parser: _Command, arguments: argparse.Namespace) -> int:
    commands = help_text.parsers_of(parser.commands)
    if arguments.of and arguments.of not in commands:
        raise UsageError(f"no command {arguments.of}; there are {', '.join(commands)}")
    (commands[arguments.of] if arguments.of else parser).print_help()
    return 0


def _tool(name: str) -> Run:
    """The command that becomes a tool of this name."""

    def run(arguments: argparse.Namespace) -> int:
        rest = arguments.rest[1:] if arguments.rest[:1] == ["--"] else arguments.rest
        os.execv(sys.executable, [sys.executable, "-P", "-m", f"tools.{name}", *rest])

    return run


def _startable() -> str:
    """The commands that would start an instance of /etc/tunnel-supervisor."""
    from pipeline.cli.joined_client import configured_names
    from pipeline.version import NAME

    commands = ", ".join(f"`{NAME} up {name}`" for name in configured_names())
    return f"; to start one: {commands}" if commands else ""


def _instance(arguments: argparse.Namespace) -> instance.Instance:
    """The instance of --config or --name; without them, the only one on this machine."""
    if arguments.config:
        from pipeline import config

        return instance.Instance(config.load(arguments.config).name)
    if arguments.name:
        return instance.Instance(arguments.name)
    found = instance.find_instances()
    note = f"; {found.note}" if found.note else ""
    if not found.running:
        raise NotRunning(f"no instance runs on this machine{note}{_startable()}")
    if len(found.running) > 1:
        names = ", ".join(found.running)
        raise UsageError(f"several instances run ({names}): choose one with --name or --config{note}")
    if found.note:
        print(f"note: {found.note}", file=sys.stderr)
    return instance.Instance(found.running[0])


if __name__ == "__main__":
    sys.exit(main())
