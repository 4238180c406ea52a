"""The server's part of the supervisor: its state directory, its credentials, the admission of peers, its commands.

    start(table, device)      write the peer table
    expect(settings)          nothing
    tick(now)                 what could not be saved is saved again
    prepare_reload(config)    load everything that a configuration names, the credentials; raises, and changes nothing
    apply_reload()            use what was prepared
    status()                  nothing: the command `peers` tells of the peers
    answer_request(request)   of a tcp worker: may this client connect?
    run_command(request)      the commands about peers, of the control socket; None for any other
    take_back(request)        undo a command whose answer did not arrive
    is_taken, save, admit_as_known, forget    what Enrollment does with peers (pipeline.peers.enrollment.PeerStore)

With compat nothing says who a client is. A hub gives each connection an index, and learns its addresses
(pipeline.peers.compat_admission). A server of one client has no admission: every connection is one of peer 0, and all
packets go there.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import Any, ClassVar

from pipeline.config import Config
from pipeline.config.peer import check_peer_name
from pipeline.config.values import Endpoint, parse_endpoint
from pipeline.credentials import invitation, tls_settings
from pipeline.credentials.certificates import CertificatePair
from pipeline.credentials.invitation import Invitation
from pipeline.credentials.state_dir import StateDir
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.errors import ConfigError, LocalError, Problem, TunnelError
from pipeline.log import LOG
from pipeline.observe.snapshot import SCHEMA_VERSION
from pipeline.packet.route_table import NO_PEER
from pipeline.peers import peer_file, registry
from pipeline.peers.admission import Admission, AdmissionNews
from pipeline.peers.compat_admission import CompatAdmission
from pipeline.peers.enrollment import EXPIRED, OPEN, Enrollment
from pipeline.peers.known_peers import KnownPeers
from pipeline.peers.peer_file import InvitedPeer, Issued
from pipeline.peers.peer_status import PeerRow, PeerStatus
from pipeline.peers.registry import KnownPeer, Loaded
from pipeline.peers.shut_out import ShutOut, in_words
from pipeline.runtime.plan import WorkerSettings
from pipeline.runtime.supervisor_channel import AddressClaim, AdmissionRequest, Answer, Doubted, EndReport, Replaced
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.accounting.accountant import Accountant
from pipeline.supervisor.control.control_socket import PEER_COMMANDS
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.kernel.tun_device import TunDevice
from pipeline.supervisor.roles.client_watch import ClientWatch
from pipeline.supervisor.roles.only_peer import write_only_peer
from pipeline.supervisor.roles.peer_watch import PeerWatch
from pipeline.transport.address import format_address, plain_host
from pipeline.transport.settings import TlsMaterial

COMPAT_CLIENTS = "(clients)"
"""The name for the account of all clients of the original program: nothing says who each of them is."""

PROBE_ADDRESSES = ("192.0.2.1", 9), ("2001:db8::1", 9)
"""Documentation addresses (RFC 5737, RFC 3849): a route to them is the default route. Nothing is sent there."""


INVITATION_SECONDS = 7 * 86400  # how long an invitation is good for, unless it says something else

PRIVATE = tuple(
    ip_network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "127.0.0.0/8"),
        *("fc00::/7", "fe80::/10", "::1/128"),
    )
)
"""Networks that are not reached from outside."""


class ServerRole(AdmissionNews):
    """`credentials` and `capacity` (peers that can be connected at a time) go into the plan."""

    known_servers: ClassVar[list[str]] = []
    _device: TunDevice  # from start() on
    _client_watch: ClientWatch
    tell_workers: Callable[[Replaced | Doubted], object]  # once there are workers

    def __init__(self, config: Config, events: Events | None = None) -> None:
        self._events = events or Events()
        self._config = config
        self.accountant = Accountant(config, lambda peer, text: self._events.record("quota", peer, text))
        remembers = config.multi_client and not config.compat
        self._state = StateDir(config.state_dir) if config.encryption == "tls" or remembers else None
        self.capacity = config.max_clients if config.multi_client else 1
        self.credentials: TlsSettings = tls_settings.load(config, lambda: self._server_certificate(make=True))
        self._peers = KnownPeers()
        if not config.compat:
            self._peers.take(self._peers.read(config, first=True))
        self._enrollment = Enrollment(self._peers, self, self._events.record)
        self._shut_out = ShutOut(self._state.path if self._state and not config.compat else None)
        self._reasons: dict[str, str] = {}  # of peers that are shut out now
        self._peer_watch: PeerWatch | None = None  # from start() on
        self._admission: Admission | None = None
        self._compat_admission: CompatAdmission | None = None

    def start(self, table: PeerTable, device: TunDevice) -> None:
        self._device = device
        self._client_watch = ClientWatch(table, device)
        if self._peer_watch is not None:
            self._peer_watch.leave_all("the shared memory is made anew")
        self._peer_watch = PeerWatch(table, self._events, self._name_session)
        self._configure_quotas()
        self.accountant.start(table)
        if self._config.compat:
            for index in range(self.capacity):
                self.accountant.begin(index, COMPAT_CLIENTS)
            if self._config.multi_client:
                self._compat_admission = CompatAdmission(
                    self._config, table, lambda doubted: self.tell_workers(doubted)
                )
            else:
                write_only_peer(table)
            return
        if self._state:
            self._state.remove_unfinished()
        self._tell_networks()
        remembered = self._state.load_addresses() if self._state else {}
        save = self._state.save_addresses if self._state else lambda addresses: None
        self._admission = Admission(
            self._config,
            table,
            device.accepted,
            remembered,
            save,
            lambda replaced: self.tell_workers(replaced),
            lambda known, key, hello: self._enrollment.answer(known, key, hello, time.time()),
            self,
            quotas=self.accountant.quotas,
            began=self.accountant.begin,
        )
        self._configure_admission()
        nobody = not (self._peers.known or self._config.insecure or self._config.tls_ca_file)
        if self._config.encryption == "tls" and nobody:
            LOG.info("no peer can connect yet: add one with `tunnel-supervisor invite NAME`")

    def expect(self, settings: WorkerSettings) -> None:
        """The workers of a server send no HELLO."""

    def tick(self, now: int) -> None:
        self._client_watch.tick(now, has_routes=bool(self._config.routes))
        if self._peer_watch is not None:
            self._peer_watch.tick(now)
        changed = self.accountant.tick(now)
        if self._admission is not None:
            self._admission.tick(now)
            self._admission.follow_quotas(changed)
            wall = time.time()
            self._enrollment.tick(wall, now / 1e9)
            if self._shut_out.reasons(self._peers.known, wall) != self._reasons:
                self.admit_as_known()

    @property
    def problems(self) -> list[str]:
        """Of peers whose file or settings cannot be used."""
        return [str(problem) for _, problem in self._peers.broken]

    def _server_certificate(self, make: bool) -> CertificatePair:
        assert self._state is not None, "with encryption there is a state directory"
        return self._state.server_certificate(self._config.name, make=make)

    # -- reload

    def status(self) -> dict[str, Any]:
        """For `status`: this end is the server."""
        return {"server": None, "notes": self.accountant.notes, "accounting": self.accountant.status()}

    def prepare_reload(self, config: Config) -> TlsSettings:
        loaded = tls_settings.load(config, lambda: self._server_certificate(make=False))
        peers = Loaded([], [], set()) if config.compat else self._peers.read(config)
        self._prepared = config, loaded, peers
        return loaded

    def apply_reload(self) -> None:
        before = self.credentials.tls
        self._config, self.credentials, loaded = self._prepared
        self._peers.take(loaded)
        self._configure_admission()
        if self._admission is not None and _has_lost_a_ca(before, self.credentials.tls):
            self._admission.end_certified()

    def _configure_quotas(self) -> None:
        own = {each.policy.name: each.policy.quota for each in self._peers.known}
        self.accountant.configure(self._config.quota_day, own, registry.quota_terms(self._config))

    def _configure_admission(self) -> None:
        self._configure_quotas()
        if self._admission is not None:
            before = self._reasons
            self._reasons = self._shut_out.reasons(self._peers.known, time.time())
            self._admission.configure(self._config, self._peers.known, self._peers.barred, self._reasons)
            self._tell_networks()
            for name, reason in self._reasons.items() - before.items():
                self._events.record("peer-disabled", name, reason)
            known = {peer.policy.name for peer in self._peers.known}  # and not one that is revoked
            for name in (before.keys() - self._reasons.keys()) & known:
                self._events.record("peer-enabled", name)
        if self._compat_admission is not None:
            self._compat_admission.configure(self._config)

    def _tell_networks(self) -> None:
        self._device.know_peers([network for peer in self._peers.known for network in peer.policy.allowed])

    # -- peers, for observers

    @property
    def peers_version(self) -> int:
        """Another number after each event, since some changes come with time: an invitation ends."""
        admissions = (self._admission, self._compat_admission)
        return self._events.count + sum(each.changes for each in admissions if each is not None)

    def peer_rows(self) -> list[PeerRow]:
        """Every peer that is known or connected: those with a session first, then by name."""
        if self._compat_admission is not None:
            return self._compat_admission.peer_rows()
        if self._admission is None:
            return [PeerRow("client", peer=0)]
        rows = self._named_rows(self._admission.peer_rows())
        return sorted(rows, key=lambda row: (row.peer == NO_PEER, row.name))

    def _named_rows(self, rows: Iterable[PeerRow]) -> list[PeerRow]:
        """The rows by name, with what is wrong with the peers' files."""
        found = {row.name: row for row in rows}
        now = time.time()
        for known in self._peers.known:
            if known.invited and (row := found.get(known.policy.name)):
                found[row.name] = self._with_life(row, known.invited, now)
        for name in self._reasons.keys() & found.keys():
            state = "disabled" if name in self._shut_out.disabled else "ended"
            found[name] = found[name]._replace(state=state)
        for name, problem in self._peers.broken:
            found[name] = found.get(name, PeerRow(name, state="broken"))._replace(problem=str(problem))
        return [found[name] for name in sorted(found)]

    def _with_life(self, row: PeerRow, invited: InvitedPeer, now: float) -> PeerRow:
        """The row of a peer with what its file says of its time and of its invitation."""
        state = self._enrollment.state_of(invited, now)
        row = row._replace(until=invited.until, invitation=state)
        if invited.invitation is not None and state == OPEN:
            row = row._replace(
                invitation_expires=invited.invitation.expires,
                invitation_uses_left=self._enrollment.uses_left(invited.invitation),
            )
        if not self._enrollment.has_joined(invited):
            row = row._replace(state="expired" if state == EXPIRED else "invited")
        return row

    def _name_session(self, peer: int) -> tuple[str, str] | None:
        if self._compat_admission is not None:
            return self._compat_admission.name_session(peer)
        return self._admission.name_session(peer) if self._admission is not None else ("client", "")

    def session_ended(self, peer: int, name: str, reason: str) -> None:
        if self._peer_watch is not None:
            self._peer_watch.session_ended(peer, reason)

    def refused(self, name: str, reason: str, host: str) -> None:
        where = f" (from {plain_host(host)})" if host and name else ""
        self._events.record("refused" if name else "unproved", name, f"{reason}{where}")

    # -- requests and commands

    def answer_request(self, request: AdmissionRequest | AddressClaim | EndReport) -> Answer | None:
        if "ended" in request:
            if self._peer_watch is not None:
                self._peer_watch.ended(request["ended"], request["reason"])
            return None
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
                case "withdraw":
                    return self._withdraw(request)
                case "revoke":
                    return self._revoke(request)
                case "disable":
                    return self._disable(request)
                case "enable":
                    return self._enable(request)
            return {"ok": True, "schema_version": SCHEMA_VERSION, "peers": self._list_peers(self._admission)}
        except TunnelError as error:
            return {"ok": False, "error": str(error)}

    def take_back(self, request: dict[str, Any]) -> None:
        """Undo a command whose answer has not arrived: nobody has the line of an invitation that was lost."""
        if request.get("command") == "invite":
            LOG.warning("invite %s: its command has ended before it got the line: taken back", request.get("name"))
            self._withdraw(request)

    def _list_peers(self, admission: Admission) -> list[PeerStatus]:
        return admission.describe(self._named_rows(admission.peer_rows()), time.monotonic_ns())

    def _invite(self, request: dict[str, Any]) -> dict[str, Any]:
        """All or nothing: the peer is known and its file is there, or neither."""
        tls = self.credentials.tls
        if tls is None:
            return {"ok": False, "error": 'encryption is "none": a peer could not prove its identity'}
        expires = request.get("expires")
        issued = peer_file.new_invitation(
            int(time.time()) + INVITATION_SECONDS if expires is None else expires, request.get("uses") or 1
        )
        peer = peer_file.new_peer(
            request.get("name"),
            request.get("allowed"),
            request.get("rate_mbit"),
            issued,
            request.get("until"),
            request.get("quota_gb"),
        )
        self._enrollment.settle(peer.name)
        before = self._peers.find(peer.name)
        if problem := self._problem_of(peer, issued, before, bool(request.get("again"))):
            return {"ok": False, "error": problem}
        given = str(request.get("server") or "")
        remembered = self._state.load_public_addr() if self._state and not self._config.public_addr else ""
        server = given or self._config.public_addr or remembered
        guessed = not server
        try:
            server = invitation.with_port(server or self._likely_address(), self._config.listen_endpoint.port)
        except ValueError as expected:
            return {"ok": False, "error": f"--address: given {server}, expected {expected}"}
        line = invitation.encode(Invitation(server, issued.key, tls.fingerprint, peer.name))
        if before is not None and before.invited is not None:
            self.save(self._invited_again(before.invited, peer))
        else:
            known = registry.known_peer_of(peer, self._config)
            registry.check_distinct([*self._peers.known, known])
            peer_file.write(self._directory, peer, replace=self._peers.is_excluded(peer.name))
            self._peers.add(known)
        self._configure_admission()
        self._events.record("invited", peer.name, f"to {server}")
        return {
            "ok": True,
            "line": line,
            "server": server,
            "certificate": bool(self._config.tls_ca_file),
            "expires": issued.expires,
            "uses": issued.uses,
            "until": peer.until,
            "guessed": guessed,
            "is_private": guessed and _is_private(server),
            "remembered": self._remember_address(given),
        }

    def _problem_of(self, peer: InvitedPeer, issued: Issued, before: KnownPeer | None, again: bool) -> str:
        """Why this peer cannot be invited so; "" if it can. `before`: the peer of this name, if there is one."""
        now = time.time()
        if 0 < peer.until <= now or 0 < issued.expires <= now:
            return "the time that is given is past"
        if issued.uses > 1 and peer.allowed:
            return "an invitation for several machines cannot give them one network: invite each by itself"
        if issued.uses > 1:
            check_peer_name(f"{peer.name}-{issued.uses}")
        for name in self._peers.names():
            if name.lower() != peer.name.lower():
                continue
            if name != peer.name:
                return f'peer "{name}" exists already, too much like {peer.name}; revoke it, or choose another name'
            if before is not None and before.invited is not None and issued.uses == 1:
                if again or self._enrollment.state_of(before.invited, now) == EXPIRED:
                    continue
                return (
                    f'peer "{name}" exists already; revoke it, or choose another name, or invite another machine in '
                    "its place with --again"
                )
            return f'peer "{name}" exists already; revoke it, or choose another name'
        return ""

    def _invited_again(self, before: InvitedPeer, peer: InvitedPeer) -> InvitedPeer:
        """A peer with a new invitation. The machine that it is now stays connected until another one has joined."""
        return peer._replace(
            key=before.key if self._enrollment.has_joined(before) else peer.key,
            allowed=peer.allowed or before.allowed,
            address=before.address,
            rate_mbit=before.rate_mbit if peer.rate_mbit is None else peer.rate_mbit,
            quota_gb=before.quota_gb if peer.quota_gb is None else peer.quota_gb,
            quota_action=before.quota_action,
            quota_rate_mbit=before.quota_rate_mbit,
            until=peer.until or before.until,
        )

    def _withdraw(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take an invitation back. A machine that is the peer already stays."""
        self._enrollment.settle(str(request.get("name")))
        known = self._peers.find(str(request.get("name")))
        if known is None or known.invited is None or not self._enrollment.has_joined(known.invited):
            return self._revoke(request)
        self.save(known.invited._replace(invitation=None))
        self._configure_admission()
        return {"ok": True, "name": known.policy.name, "problems": []}

    def _disable(self, request: dict[str, Any]) -> dict[str, Any]:
        name = self._named(request)
        try:
            self._shut_out.disable(name)
        except TunnelError as error:
            return self._comes_back(name, f"it is disabled again: {error}")
        finally:
            self._configure_admission()
        return {"ok": True, "name": name}

    def _enable(self, request: dict[str, Any]) -> dict[str, Any]:
        """`until`: another end of its time, UNIX time, 0 for none; null leaves it as it is."""
        name, until = self._named(request), request.get("until")
        self._enrollment.settle(name)
        known = self._peers.find(name)
        invited = known.invited if known is not None else None
        if until is not None:
            if invited is None:
                return {"ok": False, "error": f'peer "{name}" has not been invited: it has no end of its time'}
            self.save(peer_file.with_until(invited, until))
        elif invited is not None and 0 < invited.until <= time.time():
            end = in_words(invited.until)
            return {"ok": False, "error": f'the time of peer "{name}" has ended on {end}: give another --until'}
        self._shut_out.enable(name)
        self._configure_admission()
        return {"ok": True, "name": name}

    def _named(self, request: dict[str, Any]) -> str:
        """The peer that a request names. LocalError if there is none."""
        name = str(request.get("name"))
        check_peer_name(name)
        if name in self._peers.names() or (self._admission is not None and self._admission.is_member(name)):
            return name
        raise LocalError(f'no peer "{name}"; known peers: {", ".join(self._peers.names()) or "none"}')

    # -- what Enrollment does with peers

    def is_taken(self, name: str) -> bool:
        return self._peers.has(name) or peer_file.exists(self._directory, name)

    def save(self, peer: InvitedPeer) -> None:
        if self._peers.find(peer.name) is None:
            peer_file.write(self._directory, peer)
        else:
            name = peer.name
            peer_file.update(self._directory, peer, lambda: self._peers.find(name) is not None)
        self._peers.replace(registry.known_peer_of(peer, self._config))

    def admit_as_known(self) -> None:
        self._configure_admission()

    def forget(self, name: str) -> None:
        answer = self._revoke({"name": name}, "it has left")
        if not answer["ok"]:
            raise LocalError(answer["error"])

    def _remember_address(self, given: str) -> bool:
        """Keep the address for the next invitations, unless the configuration has one. Whether it was kept."""
        if not given or self._config.public_addr or self._state is None:
            return False
        try:
            self._state.save_public_addr(given)
        except TunnelError as error:
            LOG.warning("%s", error)
            return False
        return True

    def _revoke(self, request: dict[str, Any], why: str = "asked by the control socket") -> dict[str, Any]:
        """Memory and connections first, which nothing can refuse; then the file; then all else that is wrong."""
        name = str(request.get("name"))
        check_peer_name(name)
        assert self._admission is not None, "there is an admission where there are peers"
        is_member, was_known = self._admission.is_member(name), self._peers.has(name)
        use = self._enrollment.use_of(name)
        others = ", ".join(self._peers.names()) or "none"
        self._peers.exclude(name, is_named_by_client=is_member and self._peers.find(name) is None)
        self._configure_admission()
        if is_member or was_known:
            self._events.record("revoked", name, why)
        unreleased = self._release(name, use)
        try:
            was_there = peer_file.remove(self._directory, name)
        except TunnelError as error:
            return self._comes_back(name, f"its file is removed: {error}")
        if any(peer.name == name for peer in self._config.peers):
            return self._comes_back(name, "you remove it from the configuration too")
        if self._peers.is_named_by_client(name) and not was_there:
            return self._comes_back(name, self._cure_for_names())
        self._peers.forget(name)
        if unreleased:
            return {"ok": False, "error": unreleased}
        if not (is_member or was_known or was_there):
            return {"ok": False, "error": f'no peer "{name}"; known peers: {others}'}
        return {"ok": True, "name": name, "problems": self._find_problems()}

    def _release(self, name: str, use: tuple[InvitedPeer, Issued] | None) -> str:
        """Let nobody use again what a revoked peer has used. Returns the problem, "" for none."""
        try:
            if use is not None:
                self._enrollment.end_use(*use)
            self._shut_out.enable(name)
        except TunnelError as error:
            text = f'peer "{name}" is revoked, but its invitation may be used once more, or its name stays disabled'
            LOG.warning("%s: %s", text, error)
            return f"{text}: {error}"
        return ""

    def _comes_back(self, name: str, unless: str) -> dict[str, Any]:
        error = f'peer "{name}" ends now, but comes back after a restart unless {unless}'
        LOG.warning("%s", error)
        return {"ok": False, "error": error}

    def _cure_for_names(self) -> str:
        """How to keep out a client that neither the configuration nor an invitation names."""
        if self._config.insecure or self._config.encryption == "none":
            return "this server is closed to clients without proof (insecure): each of them chooses its name itself"
        return (
            "each of `peers` has a fingerprint or a certificate_name: as it is, every certificate from tls_ca_file is "
            "admitted under its name"
        )

    def _find_problems(self) -> list[str]:
        """The peers whose files are wrong now, which a reload would tell."""
        try:
            return [str(problem) for _, problem in self._peers.read(self._config).broken]
        except ConfigError as error:
            return [str(error)]

    @property
    def _directory(self) -> Path:
        return Path(self._config.state_dir)

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


def _is_private(server: str) -> bool:
    """Whether only a network of its own reaches this address: RFC 1918, 6598, 4193, and link-local."""
    address = parse_endpoint(server).address
    return address is not None and any(address in network for network in PRIVATE if network.version == address.version)


def _has_lost_a_ca(before: TlsMaterial | None, now: TlsMaterial | None) -> bool:
    """Whether a CA that has vouched for peers does so no more."""
    return bool(_cas(before) - _cas(now))


def _cas(tls: TlsMaterial | None) -> set[str]:
    separator = "-----BEGIN "
    return {block for block in tls.ca_pem.split(separator) if block} if tls is not None else set()
