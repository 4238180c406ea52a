"""The commands about the peers of a server, by their names. Their fields: `peer_commands` of pipeline.cli."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.errors import LocalError, TunnelError
from pipeline.log import LOG
from pipeline.observe.snapshot import SCHEMA_VERSION
from pipeline.peers import peer_file
from pipeline.peers.peer_status import PeerStatus
from pipeline.peers.shut_out import in_words
from pipeline.policy.reach_words import Explained
from pipeline.supervisor.roles.invitations import Answer, Invitations, Request
from pipeline.supervisor.roles.server_peers import ServerPeers, comes_back


class PeerCommands:
    """`describe`: the peers at CLOCK_MONOTONIC ns. `explain`: whether a peer, by its name, may reach a target."""

    def __init__(
        self,
        peers: ServerPeers,
        invitations: Invitations,
        describe: Callable[[int], list[PeerStatus]],
        explain: Callable[[str, str], Explained],
    ) -> None:
        self._explain_reach = explain
        self._peers = peers
        self._invitations = invitations
        self._describe = describe
        self._commands: dict[str, Callable[[Request], Answer]] = {
            "peers": self._list,
            "invite": invitations.invite,
            "withdraw": self._withdraw,
            "revoke": self._revoke,
            "disable": self._disable,
            "enable": self._enable,
            "quota": self._set_used,
            "explain": self._explain,
        }

    def run(self, command: str, request: Request) -> Answer:
        try:
            return self._commands[command](request)
        except TunnelError as error:
            return {"ok": False, "error": str(error)}

    def take_back(self, request: Request) -> None:
        """Undo a command whose answer has not arrived: nobody has the line of an invitation that was lost."""
        if request.get("command") == "invite":
            LOG.warning("invite %s: its command has ended before it got the line: taken back", request.get("name"))
            self._withdraw(request)

    def _list(self, request: Request) -> Answer:
        return {"ok": True, "schema_version": SCHEMA_VERSION, "peers": self._describe(time.monotonic_ns())}

    def _explain(self, request: Request) -> Answer:
        """`target`: see pipeline.policy.targets. `may`: whether the peer may reach it; `lines`: why."""
        found = self._explain_reach(str(request.get("name")), str(request.get("target")))
        return {"ok": True, "may": found.may, "lines": found.lines}

    def _withdraw(self, request: Request) -> Answer:
        name = str(request.get("name"))
        if not self._invitations.withdraw(name):
            return self._revoke(request)
        return {"ok": True, "name": name, "problems": [], "stays": True}

    def _revoke(self, request: Request) -> Answer:
        name = str(request.get("name"))
        beside = self._peers.enrollment.open_beside(name, time.time())
        self._peers.revoke(name, "asked by the control socket")
        invitation = beside._asdict() if beside else None
        return {"ok": True, "name": name, "problems": self._peers.find_problems(), "invitation": invitation}

    def _disable(self, request: Request) -> Answer:
        name = self._peers.named(request.get("name"))
        try:
            self._peers.shut_out.disable(name)
        except TunnelError as error:
            raise comes_back(name, f"it is disabled again: {error}") from None
        finally:
            self._peers.admit_as_known()
        return {"ok": True, "name": name}

    def _enable(self, request: Request) -> Answer:
        """`until`: another end of its time, UNIX time, 0 for none; null leaves it as it is."""
        name, until = self._peers.named(request.get("name")), request.get("until")
        self._peers.enrollment.settle(name)
        invited = self._peers.invited(name)
        if until is not None:
            if invited is None:
                raise LocalError(f'peer "{name}" has not been invited: it has no end of its time')
            self._peers.save(peer_file.with_until(invited, until))
        elif invited is not None and 0 < invited.until <= time.time():
            end = in_words(invited.until)
            raise LocalError(f'the time of peer "{name}" has ended on {end}: give another --until')
        self._peers.shut_out.enable(name)
        self._peers.admit_as_known()
        return {"ok": True, "name": name}

    def _set_used(self, request: Request) -> Answer:
        """`used_bytes`: so much of the quota counts as used in its period."""
        name, size = self._peers.named(request.get("name")), request.get("used_bytes")
        if type(size) is not int or not 0 <= size < 1 << 62:
            raise LocalError(f"used_bytes: given {size!r}, expected a number of bytes")
        return {"ok": True, "name": name, "used_bytes": size, "quota_bytes": self._peers.set_used(name, size)}
