"""The client's part of the supervisor: whose WELCOME counts, what becomes of it, and where the server was found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.config import Config, parse
from pipeline.credentials import keys
from pipeline.errors import ConfigError, LocalError
from pipeline.runtime.client_hello import client_hello
from pipeline.runtime.plan import WorkerSettings
from pipeline.supervisor.roles.client_role import ClientRole
from pipeline.supervisor.roles.client_servers import KNOWN_SERVERS_MAX
from pipeline.supervisor.roles.prover import OLD_KEY, UNPROVED
from pipeline.supervisor.run.worker_settings import worker_settings
from pipeline.wire import auth
from pipeline.wire.messages import WELCOME_MAC_AT, Challenge, Welcome

NONCE, FOUND = b"n" * 32, b"h" * 32
CHALLENGE = Challenge(b"c" * 32).frame()
WELCOME = Welcome(1, 0, 1400, 0).frame()
UNKEYED = {"serial": 7, "hello": "", "challenge": "", "hash": "", "welcome": WELCOME.hex(), "server": "192.0.2.1"}


class Device:
    """Where addresses and routes would be set."""

    offloads = accepted = 0

    def __init__(self) -> None:
        self.servers: list[str] = []
        self.looks = 0
        self.fails = False

    def take_from_server(
        self, addresses: Iterable[Any], routes: Iterable[Any], server: str, dns: Iterable[Any]
    ) -> list[Any]:
        if self.fails:
            raise LocalError("no kernel")
        self.servers.append(server)
        return []

    def look_soon(self) -> None:
        self.looks += 1


class Running:
    """A client with a key in a file, and what its tcp workers have been told."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "key"
        self.device = Device()
        keys.write_secret(self.file, keys.generate().encode())
        self.role = ClientRole(self.config)
        self.role._device = cast(Any, self.device)
        self.expect()

    @property
    def config(self) -> Config:
        return parse({"mode": "client", "remote_addr": "192.0.2.1:9000", "key_file": str(self.file)})

    @property
    def key(self) -> bytes:
        return self.role.credentials.key

    def expect(self) -> None:
        self.settings: WorkerSettings = worker_settings(self.config, self.role.credentials, self.device, 7, None)
        self.role.expect(self.settings)

    def reload(self) -> None:
        self.role.prepare_reload(self.config)
        self.role.apply_reload()
        self.expect()

    def handshake(self) -> dict[str, Any]:
        """A handshake as a tcp worker with the present settings has it."""
        hello = client_hello(self.settings, bytes.fromhex(self.settings.key_id), 0, NONCE).frame()
        return {"serial": 7, "hello": hello.hex(), "challenge": CHALLENGE.hex(), "hash": FOUND.hex()}

    def transcript(self) -> bytes:
        return auth.transcript(bytes.fromhex(self.handshake()["hello"]), CHALLENGE, FOUND)

    def ask(self, request: Any) -> Any:
        return self.role.answer_request(request)

    def report(self, welcome: bytes, server: str = "192.0.2.1", **handshake: Any) -> str:
        """The verdict on a WELCOME; the device gets it at the next tick."""
        answer = self.ask({**self.handshake(), **handshake, "welcome": welcome.hex(), "server": server})
        assert answer is not None and set(answer) == {"serial", "distrust"}
        self.role.tick(0)
        return answer["distrust"]

    def welcome(self) -> bytes:
        mac = auth.server_proof(self.key, self.transcript(), WELCOME)
        return WELCOME[:WELCOME_MAC_AT] + mac + WELCOME[WELCOME_MAC_AT + 32 :]


@pytest.fixture
def running(tmp_path: Path) -> Running:
    return Running(tmp_path)


def test_a_worker_gets_its_proof_and_the_device_gets_what_a_proved_welcome_has(running: Running) -> None:
    proof = auth.client_proof(running.key, running.transcript()).hex()
    assert running.ask(running.handshake()) == {"serial": 7, "proof": proof, "refusal": ""}
    assert running.report(running.welcome()) == ""
    assert running.device.servers == ["192.0.2.1"]
    assert running.report(running.welcome()) == ""
    assert (running.device.servers, running.device.looks) == (["192.0.2.1"], 1)


@pytest.mark.parametrize("handshake", [{}, {"hello": "", "challenge": "", "hash": ""}], ids=["unproved", "keyless"])
def test_a_worker_that_was_taken_over_cannot_make_up_a_welcome(running: Running, handshake: dict[str, str]) -> None:
    if handshake:
        with pytest.raises(Exception, match="empty frame"):
            running.report(WELCOME, **handshake)
        running.role.tick(0)
    else:
        assert running.report(WELCOME) == UNPROVED
    assert running.device.servers == []


