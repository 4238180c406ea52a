"""The table of events: everything that happens to an instance and that a person may ask about afterwards.

An event has a kind, a subject (a worker, a peer, a server; "" for the instance itself) and a text, its reason in plain
words. The supervisor records events (pipeline.supervisor.control.events): each is kept in shared memory, is a line of
the log and reaches the hooks. Ids are permanent, as those of counters. `python -m tools.reference`
makes the table in docs/events.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Record = Callable[[str, str, str], object]
"""Records an event: the name of its kind, its subject, its text."""


class EventKind(NamedTuple):
    """One row of the table."""

    id: int
    name: str
    level: str  # of its log line: a key of log.LEVELS
    line: str  # its log line, with {subject} and {text}
    meaning: str
    logged: bool = True  # False: a worker's line of the log says it already


INFO, WARNING, ERROR = "info", "warning", "error"

# fmt: off
KINDS = (
    # the instance
    EventKind(1, "starting", INFO, "starting: {text}", "the supervisor has started, and starts its workers"),
    EventKind(2, "up", INFO, "running: {text}", "all workers run for the first time"),
    EventKind(3, "stopping", INFO, "stopping: {text}", "the instance stops, since somebody asked for it"),
    EventKind(4, "failing", ERROR, "stopping: {text}", "the instance stops, since it cannot go on"),
    EventKind(5, "down", INFO, "stopped: {text}", "the instance has stopped"),
    EventKind(6, "reloaded", INFO, "reloaded: {text}", "a reload has taken effect: the settings that have changed"),
    EventKind(7, "reload-refused", ERROR, "reload refused, the old configuration goes on: {text}",
              "a reload has changed nothing"),
    EventKind(8, "paused", WARNING, "paused: {text}", "the supervisor did not run for a while, as in a suspend"),
    EventKind(9, "memory-lost", ERROR, "{text}", "names in /dev/shm were removed; everything there is made anew"),
    # workers
    EventKind(16, "worker-died", ERROR, "{subject} died: {text}", "a worker has ended, and nobody had asked it to"),
    EventKind(17, "worker-hung", ERROR, "{subject} hangs ({text}): aborting it; its stack follows",
              "a worker gave no sign of life, and is ended"),
    EventKind(18, "worker-restarted", INFO, "{subject} ready: {text}", "a successor has taken a worker's place"),
    EventKind(19, "worker-start-failed", ERROR, "{text}; trying again", "a worker's process could not be made"),
    # the exporter
    EventKind(24, "exporter-died", WARNING, "exporter died: {text}; the tunnel does not need it, it is started again",
              "the process of metrics and page has ended"),
    EventKind(25, "exporter-given-up", ERROR, "exporter given up until the next reload: {text}",
              "the process of metrics and page died again and again"),
    # the bridge
    EventKind(26, "bridge-died", ERROR, "bridge died: {text}; it is started again",
              "the process between the workers and a proxy with TLS, `proxy_command` or WebSockets has ended"),
    # a client's server
    EventKind(32, "connected", INFO, "connected: {text}", "the first connection to the server is established"),
    EventKind(33, "lost", WARNING, "connection lost: {text}", "the last connection to the server has ended"),
    EventKind(34, "reconnected", INFO, "reconnected: {text}", "all connections had ended for less than a second"),
    EventKind(35, "server-changed", INFO, "server: {text}", "connections lead to another address of the server"),
    EventKind(36, "server-trouble", WARNING, "server {subject}: {text}", "attempts to reach the server fail",
              logged=False),
    EventKind(37, "moved", INFO, "server {subject}: {text}", "a client with several servers has gone to another one"),
    # a server's peers
    EventKind(48, "peer-joined", INFO, "peer {subject}: joined: {text}", "the first connection of a peer's session"),
    EventKind(49, "peer-left", INFO, "peer {subject}: left: {text}", "the last connection of a peer has ended"),
    EventKind(50, "refused", WARNING, "peer {subject}: refused: {text}", "a peer may not connect"),
    EventKind(51, "unproved", WARNING, "a client was refused: {text}", "a client has not proved to be a peer",
              logged=False),
    EventKind(52, "invited", INFO, "peer {subject}: invited", "an invitation was made"),
    EventKind(53, "revoked", INFO, "peer {subject}: revoked, its connections end", "a peer was excluded"),
    EventKind(54, "invitation-used", INFO, "peer {subject}: {text}", "a machine has joined, and has a key of its own"),
    EventKind(55, "invitation-refused", WARNING, "peer {subject}: its invitation is refused: {text}",
              "a machine came with an invitation that has ended, or its new key cannot be recorded now"),
    EventKind(56, "invitation-expired", WARNING, "peer {subject}: its invitation has expired, unused",
              "nobody has joined in time"),
    EventKind(57, "peer-disabled", INFO, "peer {subject}: shut out: {text}",
              "a peer may not connect until it is enabled again, or is past the end of its time"),
    EventKind(58, "peer-enabled", INFO, "peer {subject}: may connect again", "a peer is no longer shut out"),
    EventKind(59, "peer-forgotten", INFO, "peer {subject}: has left: {text}", "a machine has given up being this peer"),
    EventKind(64, "quota", WARNING, "peer {subject}: {text}", "a peer has used up 80 or 100 percent of its quota"),
    EventKind(65, "quota-corrected", INFO, "peer {subject}: its quota was corrected: {text}",
              "an operator has said how much of a quota is used"),
    EventKind(66, "reach-refused", WARNING, "peer {subject}: {text}", "a peer has begun what its rules do not allow"),
    # datagrams
    EventKind(68, "datagrams-open", INFO, "datagrams with {subject} pass, {text}",
              "blocks for a peer or for the server travel in datagrams from now on"),
    EventKind(69, "datagrams-dark", INFO, "no datagrams with {subject}: {text}",
              "blocks for a peer or for the server travel in datagrams no more, or cannot at first"),
    # direct paths between clients
    EventKind(76, "direct-open", INFO, "direct path to {subject}: {text}",
              "packets for another client of the hub go there by themselves from now on"),
    EventKind(77, "direct-dark", INFO, "direct path to {subject} went dark: {text}",
              "they go by the hub; probes may open the path again"),
    EventKind(78, "direct-ended", INFO, "no direct path to {subject}: {text}",
              "they go by the hub, until it begins another pair"),
    # accounting and hooks
    EventKind(72, "accounting-failed", ERROR, "accounting: {text}", "the account cannot be written; counts wait",
              logged=False),
    EventKind(73, "accounting-works", INFO, "accounting: {text}", "the account is written again", logged=False),
    EventKind(74, "hook-failed", WARNING, "hook {subject}: {text}",
              "a command of `on` has failed, or could not be started", logged=False),
)
# fmt: on

BY_NAME = {kind.name: kind for kind in KINDS}
BY_ID = {kind.id: kind for kind in KINDS}

assert len(BY_NAME) == len(BY_ID) == len(KINDS)


class Event(NamedTuple):
    """One event, or the count of more that were equal to an earlier one. Times are wall-clock ns."""

    number: int  # of all events of this start, from 0
    kind: EventKind
    subject: str
    text: str
    time_ns: int
    more: int = 0  # above 0: a count of so many more
    since_ns: int = 0  # of a count: when counting began

    @property
    def line(self) -> str:
        """As the log says it."""
        return self.kind.line.format(subject=self.subject, text=self.text)


def kind_of(number: int) -> EventKind:
    """The kind with this id; a later version may know more kinds than this one."""
    return BY_ID.get(number) or EventKind(number, f"kind-{number}", INFO, "{subject} {text}", "unknown here")
