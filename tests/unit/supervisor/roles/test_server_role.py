"""A server's peers as its commands change them: revoked whatever happens, invited as a whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import Config, parse
from pipeline.credentials import invitation, keys
from pipeline.errors import ConfigError, LocalError
from pipeline.peers import peer_file
from pipeline.peers.known_peers import PeerChanges
from pipeline.supervisor.roles.server_role import ServerRole
from pipeline.wire.messages import Welcome
from tests.harness.hanging import hanging
from tests.harness.hub import Answer, HubServer, hello, request


class Running:
    """A server's role, and clients for which it is asked as a tcp worker would ask."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.peers = self.state / "peers"
        self.settings: dict[str, Any] = {
            "mode": "server",
            "tunnel_addr": ["10.0.0.1/24", "fd00::1/64"],
            "state_dir": str(self.state),
            "public_addr": "vpn.example.org:9000",
            "max_clients": 4,
        }
        self.hub = HubServer()  # for its peer table
        self._begin()

    def start(self) -> None:
        """Another run, with the files of the one before."""
        self.role.accountant.close()
        self._begin()

    def _begin(self) -> None:
        self.role = ServerRole(self.config)
        self.networks: list[list[Any]] = []
        """Networks behind peers, each time that the device was told."""
        self.role.start(self.hub.table, SimpleNamespace(accepted=0, know_peers=self.networks.append))

    def close(self) -> None:
        self.role.accountant.close()
        self.hub.close()

    @property
    def config(self) -> Config:
        return parse(self.settings)

    def command(self, command: str, **more: Any) -> dict[str, Any]:
        answer = self.role.run_command({"command": command, **more})
        assert answer is not None
        return json.loads(json.dumps(answer))

    def invite(self, name: str, **more: Any) -> bytes:
        """The key of a new peer."""
        answer = self.command("invite", **{"name": name, "allowed": [], "rate_mbit": None, **more})
        assert answer["ok"], answer
        return invitation.decode(answer["line"]).key

    def refused(self, command: str, **more: Any) -> str:
        answer = self.command(command, **more)
        assert not answer["ok"]
        return answer["error"]

    def reload(self, **settings: Any) -> PeerChanges:
        self.settings |= settings
        self.role.prepare_reload(self.config)
        return self.role.apply_reload()

    def ask(self, key: bytes, number: int = 1) -> Answer:
        asked = self.role.answer_request(request(hello(key, number).frame(), key))
        assert asked is not None
        return Answer(asked)

    def connect(self, key: bytes, number: int = 1) -> Answer:
        answer = self.ask(key, number)
        self.hub.set_connections(answer.peer, 1)
        return answer

    def may_connect(self, key: bytes) -> bool:
        return isinstance(self.ask(key, 99).message, Welcome)

    def states(self) -> dict[str, str]:
        return {row["name"]: row["state"] for row in self.command("peers")["peers"]}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.close()


def cannot_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(state: Path, name: str) -> bool:
        raise LocalError("vic.json cannot be written: Read-only file system")

    monkeypatch.setattr(peer_file, "remove", remove)


def test_the_device_is_told_which_networks_are_behind_peers(running: Running) -> None:
    running.invite("vic", allowed=["10.1.0.0/16"])
    assert running.networks[0] == [] and running.networks[-1] == [ip_network("10.1.0.0/16")]
    running.command("revoke", name="vic")
    assert running.networks[-1] == []


# -- revoke


def test_a_revoked_peer_is_out_at_once_and_a_second_revoke_is_fine(running: Running) -> None:
    vic, ann = running.invite("vic"), running.invite("ann")
    of_vic, of_ann = running.connect(vic), running.connect(ann)
    for _ in range(2):
        assert running.command("revoke", name="vic") == {"ok": True, "name": "vic", "problems": [], "invitation": None}
        assert not running.hub.is_current(of_vic) and running.hub.is_current(of_ann)
        assert not running.may_connect(vic) and not (running.peers / "vic.json").exists()
    assert running.refused("revoke", name="vi") == 'no peer "vi"; known peers: ann'
    assert "name of a peer" in running.refused("revoke", name="../vic")


