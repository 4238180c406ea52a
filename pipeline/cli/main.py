"""The command `tunnel-supervisor`: arguments in, one exit status out.

0 done   1 failed   2 usage   3 not running   77 no permission   78 configuration
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable

from pipeline.cli import peer_commands
from pipeline.errors import LocalError, NotRunning, TunnelError, UsageError
from pipeline.supervisor import instance

EXIT_STATUS = """exit status:
  0 done   1 failed   2 usage   3 not running   77 no permission   78 configuration"""

STOP_SECONDS = 30.0


def main(argv: list[str] | None = None) -> int:
    """Run one command. Errors are one clear text on standard error."""
    _open_standard_files()
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except TunnelError as error:
        print(f"tunnel-supervisor: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _open_standard_files() -> None:
    """Whoever closed one of them meant silence, not that the next file that we open takes its number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tunnel-supervisor",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A layer-3 tunnel: IP packets inside TCP connections.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=EXIT_STATUS, formatter_class=argparse.RawDescriptionHelpFormatter
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
        help="be a client of the server whose `invite` has printed this line; "
        '"-": it is on standard input; "@FILE": in a file',
    )
    start.add_argument("--insecure", action="store_true", help="short for --set insecure=true")

    for name, run, text in (
        ("stop", _stop, "stop a running instance, and wait until it has stopped"),
        ("status", _status, "say how a running instance is"),
        ("reload", _reload, "have a running instance read its configuration again"),
        ("restart", _restart, "replace the workers of a running instance, or one of them"),
    ):
        sub = command(name, run, text)
        _add_instance(sub)
        if name == "status":
            sub.add_argument("--json", action="store_true", help="for programs; carries schema_version")
        if name == "restart":
            sub.add_argument("worker", nargs="?", default="", help="such as tcp-0; all of them if left out")

    peer_commands.add_commands(command, _add_instance)
    check = command("check", _check, "say what is wrong with a configuration, or print the effective one")
    check.add_argument("file", metavar="FILE", nargs="?")
    _add_set(check)
    command("schema", _schema, "print the JSON schema of the configuration")
    command("version", _version, "print the version")
    for name, text in (
        ("bench", "measure the tunnel against the bare link on this machine"),
        ("demo", "a tunnel between two namespaces, with a load and a killed worker"),
    ):
        sub = command(name, _tool(name), text)
        sub.add_argument("rest", nargs=argparse.REMAINDER, help=f"`tunnel-supervisor {name} -- --help` lists them")
        sub.prefix_chars = "\0"  # everything behind the command is the tool's
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="configuration, JSON")
    _add_set(parser)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a setting")


def _add_instance(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--config", metavar="FILE", help="the instance of this configuration")
    which.add_argument("--name", metavar="NAME", help="the instance of this name")
    parser.set_defaults(instance=_instance)


def _start(arguments: argparse.Namespace) -> int:
    invitation = peer_commands.read_invitation(arguments.join) if arguments.join is not None else None

    from pipeline import config, log
    from pipeline.supervisor.supervisor import Supervisor

    overrides = peer_commands.overrides(invitation) if invitation else []
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
        return config.load(arguments.config, overrides + arguments.set)

    first = reread()
    if invitation and first.mode != "client":
        raise UsageError("--join makes a client: leave out what says that this is a server")
    os.environ.pop("SSLKEYLOGFILE", None)
    log.start(first.name, "supervisor", first.log_level, first.log_format)
    for notice in config.notices(first, invited=invitation is not None):
        log.LOG.warning("%s", notice)
    return Supervisor(first, reread, key=invitation.key if invitation else b"").run()


def _stop(arguments: argparse.Namespace) -> int:
    from pipeline.supervisor import control_socket

    which = _instance(arguments)
    control_socket.ask(which, {"command": "stop"})
    until = time.monotonic() + STOP_SECONDS
    while time.monotonic() < until:
        try:
            which.holder()
        except NotRunning:
            return 0
        time.sleep(0.02)
    raise LocalError(f'instance "{which.name}" has not stopped within {STOP_SECONDS:g} s')


def _status(arguments: argparse.Namespace) -> int:
    from pipeline.supervisor import control_socket

    snapshot = control_socket.ask(_instance(arguments), {"command": "status"})
    if arguments.json:
        print(json.dumps(snapshot))
    else:
        from pipeline.cli.status_text import render

        print(render(snapshot))
    return 0


def _reload(arguments: argparse.Namespace) -> int:
    return _told(arguments, {"command": "reload"}, "changed")


def _restart(arguments: argparse.Namespace) -> int:
    return _told(arguments, {"command": "restart", "worker": arguments.worker}, "workers")


def _told(arguments: argparse.Namespace, request: dict, what: str) -> int:
    from pipeline.supervisor import control_socket

    answer = control_socket.ask(_instance(arguments), request)
    if not answer["ok"]:
        raise LocalError(answer["error"])
    print(f"{what}: {', '.join(answer[what]) or 'nothing'}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from pipeline import config

    checked = config.load(arguments.file, arguments.set)
    print(config.to_json(checked))
    for notice in config.notices(checked):
        print(f"note: {notice}", file=sys.stderr)
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from pipeline import config

    schema = config.json_schema()
    print(schema if isinstance(schema, str) else json.dumps(schema, indent=2))
    return 0


def _version(arguments: argparse.Namespace) -> int:
    print(importlib.metadata.version("tunnel-supervisor"))
    return 0


def _tool(name: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        rest = arguments.rest[1:] if arguments.rest[:1] == ["--"] else arguments.rest
        os.execv(sys.executable, [sys.executable, "-P", "-m", f"tools.{name}", *rest])

    return run


def _instance(arguments: argparse.Namespace) -> instance.Instance:
    """The instance that is meant: by configuration, by name, or the only one there is."""
    if arguments.config:
        from pipeline import config

        return instance.Instance(config.load(arguments.config).name)
    if arguments.name:
        return instance.Instance(arguments.name)
    found = instance.names()
    if len(found) == 1:
        return instance.Instance(found[0])
    if not found:
        raise NotRunning("no instance runs on this machine")
    raise UsageError(f"several instances run ({', '.join(found)}): say which with --name or --config")


if __name__ == "__main__":
    sys.exit(main())
