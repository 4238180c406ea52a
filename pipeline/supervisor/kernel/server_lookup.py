"""The addresses of a client's server, whose name a thread looks up: the supervisor waits for nothing.

Before these are known, no configured route can be judged: it might lead the connections to the server into the tunnel.
Workers look the name up by themselves before each attempt; the address that a WELCOME came from is known as well.
"""

from __future__ import annotations

import socket
import threading
from ipaddress import ip_address

from pipeline.log import LOG
from pipeline.policy.kernel_entries import IPAddress
from pipeline.system import task_limit

RETRY_SECONDS = 2.0  # before the network is up there is no answer


class ServerLookup:
    """`addresses` is empty until there is an answer. OSError if there may be no further thread."""

    def __init__(self, host: str) -> None:
        self.addresses: tuple[IPAddress, ...] = ()
        self._host = host
        self._closed = threading.Event()
        task_limit.start(threading.Thread(target=self._look_up, name="server lookup", daemon=True))

    def _look_up(self) -> None:
        while not self._closed.is_set():
            try:
                found = socket.getaddrinfo(self._host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                LOG.debug("server %s: %s", self._host, error)
                self._closed.wait(RETRY_SECONDS)
                continue
            texts = [str(address[0]).partition("%")[0] for *_, address in found]
            self.addresses = tuple(dict.fromkeys(map(ip_address, texts)))
            return

    def close(self) -> None:
        self._closed.set()
