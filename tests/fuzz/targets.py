"""Every parser that reads bytes of a peer, of an unauthenticated client, or of a file: name -> Target.

`python -m tests.fuzz` feeds the targets for any time, tests/fuzz/test_corpus.py for some seconds.
"""

from __future__ import annotations

from pipeline.errors import PeerError
from tests.fuzz import (
    targets_approach,
    targets_control,
    targets_datagrams,
    targets_fake_tcp,
    targets_fec,
    targets_files,
    targets_handshake,
    targets_http,
    targets_rings,
    targets_sealed,
    targets_wire,
)
from tests.fuzz.fuzzer import Target
from tests.fuzz.targets_wire import alone

_HANDSHAKE = (
    "pipeline/wire/messages.py",
    "pipeline/wire/auth.py",
    "pipeline/wire/handshake.py",
    "workers/tcp/handshake.py",
    "pipeline/runtime/supervisor_channel.py",
)
_PEERS = (
    "pipeline/peers/admission.py",
    "pipeline/peers/registry.py",
    "pipeline/peers/membership.py",
    "pipeline/peers/address_assignment.py",
)

TARGETS = {
    "http_answer": Target(
        alone(targets_approach.http_answer),
        (),
        ("pipeline/wire/http_connect.py",),
        targets_approach.http_answer_seeds,
        400,
    ),
    "websocket": Target(
        alone(targets_approach.websocket),
        (),
        ("pipeline/wire/websocket.py", "pipeline/wire/websocket_stream.py"),
        targets_approach.websocket_seeds,
        300,
    ),
    "websocket_request": Target(
        alone(targets_approach.websocket_request),
        (),
        ("pipeline/wire/websocket_server.py", "pipeline/wire/forwarded.py"),
        targets_approach.websocket_request_seeds,
        300,
    ),
    "socks_answer": Target(
        alone(targets_approach.socks_answer),
        (),
        ("pipeline/wire/socks.py",),
        targets_approach.socks_answer_seeds,
        2000,
    ),
    "frames": Target(
        alone(targets_wire.frames), (PeerError,), ("pipeline/wire/framing.py",), targets_wire.frames_seeds, 10000
    ),
    "blocks": Target(
        alone(targets_wire.blocks), (PeerError,), ("pipeline/wire/block.py",), targets_wire.blocks_seeds, 10000
    ),
    "offered_alpn": Target(
        alone(targets_wire.offered_alpn),
        (),
        ("pipeline/transport/offered_alpn.py",),
        targets_wire.offered_alpn_seeds,
        5000,
    ),
    "proxy_header": Target(
        alone(targets_wire.proxy_header),
        (PeerError,),
        ("pipeline/wire/proxy_protocol.py",),
        targets_wire.proxy_header_seeds,
        5000,
    ),
    "handshake_message": Target(
        alone(targets_wire.handshake_message),
        (PeerError,),
        ("pipeline/wire/messages.py",),
        targets_wire.handshake_message_seeds,
        5000,
    ),
    "fake_tcp": Target(
        alone(targets_fake_tcp.fake_tcp),
        (),
        ("pipeline/faketcp/packet.py", "pipeline/faketcp/flow.py"),
        targets_fake_tcp.fake_tcp_seeds,
    ),
    "segments": Target(
        alone(targets_datagrams.segments),
        (PeerError,),
        (
            "pipeline/datagram/assembly.py",
            "pipeline/datagram/arriving_block.py",
            "pipeline/datagram/arrival_counts.py",
            "pipeline/datagram/cut.py",
            "workers/dgram/reception.py",
        ),
        targets_datagrams.segments_seeds,
        1000,
    ),
    "control_datagrams": Target(
        alone(targets_datagrams.control_datagrams),
        (),
        (
            "pipeline/wire/control_datagram.py",
            "workers/dgram/kept_blocks.py",
            "workers/dgram/path_feedback.py",
            "workers/dgram/path_control.py",
        ),
        targets_datagrams.control_datagrams_seeds,
        2000,
    ),
    "packet": Target(
        alone(targets_wire.packet),
        (),
        (
            "pipeline/packet/ip.py",
            "pipeline/packet/gso.py",
            "pipeline/packet/flow_classifier.py",
            "pipeline/packet/flow.py",
            "pipeline/packet/refusal.py",
        ),
        targets_wire.packet_seeds,
        5000,
    ),
    "dns_answer": Target(
        alone(targets_wire.dns_answer),
        (),
        ("pipeline/wire/dns.py",),
        targets_wire.dns_answer_seeds,
        3000,
    ),
    "claims": Target(
        alone(targets_wire.claims),
        (PeerError,),
        ("pipeline/transport/address_learner.py", "pipeline/packet/ip.py"),
        targets_wire.claims_seeds,
        3000,
    ),
    "invitation": Target(
        alone(targets_wire.invited),
        (),
        ("pipeline/credentials/invitation.py", "pipeline/credentials/keys.py"),
        targets_wire.invited_seeds,
        3000,
    ),
    "peer_file": Target(
        targets_wire.peer_file,
        (),
        ("pipeline/peers/peer_file.py", "pipeline/credentials/keys.py"),
        targets_wire.peer_file_seeds,
        1000,
    ),
    "frame_reader": Target(
        alone(targets_rings.frame_reader_stream),
        (),
        ("workers/tcp/frame_reader.py", "pipeline/wire/framing.py"),
        targets_rings.frame_reader_stream_seeds,
        300,
    ),
    "inbound": Target(
        targets_rings.inbound,
        (PeerError,),
        (
            "workers/tun/writer.py",
            "workers/tun/forwarder.py",
            "workers/fec/decoder.py",
            "pipeline/wire/block.py",
            "pipeline/packet/ip.py",
            "pipeline/packet/gso.py",
            "pipeline/packet/udp_merge.py",
            "pipeline/packet/route_table.py",
        ),
        targets_rings.inbound_seeds,
        1000,
    ),
    "reassembly": Target(
        alone(targets_fec.reassembly),
        (PeerError,),
        (
            "pipeline/fec/reassembly.py",
            "pipeline/fec/reorder.py",
            "pipeline/fec/buffer_pool.py",
            "pipeline/fec/shard.py",
        ),
        targets_fec.reassembly_seeds,
        600,
    ),
    "records": Target(
        alone(targets_handshake.records),
        (),
        ("pipeline/transport/tls_channel.py", "pipeline/transport/tls_records.py"),
        targets_handshake.records_seeds,
        300,
    ),
    "sealed_records": Target(
        alone(targets_sealed.sealed_records),
        (),
        ("pipeline/sealing/records.py", "pipeline/sealing/frame_cut.py", "pipeline/sealing/header_seal.py"),
        targets_sealed.sealed_records_seeds,
        600,
    ),
    "sealed_block": Target(
        targets_sealed.sealed_block,
        (),
        ("workers/tun/sealing.py", "pipeline/sealing/replay_window.py", "pipeline/wire/block.py"),
        targets_sealed.sealed_block_seeds,
        1000,
    ),
    "key_share": Target(
        alone(targets_sealed.key_share),
        (PeerError,),
        ("pipeline/sealing/session.py",),
        targets_sealed.key_share_seeds,
        1000,
    ),
    "server_handshake": Target(
        alone(targets_handshake.server_handshake),
        (),
        (*_HANDSHAKE, *_PEERS),
        targets_handshake.server_handshake_seeds,
        200,
    ),
    "client_handshake": Target(
        alone(targets_handshake.client_handshake),
        (),
        (*_HANDSHAKE, "pipeline/supervisor/roles/client_role.py"),
        targets_handshake.client_handshake_seeds,
        1500,
    ),
    "hub": Target(
        alone(targets_control.hub),
        (),
        (*_PEERS, "pipeline/credentials/certificates.py"),
        targets_control.hub_seeds,
        200,
    ),
    "worker_channel": Target(
        alone(targets_control.worker_channel),
        (),
        ("pipeline/supervisor/processes/worker_channels.py", *_PEERS),
        targets_control.worker_channel_seeds,
        200,
    ),
    "http_request": Target(
        targets_http.http_request,
        (),
        ("pipeline/exporter/request.py", "pipeline/exporter/access.py", "pipeline/exporter/site.py"),
        targets_http.http_request_seeds,
        1000,
    ),
    "control": Target(
        targets_control.control,
        (),
        (
            "pipeline/supervisor/control/control_socket.py",
            "pipeline/supervisor/roles/server_role.py",
            "pipeline/supervisor/roles/peer_commands.py",
            "pipeline/supervisor/roles/invitations.py",
            "pipeline/peers/peer_file.py",
        ),
        targets_control.control_seeds,
        800,
    ),
    "remembered": Target(
        targets_control.remembered,
        (),
        ("pipeline/credentials/state_dir.py", "pipeline/peers/address_assignment.py"),
        targets_control.remembered_seeds,
        150,
    ),
    "text_file": Target(
        alone(targets_files.text), (), ("pipeline/system/small_file.py",), targets_files.text_seeds, 5000
    ),
    "tls_files": Target(
        targets_files.tls_files,
        (),
        (
            "pipeline/credentials/certificates.py",
            "pipeline/credentials/tls_settings.py",
            "pipeline/transport/tls_pem.py",
            "pipeline/transport/tls_context.py",
        ),
        targets_files.tls_files_seeds,
        60,
    ),
}
