"""The two duties of a fec worker. They share nothing, so each may have a process of its own.

outbound    Encoder: blocks of the coded and transit rings of its lane into shards with parity
inbound     Decoder: runs of shards from the inbound rings into blocks in the decoded ring of its lane
"""

from __future__ import annotations

from pipeline.runtime.plan import WorkerFds
from pipeline.runtime.worker import Attachment, Duty
from workers.fec.decoder import Decoder
from workers.fec.encoder import Encoder


def duties(attachment: Attachment, fds: WorkerFds) -> list[Duty]:
    """The duties of a fec worker, or the one that this process has. It owns no file descriptor."""
    kinds: tuple[type[Encoder] | type[Decoder], ...] = (Encoder, Decoder)
    return [kind(attachment) for kind in kinds if kind.name in attachment.worker.duties]
