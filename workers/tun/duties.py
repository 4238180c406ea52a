"""The tun worker: packets from a TUN queue into blocks, and frames from the other workers back to the kernel.

    outbound    wait on the queue -> read packets: light ones into the light ring, the others into a slot of the plain
                or the coded ring, until it is full or nothing is left -> stamp the tcp worker that carries it -> hand
                on
    inbound     wait on the doorbell -> for each slot of this lane, each frame, each packet: check, write -> hand on

Each duty is a file of its own: `tun_outbound` (with `tun_light`), `tun_inbound`. They share the queue and nothing else.
"""

from __future__ import annotations

import argparse

from pipeline.runtime.worker import Attachment, Duty
from workers.tun.reader import TunReader
from workers.tun.writer import TunWriter


def duties(attachment: Attachment, arguments: argparse.Namespace) -> list[Duty]:
    """The two duties of a tun worker over the queue in `arguments.tun_fd`."""
    return [TunReader(attachment, arguments.tun_fd), TunWriter(attachment, arguments.tun_fd)]
