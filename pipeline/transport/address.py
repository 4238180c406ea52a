"""Socket addresses as Python's socket module gives them, and as people write them."""

from __future__ import annotations

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""Of AF_INET: host, port. Of AF_INET6: host, port, flow information, scope."""


def format_address(address: SocketAddress) -> str:
    """host:port or [host]:port. An IPv4 address on a socket for both (RFC 4291, 2.5.5.2) is written as IPv4."""
    host, port = plain_host(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def plain_host(host: str) -> str:
    """An address without a port, as people write it."""
    return host.removeprefix("::ffff:") if "." in host else host