@pytest.mark.parametrize("place", ["file", "key", "directory", "certificate"])
def test_a_peer_is_revoked_whatever_else_is_broken_and_that_is_said(running: Running, place: str) -> None:
    running.settings["peers"] = [{"name": "cfg", "key_file": str(running.state / "cfg.key")}]
    keys.write_secret(running.state / "cfg.key", keys.generate().encode())
    running.reload()
    vic = running.invite("vic")
    of_vic = running.connect(vic)
    match place:
        case "file":
            (running.peers / "other.json").write_text('{"key": "broken')
        case "key":
            (running.state / "cfg.key").unlink()
        case "directory":
            running.peers.chmod(0o777)
        case "certificate":
            (running.state / "server.crt").write_text("nonsense")
    answer = running.command("revoke", name="vic")
    assert not running.hub.is_current(of_vic) and not running.may_connect(vic)
    assert answer["ok"] and not (running.peers / "vic.json").exists()
    assert bool(answer["problems"]) is (place != "certificate")
    running.peers.chmod(0o700)
    (running.state / "server.crt").unlink()
    running.start()
    assert not running.may_connect(vic)


def test_a_peer_whose_own_file_is_broken_is_revoked(running: Running) -> None:
    vic = running.invite("vic")
    of_vic = running.connect(vic)
    file = running.peers / "vic.json"
    file.write_text("half a fi")
    running.reload()
    assert running.hub.is_current(of_vic) and "vic.json" in running.role.problems[0]
    assert running.command("revoke", name="vic")["ok"]
    assert not running.hub.is_current(of_vic) and not file.exists()
    (running.peers / "odd.json").write_text("{}")
    running.reload()
    assert running.states() == {"odd": "broken"}
    assert running.command("revoke", name="odd")["ok"] and running.states() == {}


