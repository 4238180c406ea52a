"""The care for the bridge of a client: its listening socket, its process, and what workers dial in place of a proxy.

    way_of(config, credentials)    what workers dial by a configuration; LocalError if nothing can listen for them
    apply()                        use the configuration for which that was asked last
    tick(now)                      what is due: a start, the end of a process that hangs

There is a process only where a configuration needs one. Connections wait in the listening socket, which is the
supervisor's, while the process is replaced.
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
from pipeline.supervisor.kernel.listener import listen
from pipeline.supervisor.processes.bridge_process import BridgeProcess
from pipeline.supervisor.processes.precedence import Precedence
from pipeline.supervisor.run.worker_account import Account
from pipeline.wire.approach import BRIDGED, Proxy
from pipeline.wire.bridge_approach import TOKEN_BYTES

BACKLOG = 64
BUFFER_BYTES = 1 << 18  # of a connection to a worker, in each direction: bytes that wait there are latency
IN_TIME = 0.9  # of handshake_timeout: the bridge's words come before the worker gives up
LOOPBACK = Endpoint("127.0.0.1", 0)


class Bridge:
    """`account`: that of the workers, whose connections go around the tunnel (policy.bypass); None for ours."""

    def __init__(
        self, account: Account | None, selector: selectors.BaseSelector, precedence: Precedence, record: Record
    ) -> None:
        self._account = account
        self._token = secrets.token_hex(TOKEN_BYTES)
        self._prepared: BridgePlan | None = None
        self._way = ""  # the way behind it, in words
        self._listener: socket.socket | None = None
        self._process = BridgeProcess(selector, precedence, record)

    @property
    def pid(self) -> int:
        """0 if there is no process."""
        return self._process.pid

    @property
    def notes(self) -> list[str]:
        """For the status: what is wrong with it."""
        return self._process.notes

    def way_of(self, config: Config, credentials: TlsSettings) -> Proxy | None:
        self._prepared = plan_of(config, credentials, self._token, self._account)
        if self._prepared is None:
            return credentials.proxy
        self._way = config.way_text
        host, port = self._listening().getsockname()
        return Proxy(BRIDGED, host, port, ("", self._token), self._way)

    def _listening(self) -> socket.socket:
        if self._listener is None:
            self._listener = listen_for_ourselves()
        return self._listener

    def apply(self) -> None:
        """Connections through a process that is replaced end; workers are replaced anyway."""
        self._process.use(self._prepared, f"no connection through {self._way}")
        self.tick(time.monotonic_ns())

    def tick(self, now: int) -> None:
        self._process.tick(now, self._listening)

    def close(self) -> None:
        self._process.use(None, "")
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def listen_for_ourselves(backlog: int = BACKLOG) -> socket.socket:
    """Listen on the loopback, for a process of ours that shows a token."""
    listener = listen(LOOPBACK, "the bridge", backlog)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # accepted sockets inherit them
        listener.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    return listener


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
