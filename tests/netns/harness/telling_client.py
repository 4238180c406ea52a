"""A client that tells the secrets of its sessions, as browsers do with SSLKEYLOGFILE, and what a recording holds then.

Client(..., wrap=telling(file))           a real one; its supervisor tells
told(file)                                the secrets so far
sealed_frames(stream, secrets)            frames in the recorded bytes of one direction of a connection
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.netns.harness.altered import altered
from tests.reference import key_schedule, records
from tests.reference.blocks import Violation
from tests.reference.records import Header, HeaderSeal

TELL = """
import json
from pipeline.sealing import key_schedule
from pipeline.sealing.session import SealedSession

def tell(session, **secrets):
    line = json.dumps({"context": session.context.context().hex(), "suite": session.context.suite, **secrets})
    with open(arguments[0], "a") as file:
        print(line, file=file)

begin, connect = SealedSession.__init__, SealedSession.connection_secrets

def __init__(self, context, shared, key, is_server):
    begin(self, context, shared, key, is_server)
    tell(self, root=key_schedule.root(shared, key).hex())

def connection_secrets(self, *handshake):
    found = connect(self, *handshake)
    tell(self, headers=[found.send.hex(), found.receive.hex()])
    return found

SealedSession.__init__, SealedSession.connection_secrets = __init__, connection_secrets
"""

RECORDS_OF_TLS = 16
"""In front of the sealed ones, at most."""


class SessionTold(NamedTuple):
    root: bytes
    context: bytes


class ConnectionTold(NamedTuple):
    """`secrets`: of its headers, for the client's and for the server's."""

    suite: int
    context: bytes
    secrets: tuple[bytes, bytes]


def telling(file: Path) -> list[str]:
    """Words in front of the command."""
    file.touch(0o600)
    return altered(TELL, str(file))


def told(file: Path) -> tuple[list[SessionTold], list[ConnectionTold]]:
    sessions, connections = [], []
    for line in map(json.loads, file.read_text().splitlines()):
        context = bytes.fromhex(line["context"])
        if "root" in line:
            sessions.append(SessionTold(bytes.fromhex(line["root"]), context))
        else:
            send, receive = map(bytes.fromhex, line["headers"])
            connections.append(ConnectionTold(line["suite"], context, (send, receive)))
    return sessions, connections


def sealed_frames(stream: bytes, connections: Iterable[ConnectionTold]) -> Iterator[tuple[bytes, Header, bytes]]:
    """The context of the session, and each whole frame: header and body. Nothing if no secret fits."""
    found = _beginning(stream, list(connections))
    if found is not None:
        at, suite, secret, context = found
        reader = records.Reader(_seal(suite, secret))
        reader.feed(stream[at:])
        while (frame := reader.next()) is not None:
            yield context, *frame


def _beginning(stream: bytes, connections: list[ConnectionTold]) -> tuple[int, int, bytes, bytes] | None:
    """Where the first sealed record is, with the secret that opens it."""
    at = 0
    for _ in range(RECORDS_OF_TLS):
        header = stream[at + records.RECORD.size : at + records.HEAD_BYTES]
        for each in connections:
            for secret in each.secrets:
                try:
                    _seal(each.suite, secret).open(header)
                except Violation:
                    continue
                return at, each.suite, secret, each.context
        at += records.RECORD.size + int.from_bytes(stream[at + 3 : at + 5], "big")
    return None


def _seal(suite: int, secret: bytes) -> HeaderSeal:
    """With the first key: no test sends 2^20 headers."""
    return HeaderSeal(suite, iter([key_schedule.expand(secret, b"tunnel header key")]))
