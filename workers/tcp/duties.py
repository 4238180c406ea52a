"""The tcp worker: blocks from the outbound rings onto connections, and frames from connections into its inbound ring.

    outbound    wait on the doorbell (or on a full socket) -> for each lane, the slots stamped with this worker ->
                one sendmsg for what is ready -> hand on; keepalives on connections that are silent
    inbound     wait on epoll -> dial or accept, greet -> receive into the slot in hand -> hand on whole frames

Each duty is a file of its own: `tcp_outbound` (with `tcp_line`, `tcp_peer`), `tcp_inbound` (with `tcp_lives`,
`tcp_door`, `tcp_greeting`, `tcp_peer_in`, `tcp_watch`). They share the roster and a connection's channel, which has a
lock.
"""

from __future__ import annotations

import argparse
import time

from pipeline.runtime.worker import Attachment, Duty
from pipeline.transport.connection import ConnectionList
from workers.tcp.receiver import Receiver
from workers.tcp.sender import Sender


def duties(attachment: Attachment, arguments: argparse.Namespace) -> list[Duty]:
    """The two duties of a tcp worker; `arguments.listen_fd` is the server's listening socket, `arguments.desk_fd` the
    way to the supervisor."""
    connection_list = ConnectionList(time.monotonic_ns())
    outbound = Sender(attachment, connection_list)
    return [outbound, Receiver(attachment, connection_list, outbound, arguments)]
