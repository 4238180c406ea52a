"""The sockets for datagrams, of each kind that `carrier` asks for: UDP, fake TCP, or both.

With "auto" a kind that cannot be had is left out, and the log and `status` say why.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

from pipeline.config import Config
from pipeline.errors import LocalError, PermissionDenied
from pipeline.log import LOG
from pipeline.policy.carrier_order import KINDS, Kind
from pipeline.shm.datagram_secrets import DatagramServer
from pipeline.supervisor.kernel import datagram_sockets
from pipeline.supervisor.kernel.datagram_sockets import DatagramSockets
from pipeline.supervisor.kernel.fake_tcp_sockets import ClientFakeTcpSockets, ServerFakeTcpSockets

RIGHT_BY_SYSTEMD = "under systemd `tunnel-supervisor install-service --fake-tcp NAME` gives it that right"
BY_FAKE_TCP, BY_TCP = "blocks travel by fake TCP, or by TCP", "all blocks travel by TCP"


class DatagramCarriers:
    """`udp`, `fake_tcp`: None where there is none. `lacks`: sentences about what was wanted, and cannot be had."""

    def __init__(self, config: Config, listener: socket.socket | None) -> None:
        kinds = KINDS[config.carrier]
        self.lacks: list[str] = []
        self.fake_tcp: ServerFakeTcpSockets | ClientFakeTcpSockets | None = None
        self.udp: DatagramSockets | None = None
        with ExitStack() as made:
            if Kind.FAKE_TCP in kinds:
                self.fake_tcp = self._make_fake_tcp(config, listener)
                if self.fake_tcp is not None:
                    made.callback(self.fake_tcp.close)
            if Kind.UDP in kinds:
                otherwise = BY_TCP if self.fake_tcp is None else BY_FAKE_TCP
                self.udp = datagram_sockets.make(config, listener, otherwise)
                if self.udp is not None:
                    made.callback(self.udp.close)
            self._made = made.pop_all()

    def _make_fake_tcp(
        self, config: Config, listener: socket.socket | None
    ) -> ServerFakeTcpSockets | ClientFakeTcpSockets | None:
        try:
            if listener is None:
                return ClientFakeTcpSockets(config.lanes)
            port = config.fake_tcp_port_beside(listener.getsockname()[1])
            return ServerFakeTcpSockets(listener, port, config.lanes)
        except PermissionDenied as error:
            if config.carrier == "faketcp":
                raise PermissionDenied(f"{error}; {RIGHT_BY_SYSTEMD}") from None
            self.lacks.append(f"{error}; {RIGHT_BY_SYSTEMD}")
            LOG.info("%s", self.lacks[-1])
        except LocalError as error:
            if config.carrier == "faketcp":
                raise LocalError(f"{error}; set fake_tcp_port") from None
            self.lacks.append(f"{error}; set fake_tcp_port")
            LOG.warning("%s", self.lacks[-1])
        return None

    def places_towards(self, server: str) -> list[tuple[bytes, int]]:
        """Of the UDP sockets: see DatagramSockets."""
        return self.udp.places_towards(server) if self.udp is not None else []

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Those that there are."""
        return (Kind.UDP,) * (self.udp is not None) + (Kind.FAKE_TCP,) * (self.fake_tcp is not None)

    @property
    def fake_tcp_port(self) -> int:
        """Of a server; 0: there is none."""
        return self.fake_tcp.port if isinstance(self.fake_tcp, ServerFakeTcpSockets) else 0

    def fds(self, lane: int) -> dict[str, int]:
        """Those that the dgram worker of a lane gets."""
        fds: dict[str, int] = {}
        for sockets in (self.udp, self.fake_tcp):
            if sockets is not None:
                fds |= sockets.fds(lane)
        return fds

    def follow(self, has_bypass: bool) -> None:
        """Once a turn. The handshakes of fake TCP are of the workers' user, who is led around the tunnel anyway."""
        if self.udp is not None:
            self.udp.follow(has_bypass)

    def lead_to(self, server: DatagramServer | None) -> None:
        """Once a turn: where the present server of a client takes datagrams; None: nowhere."""
        if isinstance(self.fake_tcp, ClientFakeTcpSockets):
            self.fake_tcp.lead_to(server)

    def close(self) -> None:
        self._made.close()
