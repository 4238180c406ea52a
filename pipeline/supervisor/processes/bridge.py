"""The care for the bridge of a client: its listening socket, its process, and what workers dial in place of a proxy.

    way_of(config, credentials)    what workers dial by a configuration; LocalError if nothing can listen for them
    apply()                        use the configuration for which that was asked last
    tick(now)                      what is due: a start, the end of a process that hangs

There is a process only where a configuration needs one. Connections wait in the listening socket, which is the
supervisor's, while the process is replaced. It is never given up, for without it there is no tunnel.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import time

from pipeline.bridge.plan import BridgePlan
from pipeline.config import Config
from pipeline.config.values import Endpoint
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.events import Record
from pipeline.policy.backoff import Backoff
from pipeline.supervisor.kernel.listener import listen
from pipeline.supervisor.processes.companion import Companion
from pipeline.supervisor.processes.precedence import Precedence
from pipeline.supervisor.run.worker_account import Account
from pipeline.system import task_limit
from pipeline.wire.approach import BRIDGED, Proxy
from pipeline.wire.bridge_approach import TOKEN_BYTES

SECOND = 1_000_000_000
BACKLOG = 64
BUFFER_BYTES = 1 << 18  # of a connection to a worker, in each direction: bytes that wait there are latency
STABLE_NS = 10 * SECOND  # a process that has lived for so long is started again at once
BACKOFF_MIN, BACKOFF_MAX = 0.1, 5.0  # seconds
IN_TIME = 0.9  # of handshake_timeout: the bridge's words come before the worker gives up
LOOPBACK = Endpoint("127.0.0.1", 0)


class Bridge:
    """`account`: that of the workers, whose connections go around the tunnel (policy.bypass); None for ours.

    `notes`: what is wrong with it, for the status.
    """

    def __init__(
        self, account: Account | None, selector: selectors.BaseSelector, precedence: Precedence, record: Record
    ) -> None:
        self._account = account
        self._precedence = precedence
        self._record = record
        self._token = secrets.token_hex(TOKEN_BYTES)
        self._prepared: BridgePlan | None = None
        self._plan: BridgePlan | None = None
        self._way = ""  # the way behind it, in words
        self._listener: socket.socket | None = None
        self._companion = Companion("bridge", "pipeline.bridge", selector, self)
        self._backoff = Backoff(BACKOFF_MIN, BACKOFF_MAX)
        self._next_ns = self._started_ns = 0
        self.notes: list[str] = []

    @property
    def pid(self) -> int:
        """0 if there is no process."""
        return self._companion.pid

    def way_of(self, config: Config, credentials: TlsSettings) -> Proxy | None:
        self._prepared = plan_of(config, credentials, self._token, self._account)
        if self._prepared is None:
            return credentials.proxy
        self._way = config.way_text
        host, port = self._listening().getsockname()
        return Proxy(BRIDGED, host, port, ("", self._token), self._way)

    def _listening(self) -> socket.socket:
        if self._listener is None:
            self._listener = listen(LOOPBACK, "the bridge", BACKLOG)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # accepted sockets inherit them
                self._listener.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        return self._listener

    def apply(self) -> None:
        """Connections through a process that is replaced end; workers are replaced anyway."""
        if self._prepared != self._plan:
            self._plan = self._prepared
            self._companion.end()
            self._backoff.reset()
            self._next_ns = 0
        self.tick(time.monotonic_ns())

    def tick(self, now: int) -> None:
        self._companion.tick(now)
        if self._plan is not None and not self.pid and now >= self._next_ns:
            self._start(self._plan, now)

    def close(self) -> None:
        self._plan = None
        self._companion.end()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # -- the process

    def _start(self, plan: BridgePlan, now: int) -> None:
        try:
            pid = self._companion.start(self._listening(), plan.to_json(), now)
        except OSError as error:
            self._note_death(f"its process cannot be started: {task_limit.explain(error)}", now)
            return
        self._precedence.set_worker(pid)
        self._started_ns = now

    def on_sign(self, now: int) -> None:
        self.notes = []
        if now - self._started_ns > STABLE_NS:
            self._backoff.reset()

    def on_died(self, reason: str, status: int, now: int) -> None:
        self._note_death(reason, now)

    def _note_death(self, reason: str, now: int) -> None:
        self._next_ns = now + int(self._backoff.next_delay() * SECOND)
        self.notes = [f"no connection through {self._way}: the bridge has died: {reason}"]
        self._record("bridge-died", "", reason)


def plan_of(config: Config, credentials: TlsSettings, token: str, account: Account | None) -> BridgePlan | None:
    """None for a configuration that needs no bridge."""
    if not config.needs_bridge:
        return None
    return BridgePlan(
        name=config.name,
        account=[account.uid, account.gid] if account is not None else None,
        token=token,
        proxy=credentials.proxy,
        command=list(config.proxy_command),
        websocket=config.named_websocket,
        ca_pem=credentials.proxy_ca,
        seconds=config.handshake_timeout * IN_TIME,
        timeout=config.timeout,
        notsent_lowat=config.notsent_lowat,
        log_level=config.log_level,
        log_format=config.log_format,
        asks_around=bool(config.wants_full_tunnel),
    )
