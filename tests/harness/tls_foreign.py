"""A TLS client that is driven through libssl itself, because Python's ssl module cannot change keys."""

from __future__ import annotations

import ctypes
import socket
import ssl
from ctypes import c_char_p, c_int, c_long, c_uint8, c_void_p

import pytest

from pipeline.transport.settings import ALPN
from pipeline.transport.tls_context import TlsContext
from tests.harness.tls_ends import End

KEY_UPDATE_REQUESTED = 1  # openssl/ssl.h, as are the next two
SET_MAX_PROTO_VERSION = 124
TLS_1_2 = 0x0303
FRAGMENTS_OF_512 = 1  # RFC 6066, 4

_FUNCTIONS = {
    "TLS_client_method": (c_void_p,),
    "SSL_CTX_new": (c_void_p, c_void_p),
    "SSL_CTX_free": (None, c_void_p),
    "SSL_CTX_ctrl": (c_long, c_void_p, c_int, c_long, c_void_p),
    "SSL_CTX_set_alpn_protos": (c_int, c_void_p, c_char_p, c_int),
    "SSL_CTX_set_tlsext_max_fragment_length": (c_int, c_void_p, c_uint8),
    "SSL_new": (c_void_p, c_void_p),
    "SSL_free": (None, c_void_p),
    "SSL_set_fd": (c_int, c_void_p, c_int),
    "SSL_connect": (c_int, c_void_p),
    "SSL_do_handshake": (c_int, c_void_p),
    "SSL_key_update": (c_int, c_void_p, c_int),
    "SSL_renegotiate": (c_int, c_void_p),
    "SSL_write": (c_int, c_void_p, c_char_p, c_int),
    "SSL_read": (c_int, c_void_p, c_void_p, c_int),
}


def _library() -> ctypes.CDLL:
    """The libssl that Python uses."""
    library = ctypes.CDLL(ssl._ssl.__file__)  # its own symbols, and those of the libraries that it is linked with
    try:
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        pytest.skip(f"libssl is not within reach: {error}")
    return library


class ForeignClient:
    """The client, on a connected socket."""

    def __init__(self, sock: socket.socket, maximum: int = 0, fragments: int = 0) -> None:
        self._ssl = lib = _library()
        self.socket = sock
        self.socket.setblocking(False)
        self._context = lib.SSL_CTX_new(lib.TLS_client_method())
        lib.SSL_CTX_set_alpn_protos(self._context, bytes([len(ALPN)]) + ALPN.encode(), 1 + len(ALPN))
        lib.SSL_CTX_ctrl(self._context, SET_MAX_PROTO_VERSION, maximum, None)
        lib.SSL_CTX_set_tlsext_max_fragment_length(self._context, fragments)
        self._object = lib.SSL_new(self._context)
        lib.SSL_set_fd(self._object, self.socket.fileno())

    def connect(self) -> bool:
        """One step of the handshake. Whether it is done."""
        return self._ssl.SSL_connect(self._object) == 1

    def update_key(self) -> None:
        """Change our key, and ask the server to change its own."""
        assert self._ssl.SSL_key_update(self._object, KEY_UPDATE_REQUESTED) == 1
        assert self._ssl.SSL_do_handshake(self._object) == 1

    def renegotiate(self) -> None:
        assert self._ssl.SSL_renegotiate(self._object) == 1
        self._ssl.SSL_do_handshake(self._object)

    def write(self, data: bytes) -> None:
        assert self._ssl.SSL_write(self._object, data, len(data)) == len(data)

    def read(self, size: int) -> bytes:
        """The bytes that are there, at most `size`."""
        buffer = ctypes.create_string_buffer(size)
        count = self._ssl.SSL_read(self._object, buffer, size)
        return buffer.raw[: max(0, count)]

    def close(self) -> None:
        self._ssl.SSL_free(self._object)
        self._ssl.SSL_CTX_free(self._context)
        self.socket.close()


class Foreign(ForeignClient):
    """The client, and the end of its connection that our server has."""

    def __init__(self, server: TlsContext, maximum: int = 0, fragments: int = 0) -> None:
        near, far = socket.socketpair()
        super().__init__(near, maximum, fragments)
        self.server = End(far, server, server=True)
        while (not self.connect()) | (not self.server.step()):
            pass

    def close(self) -> None:
        super().close()
        self.server.socket.close()
