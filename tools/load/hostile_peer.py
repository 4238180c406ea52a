"""A peer that means harm: python -m tools.load.hostile_peer KIND --join LINE --connections 8 --seconds 6

It connects as any client does, and then sends one kind of bytes (tools.load.hostile_bytes) at full speed on all of its
connections, and reads nothing. All ciphertext is made before, so that the attack itself costs this machine little.

Standard output gets {"ready": CONNECTIONS} once everything is made. The attack begins with a line on standard input,
or its end. At the end comes one more object: how many bytes the server took, in how many seconds, and how many
connections it has ended.
"""

from __future__ import annotations

import argparse
import select
import sys
import time
from collections.abc import Iterator

import msgspec

from pipeline.config.values import parse_endpoint
from pipeline.credentials import invitation
from pipeline.errors import TunnelError
from pipeline.transport.tls_context import client_context
from tools.load.hostile_bytes import KINDS, Target
from tools.load.swarm_client import ESTABLISHED, Invited, SwarmClient, SwarmConnection, SwarmSettings

DONE, FAILED = 0, 1
ATTEMPTS_SECONDS = 30.0  # for all connections, within the limits on one address
PAUSE_SECONDS = 0.1
SEND_BYTES = 262144


class Attack(msgspec.Struct):
    """The result."""

    kind: str
    connections: int
    seconds: float
    sent_bytes: int
    mbit: float
    ended: int
    """Connections that the server has ended."""


def _settings(connections: int) -> SwarmSettings:
    context = client_context("1.3", system_cas=False, verify=False)
    return SwarmSettings(context, connections, 0, 1400, 10.0, 30.0, 10.0, 0.1, 1.0)


def connect(line: str, server: str, connections: int) -> tuple[SwarmClient, list[SwarmConnection]]:
    """The peer of an invitation, with all of its connections. TimeoutError if the server does not take them."""
    invited = invitation.decode(line)
    endpoint = parse_endpoint(server or invited.server)
    peer = SwarmClient(
        1,
        Invited(invited.name, endpoint.host, endpoint.port, invited.key, bytes.fromhex(invited.fingerprint), deaf=True),
        _settings(connections),
        time.time_ns(),
    )
    until = time.monotonic() + ATTEMPTS_SECONDS
    established: list[SwarmConnection] = []
    while len(established) < connections:
        connection = _connect_one(peer, len(established), until)
        if connection:
            established.append(connection)
    return peer, established


def _connect_one(peer: SwarmClient, index: int, until: float) -> SwarmConnection | None:
    connection = SwarmConnection(peer.slots[index], time.monotonic_ns())
    try:
        connection.connect()
        while connection.state is not ESTABLISHED:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"connection {index + 1} was not established")
            poll = select.poll()
            poll.register(connection.socket, select.POLLOUT if connection.wants_write else select.POLLIN)
            poll.poll(1000 * left)
            connection.step(time.monotonic_ns())
        return connection
    except TimeoutError:
        raise
    except (OSError, EOFError, TunnelError):
        connection.socket.close()
        time.sleep(PAUSE_SECONDS)
        return None


def seal(connection: SwarmConnection, stretch: bytes, size: int) -> bytes:
    """`size` bytes of ciphertext or a little more, which begin at a frame."""
    return b"".join(_sealed(connection, stretch, size))


def _sealed(connection: SwarmConnection, stretch: bytes, size: int) -> Iterator[bytes]:
    made = 0
    while made < size:
        sealed = connection.seal(stretch)
        made += len(sealed)
        yield sealed


def attack(kind: str, connections: list[SwarmConnection], made: list[bytes], seconds: float) -> Attack:
    """Send what was made, as fast as the server takes it."""
    poll = select.poll()
    left = {each.socket.fileno(): (each.socket, memoryview(data)) for each, data in zip(connections, made, strict=True)}
    for fd in left:
        poll.register(fd, select.POLLOUT)
    sent = ended = 0
    began = time.monotonic()
    while left and time.monotonic() - began < seconds:
        for fd, _ in poll.poll(100):
            sock, data = left[fd]
            try:
                count = sock.send(data[:SEND_BYTES])
            except BlockingIOError:
                count = 0
            except OSError:
                ended += 1
                count = len(data)
            else:
                sent += count
            if count == len(data):
                poll.unregister(fd)
                del left[fd]
            else:
                left[fd] = sock, data[count:]
    took = time.monotonic() - began
    return Attack(kind, len(connections), took, sent, 8e-6 * sent / took, ended)


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        peer, connections = connect(options.join, options.server, options.connections)
        sink, _sink_connection = connect(options.sink, options.server, 1) if options.sink else (peer, [])
        at = Target(peer.addresses[0], options.inside, options.victim or options.inside, sink.addresses[0])
        stretch = KINDS[options.kind](at)
        size = int(options.mb * 1e6 / options.connections)
        made = [seal(each, stretch, size) for each in connections]
    except (TunnelError, OSError, ValueError) as error:
        print(f"hostile peer: {error}", file=sys.stderr)
        return FAILED
    _print({"ready": len(connections)})
    sys.stdin.readline()
    _print(attack(options.kind, connections, made, options.seconds))
    return DONE


def _print(line: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.load.hostile_peer", description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--join", metavar="LINE", required=True, help="an invitation for the peer")
    parser.add_argument("--sink", metavar="LINE", default="", help="an invitation for a second peer, for gso")
    parser.add_argument("--server", metavar="HOST:PORT", default="", help="dial this, not the invitation's server")
    parser.add_argument("--inside", metavar="ADDRESS", required=True, help="the server's address in the tunnel")
    parser.add_argument("--victim", metavar="ADDRESS", default="", help="that of the peer to be harmed, for small")
    parser.add_argument("--connections", type=int, default=8, metavar="N", help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=6, metavar="S", help="of the attack, at most (%(default)s)")
    parser.add_argument("--mb", type=float, default=100, metavar="N", help="made ahead, in all (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
