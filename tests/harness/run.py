"""The shared memory of a run, with workers attached that do nothing: parts of workers are tested on it."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterable
from typing import Any

from pipeline.runtime import topology
from pipeline.runtime.worker import Attachment
from pipeline.shm import layout, link_requests
from pipeline.shm.layout import FIRST_PEER_HANDLE, RECORD_WORDS
from pipeline.shm.link_requests import LinkRequests
from pipeline.supervisor.run.shared_memory import SharedMemory
from pipeline.transport.connection import ESTABLISHED, Connection
from pipeline.wire import framing
from tests.harness.settings import WORKER_SETTINGS

OFFLOADS = 0b111


class Run:
    """The run of a server with several peers and lanes."""

    def __init__(
        self, lanes: int = 3, capacity: int = 4, slot_bytes: int = layout.PAGE, slots: int = 4, **settings: Any
    ) -> None:
        settings = {"offloads": OFFLOADS} | settings
        self.plan = topology.build_plan(
            "workertest",
            secrets.token_hex(4),
            "server",
            lanes,
            slots,
            slot_bytes,
            WORKER_SETTINGS._replace(**settings),
            capacity,
        )
        self.memory = SharedMemory(self.plan)
        self.attached: list[Attachment] = []
        self.sockets: list[socket.socket] = []

    def attach(self, worker: str) -> Attachment:
        self.attached.append(Attachment(self.plan, worker))
        return self.attached[-1]

    def word(self, lane: int, peer: int, word: int) -> int:
        """A word of the link record of a peer."""
        return self.memory.peer_table.links[lane][peer * RECORD_WORDS + word]

    def requests(self, lane: int, peer: int) -> LinkRequests:
        """What the connections that a tcp worker has to a peer call for."""
        return link_requests.read(self.word(lane, peer, layout.LINK_REQUESTS))

    def write_link(
        self,
        lane: int,
        peer: int,
        established: int,
        light: int = 0,
        offloads: int = 0,
        decodes: int = 0,
        parity: int = 0,
        copies: int = 0,
        spacing_us: int = 0,
        of_lanes: Iterable[int] = (),
        light_of_lanes: Iterable[int] = (),
    ) -> None:
        """Write the link record of a peer, as the tcp worker of that lane does. `of_lanes`: of its bulk connections."""
        bits = [*of_lanes, *(layout.LIGHT_LANES_SHIFT + lane for lane in light_of_lanes)]
        words = self.memory.peer_table.links[lane]
        for word, value in (
            (layout.LINK_ESTABLISHED, established),
            (layout.LINK_LIGHT, light),
            (layout.LINK_OFFLOADS, offloads),
            (layout.LINK_ACCEPTS_SHARDS, decodes),
            (layout.LINK_REQUESTS, LinkRequests(parity, copies, spacing_us).pack()),
            (layout.LINK_LANES, sum(1 << bit for bit in bits)),
        ):
            words[peer * RECORD_WORDS + word] = value

    def connection(
        self,
        peer: int = 0,
        offloads: int = OFFLOADS,
        decodes: bool = True,
        traffic_class: int = framing.BULK,
        address: tuple = ("192.0.2.1", 9000),
    ) -> Connection:
        """An established connection."""
        ours, theirs = socket.socketpair()
        self.sockets += [ours, theirs]
        made = Connection(ours, address, ESTABLISHED, len(self.sockets), 0)
        made.peer_handle = FIRST_PEER_HANDLE | peer
        made.offloads, made.accepts_shards, made.traffic_class = offloads, decodes, traffic_class
        return made

    def close(self) -> None:
        self.memory.unlink()
        for sock in self.sockets:
            sock.close()
        for attachment in self.attached:
            attachment.close()
        for each in self.memory.rings.values():
            each.close()
        self.memory.peer_table.close()
        self.memory.scoreboard.close()
