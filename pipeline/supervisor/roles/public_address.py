"""The address at which clients reach a server, for an invitation: given, configured, remembered, or guessed.

A configured one may be a list: the client can be at each of these servers.
"""

from __future__ import annotations

import socket
from ipaddress import ip_network
from typing import NamedTuple

from pipeline.config import Config
from pipeline.config.values import Endpoint, parse_endpoint
from pipeline.credentials import invitation
from pipeline.credentials.state_dir import StateDir
from pipeline.errors import ConfigError, LocalError, Problem, TunnelError
from pipeline.log import LOG
from pipeline.transport.address import format_address

PROBE_ADDRESSES = ("192.0.2.1", 9), ("2001:db8::1", 9)
"""Documentation addresses (RFC 5737, RFC 3849): a route to them is the default route. Nothing is sent there."""

PRIVATE = tuple(
    ip_network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "127.0.0.0/8"),
        *("fc00::/7", "fe80::/10", "::1/128"),
    )
)
"""Networks that are not reached from outside: RFC 1918, 6598, 4193, link-local and loopback."""


class PublicAddress(NamedTuple):
    """`server`: HOST:PORT. `is_guessed`: nobody has named it. `others`: further servers, each HOST:PORT."""

    server: str
    is_guessed: bool
    others: tuple[str, ...] = ()

    @property
    def is_private(self) -> bool:
        """Whether it is a guess that only a network of its own reaches."""
        address = parse_endpoint(self.server).address
        if not self.is_guessed or address is None:
            return False
        return any(address in network for network in PRIVATE if network.version == address.version)


def find(given: str, config: Config, state: StateDir | None) -> PublicAddress:
    """`given`: by the command, or "". TunnelError if none is known, or the one that is known is none."""
    configured, *others = ("",) if given else config.public_addresses or ("",)
    remembered = state.load_public_addr() if state and not config.public_addr else ""
    named = given or configured or remembered
    try:
        server = invitation.with_port(named or _guess(config), config.listen_endpoint.port)
    except ValueError as expected:
        raise LocalError(f"--address: given {named}, expected {expected}") from None
    return PublicAddress(server, is_guessed=not named, others=tuple(others))


def remember(given: str, config: Config, state: StateDir | None) -> bool:
    """Keep the address for the next invitations, unless the configuration has one. Whether it was kept."""
    if not given or config.public_addr or state is None:
        return False
    try:
        state.save_public_addr(given)
    except TunnelError as error:
        LOG.warning("%s", error)
        return False
    return True


def _guess(config: Config) -> str:
    """The address that we listen on, else the one from which this machine reaches others."""
    endpoint = config.listen_endpoint
    if endpoint.address is None or not endpoint.address.is_unspecified:
        return format_address(endpoint)
    for family, probe in zip((socket.AF_INET, socket.AF_INET6), PROBE_ADDRESSES, strict=True):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect(probe)
                return format_address(Endpoint(sock.getsockname()[0], endpoint.port))
        except OSError:
            continue  # no route there
    raise ConfigError([Problem("public_addr", "unknown: give --address HOST, or set public_addr")])
