"""Targets in the supervisor: requests of tcp workers about their clients, commands of an operator, saved addresses.

hub              a byte of options, then requests: flags, a HELLO behind a byte of length, a certificate behind two
worker_channel   a datagram of a worker that may have been broken into
control          a byte that says where the request is cut in two, and the request
remembered       addresses.json
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
from pipeline.packet.route_table import NO_PEER
from pipeline.peers import peer_file
from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.admission import Admission
from pipeline.peers.registry import KnownPeer
from pipeline.supervisor.control.control_socket import ControlServer
from pipeline.supervisor.kernel.congestion import CongestionControl
from pipeline.supervisor.processes.worker_channels import WorkerChannels
from pipeline.supervisor.roles.server_role import ServerRole
from pipeline.supervisor.run.failures import Failures
from pipeline.wire import messages
from pipeline.wire.messages import Refused, Welcome
from tests.fuzz.byte_source import ByteSource
from tests.fuzz.fuzzer import Feed
from tests.fuzz.targets_handshake import CONFIGURED
from tests.fuzz.targets_wire import one_of_each
from tests.harness.hub import KEYS, OFFLOADS, Answer, HubServer, hello, known, request
from tests.harness.tls_ends import NAME, issue

ANN, BOB = known("ann", "10.1.0.0/16"), known("bob")
CYD = KnownPeer(PeerPolicy("cyd"), certificate_name=NAME)

# -- the hub

OPEN, NAMED, SMALL, FIXED = 1, 2, 4, 8
"""Of the options: every client is admitted; one peer is known by a certificate; few addresses; a fixed one."""
PROVED, FALSE, CERTIFICATE, LEAVES, MANY = 1, 2, 4, 8, 16
"""Of a request: how its client proves itself; whether it leaves, or has all the connections that are allowed."""


def hub(data: bytes) -> None:
    """Each client gets an answer, an unauthenticated client none; no client gets the addresses of another."""
    bites = ByteSource(data)
    options = bites.number()
    with ExitStack() as stack:
        settings = (CONFIGURED if options & OPEN else {}) | (
            {"tunnel_addr": ["10.0.0.1/29"]} if options & SMALL else {}
        )
        ann = known("ann", fixed=["10.0.0.5"]) if options & FIXED else ANN
        server = HubServer(ann, BOB, *([CYD] if options & NAMED else []), **settings)
        stack.callback(server.close)
        bob = server.connect("bob", 1, "10.0.0.2")
        while bites:
            flags = bites.number()
            frame = bites.piece(bites.number())
            certificate = bites.piece(bites.number(2)) if flags & CERTIFICATE else b""
            key = KEYS["ann"] if flags & PROVED else KEYS["dan"] if flags & FALSE else None
            before = server.state()
            with contextlib.suppress(PeerError):
                answer = Answer(server.admission.handle_hello(request(frame, key, certificate)))
                if not isinstance(answer.message, Welcome):
                    assert server.state() == before
                if isinstance(answer.message, Refused):
                    assert answer.reason in messages.REASONS
                elif answer.message is None:
                    assert (
                        not flags & PROVED
                        or messages.decode(frame).auth != messages.AUTH_KEY
                        or (messages.decode(frame).key_id != hello(KEYS["ann"]).key_id)
                    )
                else:
                    assert flags & PROVED or certificate or options & OPEN
                    assert server.is_current(answer) and answer.peer != bob.peer
                    if flags & LEAVES:
                        server.disconnect(answer.peer)
                    else:
                        server.set_connections(answer.peer, 64 if flags & MANY else 1)
            assert server.is_current(bob) and server.handle_at("10.0.0.2") == bob.peer_handle
            assert server.handle_at("10.0.0.1") == NO_PEER


def admission_request(flags: int, message: messages.Hello, certificate: bytes = b"") -> bytes:
    frame = message._replace(nonce=b"n" * messages.NONCE_BYTES).frame()
    behind = len(certificate).to_bytes(2, "big") + certificate if certificate else b""
    return bytes([flags, len(frame)]) + frame + behind


def hub_seeds() -> list[bytes]:
    der = ssl.PEM_cert_to_DER_cert(issue(NAME).certificate)
    ann, other = KEYS["ann"], KEYS["dan"]
    wishes = "10.0.0.2", "10.0.0.9", "10.9.9.9", "fd00::9", "10.0.0.1"
    proved = b"".join(
        admission_request(PROVED, hello(ann, number, *wished))
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
    unauthenticated = b"".join(admission_request(each & LEAVES, hello(None, 1, client=each)) for each in range(2, 14))
    many = admission_request(PROVED | MANY, hello(ann, 3)) + admission_request(PROVED, hello(ann, 3))
    welcome = one_of_each()[3]
    return [
        bytes([options]) + each
        for options in range(16)
        for each in (
            proved,
            unauthenticated,
            many,
            bytes([0, len(welcome)]) + welcome,
            admission_request(FALSE, hello(other))
            + admission_request(PROVED, hello(other))
            + admission_request(PROVED, hello(None)),
            admission_request(CERTIFICATE, hello(None), der),
            admission_request(PROVED, hello(ann, version=2)),
        )
    ]


# -- worker channels


def worker_channel(data: bytes) -> None:
    """Any datagram gets a JSON answer or none, and no peer loses its session."""
    with ExitStack() as stack:
        server = HubServer(ANN, BOB)
        stack.callback(server.close)
        bob = server.connect("bob")
        selector = stack.enter_context(selectors.DefaultSelector())
        failures = Failures()
        channels = WorkerChannels(
            server.admission.handle_hello, selector, failures, CongestionControl(server.config).set_on
        )
        stack.callback(channels.close_all)
        worker = stack.enter_context(socket.socket(fileno=channels.open_channel("tcp-0")))
        worker.setblocking(False)
        worker.send(data or b"{}")
        for key, _ in selector.select(0):
            key.data()
        with contextlib.suppress(BlockingIOError):
            assert json.loads(worker.recv(1 << 16))["serial"] == json.loads(data)["serial"]
        assert server.is_current(bob) and not failures.count


def worker_channel_seeds() -> list[bytes]:
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
            {"hello": one_of_each()[1].hex()},
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
        role = ServerRole(
            parse(
                {
                    "mode": "server",
                    "tunnel_addr": "10.0.0.1/24",
                    "state_dir": str(directory / "state"),
                    "public_addr": "vpn.example.org:9000",
                }
            )
        )
        server = HubServer(BOB)
        stack.callback(server.close)
        role.start(server.table, SimpleNamespace(accepted=0, know_peers=list))
        stack.callback(role.accountant.close)
        selector = stack.enter_context(selectors.DefaultSelector())
        path = directory / "control"
        _restore(role, directory / "state")
        listener = ControlServer(path, lambda asked: role.run_command(asked) or {"ok": False}, selector)
        stack.callback(listener.close)

        def turn() -> None:
            for key, _ in selector.select(0):
                key.data()

        def take(data: bytes) -> None:
            bites = ByteSource(data)
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
                with contextlib.suppress(ConnectionResetError):  # the request was longer than the supervisor reads
                    line = client.makefile("rb").read()
                    assert not line or "ok" in json.loads(line)
            _restore(role, directory / "state")

        yield take


def _restore(role: ServerRole, state: Path) -> None:
    """One peer is invited, and no other."""
    invited = list((state / peer_file.DIRECTORY).glob("*"))
    if [path.stem for path in invited] != ["eve"]:
        for path in invited:
            path.unlink()
        role.prepare_reload(role._config)
        role.apply_reload()
        assert role.run_command({"command": "invite", "name": "eve", "allowed": [], "rate_mbit": None})["ok"]


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
    """With any content of the file, a server starts and its peers get addresses."""
    with tempfile.TemporaryDirectory() as name:
        state = StateDir(name)

        def take(data: bytes) -> None:
            (state.path / "addresses.json").write_bytes(data)
            server = HubServer(ANN, BOB)
            try:
                server.admission = Admission(
                    server.config, server.table, OFFLOADS, state.load_addresses(), server.saved.append
                )
                server.configure(ANN, BOB)
                given = [server.connect(peer).addresses for peer in ("ann", "bob")]
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
