"""The table of counters: everything that the data plane counts, each under one name.

A counter is one u64 in its worker's page of the scoreboard. A single duty writes it, and it survives the worker.
Readers add the workers up. Ids are permanent: a counter that goes out of use keeps its row, marked so. Every drop has a
counter of its own, named `<kind>.dropped_<reason>`.
"""

from __future__ import annotations

from typing import NamedTuple


class Counter(NamedTuple):
    """One row of the table."""

    id: int  # index in a worker's page
    name: str
    duty: str  # the only writer
    meaning: str


OUT, IN = "outbound", "inbound"

# fmt: off
COUNTERS = (
    # The ids of one duty share cache lines with no other duty's: blocks of 16 ids.
    Counter(0, "tun.packets_read", OUT, "IP packets read from TUN; a super-packet counts once"),
    Counter(1, "tun.bytes_read", OUT, "bytes of packets read from TUN, without virtio-net headers"),
    Counter(2, "tun.blocks_filled", OUT, "slots of the plain and the coded ring handed on"),
    Counter(3, "tun.ring_full_waits", OUT, "times the TUN reader waited for a free slot (backpressure)"),
    Counter(4, "tun.read_errors", OUT, "reads from TUN that failed because the link was down or the device gone"),
    Counter(5, "tun.dropped_packet_too_long", OUT, "packets longer than a frame may carry (compat)"),
    Counter(6, "tun.dropped_ring_full", OUT, "packets of bulk flows dropped while the path took no more"),
    Counter(7, "tun.blocks_light_filled", OUT, "blocks of light flows handed on"),
    Counter(8, "tun.packets_light_read", OUT, "packets in blocks of light flows"),
    Counter(9, "tun.copies_added", OUT, "copies of blocks of light flows, beyond the first"),
    Counter(10, "tun.dropped_no_peer", OUT, "packets for an address that belongs to no peer"),
    Counter(11, "tun.dropped_not_finished", OUT, "super-packets of too many segments, for a peer that accepts only "
            "finished packets"),
    Counter(12, "tun.dropped_no_key", OUT, "blocks dropped because there was no key to seal them with"),
    Counter(13, "tun.flows_counted", OUT, "flows that have begun, or begun anew after many others; not with compat"),
    Counter(14, "tun.packets_multicast_read", OUT, "multicast and broadcast packets from TUN for all peers "
            "(multicast_kbit)"),
    Counter(15, "tun.dropped_own_multicast_limit", OUT, "multicast and broadcast packets from TUN beyond "
            "multicast_kbit"),
    Counter(192, "tun.rings_outbound_mended", OUT, "rings whose cursors contradicted each other: slots "
            "were skipped"),
    Counter(193, "tun.dropped_bulk_limit", OUT, "packets of the class bulk beyond bulk_rate_mbit"),
    Counter(16, "tun.packets_written", IN, "IP packets written to TUN; a super-packet counts once"),
    Counter(17, "tun.bytes_written", IN, "bytes of packets written to TUN, without virtio-net headers"),
    Counter(18, "tun.dropped_frame_malformed", IN, "frames whose lengths contradict each other"),
    Counter(19, "tun.dropped_packet_malformed", IN, "packets with a wrong IP version or length"),
    Counter(20, "tun.dropped_header_malformed", IN, "packets with an unusable virtio-net header"),
    Counter(21, "tun.dropped_write_refused", IN, "packets that the kernel refused"),
    Counter(22, "tun.dropped_link_down", IN, "packets that arrived while the device was down or gone"),
    Counter(23, "tun.dropped_offload_refused", IN, "super-packets that the kernel refused"),
    Counter(24, "tun.dropped_frame_unknown", IN, "frames of a type that this version does not know"),
    Counter(25, "tun.dropped_source_refused", IN, "packets from a peer with a source address that is not its own"),
    Counter(26, "tun.dropped_own_destination", IN, "packets from a peer to an address of its own"),
    Counter(27, "tun.dropped_multicast", IN, "multicast and broadcast packets from one of several peers"),
    Counter(28, "tun.dropped_isolated", IN, "packets from peer to peer that client_isolation forbids"),
    Counter(29, "tun.dropped_transit_full", IN, "packets from peer to peer dropped while the transit ring was full, or "
            "their sender had its share of it"),
    Counter(30, "tun.packets_forwarded", IN, "packets from peer to peer handed on"),
    Counter(31, "tun.dropped_segments_many", IN, "super-packets from a peer that were not cut, because too many "
            "segments had been made of their slot"),
    Counter(208, "tun.rings_inbound_mended", IN, "rings whose cursors contradicted each other: slots "
            "were skipped"),
    Counter(209, "tun.dropped_slot_spoilt", IN, "slots whose header or frames contradict themselves"),
    Counter(210, "tun.dropped_transit_no_key", IN, "blocks from peer to peer dropped because there was no key to seal "
            "them with"),
    Counter(211, "tun.dropped_not_opened", IN, "sealed blocks that their tag does not prove"),
    Counter(212, "tun.dropped_epoch_unknown", IN, "sealed blocks of an epoch, or a session, without a key here"),
    Counter(213, "tun.dropped_replayed", IN, "sealed blocks that have been opened before, or are too old to tell"),
    Counter(214, "tun.copies_unneeded", IN, "copies of blocks of light flows of which another copy came first"),
    Counter(215, "tun.packets_multicast_received", IN, "multicast and broadcast packets from a peer for all others "
            "(multicast_kbit)"),
    Counter(216, "tun.dropped_multicast_limit", IN, "multicast and broadcast packets from a peer beyond "
            "multicast_kbit"),
    Counter(217, "tun.dropped_destination_refused", IN, "packets from a partner to an address that is not ours"),
    Counter(218, "tun.dropped_not_reachable", IN, "packets from peer to peer that may_reach does not allow"),
    Counter(219, "tun.dropped_unguarded", IN, "packets for the kernel from peers with rules, while the firewall table "
            "that has their rules is missing"),
    Counter(220, "tun.blocks_unneeded", IN, "sealed blocks that came in datagrams and by TCP: nobody had reported "
            "them, so they were sent again"),
    Counter(221, "tun.dropped_not_taken_back", IN, "blocks for a partner without a path that had no key any more"),
    Counter(32, "tcp.frames_sent", OUT, "frames with packets or shards written to connections"),
    Counter(33, "tcp.bytes_sent", OUT, "wire bytes written to connections"),
    Counter(34, "tcp.keepalives_sent", OUT, "keepalive frames sent"),
    Counter(35, "tcp.socket_full_waits", OUT, "times that a send queue waited for a full socket (backpressure)"),
    Counter(36, "tcp.dropped_no_connection", OUT, "blocks dropped after `hold` seconds without a connection, or at "
            "once if another worker has one"),
    Counter(37, "tcp.blocks_resent", OUT, "blocks begun on a connection that ended, and sent again on another"),
    Counter(38, "tcp.runs_skipped", OUT, "runs left unsent because their connection lagged and the block can be "
            "recovered without them"),
    Counter(39, "tcp.runs_moved", OUT, "runs and plain blocks moved to another connection because theirs lagged or "
            "stood still"),
    Counter(40, "tcp.dropped_peer_full", OUT, "runs and blocks dropped because a peer read too slowly, beyond "
            "peer_queue_bytes"),
    Counter(41, "tcp.dropped_partial", OUT, "blocks lost half sent with their connection, because their slots had gone "
            "on without them"),
    Counter(42, "tcp.uplinks_timed_out", OUT, "uplinks of a client on which nothing was heard any more, "
            "while something waited for an answer"),
    Counter(43, "tcp.runs_resent", OUT, "runs and blocks sent once more on another uplink, because theirs was silent "
            "or their connection had ended"),
    Counter(44, "tcp.bytes_padding_sent", OUT, "bytes of padding written to connections (setting: padding)"),
    Counter(224, "tcp.rings_outbound_mended", OUT, "rings whose cursors contradicted each other: slots "
            "were skipped"),
    Counter(225, "tcp.dropped_slot_spoilt", OUT, "slots and runs whose header contradicts itself"),
    Counter(48, "tcp.frames_received", IN, "frames received on established connections, keepalives included"),
    Counter(49, "tcp.bytes_received", IN, "wire bytes received on established connections"),
    Counter(50, "tcp.ring_full_waits", IN, "times the receiver waited for a free slot (backpressure)"),
    Counter(51, "tcp.connections_established", IN, "connections that have been established"),
    Counter(52, "tcp.connections_lost", IN, "established connections that ended, for any reason"),
    Counter(53, "tcp.connections_timed_out", IN, "connections closed after `timeout` seconds of silence"),
    Counter(54, "tcp.connections_refused", IN, "connections refused, with the reason, to peers that had proved who "
            "they are"),
    Counter(55, "tcp.dials_failed", IN, "attempts to reach the server that failed"),
    Counter(56, "tcp.closed_frame_too_long", IN, "connections closed because of a frame above the limit"),
    Counter(57, "tcp.closed_hello_invalid", IN, "connections closed because of an invalid handshake, TLS included"),
    Counter(58, "tcp.accepts_failed", IN, "accepts that failed for want of descriptors or memory"),
    Counter(59, "tcp.closed_row_full", IN, "connections closed because all status rows of the worker were in use"),
    Counter(60, "tcp.parity_raised", IN, "times that the state of the connections called for more parity"),
    Counter(61, "tcp.parity_lowered", IN, "times that the state of the connections called for less parity"),
    Counter(62, "tcp.paces_changed", IN, "times that the bulk pacer set or lifted its limit, to keep the path's queue "
            "short"),
    Counter(63, "tcp.closed_too_late", IN, "connections closed because their handshake took longer than "
            "handshake_timeout"),
    Counter(112, "tcp.closed_proof_wrong", IN, "connections closed because the client did not prove to be a peer"),
    Counter(113, "tcp.closed_handshakes_full", IN, "connections closed on arrival because max_handshakes were under "
            "way"),
    Counter(114, "tcp.closed_handshakes_of_address", IN, "connections closed on arrival because "
            "max_handshakes_per_address of their address were under way"),
    Counter(115, "tcp.closed_connects_of_address", IN, "connections closed on arrival because connects_per_address "
            "had arrived from their address within a second"),
    Counter(116, "tcp.rate_pauses", IN, "times that a peer's connections for bulk were not read because the peer had "
            "used up its rate, or all had used up theirs"),
    Counter(117, "tcp.closed_for_another", IN, "handshakes that had had time enough, closed because max_handshakes "
            "were under way and another client came"),
    Counter(120, "tcp.share_waits", IN, "times that the receiver waited although slots were free, because each peer "
            "that had something to read had its share of the ring"),
    Counter(121, "tcp.closed_bare_frames", IN, "connections closed because of more frames without contents than any "
            "honest end sends"),
    Counter(124, "tcp.settings_refused", IN, "reloads whose settings a worker could not use: it goes on with the "
            "old ones"),
    Counter(125, "tcp.handshakes_charged", IN, "handshakes that succeeded and took their time from that of "
            "unauthenticated clients, since their peer connects again and again"),
    Counter(126, "tcp.closed_unopened", IN, "connections closed because no block that they brought could be opened"),
    Counter(127, "tcp.controls_changed", IN, "times that the connections to a peer were given another congestion "
            "control, because the path had begun or ceased to lose packets"),
    Counter(240, "tcp.rings_inbound_mended", IN, "rings whose cursors contradicted each other: slots "
            "were skipped"),
    Counter(241, "tcp.fallbacks_opened", IN, "clients that have not proved to be a peer, given to the web server of "
            "`fallback`"),
    Counter(242, "tcp.fallbacks_ended", IN, "connections of such clients that have ended"),
    Counter(243, "tcp.fallbacks_failed", IN, "clients that the web server of `fallback` did not take"),
    Counter(244, "tcp.bytes_fallback_sent", IN, "bytes from the web server to such clients"),
    Counter(245, "tcp.bytes_fallback_received", IN, "bytes from such clients to the web server"),
    Counter(246, "tcp.closed_proxy_header", IN, "connections from proxy_protocol_from closed because they did not "
            "begin with a header of the PROXY protocol"),
    Counter(247, "tcp.bytes_padding_received", IN, "bytes of padding received on established connections"),
    Counter(64, "fec.blocks_coded", OUT, "blocks cut into shards"),
    Counter(65, "fec.bytes_coded", OUT, "bytes of blocks cut into shards"),
    Counter(66, "fec.bytes_added", OUT, "bytes of parity shards, and of copies, added to blocks"),
    Counter(78, "fec.rings_outbound_mended", OUT, "rings whose cursors contradicted each other: slots "
            "were skipped"),
    Counter(79, "fec.blocks_refused", OUT, "slots that are not coded because their header contradicts itself"),
    Counter(80, "fec.runs_received", IN, "runs received"),
    Counter(81, "fec.blocks_whole", IN, "blocks whose data shards have all arrived, and single shards"),
    Counter(82, "fec.blocks_recovered_1", IN, "blocks recovered with 1 data shard missing"),
    Counter(83, "fec.blocks_recovered_2", IN, "blocks recovered with 2 data shards missing"),
    Counter(84, "fec.blocks_recovered_3", IN, "blocks recovered with 3 data shards missing"),
    Counter(85, "fec.blocks_recovered_4", IN, "blocks recovered with 4 data shards missing"),
    Counter(86, "fec.blocks_recovered_5", IN, "blocks recovered with 5 data shards missing"),
    Counter(87, "fec.blocks_recovered_6", IN, "blocks recovered with 6 data shards missing"),
    Counter(88, "fec.blocks_expired", IN, "blocks dropped because too few of their shards arrived in time"),
    Counter(89, "fec.blocks_overtaken", IN, "blocks handed on behind a later block, which had waited long enough"),
    Counter(90, "fec.shards_unneeded", IN, "shards that arrived when their block was complete: the fate of parity on "
            "a good path"),
    Counter(91, "fec.shards_late", IN, "shards of blocks that had been dropped or are too old to tell"),
    Counter(92, "fec.shards_duplicate", IN, "shards that had arrived before, copies of single shards included"),
    Counter(93, "fec.dropped_run_malformed", IN, "runs whose header contradicts itself or the block's other runs"),
    Counter(94, "fec.dropped_block_checksum", IN, "recovered blocks with a wrong checksum: their parity does not fit "
            "their data"),
    Counter(95, "fec.dropped_block_malformed", IN, "blocks that are not one block frame"),
    Counter(144, "fec.rings_inbound_mended", IN, "rings whose cursors contradicted each other: slots "
            "were skipped"),
    Counter(145, "fec.dropped_slot_spoilt", IN, "slots whose header or frames contradict themselves"),
    Counter(256, "dgram.segments_sent", OUT, "segments given to the kernel, parity and repeats included"),
    Counter(257, "dgram.bytes_sent", OUT, "bytes of them, with their headers"),
    Counter(258, "dgram.blocks_sent", OUT, "blocks of which segments were sent"),
    Counter(259, "dgram.parity_sent", OUT, "segments with parity"),
    Counter(260, "dgram.segments_repeated", OUT, "segments sent again, since the other end has missed them"),
    Counter(261, "dgram.copies_sent", OUT, "further copies of light blocks"),
    Counter(262, "dgram.blocks_unreported", OUT, "blocks of which no report came while the other end could want rows"),
    Counter(263, "dgram.blocks_returned", OUT, "blocks given to tcp or tun workers, as no datagram gets to the peer"),
    Counter(264, "dgram.dropped_no_path", OUT, "blocks dropped: no datagram got to the peer for `hold`"),
    Counter(265, "dgram.dropped_peer_full", OUT, "blocks dropped: peer_queue_bytes waited for the peer"),
    Counter(266, "dgram.dropped_slot_spoilt", OUT, "slots, or runs in them, whose header contradicts itself"),
    Counter(267, "dgram.socket_full_waits", OUT, "bursts for which the socket or the interface had no room"),
    Counter(268, "dgram.sends_refused", OUT, "bursts that the kernel has refused for other reasons"),
    Counter(269, "dgram.segments_single_sent", OUT, "segments given to a kernel that cuts no bursts"),
    Counter(304, "dgram.rings_outbound_mended", OUT, "rings whose cursors contradicted each other: slots "
            "were skipped"),
    Counter(272, "dgram.segments_received", IN, "segments with a known token"),
    Counter(273, "dgram.bytes_received", IN, "bytes of them, with their headers"),
    Counter(274, "dgram.blocks_whole", IN, "blocks that arrived without a lost row, or whose lost rows were parity"),
    Counter(275, "dgram.blocks_recovered", IN, "blocks with rows recovered from parity"),
    Counter(276, "dgram.blocks_expired", IN, "blocks given up: too many of their rows were lost"),
    Counter(277, "dgram.blocks_overtaken", IN, "blocks handed on behind a later block, which had waited long enough"),
    Counter(278, "dgram.segments_unneeded", IN, "segments that arrived when their part was complete, or twice"),
    Counter(279, "dgram.segments_late", IN, "segments of blocks that had been given up or are too old to tell"),
    Counter(280, "dgram.dropped_segment_malformed", IN, "segments whose header contradicts itself or their block"),
    Counter(281, "dgram.dropped_token_unknown", IN, "datagrams with a token of no session, or too short for one"),
    Counter(282, "dgram.sessions_refused", IN, "sessions without datagrams here, as another one has their token"),
    Counter(283, "dgram.datagrams_control_received", IN, "probes, answers and reports that were opened"),
    Counter(284, "dgram.datagrams_control_sent", IN, "probes, answers and reports given to the kernel"),
    Counter(285, "dgram.dropped_control_refused", IN, "control datagrams that are old, forged, or of another version"),
    Counter(286, "dgram.paths_opened", IN, "times that a path to a peer was opened"),
    Counter(287, "dgram.paths_closed", IN, "times that a path to a peer was closed"),
    Counter(288, "dgram.ring_full_waits", IN, "times datagrams were left in the socket, as the arrived ring was full"),
    Counter(289, "dgram.dropped_control_inside", IN, "control datagrams of a partner that came by the tunnel itself"),
    Counter(290, "dgram.flows_fake_opened", IN, "fake flows that were opened"),
    Counter(291, "dgram.flows_fake_ended", IN, "resets of fake flows that fit; each makes the client open another one"),
    Counter(292, "dgram.flows_fake_refused", IN, "fake flows that came to nothing, or were closed for want of room"),
    Counter(293, "dgram.acks_fake_sent", IN, "acknowledgements without payload, on fake flows"),
    Counter(294, "dgram.dropped_segment_no_flow", IN, "TCP packets at our port that belong to no fake flow"),
    Counter(295, "dgram.dropped_segment_outside", IN, "segments with numbers outside the window of their fake flow"),
    Counter(296, "dgram.dropped_segment_flags", IN, "segments with flags that no end of a fake flow sends"),
    Counter(297, "dgram.dropped_segment_damaged", IN, "segments with a wrong TCP checksum, or impossible lengths"),
    Counter(303, "dgram.rings_inbound_mended", IN, "rings whose cursors contradicted each other: slots "
            "were skipped"),
)
# fmt: on

BYTES_SENT, BYTES_RECEIVED = (("tcp.bytes_" + way, "dgram.bytes_" + way) for way in ("sent", "received"))
"""All that goes over the network, in connections and in datagrams."""

ID = {counter.name: counter.id for counter in COUNTERS}

assert len(ID) == len(COUNTERS) == len(set(ID.values()))
