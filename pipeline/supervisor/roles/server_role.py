"""The server's part of the supervisor: its state directory, its credentials, its account, and who is asked about peers.

    start(table, device)      write the peer table
    expect(settings)          nothing
    tick(now)                 what could not be saved is saved again
    prepare_reload(config)    load everything that a configuration names, the credentials; raises, and changes nothing
    apply_reload()            use what was prepared; the peers that have changed
    status()                  the account: the command `peers` tells of the peers
    answer_request(request)   of a tcp worker: may this client connect?
    run_command(request)      the commands about peers, of the control socket; None for any other
    take_back(request)        undo a command whose answer did not arrive

Which peers are known and may connect is in `server_peers`; what commands do with them in `peer_commands`.

With compat nothing says who a client is. A hub gives each connection an index, and learns its addresses
(pipeline.peers.compat_admission). A server of one client has no admission: every connection is one of peer 0, and all
packets go there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pipeline.config import Config
from pipeline.credentials import tls_settings
from pipeline.credentials.certificates import CertificatePair
from pipeline.credentials.state_dir import StateDir
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.errors import PeerError
from pipeline.log import LOG
from pipeline.observe.snapshot import SCHEMA_VERSION
from pipeline.peers.admission import Admission, AdmissionNews
from pipeline.peers.compat_admission import CompatAdmission
from pipeline.peers.known_peers import PeerChanges
from pipeline.peers.membership import Member
from pipeline.peers.peer_sessions import SAME_PORT, DatagramPorts, Seals
from pipeline.peers.peer_status import PeerRow, PeerStatus, PresentSession, unsealed
from pipeline.peers.registry import Loaded
from pipeline.peers.sealed_sessions import SealedSessions
from pipeline.policy.carrier_order import Kind
from pipeline.policy.reach_words import Explained
from pipeline.runtime.plan import WorkerSettings
from pipeline.runtime.supervisor_channel import (
    AddressClaim,
    AdmissionRequest,
    Answer,
    Doubted,
    EndReport,
    KnockRequest,
    NoteReport,
    Replaced,
    SendNote,
)
from pipeline.shm.datagram_secrets import DatagramSecretTable
from pipeline.shm.key_table import KeyTable
from pipeline.shm.layout import PEER_INDEX_MASK
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.accounting.accountant import Accountant
from pipeline.supervisor.control.control_socket import PEER_COMMANDS
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.kernel.datagram_carriers import DatagramCarriers
from pipeline.supervisor.kernel.reach_guard import ReachGuard
from pipeline.supervisor.kernel.tun_device import TunDevice
from pipeline.supervisor.roles.client_sealing import preferred_suite
from pipeline.supervisor.roles.client_watch import ClientWatch
from pipeline.supervisor.roles.datagram_watch import DatagramWatch
from pipeline.supervisor.roles.direct_hub import DirectHub
from pipeline.supervisor.roles.hosts_file import HostsFile
from pipeline.supervisor.roles.introductions import Introductions
from pipeline.supervisor.roles.invitations import Invitations
from pipeline.supervisor.roles.only_peer import write_only_peer
from pipeline.supervisor.roles.peer_commands import PeerCommands
from pipeline.supervisor.roles.peer_reach import PeerReach
from pipeline.supervisor.roles.peer_rows import complete_rows, connected_first
from pipeline.supervisor.roles.peer_watch import PeerWatch
from pipeline.supervisor.roles.server_peers import ServerPeers
from pipeline.supervisor.run.reach_memory import ReachMemory
from pipeline.transport.address import plain_host
from pipeline.transport.settings import TlsMaterial
from pipeline.wire import messages

SHOWS_NS = 500_000_000  # a connection that is admitted shows in the peer table well before
COMPAT_CLIENTS = "(clients)"
"""The name for the account of all clients of the original program: nothing says who each of them is."""

NAMELESS = "compat is true: the original program's wire format does not say who a client is"


class ServerRole(AdmissionNews):
    """`credentials` and `capacity` (peers that can be connected at a time) go into the plan."""

    known_servers: ClassVar[list[str]] = []
    key_share: ClassVar[str] = ""
    server: ClassVar[str] = ""
    tell_workers: Callable[[Replaced | Doubted | SendNote], object]  # once there are workers
    _client_watch: ClientWatch  # from start() on
    _datagram_watch: DatagramWatch  # from start() on

    def __init__(self, config: Config, events: Events | None = None) -> None:
        self._events = events or Events()
        self._config = config
        self.accountant = Accountant(config, self._events.record)
        remembers = config.multi_client and not config.compat
        self._state = StateDir(config.state_dir) if config.encryption == "tls" or remembers else None
        self.capacity = config.max_clients if config.multi_client else 1
        self.credentials: TlsSettings = tls_settings.load(config, lambda: self._server_certificate(make=True))
        self._peers = ServerPeers(config, self._state, self.accountant, self._events)
        self._hosts_file = HostsFile(config)
        self._reach = PeerReach(config, self._events)
        invitations = Invitations(
            *(self._peers, self._state, lambda: self.credentials.tls, self._events, self._reach.about_invited)
        )
        self._commands = PeerCommands(self._peers, invitations, self._describe, self._explain)
        self._introductions = Introductions(self._events)
        self._peer_watch: PeerWatch | None = None  # from start() on
        self._admission: Admission | None = None
        self._compat_admission: CompatAdmission | None = None
        self._events.subscribe(lambda event: self._peer_watch.note(event) if self._peer_watch is not None else None)
        self._keys: KeyTable | None = None
        self._datagrams: DatagramSecretTable | None = None
        self._datagram_ports = DatagramPorts()
        self._table: PeerTable | None = None  # from start() on
        # Clients that can go to another server, by peer index: the handle, and until when no connection need show.
        self._movers: dict[int, tuple[int, int]] = {}

    def use_keys(
        self,
        keys: KeyTable,
        datagrams: DatagramSecretTable | None = None,
        carriers: DatagramCarriers | None = None,
    ) -> None:
        """Blocks are sealed, with keys in this table. `datagrams`: for their secrets, where blocks travel in them;
        `carriers`: the sockets of these."""
        self._keys = keys
        self._datagrams = datagrams
        if carriers is not None:
            udp = SAME_PORT if Kind.UDP in carriers.kinds else None
            self._datagram_ports = DatagramPorts(udp, carriers.fake_tcp_port)

    def with_servers(self, settings: WorkerSettings) -> WorkerSettings:
        return settings

    def use_reach(self, guard: ReachGuard, memory: ReachMemory) -> None:
        """Rules of reach are enforced there: in the kernel, and by tun workers."""
        self._reach.use(guard, memory)

    def start(self, table: PeerTable, device: TunDevice) -> None:
        self._table = table
        self._client_watch = ClientWatch(table, device)
        if self._peer_watch is not None:
            self._peer_watch.leave_all("the shared memory is made anew")
        self._peer_watch = PeerWatch(table, self._events, self._name_session)
        self._datagram_watch = DatagramWatch(table, self._events, self._name_of, self._config.carrier)
        self._introductions.tell_workers = lambda note: self.tell_workers(note)
        self._introductions.start(table)
        self._peers.configure_quotas()
        self.accountant.start(table)
        if self._config.compat:
            self._start_compat(table)
        else:
            self._start_admission(table, device)

    def _start_compat(self, table: PeerTable) -> None:
        for index in range(self.capacity):
            self.accountant.begin(index, COMPAT_CLIENTS)
        if self._config.multi_client:
            self._compat_admission = CompatAdmission(self._config, table, lambda doubted: self.tell_workers(doubted))
        else:
            write_only_peer(table)

    def _start_admission(self, table: PeerTable, device: TunDevice) -> None:
        if self._state:
            self._state.make_peers()
            self._state.remove_unfinished()
        self._admission = Admission(
            self._config,
            table,
            device.accepted,
            self._state.load_addresses() if self._state else {},
            self._state.save_addresses if self._state else lambda addresses: None,
            lambda replaced: self.tell_workers(replaced),
            lambda known, key, hello: self._peers.enrollment.answer(known, key, hello, time.time()),
            self,
            quotas=self.accountant.quotas,
            began=self.accountant.begin,
            seals=self._seals(table),
        )
        self._peers.start(self._admission, device.know_peers)
        nobody = not (self._peers.known.known or self._config.insecure or self._config.tls_ca_file)
        if self._config.encryption == "tls" and nobody:
            LOG.info("no peer can connect yet: add one with `tunnel-supervisor invite NAME`")

    def _seals(self, table: PeerTable) -> Seals | None:
        if self._keys is None:
            return None
        return Seals(SealedSessions(self._keys, table, self._datagrams), preferred_suite(), self._datagram_ports)

    def expect(self, settings: WorkerSettings) -> None:
        """The workers of a server send no HELLO."""

    def tick(self, now: int) -> None:
        self._client_watch.tick(now, has_routes=bool(self._config.routes), proxies=self._config.proxy_protocol_from)
        if self._peer_watch is not None:
            self._peer_watch.tick(now)
            self._datagram_watch.tick(now)
        changed = self.accountant.tick(now)
        if self._admission is not None:
            self._admission.tick(now)
            self._admission.follow_quotas(changed)
            self._peers.tick(now)
            self._hosts_file.tick(now, self.peers_version, self._admission.named_addresses)
            self._reach.tick(now)
            if (hub := self._direct_hub()) is not None:
                self._introductions.tick(hub, now)

    def _direct_hub(self) -> DirectHub | None:
        """For direct paths between clients; None where there are none."""
        table = self._table
        if self._config.direct == "off" or self._admission is None or table is None or not table.datagrams_in:
            return None
        return DirectHub(self._config, self._admission, self._reach)

    @property
    def problems(self) -> list[str]:
        """Of peers whose file or settings cannot be used."""
        return [str(problem) for _, problem in self._peers.known.broken]

    def status(self) -> dict[str, Any]:
        """For `status`: this end is the server."""
        notes = [*self.accountant.notes, *self._hosts_file.notes, *self._reach.notes]
        direct = self._introductions.rows(time.monotonic_ns()) if self._config.direct == "auto" else None
        return {"server": None, "notes": notes, "accounting": self.accountant.status(), "direct": direct}

    def _server_certificate(self, make: bool) -> CertificatePair:
        assert self._state is not None, "with encryption there is a state directory"
        return self._state.server_certificate(self._config.name, make=make)

    # -- reload

    def prepare_reload(self, config: Config) -> TlsSettings:
        loaded = tls_settings.load(config, lambda: self._server_certificate(make=False))
        peers = Loaded([], [], set()) if config.compat else self._peers.known.read(config)
        self._prepared = config, loaded, peers
        return loaded

    def apply_reload(self) -> PeerChanges:
        before = self.credentials.tls
        self._config, self.credentials, loaded = self._prepared
        self._reach.configure(self._config)
        changes = self._peers.reload(self._config, loaded)
        self._hosts_file.configure(self._config)
        if self._compat_admission is not None:
            self._compat_admission.configure(self._config)
        if self._admission is not None and _has_lost_a_ca(before, self.credentials.tls):
            self._admission.end_certified()
        return changes

    # -- peers, for observers

    @property
    def peers_version(self) -> int:
        """Another number after each event, since some changes come with time: an invitation ends."""
        admissions = (self._admission, self._compat_admission)
        return self._events.count + self._reach.changes + sum(each.changes for each in admissions if each is not None)

    def peer_rows(self) -> list[PeerRow]:
        """Every peer that is known or connected: those with a session first, then by name."""
        if self._compat_admission is not None:
            return self._compat_admission.peer_rows()
        if self._admission is None:
            return [PeerRow("client", peer=0, encryption=unsealed(self._config.encryption))]
        return connected_first(self._reach.complete(complete_rows(self._admission.peer_rows(), self._peers)))

    def _describe(self, now: int) -> list[PeerStatus]:
        """For the command `peers`, by name."""
        assert self._admission is not None, "there is an admission where there are peers"
        rows = self._reach.complete(complete_rows(self._admission.peer_rows(), self._peers))
        return self._admission.describe(rows, now)

    def _explain(self, name: str, target: str) -> Explained:
        """For the command `explain`: whether a peer may reach a target."""
        assert self._admission is not None, "there is an admission where there are peers"
        return self._reach.explain(self._admission.members(), name, target)

    def _name_session(self, peer: int) -> PresentSession | None:
        if self._compat_admission is not None:
            return self._compat_admission.name_session(peer)
        return self._admission.name_session(peer) if self._admission is not None else PresentSession("client")

    def _name_of(self, peer: int) -> str:
        found = self._name_session(peer)
        return found.name if found is not None else ""

    # -- news of the admission

    def members_changed(self, config: Config, members: list[Member], handles: Mapping[str, int]) -> None:
        self._reach.follow(config, members, handles)

    def session_ended(self, peer: int, name: str, reason: str) -> None:
        if self._peer_watch is not None:
            self._peer_watch.session_ended(peer, reason)

    def refused(self, name: str, reason: str, host: str) -> None:
        where = f" (from {plain_host(host)})" if host and name else ""
        self._events.record("refused" if name else "unproved", name, f"{reason}{where}")

    # -- requests and commands

    def answer_request(
        self, request: AdmissionRequest | KnockRequest | AddressClaim | EndReport | NoteReport
    ) -> Answer | None:
        if "heard" in request:
            self._hear(request)
            return None
        if "ended" in request:
            if self._peer_watch is not None:
                self._peer_watch.ended(request["ended"], request["reason"])
            return None
        if "knock" in request:
            return self._admission.judge_knock(request) if self._admission is not None else None
        if self._compat_admission is not None:
            return self._compat_admission.handle_request(request)
        if self._admission is None or "claim" in request:
            return None
        answer = self._admission.handle_hello(request)
        if answer is not None and "peer_handle" in answer:
            hello = messages.decode(bytes.fromhex(request["hello"]))
            index = answer["peer_handle"] & PEER_INDEX_MASK
            if isinstance(hello, messages.Hello) and hello.moves:
                self._movers[index] = answer["peer_handle"], time.monotonic_ns() + SHOWS_NS
            else:
                self._movers.pop(index, None)
        return answer

    def _hear(self, request: NoteReport) -> None:
        """A note that makes no sense is the client's fault, and not the worker's."""
        hub = self._direct_hub()
        try:
            if hub is not None:
                self._introductions.heard(request, hub, time.monotonic_ns())
        except PeerError as error:
            LOG.debug("a note of a client: %s", error)

    @property
    def movers(self) -> int:
        """How many clients are connected that can go to another server."""
        table, now = self._table, time.monotonic_ns()
        if table is None:
            return 0
        return sum(
            table.peer_handle(index) == handle and (table.established_count(index) > 0 or now < shows_ns)
            for index, (handle, shows_ns) in self._movers.items()
        )

    def run_command(self, request: dict[str, Any]) -> dict[str, Any] | None:
        command = request.get("command")
        if command not in PEER_COMMANDS:
            return None
        if self._compat_admission is not None and command == "peers":
            peers = self._compat_admission.list_peers(time.monotonic_ns())
            return {"ok": True, "schema_version": SCHEMA_VERSION, "peers": peers}
        if self._admission is None:
            return {"ok": False, "error": NAMELESS}
        return self._commands.run(command, request)

    def take_back(self, request: dict[str, Any]) -> None:
        """Undo a command whose answer has not arrived."""
        self._commands.take_back(request)


def _has_lost_a_ca(before: TlsMaterial | None, now: TlsMaterial | None) -> bool:
    """Whether a CA that has vouched for peers does so no more."""
    return bool(_cas(before) - _cas(now))


def _cas(tls: TlsMaterial | None) -> set[str]:
    separator = "-----BEGIN "
    return {block for block in tls.ca_pem.split(separator) if block} if tls is not None else set()
