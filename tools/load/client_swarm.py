"""Many light clients of one server in one process, for operators and for bench: python -m tools.load.client_swarm
--help

Each client is a peer with a key of its own and so many connections over TLS; it answers echo requests for its address,
and comes back as the real client does when a connection ends. Where the keys come from:

    --invitations FILE    a line of `tunnel-supervisor invite` each; "-" for standard input
    --invite INSTANCE     a server on this machine is asked to invite NAME-0, NAME-1, ...; they stay its peers

    --invite INSTANCE     a server on this machine is asked to invite NAME-0, NAME-1, ...: its peers from then on
after clients had none, and at the end, after --seconds or with SIGTERM or SIGINT, {"summary": ...}. Times are
CLOCK_MONOTONIC.

All clients come from one machine: with the server's default limits on what comes from one address (4 handshakes, 20
connects a second) many take long. --source PREFIX gives each client an address of its own to dial from; it must be
this machine's (ip route add local PREFIX dev lo) and the server must have a route to it.
"""

from __future__ import annotations

import argparse
import ipaddress
import resource
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import msgspec

from pipeline.config.values import parse_endpoint
from pipeline.credentials import invitation
from pipeline.errors import TunnelError
from pipeline.supervisor import control_socket
from pipeline.supervisor.instance import Instance
from pipeline.transport.tls_context import client_context
from tools.load.swarm_client import Peer, Settings
from tools.load.swarm_loop import Crowd

DONE, FAILED = 0, 1


def peers(options: argparse.Namespace) -> list[Peer]:
    """Who the members are. TunnelError if a line is no invitation, or a server invites nobody."""
    if options.invite:
        lines = [_invited(options, number) for number in range(options.clients)]
    else:
        text = sys.stdin.read() if options.invitations == "-" else Path(options.invitations).read_text()
        lines = [line for line in text.splitlines() if line.strip()][: options.clients]
    network = ipaddress.ip_network(options.source) if options.source else None
    found = []
    for number, line in enumerate(lines):
        invited = invitation.decode(line)
        endpoint = parse_endpoint(options.server or invited.server)
        source = str(network[1 + number]) if network else ""
        found.append(
            Peer(
                invited.name,
                endpoint.host,
                endpoint.port,
                invited.key,
                bytes.fromhex(invited.fingerprint),
                source,
                number < options.deaf,
            )
        )
    return found


def _invited(options: argparse.Namespace, number: int) -> str:
    answer = control_socket.ask(
        Instance(options.invite),
        {
            "command": "invite",
            "name": f"{options.name}-{number}",
            "server": options.server,
            "allowed": [],
            "rate_mbit": None,
        },
    )
    if not answer["ok"]:
        raise TunnelError(answer["error"])
    return answer["line"]


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    context = client_context(options.tls, system_cas=False, verify=False)
    began = time.monotonic()
    try:
        invited = peers(options)
        invited_seconds = time.monotonic() - began
        crowd = Crowd(
            invited,
            Settings(
                context,
                options.connections - options.light,
                options.light,
                options.mtu,
                options.keepalive,
                options.timeout,
                options.greeting,
                options.reconnect_min,
                options.reconnect_max,
            ),
            _print,
        )
    except (TunnelError, OSError, ValueError, IndexError) as error:
        print(f"crowd: {error}", file=sys.stderr)
        return FAILED

    def stop(number: int, frame: FrameType | None) -> None:
        crowd.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    crowd.run(options.seconds, options.interval, options.ramp)
    _print({"summary": crowd.summary(invited_seconds)})
    crowd.close()
    return DONE


def _print(line: dict) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.load.client_swarm", description=__doc__.partition("\n")[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--invitations", metavar="FILE", help='a line of `invite` for each client; "-": standard input')
    which.add_argument("--invite", metavar="INSTANCE", help="have this server on this machine invite them")
    parser.add_argument("--name", default="crowd", help="with --invite: what the peers are called (%(default)s-0, ...)")
    parser.add_argument("--server", metavar="HOST:PORT", default="", help="dial this in place of what the lines say")
    parser.add_argument("--clients", type=int, default=100, metavar="N", help="at most (%(default)s)")
    parser.add_argument("--connections", type=int, default=8, metavar="C", help="of each (%(default)s)")
    parser.add_argument("--light", type=int, default=3, metavar="C", help="of them for light flows (%(default)s)")
    parser.add_argument("--source", metavar="PREFIX", default="", help="each client dials from an address of its own")
    parser.add_argument("--deaf", type=int, default=0, metavar="N", help="so many of them read nothing, once welcomed")
    parser.add_argument("--seconds", type=float, default=0, metavar="S", help="how long; 0: until SIGTERM")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="between samples (%(default)s)")
    parser.add_argument("--ramp", type=float, default=0, metavar="S", help="spread the first attempts (%(default)s)")
    parser.add_argument("--tls", choices=("1.2", "1.3"), default="1.3", help="the oldest version (%(default)s)")
    parser.add_argument("--mtu", type=int, default=1400)
    for name, value in (
        ("keepalive", 10.0),
        ("timeout", 30.0),
        ("greeting", 10.0),
        ("reconnect-min", 0.1),
        ("reconnect-max", 10.0),
    ):
        parser.add_argument(f"--{name}", type=float, default=value, metavar="S", help="as the client's (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
