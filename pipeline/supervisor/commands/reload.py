"""The result of a reload before it is applied: the new configuration, or why the old one stays in force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.config import RELOAD, Config, changes
from pipeline.credentials import ownership
from pipeline.errors import ConfigError
from pipeline.supervisor.run.worker_settings import LIMITS

APPLIED_BY_SUPERVISOR = {
    "routes",
    "accept_routes",
    "restart_intensity",
    "restart_period",
    "heartbeat_timeout",
    "spares",
    "peers",
    "rate_mbit",
    "quota_gb",
    "quota_action",
    "quota_rate_mbit",
    "quota_day",
    "on",
    "hook_timeout",
    "max_connections_per_client",
    "push_routes",
    "public_addr",
    "tls_cert_file",
    "tls_key_file",
    "tls_ca_file",
    "metrics_addr",
    "metrics_token_file",
    "metrics_peers",
    *LIMITS,
}
"""Settings that the supervisor applies itself, or tells the workers; a change of any other replaces the workers."""


class Reload:
    """Reads the configuration again and compares it with the old one. Changes nothing.

    `error` is "" if the reload is possible; else `config` is the old one. `problems`: of peers that a reload leaves as
    they were, or leaves out, since their files are wrong; of addresses and routes that the kernel does not have.
    """

    def __init__(self, old: Config, reread: Callable[[], Config]) -> None:
        self.config = old
        self.changed: list[str] = []
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
    def replaces_workers(self) -> bool:
        """A changed setting is one that workers read at their start alone."""
        return bool(set(self.changed) - APPLIED_BY_SUPERVISOR)

    def answer(self) -> dict[str, Any]:
        """The answer on the control socket."""
        if self.error:
            return {"ok": False, "error": self.error}
        return {"ok": True, "changed": self.changed, "problems": self.problems}
