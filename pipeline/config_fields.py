"""Floor 2. The settings: type, range, default, unit and reason of each, once.

The schema, the reference table, the checks of types and ranges and the texts of errors are made from here.
What needs more than one setting, or more than a range, is in config_checks.

A Config is immutable. Make one with `pipeline.config.parse` or `load`: they check it and fill what depends on
other settings (None here, "derived" in the reference). The constructor does neither.
Secrets live in files of their own; a Config holds their paths, so to print it gives none away.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pipeline.config_values import (
    ENDPOINT_FORM, INTERFACE_FORM, PREFIX_FORM, Endpoint, IPv4Interface, IPv4Network, IPv6Interface,
    IPv6Network, parse_endpoint, parse_interface, parse_prefix,
)

WORKER_KINDS = ("tun", "fec", "tcp")
DEFAULT_TUN_NAME = "tun0"
DEFAULT_SERVER_ADDRESS = "10.0.0.1/24"
TUN_NAME_MAX = 15  # IFNAMSIZ - 1, linux/if.h
PAGE = 4096
DAY = 86400
GIB = 1 << 30

CONNECTIONS_MAX = 32
LIGHT_CONNECTIONS = 3  # two copies beyond the first

SLOT_BYTES = 33 * PAGE  # a page of headers and the largest block that a peer may send, 131072 bytes


def about(text: str, unit: str = "", derived: str = "", live: bool = False) -> Meta:
    """Meaning and reason; the unit; the default in words where it depends; whether a reload can apply it."""
    return Meta(description=text, extra={"unit": unit, "derived": derived, "live": live})


def words(expected: str) -> Meta:
    """What a type accepts, where its range or pattern alone would not tell a person."""
    return Meta(extra={"words": expected})


NAME_FORM = 'letters, digits, "_", "-" or ".", the first neither "-" nor "."'
WORKER_CORES = 'an object of workers and cores, such as {"tun-0": [0], "tcp-0": [1, 2]}'

Seconds = Annotated[float, Meta(ge=0.001, le=DAY)]
SecondsOrZero = Annotated[float, Meta(ge=0, le=DAY)]
Bytes = Annotated[int, Meta(ge=0, le=GIB)]
SmallCount = Annotated[int, Meta(ge=1, le=64)]
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$"), words(f"1 to 32 {NAME_FORM}")]
TunName = Annotated[str, Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$"), words(f"1 to 15 {NAME_FORM}")]
CongestionName = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{0,15}$"), words('a name such as "bbr", or ""')]
EndpointText = Annotated[str, words(ENDPOINT_FORM)]
InterfaceText = Annotated[str, words(INTERFACE_FORM)]
PrefixText = Annotated[str, words(PREFIX_FORM)]
PathText = Annotated[str, words("the path of a file")]
UserName = Annotated[str, words('the name of a system user, or ""')]
Cores = list[Annotated[int, Meta(ge=0, le=4095)]]
CoresOfWorkers = Annotated[dict[str, Cores], words(WORKER_CORES)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of one end of a tunnel."""

    # The two ends
    mode: Annotated[Literal["server", "client"], about(
        "Which end this is: a server listens, a client dials.")]
    name: Annotated[Name | None, about(
        "Name of this instance, by which status, stop and their like find it.", derived="`tun_name`")] = None
    local_addr: Annotated[EndpointText, about(
        "Where a server listens. Without a host, as in `:9000`, on every address, IPv4 and IPv6; port 0 lets "
        "the kernel choose one.")] = "0.0.0.0:9000"
    remote_addr: Annotated[EndpointText, about(
        "The server that a client dials. A host name is looked up again before each attempt. Required for a "
        "client.", live=True)] = ""
    insecure: Annotated[bool, about(
        "Must be written out by a server that others can reach while nothing proves who connects. A wildcard "
        "address counts as reachable. The default makes an open server a decision, not an accident.")] = False
    compat: Annotated[bool, about(
        "Speak the wire format of the original program and nothing else, so that an installation can be "
        "moved one end at a time: one connection, bare packets, no FEC.")] = False

    # TUN device
    tun_name: Annotated[TunName | None, about(
        "Name of the TUN device, at most 15 characters as in every Linux interface name.",
        derived=f"`name` if it is short enough, else `{DEFAULT_TUN_NAME}`")] = None
    tunnel_addr: Annotated[InterfaceText | tuple[InterfaceText, ...] | None, about(
        "Address of this end inside the tunnel with its prefix length, or a list of them, IPv4 and IPv6. "
        "Required for a client.", derived=f"`{DEFAULT_SERVER_ADDRESS}` for a server")] = None
    routes: Annotated[tuple[PrefixText, ...], about(
        "Further networks that are reached through the tunnel; the device's own subnets need none.",
        live=True)] = ()
    mtu: Annotated[int, Meta(ge=68, le=65535), about(
        "MTU of the TUN device; 68 is IPv4's minimum. The default is the original's. A carrier of bytes has "
        "no need of a small one; at least 1280 with IPv6 inside, at most 1495 with `compat`.",
        unit="bytes")] = 1400
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
    encryption: Annotated[Literal["none", "tls"], about(
        "What protects the connections. Only `none` is built so far.")] = "none"
    tls_enabled: Annotated[bool, about(
        "The original's switch for TLS. Only false is built so far.")] = False
    tls_cert_file: Annotated[PathText, about("Path of the certificate, PEM. Used with TLS alone.")] = ""
    tls_key_file: Annotated[PathText, about("Path of the private key, PEM. Used with TLS alone.")] = ""
    tls_skip_verify: Annotated[bool, about(
        "A client accepts any certificate. Used with TLS alone.")] = False

    # Several clients
    multi_client: Annotated[bool | None, about(
        "Serve several clients at once. Only false is built so far: while one is connected, a second is "
        "refused.", derived="false")] = None
    max_clients: Annotated[int, Meta(ge=1, le=65535), about(
        "Clients at once, with `multi_client`. The default is the original's.", unit="clients")] = 100
    client_isolation: Annotated[bool, about(
        "Keep clients from reaching each other, with `multi_client`.")] = False

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
    user: Annotated[UserName, about(
        "System user that the workers become. Only empty, that is no change, is built so far.")] = ""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], about(
        "The least important message that is still written.", live=True)] = "info"
    log_format: Annotated[Literal["text", "json"], about(
        "How messages are written: for people, or one JSON object a line.", live=True)] = "text"

    @property
    def listen_endpoint(self) -> Endpoint:
        """`local_addr` in parts; the host "::" stands for every address, IPv4 and IPv6."""
        return parse_endpoint(self.local_addr)

    @property
    def remote_endpoint(self) -> Endpoint:
        """`remote_addr` in parts; a client's."""
        return parse_endpoint(self.remote_addr)

    @property
    def tunnel_interfaces(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """`tunnel_addr`, parsed."""
        given = self.tunnel_addr or ()
        return tuple(parse_interface(text) for text in ((given,) if isinstance(given, str) else given))

    @property
    def route_prefixes(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`routes`, parsed, without the device's own subnets: the kernel adds those by itself."""
        own = {interface.network for interface in self.tunnel_interfaces}
        return tuple(prefix for prefix in map(parse_prefix, self.routes) if prefix not in own)


FIELDS = {field.name: field for field in msgspec.inspect.type_info(Config).fields}
RELOAD = {name: "live" if field.type.extra["live"] else "restart" for name, field in FIELDS.items()}


def with_derived(config: Config) -> Config:
    """The same configuration with everything filled in that depends on other settings."""
    short = config.name is not None and len(config.name) <= TUN_NAME_MAX
    tun_name = config.tun_name or (config.name if short else DEFAULT_TUN_NAME)
    served = DEFAULT_SERVER_ADDRESS if config.mode == "server" else None
    fec = config.fec or ("off" if config.compat else "auto")
    connections = config.connections or (1 if config.compat else config.lanes)
    if fec != "off" and config.connections is None and not config.compat:
        connections = max(connections, -(-(config.fec_data + config.fec_parity) // max(1, config.fec_parity)))
    light = 0 if fec == "off" or connections == 1 else LIGHT_CONNECTIONS
    return msgspec.structs.replace(
        config,
        fec=fec,
        tun_name=tun_name,
        name=config.name or tun_name,
        tunnel_addr=served if config.tunnel_addr is None else config.tunnel_addr,
        offload=not config.compat if config.offload is None else config.offload,
        connections=min(connections, CONNECTIONS_MAX),
        light_connections=light if config.light_connections is None else config.light_connections,
        multi_client=bool(config.multi_client),
    )


def changes(old: Config, new: Config) -> list[str]:
    """Names of the settings that differ. RELOAD says which of them a running instance can apply."""
    return [name for name in FIELDS if getattr(old, name) != getattr(new, name)]
