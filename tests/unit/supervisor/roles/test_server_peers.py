"""A server's peers are revoked whatever happens: at once, and for good if their files can be written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.credentials import keys
from pipeline.errors import LocalError
from pipeline.peers import peer_file
from tests.harness.hanging import hanging
from tests.harness.running_server import Running


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.close()


def cannot_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(state: Path, name: str) -> bool:
        raise LocalError("vic.json cannot be written: Read-only file system")

    monkeypatch.setattr(peer_file, "remove", remove)


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
