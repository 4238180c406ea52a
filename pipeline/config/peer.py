"""One peer in a server's configuration: its name, how it proves its identity, its networks, its limits.

A Peer is immutable, as a Config is. It holds paths of keys, no key.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Any, Literal

import msgspec

from pipeline.config.quote import quote
from pipeline.config.setting import settings_of
from pipeline.config.types import (
    NAME_FORM,
    AddressText,
    CertificateName,
    FingerprintText,
    Gigabytes,
    Mbit,
    Name,
    PathText,
    PrefixText,
    SlowMbit,
    TargetText,
    about,
)
from pipeline.config.values import parse_address, parse_fingerprint, parse_prefix
from pipeline.errors import ConfigError, Problem

PROOFS = ("key_file", "fingerprint", "certificate_name")
"""Settings by which a peer can prove its identity; each peer has exactly one of them."""


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A client that may connect."""

    # fmt: off
    name: Annotated[Name, about(
        "Name of the peer. `peers` and `revoke` find the peer by it. No two peers have one name.", live=True)]
    key_file: Annotated[PathText, about(
        "Path of the file with the key that this peer and the server share, made by `genkey`, readable by its owner "
        "only. Every peer needs a key of its own: the server takes each holder of the key for this peer.",
        live=True)] = ""
    fingerprint: Annotated[FingerprintText, about(
        "SHA-256 of this peer's certificate. The certificate must come from a CA in `tls_ca_file`.", live=True)] = ""
    certificate_name: Annotated[CertificateName, about(
        "Name in this peer's certificate: a DNS name or the common name of its subject. The certificate must come "
        "from a CA in `tls_ca_file`. A renewed certificate with this name identifies the peer as well.",
        live=True)] = ""
    allowed: Annotated[tuple[PrefixText, ...], about(
        "Networks behind this peer. The server sends packets for them to this peer and accepts packets from them. A "
        "network belongs to one peer only; a smaller network of another peer takes precedence. The server's own "
        "packets reach these networks only if `routes` leads them into the tunnel.", live=True)] = ()
    address: Annotated[AddressText | tuple[AddressText, ...], about(
        "Fixed tunnel address of this peer, or a list of them, at most one in each subnet of `tunnel_addr`. A peer "
        "without a fixed address gets a free one and keeps it.", live=True)] = ()
    groups: Annotated[tuple[Name, ...], about(
        "Groups that this peer is in. It may reach what the setting `groups` says of each.", live=True)] = ()
    may_reach: Annotated[tuple[TargetText, ...] | None, about(
        "Targets that this peer, and the networks behind it, may reach beside those of its groups. An empty array: "
        "nothing. See docs/reach.md.", derived="the setting `may_reach`, or nothing beside its groups",
        live=True)] = None
    rate_mbit: Annotated[Mbit | None, about(
        "Rate limit of this peer, in each direction. 0: no limit.",
        unit="Mbit/s", derived="the setting `rate_mbit`", live=True)] = None
    bulk_rate_mbit: Annotated[Mbit | None, about(
        "Rate limit of the class bulk that this server sends to this peer. 0: no limit.",
        unit="Mbit/s", derived="the setting `bulk_rate_mbit`", live=True)] = None
    quota_gb: Annotated[Gigabytes | None, about(
        "Quota of this peer in a month. 0: no quota.",
        unit="GB", derived="the setting `quota_gb`", live=True)] = None
    quota_action: Annotated[Literal["slow", "stop"] | None, about(
        "Consequence for this peer when it has used up its quota.", derived="the setting `quota_action`",
        live=True)] = None
    quota_rate_mbit: Annotated[SlowMbit | None, about(
        "Rate of this peer, in each direction, when it is slowed down.",
        unit="Mbit/s", derived="the setting `quota_rate_mbit`", live=True)] = None
    # fmt: on

    @property
    def proofs(self) -> list[str]:
        """The settings of PROOFS that this peer has."""
        return [name for name in PROOFS if getattr(self, name)]

    @property
    def certificate_hash(self) -> bytes:
        """`fingerprint`, 32 bytes; empty if there is none."""
        return parse_fingerprint(self.fingerprint) if self.fingerprint else b""

    @property
    def prefixes(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`allowed`, parsed."""
        return tuple(map(parse_prefix, self.allowed))

    @property
    def address_texts(self) -> dict[str, str]:
        """Each text of `address`, by its path, such as address[1]."""
        if isinstance(self.address, str):
            return {"address": self.address}
        return {f"address[{index}]": text for index, text in enumerate(self.address)}

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """`address`, parsed."""
        return tuple(map(parse_address, self.address_texts.values()))


PEER_SETTINGS = settings_of(Peer)


def check_peer_name(name: Any) -> None:
    """ConfigError if no peer can have this name. A valid name is also a file name, and never a path."""
    try:
        if not msgspec.convert(name, Name).isprintable():  # a pattern's $ matches before a newline, too
            raise msgspec.ValidationError
    except msgspec.ValidationError:
        raise ConfigError([Problem("name of a peer", f"given {quote(name)}, expected 1 to 32 {NAME_FORM}")]) from None
