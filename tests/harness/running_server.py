"""A server's role with its state directory, and clients for which it is asked as a tcp worker would ask."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.config import Config, parse
from pipeline.credentials import invitation
from pipeline.peers.known_peers import PeerChanges
from pipeline.supervisor.roles.server_role import ServerRole
from pipeline.wire.messages import Welcome
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
