"""The packer of a shape, as the reader sees it: an object that turns packets into blocks in the rings of its lane.

    BulkPacker      blocks in the light, plain and coded rings; light packets through its LightPacker
    CompatPacker    the original program's frames in the plain ring
    CompatHubPacker    the same for several peers

A burst, in the order of the calls:

    lone_buffers, commit_alone         for a burst of one packet, the short way; in most cases there is one
    acknowledge                        before each burst: blocks that the packer has to send by itself
    begin_burst                        which rings are full
    retry                              for each packet that found no slot in an earlier burst
    next_buffers or scratch_buffers    for each packet: where it is read to
    commit                             for each packet: where it goes
    flush                              the filled slots are handed on together
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

BULK_FULL, LIGHT_FULL = 1, 2
"""Bits of begin_burst(): a ring that bulk packets need has no free slot; the light ring takes no burst of a flow."""

BURST_SLOTS = 4
"""Slots that are filled before they are handed on together, with one peer."""


class Packer(Protocol):
    """The calls of TunReader to a packer.

    `due_ns`: when acknowledge() has to be called, packets or not; 0: there is no need.
    """

    due_ns: int

    def lone_buffers(self, offloads: int) -> Sequence[memoryview] | None:
        """Where to read the first packet of a burst to. None: the burst takes the long way, from acknowledge() on.

        `offloads`: those that every receiver accepted at the last burst. If more packets follow, the burst goes on with
        begin_burst(), and commit() for this packet.
        """
        ...

    def commit_alone(self, length: int, now: int) -> int:
        """The packet, just read, is the only one of its burst: hand it on. Slots that it took, without a light one."""
        ...

    def acknowledge(self) -> int:
        """Hand on blocks without packets, where a peer waits for news of its epoch, and packets that have waited for
        their rate. The number of blocks."""
        ...

    def begin_burst(self) -> int:
        """Prepare for the packets of a burst. BULK_FULL, LIGHT_FULL, both or 0."""
        ...

    def accepted_offloads(self) -> int | None:
        """The TUN_F_* bits that every receiver accepts; None: the device keeps the offloads that it has."""
        ...

    def has_room(self) -> bool:
        """Whether the next packet most likely finds room; for a reader that waits."""
        ...

    def wake_ahead(self) -> None:
        """Packets have come after a silence: kick the next stage ahead of the first block."""
        ...

    def next_buffers(self) -> Sequence[memoryview] | None:
        """Where to read the next packet to, virtio-net header first. None: there is no free slot."""
        ...

    def scratch_buffers(self) -> Sequence[memoryview]:
        """Where to read the next packet to while no slot is free: it can go into the light ring alone."""
        ...

    def commit(self, length: int, now: int) -> bytes | None:
        """Put the packet of `length` bytes, just read, where it goes. The packet itself if there is no slot for it."""
        ...

    def retry(self, packet: bytes) -> bool:
        """Put a packet that commit() has returned. False if there is no slot for it yet."""
        ...

    def flush(self) -> int:
        """Hand on the filled slots of the burst; their number, without light ones."""
        ...
