"""The addresses of a client's servers, whose names a thread looks up: the supervisor waits for nothing.

Before these are known, no configured route can be judged: it might lead the connections to the server into the tunnel.
Workers look the name up by themselves before each attempt; the address that a WELCOME came from is known as well.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from ipaddress import ip_address

from pipeline.log import LOG
from pipeline.policy.kernel_entries import IPAddress
from pipeline.system import task_limit

RETRY_SECONDS = 2.0  # before the network is up there is no answer


class ServerLookup:
    """`addresses` has those of the answers so far; `is_complete`: each name has got one. OSError if there may be no
    further thread."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.addresses: tuple[IPAddress, ...] = ()
        self.is_complete = False
        self._hosts = list(hosts)
        self._closed = threading.Event()
        task_limit.start(threading.Thread(target=self._look_up, name="server lookup", daemon=True))

    def _look_up(self) -> None:
        waiting = self._hosts
        while waiting and not self._closed.is_set():
            waiting = [host for host in waiting if not self._has_answer(host)]
            if waiting:
                self._closed.wait(RETRY_SECONDS)
        self.is_complete = not waiting

    def _has_answer(self, host: str) -> bool:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            LOG.debug("server %s: %s", host, error)
            return False
        texts = [str(address[0]).partition("%")[0] for *_, address in found]
        self.addresses = tuple(dict.fromkeys([*self.addresses, *map(ip_address, texts)]))
        return True

    def close(self) -> None:
        self._closed.set()
