"""One run of an instance: its numbers, and its plan in a file descriptor from which each worker reads it.

A reload writes the plan again under the run's old names, for the workers that are started from then on.
"""

from __future__ import annotations

import os
import secrets
import time

from pipeline.config import Config
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.runtime import topology
from pipeline.runtime.plan import Plan
from pipeline.runtime.privileges import Account
from pipeline.supervisor.tun_device import TunDevice
from pipeline.supervisor.worker_settings import new_session, worker_settings


class Run:
    """`plan` and `plan_fd` are there after write_plan()."""

    plan: Plan

    def __init__(self, account: Account | None) -> None:
        self.started_ns = time.monotonic_ns()
        self.plan_fd = -1
        self._account = account
        self._run_id = secrets.token_hex(4)
        self._session = new_session()

    def write_plan(self, config: Config, credentials: TlsSettings, device: TunDevice, peers: int) -> None:
        """Make the plan of this configuration. `peers`: how many may be connected at a time."""
        settings = worker_settings(config, credentials, device, self._session, self._account)
        self.plan = topology.build_plan(
            config.name, self._run_id, config.mode, config.lanes, config.ring_slots, config.slot_bytes, settings, peers
        )
        self.close()
        self.plan_fd = os.memfd_create("plan", os.MFD_CLOEXEC)
        os.write(self.plan_fd, self.plan.to_json().encode())

    def close(self) -> None:
        if self.plan_fd >= 0:
            os.close(self.plan_fd)
            self.plan_fd = -1
