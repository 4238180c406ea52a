"""The charge: what a peer's frames cost a server, counted in bytes.

One byte of a full block is the unit: received, decrypted and written it takes about 1.2 ns. Small frames cost far more
than their bytes, and in other processes than the one that reads them. So each thing that makes work is charged at what
it takes in all stages together (docs/performance.md has the measurements):

    a receive from a socket     READ        the system call
    bytes moved                 MOVED_BYTES unfinished frames and records of connections that take turns
    a TLS record                RECORD      feeding it to OpenSSL and fetching what it held
    a frame                     FRAME       found once, and passed by two more duties
    a packet                    PACKET      checks, routes, and a write to TUN or into another slot
    a run of shards             RUN         its header, and its place in a block
    a segment cut here          SEGMENT     headers and checksums, in Python
    a packet passed on          FORWARD     a place in another slot, its way out, and the write of the peer that gets it
    an answer from the kernel   ANSWER      reading it from TUN, and its way out

The sum decides whose turn it is to be read, how much of a ring a peer may occupy, and what counts against a rate.
"""

from __future__ import annotations

READ = 6144
RECORD = 1536
FRAME = 512
PACKET = 2048
RUN = 4096
SEGMENT = 4096
FORWARD = 3072
ANSWER = 4096

MOVED_BYTES = 4
"""Bytes of unfinished frames and records that change places, for each of charge: a receive of one byte may move 133 kB
out of the way and as many in."""

RATE_SHARE = 8
"""An eighth of the charge counts against a rate, or the bytes if they are more. So packets above 300 bytes count as
they are, and a rate of 200 Mbit/s takes a quarter of a core at most."""


def against_rate(size: int, charge: int) -> int:
    """Bytes that count against a rate, for `size` bytes of this charge."""
    return max(size, charge // RATE_SHARE)
