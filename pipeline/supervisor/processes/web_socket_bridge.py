"""The care for the bridge of a server: its process, the listening socket for WebSockets, and the one of tcp workers.

    prepare(config)    what there is to be by a configuration; LocalError if nothing can listen for the process
    apply()            use what was prepared
    tick(now)          what is due: a listener, a start, the end of a process that hangs

Both listening sockets are the supervisor's, so that connections wait in them while a process is replaced. `inner` leads
from the bridge to the tcp workers: a connection there has to show the token. So tcp workers believe this
bridge, whatever `proxy_protocol_from` says, and nobody else at the loopback.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import time
from typing import Any

from pipeline.bridge.counts import Counts
from pipeline.bridge.plan import WebSocketPlan
from pipeline.config import Config
from pipeline.config.values import Endpoint, parse_endpoint
from pipeline.errors import TunnelError
from pipeline.events import Record
from pipeline.log import LOG
from pipeline.supervisor.kernel.listener import listen
from pipeline.supervisor.processes.bridge import listen_for_ourselves
from pipeline.supervisor.processes.bridge_process import BridgeProcess
from pipeline.supervisor.processes.precedence import Precedence
from pipeline.supervisor.run.worker_account import Account
from pipeline.wire.bridge_approach import TOKEN_BYTES

SECOND = 1_000_000_000
LISTEN_AGAIN_NS = 5 * SECOND
BACKLOG = 512
SETTING = "websocket_addr"
LOSS = "no connection by a WebSocket"
NO_UPGRADE = (
    f"{LOSS} so far, only requests at websocket_path that ask for none: the web server in front has to pass on the "
    "header fields Upgrade and Connection"
)


class WebSocketBridge:
    """`account`: what its process changes to, None for ours."""

    def __init__(
        self, account: Account | None, selector: selectors.BaseSelector, precedence: Precedence, record: Record
    ) -> None:
        self._account = account
        self._process = BridgeProcess(selector, precedence, record)
        self._prepared: tuple[Endpoint, WebSocketPlan] | None = None
        self._endpoint: Endpoint | None = None
        self._listener: socket.socket | None = None
        self._next_ns = 0
        self._note = ""
        self.inner: socket.socket | None = None
        self.token = secrets.token_hex(TOKEN_BYTES)

    @property
    def pid(self) -> int:
        """0 if there is no process."""
        return self._process.pid

    @property
    def notes(self) -> list[str]:
        """For the status: what is wrong with it."""
        if self._note or self._process.notes:
            return [self._note] if self._note else self._process.notes
        counts = self._counts
        return [NO_UPGRADE] if counts.without_upgrade and not counts.opened else []

    def status(self) -> dict[str, Any] | None:
        """Its counts; None where there is none."""
        if self._endpoint is None:
            return None
        return {"pid": self.pid, **self._counts._asdict()}

    @property
    def _counts(self) -> Counts:
        return Counts.latest(self._process.reports) or Counts()

    def prepare(self, config: Config) -> None:
        endpoint = config.websocket_endpoint
        self._prepared = None
        if endpoint is not None:
            if self.inner is None:
                self.inner = listen_for_ourselves(BACKLOG)
            host, port = self.inner.getsockname()
            self._prepared = endpoint, plan_of(config, Endpoint(host, port), self.token, self._account)

    def apply(self) -> list[str]:
        endpoint, plan = self._prepared or (None, None)
        if endpoint != self._endpoint:
            self._stop_listening()
        self._endpoint, self._next_ns = endpoint, 0
        self._process.use(plan, LOSS)
        self.tick(time.monotonic_ns())
        return self.notes

    def tick(self, now: int) -> None:
        self._process.tick(now, lambda: self._listening(now))

    def close(self) -> None:
        self._process.use(None, "")
        self._stop_listening()
        if self.inner is not None:
            self.inner.close()
            self.inner = None

    def _listening(self, now: int) -> socket.socket | None:
        if self._listener is None and self._endpoint is not None and now >= self._next_ns:
            try:
                self._listener, note = listen(self._endpoint, SETTING, BACKLOG), ""
            except TunnelError as error:
                note = f"{LOSS}: {error}"
                self._next_ns = now + LISTEN_AGAIN_NS
                if note != self._note:
                    LOG.warning("%s; trying again", note)
            self._note = note
        return self._listener

    def _stop_listening(self) -> None:
        self._note = ""
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def plan_of(config: Config, inner: Endpoint, token: str, account: Account | None) -> WebSocketPlan:
    clients = config.max_clients if config.multi_client else 1
    return WebSocketPlan(
        name=config.name,
        account=[account.uid, account.gid] if account is not None else None,
        path=config.websocket_path,
        proxies=list(config.websocket_proxies),
        field=config.websocket_client_field.lower(),
        target=list(inner),
        token=token,
        web_server=list(parse_endpoint(config.fallback)) if config.fallback else None,
        tells_address=config.fallback_proxy_protocol,
        seconds=config.handshake_timeout,
        timeout=config.timeout,
        requests=config.max_handshakes,
        tunnels=clients * config.max_connections_per_client + config.max_handshakes,
        visitors=config.fallback_connections,
        log_level=config.log_level,
        log_format=config.log_format,
    )
