"""The client's part of the supervisor: its credentials, the proofs, and what follows from the server's WELCOME.

    start(table, device)      write the peer table: the server is the only peer
    expect(settings)          the settings that tcp workers have from now on, and so the HELLOs that they send
    tick(now)                 give the device what a WELCOME has brought
    prepare_reload(config)    load everything that a configuration names, the credentials; raises, and changes nothing
    apply_reload()            use what was prepared; a client has no peers that change
    answer_request(request)   of a tcp worker: a proof for the server, a verdict on the server's WELCOME; or it reports
                              trouble with the server
    status()                  the server and the trouble with it; what its WELCOME has that does not fit
    take_back(request)        nothing
    run_command(request)      refuses the commands of a server; None for any other

With a key, a WELCOME counts only if it has the server's proof (`prover`). Without one, a tcp worker is believed: TLS is
there, and has verified the server.

With tunnel_addr "auto" the device gets the addresses of the WELCOME. Its routes are added to the configured ones, as
far as accept_routes and the rules of `pipeline.policy.reconcile` admit them. Every WELCOME is compared with the kernel,
so what was impossible at an earlier one is tried again.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

from pipeline.config import Config
from pipeline.config.schema import AUTO
from pipeline.credentials import tls_settings
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.peers.known_peers import PeerChanges
from pipeline.peers.peer_datagrams import OWN_RATE, TAKES_NO_DATAGRAMS
from pipeline.peers.peer_status import PeerRow, unsealed
from pipeline.policy.carrier_order import KINDS, Kind
from pipeline.policy.direct_pairs import PARTNERS_MAX
from pipeline.runtime.plan import WorkerSettings
from pipeline.runtime.supervisor_channel import (
    NoteReport,
    OwnProof,
    ProofRequest,
    SendNote,
    ServerFound,
    TroubleReport,
    Verdict,
    VisitsReport,
    WelcomeReport,
)
from pipeline.shm.datagram_secrets import DatagramSecretTable, DatagramServer
from pipeline.shm.key_table import KeyTable
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.accounting.accountant import Accountant
from pipeline.supervisor.control.control_socket import PEER_COMMANDS
from pipeline.supervisor.control.events import Events
from pipeline.supervisor.kernel.datagram_carriers import DatagramCarriers
from pipeline.supervisor.kernel.tun_device import TunDevice
from pipeline.supervisor.roles.client_sealing import ClientSealing
from pipeline.supervisor.roles.client_servers import ClientServers
from pipeline.supervisor.roles.datagram_watch import DatagramWatch
from pipeline.supervisor.roles.only_peer import write_only_peer
from pipeline.supervisor.roles.partners import Partners
from pipeline.supervisor.roles.prover import Prover
from pipeline.supervisor.roles.server_facts import ServerFacts
from pipeline.supervisor.roles.server_trouble import ServerTrouble
from pipeline.supervisor.roles.server_watch import ServerWatch
from pipeline.wire import messages
from pipeline.wire.notes import Place

ADDRESS_LENGTH_MAX = 64  # of IPv6 with its zone, the name of a device: 39 + 1 + 15
NEWS_MAX = 256  # WELCOMEs that wait for the next tick, of all workers: four full turns of the channels


class ClientRole:
    """`credentials` and `capacity` (peers that can be connected at a time) go into the plan.

    `key`: the client's key from an invitation; b"": the key in `key_file`, if that is set.
    """

    movers = 0
    problems: tuple[str, ...] = ()
    _device: TunDevice  # from start() on
    _datagram_watch: DatagramWatch  # from start() on
    tell_workers: Callable[[SendNote], object]  # once there are workers
    _prover: Prover | None  # from expect() on; None without a key

    def __init__(self, config: Config, key: bytes = b"", events: Events | None = None) -> None:
        self._events = events or Events()
        self._config = config
        self.accountant = Accountant(config, self._events.record)
        self._key = key
        self.credentials: TlsSettings = tls_settings.load(config, key=key)
        self._trouble = ServerTrouble(config.named_uplinks)
        self._sealing: ClientSealing | None = None
        self._carriers: DatagramCarriers | None = None
        self._watch: ServerWatch | None = None  # from start() on
        self._events.subscribe(lambda event: self._watch.note(event) if self._watch is not None else None)
        self._facts = ServerFacts()
        self._notes: list[str] = []  # about the last WELCOME
        self._news: deque[tuple[messages.Welcome, str]] = deque(maxlen=NEWS_MAX)  # with the address of the server
        self._applied: tuple[object, ...] = ()  # addresses, routes and server of the last WELCOME
        self._servers = ClientServers(config, self._events.record)
        self._in_reserve: tuple[int, messages.Welcome, str] | None = None  # the last WELCOME of a server to come
        self.capacity = 1 + (PARTNERS_MAX if config.direct == "auto" else 0)
        self._partners = Partners(self._events, self._own_places) if self.capacity > 1 else None
        self._server_address = ""  # of the last WELCOME

    def use_keys(
        self,
        keys: KeyTable,
        datagrams: DatagramSecretTable | None = None,
        carriers: DatagramCarriers | None = None,
    ) -> None:
        """Blocks are sealed, with keys in this table. `datagrams`: for their secrets, where blocks travel in them;
        `carriers`: the sockets of these."""
        self._sealing = ClientSealing(keys, datagrams)
        self._carriers = carriers

    def _own_places(self) -> list[Place]:
        if self._carriers is None or not self._server_address:
            return []
        return [Place(*place) for place in self._carriers.places_towards(self._server_address)]

    @property
    def key_share(self) -> str:
        """For the HELLO, hexadecimal."""
        return self._sealing.key_share.hex() if self._sealing is not None else ""

    def start(self, table: PeerTable, device: TunDevice) -> None:
        self._device = device
        if self._sealing is not None:
            self._sealing.start(table, time.monotonic_ns())
            if self._partners is not None:
                self._partners.tell_workers = lambda note: self.tell_workers(note)
                self._partners.start(table, self._sealing.sessions)
        else:
            write_only_peer(table)
        self.accountant.start(table)
        self.accountant.begin(0, self._servers.present.host)
        self._watch = ServerWatch(table, self._events, self._watch)
        self._datagram_watch = DatagramWatch(
            table, self._events, lambda peer: "" if peer else self._servers.present.host, self._config.carrier
        )

    @property
    def known_servers(self) -> list[str]:
        """Addresses that the present server's name has led to, the latest first."""
        return self._servers.known

    @property
    def server(self) -> str:
        """HOST:PORT of the present server."""
        return str(self._servers.present)

    def with_servers(self, settings: WorkerSettings) -> WorkerSettings:
        return self._servers.with_servers(settings)

    def expect(self, settings: WorkerSettings) -> None:
        self._settings = settings
        if self._sealing is not None:
            self._sealing.follow(settings, time.monotonic_ns())
        key = self.credentials.key
        is_offered = self._sealing.is_offered if self._sealing is not None else None
        self._prover = Prover(key, settings, is_offered) if key else None

    def tick(self, now: int) -> None:
        if (move := self._servers.step(now)) is not None:
            self.accountant.begin(0, move.visit.server.host)
            if self._in_reserve is not None and self._in_reserve[0] == move.visit.number:
                self._accept(*self._in_reserve[1:])
            self._in_reserve = None
        while self._news:
            self._take(*self._news.popleft())
        self.accountant.tick(now)
        if self._sealing is not None:
            self._sealing.tick(now)
            if self._partners is not None:
                self._partners.tick(self._sealing.hub, now)
            if self._carriers is not None:
                self._carriers.lead_to(self._sealing.datagram_server)
        if self._watch is not None:
            self._watch.tick(now)
            self._datagram_watch.tick(now)

    def prepare_reload(self, config: Config) -> TlsSettings:
        self._prepared = config, tls_settings.load(config, key=self._key)
        return self._prepared[1]

    def apply_reload(self) -> PeerChanges:
        before = self._config
        self._config, self.credentials = self._prepared
        self._servers.reload(self._config)
        if self._config.named_uplinks != before.named_uplinks:
            self._trouble = ServerTrouble(self._config.named_uplinks)  # workers are replaced, and report anew
        if self._config.remote_addr != before.remote_addr:
            self.accountant.begin(0, self._servers.present.host)
        return PeerChanges()

    @property
    def peers_version(self) -> int:
        return hash(tuple(self.peer_rows()))

    def peer_rows(self) -> list[PeerRow]:
        """The server is the one peer."""
        since_ns = self._watch.since_ns if self._watch is not None else 0
        row = PeerRow(self._servers.present.host, peer=0, since_ns=since_ns)
        if self._sealing is not None and self._sealing.session is not None:
            return [self._with_carrier(row.sealed_by(self._sealing.session), self._sealing)]
        return [row._replace(encryption=unsealed(self._config.encryption))]

    def _with_carrier(self, row: PeerRow, sealing: ClientSealing) -> PeerRow:
        if not sealing.has_dgram_workers:
            return row
        why = "" if sealing.has_datagrams else TAKES_NO_DATAGRAMS
        if self._config.has_rate_of_connections:
            why = OWN_RATE
        return row._replace(carrier=self._config.carrier, no_datagrams=why)

    def status(self) -> dict[str, Any]:
        """For `status`."""
        trouble = self._trouble.status(self._config, self._servers.present)
        server = trouble | self._facts.status() | self._servers.status()
        notes = [*self._notes, *self._facts.notes, *self._servers.notes, *self.accountant.notes]
        direct = self._partners.rows(time.monotonic_ns()) if self._partners is not None else None
        return {"server": server, "notes": notes, "accounting": self.accountant.status(), "direct": direct}

    def answer_request(
        self, request: ProofRequest | WelcomeReport | ServerFound | TroubleReport | VisitsReport | NoteReport
    ) -> OwnProof | Verdict | None:
        if "heard" in request:
            if self._partners is not None and self._sealing is not None:
                self._partners.heard(request, self._sealing.hub, time.monotonic_ns())
            return None
        if "trouble" in request:
            self._trouble.take(request, self._config.lanes)
            if self._watch is not None:
                self._watch.trouble(*self._trouble.reasons, self._servers.present.host)
            return None
        if "visits" in request:
            self._servers.take(request, self._config.lanes)
            return None
        if "found" in request:
            if self._config.compat:
                self._servers.remember(self._servers.present.host, _address(request["found"]))
            return None
        now = time.monotonic_ns()
        if "welcome" not in request:
            return self._prover.prove(request, now) if self._prover is not None else None
        return self._judge(request, now)

    def _judge(self, request: WelcomeReport, now: int) -> Verdict | None:
        verdict = self._prover.judge(request, now) if self._prover is not None else None
        if verdict is None or not verdict["distrust"]:
            welcome = messages.decode(bytes.fromhex(request["welcome"]))
            if isinstance(welcome, messages.Welcome):
                server, number = _address(request["server"]), self._number_in(request)
                if self._sealing is not None:
                    verdict = self._seal(self._sealing, request, welcome, now)
                    if verdict["distrust"]:
                        return verdict
                    self._sealing.use_datagrams(number, self._datagram_server(welcome, server, number))
                self._servers.remember(self._servers.server_of(number).host, server)
                if self._servers.is_present(number):
                    self._accept(welcome, server)
                else:
                    self._in_reserve = number, welcome, server
        return verdict

    def _accept(self, welcome: messages.Welcome, server: str) -> None:
        """The present server has sent this: what it has for us is given to the device at the next tick."""
        self._facts.take(welcome, time.time())
        self._server_address = server
        self._news.append((welcome, server))

    def _number_in(self, request: WelcomeReport) -> int:
        """The session number of our HELLO; that of the present visit if the report does not have the HELLO."""
        hello = messages.decode(bytes.fromhex(request["hello"])) if request["hello"] else None
        return hello.session if isinstance(hello, messages.Hello) else self._settings.session

    def _seal(self, sealing: ClientSealing, request: WelcomeReport, welcome: messages.Welcome, now: int) -> Verdict:
        seal, distrust = sealing.take(request, welcome.key_share, self.credentials.key, self._settings, now)
        verdict = Verdict(serial=request["serial"], distrust=distrust)
        if seal is not None:
            verdict["seal"] = seal
        return verdict

    def _datagram_server(self, welcome: messages.Welcome, server: str, number: int) -> DatagramServer | None:
        """Where datagrams go; None if the ends have none of a kind in common."""
        kinds = self._carriers.kinds if self._carriers is not None else KINDS[self._settings.carrier]
        if not self._settings.takes_datagrams:
            return None
        udp = fake_tcp = 0
        if Kind.UDP in kinds and welcome.datagram_port is not None:
            udp = welcome.datagram_port or self._servers.server_of(number).port
        if Kind.FAKE_TCP in kinds:
            fake_tcp = welcome.fake_tcp_port
        if not (udp or fake_tcp):
            return None
        host, _, zone = server.partition("%")
        return DatagramServer.at(host, udp, _number_of_interface(zone), fake_tcp)

    def _take(self, welcome: messages.Welcome, server: str) -> None:
        news = welcome.addresses, welcome.routes, server, welcome.dns
        if news == self._applied:
            self._device.look_soon()
            return
        auto = self._config.tunnel_addr == AUTO
        try:
            addresses = welcome.addresses if auto else ()
            there = self._device.take_from_server(addresses, welcome.routes, server, welcome.dns)
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

    def take_back(self, request: dict[str, Any]) -> None:
        """No command of a client's has an answer that must arrive."""

    def run_command(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if request.get("command") in PEER_COMMANDS:
            return {"ok": False, "error": "this instance is a client: only a server has peers"}
        return None


def _address(server: object) -> str:
    """An address of the server, as a worker names it. ValueError for anything else: it goes to other workers."""
    text = str(server)
    if len(text) > ADDRESS_LENGTH_MAX:
        raise ValueError(f"address of {len(text)} characters")
    return str(ip_address(text))


def _number_of_interface(zone: str) -> int:
    """`zone`: of a link-local address, the name or the number of its interface; 0 if there is none."""
    try:
        return int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    except OSError:
        return 0


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values)) or "none"
