"""The servers of a client with several: which one it is at, told to the workers, and why, for `status`.

    take(report)              what a tcp worker says of its connections to them
    step(now)                 the server that the client goes to now, if it goes
    with_servers(settings)    for the workers
    reload(config)            another list
    status()                  the servers, and why the client is at this one

The decision is that of `pipeline.policy.server_choice`. It is one for all lanes, so all connections are to one server.
A visit has a session number of its own: no server sees the number of a session at another one. A client with one server
has nothing of this.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from pipeline.config import Config
from pipeline.config.values import Endpoint
from pipeline.events import Record
from pipeline.log import printable
from pipeline.policy.server_choice import Server, ServerChoice, Terms, Visit, VisitReport
from pipeline.runtime.plan import Reserve, WorkerSettings
from pipeline.runtime.supervisor_channel import VisitsReport
from pipeline.supervisor.roles.srv_lookup import SrvLookup
from pipeline.supervisor.run.worker_settings import new_session

VISITS_MAX = 8  # in a report: the current one, the reserve, those that end
REASON_LENGTH_MAX = 300
KNOWN_SERVERS_MAX = 4  # addresses of one server


class Move(NamedTuple):
    """The client goes to another server."""

    visit: Visit
    before: Server
    why: str


class ClientServers:
    """`record` gets an event for each move."""

    def __init__(self, config: Config, record: Record) -> None:
        self._record = record
        self._config = config
        self._last_number = 0
        self._choice: ServerChoice | None = None
        self._lookup: SrvLookup | None = None
        self._lanes: dict[int, dict[int, VisitReport]] = {}  # the last report of each lane, by session number
        self._known: dict[str, list[str]] = {}  # addresses of each host that is dialed, the latest first
        self._use(config)

    def _use(self, config: Config) -> None:
        self._config = config
        names = [each.name for each in config.remotes if not isinstance(each, Endpoint)]
        if self._lookup is not None:
            self._lookup.close()
        self._lookup = SrvLookup(names) if names else None
        if not config.has_several_servers:
            self._choice = None
        elif self._choice is not None:
            self._choice.terms = _terms(config)
        self._follow_list(time.monotonic_ns())

    def reload(self, config: Config) -> None:
        if _relevant(config) != _relevant(self._config):
            self._use(config)
        self._config = config

    def close(self) -> None:
        if self._lookup is not None:
            self._lookup.close()

    # -- the present ones

    @property
    def present(self) -> Server:
        """The server that the client is at, or dials."""
        if self._choice is not None:
            return self._choice.current.server
        return Server(*self._config.remote_endpoint)

    def is_present(self, number: int) -> bool:
        """Whether this session number is that of the present visit; any is where there is one server."""
        return self._choice is None or number == self._choice.current.number

    def server_of(self, number: int) -> Server:
        """The server that a HELLO with this session number goes to."""
        if self._choice is not None and self._choice.reserve is not None and number == self._choice.reserve.number:
            return self._choice.reserve.server
        return self.present

    def remember(self, host: str, address: str) -> None:
        """Keep an address of a named server, or of the proxy to it, for workers that start while the name cannot be
        looked up."""
        dialed = self._dialed_for(host)
        if Endpoint(dialed, 0).address is None and not self._config.needs_bridge:
            others = [each for each in self._known.get(dialed, []) if each != address]
            self._known[dialed] = [address, *others][:KNOWN_SERVERS_MAX]

    @property
    def known(self) -> list[str]:
        """Addresses at which the present server, or the proxy to it, was found, the latest first."""
        return self._known_for(self.present.host)

    def _known_for(self, host: str) -> list[str]:
        return self._known.get(self._dialed_for(host), []) if not self._config.needs_bridge else []

    def _dialed_for(self, host: str) -> str:
        """The host that is dialed for this server."""
        proxy = self._config.named_proxy
        return host if proxy is None else proxy.host

    def with_servers(self, settings: WorkerSettings) -> WorkerSettings:
        if self._choice is None:
            return settings._replace(has_others=False, reserve=None)
        current, reserve = self._choice.current, self._choice.reserve
        second = None
        if reserve is not None:
            known = self._known_for(reserve.server.host)
            second = Reserve(*reserve.server, reserve.number, known, self._choice.is_complete)
        return settings._replace(
            remote_host=current.server.host,
            remote_port=current.server.port,
            session=current.number,
            has_others=True,
            reserve=second,
        )

    # -- what happens

    def take(self, report: VisitsReport, lanes: int) -> None:
        """A worker's report. ValueError or TypeError if it is invalid."""
        lane, visits = report["lane"], report["visits"]
        if lane not in range(lanes) or len(visits) > VISITS_MAX:
            raise ValueError(f"{len(visits)} visits of lane {lane}, of {lanes}")
        found = {}
        for number, established, wanted, silent, leaving, failures, why in visits:
            text = printable(str(why)[:REASON_LENGTH_MAX])
            found[int(number)] = VisitReport(
                int(established), int(wanted), bool(silent), bool(leaving), int(failures), text
            )
        self._lanes[lane] = found

    def step(self, now: int) -> Move | None:
        self._follow_list(now)
        choice = self._choice
        if choice is None:
            return None
        before = choice.current
        choice.step(self._reports(), now)
        if choice.current == before:
            return None
        self._record(
            "moved", str(choice.current.server), f"this client has come here from {before.server}, because {choice.why}"
        )
        return Move(choice.current, before.server, choice.why)

    def _reports(self) -> dict[int, VisitReport]:
        """Those of all lanes together, by session number."""
        found: dict[int, VisitReport] = {}
        for lane in self._lanes.values():
            for number, report in lane.items():
                other = found.get(number)
                found[number] = report if other is None else _together(other, report)
        return found

    def _follow_list(self, now: int) -> None:
        """Take the answers about SRV records into the list."""
        if not self._config.has_several_servers:
            return
        servers: list[Server] = []
        for remote in self._config.remotes:
            if isinstance(remote, Endpoint):
                servers.append(Server(*remote))
            elif self._lookup is not None:
                servers += self._lookup.servers.get(remote.name, ())
        if self._choice is not None:
            self._choice.follow(servers)
        elif servers:
            self._choice = ServerChoice(servers, _terms(self._config), self._new_number, now)

    def _new_number(self) -> int:
        self._last_number = max(new_session(), self._last_number + 1)
        return self._last_number

    # -- for people

    def status(self) -> dict[str, Any]:
        """For `status`: where there is one server, the list is empty."""
        if self._choice is None:
            return {"why": "", "why_since_ns": 0, "list": []}
        choice = self._choice
        states = {choice.current.server: "current"}
        if choice.reserve is not None:
            report = self._reports().get(choice.reserve.number, VisitReport())
            states[choice.reserve.server] = "standby" if report.established else "dialed"
        return {
            "why": choice.why,
            "why_since_ns": choice.since,
            "list": [{"server": str(each), "state": states.get(each, "")} for each in choice.servers],
        }

    @property
    def notes(self) -> list[str]:
        """Problems with SRV records, and with the server that is to stand by."""
        problems = self._lookup.problems if self._lookup is not None else {}
        found = [f"SRV records of {name}: {problem}" for name, problem in problems.items()]
        reserve = self._choice.reserve if self._choice is not None else None
        if reserve is not None:
            report = self._reports().get(reserve.number, VisitReport())
            if report.failures and not report.established:
                found.append(f"server {reserve.server} does not stand by: {report.why}")
        return found


def _terms(config: Config) -> Terms:
    seals = config.encryption == "tls" and not config.compat
    return Terms(config.prefer == "first", int(config.home_after * 1e9), config.standby, seals)


def _relevant(config: Config) -> tuple[object, ...]:
    return config.remote_addr, config.prefer, config.home_after, config.standby


def _together(one: VisitReport, other: VisitReport) -> VisitReport:
    return VisitReport(
        one.established + other.established,
        one.wanted + other.wanted,
        one.silent or other.silent,
        one.leaving or other.leaving,
        one.failures + other.failures,
        one.why or other.why,
    )
