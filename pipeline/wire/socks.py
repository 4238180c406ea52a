"""The approach through a SOCKS5 proxy: RFC 1928, with user and password of RFC 1929. Pure."""

from __future__ import annotations

import ipaddress

from pipeline.wire.approach import CLOSED, NO_LOGIN, WRONG_LOGIN, Conversation, Step, Talk, forbidden

VERSION, LOGIN_VERSION = 5, 1
ANYBODY, GSSAPI, BY_LOGIN, NONE_FITS = 0, 1, 2, 255  # methods
CONNECT = 1
NOT_ALLOWED = 2
IPV4, NAME, IPV6 = 1, 3, 4
ADDRESS_BYTES = {IPV4: 4, IPV6: 16}
FIELD_MAX = 255  # bytes of a user, a password, a name

REPLIES = {
    1: "the proxy has failed to connect to the server, and does not say why (SOCKS reply 1)",
    3: "the proxy has no way to the server: network unreachable (SOCKS reply 3)",
    4: "the proxy cannot reach the server, or not find its name (SOCKS reply 4)",
    5: "the server has refused the connection of the proxy (SOCKS reply 5): is it this server's port?",
    6: "the proxy gets no answer from the server (SOCKS reply 6)",
    7: "the proxy does not connect for others (SOCKS reply 7)",
    8: "the proxy does not take this form of address (SOCKS reply 8): a name, IPv4 or IPv6 in remote_addr may do",
}
NO_SOCKS = "what answers there speaks no SOCKS5: is it this proxy's port, or a proxy of another kind?"
OTHER_WAY = "the proxy accepts no login that we know: such a proxy needs proxy_command"


class SocksApproach:
    """`host`: an address or a name of ASCII characters."""

    def __init__(self, host: str, port: int, login: tuple[str, str] | None) -> None:
        self._destination = _destination(host) + port.to_bytes(2, "big")
        self._port = port
        self._login = login
        self._talk = Conversation(self._converse())

    def begin(self) -> bytes:
        return self._talk.begin()

    def feed(self, data: bytes) -> Step:
        return self._talk.feed(data)

    def closed(self) -> str:
        return CLOSED

    def _converse(self) -> Talk:
        login = self._login
        methods = (ANYBODY, BY_LOGIN) if login else (ANYBODY,)
        version, method = yield bytes((VERSION, len(methods), *methods)), 2
        if version != VERSION:
            return NO_SOCKS
        if method == BY_LOGIN and login is not None:
            fields = b"".join(bytes((len(field),)) + field for field in map(str.encode, login))
            _, status = yield bytes((LOGIN_VERSION,)) + fields, 2
            if status:
                return WRONG_LOGIN
        elif method != ANYBODY:
            return NO_LOGIN if login is None else OTHER_WAY
        version, reply, _, kind = yield bytes((VERSION, CONNECT, 0)) + self._destination, 4
        if version != VERSION:
            return NO_SOCKS
        if reply == NOT_ALLOWED:
            return f"{forbidden(self._port)} (SOCKS reply {reply})"
        if reply:
            return REPLIES.get(reply, f"the proxy refuses (SOCKS reply {reply})")
        size = ADDRESS_BYTES.get(kind, 0)
        if kind == NAME:
            (size,) = yield b"", 1
        elif not size:
            return NO_SOCKS
        yield b"", size + 2  # the proxy's own address and port: of no use
        return ""


def _destination(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("ascii")
        return bytes((NAME, len(name))) + name
    return bytes((IPV4 if address.version == 4 else IPV6,)) + address.packed
