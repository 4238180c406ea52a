"""An emulated link: a process of its own between two TAP devices, one in each network namespace.

    Link(a, b, spec, ...)   starts the emulator and makes an interface in both namespaces
    change, blackout        while traffic runs; one direction or both
    silence                 chosen TCP connections vanish from the path, by port
    stats                   what happened to the segments, by direction
    close                   ends the emulator; the devices vanish with it

The emulator owns the devices and reads them at once, so that waiting happens in the model
(tools/lab/link_model.py) and nowhere else. Super-packets cross whole; one that loses segments is cut
(tools/lab/gso.py). Frames to a group address and anything but IPv4 and IPv6 (ARP, neighbour discovery)
belong to the link, not to the path: they pass at once. The process ends when its control socket does, and
dies with the thread that started it.

Control: one JSON request and one answer a datagram, over a socket pair.
"""

from __future__ import annotations

import ctypes
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

from tools.lab.gso import ETHERNET_BYTES, IPPROTO_TCP, IPV6_BYTES, VNET_BYTES, cut, shape
from tools.lab.link_model import NS_PER_MS, LinkCounters, LinkModel, LinkSpec
from tools.lab.namespace import LIBC, LabError, Namespace, die_with_parent, inside, signals_held_off
from tools.lab.tap import open_tap

Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, Direction] = ("forward", "backward")

FRAME_BYTES = 65536 + 14 + VNET_BYTES
TURN_NS = NS_PER_MS // 10
"""Time that one device is read before the other, and what is due, get their turn."""

CONTROL_BYTES = 65536
CONTROL_SECONDS = 5.0
PR_SET_TIMERSLACK = 29  # linux/prctl.h
NICE = -10
"""Where real-time scheduling is not allowed."""

ETHERTYPE_OFFSET = VNET_BYTES + 12
PORTS = struct.Struct("!HH")  # where a TCP header begins
IP_ETHERTYPES = (b"\x08\x00", b"\x86\xdd")


