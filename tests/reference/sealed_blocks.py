"""Sealed blocks, written from docs/wire.md alone. The program's code is not used.

session = Session(key=key)                  an end's key share, and what it says about it in its hello or welcome
session.agree(...)                          the secrets of the session, for both directions
session.seal(kind, packets)                 a header and a sealed block
session.open(header, sealed)                its packets; None for a block that is to be dropped
"""

from __future__ import annotations

import itertools
import os
import secrets
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidTag

from tests.reference import erasure_code, key_schedule
from tests.reference.blocks import BARE, RUN, Violation, finished_packet
from tests.reference.key_schedule import AES_256_GCM, CHACHA20_POLY1305, KEY_SHARE_BYTES, TO_CLIENT, TO_SERVER
from tests.reference.records import Header

BULK, LIGHT, CODED, COPIED, BULK_TRANSIT, LIGHT_TRANSIT = range(6)
"""Kinds of streams."""

KEY_SHARE = 5  # an extension of a hello and of a welcome
NONCE = struct.Struct(">III")
NONCE_BYTES, HASH_BYTES = 32, 32
WINDOW = 8192
PROCESSES = 2  # that a window knows
EPOCHS = 1 << 16
PACKETS_MAX = 512


class Sealed(NamedTuple):
    """A sealed block as it travels: the header of a run with all its shards, and these shards."""

    header: Header
    shards: list[bytes]


def plaintext(packets: Sequence[bytes], acknowledged: int) -> bytes:
    lengths = [len(BARE) + len(packet) for packet in packets]
    table = struct.pack(f">HH{len(packets)}I", acknowledged % EPOCHS, len(packets), *lengths)
    return table + b"".join(BARE + packet for packet in packets)


def packets_of(plain: bytes) -> tuple[int, list[bytes]]:
    """The epoch acknowledged, and the packets. ValueError if it is no whole block."""
    if len(plain) < 4:
        raise ValueError("too short for its counts")
    acknowledged, count = struct.unpack_from(">HH", plain)
    at = 4 + 4 * count
    if count > PACKETS_MAX or at > len(plain):
        raise ValueError(f"{count} packets in {len(plain)} bytes")
    lengths = struct.unpack_from(f">{count}I", plain, 4)
    if at + sum(lengths) != len(plain):
        raise ValueError(f"{sum(lengths)} bytes of packets in {len(plain) - at}")
    ends = list(itertools.accumulate(lengths, initial=at))
    return acknowledged, [finished_packet(plain[start:end]) for start, end in itertools.pairwise(ends)]


def seal(suite: int, key: bytes, nonce: tuple[int, int, int], plain: bytes) -> bytes:
    """`nonce`: stream, number, copy."""
    return key_schedule.aead(suite, key).encrypt(NONCE.pack(*nonce), plain, None)


def unseal(suite: int, key: bytes, nonce: tuple[int, int, int], sealed: bytes) -> bytes:
    """InvalidTag if the tag does not prove it."""
    return key_schedule.aead(suite, key).decrypt(NONCE.pack(*nonce), sealed, None)


class EpochKeys:
    """The keys of one direction: those of the latest epoch, of the one before and of the next."""

    def __init__(self, keys: Iterator[bytes]) -> None:
        self._keys = keys
        self.latest = 0
        self._known = {0: next(keys), 1: next(keys)}

    def __getitem__(self, epoch: int) -> bytes | None:
        """By the epoch modulo 2^16."""
        return next((key for number, key in self._known.items() if number % EPOCHS == epoch), None)

    def go_on(self) -> None:
        self.latest += 1
        self._known[self.latest + 1] = next(self._keys)
        self._known.pop(self.latest - 2, None)


