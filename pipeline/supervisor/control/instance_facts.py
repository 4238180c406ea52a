"""The facts about a running instance that the overview has, beside its plan and its peers: all that changes slowly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pipeline.credentials.tls_settings import TlsSettings
from pipeline.supervisor.kernel.entries import KernelEntries
from pipeline.supervisor.processes.bridge import Bridge
from pipeline.supervisor.processes.exporter import Exporter
from pipeline.supervisor.processes.web_socket_bridge import WebSocketBridge
from pipeline.supervisor.processes.workforce import Workforce
from pipeline.supervisor.run.run import Run


class Role(Protocol):
    """The part of a server or of a client."""

    def status(self) -> dict[str, Any]:
        """`server`: of a client, else None; `notes`; `accounting`: of a server, else None."""

    @property
    def credentials(self) -> TlsSettings: ...


class InstanceFacts:
    """`hooks`: what `status` says of the hooks. No secret is in the facts: roles and device tell what may be shown."""

    def __init__(
        self,
        run: Run,
        workforce: Workforce,
        role: Role,
        entries: KernelEntries,
        exporter: Exporter,
        bridge: Bridge,
        web_sockets: WebSocketBridge,
        hooks: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._run = run
        self._workforce = workforce
        self._role = role
        self._entries = entries
        self._exporter = exporter
        self._bridge = bridge
        self._web_sockets = web_sockets
        self._hooks = hooks

    def gather(self) -> dict[str, Any]:
        processes, role = self._workforce.workers.processes, self._role.status()
        beside = self._exporter, self._bridge, self._web_sockets
        return {
            "state": self._workforce.lifecycle.phase,
            "started_ns": self._run.started_ns,
            "failures": self._run.failures.count,
            "workers": {
                name: {
                    "pid": processes[name].pid,
                    "state": worker.state,
                    "restarts": worker.restarts,
                    "deaths": worker.deaths,
                    "cores": processes[name].cores,
                }
                for name, worker in self._workforce.lifecycle.workers.items()
            },
            "placement": list(self._workforce.placement.reasons),
            "spares": self._workforce.spares.rows(),
            "rolling": self._workforce.rolling.status(),
            "device": self._entries.device.status(),
            "full_tunnel": self._entries.full_tunnel.status(),
            "certificate_expires": self._role.credentials.expires,
            "server": role["server"],
            "websockets": self._web_sockets.status(),
            "notes": [*role["notes"], *self._entries.notes, *(note for each in beside for note in each.notes)],
            "accounting": role.get("accounting"),
            "direct": role.get("direct"),
            "hooks": self._hooks(),
        }
