"""A peer is invited as a whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.credentials import keys
from pipeline.errors import LocalError
from tests.harness.running_server import Running


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.close()


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
