"""A client that connects and leaves as fast as it can: python -m tools.load.churn KIND --join LINE --from ADDRESS ...

    connections    a peer, each connection of the same session
    sessions       a peer, each connection begins a session
    proofs         nobody: each connection ends with a wrong proof

One connection from each address is under way at a time. It ends as soon as the server has decided about it. Standard
output gets one object: connections by their end, as many a second.
"""

from __future__ import annotations

import argparse
import secrets
import selectors
import sys
import time

import msgspec

from pipeline.config.values import parse_endpoint
from pipeline.credentials import invitation
from pipeline.errors import PeerError
from pipeline.transport.tls_context import client_context
from pipeline.wire.auth import KEY_BYTES
from tools.load.swarm_client import ESTABLISHED, Invited, SwarmClient, SwarmConnection, SwarmSettings

KINDS = ("connections", "sessions", "proofs")
PAUSE_SECONDS = 0.01  # after an address was rejected before its handshake


class Result(msgspec.Struct):
    admitted: float = 0.0
    refused: float = 0.0
    rejected: float = 0.0
    """Reset or closed before the end of the handshake, or after a wrong proof."""


class Churn:
    def __init__(self, kind: str, line: str, sources: list[str]) -> None:
        invited = invitation.decode(line)
        server = parse_endpoint(invited.server)
        key = secrets.token_bytes(KEY_BYTES) if kind == "proofs" else invited.key
        context = client_context("1.3", system_cas=False, verify=False)
        settings = SwarmSettings(context, 1, 0, 1400, 10.0, 30.0, 10.0, 0.1, 1.0)
        pin = bytes.fromhex(invited.fingerprint)
        self._clients = [
            SwarmClient(1, Invited(invited.name, server.host, server.port, key, pin, source), settings, time.time_ns())
            for source in sources
        ]
        for client in self._clients[1:]:
            client.seal = self._clients[0].seal  # they are one peer, with one session at a time
        self._session = time.time_ns()
        self._new_sessions = kind == "sessions"
        self._selector = selectors.DefaultSelector()
        self.result = Result()

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for client in self._clients:
            self._dial(client)
        while time.monotonic() < until:
            for key, _ in self._selector.select(PAUSE_SECONDS):
                self._step(key.data)
        for field in self.result.__struct_fields__:
            setattr(self.result, field, round(getattr(self.result, field) / seconds, 1))

    def _dial(self, client: SwarmClient) -> None:
        self._session += self._new_sessions
        client.session = self._session
        connection = SwarmConnection(client.slots[0], time.monotonic_ns())
        connection.connect()
        self._selector.register(connection.socket, selectors.EVENT_WRITE, connection)

    def _step(self, connection: SwarmConnection) -> None:
        try:
            connection.step(time.monotonic_ns())
        except PeerError:
            self.result.refused += 1
        except (OSError, EOFError):
            self.result.rejected += 1
        else:
            if connection.state is not ESTABLISHED:
                events = selectors.EVENT_WRITE if connection.wants_write else selectors.EVENT_READ
                self._selector.modify(connection.socket, events, connection)
                return
            self.result.admitted += 1
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._dial(connection.client)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.load.churn", description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--join", metavar="LINE", required=True, help="an invitation")
    parser.add_argument("--from", metavar="ADDRESS", dest="sources", action="append", required=True)
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="(%(default)s)")
    options = parser.parse_args(argv)
    churn = Churn(options.kind, options.join, options.sources)
    churn.run(options.seconds)
    sys.stdout.buffer.write(msgspec.json.encode(churn.result) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
