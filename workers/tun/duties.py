"""The two duties of a tun worker, or the one that this process has, built for the shape of its instance.

    outbound    TunReader: packets of its TUN queue into the light, plain and coded rings of its lane
    inbound     TunWriter: packets of the inbound rings and of the decoded ring of its lane into its TUN queue

The duties share the queue and nothing else; two processes can have its descriptor. The shape decides here, once, which
packer makes blocks of the packets, which frames the writer knows, and which forwarder passes packets from peer to peer.
"""

from __future__ import annotations

import mmap

from pipeline.counters import ID
from pipeline.runtime.plan import WorkerFds
from pipeline.runtime.worker import Attachment, Duty
from pipeline.sealing import kinds
from pipeline.sealing.replay_window import ReplayWindows
from pipeline.shm.flow_table import FlowTable
from pipeline.shm.key_table import KeyTable
from pipeline.shm.reach_rules import RulesReader
from workers.tun.bulk_packer import BulkPacker
from workers.tun.classed_packer import ClassedMulticastPacker, ClassedPacker
from workers.tun.compat_forwarder import CompatForwarder
from workers.tun.compat_hub_packer import CompatHubPacker
from workers.tun.compat_packer import CompatPacker
from workers.tun.epoch_watch import EpochWatch, WatchingReader
from workers.tun.forwarder import Forwarder, PeerForwarder
from workers.tun.multicast import MulticastPacker, MulticastWriter
from workers.tun.partners import ClassedPartnerPacker, PartnerPacker, PartnerWriter, has_partners
from workers.tun.reach_filter import ReachFilter
from workers.tun.reader import TunReader
from workers.tun.sealing import BlockOpening, BlockSealing
from workers.tun.writer import (
    COMPAT_FRAMES,
    FRAMES,
    FRAMES_BESIDE_DECODER,
    SEALED_FRAMES,
    TunWriter,
)

_PACKERS: dict[tuple[bool, bool], type[BulkPacker]] = {
    (False, False): BulkPacker,
    (True, False): MulticastPacker,
    (False, True): ClassedPacker,
    (True, True): ClassedMulticastPacker,
}
"""By whether packets go to everybody, and whether rules choose classes."""


def duties(attachment: Attachment, fds: WorkerFds) -> list[Duty]:
    """The duties of a tun worker over the queue `fds.tun`."""
    names = attachment.worker.duties
    keys = KeyTable.attach(fds.keys, attachment.peer_table.capacity) if fds.keys >= 0 else None
    opening = _opening(attachment, fds, keys) if "inbound" in names else None
    found: list[Duty] = []
    if "outbound" in names:
        found.append(_outbound(attachment, fds, keys, opening))
    if "inbound" in names:
        found.append(_inbound(attachment, fds, keys, opening))
    return found


def _outbound(attachment: Attachment, fds: WorkerFds, keys: KeyTable | None, opening: BlockOpening | None) -> TunReader:
    """`opening`: of the inbound duty, if this process has that too."""
    if attachment.settings.compat:
        several = attachment.peer_table.capacity > 1
        return TunReader(attachment, fds.tun, CompatHubPacker(attachment) if several else CompatPacker(attachment))
    packer = _PACKERS[_has_multicast(attachment), attachment.settings.has_rules]
    if has_partners(attachment):
        packer = ClassedPartnerPacker if attachment.settings.has_rules else PartnerPacker
    if keys is None:
        return TunReader(attachment, fds.tun, packer(attachment))
    sealing = _sealing(attachment, keys, kinds.FROM_TUN, "tun.dropped_no_key")
    if opening is not None:
        return TunReader(attachment, fds.tun, packer(attachment, sealing, opening.owed))
    watch = EpochWatch(attachment)
    return WatchingReader(attachment, fds.tun, packer(attachment, sealing, watch.owed), watch)


def _inbound(attachment: Attachment, fds: WorkerFds, keys: KeyTable | None, opening: BlockOpening | None) -> TunWriter:
    settings = attachment.settings
    forwarder: PeerForwarder | None = None
    if attachment.peer_table.capacity > 1 and not settings.client_isolation:
        transit = None if keys is None else _sealing(attachment, keys, kinds.FROM_PEERS, "tun.dropped_transit_no_key")
        forwarder = CompatForwarder(attachment) if settings.compat else Forwarder(attachment, transit)
    if settings.compat:
        frames = COMPAT_FRAMES
    elif opening is not None:
        frames = SEALED_FRAMES
    else:
        frames = FRAMES if settings.fec == "off" else FRAMES_BESIDE_DECODER
    reach = _reach(attachment, fds, forwarder)
    if has_partners(attachment):
        assert keys is not None
        return PartnerWriter(attachment, fds.tun, frames, forwarder, opening, reach, keys=keys)
    if _has_multicast(attachment):
        assert forwarder is None or isinstance(forwarder, Forwarder)
        return MulticastWriter(attachment, fds.tun, frames, forwarder, opening, reach)
    return TunWriter(attachment, fds.tun, frames, forwarder, opening, reach)


def _reach(attachment: Attachment, fds: WorkerFds, forwarder: PeerForwarder | None) -> ReachFilter | None:
    """The filter in front of the forwarder, on a server whose peers may have rules."""
    if fds.reach < 0:
        return None
    reader = RulesReader(fds.reach)
    flows = FlowTable(fds.flows, attachment.plan.lanes, attachment.worker.lane, reader.secret)
    return ReachFilter(attachment, reader, flows, forwarder)


def _has_multicast(attachment: Attachment) -> bool:
    return (
        attachment.settings.multicast_rate > 0 and attachment.peer_table.capacity > 1 and not has_partners(attachment)
    )


def _sealing(attachment: Attachment, keys: KeyTable, own: tuple[int, ...], no_key: str) -> BlockSealing:
    """That of a duty: each has an object of its own, and kinds of blocks that the other never seals."""
    return BlockSealing(attachment, keys, attachment.process, own, ID[no_key])


def _opening(attachment: Attachment, fds: WorkerFds, keys: KeyTable | None) -> BlockOpening | None:
    if keys is None:
        return None
    size = ReplayWindows.bytes_of(attachment.peer_table.capacity)
    return BlockOpening(attachment, keys, ReplayWindows(memoryview(mmap.mmap(fds.windows, size))))
