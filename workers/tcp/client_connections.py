"""The connections of a client's tcp worker: dialed, welcomed by the server, replaced when they end.

The dialers make them. A connection whose network has changed beneath it, or that stalls, is dialed anew although it
stands (workers.tcp.underlay_check). So is one of compat that has carried much under one key of TLS
(workers.tcp.connection_checks). Another that is dialed anew has had BBR, on a path that is fast now
(workers.tcp.peer_congestion). The new one takes its place when it is established.

A client with several servers has visits (workers.tcp.visit): the supervisor says which one is current, and to which
server connections are kept in reserve. All of them are established; those of the current session alone are published
for the tun workers, and so carry packets.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pipeline.counters import ID
from pipeline.log import LOG
from pipeline.runtime.plan import WorkerSettings
from pipeline.transport.connection import ESTABLISHED, HANDSHAKE, Connection
from pipeline.transport.dialer import Dialed, Dialer
from pipeline.wire.handshake import Cause
from pipeline.wire.uplink import Uplink
from workers.tcp.connection_checks import key_worn_out, rekey_due
from workers.tcp.connection_manager import READABLE, ConnectionManager, ManagerContext
from workers.tcp.established import REPLACED
from workers.tcp.handshake import ClientHandshaker
from workers.tcp.trouble_reporter import TroubleReporter
from workers.tcp.underlay_check import UnderlayCheck
from workers.tcp.visit import Target, Visit, targets
from workers.tcp.visits_reporter import VisitsReporter

SILENT = "the server takes connections and says nothing: is it this server's port?"
UNANSWERED = "our own supervisor, which has the key, did not answer in time"

WORN = "it paces to its end, which costs a fast path; dialing another"
REKEY = "rekey: enough bytes under one key; dialing a connection with new ones"

LEFT = "this client is at another server now"
NOT_NEEDED = "it is not needed in reserve any more"


class ClientConnections(ConnectionManager):
    """Adds the dialers, which begin connections, and the check of the network beneath them."""

    _handshaker: ClientHandshaker
    _failure_counters: ClassVar[Mapping[Cause, int]] = {Cause.INVALID: ID["tcp.closed_hello_invalid"]}

    def __init__(self, context: ManagerContext) -> None:
        super().__init__(context)
        self._lane, self._lanes = context.attachment.worker.lane, context.attachment.plan.lanes
        self._uplinks: Sequence[Uplink | None] = self._settings.uplinks or (None,)
        self._checks = [UnderlayCheck(self._settings.tun_name, each.name if each else "") for each in self._uplinks]
        self._reporters = [TroubleReporter(self._lane, self._channel, number) for number in range(len(self._uplinks))]
        if self._settings.uplinks:
            for check in self._checks:
                check.register(self._epoll)
        self._handshaker = ClientHandshaker(self._settings, self._channel)
        self._visits_reporter = VisitsReporter(self._lane, self._channel)
        self._visits: list[Visit] = []  # the current one first, then the reserve if there is one, then those left
        self._visit_of: dict[int, Visit] = {}  # by the serial number of a connection
        self._has_others = False
        self._asking_ns = 0  # since when the server in reserve is asked whether it is there; 0: it is not
        self._follow_targets(self._settings, time.monotonic_ns())

    def close_descriptors(self) -> None:
        super().close_descriptors()
        for dialer in self._dialers:
            dialer.close()
        for check in self._checks:
            check.close()

    @property
    def _dialing_visits(self) -> list[Visit]:
        return [visit for visit in self._visits if not visit.left_ns]

    @property
    def _dialers(self) -> list[Dialer]:
        return [dialer for visit in self._dialing_visits for dialer in visit.dialers]

    # -- which servers

    def _apply_settings(self, settings: WorkerSettings) -> None:
        super()._apply_settings(settings)
        self._follow_targets(settings, time.monotonic_ns())

    def _follow_targets(self, settings: WorkerSettings, now: int) -> None:
        """Make the visits those of the settings. Of one that is left, sealed connections stay for a moment."""
        self._has_others = settings.has_others
        wanted = targets(settings, self._lane, self._lanes)
        present = {visit.key: visit for visit in self._dialing_visits}
        left = [visit for visit in self._visits if visit.left_ns]
        for key in present.keys() - {target.key for target in wanted}:
            left.append(self._leave(present[key], settings.seals, now))
        self._visits = [self._visit(target, present.get(target.key), settings, now) for target in wanted] + left
        for peer in self.peers.values():
            peer.publish()  # the session may be another one

    def _visit(self, target: Target, present: Visit | None, settings: WorkerSettings, now: int) -> Visit:
        if present is None:
            hindrances = [check.hindrance for check in self._checks]
            visit = Visit(target, self._lane, self._lanes, settings, hindrances)
            for dialer in visit.dialers:
                self._epoll.register(dialer.fd, select.EPOLLIN)
            return visit
        for dialer in present.dialers:
            dialer.use(settings)
        for connection in present.want(target.indexes, now):
            self.close(connection, NOT_NEEDED)
        return present

    def _leave(self, visit: Visit, lingers: bool, now: int) -> Visit:
        for dialer in visit.dialers:
            self._epoll.unregister(dialer.fd)
        visit.leave(now)
        for connection in list(visit.connections.values()):
            if not lingers or connection.state is not ESTABLISHED:
                self.close(connection, LEFT)
        return visit

    # -- they begin

    def _on_source_event(self, fd: int) -> None:
        now = time.monotonic_ns()
        for visit in self._dialing_visits:
            for dialer in visit.dialers:
                if fd == dialer.fd:
                    self._dial(visit, dialer, now)
        for check in self._checks:
            if fd == check.fd:
                check.hear(now)
                self._end_cut_off()

    def tick(self, now: int, unread: bool) -> None:
        super().tick(now, unread)
        for visit in self._dialing_visits:
            for dialer in visit.dialers:
                if now >= dialer.next_step_ns:
                    self._dial(visit, dialer, now)

    def _dial(self, visit: Visit, dialer: Dialer, now: int) -> None:
        if not self._stop.requested:
            for dialed in dialer.step(now):
                self._begin(visit, dialed, now)

    def _begin(self, visit: Visit, dialed: Dialed, now: int) -> None:
        connection = self._register(dialed.sock, dialed.address.sockaddr, HANDSHAKE, now, READABLE)
        connection.dial_index = dialed.dial_index
        connection.uplink = self._settings.uplink_of(dialed.dial_index)
        visit.connections[connection.serial] = connection
        self._visit_of[connection.serial] = visit
        self._check_of(connection).begin(connection, dialed.address)
        self._on_outcome(connection, self._handshaker.begin(connection, visit.session, visit.server_name))

    def _handshake_expired(self, connection: Connection) -> None:
        self.close(connection, UNANSWERED if self._handshaker.awaits_supervisor(connection) else SILENT)

    # -- established, and the end

    def _check_peer_handle(self, connection: Connection) -> bool:
        if not connection.peer_handle:  # that of a sealed connection came with its secrets
            connection.peer_handle = self._established.sole_peer_handle()
        return True

    def _replaced_by(self, connection: Connection) -> list[tuple[Connection, str]]:
        """A connection of the same dial slot, to the same server. Other visits have slots of the same numbers."""
        visit = self._visit_of[connection.serial]
        return [
            (other, REPLACED)
            for other in visit.established
            if other is not connection
            and (other.dial_index == connection.dial_index or other.peer_handle != connection.peer_handle)
        ]

    def _begin_service(self, connection: Connection, now: int) -> None:
        visit = self._visit_of[connection.serial]
        visit.dialer_of(connection.dial_index).established(connection.dial_index, connection.address, now)
        if self._settings.compat:
            self._channel.ask({"found": connection.host})
        LOG.debug("connection %d to %s established", connection.serial, connection.address)

    def close(self, connection: Connection, why: str, level: int = logging.DEBUG) -> None:
        """End a connection. The log has a line for each wave of them instead (pipeline.policy.server_news)."""
        super().close(connection, why, level)

    def _end_service(self, connection: Connection, established: bool, why: str, now: int) -> None:
        self._check_of(connection).end(connection)
        visit = self._visit_of.pop(connection.serial)
        del visit.connections[connection.serial]
        dialer = visit.dialer_of(connection.dial_index)
        if self._stop.requested or visit.left_ns or not dialer.keeps(connection.dial_index):
            return
        if established:
            dialer.lost(connection.dial_index, why, now)
        else:
            dialer.failed(connection.dial_index, why)

    # -- the clock

    def _check_all(self, now: int, unread: bool) -> None:
        super()._check_all(now, unread)
        self._end_cut_off()
        for number in range(len(self._uplinks)):
            self._check_underlay(number, now)
        for visit in self._dialing_visits:
            self._counters[ID["tcp.dials_failed"]] += visit.take_failures()
        for reporter, dialer in zip(self._reporters, self._visits[0].dialers, strict=True):
            reporter.tick(dialer.trouble, now)
        self._check_left(now)
        if self._has_others:
            self._report_visits(now)

    def _report_visits(self, now: int) -> None:
        """If the current server is silent, the one in reserve is asked whether it is there: the path may be broken."""
        current, *others = self._dialing_visits
        for visit in (current, *others):
            visit.look(now)
        if not current.silence.is_silent(now):
            self._asking_ns = 0
        elif not self._asking_ns:
            self._asking_ns = self._list.probe_ns = now
        for visit in others:
            visit.silence.ask(self._asking_ns)
        self._visits_reporter.tick({visit.session: visit.report(now) for visit in (current, *others)}, now)

    def _check_left(self, now: int) -> None:
        for visit in [each for each in self._visits if each.has_lingered(now)]:
            for connection in list(visit.connections.values()):
                self.close(connection, LEFT)
            self._visits.remove(visit)

    def _is_in_use(self, connection: Connection) -> bool:
        """Also one in reserve, and one that is left a moment ago; the other ends of these have other sessions."""
        visit = self._visit_of[connection.serial]
        return visit is not self._visits[0] or super()._is_in_use(connection)

    def _check_established(self, connection: Connection, now: int, unread: bool) -> bool:
        if not super()._check_established(connection, now, unread):
            return False
        if key_worn_out(connection):
            self.close(connection, "it has carried all that its keys are good for")
            return False
        if self._may_be_renewed and self.peers[connection.peer].worn is connection:
            self._renew(connection, WORN, now)
        return not rekey_due(connection) or self._renew(connection, REKEY, now)

    def _check_of(self, connection: Connection) -> UnderlayCheck:
        return self._checks[connection.uplink.number if connection.uplink is not None else 0]

    def _of_uplink(self, number: int) -> list[Connection]:
        """The connections of an uplink, those that are established first; without uplinks all."""
        every = [*self._established.by_fd.values(), *self._handshaking.by_fd.values()]
        return [each for each in every if each.uplink == self._uplinks[number]]

    def _end_cut_off(self) -> None:
        """End the connections of an uplink that has lost its carrier, if there is another uplink that has one: what
        they had to carry goes by that."""
        reasons = [check.cut_off() for check in self._checks] if self._settings.uplinks else []
        if all(reasons):
            return
        for number, why in enumerate(reasons):
            if why and (connections := self._of_uplink(number)):
                self._checks[number].lose()
                for connection in connections:
                    self.close(connection, why)

    def _check_underlay(self, number: int, now: int) -> None:
        check, connections = self._checks[number], self._of_uplink(number)
        established = [each for each in connections if each.state is ESTABLISHED]
        for connection, stalled in check.stalls(established, now):
            visit = self._visit_of[connection.serial]
            if self._may_be_renewed and not visit.left_ns:
                visit.dialer_of(connection.dial_index).renew(connection.dial_index, stalled, now)
        dialers = [visit.dialers[number] for visit in self._dialing_visits]
        changes = check.changes([address for dialer in dialers for address in dialer.known], now)
        if not changes:
            return
        if changes.hurry:
            self._list.probe_ns = now  # an idle connection shows by its answer whether its path is still there
            for dialer in dialers:
                dialer.hurry(now)
        renewed = 0
        for connection in connections:
            if connection.serial in changes.close:
                self.close(connection, changes.close[connection.serial])
            elif connection.serial in changes.renew and connection.state is ESTABLISHED:
                renewed += 1
                self._renew(connection, changes.renew[connection.serial], now)
        if renewed:
            uplink = self._uplinks[number]
            of_uplink = f"{uplink.name}: " if uplink is not None else ""
            LOG.info("%s%s: dialing %d connections anew", of_uplink, next(iter(changes.renew.values())), renewed)

    @property
    def _may_be_renewed(self) -> bool:
        """Whether two connections can stand for one dial slot. The original program takes them for two clients."""
        return not self._settings.compat

    def _renew(self, connection: Connection, why: str, now: int) -> bool:
        """Dial it anew beside itself, once, however often this is asked for. Whether it goes on until then."""
        visit = self._visit_of[connection.serial]
        if not self._may_be_renewed:
            self.close(connection, why)
        elif not visit.left_ns:
            visit.dialer_of(connection.dial_index).renew(connection.dial_index, True, now)
        return self._may_be_renewed
