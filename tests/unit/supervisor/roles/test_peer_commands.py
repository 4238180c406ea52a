"""The commands about peers: each is answered, and those of a control socket are all here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.supervisor.control.control_socket import PEER_COMMANDS
from tests.harness.running_server import Running


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.close()


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


def test_each_command_about_peers_is_known_and_no_other(running: Running) -> None:
    for command in PEER_COMMANDS:
        assert "unknown" not in running.command(command, name="ann").get("error", "")
    for other in ("status", "", None, 7, [], {}):
        assert running.role.run_command({"command": other}) is None
    assert set(running.role._commands._commands) == set(PEER_COMMANDS)
