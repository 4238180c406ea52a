"""The settings: type, range, default, unit and reason of each, once.

The schema, the reference table, the checks of types and ranges and the texts of errors are made from here.
What needs more than one setting, or more than a range, is in config_checks and config_trust.

A Config is immutable. Make one with `pipeline.config.parse` or `load`: they check it and fill what depends on
other settings (None here, "derived" in the reference). The constructor does neither.
Secrets live in files of their own; a Config holds their paths, so to print it gives none away.
"""

from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pipeline.config.peer import Peer
from pipeline.config.types import (
    GIB,
    PEER_FORM,
    Bytes,
    CongestionName,
    CoresOfWorkers,
    DirectoryText,
    EndpointOrNone,
    EndpointText,
    FingerprintText,
    HostText,
    Limit,
    Mbit,
    Name,
    OwnAddresses,
    PathText,
    PrefixText,
    Seconds,
    SecondsOrZero,
    SmallCount,
    TunName,
    UserName,
    about,
    words,
)
from pipeline.config.values import Endpoint, parse_endpoint, parse_fingerprint, parse_interface, parse_prefix

WORKER_KINDS = ("tun", "fec", "tcp")
AUTO = "auto"
DEFAULT_TUN_NAME = "tun0"
DEFAULT_SERVER_ADDRESS = "10.0.0.1/24"
STATE_DIRECTORY = "/var/lib/tunnel-supervisor"  # file-hierarchy(7)
PAGE = 4096
SLOT_BYTES = 33 * PAGE  # a page of headers and the largest block that a peer may send, 131072 bytes


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of one end of a tunnel."""

    # fmt: off
    # The two ends
    mode: Annotated[Literal["server", "client"], about(
        "Which end this is: a server listens, a client dials.")]
    name: Annotated[Name | None, about(
        "Name of this instance, by which status, stop and their like find it.", derived="`tun_name`")] = None
    local_addr: Annotated[EndpointText, about(
        "Where a server listens. Without a host, as in `:9000`, on every address, IPv4 and IPv6; port 0 lets "
        "the kernel choose one.")] = "0.0.0.0:9000"
    remote_addr: Annotated[EndpointOrNone, about(
        "The server that a client dials. A host name is looked up again before each attempt. Required for a "
        "client.", live=True)] = ""
    public_addr: Annotated[EndpointOrNone, about(
        "Where clients reach this server from outside; `invite` tells them.", live=True)] = ""
    insecure: Annotated[bool, about(
        "Let in whoever connects, without a proof of who it is. A server that others can reach, as on a wildcard "
        "address, has to say so where nothing can be proved: with `encryption` `none` and with `compat`.")] = False
    compat: Annotated[bool, about(
        "Speak the wire format of the original program and nothing else, so that an installation can be "
        "moved one end at a time: one connection, bare packets, no FEC, no keys.")] = False

    # TUN device
    tun_name: Annotated[TunName | None, about(
        "Name of the TUN device, at most 15 characters as in every Linux interface name.",
        derived=f"`name` if it is short enough, else `{DEFAULT_TUN_NAME}`")] = None
    tunnel_addr: Annotated[OwnAddresses, about(
        "Address of this end inside the tunnel with its prefix length, or a list of them, IPv4 and IPv6. A client "
        "with `auto` gets its addresses from the server, the same ones each time; with `compat` it must have some of "
        "its own.", derived=f"`{DEFAULT_SERVER_ADDRESS}` for a server, `{AUTO}` for a client")] = None
    routes: Annotated[tuple[PrefixText, ...], about(
        "Further networks that are reached through the tunnel; the device's own subnets need none.",
        live=True)] = ()
    mtu: Annotated[int, Meta(ge=68, le=65535), about(
        "MTU of the TUN device; 68 is IPv4's minimum. The default is the original's. A carrier of bytes has "
        "no need of a small one; at least 1280 with IPv6 inside, at most 1495 with `compat`.",
        unit="bytes")] = 1400
    mss_clamp: Annotated[bool, about(
        "Keep the segments of TCP connections that this machine forwards through the tunnel within its MTU (by "
        "nftables), whatever becomes of the ICMP messages that would tell their ends.")] = True
    offload: Annotated[bool | None, about(
        "Let the kernel hand over TCP super-packets of up to 64 KiB and unfinished checksums: many times the "
        "throughput. Off, every packet is a plain one.", derived="true; false with `compat`")] = None
    send_queue_size: Annotated[int, Meta(ge=1, le=1_000_000), about(
        "Packets that wait in the kernel for the tunnel: the device's txqueuelen. The default is the "
        "original's.", unit="packets")] = 1000
    recv_queue_size: Annotated[int, Meta(ge=0, le=1_000_000), about(
        "Accepted because the original had it, without effect: inbound there is backpressure, not a queue.",
        unit="packets")] = 1000

    # Workers and rings
    lanes: Annotated[SmallCount, about(
        "Complete pipelines side by side, each with a TUN queue and workers of its own; a flow stays in one. "
        "More of them are for machines with a group of cores for each; the default is the least.")] = 1
    affinity: Annotated[Literal["auto", "none"] | CoresOfWorkers, about(
        "Which cores a worker may use. `auto` gives each one of its own, physical cores first, if there are "
        "enough of them, and else leaves all to the kernel; `none` does that always; an object gives some "
        "workers their cores, and the others are placed as with `auto`.")] = "auto"
    idle: Annotated[Literal["block", "spin-then-block", "spin"], about(
        "How a worker waits when there is nothing to do. Spinning saves a wake-up per hop and burns the core "
        "it runs on; the default costs nothing while idle.", live=True)] = "block"
    ring_slots: Annotated[Literal[4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096], about(
        "Slots of each ring. A power of two, so that a slot's place survives the wrap of the cursors at "
        "2^64. What waits in them under load is latency; the default is 4.3 MB a ring.", unit="slots")] = 32
    slot_bytes: Annotated[int, Meta(ge=SLOT_BYTES, le=1 << 22, multiple_of=PAGE), about(
        "Size of a slot, in whole pages. The default, which is the least, holds a page of headers and the "
        "largest block that a peer may send: 131072 bytes, 64 KiB and room for one super-packet more.",
        unit="bytes")] = SLOT_BYTES
    hold: Annotated[SecondsOrZero, about(
        "How long a block waits for a connection before it is dropped and counted. The default bridges a "
        "quick reconnect; what waits longer, the inner TCP has sent again.", unit="seconds")] = 2.0

    # Connections
    connections: Annotated[SmallCount | None, about(
        "TCP connections that a client opens. Without FEC each lane, of either end, stays on one of them; with it "
        "the shards of a block are spread over all. The default is enough of them that the stall or loss of any one "
        "costs nothing.",
        derived="`lanes`, 1 with `compat`; with FEC at least (`fec_data` + `fec_parity`) / `fec_parity`")] = None
    light_connections: Annotated[Annotated[int, Meta(ge=0, le=8)] | None, about(
        "Further connections for the packets of flows that send little, so that they never wait behind a bulk "
        "transfer. With FEC such a packet goes out on up to three of them at once. 0: they share the others.",
        derived="3 with FEC and more than one connection, else 0")] = None
    timeout: Annotated[Seconds, about(
        "A connection that has heard nothing for this long is dead and closed. The default is the "
        "original's.", unit="seconds", live=True)] = 30.0
    keepalive: Annotated[Seconds, about(
        "A connection that has sent nothing for this long sends a keepalive. Less than `timeout`; the "
        "default gives a peer three chances.", unit="seconds", live=True)] = 10.0
    reconnect_min: Annotated[Seconds, about(
        "A client's first pause before it dials again; it doubles, with jitter, up to `reconnect_max`. The "
        "default is back at once when a server was only restarted.", unit="seconds", live=True)] = 0.1
    reconnect_max: Annotated[Seconds, about(
        "A client's longest pause before it dials again. It never gives up; the default finds a server "
        "within seconds of its return.", unit="seconds", live=True)] = 10.0
    congestion: Annotated[CongestionName, about(
        "TCP congestion control of the connections, such as `bbr`. Empty: the kernel's choice.",
        live=True)] = ""
    notsent_lowat: Annotated[Bytes, about(
        "TCP_NOTSENT_LOWAT: bytes that may wait unsent in a connection's socket. What waits there is "
        "latency; the default is two full blocks. 0: the kernel's default.",
        unit="bytes", live=True)] = 131072
    send_buffer_bytes: Annotated[Bytes, about(
        "SO_SNDBUF of the connections. 0 leaves it to the kernel, which tunes it; any other value ends that.",
        unit="bytes", live=True)] = 0
    receive_buffer_bytes: Annotated[Bytes, about(
        "SO_RCVBUF of the connections. 0 leaves it to the kernel, which tunes it; any other value ends that.",
        unit="bytes", live=True)] = 0

    # Forward error correction
    fec: Annotated[Literal["off", "on", "auto"] | None, about(
        "Forward error correction: blocks are cut into shards that travel over several connections, with parity. "
        "`on`: always; `auto`: as much parity as the stalls of the connections call for, none on a good path.",
        derived="`auto`; `off` with `compat`")] = None
    fec_data: Annotated[int, Meta(ge=1, le=37), about(
        "Data shards of a full block. The code is proved for up to 37; the default is the original's.")] = 10
    fec_parity: Annotated[int, Meta(ge=0, le=6), about(
        "Parity shards of a full block: as many losses can be recovered. The code is proved for up to 6; the "
        "default is the original's.")] = 3

    # Encryption
    encryption: Annotated[Literal["tls", "none"] | None, about(
        "What protects the connections. Plaintext has to be written out: with `none` whoever is on the way reads and "
        "changes what he likes, and nothing proves who the other end is.",
        derived="`tls`; `none` with `compat`")] = None
    tls_enabled: Annotated[bool | None, about(
        "The original's switch for TLS. It has to agree with `encryption`, and with `compat` it decides that.",
        derived="true with `tls`, else false")] = None
    key_file: Annotated[PathText, about(
        "Path of the file with a client's key, as `genkey` makes it, readable by its owner alone. The server has the "
        "same one for this peer. It proves each end to the other, whatever certificate the server has.")] = ""
    tls_cert_file: Annotated[PathText, about(
        "Path of this end's certificate, PEM, those of intermediate CAs behind it. A server without one makes its own "
        "at its first start and keeps it in `state_dir`; a client needs one if the server knows it by certificate.",
        live=True)] = ""
    tls_key_file: Annotated[PathText, about(
        "Path of the private key of `tls_cert_file`, PEM, readable by its owner alone.", live=True)] = ""
    tls_ca_file: Annotated[PathText, about(
        "Path of the certificates of the CAs, PEM, that the other end's must come from. With it a server knows peers "
        "by their certificates; if none of `peers` says which, whoever has one is let in under the name in it. A "
        "client without it, without `key_file` and without `tls_fingerprint` takes the system's CAs.",
        live=True)] = ""
    tls_server_name: Annotated[HostText | None, about(
        "The name or address that a client expects in the server's certificate, where a CA decides.",
        derived="host of `remote_addr`", live=True)] = None
    tls_fingerprint: Annotated[FingerprintText, about(
        "SHA-256 of the server's certificate; a client accepts this one and no other.")] = ""
    tls_skip_verify: Annotated[bool, about(
        "A client accepts any certificate. With `key_file` the server still has to prove itself.")] = False
    tls_min_version: Annotated[Literal["1.3", "1.2"], about(
        "The oldest version of TLS that is spoken. Both ends know the newest; `1.2` is for what does not, between "
        "them or with `compat`.")] = "1.3"

    # Clients of a server
    peers: Annotated[tuple[Annotated[Peer, words(PEER_FORM)], ...], about(
        "Who may connect, and with which networks: see below. Those that `invite` has added are not in this file and "
        "count as well.", live=True)] = ()
    multi_client: Annotated[bool | None, about(
        "Serve several clients at once. False: while one is connected, a second is refused.",
        derived="true with `tls`; false with `none` or `compat`")] = None
    max_clients: Annotated[int, Meta(ge=1, le=4096), about(
        "Clients at once, with `multi_client`. The default is the original's.", unit="clients")] = 100
    client_isolation: Annotated[bool, about(
        "Keep clients from reaching each other, with `multi_client`.", live=True)] = False
    push_routes: Annotated[tuple[PrefixText, ...], about(
        "Networks that clients are told to reach through the tunnel; each without those behind itself.",
        live=True)] = ()
    rate_mbit: Annotated[Mbit, about(
        "Limit of what each client sends and of what it receives, each, where its peer has none of its own; 0 for "
        "none.", unit="Mbit/s", live=True)] = 0.0

    # Limits of a server
    max_handshakes: Annotated[Limit, about(
        "Connections at a time that have proved nothing yet: what strangers can take. One more is closed at once.",
        unit="connections", live=True)] = 64
    max_handshakes_per_address: Annotated[Limit, about(
        "The same of one address (IPv6: of one /64), so that nobody takes all of them. With several `lanes` each `tcp` "
        "worker takes so many, but at most a quarter of its part of `max_handshakes`.",
        unit="connections", live=True)] = 4
    connects_per_address: Annotated[Limit, about(
        "New connections a second of one address (IPv6: of one /64). The default is two clients that come back at "
        "the same time.", unit="connections a second", live=True)] = 20
    handshake_timeout: Annotated[Seconds, about(
        "From the accepted connection to the proof, TLS and all; then it is closed. The default is many round trips of "
        "a bad path.", unit="seconds", live=True)] = 10.0
    max_connections_per_client: Annotated[Limit, about(
        "Connections of one client. The default is more than any opens that is not told to.",
        unit="connections", live=True)] = 40
    peer_queue_bytes: Annotated[int, Meta(ge=SLOT_BYTES, le=GIB), about(
        "What waits in a tcp worker for one client that reads slowly; more is dropped and counted, so that it costs "
        "the others nothing. The least is a block, the default 84 ms at 100 Mbit/s.",
        unit="bytes", live=True)] = 1 << 20

    # Supervision
    restart_intensity: Annotated[int, Meta(ge=0, le=1000), about(
        "Restarts of one worker that are borne within `restart_period`; one more and the instance ends. The "
        "default bears a burst, not a loop.", live=True)] = 10
    restart_period: Annotated[Seconds, about(
        "The time in which restarts are counted.", unit="seconds", live=True)] = 30.0
    heartbeat_timeout: Annotated[Seconds, about(
        "A worker whose data loop gives no sign of life for this long is killed and started anew. The "
        "default is far above the pauses of a loop that lives.", unit="seconds", live=True)] = 5.0
    drain_timeout: Annotated[SecondsOrZero, about(
        "How long a stop waits for what is on its way. The default keeps a stop short.",
        unit="seconds", live=True)] = 2.0
    user: Annotated[UserName | None, about(
        "System user that the workers become, once all that needs rights is open. Empty: `tunnel` or `nobody`, if "
        "there is such a user and the right to become it. `root`: they stay root, without capabilities.",
        derived='`""`')] = None
    state_dir: Annotated[DirectoryText | None, about(
        "Directory of what outlives a restart, of mode 0700: the certificate that a server has made for itself, which "
        "peer has which address, whom `invite` has added.",
        derived=f"`{STATE_DIRECTORY}/` and `name`")] = None
    log_level: Annotated[Literal["debug", "info", "warning", "error"], about(
        "The least important message that is still written.", live=True)] = "info"
    log_format: Annotated[Literal["text", "json"], about(
        "How messages are written: for people, or one JSON object a line.", live=True)] = "text"
    # fmt: on

    @property
    def listen_endpoint(self) -> Endpoint:
        """`local_addr` in parts; the host "::" stands for every address, IPv4 and IPv6."""
        return parse_endpoint(self.local_addr)

    @property
    def remote_endpoint(self) -> Endpoint:
        """`remote_addr` in parts; a client's."""
        return parse_endpoint(self.remote_addr)

    @property
    def server_certificate_hash(self) -> bytes:
        """`tls_fingerprint`, 32 bytes; empty if there is none."""
        return parse_fingerprint(self.tls_fingerprint) if self.tls_fingerprint else b""

    @property
    def tunnel_interfaces(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """`tunnel_addr`, parsed; empty if it is "auto"."""
        given = self.tunnel_addr or ()
        if given == AUTO:
            return ()
        return tuple(parse_interface(text) for text in ((given,) if isinstance(given, str) else given))

    @property
    def route_prefixes(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`routes`, parsed, without the device's own subnets: the kernel adds those by itself."""
        own = {interface.network for interface in self.tunnel_interfaces}
        return tuple(prefix for prefix in map(parse_prefix, self.routes) if prefix not in own)

    @property
    def push_prefixes(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`push_routes`, parsed."""
        return tuple(map(parse_prefix, self.push_routes))

    @property
    def has_ipv6_inside(self) -> bool:
        """Whether this end knows that there are IPv6 packets in the tunnel."""
        behind = [prefix for peer in self.peers for prefix in peer.prefixes]
        inside = (*self.tunnel_interfaces, *self.route_prefixes, *self.push_prefixes, *behind)
        return any(value.version == 6 for value in inside)


FIELDS = {field.name: field for field in msgspec.inspect.type_info(Config).fields}
RELOAD = {name: "live" if field.type.extra["live"] else "restart" for name, field in FIELDS.items()}


def changes(old: Config, new: Config) -> list[str]:
    """Names of the settings that differ. RELOAD says which of them a running instance can apply."""
    return [name for name in FIELDS if getattr(old, name) != getattr(new, name)]
