"""The client's part of the supervisor: its credentials, and what follows from the server's WELCOME.

    start(table, device)      write the peer table: the server is the only peer
    tick(now)                 nothing
    prepare_reload(config)    load everything that a configuration names, the credentials; raises, and changes nothing
    apply_reload()            use what was prepared
    answer_request(request)   of a tcp worker: it reports a WELCOME, which it has verified, or trouble with the server
    status(now)               the server and the trouble with it; what its WELCOME has that does not fit
    take_back(request)        nothing
    run_command(request)      refuses the commands of a server; None for any other

With tunnel_addr "auto" the device gets the addresses of the WELCOME. Its routes are added to the configured ones, as
far as accept_routes and the rules of `pipeline.policy.reconcile` admit them. Every WELCOME is compared with the kernel,
so what was impossible at an earlier one is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pipeline.config import Config
from pipeline.config.schema import AUTO
from pipeline.credentials import tls_settings
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.runtime.supervisor_channel import TroubleReport, WelcomeReport
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.control.control_socket import PEER_COMMANDS
from pipeline.supervisor.kernel.tun_device import TunDevice
from pipeline.supervisor.roles.only_peer import write_only_peer
from pipeline.supervisor.roles.server_trouble import ServerTrouble
from pipeline.wire import messages

KNOWN_SERVERS_MAX = 4


class ClientRole:
    """`credentials` and `capacity` (peers that can be connected at a time) go into the plan.

    `key`: the client's key from an invitation; b"": the key in `key_file`, if that is set.
    """

    capacity = 1
    problems: tuple[str, ...] = ()
    _device: TunDevice  # from start() on
    tell_workers: Callable[[Any], object]  # of no use to a client

    def __init__(self, config: Config, key: bytes = b"") -> None:
        self._config = config
        self._key = key
        self.credentials: TlsSettings = tls_settings.load(config, key=key)
        self._trouble = ServerTrouble()
        self._notes: list[str] = []  # about the last WELCOME
        self._applied: tuple[object, ...] = ()  # addresses, routes and server of the last WELCOME
        self.known_servers: list[str] = []  # that its name has led to, the latest first

    def start(self, table: PeerTable, device: TunDevice) -> None:
        self._device = device
        write_only_peer(table)

    def tick(self, now: int) -> None:
        """Nothing of a client's waits for the clock."""

    def prepare_reload(self, config: Config) -> TlsSettings:
        self._prepared = config, tls_settings.load(config, key=self._key)
        return self._prepared[1]

    def apply_reload(self) -> None:
        before = self._config
        self._config, self.credentials = self._prepared
        if self._config.remote_addr != before.remote_addr:
            self.known_servers = []

    def status(self, now: int) -> dict[str, Any]:
        """For `status`."""
        return {"server": self._trouble.status(self._config, now), "notes": self._notes}

    def answer_request(self, request: WelcomeReport | TroubleReport) -> None:
        if "trouble" in request:
            self._trouble.take(request, self._config.lanes)
            return
        welcome = messages.decode(bytes.fromhex(request["welcome"]))
        if not isinstance(welcome, messages.Welcome):
            return
        self._remember(request["server"])
        news = welcome.addresses, welcome.routes, request["server"]
        if news == self._applied:
            self._device.look_soon()
            return
        auto = self._config.tunnel_addr == AUTO
        try:
            there = self._device.take_from_server(welcome.addresses if auto else (), welcome.routes, request["server"])
        except LocalError as error:
            self._notes = [f"addresses and routes from the server cannot be applied: {error}"]
            LOG.error("%s", self._notes[0])
            return
        self._applied, self._notes = news, []
        LOG.info("from the server: %s", _listed(there))
        own = [interface.ip for interface in self._config.tunnel_interfaces]
        if not auto and welcome.addresses and {a.ip for a in welcome.addresses} != set(own):
            note = (
                f"tunnel_addr has {_listed(own)}, the server has {_listed(welcome.addresses)} for this client: "
                "it drops packets from other addresses"
            )
            self._notes = [note]
            LOG.warning("%s", note)

    def _remember(self, server: str) -> None:
        """Keep an address of the server for workers that start while its name cannot be looked up."""
        if self._config.remote_endpoint.address is None:
            others = [each for each in self.known_servers if each != server]
            self.known_servers = [server, *others][:KNOWN_SERVERS_MAX]

    def take_back(self, request: dict[str, Any]) -> None:
        """No command of a client's has an answer that must arrive."""

    def run_command(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if request.get("command") in PEER_COMMANDS:
            return {"ok": False, "error": "this instance is a client: only a server has peers"}
        return None


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values)) or "none"
