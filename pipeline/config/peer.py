"""What a server's configuration says of one peer: who it is, what is behind it, what it may use.

A Peer is immutable, as a Config is. It holds paths of keys, no key.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated

import msgspec

from pipeline.config.types import (
    AddressText,
    CertificateName,
    FingerprintText,
    Mbit,
    Name,
    PathText,
    PrefixText,
    about,
)
from pipeline.config.values import parse_address, parse_fingerprint, parse_prefix

PROOFS = ("key_file", "fingerprint", "certificate_name")
"""How a peer can prove itself; it has exactly one of them."""


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A client that may connect."""

    # fmt: off
    name: Annotated[Name, about(
        "Name of the peer, by which `peers` and `revoke` find it. Each peer has another.", live=True)]
    key_file: Annotated[PathText, about(
        "Path of the file with the key that this peer and the server share, as `genkey` makes it, readable by its "
        "owner alone. Each peer has another key: who has it, is the peer.", live=True)] = ""
    fingerprint: Annotated[FingerprintText, about(
        "SHA-256 of this peer's certificate, which must come from a CA of `tls_ca_file`.", live=True)] = ""
    certificate_name: Annotated[CertificateName, about(
        "Name in this peer's certificate, a DNS name or that of its subject; the certificate must come from a CA of "
        "`tls_ca_file`. A renewed certificate is known by it as well.", live=True)] = ""
    allowed: Annotated[tuple[PrefixText, ...], about(
        "Networks behind this peer: packets to them go to it, and it may send from them. Each belongs to one peer "
        "alone; a smaller network of another peer goes first. This machine sends there what `routes` leads into the "
        "tunnel.", live=True)] = ()
    address: Annotated[AddressText | tuple[AddressText, ...], about(
        "Fixed tunnel address of this peer, or a list of them, at most one in each subnet of `tunnel_addr`. Without "
        "one, the peer gets an address that is free, and keeps it.", live=True)] = ()
    rate_mbit: Annotated[Mbit | None, about(
        "Limit of what it sends and of what it receives, each; 0 for none.",
        unit="Mbit/s", derived="the setting `rate_mbit`", live=True)] = None
    # fmt: on

    @property
    def proofs(self) -> list[str]:
        """Those of PROOFS that it has."""
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
        """Each of `address` with where it stands, such as address[1]."""
        if isinstance(self.address, str):
            return {"address": self.address}
        return {f"address[{index}]": text for index, text in enumerate(self.address)}

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """`address`, parsed."""
        return tuple(map(parse_address, self.address_texts.values()))


PEER_FIELDS = {field.name: field for field in msgspec.inspect.type_info(Peer).fields}
