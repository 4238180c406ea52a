"""A DNS server in a node of a lab, which answers as a test wishes: `with NameServer(node) as names: names.answer(...)`.

wrap        words in front of a command whose resolver asks this server
answer()    A records, whatever the name
refuse()    an error (RFC 1035, 4.1.1), such as NXDOMAIN
silence()   no answer
delay       seconds before each answer
"""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path
from types import TracebackType

from tools.lab.network import Node

PORT = 53
SERVFAIL, NXDOMAIN = 2, 3
TYPE_A, CLASS_IN = 1, 1
HEADER = struct.Struct(">HHHHHH")
RESPONSE = 0x8180  # a response, recursion desired and available
NAME_OF_QUESTION = 0xC00C
POLL_SECONDS = 0.1


class NameServer:
    def __init__(self, node: Node, directory: Path) -> None:
        file = directory / "resolv.conf"
        file.write_text(f"nameserver {node.address}\n")
        self.wrap = ["unshare", "--mount", "sh", "-c", f'mount --bind {file} /etc/resolv.conf && exec "$@"', "sh"]
        self.delay = 0.0
        self.asked = 0
        self._addresses: list[str] = []
        self._error = 0
        self._is_silent = False
        self._socket = node.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((node.address, PORT))
        self._socket.settimeout(POLL_SECONDS)
        self._done = threading.Event()
        self._timers: list[threading.Timer] = []
        self._thread = threading.Thread(target=self._serve)

    def answer(self, *addresses: str) -> None:
        self._addresses, self._error, self._is_silent = list(addresses), 0, False

    def refuse(self, error: int) -> None:
        self._error, self._is_silent = error, False

    def silence(self) -> None:
        self._is_silent = True

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
            self.asked += 1
            if not self._is_silent:
                timer = threading.Timer(self.delay, self._socket.sendto, (self._answer_to(query), client))
                timer.start()
                self._timers.append(timer)

    def _answer_to(self, query: bytes) -> bytes:
        serial = HEADER.unpack_from(query)[0]
        end = query.index(0, HEADER.size) + 5
        question = query[HEADER.size : end]
        records = b""
        count = 0
        if not self._error and struct.unpack(">HH", question[-4:]) == (TYPE_A, CLASS_IN):
            count = len(self._addresses)
            records = b"".join(
                struct.pack(">HHHIH", NAME_OF_QUESTION, TYPE_A, CLASS_IN, 0, 4) + socket.inet_aton(address)
                for address in self._addresses
            )
        return HEADER.pack(serial, RESPONSE | self._error, 1, count, 0, 0) + question + records
