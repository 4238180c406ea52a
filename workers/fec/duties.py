"""The two duties of a fec worker.

outbound    Encoder: blocks of the coded and transit rings of its lane into shards with parity
inbound     Decoder: runs of shards from the inbound rings into blocks in the decoded ring of its lane
"""

from __future__ import annotations

from pipeline.runtime.plan import WorkerFds
from pipeline.runtime.worker import Attachment, Duty
from workers.fec.decoder import Decoder
from workers.fec.encoder import Encoder


def duties(attachment: Attachment, fds: WorkerFds) -> list[Duty]:
    """The two duties of a fec worker, which owns no file descriptor."""
    return [Encoder(attachment), Decoder(attachment)]
