"""Every parser that reads bytes of a peer, of a stranger, or of a file: name -> Target.

`python -m tests.fuzz` feeds them for as long as one likes, tests/fuzz/test_corpus.py for some seconds.
"""

from __future__ import annotations

from pipeline.errors import PeerError
from tests.fuzz import targets_control, targets_fec, targets_handshake, targets_rings, targets_wire
from tests.fuzz.fuzzer import Target
from tests.fuzz.targets_wire import alone

ENDS = (PeerError, EOFError, OSError)
"""What ends a connection, and nothing else: see workers.tcp.handshake and workers.tcp.receiver."""

_GREETING = (
    "pipeline/wire/messages.py",
    "pipeline/wire/auth.py",
    "workers/tcp/handshake.py",
    "workers/tcp/frame_reader.py",
)
_HUB = (
    "pipeline/peers/admission.py",
    "pipeline/peers/registry.py",
    "pipeline/peers/membership.py",
    "pipeline/peers/address_assignment.py",
)

TARGETS = {
    "frames": Target(
        alone(targets_wire.frames), (PeerError,), ("pipeline/wire/framing.py",), targets_wire.frames_seeds, 10000
    ),
    "blocks": Target(
        alone(targets_wire.blocks), (PeerError,), ("pipeline/wire/block.py",), targets_wire.blocks_seeds, 10000
    ),
    "greeting": Target(
        alone(targets_wire.greeting), (PeerError,), ("pipeline/wire/messages.py",), targets_wire.greeting_seeds, 5000
    ),
    "packet": Target(
        alone(targets_wire.packet),
        (),
        ("pipeline/packet/ip.py", "pipeline/packet/gso.py", "pipeline/packet/flow_classifier.py"),
        targets_wire.packet_seeds,
        5000,
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
    "intake": Target(
        alone(targets_rings.intake),
        (),
        ("workers/tcp/frame_reader.py", "pipeline/wire/framing.py"),
        targets_rings.intake_seeds,
        300,
    ),
    "inbound": Target(
        targets_rings.inbound,
        (PeerError,),
        (
            "workers/tun/writer.py",
            "workers/tun/forwarder.py",
            "workers/fec/duties.py",
            "pipeline/wire/block.py",
            "pipeline/packet/ip.py",
            "pipeline/packet/gso.py",
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
    "host": Target(alone(targets_handshake.host), ENDS, (*_GREETING, *_HUB), targets_handshake.host_seeds, 200),
    "guest": Target(
        alone(targets_handshake.guest),
        ENDS,
        (*_GREETING, "pipeline/supervisor/client_role.py"),
        targets_handshake.guest_seeds,
        1500,
    ),
    "hub": Target(
        alone(targets_control.hub), (), (*_HUB, "pipeline/credentials/certificates.py"), targets_control.hub_seeds, 200
    ),
    "desk": Target(
        alone(targets_control.desk),
        (),
        ("pipeline/supervisor/worker_channels.py", *_HUB),
        targets_control.desk_seeds,
        200,
    ),
    "control": Target(
        targets_control.control,
        (),
        ("pipeline/supervisor/control_socket.py", "pipeline/supervisor/server_role.py", "pipeline/peers/peer_file.py"),
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
}
