"""The types of settings: ranges, patterns, and what a type accepts in words, once for all settings of a type.

A setting is declared as Annotated[type, about(...)]. `pipeline.config.setting` reads the declarations.
"""

from typing import Annotated, Literal

from msgspec import Meta

from pipeline.config.values import (
    ADDRESS_FORM,
    ENDPOINT_FORM,
    FIELD_FORM,
    FINGERPRINT_FORM,
    FINGERPRINT_PATTERN,
    HOST_FORM,
    HOST_NAME_MAX,
    INTERFACE_FORM,
    PREFIX_FORM,
    PROXY_FORM,
    REMOTE_FORM,
    WEBSOCKET_FORM,
    WEBSOCKET_PATH_FORM,
)
from pipeline.packet.flow_rules import RULE_FORM
from pipeline.packet.marks import DSCP_FORM
from pipeline.policy.targets import TARGET_FORM

DAY = 86400
SERVERS_MAX = 8
"""Servers in an invitation: its line is pasted, and shown as a picture."""

GIB = 1 << 30
MBIT_MAX = 1_000_000
GB_MAX = 1_000_000

DOMAIN_MAX = 180
"""Characters: with the longest label of a peer in front, a name in DNS has 253 at most (RFC 1035, 2.3.4)."""

_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_TOP_LABEL = "[a-z]([a-z0-9-]{0,61}[a-z0-9])?"

NAME_FORM = 'letters, digits, "_", "-" or ".", not beginning with "-" or "."'
WORKER_CORES = 'an object of workers and cores, such as {"tun-0": [0], "tcp-0": [1, 2]}'
HOOK_FORM = (
    "an object; its keys: up, down, connected, lost, peer-joined, peer-left, quota; its values: arrays of a path and "
    'arguments, such as {"up": ["/etc/tunnel-supervisor/up.sh", "office"]}'
)
GROUPS_FORM = (
    'an object; its keys: names of groups; its values: arrays of targets, such as {"office": ["192.168.10.0/24", '
    '"group:office"]}'
)
UPLINK_FORM = (
    'the name of an interface, such as "eth0", or an object with it and a role, "main" or "backup", such as '
    '{"interface": "wwan0", "role": "backup"}'
)
PEER_FORM = "an object with the name of a peer and its key_file, fingerprint or certificate_name"


def about(text: str, unit: str = "", derived: str = "", live: bool = False) -> Meta:
    """A setting: meaning and reason, unit, default in words if others determine it, whether a reload applies it."""
    return Meta(description=text, extra={"unit": unit, "derived": derived, "live": live})


def accepts(expected: str) -> Meta:
    """The accepted values in words, for a type whose range or pattern alone would not tell a person."""
    return Meta(extra={"accepts": expected})


Seconds = Annotated[float, Meta(ge=0.001, le=DAY)]
SecondsOrZero = Annotated[float, Meta(ge=0, le=DAY)]
Bytes = Annotated[int, Meta(ge=0, le=GIB)]
LaneCount = Annotated[int, Meta(ge=1, le=32)]
"""The stream of a sealed block has five bits for its lane (pipeline.sealing.kinds)."""

SplitKinds = Annotated[
    tuple[Literal["tun", "fec"], ...], accepts('an array of kinds of workers, such as ["tun"] or ["tun", "fec"]')
]
CONNECTIONS_MAX = 32
"""A block's run table has rows for so many connections, a tcp worker status rows, beside those of light connections."""

