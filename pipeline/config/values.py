"""Texts of a configuration that have a form of their own: endpoints, addresses, prefixes, fingerprints.

Each function takes the text and returns the value. ValueError says what was expected.
No name is resolved here: a host name is checked for its form only.
"""

import ipaddress
import re
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple

PORT_MAX = 65535
HTTPS_PORT = 443  # that a URL without a port means
HOST_NAME_MAX = 253  # RFC 1035, 2.3.4, without the closing dot
HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
EVERY_ADDRESS = "::"  # an empty host of a listener: IPv4 and IPv6, as in the original program

SRV_PREFIX = "srv:"

ENDPOINT_FORM = 'HOST:PORT, such as "192.0.2.1:9000", "vpn.example.org:9000" or "[2001:db8::1]:9000"'
REMOTE_FORM = f'{ENDPOINT_FORM}, or "{SRV_PREFIX}" and the name of SRV records'
PROXY_FORM = '"http://HOST:PORT", "https://HOST:PORT", "socks5://HOST:PORT", "environment"'
WEBSOCKET_FORM = '"wss://HOST/PATH" or "wss://HOST:PORT/PATH"'
WEBSOCKET_PATH_FORM = 'a path beginning with /, such as "/tunnel"'
FIELD_FORM = 'the name of a field of HTTP, such as "X-Forwarded-For" or "Forwarded"'
INTERFACE_FORM = 'an address with its prefix length, such as "10.0.0.1/24" or "fd00::1/64"'
PREFIX_FORM = 'a network, such as "10.1.0.0/16" or "fd01::/48"'
ADDRESS_FORM = 'an address, such as "10.0.0.7" or "fd00::7"'
HOST_FORM = 'a host name or an address, such as "vpn.example.org", "192.0.2.1" or "2001:db8::1"'
FINGERPRINT_FORM = "the SHA-256 of a certificate, 64 hexadecimal digits, with or without colons"
FINGERPRINT_PATTERN = "[0-9A-Fa-f]{64}|[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){31}"


class Endpoint(NamedTuple):
    host: str  # an address without brackets, or a host name
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def address(self) -> IPv4Address | IPv6Address | None:
        """The address, or None if the host is a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def lacks_zone(self) -> bool:
        """Whether it is a link-local IPv6 address without its interface: every link may have that address."""
        address = self.address
        return isinstance(address, IPv6Address) and address.is_link_local and not address.scope_id

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. Other machines may reach a wildcard address or an unknown name."""
        address = self.address
        return self.host.lower() == "localhost" if address is None else address.is_loopback


class SrvName(NamedTuple):
    """The name of SRV records (RFC 2782), which list servers."""

    name: str

    def __str__(self) -> str:
        return SRV_PREFIX + self.name


def parse_remote(text: str) -> Endpoint | SrvName:
    """A server that a client dials, or the name of SRV records that list some."""
    if not text.startswith(SRV_PREFIX):
        return parse_endpoint(text)
    name = text.removeprefix(SRV_PREFIX)
    labels = name.removesuffix(".").split(".")
    if len(name) > HOST_NAME_MAX or not all(HOST_LABEL.fullmatch(label) for label in labels):
        raise ValueError(
            f'the name of SRV records after "{SRV_PREFIX}", such as "{SRV_PREFIX}_tunnel._tcp.example.org"'
        )
    return SrvName(name)


def parse_endpoint(text: str) -> Endpoint:
    """HOST:PORT, IPv6 in brackets. An empty host stands for every address; only a listener may have it."""
    scheme, slashes, rest = text.partition("://")
    if slashes and scheme and _authority(rest):
        raise ValueError(f'HOST:PORT without "{scheme}://", such as "{_authority(rest)}"')
    bracketed = text.startswith("[")
    host, colon, port = text[1:].rpartition("]:") if bracketed else text.rpartition(":")
    if not colon:
        raise ValueError(ENDPOINT_FORM)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= PORT_MAX):
        raise ValueError(f"a port from 0 to {PORT_MAX} after the last colon")
    if bracketed:
        _require_ipv6(host)
    elif ":" in host:
        raise ValueError(f'an IPv6 address in brackets, such as "[2001:db8::1]:{int(port)}"')
    elif host:
        _require_name_or_ipv4(host)
    return Endpoint(host or EVERY_ADDRESS, int(port))


def _authority(rest: str) -> str:
    """HOST:PORT out of what follows the scheme of a URL; "" if there is no host."""
    authority = re.split(r"[/?#]", rest)[0].rpartition("@")[2]
    return authority if not authority or re.search(r":\d+$", authority) else f"{authority}:{HTTPS_PORT}"


def check_host(host: str) -> None:
    """A host without a port and without brackets, as certificates name it."""
    if ":" not in host:
        _require_name_or_ipv4(host)
        return
    try:
        IPv6Address(host)
    except ValueError:
        raise ValueError(HOST_FORM) from None


def _require_ipv6(host: str) -> None:
    try:
        IPv6Address(host)
    except ValueError:
        raise ValueError("an IPv6 address between the brackets") from None


def _require_name_or_ipv4(host: str) -> None:
    labels = host.removesuffix(".").split(".")
    if labels[-1].isdigit():  # a resolver reads it as an address, too
        try:
            IPv4Address(host)
        except ValueError:
            raise ValueError("four numbers from 0 to 255 in an IPv4 address") from None
    elif len(host) > HOST_NAME_MAX or not all(HOST_LABEL.fullmatch(label) for label in labels):
        raise ValueError("a host name of letters, digits, hyphens and dots (international names in xn-- form)")


def parse_interface(text: str) -> IPv4Interface | IPv6Interface:
    """An address that a TUN device can have, with the length of its subnet's prefix."""
    _, slash, length = text.partition("/")
    if not slash or not length.isdigit() or "%" in text:
        raise ValueError(INTERFACE_FORM)
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise ValueError(INTERFACE_FORM) from None
    address, network = interface.ip, interface.network
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise ValueError("a unicast address that is not a loopback address")
    ends = (network.network_address, network.broadcast_address)
    if interface.version == 4 and network.prefixlen < 31 and address in ends:
        raise ValueError(f"the address of a host: {address} is the network or broadcast address of {network}")
    return interface


def parse_prefix(text: str) -> IPv4Network | IPv6Network:
    """The destination of a route; the bits after the prefix must be zero."""
    if "%" in text:
        raise ValueError(PREFIX_FORM)
    try:
        loose = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(PREFIX_FORM) from None
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(f'a network without bits after its prefix, such as "{loose}"') from None


def parse_address(text: str) -> IPv4Address | IPv6Address:
    """An address without a prefix length."""
    try:
        if "%" not in text:
            return ipaddress.ip_address(text)
    except ValueError:
        pass
    raise ValueError(ADDRESS_FORM)


def parse_fingerprint(text: str) -> bytes:
    """The 32 bytes of a SHA-256."""
    if not re.fullmatch(FINGERPRINT_PATTERN, text):
        raise ValueError(FINGERPRINT_FORM)
    return bytes.fromhex(text.replace(":", ""))
