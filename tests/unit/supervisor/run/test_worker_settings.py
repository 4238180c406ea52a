"""The settings of workers: made of the configuration, and unchanged by JSON."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pipeline.config import parse
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.runtime.client_hello import client_hello
from pipeline.runtime.plan import WorkerSettings
from pipeline.supervisor.run.worker_account import Account
from pipeline.supervisor.run.worker_settings import HANDED_DOWN, client_id, new_session, worker_settings
from pipeline.transport.settings import TlsMaterial
from pipeline.version import VERSION
from pipeline.wire import auth, messages

KEY = bytes(range(100, 132))
TLS = TlsMaterial("certificate", "key", "ca", "1.3", "00ff", "vpn.example.org", True)
DEVICE = SimpleNamespace(offloads=0x4F, accepted=0x6F)
ACCOUNT = Account(65534, 65533, "nobody")
CLIENT = parse(
    {
        "mode": "client",
        "name": "town",
        "remote_addr": "vpn.example.org:9000",
        "tunnel_addr": ["10.0.0.2/24", "fd00::2/64"],
        "tls_skip_verify": True,
    }
)
SERVER = parse({"mode": "server", "name": "town", "tunnel_addr": "10.0.0.1/24"})


def test_a_client_is_told_its_server_the_name_of_its_key_and_the_addresses_that_it_asks_for() -> None:
    told = worker_settings(CLIENT, TlsSettings(TLS, KEY, b""), DEVICE, 7, ACCOUNT, ["192.0.2.5"])
    assert (told.remote_host, told.remote_port, told.known_servers) == ("vpn.example.org", 9000, ["192.0.2.5"])
    assert told.requested_addresses == ["10.0.0.2", "fd00::2"]
    assert (told.key_id, told.verifies_keys, told.tls) == (auth.key_id(KEY).hex(), False, TLS)
    assert not any(form in json.dumps(told) for form in (KEY.hex(), base64.b64encode(KEY).decode()))
    assert (told.client_id, told.session) == (client_id("town"), 7)
    assert (told.offloads, told.offloads_accepted, told.account) == (0x4F, 0x6F, (65534, 65533))
    assert all(getattr(told, name) == getattr(CLIENT, name) for name in HANDED_DOWN)


def test_the_workers_of_a_server_are_told_no_key() -> None:
    told = worker_settings(SERVER, TlsSettings(TLS, KEY, b""), DEVICE, 7, None)
    assert (told.key_id, told.verifies_keys, told.account) == ("", True, None)
    assert (told.remote_host, told.remote_port, told.requested_addresses) == ("", 0, [])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fingerprint": "", "verify": True}, VERSION),
        ({"fingerprint": "00ff", "verify": False}, VERSION),
        ({"fingerprint": "", "verify": False}, ""),
    ],
    ids=["by-a-ca", "pinned", "by-nothing"],
)
def test_only_a_server_that_tls_verifies_is_told_the_version_of_a_client(change: dict[str, Any], told: str) -> None:
    settings = worker_settings(CLIENT, TlsSettings(TLS._replace(**change), KEY, b""), DEVICE, 7, None)
    assert settings.program == client_hello(settings, b"", 0, bytes(32)).program == told


@pytest.mark.parametrize(
    ("change", "takes"),
    [
        ({"carrier": "udp"}, True),
        ({"carrier": "auto"}, True),
        ({"carrier": "tcp"}, False),
        ({"carrier": "udp", "send_rate": 1000}, False),
        ({"carrier": "udp", "bulk_rate": 1000}, False),
    ],
)
def test_a_client_asks_for_datagrams_unless_it_has_none_or_keeps_a_rate(change: dict[str, Any], takes: bool) -> None:
    settings = worker_settings(CLIENT, TlsSettings(TLS, KEY, b""), DEVICE, 7, None)._replace(**change)
    hello = client_hello(settings, b"", 0, bytes(32))
    assert bool(hello.features & messages.TAKES_DATAGRAMS) == takes


def test_in_clear_text_with_the_original_program_and_by_a_server_no_version_is_told() -> None:
    compat = msgspec.structs.replace(CLIENT, compat=True)
    for config, tls in ((CLIENT, None), (compat, TLS), (SERVER, TLS)):
        assert worker_settings(config, TlsSettings(tls, b"", b""), DEVICE, 7, None).program == ""


def test_a_plan_of_an_older_supervisor_has_no_version_to_tell() -> None:
    fields = json.loads(json.dumps(worker_settings(CLIENT, TlsSettings(TLS, KEY, b""), DEVICE, 7, ACCOUNT)))
    older = WorkerSettings.from_json(fields[: WorkerSettings._fields.index("program")])
    assert (older.program, older.lanes) == ("", 1)


def test_settings_cross_json_unchanged() -> None:
    for told in (
        worker_settings(CLIENT, TlsSettings(TLS, KEY, b""), DEVICE, 7, ACCOUNT),
        worker_settings(SERVER, TlsSettings(None, b"", b""), DEVICE, 7, None),
    ):
        again = WorkerSettings.from_json(json.loads(json.dumps(told)))
        assert again == told
        assert (type(again.tls), type(again.account)) == (type(told.tls), type(told.account))


def test_a_later_start_has_a_higher_number_and_a_name_keeps_its_client_id() -> None:
    assert new_session() < new_session()
    assert client_id("town") == client_id("town") != client_id("town-2")
