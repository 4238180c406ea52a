"""The assignment: how a process learns which worker it is, over a socket pair that it inherits from the supervisor.

    process -> supervisor   its format   everything is imported; it waits, as a spare
    supervisor -> process   Assignment   its name, with its descriptors as SCM_RIGHTS
    process -> supervisor   READY        its duties run

A spare has no place in shared memory, so there may be any number; the supervisor sends one assignment to each, and only
when the predecessor has been reaped. The format says which plans and which shared memory the process understands. If
the program on disk has been replaced, a new process may understand others than the supervisor, which gives it no
assignment then. The supervisor's end: `pipeline.supervisor.processes.spare`.
"""

from __future__ import annotations

import array
import json
import os
import zlib
from _socket import CMSG_LEN, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET, socket  # `socket` itself takes 4 ms to import
from typing import NamedTuple

from pipeline.counters import COUNTERS
from pipeline.runtime.plan import (
    PeerTablePlan,
    Plan,
    RingPlan,
    StageMember,
    StagePosition,
    WorkerFds,
    WorkerPlan,
    WorkerSettings,
)
from pipeline.shm.layout import LAYOUT_VERSION

READY = b"ready"
MESSAGE_BYTES = 4096

_DESCRIBED = (Plan, PeerTablePlan, WorkerPlan, RingPlan, StageMember, StagePosition, WorkerSettings, WorkerFds)


def _own_format() -> bytes:
    fields = [(kind.__name__, kind._fields) for kind in _DESCRIBED]
    counters = [(counter.id, counter.name) for counter in COUNTERS]
    return b"format %d.%08x" % (LAYOUT_VERSION, zlib.crc32(repr((fields, counters)).encode()))


FORMAT = _own_format()


class Assignment(NamedTuple):
    """The process becomes this worker. The descriptors are its own."""

    worker: str
    process: int  # its number: higher than that of any worker process before it
    plan_fd: int
    fds: WorkerFds


def message_of(worker: str, process: int, fds: dict[str, int]) -> tuple[bytes, list[int]]:
    """The assignment as bytes, and the descriptors that go with it. `fds`: "plan", and fields of WorkerFds."""
    return json.dumps([worker, process, *fds]).encode(), list(fds.values())


def await_assignment(fd: int) -> Assignment | None:
    """Say that we wait, and wait. None if the supervisor has closed its end: it needs us no more."""
    sock = socket(fileno=fd)
    try:
        sock.send(FORMAT)
        found = array.array("i")
        data, ancillary, _, _ = sock.recvmsg(MESSAGE_BYTES, CMSG_LEN(8 * found.itemsize), MSG_CMSG_CLOEXEC)
    except (BrokenPipeError, ConnectionResetError):
        return None
    finally:
        sock.detach()
    if not data:
        return None
    for level, kind, content in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            found.frombytes(content)
    worker, process, *names = json.loads(data)
    fds = dict(zip(names, found, strict=True))
    plan_fd = fds.pop("plan")
    return Assignment(worker, process, plan_fd, WorkerFds(**fds))


def report_ready(fd: int) -> None:
    """The duties run: the supervisor hears no more from us here."""
    os.write(fd, READY)
    os.close(fd)
