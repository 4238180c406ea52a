"""The types of settings: ranges, patterns and what each accepts in words, once for all settings of a type.

A setting is Annotated[type, about(...)]. `inspect` shows both Metas of a type and of its setting as one.
"""

from typing import Annotated

from msgspec import Meta

from pipeline.config.values import (
    ADDRESS_FORM,
    ENDPOINT_FORM,
    FINGERPRINT_FORM,
    FINGERPRINT_PATTERN,
    HOST_FORM,
    HOST_NAME_MAX,
    INTERFACE_FORM,
    PREFIX_FORM,
)

DAY = 86400
GIB = 1 << 30
MBIT_MAX = 1_000_000

NAME_FORM = 'letters, digits, "_", "-" or ".", the first neither "-" nor "."'
WORKER_CORES = 'an object of workers and cores, such as {"tun-0": [0], "tcp-0": [1, 2]}'
PEER_FORM = "an object with the name of a peer and how it proves itself"


def about(text: str, unit: str = "", derived: str = "", live: bool = False) -> Meta:
    """Meaning and reason; the unit; the default in words where it depends; whether a reload can apply it."""
    return Meta(description=text, extra={"unit": unit, "derived": derived, "live": live})


def words(expected: str) -> Meta:
    """What a type accepts, where its range or pattern alone would not tell a person."""
    return Meta(extra={"words": expected})


Seconds = Annotated[float, Meta(ge=0.001, le=DAY)]
SecondsOrZero = Annotated[float, Meta(ge=0, le=DAY)]
Bytes = Annotated[int, Meta(ge=0, le=GIB)]
SmallCount = Annotated[int, Meta(ge=1, le=64)]
Limit = Annotated[int, Meta(ge=1, le=65535)]
Mbit = Annotated[float, Meta(ge=0, le=MBIT_MAX)]
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$"), words(f"1 to 32 {NAME_FORM}")]
TunName = Annotated[str, Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$"), words(f"1 to 15 {NAME_FORM}")]
CongestionName = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{0,15}$"), words('a name such as "bbr", or ""')]
EndpointText = Annotated[str, words(ENDPOINT_FORM)]
EndpointOrNone = Annotated[str, words(f'{ENDPOINT_FORM}, or ""')]
InterfaceText = Annotated[str, words(INTERFACE_FORM)]
OwnAddresses = Annotated[
    InterfaceText | tuple[InterfaceText, ...] | None, words(f'{INTERFACE_FORM}, or an array of such, or "auto"')
]
PrefixText = Annotated[str, words(PREFIX_FORM)]
AddressText = Annotated[str, words(ADDRESS_FORM)]
HostText = Annotated[str, words(HOST_FORM)]
FingerprintText = Annotated[str, Meta(pattern=f"^({FINGERPRINT_PATTERN})?$"), words(f'{FINGERPRINT_FORM}, or ""')]
CertificateName = Annotated[str, Meta(max_length=HOST_NAME_MAX), words('a name in a certificate, or ""')]
PathText = Annotated[str, words("the path of a file")]
DirectoryText = Annotated[str, words("the path of a directory, from / on")]
UserName = Annotated[str, words('the name of a system user, or ""')]
Cores = list[Annotated[int, Meta(ge=0, le=4095)]]
CoresOfWorkers = Annotated[dict[str, Cores], words(WORKER_CORES)]