ConnectionCount = Annotated[int, Meta(ge=1, le=CONNECTIONS_MAX)]
Limit = Annotated[int, Meta(ge=1, le=65535)]
Mbit = Annotated[float, Meta(ge=0, le=MBIT_MAX)]
SlowMbit = Annotated[float, Meta(ge=0.001, le=MBIT_MAX)]
Gigabytes = Annotated[float, Meta(ge=0, le=GB_MAX)]
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$"), accepts(f"1 to 32 {NAME_FORM}")]
TunName = Annotated[str, Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$"), accepts(f"1 to 15 {NAME_FORM}")]
InterfaceName = Annotated[str, Meta(pattern="^[!-.0-9;-~]{1,15}$"), accepts("1 to 15 characters without '/' and ':'")]
CongestionName = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{0,15}$"), accepts('"auto", a name such as "bbr", or ""')]
Dscp = Annotated[Annotated[int, Meta(ge=0, le=63)] | str, accepts(DSCP_FORM)]
FlowRuleText = Annotated[str, accepts(RULE_FORM)]
EndpointText = Annotated[str, accepts(ENDPOINT_FORM)]
LocalEndpoint = Annotated[
    Annotated[int, Meta(ge=1, le=65535)] | str,
    accepts('a port, such as 9100, for this machine alone; or HOST:PORT with an address of this machine; or ""'),
]
EndpointOrNone = Annotated[str, accepts(f'{ENDPOINT_FORM}, or ""')]
PublicAddresses = Annotated[
    EndpointText | Annotated[tuple[EndpointText, ...], Meta(max_length=SERVERS_MAX)],
    accepts(f'{ENDPOINT_FORM}, or an array of such, or ""'),
]
RemoteText = Annotated[str, accepts(REMOTE_FORM)]
Remotes = Annotated[RemoteText | tuple[RemoteText, ...], accepts(f"{REMOTE_FORM}, or an array of such")]
WebSocketText = Annotated[str, accepts(f'{WEBSOCKET_FORM}, or ""')]
WebSocketPath = Annotated[
    str,
    Meta(pattern=r"^(/[A-Za-z0-9/._~!$&'()*+,;=:@%?-]*)?$", max_length=1000),
    accepts(f'{WEBSOCKET_PATH_FORM}, or ""'),
]
FieldName = Annotated[str, Meta(pattern="^[A-Za-z0-9-]{1,64}$"), accepts(FIELD_FORM)]
ProxyText = Annotated[str, accepts(f'{PROXY_FORM}, or ""')]
InterfaceText = Annotated[str, accepts(INTERFACE_FORM)]
OwnAddresses = Annotated[
    InterfaceText | tuple[InterfaceText, ...] | None, accepts(f'{INTERFACE_FORM}, or an array of such, or "auto"')
]
PrefixText = Annotated[str, accepts(PREFIX_FORM)]
AddressText = Annotated[str, accepts(ADDRESS_FORM)]
HostText = Annotated[str, accepts(HOST_FORM)]
FingerprintText = Annotated[str, Meta(pattern=f"^({FINGERPRINT_PATTERN})?$"), accepts(f'{FINGERPRINT_FORM}, or ""')]
CertificateName = Annotated[str, Meta(max_length=HOST_NAME_MAX), accepts('a name in a certificate, or ""')]
DomainText = Annotated[
    str,
    Meta(pattern=f"^({_LABEL}[.])*{_TOP_LABEL}$|^$", max_length=DOMAIN_MAX),
    accepts('a domain in lower case, such as "tunnel" or "tunnel.internal", or ""'),
]
AlpnName = Annotated[str, Meta(pattern="^[!-~]{1,32}$"), accepts('a name such as "h2" or "http/1.1"')]
AlpnNames = Annotated[
    tuple[AlpnName, ...] | None, accepts('an array of names of protocols in TLS, such as ["h2", "http/1.1"]')
]
PathText = Annotated[str, accepts("the path of a file")]
DirectoryText = Annotated[str, accepts("the path of a directory, beginning with /")]
TargetText = Annotated[str, accepts(TARGET_FORM)]
Targets = Annotated[tuple[TargetText, ...], accepts(f"an array; in it, {TARGET_FORM}")]
Groups = Annotated[dict[Name, Targets], accepts(GROUPS_FORM)]
HookEvent = Literal["up", "down", "connected", "lost", "peer-joined", "peer-left", "quota"]
CommandWord = Annotated[str, accepts("a path or an argument")]
HookCommand = Annotated[
    tuple[CommandWord, ...], accepts('an array of a path and arguments, such as ["/etc/up.sh", "office"]')
]
Hooks = Annotated[dict[HookEvent, HookCommand], accepts(HOOK_FORM)]
UserName = Annotated[str, accepts('the name of a system user, or ""')]
Cores = Annotated[list[Annotated[int, Meta(ge=0, le=4095)]], accepts("an array of cores, such as [0, 1]")]
CoresOfWorkers = Annotated[dict[str, Cores], accepts(WORKER_CORES)]
