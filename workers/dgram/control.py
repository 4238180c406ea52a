"""The control datagrams of a lane: they come, they go out, and they open and close its paths.

    follow          sessions have come or gone
    on_datagram     a datagram with the token of a session's control has come
    tick            the clock of all paths

A path is published in the peer table while it is open: then the tun workers give this worker the blocks for the peer.
It is closed there before its flag says so, and opened after it. Open paths outlive this
process (`workers.dgram.remembered_paths`), so a successor goes on at once.

A path to a partner begins with probes to all its candidates (`workers.dgram.candidates`), and ends there when it goes
dark. Nothing that comes by the TUN device counts for it: such a path would lead through the tunnel itself.

A session has one sealer and one opener. Control datagrams tell the number of the process that sends from a lane of the
peer. Segments of other processes are counted in no report.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from pipeline.counters import ID
from pipeline.datagram.arrival_counts import ArrivalCounts
from pipeline.datagram.segment import SENDERS
from pipeline.log import LOG
from pipeline.policy.carrier import UNHEARD, CarrierStatus, Setting, State
from pipeline.policy.return_address import Address
from pipeline.sealing.datagram_memory import DatagramMemory
from pipeline.sealing.datagram_seal import LANE_BITS, NUMBER_BITS, ControlOpener, ControlSealer
from pipeline.sealing.kinds import LANES_MAX
from pipeline.shm import datagram_status
from pipeline.shm.datagram_secrets import unpack_places
from pipeline.shm.datagram_status import DatagramStatus
from pipeline.shm.layout import DATAGRAM_PATH, DATAGRAM_STATE, RECORD_WORDS, SERVER
from pipeline.transport.address import format_address
from pipeline.wire import control_datagram
from pipeline.wire.control_datagram import Answer, Probe, Report
from workers.dgram.candidates import Candidates
from workers.dgram.datagram_socket import MEMORY_BYTES, DatagramSocket
from workers.dgram.path import Path, Paths
from workers.dgram.path_control import PathControl, Way
from workers.dgram.remembered_paths import Remembered, RememberedPaths
from workers.dgram.sessions import Session, Sessions

TICK_NS = 100_000_000
"""Between two looks at all paths."""

BUSY_TICK_NS = 20_000_000
"""Between two looks at those with segments outstanding: as often as a duty wakes anyway."""

FORGET_NS = 300_000_000_000
"""A path of a server that is not open, and from which nothing has come for so long, is given up."""

SENDERS_MOST = 2 * LANES_MAX
"""Processes of a peer whose segments are counted: those of its lanes, and of their successors."""

BEST_FIRST = (State.OPEN, State.PROBING, State.DARK, State.OFF)
"""The path that `status` shows, of several to one peer."""

_RECEIVED = ID["dgram.datagrams_control_received"]
_SENT = ID["dgram.datagrams_control_sent"]
_OPENED = ID["dgram.paths_opened"]
_CLOSED = ID["dgram.paths_closed"]
_REFUSED = ID["dgram.dropped_control_refused"]
_THROUGH_TUNNEL = ID["dgram.dropped_control_inside"]

_MAPPED = b"\0" * 10 + b"\xff\xff"


@dataclass(slots=True, eq=False)
class Sender:
    """A process of the peer whose segments come by a path."""

    control: PathControl
    counts: ArrivalCounts
    session: Session
    reported_ns: int = 0
    reported: int = 0  # segments that have come, in the latest report
    heard_ns: int = 0  # when the latest of them came
    again: int = 0  # reports since then in which no segment was new


@dataclass(slots=True)
class _Peer:
    """The control of one session."""

    session: Session
    sealer: ControlSealer
    opener: ControlOpener
    remembered: RememberedPaths
    is_server: bool  # of a client
    candidates: Candidates | None = None  # of a partner
    controls: dict[int, PathControl] = field(default_factory=dict)  # by lane of the peer
    senders: dict[int, Sender] = field(default_factory=dict)  # by process, modulo 2^16


class Control:
    """Of the worker of a lane. `kick`: wakes the outbound duty. `process`: the number of this one."""

    def __init__(
        self,
        sessions: Sessions,
        paths: Paths,
        datagram_socket: DatagramSocket,
        memory: DatagramMemory,
        words: memoryview,
        counters: memoryview,
        carrier: str,
        is_client: bool,
        process: int,
        lane: int,
        kick: Callable[[], object],
        tun_name: str = "",
    ) -> None:
        self._tun_name = tun_name
        self._tun_index = 0  # while there are partners
        self._sessions = sessions
        self._paths = paths
        self._socket = datagram_socket
        self._memory = memory
        self._words = words  # of the peer table
        self._counters = counters
        self._setting = cast("Setting", carrier)
        self._is_client = is_client
        self._process, self._lane = process, lane
        self._kick = kick
        self._peers: dict[int, _Peer] = {}  # by peer handle
        self._room = memoryview(bytearray(MEMORY_BYTES))
        self._next_tick = self._next_busy_tick = 0
        words[DATAGRAM_STATE::RECORD_WORDS] = memoryview(bytes(8 * (len(words) // RECORD_WORDS))).cast("Q")

    # -- sessions

    def follow(self, now: int) -> None:
        """Sessions have come or gone, or this process begins: then what a predecessor has published is put right."""
        present = self._sessions.present
        for peer_handle, peer in list(self._peers.items()):
            if present.get(peer_handle) is not peer.session:
                self._end(peer)
        for session in present.values():
            if session.peer_handle not in self._peers:
                self._begin(session, now)
        handles = {peer.session.peer: handle for handle, peer in self._peers.items()}
        for index in range(len(self._words) // RECORD_WORDS):
            at = index * RECORD_WORDS + DATAGRAM_PATH
            if self._words[at] and not self._paths.of(handles.get(index, 0)):
                self._words[at] = 0

    def senders_of(self, session: Session) -> dict[int, Sender]:
        return self._peers[session.peer_handle].senders

    def _begin(self, session: Session, now: int) -> None:
        was_here = self._memory.begin(session.peer_handle)
        peer = self._peers[session.peer_handle] = _Peer(
            session,
            session.sealer(self._process, self._lane),
            session.opener(self._memory.windows_of(session.peer)),
            RememberedPaths(self._memory.addresses_of(session.peer)),
            self._is_client and session.peer == SERVER,
        )
        if peer.is_server:
            self._begin_path_to_server(peer, now)
        elif self._is_client:
            self._begin_search(peer, now)
        for known in list(peer.remembered) if was_here else ():
            self._resume(peer, known, now)
        for control in peer.controls.values():
            self._tick(peer, control, now, False)
        self._publish(peer, now)

    def _begin_path_to_server(self, peer: _Peer, now: int) -> None:
        server = peer.session.server
        address = self._socket.address_of(*server)
        if address is None or not server.port:
            return
        path = Path(peer.session, 0)
        way = Way(address, [])
        peer.controls[0] = PathControl(
            path, self._setting, self._send, now, (_address_of(server.host, *server[1:]), way)
        )

    def _begin_search(self, peer: _Peer, now: int) -> None:
        places = [
            (_address_of(host, port, 0), Way(address, []))
            for host, port in unpack_places(peer.session.secrets.places)
            if (address := self._socket.address_of(host, port, 0)) is not None
        ]
        peer.candidates = Candidates(places, now)
        self._find_tun()

    def _find_tun(self) -> None:
        try:
            self._tun_index = socket.if_nametoindex(self._tun_name)
        except OSError:
            self._tun_index = 0

    def _resume(self, peer: _Peer, known: Remembered, now: int) -> None:
        """Go on with a path as a predecessor has left it."""
        reached = self._socket.address_of(known.host, known.port, known.scope)
        address = _address_of(known.host, known.port, known.scope)
        if peer.is_server:
            control = peer.controls.get(0)
            if control is None or control.address != address:
                return  # the server has another address now
        else:
            control = self._add_control(peer, known.remote_lane, now)
        if reached is not None:
            control.resume(address, Way(reached, [known.ancillary] if known.ancillary else []), known.segment_most, now)

    def _add_control(self, peer: _Peer, lane: int, now: int) -> PathControl:
        is_partner = peer.candidates is not None
        control = peer.controls[lane] = PathControl(
            *(Path(peer.session, lane), "auto" if is_partner else self._setting, self._send, now),
            is_to_partner=is_partner,
        )
        self._publish(peer, now)
        return control

    def _end(self, peer: _Peer) -> None:
        for control in peer.controls.values():
            if control.path.is_open:
                self._close(peer, control)
        del self._peers[peer.session.peer_handle]
        datagram_status.publish(self._words, peer.session.peer, None)

    # -- control datagrams come

    def on_datagram(self, session: Session, datagram: memoryview, now: int) -> None:
        """It is what the socket has received last, or a part of it."""
        peer = self._peers[session.peer_handle]
        if peer.candidates is not None and self._socket.interface == self._tun_index != 0:
            self._counters[_THROUGH_TUNNEL] += 1
            return
        size = peer.opener.open(datagram, self._room)
        body = control_datagram.parse(self._room[:size]) if size > 0 else None
        if body is None:
            self._counters[_REFUSED] += 1
            return
        self._counters[_RECEIVED] += 1
        count = peer.opener.count
        control = self._control_of(peer, count, now)
        if control is None:
            return
        source = self._socket.source_address()
        control.heard(source, Way(self._socket.source, self._socket.answer_ancillary()), count, len(datagram), now)
        match body:
            case Probe():
                control.on_probe(body, source, len(datagram), now)
            case Answer():
                if peer.candidates is not None and (found := peer.candidates.answered(body.challenge)):
                    control.lead_to(*found, now)
                control.on_answer(body, now, now - self._socket.waited_ns)
            case Report():
                self._on_report(control, body, now)
        self._tick(peer, control, now, False)

    def _control_of(self, peer: _Peer, count: int, now: int) -> PathControl | None:
        """The control of the path by which a datagram with this count has come."""
        process = count >> NUMBER_BITS + LANE_BITS
        lane = 0 if peer.is_server else count >> NUMBER_BITS & LANES_MAX - 1
        control = peer.controls.get(lane)
        if control is None:
            if peer.is_server:
                return None
            control = self._add_control(peer, lane, now)
        if process > control.process:
            control.process = process
        number = process % SENDERS
        found = peer.senders.get(number)
        if found is None:
            if len(peer.senders) >= SENDERS_MOST:
                del peer.senders[min(peer.senders, key=lambda each: peer.senders[each].heard_ns)]
            peer.senders[number] = Sender(control, ArrivalCounts(number), peer.session, heard_ns=now)
        elif found.control is not control:
            found.control = control
        return control

    def _on_report(self, control: PathControl, report: Report, now: int) -> None:
        path = control.path
        if report.counts.sender != self._process % SENDERS:
            return  # of a predecessor
        before = path.reported
        is_news = before is None or 0 < (report.counts.highest - before & 0xFFFFFFFF) < 1 << 31
        if is_news:
            path.reported = report.counts.highest
        control.on_report(is_news, now)
        path.reports.append((now - self._socket.waited_ns, report))
        self._kick()

    # -- the clock

    def tick(self, now: int, has_read_all: bool) -> None:
        if now < self._next_busy_tick:
            return
        self._next_busy_tick = now + BUSY_TICK_NS
        is_turn_of_all = now >= self._next_tick
        if is_turn_of_all:
            self._next_tick = now + TICK_NS
        for peer in self._peers.values():
            if is_turn_of_all and peer.candidates is not None:
                self._search(peer, peer.candidates, now)
            for control in list(peer.controls.values()):
                path = control.path
                if is_turn_of_all or path.outstanding_since is not None or path.doubted or path.too_big:
                    self._tick(peer, control, now, has_read_all)

    def _search(self, peer: _Peer, candidates: Candidates, now: int) -> None:
        self._find_tun()
        if all(control.address is None for control in peer.controls.values()):
            for body, way in candidates.probes(now):
                self._send_to(peer, body, way)

    def _doubt_server(self) -> None:
        """A NAT may have forgotten all that it knew, and packets for a partner go by the server now."""
        for peer in self._peers.values():
            for control in peer.controls.values() if peer.is_server else ():
                control.carrier.doubt()

    def _tick(self, peer: _Peer, control: PathControl, now: int, has_read_all: bool) -> None:
        before = control.carrier.status
        control.tick(now, has_read_all)
        status = control.carrier.status
        if status.state is State.DARK and control.path.is_open:
            control.doubt_size(now)
        changed = self._settle(peer, control) or status != before
        if peer.candidates is not None and status.state is State.DARK and before.state is not State.DARK:
            control.lead_nowhere()
            peer.candidates.begin_anew(now)
            self._doubt_server()
        if not (control.is_open or peer.is_server) and now - control.heard_ns > FORGET_NS:
            del peer.controls[control.path.remote_lane]
            changed = True
        if changed:
            self._publish(peer, now)

    # -- paths open and close

    def _settle(self, peer: _Peer, control: PathControl) -> bool:
        """Let the others know what has changed; whether anything has."""
        path, way = control.path, control.way
        if not control.is_open or way is None:
            if not path.is_open:
                return False
            self._close(peer, control)
            return True
        if path.is_open and path.address == way.address and path.segment_most == control.segment_most:
            return False
        path.segment_most = control.segment_most
        path.ancillary = way.ancillary
        path.address = way.address
        if path.is_open:
            self._paths.change()
        else:
            self._paths.open(path)
            self._words[peer.session.peer * RECORD_WORDS + DATAGRAM_PATH] = path.peer_handle
            self._counters[_OPENED] += 1
            LOG.debug("datagrams: the path %s is open", _name_of(control))
        self._remember(peer)
        self._kick()
        return True

    def _close(self, peer: _Peer, control: PathControl) -> None:
        path = control.path
        if len(self._paths.of(path.peer_handle)) == 1:
            self._words[peer.session.peer * RECORD_WORDS + DATAGRAM_PATH] = 0
        self._paths.close(path)
        path.address = None
        path.segment_most = 0
        self._counters[_CLOSED] += 1
        self._remember(peer)
        self._kick()
        LOG.debug("datagrams: the path %s is closed: %s", _name_of(control), control.carrier.status.reason)

    def _publish(self, peer: _Peer, now: int) -> None:
        """Publish the best of the peer's paths, for observers."""
        controls = peer.controls.values()
        best = min(controls, key=lambda each: BEST_FIRST.index(each.carrier.status.state), default=None)
        if best is None:
            found = DatagramStatus(CarrierStatus(State.PROBING, now, UNHEARD))
        elif best.address is None:
            found = DatagramStatus(best.carrier.status)
        else:
            host, port, _ = _parts_of(best.address)
            found = DatagramStatus(best.carrier.status, host, port, best.segment_most)
        datagram_status.publish(self._words, peer.session.peer, found)

    def _remember(self, peer: _Peer) -> None:
        peer.remembered.replace(
            [
                Remembered(
                    path.remote_lane,
                    path.segment_most,
                    *_parts_of(cast("Address", peer.controls[path.remote_lane].address)),
                    path.ancillary[0] if path.ancillary else None,
                )
                for path in self._paths.of(peer.session.peer_handle)
                if path.remote_lane in peer.controls
            ]
        )

    # -- control datagrams go out

    def send_report(self, sender: Sender, report: Report, now: int) -> bool:
        return sender.control.send_report(control_datagram.pack_report(report), now)

    def _send(self, path: Path, body: bytes, way: Way) -> int:
        return self._send_to(self._peers[path.peer_handle], body, way)

    def _send_to(self, peer: _Peer, body: bytes, way: Way) -> int:
        size = peer.sealer.seal(body, self._room)
        error = self._socket.send(self._room[:size], way.address, way.ancillary)
        self._counters[_SENT] += not error
        return error


def _name_of(control: PathControl) -> str:
    address, path = control.address, control.path
    where = "" if address is None else f" at {format_address(address)}"
    return f"to lane {path.remote_lane} of peer {path.session.peer}{where}"


def _address_of(host: bytes, port: int, scope: int) -> Address:
    """As the socket names the source of what comes from there."""
    if host[:12] == _MAPPED:
        return Address(socket.inet_ntop(socket.AF_INET, host[12:]), port)
    text = socket.inet_ntop(socket.AF_INET6, host)
    return Address(f"{text}%{scope}" if scope else text, port)


def _parts_of(address: Address) -> tuple[bytes, int, int]:
    """Host of 16 bytes, port and scope."""
    text, _, scope = address.host.partition("%")
    if ":" in text:
        return socket.inet_pton(socket.AF_INET6, text), address.port, int(scope or 0)
    return _MAPPED + socket.inet_pton(socket.AF_INET, text), address.port, 0
