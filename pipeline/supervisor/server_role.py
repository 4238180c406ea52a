"""What a supervisor is on a server beside its workers' keeper: the state, the credentials, the hub, its
commands.

    apply()            go by what was prepared
    answer(request)    a tcp worker's question
    command(request)   "peers", "invite", "revoke" from the control socket; None for any other

With compat there is no greeting and no hub: whoever is connected is peer 0, and everything is his.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

from pipeline.config import Config
from pipeline.config.values import Endpoint
from pipeline.credentials import invitation, tls_settings
from pipeline.credentials.invitation import Invitation
from pipeline.credentials.state_dir import StateDir
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.errors import ConfigError, Problem, TunnelError
from pipeline.log import LOG
from pipeline.peers import peer_file, registry
from pipeline.peers.admission import Admission
from pipeline.peers.registry import KnownPeer
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.status import SCHEMA_VERSION
from pipeline.supervisor.tun_device import TunDevice
from pipeline.transport.connection import format_address

EVERYTHING = [(bytes(4), 0, FIRST_PEER_HANDLE), (bytes(16), 0, FIRST_PEER_HANDLE)]
"""Routes where there is one peer to which all packets go."""

SOMEWHERE = ("192.0.2.1", 9), ("2001:db8::1", 9)
"""Documentation addresses (RFC 5737, RFC 3849): the way there is the way to the world. Nothing is sent."""


class ServerRole:
    """`credentials` and `capacity` are what workers are told."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._state = StateDir(config.state_dir) if config.encryption == "tls" or config.multi_client else None
        self.capacity = config.max_clients if config.multi_client else 1
        self.credentials: TlsSettings = tls_settings.load(config, self._state)
        self._known: list[KnownPeer] = [] if config.compat else registry.load(config)
        self._hub: Admission | None = None

    def open(self, table: PeerTable, device: TunDevice) -> None:
        """The peers segment and the device are there."""
        if self._config.compat:
            table.write_routes(EVERYTHING)
            table.write_record(FIRST_PEER_HANDLE, 0)
            return
        remembered = self._state.addresses() if self._state else {}
        save = self._state.save_addresses if self._state else lambda addresses: None
        self._hub = Admission(self._config, table, device.accepted, remembered, save)
        self._hub.configure(self._config, self._known)
        if self._config.encryption == "tls" and not (self._known or self._config.insecure or self._config.tls_ca_file):
            LOG.info("no peer can connect yet: `tunnel-supervisor invite NAME` adds one")

    def settings(self) -> dict:
        """What workers are told of it."""
        return {"tls": self.credentials.tls, "keys": self._config.encryption == "tls", "key": ""}

    # -- reload

    def prepare(self, config: Config) -> None:
        loaded = tls_settings.load(config, self._state)
        known = [] if config.compat else registry.load(config)
        self._prepared = config, loaded, known

    def apply(self) -> None:
        self._config, self.credentials, self._known = self._prepared
        if self._hub is not None:
            self._hub.configure(self._config, self._known)

    # -- questions

    def answer(self, request: dict) -> dict | None:
        return self._hub.answer(request) if self._hub is not None else None

    def command(self, request: dict) -> dict | None:
        commands = {"peers": self._peers, "invite": self._invite, "revoke": self._revoke}
        name = request.get("command")
        if not isinstance(name, str) or name not in commands:
            return None
        if self._hub is None:
            return {"ok": False, "error": "compat is true: the original knows no peers"}
        try:
            return commands[name](request)
        except TunnelError as error:
            return {"ok": False, "error": str(error)}

    def _peers(self, request: dict) -> dict:
        return {"ok": True, "schema_version": SCHEMA_VERSION, "peers": self._hub.peers(time.monotonic_ns())}

    def _invite(self, request: dict) -> dict:
        if self._config.encryption != "tls":
            return {"ok": False, "error": 'encryption is "none": nothing could prove who the peer is'}
        peer = peer_file.new_peer(request.get("name"), request.get("allowed"), request.get("rate_mbit"))
        if any(known.identity.name == peer.name for known in self._known):
            return {"ok": False, "error": f'there is a peer "{peer.name}" already; revoke it, or choose another name'}
        registry.check([*self._known, registry.of_invited(peer, self._config)])
        server = str(request.get("server") or "") or self._config.public_addr or self._guess()
        try:
            server = invitation.with_port(server, self._config.listen_endpoint.port)
        except ValueError as expected:
            return {"ok": False, "error": f"--address: given {server}, expected {expected}"}
        line = invitation.encode(Invitation(server, peer.key, self.credentials.tls["fingerprint"], peer.name))
        peer_file.write(Path(self._config.state_dir), peer)
        self._reread()
        return {"ok": True, "line": line, "server": server, "certificate": bool(self._config.tls_ca_file)}

    def _revoke(self, request: dict) -> dict:
        name = str(request.get("name"))
        if any(peer.name == name for peer in self._config.peers):
            return {"ok": False, "error": f'"{name}" is in the configuration: take it out there, and reload'}
        if not peer_file.remove(Path(self._config.state_dir), name):
            names = ", ".join(known.identity.name for known in self._known) or "nobody"
            return {"ok": False, "error": f'no peer "{name}": there is {names}'}
        self._reread()
        return {"ok": True, "name": name}

    def _reread(self) -> None:
        self.prepare(self._config)
        self.apply()

    def _guess(self) -> str:
        """Our address as others most likely see it: the one that we listen on, or that leads to the world."""
        endpoint = self._config.listen_endpoint
        if endpoint.address is None or not endpoint.address.is_unspecified:
            return format_address(endpoint)
        for family, there in zip((socket.AF_INET, socket.AF_INET6), SOMEWHERE, strict=True):
            try:
                with socket.socket(family, socket.SOCK_DGRAM) as sock:
                    sock.connect(there)
                    return format_address(Endpoint(sock.getsockname()[0], endpoint.port))
            except OSError:
                continue  # no way there
        raise ConfigError([Problem("public_addr", "not known: say --address HOST, or set public_addr")])
