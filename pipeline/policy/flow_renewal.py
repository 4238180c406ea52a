"""When a client opens another fake flow. Pure.

    no flow yet                     at once
    it was reset, or has ended      at once: a box on the way has forgotten it, or the server's worker is another one
    nothing has come for SILENCE    although something is sent: a NAT has forgotten it, or the machine has slept

The old flow is used until the new one is open, since a reset proves nothing. A forged one costs a handshake. Attempts
are further and further apart, and begin anew after a flow that has lasted. Times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

SILENCE_NS = 2_000_000_000  # all that is sent is acknowledged within 40 ms and a round trip
FIRST_WAIT_NS = 2_000_000_000  # the kernel sends a SYN again after one second
MOST_WAIT_NS = 60_000_000_000
LASTING_NS = 30_000_000_000


class FlowRenewal:
    def __init__(self) -> None:
        self._next_ns = 0
        self._wait_ns = FIRST_WAIT_NS

    def due(self, now: int, opened_ns: int, asked_ns: int, is_over: bool) -> bool:
        """Whether to begin now. `opened_ns`: of the present flow, 0 if there is none; `asked_ns`: since when something
        is sent that nothing has come for, 0 for nothing. A True counts as an attempt."""
        is_silent = asked_ns and now - asked_ns > SILENCE_NS
        if opened_ns and not is_over and not is_silent:
            if now - opened_ns > LASTING_NS:
                self._wait_ns = FIRST_WAIT_NS
            return False
        if now < self._next_ns:
            return False
        self._next_ns = now + self._wait_ns
        self._wait_ns = min(2 * self._wait_ns, MOST_WAIT_NS)
        return True
