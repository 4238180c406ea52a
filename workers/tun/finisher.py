"""The offload finisher: does what the kernel has left to the device, for peers that do not accept such packets.

With one peer it is not needed: the kernel is asked not to leave to the device what that peer does not accept. With
several peers, each packet whose virtio-net header is not empty is finished for a peer that accepts less than our device
has in force. Owned by the outbound duty.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.packet import gso
from pipeline.runtime.link_view import LinkView
from pipeline.runtime.worker import Attachment
from pipeline.shm.layout import PEER_INDEX_MASK

_NOT_FINISHED = ID["tun.dropped_not_finished"]


class OffloadFinisher:
    """The offloads that our device has in force, and those that peers accept, which are looked up once a burst."""

    def __init__(self, attachment: Attachment, links: LinkView) -> None:
        self._offloads = attachment.settings.offloads
        self._counters = attachment.page.counters
        self._links = links
        self._accepted: dict[int, int] = {}  # by peer handle

    def missing(self, peer_handle: int) -> int:
        """The TUN_F_* bits of our device that the peer does not accept."""
        accepted = self._accepted.get(peer_handle)
        if accepted is None:
            accepted = self._accepted[peer_handle] = self._links.state(peer_handle & PEER_INDEX_MASK).offloads or 0
        return self._offloads & ~accepted

    def finish(self, packet: bytes) -> list[bytes]:
        """The finished packets; none, and counted, for a packet that cannot be finished."""
        packets = gso.finish(packet)
        self._counters[_NOT_FINISHED] += not packets
        return packets

    def forget(self) -> None:
        """The burst is over."""
        self._accepted.clear()
