"""The two duties of a tcp worker.

    outbound    Sender      blocks and runs from the outbound rings onto connections; keepalives
    inbound     Receiver    frames from connections into the inbound ring; connections are made, accepted and closed

The duties share the connection list (pipeline.transport.connection_list), and the TLS channel of each connection, which
has a lock.
"""

from __future__ import annotations

import time

from pipeline.runtime.plan import WorkerFds
from pipeline.runtime.worker import Attachment, Duty
from pipeline.transport.connection_list import ConnectionList
from workers.tcp.receiver import Receiver
from workers.tcp.sender import Sender


def duties(attachment: Attachment, fds: WorkerFds) -> list[Duty]:
    """`fds.listener` is a server's listening socket, `fds.supervisor` the channel to the supervisor."""
    connection_list = ConnectionList(time.monotonic_ns())
    sender = Sender(attachment, connection_list)
    return [sender, Receiver(attachment, connection_list, sender, fds)]
