"""The client of a web server that passes a request on: its address, out of a header field. Pure.

    find_client(at, name, values, is_proxy)    the address nearest to the server that is no proxy's

Each proxy adds the address from which it has got the request, at the end. So the field is read from its end, and only
as far as the addresses are those of proxies that are trusted. The rest is what a client may have written itself. One
field alone is read: a proxy that writes X-Forwarded-For passes on whatever a client says in Forwarded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address, ip_address

FORWARDED = "forwarded"  # RFC 7239; every other field is a list of addresses
FOR = re.compile(r'(?:^|;)\s*for\s*=\s*(?:"([^"\\]*)"|([^\s;,"]*))\s*(?=;|$)', re.IGNORECASE)
BRACKETED = re.compile(r"\[([^\]]*)\](?::[0-9]{1,5})?")
WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}")
LIST_MAX = 64  # proxies behind each other


def find_client(at: str, name: str, values: Iterable[bytes], is_proxy: Callable[[str], bool]) -> str:
    """`at`: where the connection comes from. `name`: of the field, in lower case; `values`: of each of its lines."""
    nodes = [node for value in values for node in _nodes(name, value.decode("latin-1"))][-LIST_MAX:]
    at = address_of(at) or at
    while nodes and is_proxy(at):
        found = address_of(nodes.pop())
        if not found:
            break
        at = found
    return at


def _nodes(name: str, value: str) -> list[str]:
    elements = [element.strip() for element in value.split(",")]
    if name != FORWARDED:
        return elements
    found = [FOR.search(element) for element in elements]
    return [(match[1] or match[2] or "") if match else "" for match in found]


def address_of(node: str) -> str:
    """The address in one entry, which may have a port; "" if it has none, such as "unknown"."""
    match = BRACKETED.fullmatch(node) or WITH_PORT.fullmatch(node)
    text = match[1] if match else node
    try:
        address = ip_address(text)
    except ValueError:
        return ""
    if isinstance(address, IPv6Address):
        if address.scope_id:
            return ""
        address = address.ipv4_mapped or address
    return str(address)
