"""A server's role: what a start and a reload make of the files of its peers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from pipeline.credentials import keys
from pipeline.errors import ConfigError
from pipeline.peers.known_peers import PeerChanges
from pipeline.supervisor.roles import server_role
from tests.harness.hub import hello, request
from tests.harness.running_server import Running


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.close()


def test_the_device_is_told_which_networks_are_behind_peers(running: Running) -> None:
    running.invite("vic", allowed=["10.1.0.0/16"])
    assert running.networks[0] == [] and running.networks[-1] == [ip_network("10.1.0.0/16")]
    running.command("revoke", name="vic")
    assert running.networks[-1] == []


def test_a_malformed_file_costs_its_peer_and_the_server_starts(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    ann = running.invite("ann")
    (running.peers / "bad.json").write_text('{"key": ')
    running.start()
    assert running.may_connect(ann) and running.states() == {"ann": "away", "bad": "broken"}
    (row,) = (row for row in running.command("peers")["peers"] if row["name"] == "bad")
    assert str(running.peers / "bad.json") in row["problem"]


def test_a_reload_never_costs_a_known_peer_for_what_another_claims(running: Running) -> None:
    ann = running.invite("ann", allowed=["10.7.0.0/16"])
    session = running.connect(ann)
    keys.write_secret(running.state / "cfg.key", keys.generate().encode())
    claims = {"name": "cfg", "key_file": str(running.state / "cfg.key"), "allowed": ["10.7.0.0/16"]}
    with pytest.raises(ConfigError, match='belongs to "cfg" already, "ann" cannot have it'):
        running.reload(peers=[claims])
    assert running.hub.is_current(session)
    running.start()  # a start has to decide: the configuration goes first
    assert running.states() == {"ann": "broken", "cfg": "away"}


def test_a_reload_tells_which_peers_are_other_ones_than_before(running: Running) -> None:
    for name in ("ann", "bob", "carl"):
        running.invite(name)
    assert running.reload() == PeerChanges()
    assert running.reload(rate_mbit=5, quota_gb=9) == PeerChanges()  # which count for all
    content = json.loads((running.peers / "bob.json").read_text())
    (running.peers / "bob.json").write_text(json.dumps(content | {"rate_mbit": 5}))
    (running.peers / "carl.json").unlink()
    keys.write_secret(running.peers / "dan.json", json.dumps({"key": keys.generate()}).encode())
    assert running.reload() == PeerChanges(("dan",), ("bob",), ("carl",))
    file = running.state / "cfg.key"
    keys.write_secret(file, keys.generate().encode())
    assert running.reload(peers=[{"name": "cfg", "key_file": str(file)}]) == PeerChanges(("cfg",))
    keys.write_secret(file, keys.generate().encode(), replace=True)
    assert running.reload() == PeerChanges(changed=("cfg",))
    assert running.reload(peers=[{"name": "cfg", "key_file": str(file), "rate_mbit": 7}]) == PeerChanges((), ("cfg",))
    (running.peers / "bob.json").write_text("half a fi")
    assert running.reload() == PeerChanges()  # it stays as it was, and that is a problem of its own
    running.command("revoke", name="ann")
    assert running.reload() == PeerChanges()


def test_a_key_that_a_reload_replaces_ends_the_session_of_the_old_one(running: Running) -> None:
    ann, bob = running.invite("ann"), running.invite("bob")
    of_ann, of_bob = running.connect(ann), running.connect(bob)
    new = keys.generate()
    (running.peers / "ann.json").write_text(json.dumps({"key": new}))
    running.reload()
    assert not running.hub.is_current(of_ann) and running.hub.is_current(of_bob)
    assert running.may_connect(keys.parse(new)) and not running.may_connect(ann)


@pytest.mark.parametrize("moves", [True, False])
def test_a_client_that_has_another_server_counts_from_its_admission_on_and_no_longer_than_it_is_there(
    running: Running, monkeypatch: pytest.MonkeyPatch, moves: bool
) -> None:
    key = running.invite("ann")
    asked = request(hello(key)._replace(moves=moves).frame(), key)
    assert running.role.answer_request(asked) and running.role.movers == moves  # no worker has shown its connection yet
    monkeypatch.setattr(server_role, "SHOWS_NS", 0)
    assert running.role.answer_request(asked) and running.role.movers == 0  # it never came to be
    running.hub.set_connections(0, 1)
    assert running.role.movers == moves
    running.hub.set_connections(0, 0)
    assert running.role.movers == 0