def test_a_file_that_cannot_be_removed_ends_the_peer_now_and_says_that_it_comes_back(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    vic = running.invite("vic")
    of_vic = running.connect(vic)
    with monkeypatch.context() as patch:
        cannot_be_removed(patch)
        for _ in range(2):
            said = running.refused("revoke", name="vic")
            assert "ends now, but comes back after a restart unless" in said
            assert "its file is removed: vic.json cannot be written" in said and "Read-only file system" in said
            assert not running.hub.is_current(of_vic) and not running.may_connect(vic)
            running.reload()
            assert not running.may_connect(vic) and "vic" not in running.states()
    assert running.command("revoke", name="vic")["ok"]
    running.start()
    assert not running.may_connect(vic)


def test_a_peer_that_could_not_be_removed_can_be_invited_again_with_another_key(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = running.invite("vic")
    with monkeypatch.context() as patch:
        cannot_be_removed(patch)
        running.refused("revoke", name="vic")
    new = running.invite("vic")
    running.reload()
    assert running.may_connect(new) and not running.may_connect(old)


def test_another_key_in_the_file_of_an_excluded_peer_makes_it_a_peer_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.invite("vic")
    cannot_be_removed(monkeypatch)
    running.refused("revoke", name="vic")
    new = keys.generate()
    (running.peers / "vic.json").write_text(json.dumps({"key": new}))
    running.reload()
    assert running.may_connect(keys.parse(new))


def test_a_file_system_that_hangs_does_not_keep_a_revoked_peer_in(running: Running) -> None:
    vic = running.invite("vic")
    of_vic = running.connect(vic)
    with hanging(running.peers):
        said = running.refused("revoke", name="vic")
        assert not running.hub.is_current(of_vic) and not running.may_connect(vic)
    assert "comes back after a restart unless" in said and "no answer within 2 s" in said


def test_a_peer_of_the_configuration_ends_and_stays_out_until_it_is_removed_there(running: Running) -> None:
    file = running.state / "cfg.key"
    keys.write_secret(file, keys.generate().encode())
    configured = {"name": "cfg", "key_file": str(file)}
    running.reload(peers=[configured])
    key = keys.read_key(file, "")
    session = running.connect(key)
    for _ in range(2):
        said = running.refused("revoke", name="cfg")
        assert said.endswith("comes back after a restart unless you remove it from the configuration too")
        assert not running.hub.is_current(session) and not running.may_connect(key)
        running.reload()
        assert not running.may_connect(key)
    running.reload(peers=[])
    running.reload(peers=[configured])  # as a decision of its own
    assert running.may_connect(key)


def test_a_file_that_no_reload_has_read_yet_is_removed_too(running: Running) -> None:
    running.invite("ann")
    (running.peers / "new.json").write_text(json.dumps({"key": keys.generate()}))
    assert running.command("revoke", name="new")["ok"] and os.listdir(running.peers) == ["ann.json"]


# -- invite


def state_of(running: Running) -> tuple[Any, ...]:
    files = {path: path.read_bytes() for path in sorted(running.state.rglob("*")) if path.is_file()}
    return files, running.states(), running.role._peers.known.known


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"name": "ann"}, 'peer "ann" exists already; revoke it'),
        ({"name": "ANN"}, 'peer "ann" exists already, too much like ANN'),
        ({"name": "odd"}, 'peer "odd" exists already'),
        ({"name": "cfg"}, 'peer "cfg" exists already'),
        ({"name": "unread"}, "unread.json exists already"),
        ({"name": "x/y"}, "expected 1 to 32 letters"),
        ({"name": "ä"}, "expected 1 to 32 letters"),
        ({"name": "x" * 33}, "expected 1 to 32 letters"),
        ({"name": ".x"}, "expected 1 to 32 letters"),
        ({"name": "new", "allowed": ["10.7.0.0/16"]}, '10.7.0.0/16 belongs to "ann" already'),
        ({"name": "new", "server": "http://x"}, "--address: given http://x"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_invitation_that_is_refused_leaves_nothing(running: Running, request_: dict[str, Any], text: str) -> None:
    running.invite("ann", allowed=["10.7.0.0/16"])
    keys.write_secret(running.state / "cfg.key", keys.generate().encode())
    (running.peers / "odd.json").write_text("{}")
    running.reload(peers=[{"name": "cfg", "key_file": str(running.state / "cfg.key")}])
    (running.peers / "unread.json").write_text(json.dumps({"key": keys.generate()}))
    before = state_of(running)
    assert text in running.refused("invite", **{"allowed": [], "rate_mbit": None, **request_})
    assert state_of(running) == before


@pytest.mark.parametrize("name", ["a", "a..b", "a.json", "_", "A-1", "x" * 32, "con", "peers"])
def test_any_name_that_is_allowed_can_be_invited_and_revoked_and_survives_a_restart(
    running: Running, name: str
) -> None:
    key = running.invite(name)
    running.start()
    assert running.may_connect(key) and list(running.states()) == [name]
    assert running.command("revoke", name=name)["ok"] and not os.listdir(running.peers)


def test_an_invitation_works_while_other_files_are_broken(running: Running) -> None:
    running.invite("ann")
    (running.peers / "ann.json").write_text("broken")
    key = running.invite("bob")
    assert running.may_connect(key)
    running.start()
    assert running.may_connect(key) and running.states() == {"ann": "broken", "bob": "away"}


def test_an_invitation_that_cannot_be_written_leaves_nothing(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_secret(*_: object, **__: object) -> None:
        raise LocalError("ann.json cannot be written: No space left on device")

    monkeypatch.setattr(keys, "write_secret", write_secret)
    assert "No space left" in running.refused("invite", name="ann", allowed=[], rate_mbit=None)
    assert running.states() == {}


def test_an_invitation_whose_line_reached_nobody_is_taken_back(running: Running) -> None:
    key = running.invite("ann")
    running.role.take_back({"command": "invite", "name": "ann"})
    assert running.states() == {} and not running.may_connect(key) and not os.listdir(running.peers)


# -- start and reload


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


def test_a_quota_that_is_used_up_is_given_back_by_a_command(running: Running) -> None:
    key = running.invite("ann", quota_gb=1)
    quotas = running.role.accountant.quotas
    quotas.add({"ann": 2 * 10**9})
    assert not running.may_connect(key)
    answer = running.command("quota", name="ann", used_bytes=5 * 10**8)
    assert answer == {"ok": True, "name": "ann", "used_bytes": 5 * 10**8, "quota_bytes": 10**9}
    assert running.may_connect(key) and quotas.used("ann") == 5 * 10**8
    assert running.command("quota", name="ann", used_bytes=10**9)["ok"] and not running.may_connect(key)
    running.invite("bob")
    assert "has no quota" in running.refused("quota", name="bob", used_bytes=0)
    assert "no peer" in running.refused("quota", name="carl", used_bytes=0)
    for size in (-1, None, "0", True, 1.5, 1 << 63):
        assert "used_bytes" in running.refused("quota", name="ann", used_bytes=size)
