"""What a reload would do: the new configuration, or why the old one goes on."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config import RELOAD, Config, changes
from pipeline.errors import ConfigError
from pipeline.supervisor.worker_settings import LIMITS

SUPERVISORS_OWN = {
    "routes",
    "restart_intensity",
    "restart_period",
    "heartbeat_timeout",
    "peers",
    "rate_mbit",
    "push_routes",
    "public_addr",
    "max_connections_per_client",
    "tls_cert_file",
    "tls_key_file",
    "tls_ca_file",
    *LIMITS,
}
"""Settings that the supervisor carries out, or tells the workers; the others are applied by replacing them."""


class Reload:
    """Reads the configuration again and compares. Changes nothing."""

    def __init__(self, old: Config, reread: Callable[[], Config]) -> None:
        self.config = old
        self.changed: list[str] = []
        self.error = ""
        try:
            new = reread()
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
    def workers_concerned(self) -> bool:
        return bool(set(self.changed) - SUPERVISORS_OWN)

    def answer(self) -> dict:
        if self.error:
            return {"ok": False, "error": self.error}
        return {"ok": True, "changed": self.changed}
