"""Admission to a server: the decision about a HELLO, and which sessions may go on.

    handle_hello(request)    a tcp worker's request about a connection; no bytes of a peer make it raise
    judge_knock(request)     with a fallback, before that: whether the client has a key at all
    configure(known)         take over other peers; a peer that is gone, or has another key, loses its connections
    follow_quotas(names)     these peers have used up their quotas, or have new ones
    list_peers(now)          for the command `peers`
    peer_rows()              for the overview

`pipeline.peers.registry` says who a client is, `enrollment` what an invitation gives, `membership` which index and
addresses a peer has, `peer_sessions` which sessions there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from pipeline.config import Config
from pipeline.errors import PeerError
from pipeline.log import LOG, printable
from pipeline.packet.address_pool import is_part_of
from pipeline.packet.route_table import NO_PEER
from pipeline.peers.address_assignment import PeerPolicy, Refusal
from pipeline.peers.dial_slots import Place
from pipeline.peers.enrollment import RECORDED, Answered
from pipeline.peers.membership import Assigned, Member, Membership
from pipeline.peers.peer_datagrams import HAS_RATE, TAKES_NO_DATAGRAMS
from pipeline.peers.peer_sessions import PeerSession, PeerSessions, Seals
from pipeline.peers.peer_status import PeerRow, PeerStatus, PresentSession, describe_peers
from pipeline.peers.quotas import Quotas
from pipeline.peers.registry import ANYBODY, BYTES_PER_MBIT, KnownPeer, PeerRegistry
from pipeline.peers.remembered_addresses import RememberedAddresses
from pipeline.policy.churn_limit import ChurnLimit
from pipeline.policy.targets import ANY
from pipeline.runtime.supervisor_channel import (
    AdmissionRequest,
    Admitted,
    Decision,
    Knocked,
    KnockRequest,
    NotAdmitted,
    Replaced,
    Seal,
)
from pipeline.sealing.session import SealedSession, answer_key_share
from pipeline.shm.peer_table import PeerTable
from pipeline.version import VERSION
from pipeline.wire import auth, messages, noise
from pipeline.wire.messages import (
    QUOTA_USED,
    REASONS,
    SHUT_OUT,
    TOO_MANY_CONNECTIONS,
    TOO_MANY_SESSIONS,
    WRONG_VERSION,
)

DISOWNED = "what it has proved does not make it this peer any more"

LEAVES_DATAGRAMS = "it has a rate now, which its datagrams would not keep: it connects again without them"

UNLIMITED_REACH = (ANY,)
"""`may_reach` of a server that limits nobody."""

SPOKEN = (messages.VERSION, messages.ASKS)  # versions of clients with a key

SESSIONS_AT_ONCE = 10
SESSION_INTERVAL_NS = 1_000_000_000
"""A session costs the supervisor up to 12 ms and each tun worker 3 ms, with 500 peers of 5500 networks. A client that
a service manager starts again and again begins fewer."""


Enroll = Callable[[KnownPeer, bytes, messages.Hello], KnownPeer | Answered | Refusal]
"""The outcome for a client that has proved to have this key of this peer, or of its invitation."""


class AdmissionNews:
    """Calls of the admission to its owner, which may record them."""

    def members_changed(self, config: Config, members: list[Member], handles: Mapping[str, int]) -> None:
        """Where there are rules of reach: the members are others now, or their addresses, or what is configured. Routes
        to them are written behind this. `handles`: of the sessions that there are, by name."""

    def session_ended(self, peer: int, name: str, reason: str) -> None:
        """The server has ended the session of this index."""

    def refused(self, name: str, reason: str, host: str) -> None:
        """A client was refused. `name`: "" for one that has proved nothing; `host`: where it is, or ""."""


class Admission:
    """`save` writes the addresses to be remembered (name -> addresses), TunnelError if it cannot.

    `tell_workers`: called when a connection replaces one at another worker. `enroll`: Enrollment.answer; it may call
    configure(). `began`: called with index and name when a session has got an index, before anything is sent to it.
    """

    def __init__(
        self,
        config: Config,
        table: PeerTable,
        offloads_accepted: int,
        remembered: dict[str, list[str]],
        save: Callable[[dict[str, list[str]]], None],
        tell_workers: Callable[[Replaced], object] = lambda replaced: None,
        enroll: Enroll = lambda known, key, hello: known,
        news: AdmissionNews | None = None,
        quotas: Quotas | None = None,
        began: Callable[[int, str], object] = lambda index, name: None,
        seals: Seals | None = None,
    ) -> None:
        self._enroll = enroll
        self._table = table
        self._sessions = PeerSessions(table, tell_workers, seals)
        self._news = news or AdmissionNews()
        self._quotas = quotas or Quotas()
        self._began = began
        self._remembered = RememberedAddresses(remembered, save)
        self.registry = PeerRegistry(admits_unauthenticated=config.encryption == "none" or config.insecure)
        interfaces = config.tunnel_interfaces
        if config.encryption == "none" and not config.multi_client:
            self._membership = Membership.for_one_client(interfaces)
        else:
            self._membership = Membership(interfaces, table.capacity, remembered)
        self._offloads_accepted = offloads_accepted
        self._churn = ChurnLimit(SESSIONS_AT_ONCE, SESSION_INTERVAL_NS)
        self.changes = 0  # of peer_rows()
        self._policies: dict[str, PeerPolicy] = {}  # of the peers that are configured
        self.config = config
        table.write_total_rate(_total_rate(config))
        self._has_rules = config.may_reach != UNLIMITED_REACH
        self._publish_routes()

    def configure(
        self,
        config: Config,
        known: Iterable[KnownPeer],
        barred: Iterable[str] = (),
        shut_out: Mapping[str, str] | None = None,
        ended: Mapping[bytes, str] | None = None,
    ) -> None:
        """Take over a configuration. Sessions end at once whose proof is good no longer, or whose peer is shut out.

        `barred`, `shut_out`, `ended`: see PeerRegistry.
        """
        self.config = config
        self._table.write_total_rate(_total_rate(config))
        self.registry.replace(known, barred, shut_out, ended)
        had_rules = self._has_rules
        self._has_rules = config.may_reach != UNLIMITED_REACH or any(
            each.policy.groups or each.policy.may_reach is not None for each in self.registry.known
        )
        if had_rules and not self._has_rules:
            self._news.members_changed(config, [], {})
        self._apply(
            {
                each.name: self.registry.shut_out.get(each.name, DISOWNED)
                for _, each in self._sessions.all()
                if not self.registry.recognizes(each.name, each.key, each.certificate)
            }
        )

    def end_certified(self) -> None:
        """End all sessions that were begun with a certificate: who vouches for it has changed."""
        self._apply({each.name: DISOWNED for _, each in self._sessions.all() if each.certificate})

    def _apply(self, disowned: Mapping[str, str]) -> None:
        """End the sessions of these peers, and of those that lose an address or are peers no more; publish the rest."""
        ended = self._membership.configure((each.policy for each in self.registry.known), disowned)
        for peer, refusal in ended.items():
            peer_session = self._sessions.find(peer)
            name = peer_session.name if peer_session else str(peer)
            LOG.info("peer %s: session ended: %s", name, refusal.text)
            self._news.session_ended(peer, name, refusal.text)
            self._sessions.end(peer)
        self._policies = {each.policy.name: each.policy for each in self.registry.known}
        self.follow_quotas({each.name for _, each in self._sessions.all()})
        self._publish_routes()

    def follow_quotas(self, names: set[str]) -> None:
        """End the sessions of those peers that have used up their quotas, and give the others their rates.

        A session ends as well if it uses datagrams and gets a rate: the client has to learn that from a WELCOME.
        """
        self.changes += bool(names)
        for peer, peer_session in self._sessions.all():
            name = peer_session.name
            if name not in names:
                continue
            reason = self._quotas.refusal(name)
            if not reason and self._sessions.uses_datagrams(peer) and self._has_rate(name):
                reason = LEAVES_DATAGRAMS
            if reason:
                LOG.warning("peer %s: session ended: %s", name, reason)
                self._news.session_ended(peer, name, reason)
                self._sessions.end(peer)
            else:
                self._write_rates(peer, name)

    def _write_rates(self, peer: int, name: str) -> None:
        policy = self._policy_of(name)
        self._sessions.write_rates(peer, self._quotas.rate(name, policy.rate), policy.bulk_rate)
        self._sessions.use_datagrams(peer, not self._has_rate(name))

    def _policy_of(self, name: str) -> PeerPolicy:
        return self._policies.get(name) or PeerPolicy(name)

    def keeps_count(self, name: str) -> bool:
        """Whether packets of this peer have to pass here: for its rate, or its quota."""
        return self._has_rate(name) or bool(self._quotas.terms(name).limit)

    def sessions(self, peers: Iterable[int] | None = None) -> list[PeerSession]:
        """Those whose blocks may travel in datagrams: of these peers, or of all."""
        found = self._sessions.all() if peers is None else [(each, self._sessions.find(each)) for each in peers]
        return [each for peer, each in found if each is not None and self._sessions.uses_datagrams(peer)]

    def routes(self) -> list[tuple[bytes, int, int]]:
        """Each with the index of its peer."""
        return self._membership.routes()

    def _has_rate(self, name: str) -> bool:
        """Whether there is a rate for this peer: connections alone keep it."""
        policy = self._policy_of(name)
        bulk_rate = self.config.bulk_rate_mbit if policy.bulk_rate is None else policy.bulk_rate
        return bool(self._quotas.rate(name, policy.rate) or bulk_rate) or self.config.has_rate_of_connections

    def tick(self, now: int) -> None:
        """Call often: what could not be saved is saved again, and epochs go on."""
        self._remembered.tick(now)
        self.changes += self._sessions.tick(now)

    # -- requests of tcp workers

    def judge_knock(self, request: KnockRequest) -> Knocked:
        """Whether the HELLO of a client has the knock of a key that is known."""
        hello = messages.decode(bytes.fromhex(request["knock"]))
        if not isinstance(hello, messages.Hello):
            raise PeerError("expected a HELLO, found another message of the handshake")
        return Knocked(serial=request["serial"], is_right=self.registry.knows(hello, bytes.fromhex(request["binding"])))

    def handle_hello(self, request: AdmissionRequest) -> Decision:
        """Admit a connection or refuse it. Bytes in a request are a peer's, and hexadecimal."""
        place = self._place_of(request)
        name, decision = self._decide(request, place)
        if isinstance(decision, Answered):
            return NotAdmitted(
                serial=request["serial"],
                frame=decision.done.frame().hex(),
                reason=printable(decision.text),
                name=printable(name),
            )
        if isinstance(decision, Refusal):
            if decision.reason not in RECORDED:  # an event of the enrollment
                self._news.refused(name, decision.text, str(request.get("address", "")))
            frame = messages.Refused(decision.reason, decision.text).frame() if decision.reason else b""
            return NotAdmitted(
                serial=request["serial"],
                frame=frame.hex(),
                reason=printable(decision.text),
                name=printable(name),
            )
        assigned, welcome = decision
        admitted = Admitted(
            serial=request["serial"],
            frame=welcome.hex(),
            peer_handle=self._sessions.handle_of(assigned.peer),
            name=printable(name),
        )
        if sealed := self._sealed(assigned):
            admitted["seal"] = _seal_of(sealed, request, welcome)
        return admitted

    def _sealed(self, assigned: Assigned) -> SealedSession | None:
        peer_session = self._sessions.find(assigned.peer)
        return peer_session.sealed if peer_session is not None else None

    def _place_of(self, request: AdmissionRequest) -> Place:
        """ValueError if there is no such worker, or no such number."""
        lane, serial = request["lane"], request["serial"]
        if type(lane) is not int or type(serial) is not int or lane not in range(len(self._table.links)):
            raise ValueError(f"lane {lane!r}, serial {serial!r}: expected two numbers, the first of a worker")
        return Place(lane, serial)

    def _decide(
        self, request: AdmissionRequest, place: Place
    ) -> tuple[str, Refusal | Answered | tuple[Assigned, bytes]]:
        """The name of the peer, and the refusal, the answer or the WELCOME frame.

        Reason 0 is for a client that has proved nothing: it gets no answer, and has no name.
        """
        hello_frame = bytes.fromhex(request["hello"])
        hello = messages.decode(hello_frame)
        if not isinstance(hello, messages.Hello):
            raise PeerError("expected a HELLO, found another message of the handshake")
        known, key, transcript = self._identify(request, hello_frame, hello)
        if known is None:
            return "", Refusal(0, "has not proved to be a peer")
        name = known.policy.name
        if hello.version not in (SPOKEN if key else (messages.VERSION,)):
            return name, Refusal(WRONG_VERSION, REASONS[WRONG_VERSION])
        if name in self.registry.shut_out and known.is_meant_by(key):
            return name, Refusal(SHUT_OUT, self.registry.shut_out[name])
        enrolled = self._enrolled(known, key, hello)
        if isinstance(enrolled, Answered):
            mac = auth.done_proof(key, transcript, enrolled.done.frame())
            return name, enrolled._replace(done=enrolled.done._replace(mac=mac))
        if isinstance(enrolled, Refusal):
            return name, enrolled
        known = enrolled
        if self._sessions.lacks_key_share(hello):
            return name, Refusal(WRONG_VERSION, REASONS[WRONG_VERSION])
        certificate = b"" if key else bytes.fromhex(request["certificate"])
        assigned = self._admit(known, certificate, hello, place)
        if isinstance(assigned, Refusal):
            return name, assigned
        lane = hello.lane % len(self._table.links)  # that lane of ours answers which the client sends to
        welcome = self._welcome(known.policy, assigned)._replace(lane=lane)
        if sealed := self._sealed(assigned):
            welcome = welcome._replace(key_share=answer_key_share(sealed, bytes.fromhex(request["certificate"])).pack())
        if transcript or request["certificate"]:
            welcome = welcome._replace(program=VERSION, clock=int(time.time()))
        if transcript:
            welcome = welcome._replace(mac=auth.server_proof(known.key, transcript, welcome.frame()))
        return name, (assigned, welcome.frame())

    def _enrolled(self, known: KnownPeer, key: bytes, hello: messages.Hello) -> KnownPeer | Answered | Refusal:
        if not key:
            return known
        if hello.version == messages.ASKS and key in (known.key, known.invitation_key):
            return Answered(messages.Done(), "it asks whether it is known")
        return self._enroll(known, key, hello)

    def _identify(
        self, request: AdmissionRequest, hello_frame: bytes, hello: messages.Hello
    ) -> tuple[KnownPeer | None, bytes, bytes]:
        """The peer that the client has proved to be, None for none. With a key: that key, and the transcript."""
        challenge = bytes.fromhex(request["challenge"])
        if challenge:
            transcript = auth.transcript(hello_frame, challenge, bytes.fromhex(request["hash"]))
            known, key = self.registry.by_key(hello, transcript, bytes.fromhex(request["proof"])) or (None, b"")
            return known, key, transcript
        if request["certificate"]:
            return self.registry.by_certificate(bytes.fromhex(request["certificate"])), b"", b""
        return self.registry.unauthenticated(hello), b"", b""

    def _welcome(self, policy: PeerPolicy, assigned: Assigned) -> messages.Welcome:
        config, ports = self.config, self._sessions.datagram_ports(assigned.peer)
        return messages.Welcome(
            messages.VERSION,
            self._offloads_accepted,
            config.mtu,
            messages.features(config.fec != "off"),
            addresses=assigned.addresses,
            routes=tuple(
                route
                for route in config.push_prefixes
                if not any(is_part_of(route, network) for network in policy.allowed)
            ),
            dns=config.push_dns_addresses,
            datagram_port=ports.udp,
            fake_tcp_port=ports.fake_tcp,
            padding=noise.padding(noise.IN_OTHERS) if config.noise else b"",
        )

    def _admit(self, known: KnownPeer, certificate: bytes, hello: messages.Hello, place: Place) -> Refusal | Assigned:
        policy, sessions = known.policy, self._sessions
        if refusal := self._quotas.refusal(policy.name):
            return Refusal(QUOTA_USED, refusal)
        now = time.monotonic_ns()
        known_as = next((peer for peer, _ in sessions.all() if sessions.has(peer, policy.name, hello)), None)
        if known_as is None and not self._churn.has_room(policy.name, now):
            return Refusal(TOO_MANY_SESSIONS, REASONS[TOO_MANY_SESSIONS])
        goes_on = known_as is not None and sessions.goes_on(known_as, policy.name, hello, now)
        try:
            sealed = None if goes_on else sessions.answer_offer(known, hello)
        except PeerError as error:
            return Refusal(0, str(error))
        assigned = self._membership.admit(
            policy, hello.session, hello.requested_addresses, lambda peer: sessions.is_connected(peer, now)
        )
        if isinstance(assigned, Refusal):
            return assigned
        peer, limit = assigned.peer, self.config.max_connections_per_client  # the index stays: a member keeps its own
        if goes_on and not sessions.has_room(peer, hello.connection_index, limit, now):
            return Refusal(TOO_MANY_CONNECTIONS, REASONS[TOO_MANY_CONNECTIONS])
        sessions.admitted(peer, now)
        if not goes_on:
            self._start_session(peer, known, certificate, hello, sealed, now)
        sessions.take_slot(peer, hello.connection_index, place, now)
        return assigned

    def _start_session(
        self,
        peer: int,
        known: KnownPeer,
        certificate: bytes,
        hello: messages.Hello,
        sealed: SealedSession | None,
        now: int,
    ) -> None:
        name = known.policy.name
        self._churn.record(name, now)
        self._sessions.start(peer, known, certificate, hello, sealed, now)
        self._began(peer, name)
        self._publish_routes()  # before the peer handle: packets with that handle come afterwards
        self._write_rates(peer, name)
        self._remembered.update(self._membership.remembered, now)

    def _publish_routes(self) -> None:
        """Called after each change of the peers, too."""
        self.changes += 1
        self._membership.has_multicast = self.config.multicast_kbit > 0
        if self._has_rules:
            handles = {each.name: each.peer_handle for _, each in self._sessions.all()}
            self._news.members_changed(self.config, self._membership.list_members(), handles)
        self._sessions.publish_routes(self._membership.routes())

    # -- for people

    def members(self) -> list[Member]:
        """Every peer that is configured or a member, by name."""
        return self._membership.list_members()

    def is_member(self, name: str) -> bool:
        """Whether the peer has been admitted, and has lost its index to no other since."""
        return any(member.policy.name == name for member in self._membership.list_members() if member.peer != NO_PEER)

    def name_session(self, peer: int) -> PresentSession | None:
        """None if no peer has a session under this index."""
        peer_session = self._sessions.find(peer)
        if peer_session is None:
            return None
        addresses = self._membership.remembered.get(peer_session.name, ())
        return PresentSession(peer_session.name, ", ".join(map(str, addresses)), peer_session.session)

    def named_addresses(self) -> dict[str, list[str]]:
        """The addresses of every peer that is configured or a member, by its name; not of one that proves nothing."""
        return {
            member.policy.name: list(map(str, member.addresses))
            for member in self._membership.list_members()
            if member.addresses and not member.policy.name.startswith(ANYBODY)
        }

    def peer_rows(self) -> list[PeerRow]:
        """Every peer that is configured or a member, by name."""
        return [self._row(member) for member in self._membership.list_members()]

    def list_peers(self, now: int) -> list[PeerStatus]:
        """The same with the traffic of this moment."""
        return self.describe(self.peer_rows(), now)

    def describe(self, rows: Iterable[PeerRow], now: int) -> list[PeerStatus]:
        """Rows with the traffic of this moment."""
        return describe_peers(rows, self._table, now)

    def _row(self, member: Member) -> PeerRow:
        policy = member.policy
        peer_session = self._sessions.find(member.peer)
        row = peer_session.row if peer_session is not None else PeerRow(policy.name)
        if peer_session is not None and peer_session.sealed is not None:
            row = row.sealed_by(peer_session.sealed)
        if peer_session is not None and self._table.datagrams_in:
            row = row._replace(carrier=self.config.carrier, no_datagrams=self._why_no_datagrams(peer_session))
        return row._replace(
            addresses=tuple(map(str, member.addresses)),
            allowed=tuple(map(str, policy.allowed)),
            rate_mbit=policy.rate / BYTES_PER_MBIT,
            bulk_rate_mbit=self.config.bulk_rate_mbit
            if policy.bulk_rate is None
            else policy.bulk_rate / BYTES_PER_MBIT,
            quota_bytes=self._quotas.terms(policy.name).limit,
            quota_used_bytes=self._quotas.used(policy.name),
            quota_state=self._quotas.state(policy.name),
            groups=policy.groups,
        )

    def _why_no_datagrams(self, peer_session: PeerSession) -> str:
        """Empty if blocks of this session may travel in datagrams."""
        if not peer_session.takes_datagrams:
            return TAKES_NO_DATAGRAMS
        return HAS_RATE if self._has_rate(peer_session.name) else ""


def _total_rate(config: Config) -> int:
    return int(config.total_rate_mbit * BYTES_PER_MBIT)


def _seal_of(session: SealedSession, request: AdmissionRequest, welcome: bytes) -> Seal:
    """The secrets of a connection, for its worker."""
    hello, challenge, server_hash = (bytes.fromhex(request[name]) for name in ("hello", "challenge", "hash"))
    suite, send, receive = session.connection_secrets(hello, challenge, welcome, server_hash)
    return Seal(suite=suite, send=send.hex(), receive=receive.hex())
