"""The invitations that have ended and are in no peer's file any more: their lines are answered with the reason.

    STATE_DIR/ended_invitations.json    the newest ENDED_MAX: key, name and end of each

An invitation is part of its peer's file, and goes with it: when the peer is revoked or leaves, when another invitation
takes its place, when it is taken back. Nobody joins with its line then. The holder of the line proves its key, and is
told how the invitation has ended; a line that is unknown is answered by silence, as any key is that proves nothing.

The peers before a change and after it show which invitations have ended by it, whatever the change was. The file holds
words alone: without it, or with a damaged one, nobody gets in who would not otherwise.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from pipeline.credentials import keys
from pipeline.errors import ConfigError, TunnelError
from pipeline.log import LOG
from pipeline.peers.invitation_life import EXPIRED, USED, state_of
from pipeline.peers.registry import KnownPeer
from pipeline.system import hang_guard, small_file
from pipeline.wire.messages import INVITATION_EXPIRED, INVITATION_REVOKED, INVITATION_USED

FILE = "ended_invitations.json"
FILE_BYTES_MAX = 1 << 20
ENDED_MAX = 1000
RETRY_NS = 10_000_000_000

REVOKED = "revoked"
REASONS = {USED: INVITATION_USED, EXPIRED: INVITATION_EXPIRED, REVOKED: INVITATION_REVOKED}
"""The reason in REFUSED, by the end of an invitation. One that was open, or kept, was revoked or replaced."""


class Ended(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An invitation that has ended. `key`: of its line, base64; `name`: of the peer that it was for."""

    key: Annotated[str, msgspec.Meta(max_length=64)]
    name: Annotated[str, msgspec.Meta(max_length=64)]
    end: Literal["used", "expired", "revoked"]

    @property
    def reason(self) -> int:
        return REASONS[self.end]


class EndedInvitations:
    """`directory`: the state directory, None if there is none."""

    def __init__(self, directory: Path | None) -> None:
        self._path = directory / FILE if directory else None
        self._ended = _read(self._path) if self._path else {}  # by key, the newest last
        self._before: list[KnownPeer] = []
        self._is_saved = True
        self._retry_at = 0  # CLOCK_MONOTONIC ns

    def names(self) -> dict[bytes, str]:
        """The key of each invitation, and the peer that it was for."""
        return {key: each.name for key, each in self._ended.items()}

    def find(self, key: bytes) -> Ended | None:
        return self._ended.get(key)

    def follow(self, known: Iterable[KnownPeer], now: float) -> None:
        """The server knows these peers now, at this time (UNIX)."""
        after = list(known)
        in_use = {key for each in after for key in (each.key, each.invitation_key)}
        before = [each.invited for each in self._before if each.invited]
        for peer in before:
            issued = peer.invitation
            if issued is not None and issued.key not in in_use:
                state = state_of(peer, before, now)
                end = state if state in REASONS else REVOKED
                key = base64.b64encode(issued.key).decode()
                self._ended[issued.key] = msgspec.convert({"key": key, "name": peer.name, "end": end}, Ended)
                self._is_saved = False
        for old in list(self._ended)[:-ENDED_MAX]:
            del self._ended[old]
        self._before = after

    def tick(self, now: int) -> None:
        """Write what is not saved yet, if it is time to."""
        if self._is_saved or self._path is None or now < self._retry_at:
            return
        path, data = self._path, json.dumps([msgspec.to_builtins(each) for each in self._ended.values()]).encode()
        try:
            hang_guard.call(lambda: keys.write_secret(path, data, replace=True))
        except (OSError, TunnelError) as error:
            LOG.error("%s: not written: after a restart, invitations that have ended get no reason: %s", path, error)
            self._retry_at = now + RETRY_NS
            return
        self._is_saved = True


def _read(path: Path) -> dict[bytes, Ended]:
    if not path.exists():
        return {}
    try:
        found = msgspec.json.decode(small_file.read_text(path, FILE_BYTES_MAX), type=list[Ended])
        return {keys.parse(each.key): each for each in found[-ENDED_MAX:]}
    except (ConfigError, ValueError, RecursionError) as error:
        text = error.problems[0].text if isinstance(error, ConfigError) else "damaged"
        LOG.error("%s: not used, invitations that have ended get no reason: %s", path, text)
        return {}
