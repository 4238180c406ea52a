"""Random sizes and times, so that those of handshakes and keepalives tell less (setting `noise`).

padding(most)           bytes that mean nothing, from none to the most that a message has room for
keepalive_ns(period)    when to send the next keepalive: between a half of the period and all of it
"""

from __future__ import annotations

import secrets

IN_HELLO = 100  # one of the longest others is below framing.HELLO_LENGTH_LIMIT with it
IN_OTHERS = 255  # the most that an extension has


def padding(most: int) -> bytes:
    return secrets.token_bytes(secrets.randbelow(most + 1))


def keepalive_ns(period: int) -> int:
    return period // 2 + secrets.randbelow(period // 2 + 1)
