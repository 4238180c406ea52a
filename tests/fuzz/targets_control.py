"""Targets in the supervisor: what tcp workers ask for their clients, what root asks, what a server remembers.

hub          a byte of shape, then questions: flags, a HELLO behind a byte of length, a certificate behind two
desk         a datagram of a worker that may have been broken into
control      a byte that says where the request is cut in two, and the request
remembered   addresses.json
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

from pipeline.config import parse
from pipeline.credentials.state_dir import StateDir
from pipeline.errors import PeerError
from pipeline.packet.route_table import NOBODY
from pipeline.peers import peer_file
from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.admission import Admission
from pipeline.peers.registry import KnownPeer
from pipeline.supervisor.control_socket import ControlServer
from pipeline.supervisor.server_role import ServerRole
from pipeline.supervisor.worker_channels import WorkerChannels
from pipeline.wire import messages
from pipeline.wire.messages import Refused, Welcome
from tests.fuzz.byte_source import Bites
from tests.fuzz.fuzzer import Feed
from tests.fuzz.targets_handshake import CONFIGURED
from tests.fuzz.targets_wire import greetings
from tests.harness.hub import KEYS, OFFLOADS, Answer, Server, hello, known, request
from tests.harness.tls_ends import NAME, issue

ANN, BOB = known("ann", "10.1.0.0/16"), known("bob")
CYD = KnownPeer(PeerPolicy("cyd"), certificate_name=NAME)

# -- the hub

STRANGERS, NAMED, SMALL, FIXED = 1, 2, 4, 8
"""Of the shape: everybody is let in; one peer is known by a certificate; the subnet has few addresses; one is fixed."""
PROVED, FALSE, CERTIFICATE, LEAVES, MANY = 1, 2, 4, 8, 16
"""Of a question: how its client proves itself; whether he goes again, or has all connections that there may be."""


def hub(data: bytes) -> None:
    """Everybody is answered, a stranger by silence; nobody gets what is another's."""
    bites = Bites(data)
    shape = bites.number()
    with ExitStack() as stack:
        settings = (CONFIGURED if shape & STRANGERS else {}) | (
            {"tunnel_addr": ["10.0.0.1/29"]} if shape & SMALL else {}
        )
        ann = known("ann", fixed=["10.0.0.5"]) if shape & FIXED else ANN
        server = Server(ann, BOB, *([CYD] if shape & NAMED else []), **settings)
        stack.callback(server.close)
        bob = server.comes("bob", 1, "10.0.0.2")
        while bites:
            flags = bites.number()
            frame = bites.piece(bites.number())
            certificate = bites.piece(bites.number(2)) if flags & CERTIFICATE else b""
            key = KEYS["ann"] if flags & PROVED else KEYS["dan"] if flags & FALSE else None
            before = server.state()
            with contextlib.suppress(PeerError):
                answer = Answer(server.hub.answer(request(frame, key, certificate)))
                if not isinstance(answer.greeting, Welcome):
                    assert server.state() == before
                if isinstance(answer.greeting, Refused):
                    assert answer.reason in messages.REASONS
                elif answer.greeting is None:
                    assert (
                        not flags & PROVED
                        or messages.decode(frame).auth != messages.AUTH_KEY
                        or (messages.decode(frame).key_id != hello(KEYS["ann"]).key_id)
                    )
                else:
                    assert flags & PROVED or certificate or shape & STRANGERS
                    assert server.is_current(answer) and answer.peer != bob.peer
                    if flags & LEAVES:
                        server.goes(answer.peer)
                    else:
                        server.has_connections(answer.peer, 64 if flags & MANY else 1)
            assert server.is_current(bob) and server.whose("10.0.0.2") == bob.peer_handle
            assert server.whose("10.0.0.1") == NOBODY


def question(flags: int, greeting: messages.Hello, certificate: bytes = b"") -> bytes:
    frame = greeting._replace(nonce=b"n" * messages.NONCE_BYTES).frame()
    shown = len(certificate).to_bytes(2, "big") + certificate if certificate else b""
    return bytes([flags, len(frame)]) + frame + shown


def hub_seeds() -> list[bytes]:
    der = ssl.PEM_cert_to_DER_cert(issue(NAME).certificate)
    ann, other = KEYS["ann"], KEYS["dan"]
    wishes = "10.0.0.2", "10.0.0.9", "10.9.9.9", "fd00::9", "10.0.0.1"
    proved = b"".join(
        question(PROVED, hello(ann, number, *wished))
        for number, wished in (
            (3, ()),
            (3, ()),
            (2, ()),
            (4, wishes[1:2]),
            (5, wishes[:1]),
            (6, wishes[2:3]),
            (7, wishes[3:]),
        )
    )
    strangers = b"".join(question(each & LEAVES, hello(None, 1, client=each)) for each in range(2, 14))
    many = question(PROVED | MANY, hello(ann, 3)) + question(PROVED, hello(ann, 3))
    welcome = greetings()[3]
    return [
        bytes([shape]) + each
        for shape in range(16)
        for each in (
            proved,
            strangers,
            many,
            bytes([0, len(welcome)]) + welcome,
            question(FALSE, hello(other)) + question(PROVED, hello(other)) + question(PROVED, hello(None)),
            question(CERTIFICATE, hello(None), der),
            question(PROVED, hello(ann, version=2)),
        )
    ]


# -- the desk


