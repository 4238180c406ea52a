"""Frames on a connection; docs/wire.md describes them for other implementations.

    length u32 big-endian | type u8 | body      length counts type and body

Types 0x01 and 0x02 mean what they mean in the original program. A frame of length 0 has no type and is skipped, as in
the original. A length above the limit is the peer's fault: it ends the connection (PeerError) before anything is
allocated for the frame.
"""

from __future__ import annotations

import struct

from pipeline.errors import PeerError
from pipeline.wire import charge

ALPN = "tunnel/1"
"""The name of our wire format in TLS (RFC 7301)."""

LENGTH = struct.Struct(">I")
FRAME = struct.Struct(">IB")

# types of frames
PADDING = 0x00  # in slots alone, where a frame of sealed records has left room
UNKNOWN = 0xFF  # in slots alone, for a header of a type that this program does not know
DATA = 0x01  # one bare IP packet
KEEPALIVE = 0x02  # no body
GOAWAY = 0x03  # no body: the server is about to stop
QUESTION = 0x04  # no body: is your program there? A keepalive is the answer
NOTE = 0x05  # of the other end's supervisor for ours, sealed: see pipeline.wire.notes
HELLO = 0x10  # the client's first message
WELCOME = 0x11  # the server admits the client
REFUSED = 0x12  # the server does not
CHALLENGE = 0x13  # the server asks a client with a key for a proof
PROOF = 0x14  # the client's proof
DONE = 0x15  # the server has done what the HELLO asks for beside a connection
BLOCK = 0x20  # packets with their virtio-net headers
RUN = 0x21  # shards of a block: see pipeline.fec.shard

BULK, LIGHT = 0, 1  # traffic classes of a connection or a stream: any packets, or those of flows that send little

KEEPALIVE_FRAME = FRAME.pack(1, KEEPALIVE)

COMPAT_LENGTH_LIMIT = 1496  # type and packet: MaxPacketSize 1500 - HeaderSize 4 of the original program
BLOCK_PACKETS_MAX = 512  # packets in a block; bounds the length table
BLOCK_PAYLOAD_MAX = 131072  # bytes of packets and virtio-net headers in a block
BLOCK_PREFIX = struct.Struct(">IBH")
BLOCK_LENGTH_LIMIT = BLOCK_PREFIX.size - LENGTH.size + 4 * BLOCK_PACKETS_MAX + BLOCK_PAYLOAD_MAX
LENGTH_LIMIT = BLOCK_LENGTH_LIMIT + 40  # the longest block, sealed or not, as the only shard of a run
HELLO_LENGTH_LIMIT = 512  # of a frame from a client before its welcome: the client is unauthenticated
WELCOME_LENGTH_LIMIT = 16384  # of a frame from a server before its welcome, which has routes; the client chose to dial

UNBOUNDED = 1 << 62
"""A charge that no frames reach."""

_length_at = LENGTH.unpack_from
_FRAME_CHARGE, _PACKET_CHARGE = charge.FRAME, charge.PACKET
_BARE_PACKET_CHARGE, _RUN_CHARGE = charge.FRAME + charge.PACKET, charge.FRAME + charge.RUN


def scan(view: memoryview, at: int, end: int, limit: int, most: int = UNBOUNDED) -> tuple[int, int, int, int, int, int]:
    """Find the frames in view[at:end], which begins at a frame. PeerError on a length above `limit`.

    Returns the end of the last whole frame; the end of the frame behind it, 0 while its length is not known; the number
    of whole frames; how many of them are runs; how many are bare, that is empty or keepalives; and the charge of them
    all, without that of their bytes. The search ends behind the frame with which the charge comes to `most`.
    """
    frames = runs = bare = charged = 0
    while end - at >= 4:
        (length,) = _length_at(view, at)
        if length > limit:
            raise PeerError(f"frame of {length} bytes, at most {limit} allowed")
        after = at + 4 + length
        if after > end:
            return at, after, frames, runs, bare, charged
        if length:
            kind = view[at + 4]
            if kind == BLOCK:
                charged += _FRAME_CHARGE
                if length >= BLOCK_PREFIX.size - 4:
                    charged += _PACKET_CHARGE * (view[at + 5] << 8 | view[at + 6])
            elif kind == RUN:
                runs += length < 9 or view[at + 8] < 0x80  # a stream of copies is the tun worker's (fec.shard.COPIES)
                charged += _RUN_CHARGE
            elif kind == KEEPALIVE:
                bare += 1
                charged += _FRAME_CHARGE
            else:
                charged += _BARE_PACKET_CHARGE
        else:
            bare += 1
            charged += _FRAME_CHARGE
        at = after
        frames += 1
        if charged >= most:
            break
    return at, 0, frames, runs, bare, charged


def frame(kind: int, body: bytes = b"") -> bytes:
    """A whole frame of the type `kind`. Not for the hot path."""
    return FRAME.pack(1 + len(body), kind) + body
