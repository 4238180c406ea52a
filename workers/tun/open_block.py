"""An open block: a free slot that packets are put into until it is full, or until its burst is handed on.

Each belongs to the duty that fills it: outbound in a `Burst`, inbound in the `Forwarder`.
"""

from __future__ import annotations

from pipeline.runtime.port import Port
from pipeline.shm import layout
from pipeline.shm.slot import FILL_LIMIT, seal_block

FULL_AT = layout.SLOT_BODY_AT + FILL_LIMIT
"""A block whose packets end behind this offset is full."""


class OpenBlock:
    """A block for one peer and traffic class: packets in `slot`, a slot of `port`, up to `end`."""

    __slots__ = ("consumer", "end", "lengths", "number", "peer_handle", "port", "slot", "traffic_class")

    def __init__(
        self, port: Port, slot: memoryview, consumer: int, peer_handle: int, traffic_class: int, number: int
    ) -> None:
        self.port = port
        self.slot = slot
        self.consumer = consumer
        self.peer_handle = peer_handle
        self.traffic_class = traffic_class
        self.number = number
        self.lengths: list[int] = []
        self.end = layout.SLOT_BODY_AT

    def seal(self) -> None:
        """Write the headers in front of the packets: the slot can be handed on."""
        seal_block(self.slot, self.lengths, self.end, self.consumer, self.peer_handle, self.traffic_class, self.number)
