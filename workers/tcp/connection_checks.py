"""When a connection has to end: too long in its handshake, too long silent, too much under one key.

The last is for connections that stay in TLS, those of compat. Sealed ones change their keys as they go on.
"""

from __future__ import annotations

from typing import NamedTuple

from pipeline.runtime.plan import WorkerSettings
from pipeline.transport.connection import Connection

RETRANSMITS_MAX = 5
"""Timeouts of the kernel in a row, without an answer: 6 s or more. At the fourth or fifth it tries smaller packets
(tcp_write_timeout in net/ipv4/tcp_timer.c, with tcp_retries1 3 and tcp_mtu_probing). A new connection begins with large
ones again: where a path swallows those, dialing earlier costs what the kernel was about to learn."""

REKEY_AFTER_BYTES = 1 << 38
"""After so many bytes under one key, a connection with new keys is dialed; ssl has no KeyUpdate."""

BYTES_UNDER_ONE_KEY_MAX = int(2**24.5) << 14
"""RFC 8446, 5.5: 2^24.5 full records of AES-GCM, 2^14 bytes each."""


class Timeouts(NamedTuple):
    """Limits of time in ns."""

    silence: int  # of an established connection
    handshake: int

    @classmethod
    def of(cls, settings: WorkerSettings) -> Timeouts:
        return cls(int(settings.timeout * 1e9), int(settings.handshake_timeout * 1e9))

    def silence_expired(self, connection: Connection, now: int) -> bool:
        return now - connection.receive.last_ns > self.silence

    def handshake_expired(self, connection: Connection, now: int) -> bool:
        """Whether a connection that is not established has had its time."""
        return now - connection.state_since_ns > self.handshake

    def claim_expired(self, connection: Connection, now: int) -> bool:
        """Whether the supervisor has had its time to decide about an address: that of a handshake."""
        learner = connection.receive.learner
        return learner is not None and now - learner.claimed_ns > self.handshake


def rekey_due(connection: Connection) -> bool:
    """Whether a client's connection in TLS has carried so much that it is replaced by one with new keys.

    The limit of each dial slot is a little lower than that of the slot before it. So connections that carry equal
    amounts are not replaced at one time.
    """
    return _bytes_under_one_key(connection) > REKEY_AFTER_BYTES - connection.dial_index % 32 * (REKEY_AFTER_BYTES // 64)


def key_worn_out(connection: Connection) -> bool:
    """Whether a connection in TLS has carried all that its keys are good for: it ends, replaced or not."""
    return _bytes_under_one_key(connection) > BYTES_UNDER_ONE_KEY_MAX


def _bytes_under_one_key(connection: Connection) -> int:
    """The higher count of the two directions; 0 where TLS is over, or never was."""
    return 0 if connection.channel is None else max(connection.send.byte_count, connection.receive.byte_count)