class Window:
    """Numbers of the blocks of one lane and kind that have been opened, of the two latest processes."""

    def __init__(self) -> None:
        self._processes: dict[int, tuple[int, set[int]]] = {}  # highest number, and those up to it

    def admits(self, process: int, number: int) -> bool:
        if process not in self._processes:
            return not self._processes or process > max(self._processes)
        highest, opened = self._processes[process]
        ahead = (number - highest) % (1 << 32)
        return 0 < ahead < 1 << 31 or ((highest - number) % (1 << 32) < WINDOW and number not in opened)

    def mark(self, process: int, number: int) -> None:
        highest, opened = self._processes.get(process, (number, set()))
        if 0 < (number - highest) % (1 << 32) < 1 << 31:
            highest = number
        opened = {each for each in opened if (highest - each) % (1 << 32) < WINDOW} | {number}
        self._processes[process] = highest, opened
        for old in sorted(self._processes)[:-PROCESSES]:
            del self._processes[old]


class Session:
    """What the connections of one session have in common at one end."""

    def __init__(
        self,
        number: int = 1,
        *,
        key: bytes = b"",
        client: int = 1,
        suite: int = AES_256_GCM,
        private: bytes = b"",
        process: int = 1,
        lane: int = 0,
    ) -> None:
        """`suite`: that which this end prefers."""
        self.number, self.client, self.key, self.suite = number, client, key, suite
        self.process, self.lane = process, lane
        self.acknowledged = 0  # the latest epoch of the other end's blocks of which this end has opened one
        self.epoch = 0  # of our blocks
        self.told = 0  # the latest epoch of ours that the other end has acknowledged
        self.dropped: Counter[str] = Counter()
        self._use_pair(private or secrets.token_bytes(32))
        self.other_key_share = b""
        self._replaced_key_shares: set[bytes] = set()
        self._numbers: Counter[int] = Counter()

    # -- key shares

    def hello_extension(self) -> bytes:
        return _extension(bytes([self.suite]) + self.key_share)

    def welcome_extension(self, certificate_hash: bytes = bytes(HASH_BYTES)) -> bytes:
        """A server's, once it has agreed."""
        return _extension(bytes([self.suite]) + self.key_share + os.urandom(NONCE_BYTES) + certificate_hash)

    def accept_welcome(self, extensions: bytes, certificate_hash: bytes) -> None:
        """A client's: agree with the key share in a welcome. `certificate_hash`: of its own certificate, or zeros."""
        value = next((value for kind, value in extensions_of(extensions) if kind == KEY_SHARE), b"")
        if len(value) < 1 + KEY_SHARE_BYTES + NONCE_BYTES + HASH_BYTES:
            raise Violation("a welcome without a key share")
        key_share, shown = value[1:33], value[65:97]
        if shown not in (certificate_hash, bytes(HASH_BYTES)):
            raise Violation("the server has seen another certificate than ours")
        if key_share in self._replaced_key_shares:
            raise Violation("the server repeats a key share that it has replaced")
        if value[0] not in (AES_256_GCM, CHACHA20_POLY1305) or value[0] < self.suite:
            raise Violation(f"suite {value[0]}, and {self.suite} is preferred here")
        if key_share != self.other_key_share:
            if self.other_key_share:
                self._replaced_key_shares.add(self.other_key_share)
            self.agree(key_share, value[0])
            self._use_pair(secrets.token_bytes(32))

    def _use_pair(self, private: bytes) -> None:
        self._private, self.key_share = private, key_schedule.public_of(private)

    def accept_hello(self, extensions: bytes) -> None:
        """A server's: agree with the key share in a hello."""
        value = next(value for kind, value in extensions_of(extensions) if kind == KEY_SHARE)
        self.agree(value[1:33], max(value[0], self.suite), TO_CLIENT, TO_SERVER)

    def agree(self, other_key_share: bytes, suite: int, own: bytes = TO_SERVER, other: bytes = TO_CLIENT) -> None:
        """Make the secrets. `own`, `other`: the directions of this end and of the other."""
        try:
            self.root = key_schedule.root(self.key, self._private, other_key_share)
        except ValueError:
            raise Violation("a key share that makes X25519 zero") from None
        self.other_key_share, self.suite = other_key_share, suite
        self.directions = own, other
        shares = (self.key_share, other_key_share) if own == TO_SERVER else (other_key_share, self.key_share)
        self.context = key_schedule.context(suite, *shares, self.client, self.number)
        self.sending = EpochKeys(key_schedule.block_keys(self.root, self.context, own))
        self.receiving = EpochKeys(key_schedule.block_keys(self.root, self.context, other))
        self._windows: dict[int, Window] = {}
        self.epoch = self.acknowledged = self.told = 0

    # -- blocks

    def stream(self, kind: int) -> int:
        return self.process << 8 | self.lane << 3 | kind

    def next_number(self, stream: int) -> int:
        number = self._numbers[stream]
        self._numbers[stream] += 1
        return number % (1 << 32)

    def go_to_next_epoch(self) -> None:
        self.sending.go_on()
        self.epoch = self.sending.latest

    def seal(self, kind: int, packets: Sequence[bytes]) -> Sealed:
        """A block that travels once, and whole."""
        return self.seal_plaintext(kind, self.plaintext(packets), len(packets))

    def plaintext(self, packets: Sequence[bytes]) -> bytes:
        return plaintext(packets, self.acknowledged)

    def seal_plaintext(self, kind: int, plain: bytes, count: int) -> Sealed:
        """The same for any plaintext, of so many packets as it seems."""
        header, sealed = self._seal(kind, plain, 1, 0)
        return Sealed(header._replace(packets=count), [sealed])

    def seal_copies(self, packets: Sequence[bytes], copies: int) -> list[Sealed]:
        number = self.next_number(self.stream(COPIED))
        plain = self.plaintext(packets)
        made = [self._seal(COPIED, plain, 1, copies - 1, number, copy) for copy in range(copies)]
        return [Sealed(header, [sealed]) for header, sealed in made]

    def seal_coded(self, packets: Sequence[bytes], n: int, m: int) -> Sealed:
        """A block of n data shards and m of parity, with random bytes behind its end. n is more than 1."""
        header, sealed = self._seal(CODED, self.plaintext(packets), n, m)
        each = erasure_code.shard_size(len(sealed), n, m)
        data = sealed + os.urandom(n * each - len(sealed))
        shards = [data[at : at + each] for at in range(0, n * each, each)]
        return Sealed(header._replace(shards=n + m), shards + erasure_code.parity(shards, m))

    def _seal(
        self, kind: int, plain: bytes, n: int, m: int, number: int | None = None, copy: int = 0
    ) -> tuple[Header, bytes]:
        stream = self.stream(kind)
        number = self.next_number(stream) if number is None else number
        key = self.sending[self.epoch % EPOCHS]
        sealed = seal(self.suite, key, (stream, number, copy), plain)
        return Header(RUN, stream, number, n, m, copy, 1, len(sealed), self.epoch % EPOCHS, 0), sealed

    def open(self, header: Header, sealed: bytes) -> list[bytes] | None:
        """The packets. None, and the reason counted in `dropped`, for a block that is to be dropped."""
        copy = header.first if header.n == 1 else 0
        process, lane_and_kind = header.stream >> 8, header.stream & 0xFF
        window = self._windows.setdefault(lane_and_kind, Window())
        key = self.receiving[header.epoch]
        if key is None:
            self.dropped["epoch unknown"] += 1
            return None
        if not window.admits(process, header.number):
            self.dropped["replayed"] += 1
            return None
        try:
            plain = unseal(self.suite, key, (header.stream, header.number, copy), sealed)
        except InvalidTag:
            self.dropped["not opened"] += 1
            return None
        told, packets = packets_of(plain)
        if header.packets and header.packets != len(packets):
            self.dropped["another count"] += 1
            return None
        window.mark(process, header.number)
        if header.epoch == (self.receiving.latest + 1) % EPOCHS:
            self.receiving.go_on()
            self.acknowledged = self.receiving.latest
        if told == self.epoch % EPOCHS:
            self.told = self.epoch
        return packets


def extensions_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 2:
        kind, length = data[:2]
        if len(data) < 2 + length:
            raise Violation("an extension that is cut off")
        yield kind, data[2 : 2 + length]
        data = data[2 + length :]


def _extension(value: bytes) -> bytes:
    return bytes([KEY_SHARE, len(value)]) + value
