"""The server's part of the supervisor: its state directory, its credentials, the admission of peers, its commands.

    start(table, device)      write the peer table
    tick(now)                 what could not be saved is saved again
    prepare_reload(config)    load everything that a configuration names; raises, and changes nothing
    apply_reload()            use what was prepared
    answer_request(request)   of a tcp worker: may this client connect?
    run_command(request)      "peers", "invite", "revoke" of the control socket; None for any other

With compat nothing says who a client is. A hub gives each connection an index, and learns its addresses
(pipeline.peers.compat_admission). A server of one client has no admission: every connection is one of peer 0, and all
packets go there.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

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
from pipeline.peers.compat_admission import CompatAdmission
from pipeline.peers.registry import KnownPeer
from pipeline.runtime.supervisor_channel import AddressClaim, AdmissionRequest, Answer
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.control_socket import PEER_COMMANDS
from pipeline.supervisor.only_peer import write_only_peer
from pipeline.supervisor.status import SCHEMA_VERSION
from pipeline.supervisor.tun_device import TunDevice
from pipeline.transport.address import format_address

PROBE_ADDRESSES = ("192.0.2.1", 9), ("2001:db8::1", 9)
"""Documentation addresses (RFC 5737, RFC 3849): a route to them is the default route. Nothing is sent there."""


class ServerRole:
    """`credentials` and `capacity` (peers that can be connected at a time) go into the plan."""

    def __init__(self, config: Config) -> None:
        self._config = config
        remembers = config.multi_client and not config.compat
        self._state = StateDir(config.state_dir) if config.encryption == "tls" or remembers else None
        self.capacity = config.max_clients if config.multi_client else 1
        self.credentials: TlsSettings = tls_settings.load(config, self._state, make_certificate=True)
        self._known: list[KnownPeer] = [] if config.compat else registry.load(config)
        self._admission: Admission | None = None
        self._compat_admission: CompatAdmission | None = None

    def start(self, table: PeerTable, device: TunDevice) -> None:
        if self._config.compat:
            if self._config.multi_client:
                self._compat_admission = CompatAdmission(self._config, table)
            else:
                write_only_peer(table)
            return
        if self._state:
            self._state.remove_unfinished()
        remembered = self._state.load_addresses() if self._state else {}
        save = self._state.save_addresses if self._state else lambda addresses: None
        self._admission = Admission(self._config, table, device.accepted, remembered, save)
        self._admission.configure(self._config, self._known)
        if self._config.encryption == "tls" and not (self._known or self._config.insecure or self._config.tls_ca_file):
            LOG.info("no peer can connect yet: add one with `tunnel-supervisor invite NAME`")

    def tick(self, now: int) -> None:
        if self._admission is not None:
            self._admission.tick(now)

    # -- reload

    def prepare_reload(self, config: Config) -> None:
        loaded = tls_settings.load(config, self._state)
        known = [] if config.compat else registry.load(config)
        self._prepared = config, loaded, known

    def apply_reload(self) -> None:
        self._config, self.credentials, self._known = self._prepared
        if self._admission is not None:
            self._admission.configure(self._config, self._known)
        if self._compat_admission is not None:
            self._compat_admission.configure(self._config)

    # -- requests and commands

    def answer_request(self, request: AdmissionRequest | AddressClaim) -> Answer | None:
        if self._compat_admission is not None:
            return self._compat_admission.handle_request(request)
        if self._admission is None or "claim" in request:
            return None
        return self._admission.handle_hello(request)

    def run_command(self, request: dict[str, Any]) -> dict[str, Any] | None:
        command = request.get("command")
        if command not in PEER_COMMANDS:
            return None
        now = time.monotonic_ns()
        if self._compat_admission is not None and command == "peers":
            peers = self._compat_admission.list_peers(now)
            return {"ok": True, "schema_version": SCHEMA_VERSION, "peers": peers}
        if self._admission is None:
            return {
                "ok": False,
                "error": "compat is true: the original program's wire format does not say who a client is",
            }
        try:
            match command:
                case "invite":
                    return self._invite(request)
                case "revoke":
                    return self._revoke(request)
            peers = self._admission.list_peers(now)
            return {"ok": True, "schema_version": SCHEMA_VERSION, "peers": peers}
        except TunnelError as error:
            return {"ok": False, "error": str(error)}

    def _invite(self, request: dict[str, Any]) -> dict[str, Any]:
        tls = self.credentials.tls
        if tls is None:
            return {"ok": False, "error": 'encryption is "none": a peer could not prove its identity'}
        peer = peer_file.new_peer(request.get("name"), request.get("allowed"), request.get("rate_mbit"))
        if any(known.policy.name == peer.name for known in self._known):
            return {"ok": False, "error": f'peer "{peer.name}" exists already; revoke it, or choose another name'}
        registry.check_distinct([*self._known, registry.known_peer_of(peer, self._config)])
        server = str(request.get("server") or "") or self._config.public_addr or self._likely_address()
        try:
            server = invitation.with_port(server, self._config.listen_endpoint.port)
        except ValueError as expected:
            return {"ok": False, "error": f"--address: given {server}, expected {expected}"}
        line = invitation.encode(Invitation(server, peer.key, tls.fingerprint, peer.name))
        peer_file.write(Path(self._config.state_dir), peer)
        self.reload_peers()
        return {"ok": True, "line": line, "server": server, "certificate": bool(self._config.tls_ca_file)}

    def _revoke(self, request: dict[str, Any]) -> dict[str, Any]:
        name = str(request.get("name"))
        if any(peer.name == name for peer in self._config.peers):
            return {"ok": False, "error": f'peer "{name}" is in the configuration: remove it there, and reload'}
        if not peer_file.remove(Path(self._config.state_dir), name):
            names = ", ".join(known.policy.name for known in self._known) or "none"
            return {"ok": False, "error": f'no peer "{name}"; known peers: {names}'}
        self.reload_peers()
        return {"ok": True, "name": name}

    def reload_peers(self) -> None:
        """Read the files of invited peers again."""
        self.prepare_reload(self._config)
        self.apply_reload()

    def _likely_address(self) -> str:
        """The address that we listen on, else the one from which this machine reaches others."""
        endpoint = self._config.listen_endpoint
        if endpoint.address is None or not endpoint.address.is_unspecified:
            return format_address(endpoint)
        for family, probe in zip((socket.AF_INET, socket.AF_INET6), PROBE_ADDRESSES, strict=True):
            try:
                with socket.socket(family, socket.SOCK_DGRAM) as sock:
                    sock.connect(probe)
                    return format_address(Endpoint(sock.getsockname()[0], endpoint.port))
            except OSError:
                continue  # no route there
        raise ConfigError([Problem("public_addr", "unknown: give --address HOST, or set public_addr")])
