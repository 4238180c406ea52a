"""What a supervisor is on a client beside its workers' keeper: its credentials, and what the server welcomes
it with.

The tcp workers hand on each WELCOME, which they have verified. Addresses from it are the device's if `tunnel_addr` is
"auto"; routes that the server pushes are taken, but never one that leads to the server itself through the tunnel.
"""

from __future__ import annotations

from ipaddress import ip_address

from pipeline.config import Config
from pipeline.config.schema import AUTO
from pipeline.credentials import tls_settings
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.server_role import EVERYTHING
from pipeline.supervisor.tun_device import TunDevice
from pipeline.wire import messages


class ClientRole:
    """`key`: one that came with an invitation, b"" for that of `key_file`."""

    capacity = 1

    def __init__(self, config: Config, key: bytes = b"") -> None:
        self._config = config
        self._key = key
        self.credentials: TlsSettings = tls_settings.load(config, None, key)
        self._device: TunDevice | None = None
        self._last: tuple | None = None

    def open(self, table: PeerTable, device: TunDevice) -> None:
        """The peers segment and the device are there: the server is peer 0, and everything goes to it."""
        self._device = device
        table.write_routes(EVERYTHING)
        table.write_record(FIRST_PEER_HANDLE, 0)

    def settings(self) -> dict:
        """What workers are told of it."""
        endpoint = self._config.remote_endpoint
        return {
            "tls": self.credentials.tls,
            "keys": False,
            "key": self.credentials.key.hex(),
            "wishes": [str(interface.ip) for interface in self._config.tunnel_interfaces],
            "remote_host": endpoint.host,
            "remote_port": endpoint.port,
        }

    def prepare(self, config: Config) -> None:
        self._prepared = config, tls_settings.load(config, None, self._key)

    def apply(self) -> None:
        self._config, self.credentials = self._prepared

    def answer(self, request: dict) -> None:
        """A worker hands on a WELCOME, and the address that it has come from."""
        welcome = messages.decode(bytes.fromhex(request["welcome"]))
        if not isinstance(welcome, messages.Welcome):
            return
        said = welcome.addresses, welcome.routes, request["server"]
        if said == self._last:
            return
        self._last = said
        auto = self._config.tunnel_addr == AUTO
        own = [interface.ip for interface in self._config.tunnel_interfaces]
        if not auto and welcome.addresses and {a.ip for a in welcome.addresses} != set(own):
            LOG.warning(
                "the server has %s for us, tunnel_addr says %s: packets from other addresses are dropped there",
                _listed(welcome.addresses),
                _listed(own),
            )
        routes = [route for route in welcome.routes if not _leads_to(request["server"], route)]
        try:
            if self._device.adopt(welcome.addresses if auto else (), routes):
                LOG.info("from the server: addresses %s, routes %s", _listed(welcome.addresses), _listed(routes))
        except LocalError as error:
            LOG.error("what the server has sent cannot be applied: %s", error)

    def command(self, request: dict) -> dict | None:
        if request.get("command") in ("peers", "invite", "revoke"):
            return {"ok": False, "error": "this is a client: peers are the server's"}
        return None


def _leads_to(server: str, route: messages.Network) -> bool:
    leads = ip_address(server) in route
    if leads:
        LOG.warning(
            "the server pushes a route to %s, which leads to itself: not taken. To send everything through the "
            "tunnel, set routes here, and a route to the server around it",
            route,
        )
    return leads


def _listed(values: tuple | list) -> str:
    return ", ".join(map(str, values)) or "none"
