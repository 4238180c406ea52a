"""An emulated link: a process of its own between two TAP devices, one in each network namespace.

    Link(a, b, spec, ...)   starts the emulator and makes an interface in both namespaces
    change, blackout        change the link while traffic runs; one direction or both
    silence                 chosen TCP connections vanish from the path, by port
    stats                   what happened to the segments, by direction
    close                   ends the emulator; the devices vanish with it

The emulator owns the devices and reads them at once, so packets wait in the model (tools/lab/link_model.py) and nowhere
else. Super-packets cross whole; one that loses segments is cut (tools/lab/gso.py). Frames to a group address, and all
that are not IPv4 or IPv6 (ARP, neighbour discovery), belong to the link, not to the path. They pass at once. The
process ends when its control socket does, and it dies with the thread that started it.

Control: one JSON request and one answer in each datagram, over a socket pair.
"""

from __future__ import annotations

import gc
import heapq
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from functools import partial
from typing import Literal

import msgspec

from pipeline.packet.ip import IPPROTO_TCP, V6_HEADER_BYTES
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.runtime.privileges import prctl
from tools.lab.gso import ETHERNET_BYTES, cut, shape
from tools.lab.link_model import NS_PER_MS, LinkCounters, LinkModel, LinkSpec
from tools.lab.namespace import LabError, Namespace, die_with_parent, inside, signals_held_off
from tools.lab.tap import open_tap

Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, Direction] = ("forward", "backward")

FRAME_BYTES = 65536 + ETHERNET_BYTES + VNET_HEADER_BYTES
TURN_NS = NS_PER_MS // 10
"""Time that one device is read before the other device, and the frames that are due, get their turn."""

CONTROL_BYTES = 65536
CONTROL_SECONDS = 5.0
PR_SET_TIMERSLACK = 29  # linux/prctl.h
NICE = -10
"""Priority where real-time scheduling is not allowed."""

ETHERTYPE_OFFSET = VNET_HEADER_BYTES + 12
PORTS = struct.Struct("!HH")  # where a TCP header begins
IP_ETHERTYPES = (b"\x08\x00", b"\x86\xdd")


class Request(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """`open` names the interfaces to make in the two namespaces; the other actions act on `directions`."""

    action: Literal["open", "change", "blackout", "silence", "stats"]
    directions: tuple[Direction, ...] = DIRECTIONS
    specs: list[LinkSpec] = []
    interfaces: list[str] = []
    on: bool = False
    ports: list[int] = []


class DirectionStats(LinkCounters):
    """The counters of the model, and how the emulator kept up with it."""

    delivered: int = 0
    """Segments written to the device: those passed, less those lost in a blackout, less those on their way."""
    dropped_blackout: int = 0
    dropped_silenced: int = 0
    """Segments of silenced connections: never offered to the model."""
    writes: int = 0
    writes_late: int = 0
    """Writes made more than 1 ms after they were due."""
    worst_late_us: int = 0
    writes_refused: int = 0
    """Writes that failed: the interface was down or out of memory."""


class Answer(msgspec.Struct, omit_defaults=True):
    error: str = ""
    stats: dict[str, DirectionStats] = {}


class Link:
    """The end of the control socket that the lab holds."""

    def __init__(
        self,
        a: Namespace,
        b: Namespace,
        specs: tuple[LinkSpec, LinkSpec],
        interfaces: tuple[str, str] = ("link0", "link0"),
    ) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(CONTROL_SECONDS)
        with theirs, signals_held_off():
            inherited = [theirs.fileno(), a.netns, b.netns]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tools.lab.link_emulator", *map(str, inherited)],
                pass_fds=inherited,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent(),
            )
        self.pid = self._process.pid
        try:
            self._ask(Request("open", specs=list(specs), interfaces=list(interfaces)))
        except BaseException:
            self.close()
            raise

    def change(self, spec: LinkSpec, direction: Direction | None = None) -> None:
        """From now on the link is like `spec`. Frames that are on their way arrive as they would have."""
        self._ask(Request("change", specs=[spec], directions=_chosen(direction)))

    def blackout(self, on: bool, direction: Direction | None = None) -> None:
        """While on, no frame arrives: neither those sent meanwhile nor those on their way that are due meanwhile."""
        self._ask(Request("blackout", on=on, directions=_chosen(direction)))

    def silence(self, *ports: int) -> None:
        """TCP segments from or to these ports vanish in both directions, until the next call; no other segment does.
        A connection sees this when a box on its path has forgotten it. Without a port: nothing is silenced."""
        self._ask(Request("silence", ports=list(ports)))

    def stats(self) -> dict[str, DirectionStats]:
        """By direction: "forward" is from the first namespace to the second."""
        return self._ask(Request("stats")).stats

    def close(self) -> None:
        self._control.close()
        try:
            self._process.wait(CONTROL_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: Request) -> Answer:
        try:
            self._control.send(msgspec.json.encode(request))
            received = self._control.recv(CONTROL_BYTES)
        except OSError as error:
            raise LabError(f"link emulator (pid {self.pid}): {request.action} failed: {error}") from None
        if not received:
            raise LabError(f"link emulator (pid {self.pid}): ended, exit status {self._process.wait()}")
        answer = msgspec.json.decode(received, type=Answer)
        if answer.error:
            raise LabError(f"link emulator: {answer.error}")
        return answer


