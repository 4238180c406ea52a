"""The paths: the ways from this worker to the lanes of its peers, which its two duties share.

    inbound      makes them, opens and closes them, says where they lead and what they carry
    outbound     sends on those that are open, and says what is outstanding

Each attribute has one duty that writes it; the other one reads. There are no locks: what is read is one object, old or
new. Two flags are set by the outbound duty, and cleared by the inbound one when it has seen them.

A client has one path in each worker: from its lane's port to the server's. A server's worker has a path to each lane of
a client whose datagrams the kernel gives it. There may be another path to that lane, by another kind of datagrams: one
of them is open at a time.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple, Protocol

from pipeline.wire.control_datagram import Report
from workers.dgram.sessions import Session

REPORTS_KEPT = 64
"""Reports that wait for the outbound duty. Their counts are sums, so the latest ones are the ones to keep."""

Reports = deque[tuple[int, Report]]
"""Each with the time when it came to this machine (ns)."""

Ancillary = list[tuple[int, int, bytes]]


Pieces = list[memoryview | bytes]


class SegmentSender(Protocol):
    """Sends segments by one kind of datagrams; the outbound duty's. See workers.dgram.segment_socket."""

    def most(self, segment_bytes: int) -> int: ...

    def send(self, pieces: Pieces, segment_bytes: int, count: int, path: Path) -> int: ...


class Path:
    """One way to one lane of a peer. `segments`: sends on it."""

    __slots__ = (
        "address", "ancillary", "doubted", "is_open", "is_resumed", "outstanding_since", "peer_handle",
        "probed_round_trip", "remote_lane", "reported", "reports", "round_trip", "segment_most", "segments", "sent_ns",
        "session", "too_big",
    )  # fmt: skip

    def __init__(self, session: Session, remote_lane: int, segments: SegmentSender) -> None:
        self.session = session
        self.segments = segments
        self.peer_handle = session.peer_handle
        self.remote_lane = remote_lane

        # the inbound duty's
        self.address: tuple[Any, ...] | None = None  # as sendmsg takes it; None: nothing may go
        self.ancillary: Ancillary = []  # of sendmsg: the address that it goes out from
        self.segment_most = 0  # bytes of UDP payload; 0: nothing may go
        self.is_open = False
        self.is_resumed = False  # it was open in the process before this one
        self.reported: int | None = None  # the latest sequence of which anything was reported, modulo 2^32
        self.probed_round_trip = 0  # ns, of the latest probe; 0: not known
        self.reports: Reports = deque(maxlen=REPORTS_KEPT)  # the outbound duty pops

        # the outbound duty's
        self.outstanding_since: int | None = None  # ns; when the oldest segment went out that nothing was reported of
        self.round_trip = 0  # ns, of segments; 0: not known
        self.sent_ns = 0  # when it has sent last

        # set by the outbound duty
        self.too_big = False  # the interface refused a segment for its size, or none of that size arrives
        self.doubted = False  # the kernel says that nothing gets there


class TakenBack(NamedTuple):
    peer_handle: int
    stream: int
    number: int
    epoch: int
    sealed: bytes


class Paths:
    """The open paths. `version` changes with each of them, also when the address or the size of one changes.

    `taken_back`: blocks for partners without a path, which the outbound duty gives to the inbound one.
    """

    def __init__(self) -> None:
        self._open: dict[int, tuple[Path, ...]] = {}
        self.version = 0
        self.taken_back: deque[TakenBack] = deque()

    def of(self, peer_handle: int) -> tuple[Path, ...]:
        """The open paths to a peer, that of its lowest lane first."""
        return self._open.get(peer_handle, ())

    def open(self, path: Path) -> None:
        """It takes the place of another one to that lane."""
        path.is_open = True
        others = []
        for each in self.of(path.peer_handle):
            if each.remote_lane != path.remote_lane:
                others.append(each)
            elif each is not path:
                each.is_open = False
        self._open[path.peer_handle] = tuple(sorted([*others, path], key=lambda each: each.remote_lane))
        self.version += 1

    def close(self, path: Path) -> None:
        path.is_open = False
        left = tuple(each for each in self.of(path.peer_handle) if each is not path)
        if left:
            self._open[path.peer_handle] = left
        else:
            self._open.pop(path.peer_handle, None)
        self.version += 1

    def change(self) -> None:
        """The address or the size of an open path is another one."""
        self.version += 1
