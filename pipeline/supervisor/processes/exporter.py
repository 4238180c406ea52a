"""The care for the exporter: it listens, starts the process where `metrics_addr` is set, and starts it again.

    prepare(config)    read what the settings name; ConfigError, and nothing has changed
    apply()            use what was prepared. What is impossible now is returned, and tried again
    tick(now)          what is due: a listener, a start, the end of a process that hangs
    renew()            the shared memory was made anew

The tunnel never waits for it and never ends with it. The listening socket is the supervisor's: it is made with the
supervisor's rights, and connections wait in it while the process is replaced. After too many deaths the exporter is
given up until the next reload.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from typing import Any, NamedTuple

from pipeline.config import Config
from pipeline.config.values import Endpoint
from pipeline.credentials import metrics_token
from pipeline.errors import TunnelError
from pipeline.events import Record
from pipeline.log import LOG
from pipeline.policy.restart import GiveUp, RestartPolicy
from pipeline.supervisor.kernel.listener import listen
from pipeline.supervisor.processes.companion import Companion
from pipeline.supervisor.processes.precedence import Precedence
from pipeline.supervisor.run.worker_account import Account
from pipeline.system import task_limit

SECOND = 1_000_000_000
INTENSITY, PERIOD = 8, 300.0  # restarts, and the seconds in which they count
LISTEN_AGAIN_NS = 5 * SECOND
BACKLOG = 64
SETTING = "metrics_addr"


class ExporterSettings(NamedTuple):
    """`plan`: for the process; its fields are those of ExporterPlan in `pipeline.exporter.__main__`."""

    endpoint: Endpoint
    plan: dict[str, Any]


def settings_of(config: Config, account: Account | None) -> ExporterSettings | None:
    """The settings that follow from a configuration; None if there is to be no exporter. ConfigError for a token."""
    endpoint, token = config.metrics_endpoint, metrics_token.load(config)
    if endpoint is None:
        return None
    plan = {
        "name": config.name,
        "account": [account.uid, account.gid] if account is not None else None,
        "token": token.decode(),
        "peers_max": config.metrics_peers,
        "log_level": config.log_level,
        "log_format": config.log_format,
    }
    return ExporterSettings(endpoint, plan)


class Exporter:
    """`account`: what its process changes to, None for ours. `notes`: what is wrong with it, for the status."""

    def __init__(
        self, account: Account | None, selector: selectors.BaseSelector, precedence: Precedence, record: Record
    ) -> None:
        self._account = account
        self._precedence = precedence
        self._record = record
        self._prepared: ExporterSettings | None = None
        self._settings: ExporterSettings | None = None
        self._listener: socket.socket | None = None
        self._companion = Companion("exporter", "pipeline.exporter", selector, self)
        self._next_ns = 0  # when the next listener or start is due
        self._ready_ns = 0  # its first sign of life
        self._restarts = RestartPolicy(INTENSITY, PERIOD)
        self.notes: list[str] = []

    @property
    def pid(self) -> int:
        """0 if there is no process."""
        return self._companion.pid

    def prepare(self, config: Config) -> None:
        self._prepared = settings_of(config, self._account)

    @property
    def has_another_token(self) -> bool:
        """Whether the token that was prepared is another than that in use."""
        prepared, used = self._prepared, self._settings
        return prepared is not None and used is not None and prepared.plan["token"] != used.plan["token"]

    def configure_prepared(self) -> None:
        """Use it from the next tick on."""
        self.configure(self._prepared)

    def apply(self) -> list[str]:
        self.configure_prepared()
        self.tick(time.monotonic_ns())
        return list(self.notes)

    def configure(self, settings: ExporterSettings | None) -> None:
        """Begin anew with these settings, unless they are the old ones and all is well."""
        before, self._settings = self._settings, settings
        if settings == before and not self.notes:
            return
        self._companion.end()
        if settings is None or before is None or settings.endpoint != before.endpoint:
            self._stop_listening()
        self._restarts = RestartPolicy(INTENSITY, PERIOD)
        self.notes, self._next_ns = [], 0

    def renew(self) -> None:
        """Start the process anew: it cannot attach again."""
        if self.pid:
            self._companion.end()
            self._next_ns = 0

    def tick(self, now: int) -> None:
        self._companion.tick(now)
        settings = self._settings
        if settings is not None and not self.pid and now >= self._next_ns and self._listen(settings, now):
            self._start(settings, now)

    def close(self) -> None:
        self._settings = None
        self._companion.end()
        self._stop_listening()

    # -- the listener

    def _listen(self, settings: ExporterSettings, now: int) -> bool:
        if self._listener is not None:
            return True
        try:
            self._listener = listen(settings.endpoint, SETTING, BACKLOG)
        except TunnelError as error:
            note = f"no metrics and no page: {error}"
            if self.notes != [note]:
                LOG.warning("%s; trying again", note)
            self.notes, self._next_ns = [note], now + LISTEN_AGAIN_NS
            return False
        self.notes = []
        return True

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # -- the process

    def _start(self, settings: ExporterSettings, now: int) -> None:
        assert self._listener is not None
        try:
            pid = self._companion.start(self._listener, json.dumps(settings.plan), now)
        except OSError as error:
            self._count_death(f"its process cannot be started: {task_limit.explain(error)}", 0, now)
            return
        self._precedence.set_spare(pid)
        self._ready_ns = 0

    def on_sign(self, reports: bytes, now: int) -> None:
        if not self._ready_ns and self._settings is not None:
            self._ready_ns = now
            LOG.info("exporter ready: pid %d, http://%s", self.pid, _shown(self._settings.endpoint))

    def on_died(self, reason: str, status: int, now: int) -> None:
        self._count_death(reason, now - self._ready_ns if self._ready_ns else 0, now, status)

    def _count_death(self, reason: str, lived_ns: int, now: int, status: int = 1) -> None:
        verdict = self._restarts.died("the exporter", status, lived_ns, now)
        if isinstance(verdict, GiveUp):
            note = f"no metrics and no page: {verdict.reason}; `reload` tries again"
            self.notes, self._next_ns = [note], 1 << 63
            self._stop_listening()
            self._record("exporter-given-up", "", f"{reason}; {verdict.reason}")
            return
        self._next_ns = verdict.at_ns
        self._record("exporter-died", "", reason)


def _shown(endpoint: Endpoint) -> str:
    return f"[{endpoint.host}]:{endpoint.port}" if ":" in endpoint.host else f"{endpoint.host}:{endpoint.port}"