class Request(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """`open` names the interfaces to make in the two namespaces; the others act on `directions`."""

    action: Literal["open", "change", "blackout", "silence", "stats"]
    directions: tuple[Direction, ...] = DIRECTIONS
    specs: list[LinkSpec] = []
    interfaces: list[str] = []
    on: bool = False
    ports: list[int] = []


class DirectionStats(LinkCounters):
    """What the model counted, and how the emulator kept up with it."""

    delivered: int = 0
    """Segments written to the device: those passed, less what a blackout took, less what is on its way."""
    dropped_blackout: int = 0
    dropped_silenced: int = 0
    """Never offered to the model."""
    writes: int = 0
    writes_late: int = 0
    """Made more than 1 ms after they were due."""
    worst_late_us: int = 0
    writes_refused: int = 0
    """The interface was down or out of memory."""


class Answer(msgspec.Struct, omit_defaults=True):
    error: str = ""
    stats: dict[str, DirectionStats] = {}


class Link:
    """The near end: what the lab holds."""

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
        """From now on the link is like `spec`. What is on its way arrives as it would have."""
        self._ask(Request("change", specs=[spec], directions=_which(direction)))

    def blackout(self, on: bool, direction: Direction | None = None) -> None:
        """While on, nothing arrives: neither what is sent nor what is on its way and due meanwhile."""
        self._ask(Request("blackout", on=on, directions=_which(direction)))

    def silence(self, *ports: int) -> None:
        """TCP segments from or to these ports, and those alone, vanish in both directions as they are sent, until
        the next call: what a connection sees when a box on its path has forgotten it. No port: undone."""
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
            said = self._control.recv(CONTROL_BYTES)
        except OSError as error:
            raise LabError(f"link emulator (pid {self.pid}): {request.action} failed: {error}") from None
        if not said:
            raise LabError(f"link emulator (pid {self.pid}): ended, exit status {self._process.wait()}")
        answer = msgspec.json.decode(said, type=Answer)
        if answer.error:
            raise LabError(f"link emulator: {answer.error}")
        return answer


def _which(direction: Direction | None) -> tuple[Direction, ...]:
    return DIRECTIONS if direction is None else (direction,)


class Way:
    """One direction inside the emulator: from one device through the model and the pipe into the other."""

    def __init__(self, name: str, spec: LinkSpec, source: int, target: int) -> None:
        self.model = LinkModel(spec, name)
        self.blackout = False
        self.silenced: frozenset[int] = frozenset()
        self.source = source
        self._target = target
        self._pipe: list[tuple[int, int, int, bytes]] = []
        self._order = 0
        self.stats = self.model.counters = DirectionStats()

    def take(self) -> None:
        """Read what the device has, for one turn, and put it into the pipe."""
        now = time.monotonic_ns()
        turn_ends = now + TURN_NS
        while now < turn_ends:
            try:
                frame = os.read(self.source, FRAME_BYTES)
            except OSError:
                return  # nothing left, or the interface is down
            now = time.monotonic_ns()
            if frame[VNET_BYTES] & 1 or frame[ETHERTYPE_OFFSET : ETHERTYPE_OFFSET + 2] not in IP_ETHERTYPES:
                if not self.blackout:
                    self._put(now, 0, frame)
                continue
            segments, size, last = shape(frame)
            if self.silenced and not self.silenced.isdisjoint(_tcp_ports(frame)):
                self.stats.dropped_silenced += segments
                continue
            for due, first, count in self.model.offer(now, segments, size, last):
                self._put(due, count, frame if count == segments else cut(frame, first, count))

    def deliver(self, now: int) -> int | None:
        """Write what is due; when the next one is."""
        pipe, stats = self._pipe, self.stats
        while pipe and pipe[0][0] <= now:
            due, _, segments, frame = heapq.heappop(pipe)
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
        return pipe[0][0] if pipe else None

    def _put(self, due: int, segments: int, frame: bytes) -> None:
        self._order += 1
        heapq.heappush(self._pipe, (due, self._order, segments, frame))


def _tcp_ports(frame: bytes) -> tuple[int, ...]:
    """(from, to) of a TCP packet; none of any other. IPv6 without extension headers."""
    ip = VNET_BYTES + ETHERNET_BYTES
    if frame[ip] >> 4 == 4:
        protocol, tcp = frame[ip + 9], ip + (frame[ip] & 15) * 4
    else:
        protocol, tcp = frame[ip + 6], ip + IPV6_BYTES
    return PORTS.unpack_from(frame, tcp) if protocol == IPPROTO_TCP else ()


class Emulator:
    def __init__(self, control: socket.socket, namespaces: tuple[int, int]) -> None:
        self._control = control
        self._namespaces = namespaces
        self._ways: dict[str, Way] = {}

    def run(self) -> None:
        """Until the control socket ends."""
        while True:
            now = time.monotonic_ns()
            dues = [due for way in self._ways.values() if (due := way.deliver(now)) is not None]
            wait = max(0, min(dues) - time.monotonic_ns()) / 1e9 if dues else None
            sources = {way.source: way for way in self._ways.values()}
            ready, _, _ = select.select([*sources, self._control], [], [], wait)
            for source in ready:
                if source in sources:
                    sources[source].take()
                elif not self._answer():
                    return

    def _answer(self) -> bool:
        said = self._control.recv(CONTROL_BYTES)
        if not said:
            return False
        try:
            answer = self._do(msgspec.json.decode(said, type=Request))
        except (LabError, msgspec.ValidationError, OSError) as error:
            answer = Answer(error=str(error))
        self._control.send(msgspec.json.encode(answer))
        return True

    def _do(self, request: Request) -> Answer:
        if request.action == "open":
            a, b = (
                inside(netns, partial(open_tap, name))
                for netns, name in zip(self._namespaces, request.interfaces, strict=True)
            )
            forward, backward = request.specs
            self._ways = {"forward": Way("forward", forward, a, b), "backward": Way("backward", backward, b, a)}
        for name in request.directions:
            if request.action == "change":
                self._ways[name].model.change(request.specs[0])
            elif request.action == "blackout":
                self._ways[name].blackout = request.on
            elif request.action == "silence":
                self._ways[name].silenced = frozenset(request.ports)
        return Answer(stats={name: way.stats for name, way in self._ways.items()})


def _stand_for_hardware() -> None:
    """A wire does not wait behind the load that it carries, nor behind the timer's slack."""
    LIBC.prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        os.nice(NICE)


def main(argv: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _stand_for_hardware()
    gc.disable()
    control, a, b = map(int, argv)
    Emulator(socket.socket(fileno=control), (a, b)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
