"""The proxy of a client, as `proxy` or the environment names it: a URL without a path. And the URL of a WebSocket.

    parse(text)              of the setting, which has no password in it: `proxy_login_file` has it
    of_environment(host)     of https_proxy or all_proxy, in either case, unless no_proxy has the host
    parse_websocket(text)    of `websocket`

ValueError says what was expected, and shows no password.
"""

from __future__ import annotations

import string

from pipeline.config.values import parse_endpoint
from pipeline.wire.approach import Proxy
from pipeline.wire.websocket_url import PORTS, WebSocketUrl

ENVIRONMENT = "environment"
SCHEMES = {each: each for each in ("http", "https", "socks5")} | {"socks5h": "socks5"}  # socks5h: curl's name
FORM = 'a URL of scheme http, https or socks5 with host and port, such as "http://proxy.example.org:3128"'
WEBSOCKET_FORM = 'a URL of scheme wss or ws with host and path, such as "wss://www.example.org/tunnel"'
PATH_CHARACTERS = set(string.ascii_letters + string.digits + "/-._~!$&'()*+,;=:@%?")  # RFC 3986
FIELD_BYTES_MAX = 255  # of a user or a password (RFC 1929)
VARIABLES = ("https", "all")  # as getproxies() names them: https_proxy, all_proxy


def parse(text: str) -> Proxy:
    login, proxy = _split(text)
    if login:
        raise ValueError("no user and password in it: put USER:PASSWORD into a file, and name it in proxy_login_file")
    return proxy


def parse_websocket(text: str) -> WebSocketUrl:
    scheme, slashes, rest = text.partition("://")
    place, _, path = rest.partition("/")
    port = PORTS.get(scheme.lower())
    if not slashes or port is None or not place or "@" in place or not set(path) <= PATH_CHARACTERS:
        raise ValueError(WEBSOCKET_FORM)
    has_port = ":" in place.rpartition("]")[2]
    endpoint = parse_endpoint(place if has_port else f"{place}:{port}")
    if place.startswith(":") or endpoint.port == 0 or endpoint.lacks_zone:
        raise ValueError(WEBSOCKET_FORM)
    return WebSocketUrl(scheme.lower(), endpoint.host, endpoint.port, f"/{path}")


def without_login(text: str) -> str:
    """The text as it may be shown."""
    scheme, slashes, rest = text.partition("://")
    return f"{scheme}://...@{rest.rpartition('@')[2]}" if slashes and "@" in rest else text


def of_environment(host: str) -> Proxy | None:
    """None: the environment names no proxy, or none for this host."""
    from urllib.parse import unquote  # both are for this alone
    from urllib.request import getproxies, proxy_bypass  # on Linux those of the environment

    named = getproxies()
    text = next((named[variable] for variable in VARIABLES if variable in named), "")
    if not text or proxy_bypass(host, named):
        return None
    login, proxy = _split(text)
    if not login:
        return proxy
    user, _, password = login.partition(":")
    fields = unquote(user), unquote(password)
    if not all(1 <= len(field.encode()) <= FIELD_BYTES_MAX for field in fields):
        raise ValueError(f"user and password in the URL of 1 to {FIELD_BYTES_MAX} bytes each, or none")
    return proxy._replace(login=fields)


def _split(text: str) -> tuple[str, Proxy]:
    """Login and URL."""
    scheme, slashes, rest = text.partition("://")
    login, _, place = rest.rpartition("@")
    known = SCHEMES.get(scheme.lower())
    if not slashes or known is None:
        raise ValueError(FORM)
    place = place.removesuffix("/")
    if "/" in place:
        raise ValueError(FORM)
    endpoint = parse_endpoint(place)
    if place.startswith(":") or endpoint.port == 0:
        raise ValueError(FORM)
    if endpoint.lacks_zone:
        raise ValueError(f'the interface in a link-local address, such as "[{endpoint.host}%eth0]:{endpoint.port}"')
    return login, Proxy(known, endpoint.host, endpoint.port)
