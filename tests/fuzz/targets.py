"""Every parser that reads bytes of a peer, of a stranger, or of a file: name -> Target.

`python -m tests.fuzz` feeds them for as long as one likes, tests/fuzz/test_corpus.py for some seconds.
"""

from __future__ import annotations

from pipeline.errors import PeerError
from tests.fuzz import doors, office, pure, rings, shards
from tests.fuzz.fuzzer import Target
from tests.fuzz.pure import alone

ENDS = (PeerError, EOFError, OSError)
"""What ends a connection, and nothing else: see workers.tcp_greeting and workers.tcp_inbound."""

_GREETING = ("pipeline/session.py", "pipeline/proof.py", "workers/tcp_greeting.py", "pipeline/intake.py")
_HUB = ("pipeline/hub.py", "pipeline/identities.py", "pipeline/membership.py", "pipeline/addresses.py")

TARGETS = {
    "frames": Target(alone(pure.frames), (PeerError,), ("pipeline/wire.py",), pure.frames_seeds, 10000),
    "blocks": Target(alone(pure.blocks), (PeerError,), ("pipeline/block.py",), pure.blocks_seeds, 10000),
    "greeting": Target(alone(pure.greeting), (PeerError,), ("pipeline/session.py",), pure.greeting_seeds, 5000),
    "packet": Target(
        alone(pure.packet),
        (),
        ("pipeline/ippacket.py", "pipeline/superpacket.py", "pipeline/flowtable.py"),
        pure.packet_seeds,
        5000,
    ),
    "invitation": Target(
        alone(pure.invited), (), ("pipeline/invitation.py", "pipeline/keys.py"), pure.invited_seeds, 3000
    ),
    "peer_file": Target(pure.peer_file, (), ("pipeline/peerfile.py", "pipeline/keys.py"), pure.peer_file_seeds, 1000),
    "intake": Target(alone(rings.intake), (), ("pipeline/intake.py", "pipeline/wire.py"), rings.intake_seeds, 300),
    "inbound": Target(
        rings.inbound,
        (PeerError,),
        (
            "workers/tun_inbound.py",
            "workers/tun_transit.py",
            "workers/fec.py",
            "pipeline/block.py",
            "pipeline/ippacket.py",
            "pipeline/superpacket.py",
            "pipeline/routes.py",
        ),
        rings.inbound_seeds,
        1000,
    ),
    "reassembly": Target(
        alone(shards.reassembly),
        (PeerError,),
        ("pipeline/reassembly.py", "pipeline/order.py", "pipeline/buffers.py", "pipeline/shard.py"),
        shards.reassembly_seeds,
        600,
    ),
    "records": Target(alone(doors.records), (), ("pipeline/tls.py", "pipeline/tls_inlet.py"), doors.records_seeds, 300),
    "host": Target(alone(doors.host), ENDS, (*_GREETING, *_HUB), doors.host_seeds, 200),
    "guest": Target(alone(doors.guest), ENDS, (*_GREETING, "pipeline/client_end.py"), doors.guest_seeds, 1500),
    "hub": Target(alone(office.hub), (), (*_HUB, "pipeline/certificates.py"), office.hub_seeds, 200),
    "desk": Target(alone(office.desk), (), ("pipeline/desks.py", *_HUB), office.desk_seeds, 200),
    "control": Target(
        office.control,
        (),
        ("pipeline/control.py", "pipeline/server_end.py", "pipeline/peerfile.py"),
        office.control_seeds,
        800,
    ),
    "remembered": Target(
        office.remembered, (), ("pipeline/state.py", "pipeline/addresses.py"), office.remembered_seeds, 150
    ),
}
