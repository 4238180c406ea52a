"""The inbound duty of a tun worker: packets of the peers into its TUN queue.

1. wait           sleep on the doorbell until a slot is ready in any inbound or arrived ring, or in the own decoded one
2. work           follow the routes; visit each ready slot; a slot that names another lane's worker is passed over, but
                  for runs of light flows, which are for the lane that their stream names
3. _write_frames  find the frames of a slot; the shape of the instance decides the contents of each type of frame
4. _write_packets check each packet of a block (`ip.check`)
5. _route         with several peers: check both addresses, drop the packet, or forward it to another peer
6. write(2)       give the packet to the kernel; if the kernel refuses it, the reason is counted
7. work           hand on the forwarder's blocks, then give the slots back

If our device takes super-packets of UDP (Linux 6.2), packets of one UDP flow that follow each other are written as one
(`udp_merge`). This saves a system call and a way through the kernel for each of them. They are counted as packets.

Nothing that a peer has sent is trusted. Step 5 is left out for a peer that owns all addresses. For any other peer

    source         must belong to the sender, by the longest prefix over all peers
    destination    of another peer: forwarded, past the kernel; dropped with client_isolation
                   multicast or link-local: for the kernel if the sender has these addresses, as an only peer has;
                   multicast is dropped otherwise, or goes to everybody (`multicast`)
                   of the sender itself: dropped
                   any other: for the kernel
    rules          between peers with rules, what these allow (`reach_filter`), which is in the way while there are any

Each dropped packet is counted by its reason. A slot may be seen twice, after a worker was killed while it had the slot:
that is a duplicated packet, which IP allows.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from os import write, writev

from pipeline.counters import ID
from pipeline.errors import PeerError
from pipeline.fec import shard
from pipeline.fec.copy_window import CopyWindows
from pipeline.log import LOG
from pipeline.packet.ip import check, destination, is_multicast, is_of_the_link, source
from pipeline.packet.route_table import NO_PEER, RouteTable
from pipeline.packet.udp_merge import MERGED_LEAST, stretches, super_packet
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.policy.lane_pairs import own_lane
from pipeline.runtime import tun
from pipeline.runtime.group_port import FROM_THE_NETWORK
from pipeline.runtime.port import any_ready
from pipeline.runtime.worker import MORE, NOTHING, Attachment
from pipeline.shm.layout import ARRIVED_BULK_BYTES, PEER_INDEX_MASK, RECORD_WORDS
from pipeline.shm.memory_order import fence
from pipeline.shm.peer_table import RouteReader
from pipeline.shm.slot import read_header, read_marks
from pipeline.wire import block, charge, framing
from workers.tun.forwarder import PeerForwarder
from workers.tun.late_charges import LateCharges
from workers.tun.reach_filter import ReachFilter
from workers.tun.sealing import UNNEEDED, BlockOpening

PACKETS, BARE_PACKET, IGNORED, SEALED, COPY = range(5)
"""Contents of a frame: a block of packets; one packet without its virtio-net header; nothing for the writer; a sealed
block, if it is whole, else nothing; a copy of a block, if its stream has copies alone, else nothing. Of the copies of a
block, sealed or not, the first one that comes counts."""

COMPAT_FRAMES = {framing.DATA: BARE_PACKET, framing.KEEPALIVE: IGNORED}
FRAMES = COMPAT_FRAMES | {framing.BLOCK: PACKETS}
FRAMES_BESIDE_DECODER = FRAMES | {framing.RUN: COPY}
SEALED_FRAMES = {framing.PADDING: IGNORED, framing.RUN: SEALED}
"""For each shape of an instance, the contents of each type of frame. Other types are counted as unknown."""

_RUNS = (SEALED, COPY)

FOLLOWED_MOST = 3  # times that rules are read for one burst, while they change

SLOTS_AT_ONCE = 16  # of a ring in one step: then the heartbeat, and the other rings, have their turn

_GSO_TYPE_AT = 1  # in struct virtio_net_hdr, linux/virtio_net.h
_REFUSALS = (errno.EINVAL, errno.EMSGSIZE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EPERM)

_frame_at = framing.FRAME.unpack_from
_N_AT = 13  # in pipeline.fec.shard.SEALED_RUN; m is behind it
_STREAM_END_AT = 8  # the last byte of its stream

_PACKETS_WRITTEN = ID["tun.packets_written"]
_BYTES_WRITTEN = ID["tun.bytes_written"]
_FRAME_MALFORMED = ID["tun.dropped_frame_malformed"]
_SLOT_SPOILT = ID["tun.dropped_slot_spoilt"]
_FRAME_UNKNOWN = ID["tun.dropped_frame_unknown"]
_SOURCE_REFUSED = ID["tun.dropped_source_refused"]
_OWN_DESTINATION = ID["tun.dropped_own_destination"]
_MULTICAST = ID["tun.dropped_multicast"]
_ISOLATED = ID["tun.dropped_isolated"]
_UNGUARDED = ID["tun.dropped_unguarded"]
_LINK_DOWN = ID["tun.dropped_link_down"]
_WRITE_REFUSED = ID["tun.dropped_write_refused"]
_OFFLOAD_REFUSED = ID["tun.dropped_offload_refused"]
_COPIES_UNNEEDED = ID["tun.copies_unneeded"]


class TunWriter:
    """Every inbound and arrived ring, and this lane's decoded ring, to the TUN queue `fd`.

    `frames`: of the shape, by type; `forwarder`: None if no packet passes from peer to peer.
    """

    name = "inbound"

    def __init__(
        self,
        attachment: Attachment,
        fd: int,
        frames: Mapping[int, int],
        forwarder: PeerForwarder | None,
        opening: BlockOpening | None = None,
        reach: ReachFilter | None = None,
    ) -> None:
        decoded = attachment.ports(self.name, "decoded")
        self._ports = decoded + [port for kind in FROM_THE_NETWORK for port in attachment.ports(self.name, kind)]
        self._doorbell = attachment.doorbells[self.name]
        self._ready = any_ready(self._ports)
        self._frames = frames
        self._forwarder = self._unfiltered = forwarder
        self._reach = reach
        self._kept_from_kernel: frozenset[int] = frozenset()
        self._opening = opening
        self._charges = LateCharges(attachment)
        self._capacity = attachment.peer_table.capacity
        has_several = self._capacity > 1
        self._has_decoder = bool(decoded)
        # what is in the blocks of this port shows only here; of sealed ones, their headers say so
        self._uncharged_port = decoded[0] if decoded and has_several and opening is None else None
        self._copies = CopyWindows()
        self._route_reader = RouteReader(attachment.peer_table)
        self._routes = RouteTable()
        self._bare_packet = memoryview(bytearray(VNET_HEADER_BYTES + framing.LENGTH_LIMIT))
        self._fd = fd
        self._lane, self._lanes = attachment.worker.lane, attachment.plan.lanes
        self._is_client = attachment.plan.mode == "client"  # then index 0 is its server, and others are partners
        self._merges = attachment.settings.offloads_accepted & tun.USO == tun.USO
        self._port = self._ports[0]  # of the slot in hand
        self._counters = attachment.page.counters
        self._arrived = attachment.peer_table.arrived[self._lane]

    def wait(self, seconds: float) -> None:
        self._doorbell.wait(self._ready, seconds)

    def work(self) -> int:
        """Write the packets of all ready slots that are for this lane."""
        found = NOTHING
        has_lanes = self._lanes > 1
        for port in self._ports:
            ready = min(port.ready(), SLOTS_AT_ONCE)
            if ready and self._has_news():  # after ready(): routes are written before packets need them
                self._follow()
            for ahead in range(ready):
                slot = port.slot(ahead)
                start, length, consumer, peer_handle = read_header(slot)
                is_named = consumer == port.position
                if is_named or (has_lanes and read_marks(slot)[0] & framing.LIGHT):
                    if start + length > len(slot) or peer_handle & PEER_INDEX_MASK >= self._capacity:
                        self._counters[_SLOT_SPOILT] += is_named
                        continue
                    self._port = port
                    self._write_frames(slot, start, start + length, peer_handle, is_named)
                    if port is self._uncharged_port:
                        self._charge(slot, start, length, peer_handle)
            if ready:
                if self._forwarder is not None:
                    self._forwarder.flush()
                port.advance(ready)
                found = MORE
        return found

    def drained(self) -> bool:
        return True

    def _has_news(self) -> bool:
        return self._route_reader.has_changed() or (self._reach is not None and self._reach.has_changed())

    def _follow(self) -> None:
        """Take the present routes, and before them the rules: those of a new session are written before its routes."""
        reach = self._reach
        if reach is None:
            self._route_reader.read_into(self._routes)
            return
        for _ in range(FOLLOWED_MOST):
            fence()
            if not reach.follow():
                break
            if self._route_reader.has_changed():
                self._route_reader.read_into(self._routes)
            if not reach.has_changed():
                break
        self._forwarder = reach if reach.is_needed else self._unfiltered
        self._kept_from_kernel = reach.kept_from_kernel

    def _charge(self, slot: memoryview, start: int, length: int, peer_handle: int) -> None:
        try:
            self._charges.add(peer_handle, framing.scan(slot, start, start + length, length)[-1])
        except PeerError:
            pass  # of a worker that runs amok: the slot is counted already

    def _write_frames(self, slot: memoryview, at: int, end: int, peer_handle: int, is_named: bool) -> None:
        """`is_named`: the slot names this lane's worker. If not, only runs in it may be for this lane."""
        traffic_class = read_marks(slot)[0] & framing.LIGHT  # the other bits, if any, are of a worker that runs amok
        frames = self._frames
        by_stream = traffic_class and self._lanes > 1
        while end - at > 4:
            length, kind = _frame_at(slot, at)
            after = at + 4 + length
            if after > end or length > framing.LENGTH_LIMIT:
                self._counters[_SLOT_SPOILT] += is_named
                return
            if length:
                content = frames.get(kind)
                if by_stream and not (self._is_ours(slot, at, length, peer_handle) if content in _RUNS else is_named):
                    pass
                elif content == PACKETS:
                    try:
                        first, lengths = block.lengths(slot, at, after)
                    except PeerError:
                        self._counters[_FRAME_MALFORMED] += 1
                    else:
                        self._write_packets(slot, first, lengths, peer_handle, traffic_class)
                elif content == SEALED:
                    self._write_sealed(slot, at, after, peer_handle, traffic_class)
                elif content == COPY:
                    self._write_copy(slot, at, after, peer_handle, traffic_class)
                elif content == BARE_PACKET:
                    size = VNET_HEADER_BYTES + length - 1
                    self._bare_packet[VNET_HEADER_BYTES:size] = slot[at + framing.FRAME.size : after]
                    self._write_packets(self._bare_packet, 0, (size,), peer_handle, traffic_class)
                elif content is None:
                    self._counters[_FRAME_UNKNOWN] += 1
            at = after

    def _is_ours(self, slot: memoryview, at: int, length: int, peer_handle: int) -> bool:
        """Whether a run of light flows is for this lane."""
        told = shard.lane_of(slot, at, length, self._opening is not None)
        return own_lane(told, peer_handle & PEER_INDEX_MASK, self._lanes) == self._lane

    def _write_sealed(self, slot: memoryview, at: int, after: int, peer_handle: int, traffic_class: int) -> None:
        """Open a block that travelled whole, or was made of shards, and write its packets."""
        if after - at < shard.RUN_BYTES:
            self._counters[_SLOT_SPOILT] += 1
            return
        if slot[at + _N_AT] != 1 or (slot[at + _N_AT + 1] and not traffic_class):  # shards, or a copy among bulk
            self._counters[_FRAME_UNKNOWN] += not self._has_decoder
            return
        opening = self._opening
        assert opening is not None
        size = opening.open(slot, at, after, peer_handle)
        if size == UNNEEDED:
            return
        if size < 0 or peer_handle in opening.unopened:
            opening.note_source(peer_handle, size, self._port.lane, slot)
        if size < 0:
            return
        try:
            first, lengths = block.table_lengths(opening.plaintext, block.EPOCH_BYTES, size)
        except PeerError:
            self._counters[_FRAME_MALFORMED] += 1
            return
        stated = opening.packets
        if not stated:
            if self._capacity > 1:
                self._charges.add(peer_handle, charge.PACKET * len(lengths))
        elif stated != len(lengths):
            self._counters[_FRAME_MALFORMED] += 1
            return
        self._write_packets(opening.plaintext, first, lengths, peer_handle, traffic_class)

    def _write_copy(self, slot: memoryview, at: int, after: int, peer_handle: int, traffic_class: int) -> None:
        """Write the packets of a block that travels in copies, unless another copy came first."""
        begin = at + shard.RUN_BYTES
        if after < begin:  # the decoder counts what is shorter still, and runs of other streams
            is_copy = after - at > framing.LENGTH.size + _N_AT and slot[at + _STREAM_END_AT] & shard.COPIES
            self._counters[_FRAME_MALFORMED] += bool(is_copy)
            return
        _, _, stream, number, n, *_ = shard.RUN.unpack_from(slot, at)
        if not stream & shard.COPIES:
            return
        if not self._copies.is_first(peer_handle, stream, number):
            self._counters[_COPIES_UNNEEDED] += 1
            return
        try:
            if n != 1 or _frame_at(slot, begin) != (after - begin - framing.LENGTH.size, framing.BLOCK):
                raise PeerError("no whole block frame")
            first, lengths = block.lengths(slot, begin, after)
        except PeerError:
            self._counters[_FRAME_MALFORMED] += 1
            return
        if self._capacity > 1:
            self._charges.add(peer_handle, charge.PACKET * len(lengths))
        self._write_packets(slot, first, lengths, peer_handle, traffic_class)

    def _write_packets(
        self, slot: memoryview, at: int, lengths: tuple[int, ...], peer_handle: int, traffic_class: int
    ) -> None:
        word = (peer_handle & PEER_INDEX_MASK) * RECORD_WORDS + ARRIVED_BULK_BYTES + traffic_class
        self._arrived[word] += max(0, sum(lengths) - len(lengths) * VNET_HEADER_BYTES)  # packets are not checked yet
        if not self._merges or len(lengths) < MERGED_LEAST:
            self._write_each(slot, at, lengths, peer_handle, traffic_class)
            return
        for first, count, merged in stretches(slot, at, lengths):
            these = lengths[first : first + count]
            if not (merged and self._write_merged(slot, at, these, peer_handle)):
                self._write_each(slot, at, these, peer_handle, traffic_class)
            at += sum(these)

    def _write_merged(self, slot: memoryview, at: int, lengths: tuple[int, ...], peer_handle: int) -> bool:
        """Write packets as one super-packet. False if they have to be looked at one by one."""
        length, count = lengths[0], len(lengths)
        if check(slot, at, length) is not None or not self._is_for_kernel(slot, at, peer_handle):
            return False
        try:
            writev(self._fd, super_packet(slot, at, length, count))
        except OSError as error:
            if error.errno == errno.EINVAL:
                LOG.warning("TUN: the kernel refuses merged UDP packets (%s); from now on each is written alone", error)
                self._merges = False
            return False
        self._counters[_PACKETS_WRITTEN] += count
        self._counters[_BYTES_WRITTEN] += (length - VNET_HEADER_BYTES) * count
        return True

    def _write_each(
        self, slot: memoryview, at: int, lengths: tuple[int, ...], peer_handle: int, traffic_class: int
    ) -> None:
        fd = self._fd
        counters = self._counters
        is_known = (self._is_client and not peer_handle & PEER_INDEX_MASK) or self._routes.only == peer_handle
        trusted = is_known and peer_handle not in self._kept_from_kernel
        written = size = 0
        for length in lengths:
            drop = check(slot, at, length)
            if drop is not None:
                counters[drop] += 1
            elif trusted or self._route(slot, at, length, peer_handle, traffic_class):
                try:
                    write(fd, slot[at : at + length])
                    written += 1
                    size += length
                except OSError as error:
                    counters[_refused(error, slot[at + _GSO_TYPE_AT])] += 1
            at += length
        counters[_PACKETS_WRITTEN] += written
        counters[_BYTES_WRITTEN] += size - written * VNET_HEADER_BYTES

    def _is_for_kernel(self, slot: memoryview, at: int, peer_handle: int) -> bool:
        """Whether _route() lets a sound packet pass, at least if it is neither multicast nor for the link."""
        routes = self._routes
        if peer_handle in self._kept_from_kernel:
            return False
        if (self._is_client and not peer_handle & PEER_INDEX_MASK) or routes.only == peer_handle:
            return True
        address = destination(slot, at)
        return (
            routes.lookup(source(slot, at)) == peer_handle
            and routes.lookup(address) == NO_PEER
            and not is_multicast(address)
        )

    def _route(self, slot: memoryview, at: int, length: int, peer_handle: int, traffic_class: int) -> bool:
        """Whether a sound packet is for the kernel; any other packet is dropped or forwarded here."""
        lookup = self._routes.lookup
        if lookup(source(slot, at)) != peer_handle:
            self._counters[_SOURCE_REFUSED] += 1
            return False
        address = destination(slot, at)
        receiver = lookup(address)
        if receiver < 0:
            if is_multicast(address):
                self._counters[_MULTICAST] += 1
            elif peer_handle in self._kept_from_kernel:
                self._counters[_UNGUARDED] += 1
            else:
                return True
        elif receiver == peer_handle:
            if is_of_the_link(address):
                return True
            self._counters[_OWN_DESTINATION] += 1
        elif self._forwarder is None:
            self._counters[_ISOLATED] += 1
        else:
            self._forwarder.forward(slot, at, length, peer_handle, receiver, traffic_class)
        return False


def _refused(error: OSError, gso_type: int) -> int:
    """The counter for a write that the kernel refused. An error that no packet explains ends the worker."""
    if error.errno == errno.EIO or error.errno in tun.DEVICE_GONE_ERRNOS:
        return _LINK_DOWN
    if error.errno in _REFUSALS:
        return _OFFLOAD_REFUSED if gso_type else _WRITE_REFUSED
    raise error
