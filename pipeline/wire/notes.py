"""Notes: the supervisors of a hub and a client tell each other about direct paths (docs/direct.md). Pure.

    kind u8 | body

    HERE     client to hub   places: where the client is in its own network
    PAIR     hub to client   a pair begins
    STATE    both            a pair is open, dark, has ended, or may no longer be

unpack() is total: any bytes give a note or a PeerError. Bytes behind a note are ignored. All lists are bounded. It is
not judged here which end may say what.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any, NamedTuple

from pipeline.errors import LocalError, PeerError

HERE, PAIR, STATE = 1, 2, 3

NOTE_BYTES_MAX = 1024
PLACES_MAX = 4
NETWORKS_MAX = 16
TEXT_BYTES_MAX = 120
NAME_BYTES_MAX = 32
SECRET_BYTES = 32
SIDES = (0, 1)

_U8 = struct.Struct(">B")
_PLACE = struct.Struct(">16sH")
_NETWORK = struct.Struct(">BB16s")
_PAIR = struct.Struct(f">QBB{SECRET_BYTES}sII")
_STATE = struct.Struct(">QB")

_BITS = {4: 32, 6: 128}


class Place(NamedTuple):
    """Where a UDP socket is: IPv6, or IPv4 mapped into IPv6."""

    host: bytes
    port: int


class Network(NamedTuple):
    """Of an address of 4 or 16 bytes, the first `length` bits."""

    address: bytes
    length: int


class PairState(IntEnum):
    OPEN = 1
    DARK = 2
    ENDED = 3
    FORBIDDEN = 4  # of a hub: nothing more of it is opened


class Here(NamedTuple):
    places: tuple[Place, ...]

    def pack(self) -> bytes:
        return _U8.pack(HERE) + _places(self.places)


class Pair(NamedTuple):
    """A pair begins. `side`: of the reader, one of SIDES. `relayed_us`: the round trip by the hub; 0: not known."""

    number: int
    side: int
    suite: int
    secret: bytes
    offloads: int  # TUN_F_* bits that the partner accepts
    relayed_us: int
    name: str  # of the partner
    places: tuple[Place, ...]  # where it may be
    networks: tuple[Network, ...]  # its own
    own: tuple[Network, ...]  # the reader's

    def pack(self) -> bytes:
        if len(self.secret) != SECRET_BYTES:
            raise LocalError(f"secret of {len(self.secret)} bytes in a note")
        fields = _PAIR.pack(*self[: self._fields.index("name")])
        lists = _places(self.places) + _networks(self.networks) + _networks(self.own)
        return _U8.pack(PAIR) + fields + _text(self.name, NAME_BYTES_MAX) + lists


class State(NamedTuple):
    number: int
    state: PairState
    reason: str = ""

    def pack(self) -> bytes:
        return _U8.pack(STATE) + _STATE.pack(self.number, self.state) + _text(self.reason, TEXT_BYTES_MAX)


Note = Here | Pair | State


def unpack(data: bytes) -> Note:
    reader = _Reader(data)
    kind = reader.number()
    if kind == HERE:
        return Here(reader.places())
    if kind == PAIR:
        fields = reader.fields(_PAIR)
        if fields[1] not in SIDES:
            raise PeerError(f"a note of side {fields[1]}")
        name, places = reader.text(NAME_BYTES_MAX), reader.places()
        return Pair._make([*fields, name, places, reader.networks(), reader.networks()])
    if kind == STATE:
        number, state = reader.fields(_STATE)
        if state not in tuple(PairState):
            raise PeerError(f"a note of state {state}")
        return State(number, PairState(state), reader.text(TEXT_BYTES_MAX))
    raise PeerError(f"a note of kind {kind}")


def _places(places: tuple[Place, ...]) -> bytes:
    return _U8.pack(len(places[:PLACES_MAX])) + b"".join(_PLACE.pack(*each) for each in places[:PLACES_MAX])


def _networks(networks: tuple[Network, ...]) -> bytes:
    if len(networks) > NETWORKS_MAX:
        raise LocalError(f"{len(networks)} networks in a note, at most {NETWORKS_MAX} are possible")
    rows = (_NETWORK.pack(4 if len(each.address) == 4 else 6, each.length, each.address) for each in networks)
    return _U8.pack(len(networks)) + b"".join(rows)


def _text(text: str, most: int) -> bytes:
    whole = text.encode(errors="replace")[:most].decode(errors="ignore").encode()
    return _U8.pack(len(whole)) + whole


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fields(self, form: struct.Struct) -> tuple[Any, ...]:
        end = self._at + form.size
        if end > len(self._data):
            raise PeerError("a note ends too early")
        found: tuple[Any, ...] = form.unpack_from(self._data, self._at)
        self._at = end
        return found

    def number(self, most: int = 255) -> int:
        found: int = self.fields(_U8)[0]
        if found > most:
            raise PeerError(f"a note with {found} of what there are {most} at most")
        return found

    def places(self) -> tuple[Place, ...]:
        return tuple(Place(*self.fields(_PLACE)) for _ in range(self.number(PLACES_MAX)))

    def networks(self) -> tuple[Network, ...]:
        return tuple(self._network() for _ in range(self.number(NETWORKS_MAX)))

    def _network(self) -> Network:
        family, length, address = self.fields(_NETWORK)
        if family not in _BITS or length > _BITS[family]:
            raise PeerError(f"a note with a network of family {family}, length {length}")
        return Network(address[: _BITS[family] // 8], length)

    def text(self, most: int) -> str:
        size = self.number(most)
        end = self._at + size
        if end > len(self._data):
            raise PeerError("a note ends too early")
        found = self._data[self._at : end].decode(errors="replace")
        self._at = end
        return found
