"""The servers that SRV records list (RFC 2782), which a thread looks up: the supervisor waits for nothing.

dnspython is imported in that thread, and only where a name of SRV records is configured. The records are looked up
again each minute. While there is no answer, the last one stays in use.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from pipeline.log import LOG, printable
from pipeline.policy.server_choice import Server
from pipeline.system import task_limit

AGAIN_SECONDS = 60.0
RETRY_SECONDS = 2.0  # before the network is up there is no answer
LIFETIME_SECONDS = 5.0  # of one lookup, all DNS servers and repetitions included
TARGETS_MAX = 16

NO_LIBRARY = "the library dnspython is not installed"
NO_SERVICE = "the records say that there is no such service"


class SrvLookup:
    """`servers`: by name, in the order of the records; a name is missing before its first answer. `problems`: by name,
    why the last lookup had no answer."""

    def __init__(self, names: Sequence[str]) -> None:
        self.servers: dict[str, tuple[Server, ...]] = {}
        self.problems: dict[str, str] = {}
        self._names = tuple(names)
        self._closed = threading.Event()
        try:
            task_limit.start(threading.Thread(target=self._run, name="SRV lookup", daemon=True))
        except OSError as error:
            why = task_limit.explain(error)
            self.problems = dict.fromkeys(self._names, f"no thread for a lookup: {why}")

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            for name in self._names:
                servers, problem = look_up(name)
                if servers:
                    self.servers = self.servers | {name: servers}
                if problem and self.problems.get(name) != problem:
                    LOG.warning("SRV records of %s: %s", name, problem)
                others = {each: why for each, why in self.problems.items() if each != name}
                self.problems = others | ({name: problem} if problem else {})
            self._closed.wait(RETRY_SECONDS if self.problems else AGAIN_SECONDS)


def look_up(name: str) -> tuple[tuple[Server, ...], str]:
    """The servers in the order in which a client tries them, and ""; or none, and why."""
    try:
        import dns.exception
        import dns.resolver
    except ImportError:
        return (), NO_LIBRARY
    try:
        answer = dns.resolver.resolve(name, "SRV", lifetime=LIFETIME_SECONDS)
        records: list[Any] = answer.rrset.processing_order() if answer.rrset is not None else []
    except (dns.exception.DNSException, OSError) as error:
        return (), printable(str(error) or type(error).__name__)
    found = [Server(record.target.to_text(omit_final_dot=True), record.port) for record in records[:TARGETS_MAX]]
    usable = tuple(each for each in found if each.host not in ("", ".") and each.port)
    return usable, "" if usable else NO_SERVICE
