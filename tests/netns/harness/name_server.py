"""A DNS server in a node of a lab, which answers as a test wishes: `with NameServer(node) as names: names.answer(...)`.

wrap        words in front of a command whose resolver asks this server
answer()    A records, whatever the name
tell()      SRV records, whatever the name, and A records of these hosts alone
refuse()    an error (RFC 1035, 4.1.1), such as NXDOMAIN
silence()   no answer
delay       seconds before each answer
names       that were asked for
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tools.lab.namespace import Namespace
from tools.lab.network import Node

PORT = 53
SERVFAIL, NXDOMAIN = 2, 3
TYPE_A, TYPE_SRV, CLASS_IN = 1, 33, 1
HEADER = struct.Struct(">HHHHHH")
RESPONSE = 0x8180  # a response, recursion desired and available
NAME_OF_QUESTION = 0xC00C
POLL_SECONDS = 0.1


class NameServer:
    def __init__(self, node: Namespace, directory: Path, address: str = "") -> None:
        """`address`: of the node; a node of a lab has one by itself."""
        if not address:
            assert isinstance(node, Node)
            address = node.address
        file = directory / "resolv.conf"
        file.write_text(f"nameserver {address}\n")
        self.wrap = ["unshare", "--mount", "sh", "-c", f'mount --bind {file} /etc/resolv.conf && exec "$@"', "sh"]
        self.delay = 0.0
        self.names: list[str] = []
        """Of the questions, in their order."""
        self._addresses: list[str] = []
        self._hosts: dict[bytes, str] = {}  # as names stand in a question
        self._services: list[bytes] = []  # the contents of SRV records
        self._error = 0
        self._is_silent = False
        self._socket = node.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, PORT))
        self._socket.settimeout(POLL_SECONDS)
        self._done = threading.Event()
        self._timers: list[threading.Timer] = []
        self._thread = threading.Thread(target=self._serve)

    def answer(self, *addresses: str) -> None:
        self._addresses, self._error, self._is_silent = list(addresses), 0, False

    def tell(self, services: Sequence[tuple[int, int, str]], hosts: Mapping[str, str]) -> None:
        """`services`: priority, port and host of each record; `hosts`: their addresses."""
        self._services = [struct.pack(">HHH", priority, 0, port) + _encoded(host) for priority, port, host in services]
        self._hosts = {_encoded(host): address for host, address in hosts.items()}
        self._error, self._is_silent = 0, False

    def refuse(self, error: int) -> None:
        self._error, self._is_silent = error, False

    def silence(self) -> None:
        self._is_silent = True

    @property
    def asked(self) -> int:
        """How many questions there were."""
        return len(self.names)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._done.is_set():
            try:
                query, client = self._socket.recvfrom(512)
            except TimeoutError:
                continue
            self.names.append(_name_in(query))
            if not self._is_silent:
                timer = threading.Timer(self.delay, self._socket.sendto, (self._answer_to(query), client))
                timer.start()
                self._timers.append(timer)

    def _answer_to(self, query: bytes) -> bytes:
        serial = HEADER.unpack_from(query)[0]
        end = query.index(0, HEADER.size) + 5
        question = query[HEADER.size : end]
        kind, kind_of_class = struct.unpack(">HH", question[-4:])
        contents: list[bytes] = []
        if not self._error and kind_of_class == CLASS_IN:
            if kind == TYPE_A:
                known = self._hosts.get(question[:-4])
                addresses = [known] if known else [] if self._hosts else self._addresses
                contents = [socket.inet_aton(address) for address in addresses]
            elif kind == TYPE_SRV:
                contents = self._services
        records = b"".join(
            struct.pack(">HHHIH", NAME_OF_QUESTION, kind, CLASS_IN, 0, len(content)) + content for content in contents
        )
        return HEADER.pack(serial, RESPONSE | self._error, 1, len(contents), 0, 0) + question + records


def _name_in(query: bytes) -> str:
    labels, at = [], HEADER.size
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode("ascii", "replace").lower())
        at += 1 + size
    return ".".join(labels)


def _encoded(host: str) -> bytes:
    """A name as it stands in a message (RFC 1035, 3.1)."""
    return b"".join(bytes([len(label)]) + label.encode() for label in host.split(".")) + b"\0"
