"""The sealed side of a light client: its session with the server, and the records of a connection.

    SwarmSeal          of a client: its key share, the keys of its session, its blocks
    SealedRecords      of a connection: frames as records, and block frames from the records that arrive

All sealing is that of the program (pipeline.sealing). A swarm does not follow epochs: a run of an hour is too long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pipeline.errors import PeerError
from pipeline.fec import shard
from pipeline.sealing import kinds
from pipeline.sealing.aead import TAG_BYTES, aead
from pipeline.sealing.block_seal import BlockOpener, BlockSealer
from pipeline.sealing.header_seal import HeaderOpener, HeaderSealer
from pipeline.sealing.key_schedule import AES_256_GCM, HeaderSecret
from pipeline.sealing.records import RecordScanner, RecordWriter
from pipeline.sealing.session import KeyShare, Offer, SealedSession
from pipeline.wire import framing, messages
from pipeline.wire.block import EPOCH_BYTES

COPIES_REMEMBERED = 64  # blocks of a stream; the copies of a block arrive within a round trip of each other
PROCESS = 1  # a swarm does not replace its processes
_HEADER_ONLY = bytes(shard.RUN_BYTES - framing.FRAME.size)  # fields of a frame without a body


class SwarmSeal:
    """What the connections of a client have in common."""

    def __init__(self) -> None:
        self._offer = Offer(AES_256_GCM)
        self.key_share = self._offer.key_share.pack()
        self._session: SealedSession | None = None
        self._numbers: Counter[int] = Counter()  # next of each stream
        self._connections = 0
        self._seen: dict[int, list[int]] = {}  # block numbers of the server in this session, by stream

    def open_connection(
        self, hello_frame: bytes, challenge: bytes, welcome_frame: bytes, certificate_hash: bytes, key: bytes
    ) -> SealedRecords:
        """The records of a connection that the server has welcomed. PeerError if it has sent no key share."""
        hello, welcome = messages.decode(hello_frame), messages.decode(welcome_frame)
        answer = KeyShare.of_server(welcome.key_share) if isinstance(welcome, messages.Welcome) else None
        if answer is None or not isinstance(hello, messages.Hello):
            raise PeerError("a welcome without a key share")
        session = self._session
        if session is None or session.context.server_key_share != answer.public:
            session = self._session = self._offer.take_answer(answer, key, hello.client_id, hello.session)
            keys = session.keys()
            self._sealer = BlockSealer(aead(keys.suite, keys.send))
            self._opener = BlockOpener(aead(keys.suite, keys.open_now))
            self._seen.clear()
        secrets = session.connection_secrets(hello_frame, challenge, welcome_frame, certificate_hash)
        return SealedRecords(
            self,
            RecordWriter(HeaderSealer(secrets.suite, HeaderSecret(secrets.send))),
            RecordScanner(HeaderOpener(secrets.suite, HeaderSecret(secrets.receive))),
            self._stream_of(kinds.LIGHT if hello.traffic_class == framing.LIGHT else kinds.PLAIN),
        )

    def _stream_of(self, kind: int) -> int:
        """For a connection: that of a lane of its own, so that no other moves its window at the server."""
        self._connections += 1
        return kinds.stream(PROCESS, self._connections % kinds.LANES_MAX, kind)

    def seal(self, stream: int, block: bytes) -> bytes:
        """The run frame of a block that is whole. `block`: of a block frame, without its header."""
        number = self._numbers[stream]
        self._numbers[stream] = number + 1
        plaintext = bytes(EPOCH_BYTES) + block
        size = len(plaintext) + TAG_BYTES
        run = bytearray(shard.RUN_BYTES + size)
        shard.SEALED_RUN.pack_into(
            run, 0, len(run) - framing.LENGTH.size, framing.RUN,
            stream, number, 1, 0, 0, 1, size, 0, int.from_bytes(block[:2], "big"),
        )  # fmt: skip
        self._sealer.seal(stream, number, 0, memoryview(plaintext), memoryview(run)[shard.RUN_BYTES :])
        return bytes(run)

    def is_new(self, stream: int, number: int) -> bool:
        """Whether a block has not come yet; from now on it has."""
        seen = self._seen.setdefault(stream, [])
        if number in seen:
            return False
        seen.append(number)
        del seen[:-COPIES_REMEMBERED]
        return True

    def open(self, run: memoryview) -> bytes:
        """The block frame in a run frame that is whole. PeerError if it cannot be opened."""
        _, _, stream, number, _, _, copy, _, size, _, _ = shard.SEALED_RUN.unpack_from(run)
        plaintext = bytearray(size)
        found = self._opener.open(stream, number, copy, run[shard.RUN_BYTES :], memoryview(plaintext))
        if found < EPOCH_BYTES:
            raise PeerError("a block that cannot be opened")
        return framing.frame(framing.BLOCK, bytes(plaintext[EPOCH_BYTES:found]))


class SealedRecords:
    """`stream`: of the blocks that go out."""

    def __init__(self, seal: SwarmSeal, writer: RecordWriter, scanner: RecordScanner, stream: int) -> None:
        self._seal = seal
        self._writer = writer
        self._scanner = scanner
        self._stream = stream

    def seal(self, frames: bytes) -> bytes:
        """The records of frames, in this order. A run goes as it is; of a frame that is no block, its type goes."""
        records, at = [], 0
        while at < len(frames):
            (length,) = framing.LENGTH.unpack_from(frames, at)
            after = at + framing.LENGTH.size + length
            kind = frames[at + framing.LENGTH.size] if length else 0
            if kind == framing.BLOCK:
                run = self._seal.seal(self._stream, frames[at + framing.FRAME.size : after])
            elif kind == framing.RUN:
                run = frames[at:after]
            else:
                run = framing.FRAME.pack(len(_HEADER_ONLY) + 1, kind) + _HEADER_ONLY
            pieces, _ = self._writer.pieces(0, run[: shard.RUN_BYTES], run[shard.RUN_BYTES :])
            self._writer.sealer.advance(1)
            records += pieces
            at = after
        return b"".join(records)

    def take_frames(self, received: bytearray) -> Iterator[memoryview]:
        """The whole frames at the start of what has arrived, blocks opened; they are taken out of it."""
        with memoryview(received) as view:
            whole = self._scanner.scan(view, 0, len(view), framing.LENGTH_LIMIT)[0]
        frames = memoryview(bytes(received[:whole]))
        del received[:whole]
        at = 0
        while at < whole:
            (length,) = framing.LENGTH.unpack_from(frames, at)
            after = at + framing.LENGTH.size + length
            yield frames[at:after]
            at = after
