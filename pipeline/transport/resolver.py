"""The resolver of a server's name. A lookup can take any time, so it runs in a thread of its own.

An address needs no thread: its lookup only finds the number of the interface that a link-local address names. The
eventfd `wake` becomes readable when there is an answer. A thread that ends after close() touches no descriptor: another
one may have its number by then.
"""

from __future__ import annotations

import ipaddress
import os
import queue
import socket
import threading
from collections.abc import Iterable
from typing import NamedTuple

from pipeline.policy.server_addresses import ServerAddress
from pipeline.system import task_limit
from pipeline.transport.failure_words import of_error
from pipeline.transport.uplink_names import look_up_around, uplink_servers

NOT_LISTED = "its SRV records are not known yet"


class ResolverAnswer(NamedTuple):
    """The addresses of the name; without any, the reason."""

    addresses: list[ServerAddress]
    why: str = ""


class Resolver:
    """Looks one name up, any number of times. `asks_around`: also around the tunnel, if the system's resolver fails."""

    def __init__(self, host: str, port: int, *, asks_around: bool = False) -> None:
        self._host = host
        self._port = port
        self._asks_around = asks_around
        self._is_address = _is_address(host)
        self._answers: queue.SimpleQueue[ResolverAnswer] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._is_closed = False
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def begin(self) -> None:
        """Begin a lookup; an address is looked up at once."""
        if self._is_address:
            self._answers.put(look_up(self._host, self._port))
        elif not self._port:
            self._answers.put(ResolverAnswer([], NOT_LISTED))
        else:
            try:
                task_limit.start(threading.Thread(target=self._look_up, name="resolver", daemon=True))
            except OSError as error:
                self._answers.put(ResolverAnswer([], f"no thread for a lookup: {task_limit.explain(error)}"))

    def answers(self) -> list[ResolverAnswer]:
        """The answers that have arrived."""
        try:
            os.eventfd_read(self.wake)
        except BlockingIOError:
            pass
        found = []
        while not self._answers.empty():
            found.append(self._answers.get())
        return found

    def close(self) -> None:
        with self._closing:
            self._is_closed = True
            os.close(self.wake)

    def _look_up(self) -> None:
        answer = look_up(self._host, self._port)
        if self._asks_around and not answer.addresses:
            found = look_up_around(self._host, self._port, uplink_servers())
            answer = ResolverAnswer(found) if found else answer
        self._answers.put(answer)
        with self._closing:
            if not self._is_closed:
                os.eventfd_write(self.wake, 1)


def look_up(host: str, port: int) -> ResolverAnswer:
    """Ask the system's resolver; this may block for long."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return ResolverAnswer([], of_error(error))
    except UnicodeError:
        return ResolverAnswer([], "this is no name that can be looked up")
    # a Python without IPv6 gives IPv6 addresses as bytes
    addresses = [
        ServerAddress(family, address) for family, _, _, _, address in found if not isinstance(address[1], bytes)
    ]
    return ResolverAnswer(addresses, "" if addresses else "the name has no address")


def known_addresses(hosts: Iterable[str], port: int) -> list[ServerAddress]:
    """Addresses that need no resolver. One that makes no sense, or whose interface is gone, is none."""
    return [found for host in hosts if _is_address(host) for found in look_up(host, port).addresses]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    return True