def test_a_device_that_cannot_take_what_the_server_gives_costs_no_connection(running: Running) -> None:
    running.device.fails = True
    assert running.report(running.welcome()) == ""
    running.device.fails = False
    assert running.report(running.welcome()) == ""
    assert running.device.servers == ["192.0.2.1"]


def test_every_address_of_the_server_reaches_the_device(running: Running) -> None:
    welcome = running.welcome()
    for server in ("192.0.2.1", "192.0.2.2"):
        running.ask({**running.handshake(), "welcome": welcome.hex(), "server": server})
    running.role.tick(0)
    assert running.device.servers == ["192.0.2.1", "192.0.2.2"]


def test_after_a_reload_the_new_key_proves_and_the_old_one_does_not(running: Running) -> None:
    old, before = running.handshake(), running.welcome()
    keys.write_secret(running.file, keys.generate().encode(), replace=True)
    running.reload()
    assert running.handshake()["hello"] != old["hello"]
    assert running.ask(old) == {"serial": 7, "proof": "", "refusal": OLD_KEY}
    assert running.report(before, **old) == OLD_KEY
    assert running.ask(running.handshake())["refusal"] == ""
    assert running.report(running.welcome()) == ""


def test_a_reload_without_its_key_file_is_refused_and_the_old_key_goes_on(running: Running) -> None:
    running.file.unlink()
    with pytest.raises(ConfigError):
        running.role.prepare_reload(running.config)
    assert running.ask(running.handshake())["refusal"] == ""


def test_without_a_key_a_welcome_is_believed_and_there_is_nothing_to_prove() -> None:
    role, device = (
        ClientRole(parse({"mode": "client", "remote_addr": "192.0.2.1:9000", "encryption": "none"})),
        Device(),
    )
    role._device = cast(Any, device)
    role.expect(worker_settings(role._config, role.credentials, device, 7, None))
    assert role.answer_request(UNKEYED) is None
    role.tick(0)
    assert device.servers == ["192.0.2.1"]
    assert role.answer_request({"serial": 7, "hello": "", "challenge": "", "hash": ""}) is None


@pytest.mark.parametrize("server", ["", "x", "vpn.example.org", "fe80::1%" + "x" * 99, 7, {}, ["192.0.2.1"]], ids=str)
def test_a_worker_names_an_address_or_its_report_is_lost(running: Running, server: Any) -> None:
    """It goes to other workers, and to the rules that keep the way to the server out of the tunnel."""
    with pytest.raises(ValueError):
        running.report(running.welcome(), server)
    running.role.tick(0)
    assert running.device.servers == running.role.known_servers == []


# -- where the server was found, for workers that start later


def config(remote: str, **settings: object) -> Config:
    basic = {"mode": "client", "remote_addr": remote, "encryption": "none", "tunnel_addr": "10.0.0.2/24"}
    return parse({**basic, **settings})


def role_of(remote: str, **settings: object) -> ClientRole:
    role = ClientRole(config(remote, **settings))
    role._device = cast(Any, Device())
    role.expect(worker_settings(role._config, role.credentials, Device(), 7, None))
    return role


def welcomed(role: ClientRole, *servers: str) -> list[str]:
    for server in servers:
        role.answer_request({**UNKEYED, "server": server})
        role.tick(0)
    return role.known_servers


def test_addresses_of_a_name_are_known_the_latest_first_and_a_few_at_most() -> None:
    role = role_of("vpn.example.org:9000")
    assert welcomed(role, "192.0.2.1", "192.0.2.2", "192.0.2.1") == ["192.0.2.1", "192.0.2.2"]
    many = [f"192.0.2.{number}" for number in range(10, 30)]
    assert welcomed(role, *many) == many[::-1][:KNOWN_SERVERS_MAX]


def test_an_address_needs_no_other() -> None:
    assert welcomed(role_of("192.0.2.1:9000"), "192.0.2.1") == []


@pytest.mark.parametrize(("remote", "known"), [("vpn.example.org:9000", ["192.0.2.1"]), ("other.example:9000", [])])
def test_another_server_is_not_looked_for_where_the_first_one_was(remote: str, known: list[str]) -> None:
    role = role_of("vpn.example.org:9000")
    welcomed(role, "192.0.2.1")
    role.prepare_reload(config(remote))
    role.apply_reload()
    assert role.known_servers == known


@pytest.mark.parametrize("compat", [False, True], ids=["", "compat"])
def test_an_address_without_a_welcome_counts_with_compat_alone(compat: bool) -> None:
    role = role_of("vpn.example.org:9000", compat=compat)
    role.answer_request({"found": "192.0.2.1"})
    assert role.known_servers == ["192.0.2.1"] * compat


def test_what_is_found_is_an_address() -> None:
    role = role_of("vpn.example.org:9000", compat=True)
    with pytest.raises(ValueError):
        role.answer_request({"found": "vpn.example.org"})
    assert role.known_servers == []
