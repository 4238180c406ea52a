"""The reload of a running instance, carried out: read everything again, and use it if all of it can be used."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pipeline import log
from pipeline.config import Config
from pipeline.credentials import tls_settings
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.errors import TunnelError
from pipeline.events import Record
from pipeline.log import LOG
from pipeline.peers.known_peers import PeerChanges
from pipeline.supervisor.commands.reload import Reload
from pipeline.supervisor.control.sd_notify import notify
from pipeline.supervisor.hooks.hooks import Hooks
from pipeline.supervisor.kernel.entries import KernelEntries
from pipeline.supervisor.processes.bridge import Bridge
from pipeline.supervisor.processes.exporter import Exporter
from pipeline.supervisor.processes.web_socket_bridge import WebSocketBridge
from pipeline.supervisor.processes.workforce import Workforce
from pipeline.supervisor.run.run import PreparedPlan, Run


class Role(Protocol):
    """The part of a server or of a client."""

    def prepare_reload(self, config: Config) -> TlsSettings:
        """Load everything that a configuration names. Raises, and changes nothing."""

    @property
    def credentials(self) -> TlsSettings: ...

    def apply_reload(self) -> PeerChanges:
        """Use what was prepared. Returns the peers that have changed."""

    @property
    def problems(self) -> Sequence[str]:
        """Of peers whose file or settings cannot be used."""


class Reloader:
    """`reread` loads the configuration anew. `publish`: let observers see what has changed."""

    def __init__(
        self,
        reread: Callable[[], Config],
        run: Run,
        role: Role,
        entries: KernelEntries,
        workforce: Workforce,
        exporter: Exporter,
        bridge: Bridge,
        web_sockets: WebSocketBridge,
        hooks: Hooks,
        publish: Callable[[], object],
        record: Record,
    ) -> None:
        self._reread = reread
        self._run = run
        self._role = role
        self._entries = entries
        self._workforce = workforce
        self._exporter = exporter
        self._bridge = bridge
        self._web_sockets = web_sockets
        self._hooks = hooks
        self._publish = publish
        self._record = record

    def reload(self) -> dict[str, Any]:
        """Read the configuration again, and the files of keys and certificates that it names. The answer."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            return self._read_again(self._reread).answer()
        finally:
            self._run.failures.survive("the overview", self._publish)
            notify("READY=1")

    def renew(self) -> None:
        """Read the files of keys and certificates again, with the configuration that is in force."""
        self._read_again(lambda: self._run.config)
        self._run.failures.survive("the overview", self._publish)

    def _read_again(self, reread: Callable[[], Config]) -> Reload:
        reload = Reload(self._run.config, reread)
        if self._workforce.lifecycle.is_stopping:
            reload.error = "the instance is stopping"
        if not reload.error:
            try:
                credentials = self._role.prepare_reload(reload.config)
                self._exporter.prepare(reload.config)
                self._web_sockets.prepare(reload.config)
                reload.contents = self._changed_contents(reload.config, credentials)
                self._apply(reload, self._run.prepare_plan(reload.config, credentials))
                reload.problems += self._role.problems
            except TunnelError as error:
                reload.error = str(error)
            except Exception:
                reload.error = self._run.failures.record("the reload")
        if reload.error:
            self._record("reload-refused", "", reload.error)
        return reload

    def _changed_contents(self, config: Config, credentials: TlsSettings) -> list[str]:
        """Settings whose files have other contents, under the same names."""
        found = tls_settings.changed_contents(config, self._role.credentials, credentials)
        if self._exporter.has_another_token:
            found.append("metrics_token_file")
        return [name for name in found if getattr(config, name) == getattr(self._run.config, name)]

    def _apply(self, reload: Reload, plan: PreparedPlan) -> None:
        """All that can refuse has been asked, but for the kernel. Each thing that it refuses costs itself alone, is
        said, and is tried again later: the new configuration is in force."""
        config = reload.config
        reload.peers = self._role.apply_reload()
        self._run.use(plan)
        self._workforce.configure(config)
        log.start(config.name, "supervisor", config.log_level, config.log_format)
        self._record("reloaded", "", reload.summary)
        reload.problems += self._entries.configure(config)
        reload.problems += self._exporter.apply()
        self._bridge.apply()
        reload.problems += self._web_sockets.apply()
        self._hooks.configure(config)
        for note in reload.notes:  # after a signal nobody else says it
            LOG.info("reload: %s", note)
        if reload.replacing:
            self._workforce.restart(self._workforce.names, "for the new settings")
        else:
            self._workforce.tell_settings()