def _chosen(direction: Direction | None) -> tuple[Direction, ...]:
    return DIRECTIONS if direction is None else (direction,)


class EmulatedDirection:
    """One direction inside the emulator: from one device through the model and the schedule into the other."""

    def __init__(self, name: str, spec: LinkSpec, source: int, target: int) -> None:
        self.model = LinkModel(spec, name)
        self.blackout = False
        self.silenced: frozenset[int] = frozenset()
        self.source = source
        self._target = target
        self._schedule: list[tuple[int, int, int, bytes]] = []
        """A heap of (due, order of arrival, segments, frame)."""
        self._order = 0
        self.stats = self.model.counters = DirectionStats()

    def read_frames(self) -> None:
        """Read frames from the device, for one turn, and schedule them."""
        now = time.monotonic_ns()
        turn_ends = now + TURN_NS
        while now < turn_ends:
            try:
                frame = os.read(self.source, FRAME_BYTES)
            except OSError:
                return  # nothing left, or the interface is down
            now = time.monotonic_ns()
            if frame[VNET_HEADER_BYTES] & 1 or frame[ETHERTYPE_OFFSET : ETHERTYPE_OFFSET + 2] not in IP_ETHERTYPES:
                if not self.blackout:
                    self._add(now, 0, frame)
                continue
            segments, size, last = shape(frame)
            if self.silenced and not self.silenced.isdisjoint(_tcp_ports(frame)):
                self.stats.dropped_silenced += segments
                continue
            for due, first, count in self.model.offer(now, segments, size, last):
                self._add(due, count, frame if count == segments else cut(frame, first, count))

    def deliver(self, now: int) -> int | None:
        """Write the frames that are due. The time at which the next one is due."""
        schedule, stats = self._schedule, self.stats
        while schedule and schedule[0][0] <= now:
            due, _, segments, frame = heapq.heappop(schedule)
            if self.blackout:
                stats.dropped_blackout += segments
                continue
            try:
                os.write(self._target, frame)
                stats.delivered += segments
            except OSError:
                stats.writes_refused += 1
            now = time.monotonic_ns()
            stats.writes += 1
            late = now - due
            if late > NS_PER_MS:
                stats.writes_late += 1
            if late > stats.worst_late_us * 1000:
                stats.worst_late_us = late // 1000
        return schedule[0][0] if schedule else None

    def _add(self, due: int, segments: int, frame: bytes) -> None:
        self._order += 1
        heapq.heappush(self._schedule, (due, self._order, segments, frame))


def _tcp_ports(frame: bytes) -> tuple[int, ...]:
    """Source and destination port of a TCP packet; empty for other packets. IPv6 without extension headers."""
    ip = VNET_HEADER_BYTES + ETHERNET_BYTES
    if frame[ip] >> 4 == 4:
        protocol, tcp = frame[ip + 9], ip + (frame[ip] & 15) * 4
    else:
        protocol, tcp = frame[ip + 6], ip + V6_HEADER_BYTES
    return PORTS.unpack_from(frame, tcp) if protocol == IPPROTO_TCP else ()


class Emulator:
    """The process: it moves frames in both directions and answers requests."""

    def __init__(self, control: socket.socket, namespaces: tuple[int, int]) -> None:
        self._control = control
        self._namespaces = namespaces
        self._paths: dict[str, EmulatedDirection] = {}

    def run(self) -> None:
        """Serve until the control socket ends."""
        control = self._control.fileno()
        while True:
            now = time.monotonic_ns()
            dues = [due for path in self._paths.values() if (due := path.deliver(now)) is not None]
            wait = max(0, min(dues) - time.monotonic_ns()) / 1e9 if dues else None
            sources = {path.source: path for path in self._paths.values()}
            ready, _, _ = select.select([*sources, control], [], [], wait)
            for fd in ready:
                if fd in sources:
                    sources[fd].read_frames()
                elif not self._answer():
                    return

    def _answer(self) -> bool:
        received = self._control.recv(CONTROL_BYTES)
        if not received:
            return False
        try:
            answer = self._carry_out(msgspec.json.decode(received, type=Request))
        except (LabError, msgspec.ValidationError, OSError) as error:
            answer = Answer(error=str(error))
        self._control.send(msgspec.json.encode(answer))
        return True

    def _carry_out(self, request: Request) -> Answer:
        if request.action == "open":
            a, b = (
                inside(netns, partial(open_tap, name))
                for netns, name in zip(self._namespaces, request.interfaces, strict=True)
            )
            forward, backward = request.specs
            self._paths = {
                "forward": EmulatedDirection("forward", forward, a, b),
                "backward": EmulatedDirection("backward", backward, b, a),
            }
        for name in request.directions:
            if request.action == "change":
                self._paths[name].model.change(request.specs[0])
            elif request.action == "blackout":
                self._paths[name].blackout = request.on
            elif request.action == "silence":
                self._paths[name].silenced = frozenset(request.ports)
        return Answer(stats={name: path.stats for name, path in self._paths.items()})


def _be_punctual() -> None:
    """A wire waits neither for the load that it carries nor for the timer's slack, so this process should not."""
    prctl(PR_SET_TIMERSLACK, 1)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        os.nice(NICE)


def main(argv: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _be_punctual()
    gc.disable()
    control, a, b = (os.dup(int(fd)) for fd in argv)  # to low numbers: select() takes none above 1023
    Emulator(socket.socket(fileno=control), (a, b)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
