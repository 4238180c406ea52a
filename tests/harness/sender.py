"""The outbound duty of a tcp worker on the shared memory of a run; connections are socket pairs in the test's hand."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from pipeline.fec.shard import RUN_BYTES
from pipeline.shm import layout
from pipeline.shm.layout import FIRST_PEER_HANDLE, RECORD_WORDS
from pipeline.shm.slot import write_header, write_run, write_run_count
from pipeline.transport.connection import Connection
from pipeline.transport.connection_list import ConnectionList
from pipeline.wire import framing
from tests.harness.run import Run
from workers.tcp.send_queue import SendQueue
from workers.tcp.sender import Sender

BODY_AT = 2048
READ_BYTES = 1 << 20


class SenderRun:
    """Lane 0 of a run. Slots are those of tun-0, or of dgram-0; their bytes are small enough for any socket."""

    def __init__(
        self, lanes: int = 1, capacity: int = 4, slots: int = 4, carrier: str = "tcp", **settings: object
    ) -> None:
        self.run = Run(lanes, capacity, slots=slots, carrier=carrier)
        attachment = self.run.attach("tcp-0")
        attachment.settings = attachment.settings._replace(**settings)
        self.counters = attachment.page.counters
        self.connection_list = ConnectionList(0)
        self.sender = Sender(attachment, self.connection_list)
        tun = self.run.attach("tun-0")
        self.fillers = {
            kind: port
            for duty in ("outbound", "inbound")
            for kind in ("light", "plain", "transit")
            for port in tun.ports(duty, kind)
            if port.ready()
        }
        if carrier != "tcp":
            (self.fillers["returned"],) = self.run.attach("dgram-0").ports("outbound", "returned")
        self._far: dict[Connection, socket.socket] = {}
        for peer in range(capacity):
            self.run.memory.peer_table.write_record(FIRST_PEER_HANDLE | peer, 0)

    def connect(self, peer: int = 0, traffic_class: int = framing.BULK) -> Connection:
        """One more connection, which the sender finds with its next burst."""
        made = self.run.connection(peer, traffic_class=traffic_class)
        self._far[made] = self.run.sockets[-1]
        for sock in (made.socket, self._far[made]):
            sock.setblocking(False)
        made.send.last_ns = time.monotonic_ns()  # else a keepalive is due
        self.connection_list.add(made)
        self._publish(peer)
        return made

    def disconnect(self, connection: Connection, now: int) -> None:
        """The inbound duty takes it off the list; what was sent and not read yet is lost with it."""
        self.connection_list.remove(connection, now)
        self._publish(connection.peer)

    def _publish(self, peer: int) -> None:
        self.run.write_link(0, peer, sum(each.peer == peer for each in self.connection_list.established))

    def fill(
        self,
        kind: str,
        data: bytes,
        peer_handle: int = FIRST_PEER_HANDLE,
        consumer: int = 0,
        traffic_class: int = framing.BULK,
    ) -> None:
        """A slot without runs."""
        slot = self.fillers[kind].slot()
        slot[BODY_AT : BODY_AT + len(data)] = data
        write_header(slot, BODY_AT, len(data), consumer, peer_handle, traffic_class)
        self.fillers[kind].advance(1)

    def fill_runs(
        self,
        kind: str,
        runs: Sequence[tuple[int, int, bytes]],
        peer_handle: int = FIRST_PEER_HANDLE,
        skippable: int = 0,
        skip_owner: int = 0,
        traffic_class: int = framing.BULK,
    ) -> None:
        """A slot with a run table: (consumer, number of the connection, bytes) of each run, of one shard.

        The first RUN_BYTES of the bytes stand apart, as headers of runs do.
        """
        slot = self.fillers[kind].slot()
        at = BODY_AT
        write_header(slot, at, 0, 0, peer_handle, traffic_class)
        for row, (consumer, ordinal, data) in enumerate(runs):
            head_at = layout.SLOT_RUN_HEADERS_AT + row * layout.RUN_HEADER_STRIDE
            slot[head_at : head_at + RUN_BYTES] = data[:RUN_BYTES]
            body = data[RUN_BYTES:]
            slot[at : at + len(body)] = body
            row_at = layout.SLOT_RUN_TABLE_AT + row * layout.RUN_ROW_BYTES
            write_run(slot, row_at, consumer, ordinal, 1, head_at, at, len(body))
            at += len(body)
        write_run_count(slot, len(runs), skippable, skip_owner)
        self.fillers[kind].advance(1)

    def fill_copies(self, data: bytes, to: Sequence[tuple[int, int]], peer_handle: int = FIRST_PEER_HANDLE) -> None:
        """A light slot whose block goes out whole to each (consumer, number of the connection)."""
        slot = self.fillers["light"].slot()
        slot[BODY_AT : BODY_AT + len(data)] = data
        write_header(slot, BODY_AT, len(data), to[0][0], peer_handle)
        for row, (consumer, ordinal) in enumerate(to):
            row_at = layout.SLOT_RUN_TABLE_AT + row * layout.RUN_ROW_BYTES
            write_run(slot, row_at, consumer, ordinal, 1, 0, BODY_AT, len(data))
        write_run_count(slot, len(to), len(to) - 1, to[0][0])
        self.fillers["light"].advance(1)

    def burst(self, times: int = 1) -> int:
        """The result of the last."""
        return [self.sender.work() for _ in range(times)][-1]

    def received(self, connection: Connection) -> bytes:
        """The bytes that have come out since the last call."""
        data = b""
        with suppress(BlockingIOError):
            while part := self._far[connection].recv(READ_BYTES):
                data += part
        return data

    def block(self, connection: Connection) -> None:
        """Fill a connection's socket."""
        with suppress(BlockingIOError):
            while True:
                connection.socket.send(b"\xff" * READ_BYTES)

    def queue(self, connection: Connection) -> SendQueue:
        return self.sender._peers.queues[connection]

    def in_rings(self) -> int:
        """Slots that the sender has not handed on."""
        return sum(reader.port.ready() for reader in self.sender._scanner.readers)

    def sent_record(self, peer: int, word: int) -> int:
        return self.run.memory.peer_table.sent[0][peer * RECORD_WORDS + word]

    def close(self) -> None:
        for queue in self.sender._peers.queues.values():
            list(queue.drain())  # else the items hold the memory
        self.run.close()


def wait_for(condition: Callable[[], object], run: SenderRun, seconds: float = 5.0) -> None:
    """Bursts until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        run.sender.wait(0.005)
        run.burst()
