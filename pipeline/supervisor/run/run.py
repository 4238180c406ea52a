"""One run of an instance: its numbers, its failures, and its plan in file descriptors from which workers read it.

A reload writes the plan again under the run's old names, for the workers that are started from then on.

The plan of tcp workers has the private key of the certificate, which OpenSSL needs there, and no other has. No plan has
the key of a peer.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import NamedTuple

from pipeline.config import Config
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.errors import LocalError
from pipeline.runtime import topology
from pipeline.runtime.plan import Plan, WorkerSettings
from pipeline.supervisor.kernel.tun_device import TunDevice
from pipeline.supervisor.run.failures import Failures
from pipeline.supervisor.run.worker_account import Account
from pipeline.supervisor.run.worker_settings import new_session, worker_settings

SECRET_KINDS = ("tcp",)
"""Kinds of workers that shake hands."""


class PreparedPlan(NamedTuple):
    """A plan that no worker reads yet."""

    fds: list[int]  # of the plan without secrets, and of the whole plan
    settings: WorkerSettings
    plan: Plan  # without secrets


class Run:
    """`plan` is there after use(), without secrets."""

    plan: Plan
    settings: WorkerSettings

    def __init__(self, account: Account | None) -> None:
        self.started_ns = time.monotonic_ns()
        self.failures = Failures()
        self._fds: list[int] = []  # see PreparedPlan
        self._account = account
        self._session = new_session()
        self.renew_names()

    def renew_names(self) -> None:
        """Let the next plan have other names in /dev/shm."""
        self._run_id = secrets.token_hex(4)
        self._name_key = secrets.token_bytes(16)

    def prepare_plan(
        self, config: Config, credentials: TlsSettings, device: TunDevice, peers: int, known_servers: list[str]
    ) -> PreparedPlan:
        """The plan of this configuration; nothing uses it before use(). `peers`: how many may be connected at a time.

        LocalError if it cannot be written.
        """
        settings = worker_settings(config, credentials, device, self._session, self._account, known_servers)
        whole = topology.build_plan(
            config.name,
            self._run_id,
            config.mode,
            config.lanes,
            config.ring_slots,
            config.slot_bytes,
            settings,
            peers,
            self._name_key,
        )
        plan = whole._replace(settings=settings.without_secrets())
        try:
            return PreparedPlan(_written(plan, whole), settings, plan)
        except OSError as error:
            raise LocalError(f"the plan for the workers cannot be written: {error.strerror}") from None

    def use(self, prepared: PreparedPlan) -> None:
        """Let the workers that are started from now on have this plan."""
        self.close()
        self._fds, self.settings, self.plan = prepared

    def plan_fd(self, kind: str) -> int:
        """The descriptor of the plan for workers of this kind."""
        return self._fds[kind in SECRET_KINDS]

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def _written(*plans: Plan) -> list[int]:
    """A descriptor for each plan. OSError if not all can be made; then none is left open."""
    fds: list[int] = []
    try:
        for plan in plans:
            fds.append(os.memfd_create("plan", os.MFD_CLOEXEC))
            os.write(fds[-1], plan.to_json().encode())
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return fds
