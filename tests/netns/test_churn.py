"""A client that connects and leaves as fast as it can, from many addresses: a peer with its key, or one without.

hub --+-- one      an ordinary client, connected all the time
      +-- two      the attacker, with many addresses
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pipeline.peers.admission import SESSION_INTERVAL_NS, SESSIONS_AT_ONCE
from tests.netns.harness.hub import PLAIN, Hub, reaches
from tests.support import eventually
from tools.lab.network import Lab
from tools.load.churn import KINDS
from workers.tcp.server_connections import HANDSHAKE_INTERVAL_NS, HANDSHAKES_AT_ONCE

ADDRESSES = [f"10.77.0.{number}" for number in range(100, 160)]
SECONDS = 2.0


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Lab(names=("hub", "one", "two")) as lab, Hub(lab, tmp_path_factory.mktemp("churn")) as made:
        lab["two"].ip(*(f"address add {address}/24 dev link0" for address in ADDRESSES))
        made.join(lab["one"], **PLAIN)
        yield made


class Attack:
    """One attack, and what the server has counted meanwhile."""

    def __init__(self, hub: Hub, kind: str) -> None:
        self._hub = hub
        self._kind = kind
        self._before = hub.server.running()["counters"]
        self._began = time.monotonic()
        words = [sys.executable, "-m", "tools.load.churn", kind, "--join", hub.invite(kind), "--seconds", str(SECONDS)]
        sources = [word for address in ADDRESSES for word in ("--from", address)]
        self._process = hub.lab["two"].popen([*words, *sources], stdout=subprocess.PIPE)

    def __enter__(self) -> Attack:
        return self

    def __exit__(self, *_error: object) -> None:
        self.result = json.loads(self._process.communicate()[0])
        eventually(
            lambda: len(self._hub.server.running()["connections"]) == 1, what="only the honest client is connected"
        )
        self.seconds = time.monotonic() - self._began

    def goes_on(self) -> bool:
        return self._process.poll() is None

    def counted(self, name: str) -> int:
        return self._hub.server.counter(name) - self._before[name]


@pytest.mark.parametrize("kind", KINDS)
def test_commands_are_answered_and_others_served_while_a_client_comes_and_goes_as_fast_as_it_can(
    hub: Hub, kind: str
) -> None:
    turns = 0
    with Attack(hub, kind) as attack:
        while attack.goes_on():
            turns += 1
            for request in (
                {"command": "status"},
                {"command": "invite", "name": f"{kind}-{turns}", "allowed": []},
                {"command": "revoke", "name": f"{kind}-{turns}"},
            ):
                answer = hub.server.ask(request)
                assert answer and answer.get("ok", True), answer
            assert reaches(hub["one"].node, hub.server.address, count=1, seconds=5)
    assert turns > 1
    admitted = attack.counted("tcp.connections_established")
    match kind:
        case "connections":
            free = HANDSHAKES_AT_ONCE + attack.seconds * 1e9 / HANDSHAKE_INTERVAL_NS + 1
            assert attack.counted("tcp.handshakes_charged") >= admitted - free and attack.result["refused"] == 0
        case "sessions":
            assert 0 < admitted <= SESSIONS_AT_ONCE + attack.seconds * 1e9 / SESSION_INTERVAL_NS + 1
            assert attack.counted("tcp.connections_refused") > 0
            hub.server.wait_for_log("connections refused: this peer begins too many sessions")
        case "proofs":
            assert admitted == 0 and attack.counted("tcp.closed_proof_wrong") > 0
    assert hub["one"].counter("tcp.connections_lost") == 0
