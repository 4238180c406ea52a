"""The settings: type, range, default, unit and reason of each, once.

The schema, the reference table, the checks of types and ranges, and the texts of errors are made from this table.
Rules between settings are in `checks` and `security_checks`.

    PartialConfig    as given: None where a setting is left out whose default depends on others ("derived")
    Config           complete: what `pipeline.config.load` and `parse` return, and every other module works with

Both are immutable. Their constructors check nothing. Secrets live in files of their own: a Config holds paths, so a
printed Config gives no secret away.
"""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pipeline.config import proxy_url
from pipeline.config.peer import Peer
from pipeline.config.setting import settings_of
from pipeline.config.types import (
    GIB,
    PEER_FORM,
    AddressText,
    AlpnNames,
    Bytes,
    CongestionName,
    ConnectionCount,
    CoresOfWorkers,
    DirectoryText,
    DomainText,
    Dscp,
    EndpointOrNone,
    EndpointText,
    FieldName,
    FingerprintText,
    FlowRuleText,
    Gigabytes,
    Groups,
    HookCommand,
    Hooks,
    HostText,
    LaneCount,
    Limit,
    LocalEndpoint,
    Mbit,
    Name,
    OwnAddresses,
    PathText,
    PrefixText,
    ProxyText,
    PublicAddresses,
    Remotes,
    Seconds,
    SecondsOrZero,
    SlowMbit,
    SplitKinds,
    TargetText,
    TunName,
    UserName,
    WebSocketPath,
    WebSocketText,
    about,
    accepts,
)
from pipeline.config.uplink_entry import BACKUP, UplinkEntry, Uplinks
from pipeline.config.values import (
    PORT_MAX,
    Endpoint,
    SrvName,
    parse_address,
    parse_endpoint,
    parse_fingerprint,
    parse_interface,
    parse_prefix,
    parse_remote,
)
from pipeline.shm.layout import PAGE
from pipeline.wire.approach import Proxy
from pipeline.wire.uplink import Uplink
from pipeline.wire.websocket_url import WebSocketUrl

WORKER_KINDS = ("tun", "fec", "dgram", "tcp")
AUTO = "auto"
PUSHED = "pushed"
UNTIL_DOWN = "until-down"
DEFAULT_TUN_NAME = "tun0"
LOOPBACK = "127.0.0.1"
DEFAULT_SERVER_ADDRESS = "10.0.0.1/24"
STATE_DIRECTORY = "/var/lib/tunnel-supervisor"  # file-hierarchy(7)
QUEUE_PACKETS_MOST = 1 << 19  # pointers in one allocation: KMALLOC_MAX_SIZE, linux/ptr_ring.h
SLOT_BYTES = 33 * PAGE  # a page of headers and the largest block that a peer may send, 131072 bytes


class PartialConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of one end of a tunnel."""

    # fmt: off
    # The two ends
    mode: Annotated[Literal["server", "client"], about(
        "Which end of the tunnel this is. A server listens; a client dials.")]
    name: Annotated[Name | None, about(
        "Name of this instance. `status`, `stop` and the other commands find the instance by it.",
        derived="`tun_name`")] = None
    local_addr: Annotated[EndpointText, about(
        "Address on which a server listens. Without a host, as in `:9000`, the server listens on every address, IPv4 "
        "and IPv6; with `0.0.0.0:9000` on every IPv4 address. With port 0 the kernel chooses the port.")] = ":9000"
    remote_addr: Annotated[Remotes, about(
        "Address of the server that a client dials; required for a client. A host name is resolved again for new "
        "attempts; of its addresses, the one that worked last is tried first. A link-local address has its interface "
        "behind it, as in [fe80::1%eth0]:9000. An array names several servers, the preferred one first: the client is "
        "at one of them, and goes to the next when it has to (docs/servers.md). `srv:NAME` stands for the servers that "
        "the SRV records of NAME list.", live=True)] = ""
    prefer: Annotated[Literal["first", "current"], about(
        "Which of several servers a client returns to. `first`: to the one that comes first in `remote_addr`, once it "
        "is there again. `current`: it stays where it is, until it has to go.", live=True)] = "first"
    home_after: Annotated[Seconds, about(
        "Time for which a client stays at another server before it returns to the preferred one. The time doubles each "
        "time that the preferred one has not lasted.", unit="seconds", live=True)] = 60.0
    standby: Annotated[bool, about(
        "With several servers: keep one idle connection, with its handshake done, to the server that comes next. So a "
        "client is there in the time of a round trip. That server shows this client as connected.",
        live=True)] = True
    proxy: Annotated[ProxyText, about(
        "Proxy through which a client dials its server: docs/proxy.md. The proxy looks the server's name up. "
        "`environment`: the one that https_proxy or all_proxy names, unless no_proxy has the server. Empty: none, "
        "whatever the environment says.", live=True)] = ""
    proxy_login_file: Annotated[PathText, about(
        "Path of the file with USER:PASSWORD for `proxy`, on one line, readable by its owner only.", live=True)] = ""
    proxy_ca_file: Annotated[PathText, about(
        "Path of the CA certificates, PEM, from which the certificate of an `https://` proxy must come. Empty: the CAs "
        "of the system.", live=True)] = ""
    proxy_command: Annotated[HookCommand, about(
        "Command that connects a client with its server in place of `proxy`, by its standard input and output. It is a "
        "path with arguments, and no shell reads them; %h and %p stand for host and port. It runs once for each "
        "connection, as the user of the workers: docs/proxy.md.", live=True)] = ()
    websocket: Annotated[WebSocketText, about(
        "URL of a WebSocket that leads a client to its server by way of a web server, which ends TLS: "
        "docs/proxy.md. `remote_addr` still names the server. Our own TLS and sealing are inside.", live=True)] = ""
    public_addr: Annotated[PublicAddresses, about(
        "Address at which clients reach this server from outside. `invite` writes it into invitations. An array names "
        "up to eight servers, the preferred one first. A client that joins can be at each of them that knows it: "
        "docs/servers.md.", live=True)] = ""
    insecure: Annotated[bool, about(
        "Admit every client, without proof of identity. A server that other machines can reach needs it where nothing "
        "can be proved: with `encryption` `none` and with `compat`. A wildcard address can be reached, too.")] = False
    compat: Annotated[bool, about(
        "Speak the wire format of the original program and no other, so that an installation can be moved one end at "
        "a time. A client has one connection. There are bare packets, no FEC and no keys.")] = False

    # TUN device
    tun_name: Annotated[TunName | None, about(
        "Name of the TUN device. Linux allows 15 characters in an interface name.",
        derived=f"`name` if it is short enough, else `{DEFAULT_TUN_NAME}`")] = None
    tunnel_addr: Annotated[OwnAddresses, about(
        "Address of this end inside the tunnel with its prefix length, or a list of them, IPv4 and IPv6. With `auto` "
        "a client gets its addresses from the server, and gets them again each time it connects. With `compat` a "
        "client must name an address.",
        derived=f"`{DEFAULT_SERVER_ADDRESS}` for a server, `{AUTO}` for a client")] = None
    routes: Annotated[tuple[PrefixText, ...], about(
        "Further networks that this machine reaches through the tunnel. The subnets of `tunnel_addr` are routed "
        "without being listed.", live=True)] = ()
    accept_routes: Annotated[bool | tuple[PrefixText, ...], about(
        "Networks that a client lets its server route into the tunnel. True: every network that is harmless. A list: "
        "networks that lie in a listed one; a network that the list names itself, such as `0.0.0.0/0`, is routed as "
        "if it were in `routes`. No route from the server covers a network that this machine is connected to.",
        live=True)] = True
    full_tunnel: Annotated[bool | Literal["pushed"], about(
        "Send everything from this machine through the tunnel, but for the LAN. The connections to the server go "
        "around it by themselves. Packets that the tunnel does not carry, such as IPv6 in one without, are blocked. "
        "`pushed`: if the server has `0.0.0.0/0` in `push_routes`. The server needs `nat`, as a rule. See "
        "docs/full-tunnel.md.",
        live=True)] = False
    kill_switch: Annotated[bool | Literal["until-down"], about(
        "With a full tunnel, let nothing leave this machine around it, whatever happens (nftables). It holds from the "
        "start until an orderly stop or `down`: also while there is no connection, and after a crash. With "
        "`until-down` it holds over stops too, such as that in `systemctl restart`: `down` alone opens it.",
        live=True)] = True
    dns: Annotated[Literal["auto"] | tuple[AddressText, ...], about(
        "DNS servers of this machine while it has a full tunnel. `auto`: those that the server pushes. An empty array: "
        "the machine keeps its own, which learn the names that it looks up.", live=True)] = "auto"
    mtu: Annotated[int, Meta(ge=68, le=65535), about(
        "MTU of the TUN device. 68 is the minimum of IPv4; IPv6 inside the tunnel needs 1280; `compat` allows at most "
        "1495. The default is the original program's. A tunnel in a byte stream needs no small MTU.",
        unit="bytes")] = 1400
    mss_clamp: Annotated[bool, about(
        "Limit the segments of forwarded TCP connections to the tunnel's MTU (MSS clamping by nftables). The limit "
        "works even where the ICMP messages of path MTU discovery are lost.")] = True
    offload: Annotated[bool | None, about(
        "Let the kernel hand over TCP super-packets of up to 64 KiB and unfinished checksums. This multiplies the "
        "throughput. When false, every packet is handled alone.", derived="true; false with `compat`")] = None
    send_queue_size: Annotated[int, Meta(ge=1, le=QUEUE_PACKETS_MOST), about(
        "Packets that wait in the kernel for the tunnel: the device's txqueuelen. The default is the original "
        "program's.", unit="packets")] = 1000
    recv_queue_size: Annotated[int, Meta(ge=0, le=1_000_000), about(
        "No effect; accepted because the original program had it. Inbound packets are held back by backpressure, "
        "not in a queue.", unit="packets")] = 1000

    # Workers and rings
    lanes: Annotated[Literal["auto"] | LaneCount, about(
        "Complete pipelines side by side, each with its own TUN queue and workers. A flow stays in one lane. `auto` "
        "gives each lane a core for each of its busy duties, at one cache; below ten cores that is one lane. "
        "`tune` prints the plan for this machine, with its reasons.")] = "auto"
    split_workers: Annotated[Literal["auto"] | SplitKinds, about(
        "Kinds of workers, `tun` and `fec`, whose two duties are processes of their own, so that traffic both ways "
        "does not wait for one interpreter. Each such process takes some 20 MB more. `auto` does so where cores are "
        "left for them. An empty array: none.")] = "auto"
    affinity: Annotated[Literal["auto", "none"] | CoresOfWorkers, about(
        "CPU cores that each worker may use. `auto` gives each worker a physical core of its own, those of a lane at "
        "one cache, if there are enough cores, and otherwise leaves the choice to the kernel. So it does under a quota "
        "of CPU time. `none` always leaves it to the kernel. An object names the cores of some workers; the others are "
        "placed as with `auto`. `tun-0` stands for both processes of that worker, if it has two.")] = "auto"
    idle: Annotated[Literal["block", "spin-then-block", "spin"], about(
        "How a worker waits when it has nothing to do. Spinning saves a wake-up at each stage but keeps a core busy. "
        "The default uses no CPU time while idle.", live=True)] = "block"
    ring_slots: Annotated[Literal[4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096], about(
        "Slots of each ring, except the light rings, which have 64 slots of 12 KiB. It is a power of two, so that slot "
        "positions survive the wrap of the cursors at 2^64. Packets that wait in slots under load are latency. With "
        "the default `slot_bytes` the default takes 4.3 MB for each ring.",
        unit="slots")] = 32
    slot_bytes: Annotated[int, Meta(ge=SLOT_BYTES, le=1 << 22, multiple_of=PAGE), about(
        "Size of a slot, in whole pages. The default is the minimum: a page of headers and the largest block that a "
        "peer may send, 131072 bytes (64 KiB, and room for one more super-packet). The light rings ignore this "
        "setting. With FEC the coded and transit rings do too: the size of their slots follows from `fec_data` and "
        "`fec_parity`.",
        unit="bytes")] = SLOT_BYTES
    hold: Annotated[SecondsOrZero, about(
        "Time that a block waits for a connection before it is dropped and counted. The default bridges a quick "
        "reconnect. After a longer wait, TCP inside the tunnel has sent the packets again.", unit="seconds")] = 2.0

    # Connections
    connections: Annotated[ConnectionCount | None, about(
        "TCP connections that a client opens. Without FEC each lane of either end uses one of them. With FEC the "
        "shards of a block are spread over all. The default is enough for the stall or loss of any one connection to "
        "cost nothing.",
        derived="`lanes`, 1 with `compat`; with FEC at least (`fec_data` + `fec_parity`) / `fec_parity`; at most "
        "32")] = None
    light_connections: Annotated[Annotated[int, Meta(ge=0, le=8)] | None, about(
        "Further connections for the packets of flows that send little, so that these packets never wait behind a "
        "bulk transfer. With FEC such a packet is sent on up to three of them at once. With 0, light packets share "
        "the other connections.",
        derived="3 with FEC and more than one connection, 4 with four `uplinks`; else 0")] = None
    timeout: Annotated[Seconds, about(
        "A connection that has received nothing for this long is considered dead and is closed. The default is the "
        "original program's.", unit="seconds", live=True)] = 30.0
    keepalive: Annotated[Seconds, about(
        "A connection that has sent nothing for this long sends a keepalive. It must be less than `timeout`. With the "
        "default a peer has three chances before its timeout.", unit="seconds", live=True)] = 10.0
    reconnect_min: Annotated[Seconds, about(
        "First pause of a client before it dials again. The pause doubles, with jitter, up to `reconnect_max`. With "
        "the default a client returns at once after a restart of the server.", unit="seconds", live=True)] = 0.1
    reconnect_max: Annotated[Seconds, about(
        "Longest pause of a client before it dials again. A client never gives up. With the default it finds a server "
        "within seconds of the server's return.", unit="seconds", live=True)] = 10.0
    carrier: Annotated[Literal["tcp", "udp", "faketcp", "auto"], about(
        "How blocks of packets travel. `udp`: in datagrams, on the port that the connections have. `faketcp`: in "
        "datagrams behind TCP headers, for networks that block or slow down UDP (docs/fake-tcp.md). `auto`: by UDP "
        "while it gets through, else by fake TCP, else in the connections. `tcp`: in the connections alone, where no "
        "datagram is sent or taken. Both ends need another value than `tcp`; a server with `auto` takes UDP and fake "
        "TCP. A peer with a rate has its blocks in the connections whatever is set: docs/datagrams.md.")] = "tcp"
    fake_tcp_port: Annotated[Annotated[int, Meta(ge=0, le=PORT_MAX)], about(
        "Port of a server for fake TCP, with `carrier` `faketcp` or `auto`. It is another one than that of "
        "`local_addr`, whose connections are real ones. Clients learn it by themselves; firewalls let TCP to it in. "
        "0: the port behind that of `local_addr`, such as 444 behind 443.")] = 0
    direct: Annotated[Literal["off", "auto"], about(
        "Whether clients of a hub may send packets to each other directly, in datagrams, past the hub. `auto`: where "
        "both clients and the hub have `auto`, and the NATs of both clients let them: docs/direct.md. Clients learn "
        "each other's addresses then.")] = "off"
    uplinks: Annotated[Uplinks, about(
        "Interfaces on which a client reaches its server at the same time, two to four: docs/uplinks.md. Each "
        "connection is bound to one of them, in turn. An uplink with the role `backup` carries nothing while another "
        "one works. An interface that is missing is used when it appears. Both ends need `fec`. Empty: the connections "
        "take the way that the routes of this machine lead.", live=True)] = ()
    congestion: Annotated[CongestionName, about(
        "TCP congestion control of the connections. With `auto` they have that of the host, or Cubic where it is BBR, "
        "and BBR while the path loses packets. A name such as `bbr`: that one always. Empty: that of the host.",
        live=True)] = "auto"
    always_light: Annotated[tuple[FlowRuleText, ...], about(
        "Packets that are light whatever their flows send, by the mark that they have or by a port, such as `EF`, "
        "`udp/5060` or `tcp/8000-8099`; up to 20 Mbit/s in all. Without rules, flows that send less than 1 Mbit/s are "
        "light. The other end has its own rules for what it sends.", live=True)] = ()
    always_voice: Annotated[tuple[FlowRuleText, ...], about(
        "Packets that are light and go ahead of other light packets, by a mark or port, such as `EF` or "
        "`udp/10000-20000`; up to 20 Mbit/s in all. A rule for light or bulk with an equal mark or port yields.",
        live=True)] = ()
    class_by_dscp: Annotated[bool, about(
        "The marks of packets choose their class where no rule names the mark: `EF`, `VA` and `CS5` are voice, `CS1` "
        "and `LE` bulk. All that can send into the tunnel can mark its packets.", live=True)] = False
    always_bulk: Annotated[tuple[FlowRuleText, ...], about(
        "Packets that are bulk even if their flows send little, such as `CS1` or `tcp/873`. A rule of `always_light` "
        "for the mark or port wins.", live=True)] = ()
    bulk_rate_mbit: Annotated[Mbit, about(
        "Rate limit of the class bulk that this end sends to each of its peers, so that a backup leaves room: what "
        "`always_bulk` and `class_by_dscp` make bulk. Unless a peer has a limit of its own. 0: no limit.",
        unit="Mbit/s", live=True)] = 0.0
    send_rate_mbit: Annotated[Mbit, about(
        "Rate limit of what this end sends to each of its peers, light packets first. A little less than the uplink "
        "carries keeps the queue of the modem short for others as well. 0: no limit.", unit="Mbit/s", live=True)] = 0.0
    dscp_light: Annotated[Dscp, about(
        "Mark (DSCP) of the packets that this end sends on connections for light flows. Some routers, such as a modem "
        "with a queue of its own, give marked packets precedence. A mark of the packets inside cannot be copied, since "
        "a segment has many of them. Empty: that of the host, which is 0.", live=True)] = ""
    dscp_bulk: Annotated[Dscp, about(
        "Mark (DSCP) of the packets that this end sends on all other connections, such as `LE` for a backup that gives "
        "way to everything else.", live=True)] = ""
    notsent_lowat: Annotated[Bytes, about(
        "TCP_NOTSENT_LOWAT: bytes that may wait unsent in a connection's socket. Bytes that wait there are latency. "
        "The default is two full blocks. 0: the kernel's default.",
        unit="bytes", live=True)] = 131072
    send_buffer_bytes: Annotated[Bytes, about(
        "SO_SNDBUF of the connections. With 0 the kernel tunes the buffer; any other value switches that tuning off.",
        unit="bytes", live=True)] = 0
    receive_buffer_bytes: Annotated[Bytes, about(
        "SO_RCVBUF of the connections. With 0 the kernel tunes the buffer; any other value switches that tuning off.",
        unit="bytes", live=True)] = 0

    # Forward error correction
    fec: Annotated[Literal["off", "on", "auto"] | None, about(
        "Forward error correction: each block is cut into shards that travel over several connections, with parity. "
        "`on`: always the full parity. `auto`: as much parity as the losses and stalls of the connections require, "
        "none on a good path. Packets of flows that send little go out on two connections there, as far as that costs "
        "little, and on three while packets are lost.",
        derived="`auto`; `off` with `compat`")] = None
    fec_data: Annotated[int, Meta(ge=1, le=37), about(
        "Data shards of a full block. The code is proved for up to 37. The default is the original program's.")] = 10
    fec_parity: Annotated[int, Meta(ge=0, le=6), about(
        "Parity shards of a full block. A block survives the loss of this many shards. The code is proved for up to "
        "6. The default is the original program's.")] = 3

    # Encryption
    encryption: Annotated[Literal["tls", "none"] | None, about(
        "Protection of the connections. With `tls` a connection begins with a handshake in TLS. Behind it each block "
        "of packets is sealed once, with keys of the session: by AES-256-GCM if both machines have instructions for "
        "it, else by ChaCha20-Poly1305. With `compat` everything stays in TLS. Clear text must be written out as "
        "`none`: anybody on the path can then read and change everything, and neither end can prove its identity.",
        derived="`tls`; `none` with `compat`")] = None
    tls_enabled: Annotated[bool | None, about(
        "The original program's switch for TLS. It must agree with `encryption`. With `compat` it determines "
        "`encryption`.",
        derived="true with `tls`, else false")] = None
    key_file: Annotated[PathText, about(
        "Path of the file with a client's key, made by `genkey`, readable by its owner only. The server has the key "
        "as well, for this peer. The key proves each end to the other, whatever certificate the server has.")] = ""
    tls_cert_file: Annotated[PathText, about(
        "Path of this end's certificate in PEM format, followed by intermediate CAs, at most 64 KiB. `check`, a start "
        "and a reload prove that TLS 1.3 can use it. A server without one makes its own at its first start and keeps "
        "it in `state_dir`. A client needs one if the server identifies it by certificate. A file that is renewed is "
        "taken over within half a minute.", live=True)] = ""
    tls_key_file: Annotated[PathText, about(
        "Path of the private key of `tls_cert_file`, PEM, readable by its owner only.", live=True)] = ""
    tls_ca_file: Annotated[PathText, about(
        "Path of the CA certificates, PEM, from which the other end's certificate must come. With it a server "
        "identifies peers by their certificates. If none of `peers` has a fingerprint or certificate name, every "
        "holder of a certificate is admitted under the name in it. A client without this setting, `key_file` and "
        "`tls_fingerprint` uses the CAs of the system.",
        live=True)] = ""
    tls_server_name: Annotated[HostText | None, about(
        "Name or address that a client expects in the server's certificate, if a CA vouches for that certificate.",
        derived="host of `remote_addr`", live=True)] = None
    tls_fingerprint: Annotated[FingerprintText, about(
        "SHA-256 of the server's certificate. A client accepts this certificate and no other.")] = ""
    tls_skip_verify: Annotated[bool, about(
        "A client accepts any certificate. With `key_file` the server must still prove its identity.")] = False
    tls_min_version: Annotated[Literal["1.3", "1.2"], about(
        "Oldest TLS version that this end accepts. Two ends of this program always use 1.3. `1.2` is for a middlebox "
        "or, with `compat`, another end that has no 1.3.")] = "1.3"
    tls_alpn: Annotated[AlpnNames, about(
        "Names of protocols in TLS (ALPN) that a client offers, in this order, and from which a server selects. "
        "Everybody on the path can read those of a client. An end with `tunnel/1` alone goes on only if the other end "
        "has it, too. With other names the ends tell each other inside TLS what they are.",
        derived="`tunnel/1`; of a server with `fallback` `http/1.1`, and before it `h2` with `fallback_h2`; none with "
        "`compat`",
        live=True)] = None

    noise: Annotated[bool, about(
        "Add random bytes to the messages of the handshake, and send keepalives at random times, sooner than "
        "`keepalive`. Sizes and times of these then tell less to somebody who watches. Those of packets tell what they "
        "tell without it. The other end need not have it.", live=True)] = False
    padding: Annotated[bool, about(
        "Pad what carries small packets to 300, 600 or 1170 bytes on the wire. So the sizes of keystrokes, calls and "
        "DNS tell less to somebody who watches; how many there are, when, and which way they go still shows. Full "
        "packets stay as they are. It holds for what this end sends, to an end that takes padding; that one need not "
        "have this setting. Padding counts in no rate, quota or account. See docs/port-443.md.", live=True)] = False

    # Clients of a server
    peers: Annotated[tuple[Annotated[Peer, accepts(PEER_FORM)], ...], about(
        "Peers that may connect, and their networks: see below. Peers that `invite` has added are not in this file; "
        "they may connect as well.", live=True)] = ()
    multi_client: Annotated[bool | None, about(
        "Serve several clients at once. When false, a second client is refused while the first is connected, and "
        "multicast passes both ways.",
        derived="true with `tls`; with `compat` as `insecure`; else false")] = None
    max_clients: Annotated[int, Meta(ge=1, le=4096), about(
        "Clients that may be connected at once, with `multi_client`. The default is the original program's.",
        unit="clients")] = 100
    client_isolation: Annotated[bool, about(
        "Pass no packets between clients, with `multi_client`.", live=True)] = False
    multicast_kbit: Annotated[int, Meta(ge=0, le=1_000_000), about(
        "Pass packets to multicast and broadcast addresses on to all clients and to this machine, at most so many of "
        "each client, with `multi_client`. mDNS and SSDP need some 100 kbit/s. Each such packet goes out once for "
        "each client; one that is shorter than 256 bytes counts for 256. All clients together may send four times as "
        "much. With several `lanes` each counts by itself. 0: none. See docs/network.md.",
        unit="kbit/s", live=True)] = 0
    may_reach: Annotated[tuple[TargetText, ...], about(
        "Targets that each client may reach which has neither `may_reach` of its own nor a group. A client may always "
        "answer what others begin. An empty array: nothing. See docs/reach.md.", live=True)] = ("any",)
    groups: Annotated[Groups, about(
        "Groups of clients, and the targets that the members of each may reach. A peer is in those that its `groups` "
        "names. As a target, `group:NAME` means the tunnel addresses of its members.", live=True)] = {}
    push_routes: Annotated[tuple[PrefixText, ...], about(
        "Networks that the server tells clients to reach through the tunnel, at most 512. A client is not told the "
        "networks behind itself. One that is connected learns of a change when it connects anew.", live=True)] = ()
    names: Annotated[DomainText, about(
        "Domain in which each client has the name of its peer, such as laptop.tunnel with `tunnel`. The server keeps "
        "/run/tunnel-names/NAME.hosts up to date, a hosts file for a DNS server of this machine. Empty: no names. See "
        "docs/names.md.", live=True)] = ""
    push_dns: Annotated[tuple[AddressText, ...], about(
        "DNS servers for clients with a full tunnel, at most 4. Each must be reached through the tunnel. One that is "
        "connected learns of a change when it connects anew.", live=True)] = ()
    nat: Annotated[bool, about(
        "Forward packets of clients to networks behind this server, with the server's own address there (masquerade by "
        "nftables). So clients reach the Internet and a network whose router knows "
        "nothing of the tunnel. Forwarding is switched on where it is off, and back off at the stop. Linux 5.7.",
        live=True)] = False
    rate_mbit: Annotated[Mbit, about(
        "Rate limit of each client, in each direction, unless its peer has a limit of its own. Packets from the client "
        "that are shorter than 300 bytes count for more than their bytes, as they cost more. 0: no limit.",
        unit="Mbit/s", live=True)] = 0.0
    total_rate_mbit: Annotated[Mbit, about(
        "Rate limit of all clients together, in each direction. A client that wants less than an equal part has what "
        "it wants; the others share the rest equally. The rate of a client limits it as well. 0: no limit.",
        unit="Mbit/s", live=True)] = 0.0
    quota_gb: Annotated[Gigabytes, about(
        "Quota of each client in a month, unless its peer has a quota of its own: the bytes of both directions "
        "together, as `peers --month` shows them. A client that proves nothing has none. 0: no quota.",
        unit="GB", live=True)] = 0.0
    quota_action: Annotated[Literal["slow", "stop"], about(
        "Consequence for a client that has used up its quota, until the next month begins. `stop`: its session ends, "
        "and it is refused with the reason. `slow`: it has the rate `quota_rate_mbit`.", live=True)] = "stop"
    quota_rate_mbit: Annotated[SlowMbit, about(
        "Rate of a client that has been slowed down, in each direction. The default is enough for mail and messages.",
        unit="Mbit/s", live=True)] = 1.0
    quota_day: Annotated[int, Meta(ge=1, le=28), about(
        "Day on which the month of a quota begins, at midnight UTC.", unit="of the month", live=True)] = 1

    # Limits of a server
    max_handshakes: Annotated[Limit, about(
        "Unauthenticated connections at a time: the most that unknown clients can occupy. A connection beyond the "
        "limit is closed at once.",
        unit="connections", live=True)] = 64
    max_handshakes_per_address: Annotated[Limit, about(
        "Unauthenticated connections at a time from one address (IPv6: one /64), so that no address occupies all of "
        "`max_handshakes`. With several `lanes` the limit holds in each `tcp` worker, but is at most a quarter of "
        "that worker's part of `max_handshakes`.",
        unit="connections", live=True)] = 4
    connects_per_address: Annotated[Limit, about(
        "New connections a second from one address (IPv6: one /64). The default lets two clients behind one address "
        "reconnect at once.", unit="connections a second", live=True)] = 20
    handshake_timeout: Annotated[Seconds, about(
        "Time from accepting a connection to the end of its handshake, TLS included. A connection that takes longer "
        "is closed. The default is many round trips of a bad path.", unit="seconds", live=True)] = 10.0
    max_connections_per_client: Annotated[Limit, about(
        "Connections of one client. The default is more than a client opens with default settings.",
        unit="connections", live=True)] = 40
    peer_queue_bytes: Annotated[int, Meta(ge=SLOT_BYTES, le=GIB), about(
        "Bytes that may wait in a tcp worker for one client that reads slowly. More is dropped and counted, so that a "
        "slow client does not hold up the others. The minimum is one block; the default is 84 ms at 100 Mbit/s.",
        unit="bytes", live=True)] = 1 << 20

    # A port that is shared with a web server
    fallback: Annotated[EndpointOrNone, about(
        "Address of a web server, without TLS, to which all clients go that do not prove to be a peer. From the first "
        "byte on they see that web server and nothing else: docs/port-443.md. Peers need a key.",
        live=True)] = ""
    fallback_h2: Annotated[EndpointOrNone, about(
        "Address of the web server for clients that have selected HTTP/2 in TLS. It gets HTTP/2 without TLS, with "
        "prior knowledge (h2c). Empty: no client can select HTTP/2, unless `tls_alpn` says so.", live=True)] = ""
    fallback_plain: Annotated[EndpointOrNone, about(
        "Address of the web server for clients that speak no TLS. It gets their bytes as they are. Let it be a port "
        "with TLS: it answers as web servers answer HTTP without TLS on port 443. Empty: `fallback`.",
        live=True)] = ""
    fallback_proxy_protocol: Annotated[bool, about(
        "Tell the web server the address of each client, in a header of the PROXY protocol, version 2. The web server "
        "must be set to expect it.", live=True)] = False
    fallback_connections: Annotated[Limit, about(
        "Clients at a time that have not proved to be a peer, with `fallback`; a quarter of them from one address. "
        "Beyond it the one that has been idle longest ends, after two seconds. It takes the place of the other limits "
        "on unauthenticated clients: web servers have none of these.",
        unit="connections", live=True)] = 256

    proxy_protocol_from: Annotated[tuple[PrefixText, ...], about(
        "Networks of proxies that tell the address of each client in a header of the PROXY protocol, version 1 or 2, "
        "such as HAProxy. A connection from there without such a header is closed and counted. From any other address "
        "a header is garbage like any other.", live=True)] = ()

    # WebSockets, by way of a web server that ends TLS
    websocket_addr: Annotated[LocalEndpoint, about(
        "Where a server takes WebSockets from a web server in front of it, over HTTP without TLS: docs/port-443.md. A "
        "port alone means this machine alone, 127.0.0.1. Empty: nowhere. Clients have the URL in `websocket`. Our own "
        "TLS and sealing are inside.", live=True)] = ""
    websocket_path: Annotated[WebSocketPath, about(
        "Path of those WebSockets; required with `websocket_addr`. Requests for anything else go to `fallback`, or get "
        "the answer 404. Let it be one that nobody guesses.", live=True)] = ""
    websocket_proxies: Annotated[tuple[PrefixText, ...], about(
        "Networks of the web servers and content delivery networks in front. They are believed when they say at which "
        "address a client is.", live=True)] = (f"{LOOPBACK}/32", "::1/128")
    websocket_client_field: Annotated[FieldName, about(
        "Field of a request to which each of them adds the address of its client. No other field is read: a web server "
        "may pass on all others as a client has written them.", live=True)] = "X-Forwarded-For"

    # Supervision
    spares: Annotated[bool, about(
        "One process of each kind waits to take the place of a worker that dies, so that traffic goes on sooner. The "
        "spares take 36 MB in all, 20 MB with `fec` off.", live=True)] = True
    restart_intensity: Annotated[int, Meta(ge=0, le=1000), about(
        "Restarts of one worker that are allowed within `restart_period`. One more restart ends the instance. The "
        "default allows a burst of restarts, but no endless loop.", live=True)] = 10
    restart_period: Annotated[Seconds, about(
        "Time over which restarts are counted.", unit="seconds", live=True)] = 30.0
    heartbeat_timeout: Annotated[Seconds, about(
        "A worker whose data loop has not written its heartbeat for this long is killed and restarted. The default is "
        "far above the pauses of a healthy loop.", unit="seconds", live=True)] = 5.0
    drain_timeout: Annotated[SecondsOrZero, about(
        "Time that a stop waits for packets that are still in the rings. The default keeps a stop short.",
        unit="seconds", live=True)] = 2.0
    move_timeout: Annotated[Annotated[float, Meta(ge=0, le=20)], about(
        "Time that the stop of a server waits for clients that have another server: it tells them, and they go there "
        "before it stops. Without such clients a stop waits for nothing. 0: they are not told.",
        unit="seconds", live=True)] = 5.0
    user: Annotated[UserName | None, about(
        "System user that the workers run as, after everything that needs root has been opened. Empty: on a server "
        "`tunnel`, if there is such a system user, without a login. On a client, or else, it is an id that no user and "
        "no process of this machine has, chosen at each start; the log says which. `root`: workers stay root, without "
        "capabilities.",
        derived='`""`')] = None
    state_dir: Annotated[DirectoryText | None, about(
        "Directory, of mode 0700, for data that survives a restart. Only root and the supervisor's user may be able to "
        "change it, and the directories above it. It holds the account of each peer's bytes; of a server also the "
        "certificate that it has made for itself, the addresses of the peers, and the peers that `invite` has added.",
        derived=f"`{STATE_DIRECTORY}/` and `name`")] = None
    on: Annotated[Hooks, about(
        "Commands that the supervisor runs, without a shell, when something happens: docs/hooks.md. They run as the "
        "user of the supervisor, which is root as a rule. So only root may be able to change this file and the "
        "programs.",
        live=True)] = {}
    hook_timeout: Annotated[Annotated[float, Meta(ge=0.1, le=30)], about(
        "Time that a command of `on` may run. It is ended then, with its process group. A stop waits so long for the "
        "command of `down`.", unit="seconds", live=True)] = 10.0
    accounting: Annotated[bool, about(
        "Keep account of the bytes of each peer by day and by month, in `accounting.sqlite` in `state_dir`. A client "
        "keeps account of its server. When false, there can be no quota.")] = True
    metrics_addr: Annotated[LocalEndpoint, about(
        "Where this instance shows itself over HTTP: metrics for Prometheus, and a page for a browser. A port alone "
        "means this machine alone, 127.0.0.1. Empty: nowhere. An address that others reach needs "
        "`metrics_token_file`. See docs/metrics.md.", live=True)] = ""
    metrics_token_file: Annotated[PathText, about(
        "Path of the file with the token that a scraper or a browser must give, 16 characters or more, readable by its "
        "owner only; `genkey` makes one. Needed where `metrics_addr` is not a loopback address.", live=True)] = ""
    metrics_peers: Annotated[int, Meta(ge=0, le=4096), about(
        "Peers that have metrics of their own, the first ones by name. 0: only how many there are. Each takes eight "
        "time series. The page shows all peers.", unit="peers", live=True)] = 200
    log_level: Annotated[Literal["debug", "info", "warning", "error"], about(
        "Least important level of messages that is logged.", live=True)] = "info"
    log_format: Annotated[Literal["text", "json"], about(
        "Form of log messages: text for people, or one JSON object on each line.", live=True)] = "text"
    # fmt: on

    @property
    def listen_endpoint(self) -> Endpoint:
        """`local_addr` in parts; the host "::" stands for every address, IPv4 and IPv6."""
        return parse_endpoint(self.local_addr)

    def fake_tcp_port_beside(self, port: int) -> int:
        """Where a server takes fake TCP if it listens on this port."""
        return self.fake_tcp_port or (port + 1 if port < PORT_MAX else port - 1)

    @property
    def metrics_endpoint(self) -> Endpoint | None:
        """`metrics_addr` in parts, None if it is empty."""
        return _own_endpoint(self.metrics_addr)

    @property
    def websocket_endpoint(self) -> Endpoint | None:
        """`websocket_addr` of a server in parts, None if it is empty."""
        return _own_endpoint(self.websocket_addr) if self.mode == "server" else None

    @property
    def public_addresses(self) -> tuple[str, ...]:
        """`public_addr` in parts; empty if there is none."""
        given = self.public_addr
        return tuple(filter(None, (given,))) if isinstance(given, str) else given

    @property
    def remotes(self) -> tuple[Endpoint | SrvName, ...]:
        """`remote_addr` of a client in parts, the preferred server first."""
        given = self.remote_addr
        return tuple(parse_remote(text) for text in ((given,) if isinstance(given, str) else given))

    @property
    def remote_endpoints(self) -> tuple[Endpoint, ...]:
        """The servers that `remote_addr` names itself."""
        return tuple(each for each in self.remotes if isinstance(each, Endpoint))

    @property
    def remote_endpoint(self) -> Endpoint:
        """The first server of a client. Of SRV records alone, their name, with port 0."""
        first, *_ = self.remote_endpoints or (Endpoint(str(self.remotes[0][0]), 0),)
        return first

    @property
    def remote_text(self) -> str:
        """`remote_addr` in words."""
        return self.remote_addr if isinstance(self.remote_addr, str) else ", ".join(self.remote_addr)

    @property
    def has_several_servers(self) -> bool:
        """Whether a client can be at more than one server."""
        return self.mode == "client" and (len(self.remotes) > 1 or len(self.remote_endpoints) < len(self.remotes))

    @property
    def named_uplinks(self) -> tuple[Uplink, ...]:
        """`uplinks` of a client in parts; empty: it leaves the way to the routes."""
        if self.mode == "server":
            return ()
        entries = [UplinkEntry(interface=each) if isinstance(each, str) else each for each in self.uplinks]
        return tuple(Uplink(i, each.interface, each.role == BACKUP) for i, each in enumerate(entries))

    @property
    def named_proxy(self) -> Proxy | None:
        """`proxy` of a client in parts, or that of the environment; None: there is none."""
        if self.mode == "server":
            return None
        if self.proxy == proxy_url.ENVIRONMENT:
            return proxy_url.of_environment(self.remote_endpoint.host)
        return proxy_url.parse(self.proxy) if self.proxy else None

    @property
    def named_websocket(self) -> WebSocketUrl | None:
        """`websocket` of a client in parts; None: there is none."""
        return proxy_url.parse_websocket(self.websocket) if self.websocket and self.mode == "client" else None

    @property
    def needs_bridge(self) -> bool:
        """Whether something must stay around a client's connections: TLS to a proxy, a command, a WebSocket."""
        proxy = self.named_proxy
        return bool(self.proxy_command or self.named_websocket) or (proxy is not None and proxy.scheme == "https")

    @property
    def has_rate_of_connections(self) -> bool:
        """Whether all peers of this end have a rate that datagrams would not keep."""
        return bool(self.send_rate_mbit or (self.total_rate_mbit if self.mode == "server" else self.bulk_rate_mbit))

    @property
    def way_text(self) -> str:
        """The way to the server in words: each setting with its URL, or with its program; "" for none."""
        if self.proxy_command:
            return f"proxy_command {self.proxy_command[0]}"
        websocket = self.named_websocket
        stages = (self.named_proxy, websocket and f"websocket {websocket}")
        return " to ".join(str(each) for each in stages if each)

    @property
    def dialed(self) -> tuple[Endpoint | SrvName, ...]:
        """Where the connections of a client lead: to the proxy, to the web server of a WebSocket, or to the servers."""
        first = self.named_proxy or self.named_websocket
        return self.remotes if first is None else (Endpoint(first.host, first.port),)

    @property
    def dialed_endpoints(self) -> tuple[Endpoint, ...]:
        """Those of `dialed` that the configuration names itself."""
        return tuple(each for each in self.dialed if isinstance(each, Endpoint))

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
        """`routes`, parsed, without the device's own subnets: the kernel adds routes to those."""
        own = {interface.network for interface in self.tunnel_interfaces}
        return tuple(prefix for prefix in map(parse_prefix, self.routes) if prefix not in own)

    @property
    def accepted_prefixes(self) -> bool | tuple[IPv4Network | IPv6Network, ...]:
        """`accept_routes`, parsed."""
        given = self.accept_routes
        return given if isinstance(given, bool) else tuple(map(parse_prefix, given))

    @property
    def push_prefixes(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`push_routes`, parsed."""
        return tuple(map(parse_prefix, self.push_routes))

    @property
    def wants_full_tunnel(self) -> bool | Literal["pushed"]:
        """`full_tunnel` of a client; a server has none."""
        return self.full_tunnel if self.mode == "client" else False

    @property
    def dns_addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """`dns`, parsed; empty if it is "auto"."""
        return () if self.dns == AUTO else tuple(map(parse_address, self.dns))

    @property
    def push_dns_addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """`push_dns`, parsed."""
        return tuple(map(parse_address, self.push_dns))

    @property
    def has_ipv6_inside(self) -> bool:
        """Whether these settings put IPv6 packets into the tunnel."""
        behind = [prefix for peer in self.peers for prefix in peer.prefixes]
        inside = (*self.tunnel_interfaces, *self.route_prefixes, *self.push_prefixes, *behind)
        return any(value.version == 6 for value in inside)


class Config(PartialConfig, frozen=True, kw_only=True):
    """A complete configuration: `derive` has filled in every default that depends on other settings.

    `tunnel_addr` alone can be None, in a client's with compat, which `checks` refuses.
    """

    name: str
    tun_name: str
    offload: bool
    connections: int
    light_connections: int
    fec: Literal["off", "on", "auto"]
    encryption: Literal["tls", "none"]
    tls_enabled: bool
    tls_server_name: str
    tls_alpn: tuple[str, ...]
    multi_client: bool
    lanes: int
    split_workers: tuple[Literal["tun", "fec"], ...]
    user: str
    state_dir: str


SETTINGS = settings_of(PartialConfig)
RELOAD = {name: "live" if setting.live else "restart" for name, setting in SETTINGS.items()}


def changes(old: Config, new: Config) -> list[str]:
    """Names of the settings that differ. RELOAD says which of them a running instance can apply."""
    return [name for name in SETTINGS if getattr(old, name) != getattr(new, name)]


def _own_endpoint(given: int | str) -> Endpoint | None:
    """A port alone is one of this machine."""
    text = str(given)
    if text.isascii() and text.isdigit():
        text = f"{LOOPBACK}:{text}"
    return parse_endpoint(text) if text else None
