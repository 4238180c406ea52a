"""The result of a reload: before it is applied the new configuration, or why the old one stays; then its answer.

The answer says what has changed, and names each change that a user would look for now and not find yet. Two tables say
how each setting takes effect; a setting in none of them is read by workers at their start, and they are replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.config import RELOAD, Config, changes
from pipeline.credentials import ownership
from pipeline.errors import ConfigError
from pipeline.peers.known_peers import PeerChanges
from pipeline.supervisor.run.worker_settings import LIMITS

CERTIFICATE = "connections from now on have it; an end that knows the old certificate by its hash refuses the new one"

LATER = {
    "push_routes": "a client that is connected gets them at its next connection",
    "push_dns": "a client that is connected gets them at its next connection",
    "max_connections_per_client": "it counts for connections from now on",
    "public_addr": "invitations from now on have it; clients that have joined keep the old one",
    "tls_cert_file": CERTIFICATE,
    "tls_key_file": CERTIFICATE,
}
"""Settings that are in force at once, and whose effect shows later: what a user has to wait for."""

APPLIED_BY_SUPERVISOR = {
    "routes",
    "accept_routes",
    "nat",
    "full_tunnel",
    "kill_switch",
    "dns",
    "restart_intensity",
    "restart_period",
    "heartbeat_timeout",
    "spares",
    "peers",
    "names",
    "rate_mbit",
    "total_rate_mbit",
    "quota_gb",
    "quota_action",
    "quota_rate_mbit",
    "quota_day",
    "may_reach",
    "groups",
    "on",
    "hook_timeout",
    "move_timeout",
    "prefer",
    "home_after",
    "standby",
    "tls_ca_file",
    "metrics_addr",
    "metrics_token_file",
    "metrics_peers",
    "websocket_path",
    "websocket_proxies",
    "websocket_client_field",
    *LIMITS,
    *LATER,
}
"""Settings that the supervisor applies itself, or tells the workers; a change of any other replaces the workers."""


class Reload:
    """Reads the configuration again and compares it with the old one. Changes nothing.

    `error` is "" if the reload is possible; else `config` is the old one. `contents`: settings whose files have other
    contents. `peers`: those that have changed. `problems`: of peers that a reload leaves as they were, or leaves out,
    since their files are wrong; of addresses and routes that the kernel does not have.
    """

    def __init__(self, old: Config, reread: Callable[[], Config]) -> None:
        self.config = self._old = old
        self.changed: list[str] = []
        self.contents: list[str] = []
        self.peers = PeerChanges()
        self.error = ""
        self.problems: list[str] = []
        try:
            new = reread()
            ownership.check(new)
        except ConfigError as error:
            self.error = str(error)
            return
        changed = changes(old, new)
        fixed = [name for name in changed if RELOAD[name] == "restart"]
        if fixed:
            self.error = f"needs a restart: {', '.join(fixed)}"
            return
        self.config = new
        self.changed = changed

    @property
    def replacing(self) -> list[str]:
        """The changed settings that workers read at their start alone: workers are replaced for them."""
        return [name for name in self.changed if name not in APPLIED_BY_SUPERVISOR and not self._is_followed(name)]

    def _is_followed(self, name: str) -> bool:
        """Whether the client follows another list of servers without a gap."""
        return name == "remote_addr" and self._old.has_several_servers and self.config.has_several_servers

    @property
    def summary(self) -> str:
        """One line, for the event."""
        counts = [f"{what} peers: {len(names)}" for what, names in self.peers._asdict().items() if names]
        files = [f"contents of {', '.join(self.contents)}"] if self.contents else []
        return "; ".join([", ".join(self.changed) or "no setting has changed", *files, *counts])

    @property
    def notes(self) -> list[str]:
        """Sentences about effects that come later, or that cost something."""
        later: dict[str, list[str]] = {}
        for name in (*self.changed, *self.contents):
            if name in LATER:
                later.setdefault(LATER[name], []).append(name)
        found = [f"{', '.join(names)}: {effect}" for effect, names in later.items()]
        if self.replacing:
            found.append(f"{', '.join(self.replacing)}: workers are replaced, and connections made anew")
        return found

    def answer(self) -> dict[str, Any]:
        """The answer on the control socket."""
        if self.error:
            return {"ok": False, "error": self.error}
        return {
            "ok": True,
            "changed": self.changed,
            "contents": self.contents,
            "peers": self.peers._asdict(),
            "notes": self.notes,
            "problems": self.problems,
        }
