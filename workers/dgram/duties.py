"""The two duties of a dgram worker.

    outbound    Sender      blocks from the outbound rings of all lanes into segments, within the pace of each path
    inbound     Receiver    segments into blocks in the arrived ring of its lane; probes, answers and reports

The duties share the paths to the peers. Each word of a path has one writer among them, so they need no lock.
"""

from __future__ import annotations

from pipeline.runtime.plan import WorkerFds
from pipeline.runtime.worker import Attachment, Duty
from workers.dgram.lane_sockets import lane_sockets
from workers.dgram.path import Paths
from workers.dgram.receiver import Receiver
from workers.dgram.sender import Sender


def duties(attachment: Attachment, fds: WorkerFds) -> list[Duty]:
    """`fds` has the sockets of the lane (`workers.dgram.lane_sockets`), and what its paths outlive a worker in."""
    paths = Paths()
    return [Sender(attachment, paths), Receiver(attachment, paths, lane_sockets(attachment, fds), fds)]
