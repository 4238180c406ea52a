"""One run of an instance: its configuration, its numbers, its failures, and its plan for the workers.

    prepare_plan(config, credentials)    the plan of a configuration; nothing uses it yet
    use(prepared)                        that configuration and its plan are in force
    write_plan(config)                   both at once
    renew_plan()                         workers that start from now on know what a client has learnt: where its server
                                         is, and which key share comes next; also which of several servers it is at

The plan is in file descriptors, from which workers read it. A reload writes it again under the run's old names, for the
workers that are started from then on.

The plan of tcp workers has the private key of the certificate, which OpenSSL needs there, the login at a proxy, and the
token of the bridge. No other plan has these, and none has the key of a peer.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from pipeline.config import Config
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.errors import LocalError
from pipeline.runtime import topology
from pipeline.runtime.plan import Plan, WorkerSettings
from pipeline.supervisor.kernel.tun_device import TunDevice
from pipeline.supervisor.run.datagram_memory import DatagramMemory
from pipeline.supervisor.run.failures import Failures
from pipeline.supervisor.run.reach_memory import ReachMemory
from pipeline.supervisor.run.seal_memory import SealMemory
from pipeline.supervisor.run.worker_account import Account
from pipeline.supervisor.run.worker_settings import new_session, worker_settings
from pipeline.wire.approach import Proxy

SECRET_KINDS = ("tcp",)
"""Kinds of workers that shake hands."""


WayOf = Callable[[Config, TlsSettings], Proxy | None]
"""Says which proxy a client dials by a configuration; None: it dials the server itself."""


class Role(Protocol):
    """The part of a server or of a client."""

    capacity: int  # peers that can be connected at a time

    @property
    def credentials(self) -> TlsSettings: ...

    @property
    def key_share(self) -> str:
        """Of a client, for its HELLOs, hexadecimal; "" where blocks are not sealed."""

    @property
    def known_servers(self) -> list[str]:
        """Addresses at which a client has found its server."""

    def with_servers(self, settings: WorkerSettings) -> WorkerSettings:
        """The settings with the servers at which a client is and stands by."""

    def expect(self, settings: WorkerSettings) -> None:
        """These are the settings of tcp workers that start from now on."""


class PreparedPlan(NamedTuple):
    """A plan that no worker reads yet."""

    config: Config
    fds: list[int]  # of the plan without secrets, and of the whole plan
    settings: WorkerSettings
    plan: Plan  # without secrets


class Run:
    """`config`, `settings` and `plan` are there after use(). `plan` is without secrets."""

    config: Config
    settings: WorkerSettings
    plan: Plan

    def __init__(self, account: Account | None, device: TunDevice, role: Role) -> None:
        self.started_ns = time.monotonic_ns()
        self.failures = Failures()
        self._device = device
        self._role = role
        self._fds: list[int] = []  # see PreparedPlan
        self._account = account
        self._session = new_session()
        self.seal_memory: SealMemory | None = None  # where blocks are sealed
        self.datagram_memory: DatagramMemory | None = None  # where they travel in datagrams
        self.reach_memory: ReachMemory | None = None  # of a server whose peers may have rules
        self.way_of: WayOf = lambda config, credentials: credentials.proxy
        self.bridge_token = ""  # of a server, with which its bridge shows itself to tcp workers
        self.renew_names()

    def renew_names(self) -> None:
        """Let the next plan have other names in /dev/shm."""
        self._run_id = secrets.token_hex(4)
        self._name_key = secrets.token_bytes(16)

    def prepare_plan(self, config: Config, credentials: TlsSettings) -> PreparedPlan:
        """LocalError if the plan cannot be written."""
        known_servers = self._role.known_servers
        way = self.way_of(config, credentials)
        settings = worker_settings(config, credentials, self._device, self._session, self._account, known_servers, way)
        settings = settings._replace(
            key_share=self._role.key_share,
            seals=self.seal_memory is not None,
            carrier=config.carrier if self.datagram_memory is not None else "tcp",
            takes_notes=config.direct == "auto" and config.mode == "client" and self.datagram_memory is not None,
            bridge_token=self.bridge_token,
        )
        settings = self._role.with_servers(settings)
        whole = topology.build_plan(
            config.name,
            self._run_id,
            config.mode,
            config.lanes,
            config.ring_slots,
            config.slot_bytes,
            settings,
            self._role.capacity,
            self._name_key,
            config.split_workers,
        )
        plan = whole._replace(settings=settings.without_secrets())
        try:
            return PreparedPlan(config, _written(plan, whole), settings, plan)
        except OSError as error:
            raise LocalError(f"the plan for the workers cannot be written: {error.strerror}") from None

    def use(self, prepared: PreparedPlan) -> None:
        """Let the workers that are started from now on have this plan."""
        self.close()
        self.config, self._fds, self.settings, self.plan = prepared
        self._role.expect(self.settings)

    def write_plan(self, config: Config) -> None:
        """LocalError if it cannot be written: the old one stays in force."""
        self.use(self.prepare_plan(config, self._role.credentials))

    def renew_plan(self) -> bool:
        """Whether workers that run need the new settings, too. A plan that cannot be written now leaves the old one,
        which is as good as before."""
        needs = (
            self.settings.key_share != self._role.key_share or self._role.with_servers(self.settings) != self.settings
        )
        if needs or self.settings.known_servers != self._role.known_servers:
            try:
                self.write_plan(self.config)
            except LocalError:
                return False
        return needs

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
