"""The publisher of the overview: what the supervisor knows, for observers, whenever it has changed.

It is cheap: a few times a second it gathers what changes slowly, compares, and writes only if something differs. The
peers of a server may be thousands: their rows are gathered only when the server says that they have changed, and the
more seldom the longer that takes. No secret is in the overview: the plan has none, and the roles and the device tell
what `status` may show.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from pipeline.credentials.tls_settings import TlsSettings
from pipeline.observe import snapshot
from pipeline.observe.process_stat import CpuMeter, read_process
from pipeline.peers.peer_status import PeerRow
from pipeline.policy.lifecycle import Lifecycle
from pipeline.runtime.assignment import FORMAT
from pipeline.supervisor.kernel.tun_device import TunDevice
from pipeline.supervisor.processes.exporter import Exporter
from pipeline.supervisor.processes.rolling import Rolling
from pipeline.supervisor.processes.workers import Workers
from pipeline.supervisor.run.run import Run
from pipeline.supervisor.run.shared_memory import SharedMemory
from pipeline.version import VERSION

INTERVAL_NS = 250_000_000  # between two looks at what changes slowly
PEERS_SHARE = 50  # gathering the peers takes at most one part in so many of the supervisor's time


class Role(Protocol):
    """The part of a server or of a client."""

    def status(self) -> dict[str, Any]:
        """`server`: of a client, else None; `notes`."""

    @property
    def credentials(self) -> TlsSettings: ...

    @property
    def peers_version(self) -> int:
        """Another number once peer_rows() is another."""

    def peer_rows(self) -> list[PeerRow]:
        """The peers, in the order in which a person wants to see them."""


class Publisher:
    """`use` comes with each new memory and plan. The peers stand last, and those that find no room are counted."""

    def __init__(
        self,
        run: Run,
        lifecycle: Lifecycle,
        workers: Workers,
        rolling: Rolling,
        role: Role,
        device: TunDevice,
        exporter: Exporter,
        hooks: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._run = run
        self._lifecycle = lifecycle
        self._workers = workers
        self._rolling = rolling
        self._role = role
        self._device = device
        self._exporter = exporter
        self._hooks = hooks
        self._meter = CpuMeter()
        self._fixed = _fixed()
        self._published: tuple[dict[str, Any], object, int] | None = None
        self._peers: list[dict[str, Any]] = []
        self._peers_version = -1
        self._peers_due_ns = 0
        self._due_ns = 0

    def use(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._published = None
        self._due_ns = 0

    def tick(self, now: int) -> None:
        self._memory.overview.beat(now)
        if now >= self._due_ns:
            self._due_ns = now + INTERVAL_NS
            self._publish(now)

    def status(self) -> dict[str, Any]:
        """The snapshot of this moment, for the command socket."""
        now = time.monotonic_ns()
        self._memory.overview.beat(now)
        self._publish(now, at_once=True)
        about = self._slow() | self._fixed | {"peers": self._peers, "peers_left_out": 0}
        return snapshot.build(about, self._run.plan, self._memory, self._meter, now)

    def _publish(self, now: int, at_once: bool = False) -> None:
        """Write the overview if it differs from the one before."""
        self._gather_peers(now, at_once)
        slow = self._slow()
        current = slow, self._run.plan, self._peers_version
        if current != self._published:
            self._published = current
            self._memory.overview.publish(self._text(slow))

    def _gather_peers(self, now: int, at_once: bool) -> None:
        version = self._role.peers_version
        if version != self._peers_version and (at_once or now >= self._peers_due_ns):
            began = time.monotonic_ns()
            self._peers = [row.as_dict() for row in self._role.peer_rows()]
            self._peers_version = version
            self._peers_due_ns = now + PEERS_SHARE * (time.monotonic_ns() - began)

    def _slow(self) -> dict[str, Any]:
        """Everything that changes slowly, without the peers."""
        processes, role = self._workers.processes, self._role.status()
        return {
            "state": self._lifecycle.phase,
            "started_ns": self._run.started_ns,
            "failures": self._run.failures.count,
            "workers": {
                name: {
                    "pid": processes[name].pid,
                    "state": worker.state,
                    "restarts": worker.restarts,
                    "cores": processes[name].cores,
                }
                for name, worker in self._lifecycle.workers.items()
            },
            "spares": self._workers.spares.rows(),
            "rolling": self._rolling.status(),
            "device": self._device.status(),
            "certificate_expires": self._role.credentials.expires,
            "server": role["server"],
            "notes": [*role["notes"], *self._exporter.notes],
            "accounting": role.get("accounting"),
            "hooks": self._hooks(),
        }

    def _text(self, slow: dict[str, Any]) -> str:
        """The overview as JSON, with as many of the peers as there is room for."""
        start = f'{json.dumps(self._fixed | slow)[:-1]}, "plan": {self._run.plan.to_json()}, "peers": ['
        end = '], "peers_left_out": %d}'
        room = self._memory.overview.room - len(start.encode()) - len(end) - 16
        rows: list[str] = []
        for row in self._peers:
            text = json.dumps(row)
            room -= len(text) + 2
            if room < 0:
                break
            rows.append(text)
        return start + ", ".join(rows) + end % (len(self._peers) - len(rows))


def _fixed() -> dict[str, Any]:
    """The part that never changes: which process this is, and how others have to read what it writes."""
    own = read_process(os.getpid())
    return {
        "format": FORMAT.decode(),
        "version": VERSION,
        "pid": os.getpid(),
        "began": own.began if own else 0,
    }
