"""The first hub: only where nothing is, and with settings that are valid and clash with nothing."""

from __future__ import annotations

import argparse
import ipaddress
import json
import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipeline import config
from pipeline.cli import first_hub, service_manager
from pipeline.errors import LocalError
from pipeline.supervisor import instance


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with the service, on which nothing is configured."""
    seen = SimpleNamespace(started=[], directory=tmp_path / "etc")
    monkeypatch.setattr(first_hub, "CONFIGURATIONS", seen.directory)
    monkeypatch.setattr(instance, "RUN_DIRECTORY", tmp_path / "run")
    monkeypatch.setattr(first_hub.os, "geteuid", lambda: 0)
    monkeypatch.setattr(service_manager, "find_advice", lambda name: "")
    monkeypatch.setattr(service_manager, "start", lambda name, path: seen.started.append((name, path)))
    monkeypatch.setattr(service_manager, "stop", lambda name: True)
    monkeypatch.setattr(first_hub, "_wait_until_running", lambda: None)
    return seen


def invite(address: str = "", **given: str | None) -> None:
    first_hub.make_if_first(argparse.Namespace(**{"address": address, "config": None, "name": None} | given))


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("", 9000),
        ("vpn.example.org", 9000),
        ("vpn.example.org:443", 443),
        ("[2001:db8::1]:443", 443),
        ("fd00::1", 9000),
    ],
)
def test_the_hub_has_a_valid_configuration_and_listens_on_the_port_of_the_address(
    fresh: SimpleNamespace, address: str, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    invite(address)
    ((name, path),) = fresh.started
    made = config.load(str(path))
    assert (name, made.name, made.mode, made.listen_endpoint.port) == ("hub", "hub", "server", port)
    assert "is a hub now" in capsys.readouterr().err


def test_its_network_is_none_that_this_machine_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [SimpleNamespace(family=socket.AF_INET, address="10.128.0.1", netmask="255.128.0.0")]
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth0": here})
    for _ in range(50):
        four, six = first_hub._free_networks()
        assert four.subnet_of(ipaddress.IPv4Network("10.64.0.0/10")) and six.is_private


@pytest.mark.parametrize("given", [{"config": "/etc/mine.json"}, {"name": "mine"}])
def test_nothing_is_made_for_an_instance_that_is_named(fresh: SimpleNamespace, given: dict[str, str]) -> None:
    invite(**given)
    assert not fresh.started


def test_nothing_is_made_where_something_is_configured_or_there_is_no_service(
    fresh: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fresh.directory / "office").mkdir(parents=True)
    (fresh.directory / "office/config.json").write_text(json.dumps({}))
    invite()
    (fresh.directory / "office/config.json").unlink()
    monkeypatch.setattr(service_manager, "find_advice", lambda name: "install the service first")
    invite()
    assert not fresh.started


def test_a_hub_that_does_not_start_leaves_nothing(fresh: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise LocalError("made to fail")

    monkeypatch.setattr(first_hub, "_wait_until_running", fail)
    with pytest.raises(LocalError):
        invite()
    assert not list(fresh.directory.rglob("*.json"))
