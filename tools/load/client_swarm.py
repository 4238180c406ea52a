"""Many light clients of one server in one process: python -m tools.load.client_swarm --help

For operators, and for `bench hub`. Each client is a peer with a key of its own and several connections over TLS. It
answers echo requests for its addresses, and dials again as the real client does when a connection ends. Its key comes
from an invitation:

    --invitations FILE    one line of `tunnel-supervisor invite` for each client; "-" for standard input
    --invite INSTANCE     a server on this machine is asked to invite NAME-0, NAME-1, ...; they stay its peers

Standard output gets one JSON object a line. {"sample": ...} comes every --interval seconds. {"outage": ...} comes when
some clients had no connection, and all clients have all of theirs again. The last line is {"summary": ...}; it comes
after --seconds, or with SIGTERM or SIGINT. Times are CLOCK_MONOTONIC.

All clients dial from one machine. With the server's default limits on one address (4 handshakes, 20 connects a second)
it takes many clients long to connect. --source PREFIX gives each client an address of its own to dial from. The
addresses must be this machine's (ip route add local PREFIX dev lo), and the server must have a route to them.
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
from pipeline.supervisor.control import control_socket
from pipeline.supervisor.instance import Instance
from pipeline.transport.tls_context import client_context
from tools.load.swarm_client import Invited, SwarmSettings
from tools.load.swarm_loop import ClientSwarm

DONE, FAILED = 0, 1


def invited_clients(options: argparse.Namespace) -> list[Invited]:
    """The peers that the clients are. TunnelError if a line is no invitation, or the server does not invite a peer."""
    if options.invite:
        lines = [_invite(options, number) for number in range(options.clients)]
    else:
        text = sys.stdin.read() if options.invitations == "-" else Path(options.invitations).read_text()
        lines = [line for line in text.splitlines() if line.strip()][: options.clients]
    network = ipaddress.ip_network(options.source) if options.source else None
    found = []
    for number, line in enumerate(lines):
        invited = invitation.decode(line)
        endpoint = parse_endpoint(options.server or invited.server)
        found.append(
            Invited(
                invited.name,
                endpoint.host,
                endpoint.port,
                invited.key,
                bytes.fromhex(invited.fingerprint),
                source=str(network[1 + number]) if network else "",
                deaf=number < options.deaf,
            )
        )
    return found


def _invite(options: argparse.Namespace, number: int) -> str:
    answer = control_socket.send_request(
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
        invited = invited_clients(options)
        invited_seconds = time.monotonic() - began
        settings = SwarmSettings(
            context,
            options.connections - options.light,
            options.light,
            options.mtu,
            options.keepalive,
            options.timeout,
            options.handshake_timeout,
            options.reconnect_min,
            options.reconnect_max,
        )
        swarm = ClientSwarm(invited, settings, _print)
    except (TunnelError, OSError, ValueError, IndexError) as error:
        print(f"swarm: {error}", file=sys.stderr)
        return FAILED

    def stop(number: int, frame: FrameType | None) -> None:
        swarm.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    swarm.run(options.seconds, options.interval, options.ramp)
    _print({"summary": swarm.summary(invited_seconds)})
    swarm.close()
    return DONE


def _print(line: dict[str, object]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.load.client_swarm", description=__doc__.partition("\n")[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--invitations", metavar="FILE", help='one line of `invite` for each client; "-": standard input'
    )
    which.add_argument("--invite", metavar="INSTANCE", help="have this server on this machine invite the clients")
    parser.add_argument("--name", default="swarm", help="with --invite: names of the peers (%(default)s-0, ...)")
    parser.add_argument(
        "--server", metavar="HOST:PORT", default="", help="dial this, not the server in the invitations"
    )
    parser.add_argument("--clients", type=int, default=100, metavar="N", help="clients, at most (%(default)s)")
    parser.add_argument(
        "--connections", type=int, default=8, metavar="C", help="connections of each client (%(default)s)"
    )
    parser.add_argument("--light", type=int, default=3, metavar="C", help="light ones among them (%(default)s)")
    parser.add_argument("--source", metavar="PREFIX", default="", help="each client dials from an address of its own")
    parser.add_argument(
        "--deaf",
        type=int,
        default=0,
        metavar="N",
        help="clients that read nothing once they are welcomed (%(default)s)",
    )
    parser.add_argument("--seconds", type=float, default=0, metavar="S", help="end after this time; 0: with SIGTERM")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="between samples (%(default)s)")
    parser.add_argument("--ramp", type=float, default=0, metavar="S", help="spread the first attempts (%(default)s)")
    parser.add_argument("--tls", choices=("1.2", "1.3"), default="1.3", help="the oldest version of TLS (%(default)s)")
    parser.add_argument("--mtu", type=int, default=1400)
    for name, value in (
        ("keepalive", 10.0),
        ("timeout", 30.0),
        ("handshake-timeout", 10.0),
        ("reconnect-min", 0.1),
        ("reconnect-max", 10.0),
    ):
        parser.add_argument(f"--{name}", type=float, default=value, metavar="S", help="as the client's (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
