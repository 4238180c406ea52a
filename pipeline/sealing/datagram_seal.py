"""The seal of control datagrams: AEAD under a count that travels, masked, and a window against what comes twice.

    datagram    control token u32 | masked count u64 | body, encrypted | tag of 16 bytes
    count u64   number of the process (24 bits) | lane of the sender (5 bits) | number (35 bits)
    nonce       zeros u32 | count u64
    key         the control key of the stretch count / 2^28, rounded down
    mask        the first 8 bytes of AES-256 with the mask key, of the 16 bytes behind the count (RFC 9001, 5.4.3)

A process has a higher number than all processes of its sender before it, and counts in its own memory before it seals.
So a successor never uses a nonce again, under whatever key. No key seals more than 2^28 datagrams, which is the limit
of AES-GCM for datagrams of up to 2^11 bytes (RFC 9001, B.1.1). The count tells the key, so both ends change it without
a word. An observer sees neither the count, which would tell how many workers have been replaced, nor its growth.

A receiver has a window for each lane of the sender, of its latest process. Datagrams of an earlier process count as
old: all they say comes again.
"""

from __future__ import annotations

import struct

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from pipeline.sealing.aead import NONCE_BYTES, TAG_BYTES, Aead, InvalidTag, aead
from pipeline.sealing.key_schedule import DatagramSecret
from pipeline.sealing.kinds import LANES_MAX, PROCESSES_MAX

NUMBER_BITS, LANE_BITS = 35, 5
STRETCH_BITS = 28
NUMBERS_MAX = 1 << NUMBER_BITS  # at 7000 reports a second, of 5 Gbit/s, for 56 days; then a worker needs a successor
WINDOW = 1024

_HEAD = struct.Struct(">IQ")
HEAD_BYTES = _HEAD.size
OVERHEAD = HEAD_BYTES + TAG_BYTES

_SAMPLE_BYTES = 16  # a block of AES: at least the tag is there
_NONCE_AT = NONCE_BYTES - 8
_U64 = struct.Struct(">Q")
_KEYS_MOST = 2 * LANES_MAX  # stretches: those of the senders' processes now, and of their successors

assert LANES_MAX == 1 << LANE_BITS and PROCESSES_MAX == 1 << 64 - LANE_BITS - NUMBER_BITS


class _Keys:
    """The AEADs of the latest stretches, and the mask."""

    def __init__(self, suite: int, secret: DatagramSecret) -> None:
        self._suite = suite
        self._secret = secret
        self._aeads: dict[int, Aead] = {}
        self._mask = Cipher(AES(secret.mask_key()), ECB()).encryptor()
        self._masked = bytearray(2 * _SAMPLE_BYTES - 1)  # the room that update_into asks for
        self._nonce = bytearray(NONCE_BYTES)
        self.token = secret.control_token()

    def _aead_of(self, count: int) -> Aead:
        stretch = count >> STRETCH_BITS
        found = self._aeads.get(stretch)
        return found if found is not None else aead(self._suite, self._secret.control_key(stretch))

    def _keep(self, count: int, made: Aead) -> None:
        """A datagram of the stretch has been sealed, or proved: a forged one puts no key in place of a good one."""
        stretch = count >> STRETCH_BITS
        if stretch not in self._aeads:
            if len(self._aeads) == _KEYS_MOST:
                del self._aeads[next(iter(self._aeads))]
            self._aeads[stretch] = made

    def _mask_of(self, datagram: memoryview) -> int:
        self._mask.update_into(datagram[HEAD_BYTES : HEAD_BYTES + _SAMPLE_BYTES], self._masked)
        found: int = _U64.unpack_from(self._masked)[0]
        return found


