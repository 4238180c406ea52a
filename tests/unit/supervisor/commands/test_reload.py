"""A reload: what has changed, whether workers are replaced for it, and why it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import RELOAD, Config, parse
from pipeline.errors import ConfigError, Problem
from pipeline.peers.known_peers import PeerChanges
from pipeline.supervisor.commands.reload import APPLIED_BY_SUPERVISOR, CERTIFICATE, Reload

SERVER = {"mode": "server", "tunnel_addr": "10.0.0.1/24"}
OLD = parse(SERVER)


def reload(**changed: Any) -> Reload:
    return Reload(OLD, lambda: parse({**SERVER, **changed}))


def test_a_reload_without_a_change_is_possible_and_replaces_no_worker() -> None:
    same = reload()
    assert (same.error, same.changed, same.replacing, same.notes) == ("", [], [], [])
    no_peers = {"new": (), "changed": (), "removed": ()}
    assert same.answer() == {"ok": True, "changed": [], "contents": [], "peers": no_peers, "notes": [], "problems": []}
    assert same.summary == "no setting has changed"


@pytest.mark.parametrize(
    ("changed", "replaced"),
    [
        ({"routes": ["10.96.0.0/16"]}, False),
        ({"heartbeat_timeout": 7}, False),
        ({"max_handshakes": 99}, False),
        ({"keepalive": 3}, True),
        ({"log_level": "debug"}, True),
        ({"routes": ["10.96.0.0/16"], "keepalive": 3}, True),
    ],
    ids=str,
)
def test_workers_are_replaced_for_a_setting_that_they_read_at_their_start_alone(
    changed: dict[str, Any], replaced: bool
) -> None:
    wanted = reload(**changed)
    assert wanted.error == ""
    assert wanted.config == parse({**SERVER, **changed})
    assert set(wanted.changed) == set(changed)
    assert bool(wanted.replacing) is replaced
    assert wanted.answer()["changed"] == wanted.changed
    assert any("connections made anew" in note for note in wanted.notes) is replaced


def test_a_setting_whose_effect_comes_later_says_when_it_comes() -> None:
    wanted = reload(push_routes=["10.96.0.0/16"], max_connections_per_client=9, routes=["10.97.0.0/16"])
    assert wanted.notes == [
        "push_routes: a client that is connected gets them at its next connection",
        "max_connections_per_client: it counts for connections from now on",
    ]
    wanted = reload()
    wanted.contents = ["tls_cert_file", "tls_key_file"]
    assert wanted.notes == [f"tls_cert_file, tls_key_file: {CERTIFICATE}"]
    assert wanted.summary == "no setting has changed; contents of tls_cert_file, tls_key_file"


def test_peers_that_are_new_changed_or_removed_are_in_the_answer_and_in_the_event() -> None:
    wanted = reload()
    wanted.peers = PeerChanges(new=("ann", "bob"), removed=("carl",))
    assert wanted.answer()["peers"] == {"new": ("ann", "bob"), "changed": (), "removed": ("carl",)}
    assert wanted.summary == "no setting has changed; new peers: 2; removed peers: 1"


@pytest.mark.parametrize(
    "changed", [{"lanes": 2}, {"mtu": 1300, "routes": ["10.96.0.0/16"]}, {"name": "other"}], ids=str
)
def test_a_setting_that_needs_a_restart_refuses_the_whole_reload(changed: dict[str, Any]) -> None:
    refused = reload(**changed)
    fixed = next(name for name in changed if name != "routes")
    assert refused.error.startswith(f"needs a restart: {fixed}")
    assert (refused.config, refused.changed) == (OLD, [])
    assert refused.answer() == {"ok": False, "error": refused.error}


def test_a_wrong_configuration_refuses_the_reload_with_all_that_is_wrong() -> None:
    def reread() -> Config:
        raise ConfigError([Problem("mtuu", "unknown setting"), Problem("lanes", "given 0, expected 1 to 64")])

    refused = Reload(OLD, reread)
    assert refused.error == "mtuu: unknown setting\nlanes: given 0, expected 1 to 64"
    assert refused.config is OLD
    assert refused.answer() == {"ok": False, "error": refused.error}


def test_every_setting_that_the_supervisor_applies_can_be_reloaded() -> None:
    assert {RELOAD[name] for name in APPLIED_BY_SUPERVISOR} == {"live"}
