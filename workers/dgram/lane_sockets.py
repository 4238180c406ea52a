"""The sockets of a lane: that of UDP, that of fake TCP, or both, in the order in which they are tried.

Each has a half for each duty, with one interface whatever the kind: the inbound duty receives, and sends control
datagrams; a path has the half of the outbound duty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from pipeline.policy import path_mtu
from pipeline.policy.carrier_order import Kind
from pipeline.policy.return_address import Address
from pipeline.runtime.plan import WorkerFds
from pipeline.runtime.worker import Attachment
from workers.dgram.datagram_socket import DatagramSocket
from workers.dgram.fake_tcp_segments import FakeTcpSegments
from workers.dgram.fake_tcp_socket import FAKE_TCP_OVERHEAD, ClientFakeTcpSocket, FakeTcpSocket, ServerFakeTcpSocket
from workers.dgram.path import Ancillary, SegmentSender
from workers.dgram.segment_socket import SegmentSocket


class InboundSocket(Protocol):
    """The first half. Of the latest receive: see workers.dgram.datagram_socket.

    begin, rest      a client uses it from now on, or no more
    reaches          whether datagrams can be sent there now
    doubt            nothing gets through
    interface        the number of the one by which the latest receive has come; 0: not known
    opened           how many flows have been opened so far
    """

    memory: memoryview
    size: int
    segment_bytes: int
    source: tuple[Any, ...]
    is_marked: bool
    waited_ns: int

    @property
    def opened(self) -> int: ...

    @property
    def interface(self) -> int: ...

    def fileno(self) -> int: ...

    def receive(self) -> bool: ...

    def source_address(self) -> Address: ...

    def answer_ancillary(self) -> Ancillary: ...

    def address_of(self, host: bytes, port: int, scope: int) -> tuple[Any, ...] | None: ...

    def send(self, datagram: memoryview, address: tuple[Any, ...], ancillary: Ancillary) -> int: ...

    def reaches(self, address: tuple[Any, ...]) -> bool: ...

    def begin(self) -> None: ...

    def rest(self, now: int) -> None: ...

    def doubt(self) -> None: ...

    def tick(self, now: int) -> None: ...

    def close(self) -> None: ...


class LaneSocket(NamedTuple):
    """`overhead`: bytes of headers in front of a datagram, by version of IP."""

    kind: Kind
    overhead: Mapping[int, int]
    inbound: InboundSocket
    segments: SegmentSender


def lane_sockets(attachment: Attachment, fds: WorkerFds) -> tuple[LaneSocket, ...]:
    """The descriptors are theirs from now on."""
    return tuple(_sockets(attachment, fds))


def _sockets(attachment: Attachment, fds: WorkerFds) -> Iterator[LaneSocket]:
    counters = attachment.page.counters
    if fds.datagrams >= 0:
        udp = DatagramSocket(fds.datagrams)
        yield LaneSocket(Kind.UDP, path_mtu.OVERHEAD, udp, SegmentSocket(udp.socket, counters))
    fake_tcp: FakeTcpSocket
    if fds.fake_tcp_listener >= 0:
        taps = {4: fds.fake_tcp_tap4, 6: fds.fake_tcp_tap6}
        fake_tcp = ServerFakeTcpSocket(taps, fds.fake_tcp_listener, counters)
    elif fds.fake_tcp_channel >= 0:
        lane, lanes = attachment.worker.lane, attachment.plan.lanes
        fake_tcp = ClientFakeTcpSocket(fds.fake_tcp_channel, lane, lanes, counters)
    else:
        return
    yield LaneSocket(Kind.FAKE_TCP, FAKE_TCP_OVERHEAD, fake_tcp, FakeTcpSegments(fake_tcp, counters))
