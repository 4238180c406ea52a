"""TLS on a non-blocking socket: the contexts of both ends, and a channel that two duties share.

    handshake()   one step                                        inbound duty
    receive()     from the socket, decrypted into a view          inbound duty
    records()     ciphertext of pieces, for the socket            outbound duty; before there is one for it, inbound
    seal()        the same in one piece

An OpenSSL object is for one thread at a time and CPython lets go of its own lock inside, so a channel has a lock, held
while OpenSSL works and never over a system call. What receive() makes OpenSSL say (the answer to a KeyUpdate) waits in
the outgoing BIO, under that lock, and leaves ahead of the next record; `unsent` says that it waits.

OpenSSL sees whole records, one at a time: so it asks for more only when a record had no data in it, and neither its
buffers nor a BIO, which never gives memory back, grow beyond a record. What is not decrypted yet is in the inlet, which
all channels of a context share.

Costs of a peer that means harm: a record in OpenSSL and two in the stash; BARREN_MAX records in a row without data;
ANSWERS_MAX bytes of answers. In a handshake OpenSSL's own limits hold (a message of 128 KiB).
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress

from pipeline.transport.tls_context import ALPN, TlsContext
from pipeline.transport.tls_records import HEADER, RECORD, length_at

BARREN_MAX = 32  # records in a row without data: as many as OpenSSL bears empty ones (MAX_EMPTY_RECORDS)
ANSWERS_MAX = 4096  # bytes that may wait unsent because of what the peer sent; an answer has 27
FLIGHT = 4096  # of a handshake, received at a time
MARGIN = 2048  # received beyond what the view takes: headers and tags of its records


class TlsChannel:
    """One connection. Whatever ends it is an OSError (ssl.SSLError is one); BlockingIOError: not now."""

    def __init__(self, sock: socket.socket, context: TlsContext, server: bool, hostname: str | None) -> None:
        self._socket = sock
        self._inlet = context.inlet
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server, hostname)
        self._read, self._write = self._object.read, self._object.write
        self._lock = threading.Lock()
        self._listens = server  # the next step of the handshake begins with what the peer says
        self._flight = b""  # of the handshake, not taken by the socket yet
        self._left = False  # the last record did not fit into the view: OpenSSL has the rest of it
        self._full = False  # the last receive from the socket took all that it asked for
        self._ended = False
        self._barren = 0
        self.ready = False  # the handshake is done
        self.pending = False  # there is something inside that no event of the socket will announce
        self.unsent = False  # something waits for the next records(), which may be of nothing
        self.stash = b""  # of the inlet, while another channel has it

    # -- the handshake

    @property
    def wants_write(self) -> bool:
        """The handshake waits for room in the socket, not for the peer."""
        return bool(self._flight)

    def handshake(self) -> bool:
        """One step. True when done: then look at `pending`. BlockingIOError until then."""
        self._send_flight()
        if self._listens:
            self._hear()
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            self._listens = True
            self._send_flight()
            raise _not_now() from None
        except OSError:
            with suppress(OSError):  # the alert: if it does not go out now, nobody will miss it
                self._send_flight()
            raise
        self._listens = False
        if self._object.selected_alpn_protocol() != ALPN:
            raise _aborted(f"the other end does not speak {ALPN} (ALPN)")
        if self._incoming.pending:  # what came right behind the handshake
            self._inlet.put(self._incoming.read())
            self.pending = self._inlet.whole
        self._send_flight()
        self.ready = True
        return True

    def _hear(self) -> None:
        inlet = self._inlet
        inlet.turn_to(self)
        inlet.fill(self._socket, FLIGHT)
        self._incoming.write(inlet.scratch[: inlet.end])
        inlet.at = inlet.end

    def _send_flight(self) -> None:
        if self._outgoing.pending:
            self._flight += self._outgoing.read()
        if self._flight:
            self._flight = self._flight[self._socket.send(self._flight) :]
            if self._flight:
                raise _not_now()

    def certificate(self) -> bytes:
        """DER of the other end's; empty if it has shown none."""
        return self._object.getpeercert(True) or b""

    # -- in

    def receive(self, view: memoryview) -> int:
        """Fill the view, which has room, with what is there; 0 at the end. Only a full one leaves anything pending."""
        inlet = self._inlet
        inlet.turn_to(self)
        size = len(view)
        got = self._open(view, 0) if self.pending else 0
        if got < size and not self._ended and (self._full or not got):
            try:
                self._full = inlet.fill(self._socket, max(size - got, RECORD) + MARGIN)
            except BlockingIOError:
                if not got:
                    raise
            else:
                got = self._open(view, got)
        if not got and not self._ended:
            raise _not_now()
        return got

    def _open(self, view: memoryview, got: int) -> int:
        """Decrypt what is in the inlet into view[got:]. How much is in the view then."""
        inlet, feed, read = self._inlet, self._incoming.write, self._read
        scratch, at, end = inlet.scratch, inlet.at, inlet.end
        size = len(view)
        with self._lock:
            if self._left:
                got += read(size - got, view[got:])
            while got < size and end - at >= HEADER:
                after = at + HEADER + length_at(scratch, at + 3)[0]
                if after > end:
                    break
                feed(scratch[at:after])
                at = after
                try:
                    count = read(size - got, view[got:])
                except ssl.SSLWantReadError:
                    self._count_barren()
                    continue
                if not count:
                    self._ended = True
                    break
                got += count
                self._barren = 0
            self._left = got == size and self._object.pending() > 0
        inlet.at = at
        self.pending = self._left or (at < end and not self._ended and inlet.whole)
        return got

    def _count_barren(self) -> None:
        self._barren += 1
        waiting = self._outgoing.pending
        if self._barren > BARREN_MAX or waiting > ANSWERS_MAX:
            raise _aborted(f"{self._barren} TLS records in a row without data, {waiting} bytes of answers wait unread")
        self.unsent = waiting > 0

    # -- out

    def records(self, pieces: Sequence[bytes | memoryview]) -> list[bytes]:
        """Ciphertext of the pieces in as few records as they take, and before it whatever else waits to go out."""
        sealed: list[bytes] = []
        begun: list[bytes | memoryview] = []  # the record that is not full yet
        room = RECORD
        write, take = self._write, self._outgoing.read
        with self._lock:
            for piece in pieces:
                size = len(piece)
                at = 0
                if size >= room:
                    piece = memoryview(piece)
                    if begun:
                        begun.append(piece[:room])
                        self._seal(begun, sealed)
                        begun = []
                        at = room
                    while size - at >= RECORD:
                        at += write(piece[at : at + RECORD])
                        sealed.append(take())
                    piece = piece[at:]
                    room = RECORD
                if size > at:
                    begun.append(piece)
                    room -= size - at
            if begun:
                self._seal(begun, sealed)
            elif self._outgoing.pending:
                sealed.append(take())
            self.unsent = False
        return sealed

    def _seal(self, pieces: list[bytes | memoryview], sealed: list[bytes]) -> None:
        """One record of several pieces."""
        self._write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        sealed.append(self._outgoing.read())

    def seal(self, pieces: Sequence[bytes | memoryview]) -> bytes:
        """The same in one piece."""
        return b"".join(self.records(pieces))

    def closing(self) -> bytes:
        """A goodbye (close_notify). Nothing is sealed or received after it. Of the inbound duty, like receive()."""
        with self._lock:
            self._ended = True
            self.pending = False
            with suppress(OSError):  # the goodbye is there; OpenSSL would like to wait for the peer's
                self._object.unwrap()
            return self._outgoing.read()


def _not_now() -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, "nothing has come in, or there is no room to send")


def _aborted(text: str) -> ConnectionAbortedError:
    return ConnectionAbortedError(errno.ECONNABORTED, text)
