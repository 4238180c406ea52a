"""The control datagrams of a lane: they come, they go out, and they open and close its paths.

    follow          sessions have come or gone
    on_datagram     a datagram with the token of a session's control has come
    tick            the clock of all paths

A path is published in the peer table while it is open: then the tun workers give this worker the blocks for the peer.
It is closed there before its flag says so, and opened after it. With another `carrier` than "auto" blocks go to this
worker all through the session, and wait here while no path is open. Open paths outlive this process
(`workers.dgram.remembered_paths`), so a successor goes on at once.

To one lane of a peer there may be a path by UDP, and one by fake TCP. The first of them that passes is the open one; a
client begins the second one when it is its turn (pipeline.policy.carrier_order). Each end decides for what it sends,
and a report goes back by the kind that its segments have come by.

A path to a partner begins with probes to all its candidates (`workers.dgram.candidates`), and ends there when it goes
dark. Nothing that comes by the TUN device counts for it: such a path would lead through the tunnel itself.

A session has one sealer and one opener. Control datagrams tell the number of the process that sends from a lane of the
peer. Segments of other processes are counted in no report.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from pipeline.counters import ID
from pipeline.datagram.arrival_counts import ArrivalCounts
from pipeline.datagram.segment import SENDERS
from pipeline.log import LOG
from pipeline.policy.carrier import UNHEARD, CarrierStatus, Setting, State
from pipeline.policy.carrier_order import Kind, Turn
from pipeline.policy.return_address import Address
from pipeline.sealing.datagram_memory import DatagramMemory
from pipeline.sealing.datagram_seal import LANE_BITS, NUMBER_BITS, ControlOpener, ControlSealer
from pipeline.sealing.kinds import LANES_MAX
from pipeline.shm import datagram_status
from pipeline.shm.datagram_secrets import unpack_places
from pipeline.shm.datagram_status import DatagramStatus
from pipeline.shm.layout import DATAGRAM_PATH, DATAGRAM_STATE, DATAGRAM_WAITS, RECORD_WORDS, SERVER
from pipeline.transport.address import format_address
from pipeline.wire import control_datagram
from pipeline.wire.control_datagram import Answer, Probe, Report
from workers.dgram.candidates import Candidates
from workers.dgram.datagram_socket import MEMORY_BYTES
from workers.dgram.lane_sockets import InboundSocket, LaneSocket
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

Place = tuple[Kind, int]
"""Of a path to a peer: the kind of its datagrams, and the lane of the peer."""


@dataclass(slots=True, eq=False)
class Sender:
    """A process of the peer whose segments come by a path. `kind`: of the datagrams that they come in."""

    control: PathControl
    counts: ArrivalCounts
    session: Session
    kind: Kind = Kind.UDP
    reported_ns: int = 0
    reported: int = 0  # segments that have come, in the latest report
    heard_ns: int = 0  # when the latest of them came
    again: int = 0  # reports since then in which no segment was new


@dataclass(slots=True)
class _Peer:
    """The control of one session. `left`: what a predecessor has left of paths whose flows have ended with it."""

    session: Session
    sealer: ControlSealer
    opener: ControlOpener
    remembered: RememberedPaths
    is_server: bool  # of a client
    candidates: Candidates | None = None  # of a partner
    controls: dict[Place, PathControl] = field(default_factory=dict)
    senders: dict[int, Sender] = field(default_factory=dict)  # by process, modulo 2^16
    turns: dict[Kind, Turn] = field(default_factory=dict)  # of a client
    left: dict[Place, Remembered] = field(default_factory=dict)

    def of_lane(self, lane: int) -> list[PathControl]:
        """The paths to one lane of the peer, in the order in which they are used."""
        return [found for kind in Kind if (found := self.controls.get((kind, lane))) is not None]

    def open_to(self, lane: int) -> PathControl | None:
        """The one of them that is to be used."""
        return next((each for each in self.of_lane(lane) if each.is_open), None)


class Control:
    """Of the worker of a lane. `words`: of the peer table, also those for the status of each kind. `kick`: wakes the
    outbound duty. `process`: the number of this one."""

    def __init__(
        self,
        sessions: Sessions,
        paths: Paths,
        sockets: Sequence[LaneSocket],
        memory: DatagramMemory,
        words: memoryview,
        status_words: Mapping[Kind, memoryview],
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
        self._sockets = {each.kind: each for each in sockets}
        self._kinds = {each.inbound: each.kind for each in sockets}
        self._flows_seen = {each.kind: each.inbound.opened for each in sockets}
        self._memory = memory
        self._words = words
        self._status_words = status_words
        self._counters = counters
        self._setting = cast("Setting", carrier)
        self._is_client = is_client
        self._process, self._lane = process, lane
        self._kick = kick
        self._peers: dict[int, _Peer] = {}  # by peer handle
        self._room = memoryview(bytearray(MEMORY_BYTES))
        self._next_tick = self._next_busy_tick = 0
        for each in status_words.values():
            each[DATAGRAM_STATE::RECORD_WORDS] = memoryview(bytes(8 * (len(each) // RECORD_WORDS))).cast("Q")

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
        sessions = {peer.session.peer: peer.session for peer in self._peers.values()}
        for index in range(len(self._words) // RECORD_WORDS):
            known = sessions.get(index)
            if known is not None:
                self._show(known, bool(self._paths.of(known.peer_handle)))
            elif self._words[index * RECORD_WORDS + DATAGRAM_PATH]:
                self._words[index * RECORD_WORDS + DATAGRAM_PATH] = 0

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
        known_paths = list(peer.remembered) if was_here else []
        peer.left = {(each.kind, each.remote_lane): each for each in known_paths if each.kind is Kind.FAKE_TCP}
        if peer.is_server:
            peer.turns = {kind: Turn((kind, 0) in peer.left) for kind in self._sockets}
            self._take_turns(peer, now)
        elif self._is_client:
            self._begin_search(peer, now)
        for known in known_paths:
            if known.kind is Kind.UDP and Kind.UDP in self._sockets:
                self._resume(peer, known, now)
        for control in list(peer.controls.values()):
            self._tick(peer, control, now, False)
        self._publish(peer, now)

    def _take_turns(self, peer: _Peer, now: int) -> None:
        """A client begins with a kind of datagrams, or ends it, when it is its turn."""
        server = peer.session.server
        ports = {Kind.UDP: server.port, Kind.FAKE_TCP: server.fake_tcp_port}
        before: list[CarrierStatus] = []
        for kind, lane_socket in self._sockets.items():
            control, inbound = peer.controls.get((kind, 0)), lane_socket.inbound
            to = inbound.address_of(server.host, ports[kind], server.scope)
            if not ports[kind] or to is None:
                continue
            if peer.turns[kind].follow(before, now):
                if control is None:
                    at = _address_of(server.host, ports[kind], server.scope)
                    control = self._add_control(peer, kind, 0, now, (at, Way(to, [])))
                    inbound.begin()
                before.append(control.carrier.status)
            elif control is not None:
                self._remove(peer, control, now)
                inbound.rest(now)

    def _begin_search(self, peer: _Peer, now: int) -> None:
        udp = self._sockets.get(Kind.UDP)
        places = [
            (_address_of(host, port, 0), Way(address, []))
            for host, port in unpack_places(peer.session.secrets.places)
            if udp is not None and (address := udp.inbound.address_of(host, port, 0)) is not None
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
        reached = self._sockets[known.kind].inbound.address_of(known.host, known.port, known.scope)
        address = _address_of(known.host, known.port, known.scope)
        if peer.is_server:
            control = peer.controls.get((known.kind, 0))
            if control is None or control.address != address:
                return  # the server has another address now
        else:
            control = self._add_control(peer, known.kind, known.remote_lane, now)
        if reached is not None:
            control.resume(address, Way(reached, [known.ancillary] if known.ancillary else []), known.segment_most, now)

    def _add_control(
        self, peer: _Peer, kind: Kind, lane: int, now: int, server: tuple[Address, Way] | None = None
    ) -> PathControl:
        lane_socket = self._sockets[kind]
        inbound = lane_socket.inbound
        path = Path(peer.session, lane, lane_socket.segments)
        send = partial(self._send, inbound)
        control = PathControl(
            path,
            "auto" if peer.candidates is not None else self._setting,
            send,
            now,
            server,
            lane_socket.overhead,
            inbound.reaches,
            inbound.doubt,
            is_to_partner=peer.candidates is not None,
        )
        peer.controls[kind, lane] = control
        self._publish(peer, now)
        return control

    def _remove(self, peer: _Peer, control: PathControl, now: int) -> None:
        (place,) = (place for place, each in peer.controls.items() if each is control)
        del peer.controls[place]
        self._settle(peer, control.path.remote_lane)
        if control.path.address is not None:
            self._leave(peer, control)
        self._publish(peer, now)

    def _end(self, peer: _Peer) -> None:
        for control in peer.controls.values():
            if control.path.address is not None:
                self._leave(peer, control)
        del self._peers[peer.session.peer_handle]
        self._words[peer.session.peer * RECORD_WORDS + DATAGRAM_PATH] = 0
        for words in self._status_words.values():
            datagram_status.publish(words, peer.session.peer, None)

    # -- control datagrams come

    def on_datagram(self, session: Session, source: InboundSocket, datagram: memoryview, now: int) -> None:
        """It is what this socket has received last, or a part of it."""
        peer = self._peers[session.peer_handle]
        if peer.candidates is not None and source.interface == self._tun_index != 0:
            self._counters[_THROUGH_TUNNEL] += 1
            return
        size = peer.opener.open(datagram, self._room)
        body = control_datagram.parse(self._room[:size]) if size > 0 else None
        if body is None:
            self._counters[_REFUSED] += 1
            return
        self._counters[_RECEIVED] += 1
        count = peer.opener.count
        kind = self._kinds[source]
        lane = 0 if peer.is_server else count >> NUMBER_BITS & LANES_MAX - 1
        control = peer.controls.get((kind, lane))
        if control is None:
            if peer.is_server:
                return
            control = self._add_control(peer, kind, lane, now)
        self._note_process(peer, control, count >> NUMBER_BITS + LANE_BITS, now)
        address, way = source.source_address(), Way(source.source, source.answer_ancillary())
        came = now - source.waited_ns
        control.heard(address, way, count, len(datagram), now)
        known = peer.left.pop((kind, lane), None) if not peer.is_server else None
        if known is not None and _parts_of(address)[0] == known.host:
            control.resume(address, way, known.segment_most, now)
        match body:
            case Probe():
                control.on_probe(body, address, len(datagram), now)
            case Answer():
                if peer.candidates is not None and (found := peer.candidates.answered(body.challenge)):
                    control.lead_to(*found, now)
                control.on_answer(body, now, came)
            case Report():
                self._on_report(peer.open_to(lane) or control, body, now, came)
        for earlier in peer.of_lane(lane)[: peer.of_lane(lane).index(control)]:
            earlier.carrier.doubt()  # the other end has a reason to use another kind
        self._tick(peer, control, now, False)

    def _note_process(self, peer: _Peer, control: PathControl, process: int, now: int) -> None:
        """A process of the peer has sent a control datagram by this path."""
        number = process % SENDERS
        found = peer.senders.get(number)
        if found is None:
            if len(peer.senders) >= SENDERS_MOST:
                del peer.senders[min(peer.senders, key=lambda each: peer.senders[each].heard_ns)]
            peer.senders[number] = Sender(control, ArrivalCounts(number), peer.session, heard_ns=now)
        elif found.control is not control:
            found.control = control

    def _on_report(self, control: PathControl, report: Report, now: int, came: int) -> None:
        path = control.path
        if report.counts.sender != self._process % SENDERS:
            return  # of a predecessor
        before = path.reported
        is_news = before is None or 0 < (report.counts.highest - before & 0xFFFFFFFF) < 1 << 31
        if is_news:
            path.reported = report.counts.highest
        control.on_report(is_news, now)
        path.reports.append((came, report))
        self._kick()

    # -- the clock

    def tick(self, now: int, has_read_all: bool) -> None:
        if now < self._next_busy_tick:
            return
        self._next_busy_tick = now + BUSY_TICK_NS
        is_turn_of_all = now >= self._next_tick
        if is_turn_of_all:
            self._next_tick = now + TICK_NS
        self._follow_flows(now)
        for peer in self._peers.values():
            if is_turn_of_all and peer.is_server:
                self._take_turns(peer, now)
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
                self._send_to(self._sockets[Kind.UDP].inbound, peer, body, way)

    def _doubt_server(self) -> None:
        """A NAT may have forgotten all that it knew, and packets for a partner go by the server now."""
        for peer in self._peers.values():
            for control in peer.controls.values() if peer.is_server else ():
                control.carrier.doubt()

    def _follow_flows(self, now: int) -> None:
        """A client has opened another flow: the server hears of it before it has to send by it."""
        for kind, lane_socket in self._sockets.items():
            opened = lane_socket.inbound.opened
            if opened == self._flows_seen[kind] or not self._is_client:
                continue
            self._flows_seen[kind] = opened
            for peer in [each for each in self._peers.values() if each.is_server]:
                control, known = peer.controls.get((kind, 0)), peer.left.pop((kind, 0), None)
                if control is None or control.address is None or control.way is None:
                    continue
                if known is not None and _parts_of(control.address) == (known.host, known.port, known.scope):
                    control.resume(control.address, control.way, known.segment_most, now)
                else:
                    control.show(now)
                self._tick(peer, control, now, False)

    def _tick(self, peer: _Peer, control: PathControl, now: int, has_read_all: bool) -> None:
        before = control.carrier.status
        control.tick(now, has_read_all)
        status = control.carrier.status
        if status.state is State.DARK and control.path.is_open:
            control.doubt_size(now)
        if peer.candidates is not None and status.state is State.DARK and before.state is not State.DARK:
            self._settle(peer, control.path.remote_lane)
            control.lead_nowhere()
            peer.candidates.begin_anew(now)
            self._doubt_server()
        is_forgotten = not control.is_open and now - control.heard_ns > FORGET_NS
        if not peer.is_server and (is_forgotten or not control.is_reached):
            self._remove(peer, control, now)
        elif self._settle(peer, control.path.remote_lane) or status != before:
            self._publish(peer, now)

    # -- paths open and close

    def _settle(self, peer: _Peer, lane: int) -> bool:
        """Let the others know which path to a lane is open, and how it is; whether anything has changed."""
        chosen = peer.open_to(lane)
        changed = chosen is not None and self._use(peer, chosen)
        for each in peer.of_lane(lane):
            if each is not chosen and each.path.address is not None:
                self._leave(peer, each)
                changed = True
        if changed:
            self._remember(peer)
            self._kick()
        return changed

    def _use(self, peer: _Peer, control: PathControl) -> bool:
        path, way = control.path, control.way
        assert way is not None
        if path.is_open and path.address == way.address and path.segment_most == control.segment_most:
            return False
        path.segment_most = control.segment_most
        path.ancillary = way.ancillary
        path.address = way.address
        if path.is_open:
            self._paths.change()
        else:
            self._paths.open(path)
            self._show(peer.session, True)
            self._counters[_OPENED] += 1
            LOG.debug("datagrams: the path %s is open", _name_of(control))
        return True

    def _leave(self, peer: _Peer, control: PathControl) -> None:
        """It is open no more."""
        path = control.path
        if all(each is path for each in self._paths.of(path.peer_handle)):
            self._show(peer.session, False)
        self._paths.close(path)
        path.address = None
        path.segment_most = 0
        self._counters[_CLOSED] += 1
        self._remember(peer)
        self._kick()
        LOG.debug("datagrams: the path %s is closed: %s", _name_of(control), control.carrier.status.reason)

    def _show(self, session: Session, is_open: bool) -> None:
        """Let the tun workers know whether blocks for a peer go to this worker."""
        is_partner = self._is_client and session.peer != SERVER
        otherwise = 0 if self._setting == "auto" or is_partner else session.peer_handle | DATAGRAM_WAITS
        self._words[session.peer * RECORD_WORDS + DATAGRAM_PATH] = session.peer_handle if is_open else otherwise

    def _publish(self, peer: _Peer, now: int) -> None:
        """Publish the best of the peer's paths of each kind, for observers."""
        first = next(iter(self._sockets))
        for kind in self._sockets:
            found = self._status_of(peer, kind)
            if found is None and kind is first and not peer.is_server:
                found = DatagramStatus(CarrierStatus(State.PROBING, now, UNHEARD))
            datagram_status.publish(self._status_words[kind], peer.session.peer, found)

    def _status_of(self, peer: _Peer, kind: Kind) -> DatagramStatus | None:
        controls = [each for (of_kind, _), each in peer.controls.items() if of_kind is kind]
        best = min(controls, key=lambda each: BEST_FIRST.index(each.carrier.status.state), default=None)
        if best is None:
            return None
        if best.address is None:
            return DatagramStatus(best.carrier.status)
        host, port, _ = _parts_of(best.address)
        return DatagramStatus(best.carrier.status, host, port, best.segment_most)

    def _remember(self, peer: _Peer) -> None:
        is_open = {path.remote_lane: path for path in self._paths.of(peer.session.peer_handle)}
        peer.remembered.replace(
            [
                Remembered(
                    lane,
                    each.path.segment_most,
                    *_parts_of(cast("Address", each.address)),
                    each.path.ancillary[0] if each.path.ancillary else None,
                    kind,
                )
                for (kind, lane), each in peer.controls.items()
                if is_open.get(lane) is each.path
            ]
        )

    # -- control datagrams go out

    def send_report(self, sender: Sender, report: Report, now: int) -> bool:
        place = sender.kind, sender.control.path.remote_lane
        control = self._peers[sender.session.peer_handle].controls.get(place, sender.control)
        return control.send_report(control_datagram.pack_report(report), now)

    def _send(self, to: InboundSocket, path: Path, body: bytes, way: Way) -> int:
        return self._send_to(to, self._peers[path.peer_handle], body, way)

    def _send_to(self, to: InboundSocket, peer: _Peer, body: bytes, way: Way) -> int:
        size = peer.sealer.seal(body, self._room)
        error = to.send(self._room[:size], way.address, way.ancillary)
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
