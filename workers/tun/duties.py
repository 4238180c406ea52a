"""The two duties of a tun worker, built for the shape of its instance.

    outbound    TunReader: packets of its TUN queue into the light, plain and coded rings of its lane
    inbound     TunWriter: packets of the inbound rings and of the decoded ring of its lane into its TUN queue

The duties share the queue and nothing else. The shape decides here, once, which packer makes blocks of the packets,
which frames the writer knows, and which forwarder passes packets from peer to peer.
"""

from __future__ import annotations

import mmap

from pipeline.counters import ID
from pipeline.runtime.plan import WorkerFds
from pipeline.runtime.worker import Attachment, Duty
from pipeline.sealing import kinds
from pipeline.sealing.replay_window import ReplayWindows
from pipeline.shm import key_table
from workers.tun.bulk_packer import BulkPacker
from workers.tun.compat_forwarder import CompatForwarder
from workers.tun.compat_hub_packer import CompatHubPacker
from workers.tun.compat_packer import CompatPacker
from workers.tun.forwarder import Forwarder
from workers.tun.packer import Packer
from workers.tun.reader import TunReader
from workers.tun.sealing import BlockOpening, BlockSealing
from workers.tun.writer import (
    COMPAT_FRAMES,
    FRAMES,
    FRAMES_BESIDE_DECODER,
    SEALED_FRAMES,
    PeerForwarder,
    TunWriter,
)


def duties(attachment: Attachment, fds: WorkerFds) -> list[Duty]:
    """The two duties of a tun worker over the queue `fds.tun`."""
    settings = attachment.settings
    several = attachment.peer_table.capacity > 1
    packer: Packer
    forwarder: PeerForwarder | None = None
    outbound = transit = opening = None
    if fds.keys >= 0:
        outbound, transit, opening = _seals(attachment, fds)
    if several and not settings.client_isolation:
        forwarder = CompatForwarder(attachment) if settings.compat else Forwarder(attachment, transit)
    if settings.compat:
        packer = CompatHubPacker(attachment) if several else CompatPacker(attachment)
        frames = COMPAT_FRAMES
    else:
        packer = BulkPacker(attachment, outbound, opening.owed if opening is not None else None)
        frames = FRAMES if settings.fec == "off" else FRAMES_BESIDE_DECODER
        if opening is not None:
            frames = SEALED_FRAMES
    return [TunReader(attachment, fds.tun, packer), TunWriter(attachment, fds.tun, frames, forwarder, opening)]


def _seals(attachment: Attachment, fds: WorkerFds) -> tuple[BlockSealing, BlockSealing, BlockOpening]:
    """Those of both duties. Each has an object of its own, and kinds of blocks that the other never seals."""
    capacity = attachment.peer_table.capacity
    keys = key_table.attach(fds.keys, capacity)
    windows = ReplayWindows(memoryview(mmap.mmap(fds.windows, ReplayWindows.bytes_of(capacity))))
    return (
        BlockSealing(attachment, keys, attachment.process, kinds.FROM_TUN, ID["tun.dropped_no_key"]),
        BlockSealing(attachment, keys, attachment.process, kinds.FROM_PEERS, ID["tun.dropped_transit_no_key"]),
        BlockOpening(attachment, keys, windows),
    )