class ControlSealer(_Keys):
    """Belongs to one process, and one lane of it. ValueError if there is no such process number or lane."""

    def __init__(self, suite: int, secret: DatagramSecret, process: int, lane: int) -> None:
        if not (0 <= process < PROCESSES_MAX and 0 <= lane < LANES_MAX):
            raise ValueError(f"process {process}, lane {lane}: below {PROCESSES_MAX} and {LANES_MAX} expected")
        super().__init__(suite, secret)
        self._first = (process << LANE_BITS | lane) << NUMBER_BITS
        self._number = 0

    def seal(self, body: bytes | memoryview, into: memoryview) -> int:
        """Bytes of the datagram, at the start of `into`: OVERHEAD more than the body has; 0 if no number is left."""
        if self._number == NUMBERS_MAX:
            return 0
        count = self._first + self._number
        self._number += 1
        size = len(body) + OVERHEAD
        made = self._aead_of(count)
        self._keep(count, made)
        _U64.pack_into(self._nonce, _NONCE_AT, count)
        made.encrypt_into(self._nonce, body, None, into[HEAD_BYTES:size])
        _HEAD.pack_into(into, 0, self.token, count ^ self._mask_of(into))
        return size


class ControlOpener(_Keys):
    """`windows`: ControlWindows of the sender, which may outlive this process. `count`: of the latest one opened."""

    count = 0

    def __init__(self, suite: int, secret: DatagramSecret, windows: ControlWindows) -> None:
        super().__init__(suite, secret)
        self._windows = windows

    def open(self, datagram: memoryview, into: memoryview) -> int:
        """Bytes of the body, at the start of `into`; -1 for what is none, what its tag does not prove, what is old."""
        size = len(datagram) - OVERHEAD
        if size < 0 or size > len(into):
            return -1
        token, masked = _HEAD.unpack_from(datagram)
        if token != self.token:
            return -1
        count = masked ^ self._mask_of(datagram)
        if not self._windows.may_open(count):
            return -1
        made = self._aead_of(count)
        _U64.pack_into(self._nonce, _NONCE_AT, count)
        try:
            made.decrypt_into(self._nonce, datagram[HEAD_BYTES:], None, into[:size])
        except InvalidTag:
            return -1
        self._keep(count, made)
        self._windows.mark(count)
        self.count = count
        return size


class ControlWindows:
    """Which of the latest WINDOW numbers of each lane's process were opened: zeros at first, which one duty writes.

    For each lane there is the highest number with its process, and bits that are a ring (RFC 6479): a number has its
    place for good. The stores have an order: the top moves, then the bits that it has passed are cleared, then the bit
    of the number is set. So a kill at any instant makes nothing old count as new.
    """

    _TOP_BYTES = 8
    _RECORD_BYTES = 64 + WINDOW // 8
    BYTES = LANES_MAX * _RECORD_BYTES

    def __init__(self, view: memoryview) -> None:
        self._bytes = view

    def may_open(self, count: int) -> bool:
        at, order = self._place(count)
        top: int = _U64.unpack_from(self._bytes, at)[0]
        if order > top:
            return True
        behind = top - order
        return behind < WINDOW and order >= top >> NUMBER_BITS << NUMBER_BITS and not self._is_set(at, order)

    def mark(self, count: int) -> None:
        """A datagram that may_open() admits has been opened."""
        at, order = self._place(count)
        top: int = _U64.unpack_from(self._bytes, at)[0]
        if order > top:
            _U64.pack_into(self._bytes, at, order)
            if order - top >= WINDOW or order >> NUMBER_BITS != top >> NUMBER_BITS:
                first = at + self._TOP_BYTES
                self._bytes[first : first + WINDOW // 8] = bytes(WINDOW // 8)
            else:
                for passed in range(top + 1, order):
                    index, bit = self._bit(at, passed)
                    self._bytes[index] &= ~bit & 0xFF
        index, bit = self._bit(at, order)
        self._bytes[index] |= bit

    def _place(self, count: int) -> tuple[int, int]:
        """Where the record of the lane is, and the process and the number. 0 is below all of them."""
        lane = count >> NUMBER_BITS & LANES_MAX - 1
        process = count >> NUMBER_BITS + LANE_BITS
        return lane * self._RECORD_BYTES, process + 1 << NUMBER_BITS | count & NUMBERS_MAX - 1

    def _is_set(self, at: int, order: int) -> bool:
        index, bit = self._bit(at, order)
        return bool(self._bytes[index] & bit)

    def _bit(self, at: int, order: int) -> tuple[int, int]:
        place = order % WINDOW
        return at + self._TOP_BYTES + (place >> 3), 1 << (place & 7)
