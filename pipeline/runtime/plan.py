"""The plan: everything about one run of an instance that its workers need, as data.

Made by `topology`, carried out by the supervisor, read by workers. A worker gets the plan as JSON through a file
descriptor and finds itself in it by its name. This module imports neither msgspec nor numpy: a worker that starts
quickly is a short gap in the traffic.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pipeline.policy.uplink_share import uplink_of
from pipeline.transport.settings import FallbackSettings, TlsMaterial
from pipeline.wire import framing
from pipeline.wire.approach import Proxy
from pipeline.wire.uplink import Uplink


class Reserve(NamedTuple):
    """The server to which a client makes connections that carry nothing yet (pipeline.policy.server_choice)."""

    host: str
    port: int
    session: int  # of its HELLOs
    known_servers: list[str]  # addresses at which this client has found it, the latest first
    is_complete: bool  # it gets all connections; else one


class WorkerSettings(NamedTuple):
    """The part of the configuration that workers need, and what the supervisor has found out for them."""

    # the wire
    compat: bool  # the original program's wire format and nothing else
    mtu: int  # bytes, of the TUN device
    fec: str  # "off", "on" or "auto"
    fec_data: int  # data shards of a full block
    fec_parity: int  # parity shards of a full block, at most

    # rings and queues
    idle: str  # how a duty waits: a key of doorbell.IDLE_SPIN_NS
    hold: float  # seconds that a block waits for a connection before it is dropped
    peer_queue_bytes: int  # bytes of the backlog of one peer
    drain_timeout: float  # seconds that a stop waits for what is on its way

    # connections
    connections: int  # that a client opens
    light_connections: int  # that a client opens besides, for light flows
    timeout: float  # seconds of silence after which a connection is closed
    keepalive: float  # seconds without a frame sent after which a keepalive is
    reconnect_min: float  # seconds; a client's first pause before it dials again
    reconnect_max: float  # seconds; a client's longest pause before it dials again
    congestion: str  # TCP congestion control; "auto": it follows the path; "": the host's choice
    notsent_lowat: int  # bytes, TCP_NOTSENT_LOWAT; 0: the kernel's default
    send_buffer_bytes: int  # SO_SNDBUF; 0: the kernel tunes it
    receive_buffer_bytes: int  # SO_RCVBUF; 0: the kernel tunes it

    # a server's limits
    client_isolation: bool  # clients do not reach each other
    handshake_timeout: float  # seconds from the accepted connection to the end of its handshake
    max_handshakes: int  # handshakes at a time, of all tcp workers together
    max_handshakes_per_address: int  # handshakes at a time of one address
    connects_per_address: int  # new connections a second of one address
    client_subnets: list[
        str
    ]  # with compat and several clients: the device's addresses, whose subnets have the clients'

    # proofs
    tls: TlsMaterial | None  # None: connections are plain TCP
    verifies_keys: bool  # a server asks clients that name a key for a proof
    key_id: str  # the name of a client's key, hexadecimal; "": it has none. The key stays with the supervisor

    # a client's end
    client_id: int  # 64 bits, constant over restarts of this instance on this machine
    session: int  # number of this start, or of this visit to a server; a later one has a higher number
    requested_addresses: list[str]  # tunnel addresses that the client asks for
    remote_host: str  # the server, also behind a proxy; "" at a server
    remote_port: int  # the server's port; 0 at a server
    known_servers: list[str]  # addresses at which this client has found its server or its proxy, the latest first

    # the device and the process
    tun_name: str  # of the TUN device
    offloads: int  # TUN_F_* bits in force on our device
    offloads_accepted: int  # TUN_F_* bits that our device accepts in packets written to it
    account: tuple[int, int] | None  # uid and gid that workers change to; None: they keep the supervisor's
    log_level: str  # a key of log.LEVELS
    log_format: str  # "text" or "json"

    # told to the server
    key_share: str = ""  # of a client, for sealed blocks, hexadecimal
    seals: bool = False  # packets are encrypted by block (pipeline.sealing)
    program: str = ""  # version of a client's program; "": not told. An older supervisor's plan has none
    lanes: int = 1  # of this end
    always_light: str = ""  # rules separated by blanks: pipeline.packet.flow_rules
    always_bulk: str = ""
    always_voice: str = ""
    class_by_dscp: bool = False  # the usual marks count as rules, too
    bulk_rate: int = 0  # bytes a second of the class bulk that this end sends to each peer; 0: no limit
    send_rate: int = 0  # bytes a second that this end sends to each peer; 0: no limit
    dscp_bulk: int = 0  # mark of what is sent on connections for bulk; 0: the host's
    dscp_light: int = 0  # mark of what is sent on connections for light flows; 0: the host's
    multicast_rate: int = 0  # bytes a second of each peer that go to all peers; 0: none
    has_others: bool = False  # a client can go to another server: it looks whether this one is silent
    reserve: Reserve | None = None
    knock_key: str = ""  # of a client with a key, hexadecimal (pipeline.wire.auth)

    noise: bool = False  # sizes of the handshake and times of keepalives are random
    padding: bool = False  # small frames to ends that take padding have few sizes

    # a server that shares its port with a web server
    fallback: FallbackSettings | None = None
    proxies: Sequence[str] = ()  # networks of proxies that speak the PROXY protocol
    bridge_token: str = ""  # hexadecimal: what shows that a connection is of the server's own bridge
    asks_around: bool = False  # of a client with a full tunnel: names are looked up around it, too

    # between a client and its server
    proxy: Proxy | None = None  # with its login; None: the server is dialed itself
    uplinks: Sequence[Uplink] = ()  # interfaces that connections are bound to; none: the routes decide

    carrier: str = "tcp"  # of blocks: "tcp", "udp", or "auto" (pipeline.policy.carrier)
    takes_notes: bool = False  # a client's supervisor does (pipeline.wire.notes)

    @property
    def datagrams(self) -> bool:
        """Whether blocks may travel in datagrams: there are dgram workers then."""
        return self.carrier != "tcp"

    @property
    def takes_datagrams(self) -> bool:
        """Whether a client asks its server for them. They keep no rate that this end has."""
        return self.datagrams and not (self.send_rate or self.bulk_rate)

    @property
    def has_voice(self) -> bool:
        """Whether a packet may be of the class voice."""
        return bool(self.always_voice) or self.class_by_dscp

    @property
    def has_rules(self) -> bool:
        """Whether a packet may be of another class than normal, or always light."""
        return self.has_voice or bool(self.always_light or self.always_bulk)

    @property
    def frame_limit(self) -> int:
        """The longest frame that the other end may send, by its length field."""
        return framing.COMPAT_LENGTH_LIMIT if self.compat else framing.LENGTH_LIMIT

    def uplink_of(self, dial_index: int) -> Uplink | None:
        """The uplink of a dial slot; None: the routes decide."""
        if not self.uplinks:
            return None
        return self.uplinks[uplink_of(dial_index, self.connections, self.lanes, len(self.uplinks))]

    def without_secrets(self) -> WorkerSettings:
        """The settings for a worker that shakes no hands. They lack the private key of the certificate, the key of
        knocks, the login at a proxy and the token of the bridge."""
        return self._replace(tls=None, knock_key="", proxy=None, bridge_token="")

    @classmethod
    def from_json(cls, fields: list[Any]) -> WorkerSettings:
        """The settings again, out of the array that json.dumps makes of them."""
        settings = cls(*fields)
        return settings._replace(
            tls=_tls_from_json(settings.tls) if settings.tls else None,
            fallback=FallbackSettings(*settings.fallback) if settings.fallback else None,
            proxies=tuple(settings.proxies),
            account=(settings.account[0], settings.account[1]) if settings.account else None,
            reserve=Reserve(*settings.reserve) if settings.reserve else None,
            proxy=Proxy(*settings.proxy) if settings.proxy else None,
            uplinks=tuple(Uplink(*each) for each in settings.uplinks),
        )


def _tls_from_json(fields: Iterable[Any]) -> TlsMaterial:
    tls = TlsMaterial(*fields)
    return tls._replace(alpn=tuple(tls.alpn))


class WorkerFds(NamedTuple):
    """The file descriptors that a worker owns from its start; -1: a worker of this kind, or of this end, has none."""

    tun: int = -1  # its queue of the TUN device
    listener: int = -1  # the listening socket
    bridged: int = -1  # the listening socket for the server's own bridge, if it has one
    supervisor: int = -1  # its end of the supervisor channel
    keys: int = -1  # the key table, if blocks are sealed
    windows: int = -1  # the replay windows of its lane
    reach: int = -1  # the rules of reach, if there are peers
    flows: int = -1  # the flows that peers have begun, of all lanes
    datagrams: int = -1  # the UDP socket of its lane, if blocks may travel by UDP
    fake_tcp_tap4: int = -1  # a server's tap of its lane for IPv4, if they may by fake TCP
    fake_tcp_tap6: int = -1  # that for IPv6
    fake_tcp_listener: int = -1  # a server's listening socket of its lane, for handshakes of fake TCP
    fake_tcp_channel: int = -1  # a client's, by which its tap comes (pipeline.runtime.tap_channel)
    datagram_secrets: int = -1  # the table of the secrets for datagrams (pipeline.shm.datagram_secrets)
    datagram_memory: int = -1  # what its lane knows of the paths of each peer


class WorkerPlan(NamedTuple):
    """One worker process."""

    name: str  # of a worker with one duty, such as tun-out-0 and tun-in-0; else tun-0
    kind: str  # tun, fec, dgram or tcp
    lane: int
    page: int  # number of its page on the scoreboard
    doorbells: dict[str, str]  # name of each of its duties: name of the semaphore

    @property
    def duties(self) -> tuple[str, ...]:
        return tuple(self.doorbells)

    @property
    def whole(self) -> str:
        """The name of the worker that has both duties, or would have them."""
        return f"{self.kind}-{self.lane}"


class StageMember(NamedTuple):
    """One visitor of a ring: a duty of a worker."""

    worker: str
    duty: str


class StagePosition(NamedTuple):
    """The position of one member in a ring."""

    number: int  # among all members of the ring: the number of its cursor
    position: int  # among the members of its stage: slots name their consumer by it
    before: list[int]  # numbers of the members of the stage before it
    first: bool  # it belongs to stage 0
    after: list[StageMember]  # members to kick after each advance
    after_rarely: list[StageMember]  # members to kick only when a slot concerns them


class RingPlan(NamedTuple):
    """One ring."""

    name: str
    segment: str
    kind: str
    lane: int
    slots: int
    slot_bytes: int
    stages: list[list[StageMember]]  # in the order in which a slot passes them
    rarely_kicked: list[StageMember]  # members that few slots concern

    @classmethod
    def from_json(cls, fields: list[Any]) -> RingPlan:
        ring = cls(*fields)
        return ring._replace(
            stages=[[StageMember(*member) for member in stage] for stage in ring.stages],
            rarely_kicked=[StageMember(*member) for member in ring.rarely_kicked],
        )

    @property
    def members(self) -> int:
        return sum(len(stage) for stage in self.stages)

    def only_reads(self, member: StageMember) -> bool:
        """Whether this member belongs to the last stage, which writes no slot."""
        return member in self.stages[-1]

    def position_of(self, member: StageMember) -> StagePosition | None:
        """The position of this member, or None if it does not visit this ring."""
        number = 0
        for index, stage in enumerate(self.stages):
            if member in stage:
                position = stage.index(member)
                after = self.stages[(index + 1) % len(self.stages)]
                return StagePosition(
                    number + position,
                    position,
                    self._numbers(index - 1),
                    index == 0,
                    [each for each in after if each not in self.rarely_kicked],
                    [each for each in after if each in self.rarely_kicked],
                )
            number += len(stage)
        return None

    def _numbers(self, stage: int) -> list[int]:
        stage %= len(self.stages)
        first = sum(len(s) for s in self.stages[:stage])
        return list(range(first, first + len(self.stages[stage])))


class PeerTablePlan(NamedTuple):
    """The peer table."""

    segment: str
    capacity: int  # peers that can be connected at a time
    status_rows: int  # connections that a tcp worker can have


class Plan(NamedTuple):
    """One run of one instance."""

    name: str
    run_id: str  # hexadecimal, part of every name in /dev/shm
    mode: str  # server or client
    lanes: int
    scoreboard: str  # name of the segment
    event_log: str  # name of the segment
    overview: str  # name of the segment
    peer_table: PeerTablePlan
    workers: list[WorkerPlan]  # in the order in which they start; they are stopped in reverse
    rings: list[RingPlan]
    settings: WorkerSettings

    def worker(self, name: str) -> WorkerPlan:
        return next(w for w in self.workers if w.name == name)

    def named(self, name: str) -> list[WorkerPlan]:
        """The worker of this name; or both, if it is the name that the worker would have if it were one."""
        return [w for w in self.workers if name in (w.name, w.whole)]

    def workers_of_kind(self, kind: str) -> list[WorkerPlan]:
        return [w for w in self.workers if w.kind == kind]

    def to_json(self) -> str:
        return json.dumps(self)  # named tuples become arrays; from_json gives them their names again

    @classmethod
    def from_json(cls, text: str) -> Plan:
        name, run_id, mode, lanes, scoreboard, event_log, overview, peers, workers, rings, settings = json.loads(text)
        return cls(
            name,
            run_id,
            mode,
            lanes,
            scoreboard,
            event_log,
            overview,
            PeerTablePlan(*peers),
            [WorkerPlan(*each) for each in workers],
            [RingPlan.from_json(each) for each in rings],
            WorkerSettings.from_json(settings),
        )