def desk(data: bytes) -> None:
    """Whatever it is, it is answered in JSON or not at all, and nobody loses his seat."""
    with ExitStack() as stack:
        server = Server(ANN, BOB)
        stack.callback(server.close)
        bob = server.comes("bob")
        selector = stack.enter_context(selectors.DefaultSelector())
        desks = WorkerChannels(server.hub.answer, selector)
        stack.callback(desks.close_all)
        worker = stack.enter_context(socket.socket(fileno=desks.open("tcp-0")))
        worker.setblocking(False)
        worker.send(data or b"{}")
        for key, _ in selector.select(0):
            key.data()
        with contextlib.suppress(BlockingIOError):
            assert json.loads(worker.recv(1 << 16))["serial"] == json.loads(data)["serial"]
        assert server.is_current(bob)


def desk_seeds() -> list[bytes]:
    ann = hello(KEYS["ann"])._replace(nonce=b"n" * 32).frame()
    good = request(ann, KEYS["ann"])
    bad = [
        good | more
        for more in (
            {"proof": 5},
            {"hello": "zz"},
            {"challenge": [1]},
            {"serial": [[]]},
            {"certificate": "00", "challenge": ""},
            {"hash": ""},
            {"hello": greetings()[1].hex()},
            {"challenge": "", "serial": 1e300},
        )
    ]
    return [json.dumps(each).encode() for each in (good, *bad, [], 7, {})] + [b"[" * 3000, b"\xff", b"7" * 4000]


# -- the control socket

COMMANDS = ("peers", "invite", "revoke")


@contextmanager
def control() -> Iterator[Feed]:
    """A request is answered with one JSON object, or the connection ends; the supervisor goes on."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        end = ServerRole(
            parse(
                {
                    "mode": "server",
                    "tunnel_addr": "10.0.0.1/24",
                    "state_dir": str(directory / "state"),
                    "public_addr": "vpn.example.org:9000",
                }
            )
        )
        server = Server(BOB)
        stack.callback(server.close)
        end.open(server.table, SimpleNamespace(accepted=0))
        selector = stack.enter_context(selectors.DefaultSelector())
        path = directory / "control"
        _restore(end, directory / "state")
        listener = ControlServer(path, lambda asked: end.command(asked) or {"ok": False}, selector)
        stack.callback(listener.close)

        def turn() -> None:
            for key, _ in selector.select(0):
                key.data()

        def take(data: bytes) -> None:
            bites = Bites(data)
            cut = bites.number()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(1.0)
                client.connect(str(path))
                turn()
                for piece in (bites.piece(cut), bites.rest()):
                    with contextlib.suppress(BrokenPipeError):
                        client.sendall(piece)
                    turn()
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_WR)
                turn()
                with contextlib.suppress(ConnectionResetError):  # it had more to say than anybody wanted to hear
                    line = client.makefile("rb").read()
                    assert not line or "ok" in json.loads(line)
            _restore(end, directory / "state")

        yield take


def _restore(end: ServerRole, state: Path) -> None:
    """One peer is invited, and nobody else."""
    invited = list((state / peer_file.DIRECTORY).glob("*"))
    if [path.stem for path in invited] != ["eve"]:
        for path in invited:
            path.unlink()
        end._reread()
        assert end.command({"command": "invite", "name": "eve", "allowed": [], "rate_mbit": None})["ok"]


def control_seeds() -> list[bytes]:
    requests = [
        {"command": command} | more
        for command in (*COMMANDS, "status", 7)
        for more in (
            {},
            {"name": "ann"},
            {"name": "eve", "allowed": []},
            {"name": "dan", "allowed": ["10.1.0.0/16"], "rate_mbit": 5, "server": "h:1"},
            {"name": "ann", "allowed": ["10.1.0.1/16"]},
            {"name": "../x", "allowed": []},
            {"name": "ann", "allowed": [], "rate_mbit": 0, "server": ":"},
        )
    ]
    return (
        [bytes([9]) + json.dumps(each).encode() + b"\n" for each in requests]
        + [
            b"\0" + each
            for each in (b"[]\n", b"\n", b"{", b"\xff\n", b"7" * 4000, b"[" * 4000 + b"\n", b'{"command": []}\n')
        ]
        + [
            b'\0{"command": "invite", "name": "ann", "allowed": [], "rate_mbit": %s}\n' % rate
            for rate in (b"NaN", b"1e999")
        ]
    )


# -- what is remembered


@contextmanager
def remembered() -> Iterator[Feed]:
    """Whatever is in the file, a server starts and its peers get addresses."""
    with tempfile.TemporaryDirectory() as name:
        state = StateDir(name)

        def take(data: bytes) -> None:
            (state.path / "addresses.json").write_bytes(data)
            server = Server(ANN, BOB)
            try:
                server.hub = Admission(server.config, server.table, OFFLOADS, state.addresses(), server.saved.append)
                server.configure(ANN, BOB)
                given = [server.comes(peer).addresses for peer in ("ann", "bob")]
                assert len({address for each in given for address in each}) == 4
            finally:
                server.close()

        yield take


def remembered_seeds() -> list[bytes]:
    return [
        json.dumps(each).encode()
        for each in (
            {"ann": ["10.0.0.7", "fd00::7"], "bob": ["10.0.0.8"]},
            {"ann": ["10.0.0.7"], "bob": ["10.0.0.7"]},
            {"ann": ["10.9.9.9", "x", "10.0.0.1", "10.0.0.255", "10.0.0.0"], "cyd": ["10.0.0.2"]},
            {"ann": 5},
            [],
            {},
            {"": [[]]},
            {"ann": "10.0.0.7"},
        )
    ] + [b"", b"\xff", b"{"]
