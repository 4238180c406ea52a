"""TLS on a non-blocking socket: a channel that both duties of a tcp worker use.

    handshake()       one step                                       inbound duty
    receive()         from the socket, decrypted into a view         inbound duty
    seal_records()    ciphertext of pieces, a list of records        outbound duty; the inbound one before there is any
    seal()            ciphertext of pieces, joined                   as seal_records()
    close_notify()    the last record                                inbound duty

An OpenSSL object is for one thread at a time, and CPython releases its own lock inside. So a channel has a lock, which
is held while OpenSSL works and never over a system call. OpenSSL's answers to what receive() reads (to a KeyUpdate)
wait in the outgoing BIO, under that lock. They leave ahead of the next record; `has_output` says that there are any.

OpenSSL gets whole records, one at a time. So it asks for more only when a record had no data in it. A BIO never gives
memory back, but neither a BIO nor OpenSSL's buffers grow beyond a record. Records that are not decrypted yet wait in
the record buffer, which all channels of a context share.

Costs of a hostile peer: a record in OpenSSL and two saved outside; EMPTY_RECORDS_MAX records without data, and one for
each with data; ANSWER_BYTES_MAX bytes of answers. In a handshake OpenSSL's own limits hold (a message of 128 KiB).
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import cast

from pipeline.transport.tls_context import TlsContext
from pipeline.transport.tls_records import RECORD_BYTES, RECORD_HEADER_BYTES, length_at

EMPTY_RECORDS_MAX = 32  # records without data more than with: as many as OpenSSL bears in a row (MAX_EMPTY_RECORDS)
ANSWER_BYTES_MAX = 4096  # bytes that may wait unsent because of what the peer sent; an answer has 27
FLIGHT_BYTES = 4096  # of a handshake, received at a time
RECORDS_MOST = 128  # opened in one receive: tiny ones take 1.4 us each, and the other channels wait
MARGIN_BYTES = 2048  # received beyond the room in the view: headers and tags of its records


class TlsChannel:
    """TLS of one connection. Each failure is an OSError (ssl.SSLError is one), which ends the connection.

    BlockingIOError: not now. Its many attributes are OpenSSL's object with its BIOs, and where a handshake and a record
    stand.
    """

    def __init__(self, sock: socket.socket, context: TlsContext, server: bool, hostname: str | None) -> None:
        self._socket = sock
        self._buffer = context.record_buffer
        self._context = context
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server, hostname)
        # typeshed does not know the form of read() that fills a buffer and returns the number of bytes
        self._read = cast("Callable[[int, memoryview], int]", self._object.read)
        self._write = self._object.write
        self._lock = threading.Lock()
        self._awaits_peer = server  # the next step of the handshake needs bytes of the peer
        self._unsent_flight = b""  # of the handshake, not taken by the socket yet
        self._plaintext_left = False  # the last record did not fit into the view: OpenSSL has the rest of it
        self._socket_has_more = False  # the last receive from the socket took all that it asked for
        self._ended = False
        self._empty_records = 0
        self.records = self.moved_bytes = (
            0  # opened, and moved into and out of the buffer, since the caller set them to 0
        )
        self.ready = False  # the handshake is done
        self.pending = False  # there are data inside that no event of the socket will announce
        self.has_output = False  # OpenSSL has answers for the next seal_records(), which may be of nothing
        self.saved_records = b""  # of the record buffer, while another channel owns it

    # -- the handshake

    @property
    def wants_write(self) -> bool:
        """Whether the handshake waits for room in the socket, not for the peer."""
        return bool(self._unsent_flight)

    def handshake(self) -> bool:
        """Do one step. True when the handshake is done; `pending` may be set then. BlockingIOError until then."""
        self._send_flight()
        if self._awaits_peer:
            self._receive_flight()
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            self._awaits_peer = True
            self._send_flight()
            raise _would_block() from None
        except OSError:
            with suppress(OSError):  # the alert; the peer can do without it
                self._send_flight()
            raise
        self._awaits_peer = False
        if not self._context.accepts(self.selected_alpn):
            raise _aborted(f"by ALPN the other end does not speak {', '.join(self._context.alpn) or None}")
        if self._incoming.pending:  # records that arrived right behind the handshake
            self._buffer.replace(self._incoming.read())
            self.pending = self._buffer.has_whole_record
        self._send_flight()
        self.ready = True
        return True

    def _receive_flight(self) -> None:
        buffer = self._buffer
        buffer.switch_to(self)
        buffer.receive(self._socket, FLIGHT_BYTES)
        self._incoming.write(buffer.data[buffer.start : buffer.end])
        buffer.start = buffer.end

    def _send_flight(self) -> None:
        if self._outgoing.pending:
            self._unsent_flight += self._outgoing.read()
        if self._unsent_flight:
            self._unsent_flight = self._unsent_flight[self._socket.send(self._unsent_flight) :]
            if self._unsent_flight:
                raise _would_block()

    @property
    def selected_alpn(self) -> str | None:
        """The ALPN name that both ends have, after the handshake."""
        return self._object.selected_alpn_protocol()

    def binding(self) -> bytes:
        """The Finished message of the client: no two connections have one, and nobody else knows it (RFC 5929, 3)."""
        return self._object.get_channel_binding("tls-unique") or b""

    def certificate(self) -> bytes:
        """The other end's certificate, DER; empty if it has shown none."""
        return self._object.getpeercert(True) or b""

    # -- inbound

    def receive(self, view: memoryview, most: int = RECORDS_MOST) -> int:
        """Fill a view, which has room, with decrypted bytes of at most so many records: their number; 0 at the end.

        Only a view that is filled to its end, or `most` records, leave anything pending.
        """
        buffer = self._buffer
        self.moved_bytes += buffer.switch_to(self)
        size = len(view)
        filled = self._decrypt(view, 0, most) if self.pending else 0
        if filled < size and not (self._ended or self.pending) and (self._socket_has_more or not filled):
            try:
                self._socket_has_more = buffer.receive(self._socket, max(size - filled, RECORD_BYTES) + MARGIN_BYTES)
            except BlockingIOError:
                if not filled:
                    raise
            else:
                filled = self._decrypt(view, filled, most)
        if not filled and not self._ended:
            raise _would_block()
        return filled

    def _decrypt(self, view: memoryview, filled: int, most: int) -> int:
        """Decrypt the whole records of the buffer into view[filled:]. Bytes that are in the view then."""
        buffer, feed, read = self._buffer, self._incoming.write, self._read
        data, at, end = buffer.data, buffer.start, buffer.end
        size = len(view)
        records = 0
        with self._lock:
            if self._plaintext_left:
                filled += read(size - filled, view[filled:])
            while filled < size and end - at >= RECORD_HEADER_BYTES and records < most:
                record_end = at + RECORD_HEADER_BYTES + length_at(data, at + 3)[0]
                if record_end > end:
                    break
                feed(data[at:record_end])
                at = record_end
                records += 1
                try:
                    count = read(size - filled, view[filled:])
                except ssl.SSLWantReadError:
                    self._count_empty_record()
                    records -= 1  # these have a limit of their own
                    continue
                if not count:
                    self._ended = True
                    break
                filled += count
                if self._empty_records:
                    self._empty_records -= 1
            self._plaintext_left = filled == size and self._object.pending() > 0
        buffer.start = at
        self.records += records
        self.pending = self._plaintext_left or (at < end and not self._ended and buffer.has_whole_record)
        return filled

    def _count_empty_record(self) -> None:
        self._empty_records += 1
        waiting = self._outgoing.pending
        if self._empty_records > EMPTY_RECORDS_MAX or waiting > ANSWER_BYTES_MAX:
            raise _aborted(
                f"{self._empty_records} more TLS records without data than with data, {waiting} bytes of answers wait "
                "unread"
            )
        self.has_output = waiting > 0

    def detach(self) -> bytes:
        """The bytes that have arrived and are not decrypted: they are none of TLS. Nothing else may be called then.

        ConnectionAbortedError if the last record of TLS had more in it than was read.
        """
        if self._plaintext_left or self._object.pending():
            raise _aborted("more bytes in the last record of TLS than the handshake has")
        buffer = self._buffer
        buffer.switch_to(self)
        rest = bytes(buffer.data[buffer.start : buffer.end])
        buffer.replace(b"")
        return rest

    # -- outbound

    def seal_records(self, pieces: Sequence[bytes | memoryview]) -> list[bytes]:
        """Ciphertext of the pieces in as few records as possible; OpenSSL's own output is in front of it."""
        sealed: list[bytes] = []
        partial: list[bytes | memoryview] = []  # the record that is not full yet
        room = RECORD_BYTES
        write, fetch = self._write, self._outgoing.read
        with self._lock:
            for piece in pieces:
                size = len(piece)
                at = 0
                if size >= room:
                    piece = memoryview(piece)
                    if partial:
                        partial.append(piece[:room])
                        self._seal_record(partial, sealed)
                        partial = []
                        at = room
                    while size - at >= RECORD_BYTES:
                        at += write(piece[at : at + RECORD_BYTES])
                        sealed.append(fetch())
                    piece = piece[at:]
                    room = RECORD_BYTES
                if size > at:
                    partial.append(piece)
                    room -= size - at
            if partial:
                self._seal_record(partial, sealed)
            elif self._outgoing.pending:
                sealed.append(fetch())
            self.has_output = False
        return sealed

    def _seal_record(self, pieces: list[bytes | memoryview], sealed: list[bytes]) -> None:
        """One record of several pieces."""
        self._write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        sealed.append(self._outgoing.read())

    def seal(self, pieces: Sequence[bytes | memoryview]) -> bytes:
        """The records of seal_records(), joined."""
        return b"".join(self.seal_records(pieces))

    def close_notify(self) -> bytes:
        """The alert that ends the outbound direction. Nothing is sealed or received after it."""
        with self._lock:
            self._ended = True
            self.pending = False
            with suppress(OSError):  # the alert is there; OpenSSL would like to wait for the peer's
                self._object.unwrap()
            return self._outgoing.read()


def _would_block() -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, "nothing has arrived, or there is no room to send")


def _aborted(text: str) -> ConnectionAbortedError:
    return ConnectionAbortedError(errno.ECONNABORTED, text)
