"""The rules of reach as tun workers have them: which peer handle has which policy, and the rows of each policy.

It is a memfd, as the key table is: no name leads to it, the supervisor alone writes, tun workers get its descriptor.
It is there on every server with peers, and takes a page until there is a rule.

    version       u64, odd while anything else is written. A reader compares it before and after, and throws away what
                  it has read in between (docs/memory-order.md, "Versions")
    is_guarded    u64: whether the kernel has its part of the rules. While it has not, the packets of peers with rules
                  do not go there
    size, serial  u64 each: bytes behind the header; the number of these policies, which is another once they differ
    secret        32 bytes: the key of the hashes in flow tables

The policies change seldom, and handles with each session. So a reader takes the rows anew only if `serial` is another.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline.errors import LocalError
from pipeline.policy.reach import Reach, Row
from pipeline.shm.memory_order import fence
from pipeline.shm.secret_table import F_SEAL_FUTURE_WRITE

RULES_BYTES = 1 << 24  # most of it is never touched
SECRET_BYTES = 32

_VERSION, _IS_GUARDED, _SIZE, _SERIAL = range(4)  # words
_SECRET_AT = 64
_BODY_AT = 4096
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL

_COUNTS = struct.Struct("<IIII")  # own addresses, handles, policies, rows
_OWN = struct.Struct("<B16s")
_HANDLE = struct.Struct("<qiB")  # peer handle, number of its policy, whether it is kept from the kernel
_POLICY = struct.Struct("<I")  # rows of it; they follow each other
_ROW = struct.Struct("<BBBHH16s")  # bytes of the address, prefix length, protocol, first and last port, address

NO_POLICY = -1


class Rules(NamedTuple):
    """`policies`: by peer handle, None for a peer that may reach everything. `kept`: the peer handles whose packets do
    not go to the kernel. `own`: the server's addresses in the tunnel, by their size."""

    policies: Mapping[int, Reach | None] = {}
    kept: frozenset[int] = frozenset()
    own: Mapping[int, bytes] = {}


class RulesWriter:
    """The supervisor's."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("reach", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, RULES_BYTES)
            self._map = mmap.mmap(self.fd, RULES_BYTES)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(self.fd)
            raise
        self._view = memoryview(self._map)
        self._words = self._view[:_SECRET_AT].cast("Q")
        self._view[_SECRET_AT : _SECRET_AT + SECRET_BYTES] = secrets.token_bytes(SECRET_BYTES)

    def write(
        self,
        is_guarded: bool,
        serial: int,
        own: Iterable[bytes],
        handles: Mapping[int, int],
        policies: Sequence[Sequence[Row]],
        kept: Collection[int] = (),
    ) -> None:
        """`handles`: the number of its policy, or NO_POLICY. `kept`: those of whose rules the kernel has not heard yet.
        LocalError if there are too many rows: nothing changes."""
        addresses = list(own)
        rows = [row for policy in policies for row in policy]
        parts = [_COUNTS.pack(len(addresses), len(handles), len(policies), len(rows))]
        parts += [_OWN.pack(len(each), each) for each in addresses]
        parts += [_HANDLE.pack(handle, number, handle in kept) for handle, number in handles.items()]
        parts += [_POLICY.pack(len(policy)) for policy in policies]
        parts += [_ROW.pack(len(row[0]), *row[1:], row[0]) for row in rows]
        body = b"".join(parts)
        if _BODY_AT + len(body) > RULES_BYTES:
            raise LocalError(f"may_reach: {len(rows)} rows are too many: join networks, or name groups in fewer rules")
        self._words[_VERSION] += 1
        fence()
        self._words[_IS_GUARDED], self._words[_SIZE], self._words[_SERIAL] = is_guarded, len(body), serial
        self._view[_BODY_AT : _BODY_AT + len(body)] = body
        fence()
        self._words[_VERSION] += 1

    def close(self) -> None:
        self._words.release()
        self._view.release()
        self._map.close()
        os.close(self.fd)


class RulesReader:
    """As the inbound duty of a tun worker follows them."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, RULES_BYTES, prot=mmap.PROT_READ)
        self._view = memoryview(self._map)
        self._words = self._view[:_SECRET_AT].cast("Q")
        self._seen = 0
        self._serial = 0
        self._reaches: list[Reach] = []
        self.rules = Rules()

    @property
    def secret(self) -> bytes:
        return bytes(self._view[_SECRET_AT : _SECRET_AT + SECRET_BYTES])

    def has_changed(self) -> bool:
        """Cheap: asked for every burst."""
        return bool(self._words[_VERSION] != self._seen)

    def follow(self) -> bool:
        """Take the present rules. False while they are written: those before stay."""
        version = self._words[_VERSION]
        fence()
        is_guarded, size, serial = (self._words[at] for at in (_IS_GUARDED, _SIZE, _SERIAL))
        body = bytes(self._view[_BODY_AT : _BODY_AT + size])
        fence()
        if version & 1 or version != self._words[_VERSION]:
            return False
        self._seen = version
        if body:
            self._take(bool(is_guarded), body, serial)
        return True

    def _take(self, is_guarded: bool, body: bytes, serial: int) -> None:
        own, handles, policies, rows = _COUNTS.unpack_from(body)
        at = _COUNTS.size
        addresses = [_OWN.unpack_from(body, at + index * _OWN.size) for index in range(own)]
        at += own * _OWN.size
        numbers = [_HANDLE.unpack_from(body, at + index * _HANDLE.size) for index in range(handles)]
        at += handles * _HANDLE.size
        if serial != self._serial:
            self._serial = serial
            counts = [_POLICY.unpack_from(body, at + index * _POLICY.size)[0] for index in range(policies)]
            begin = at + policies * _POLICY.size
            found = [
                (address[:size], length, protocol, first, last)
                for size, length, protocol, first, last, address in _ROW.iter_unpack(
                    body[begin : begin + rows * _ROW.size]
                )
            ]
            self._reaches = []
            for count in counts:
                self._reaches.append(Reach(found[:count]))
                found = found[count:]
        self.rules = Rules(
            {handle: None if number == NO_POLICY else self._reaches[number] for handle, number, _ in numbers},
            frozenset(
                handle for handle, number, is_kept in numbers if number != NO_POLICY and (is_kept or not is_guarded)
            ),
            {size: address[:size] for size, address in reversed(addresses)},
        )
