"""The erasure code against zfec on equal blocks, in one run: python -m tools.bench.codec [--json]

Each round times one codec and then the other, for a few milliseconds each. A value is the median of its rounds, a
ratio is the median of the rounds' ratios; so a machine that changes its speed changes both sides. Time is the
thread's time on a processor. GB/s counts the bytes of the block. Before the timing, both codecs have recovered the
block.

Each codec is called in the way that it is made for. Ours codes in place, in an area at an odd address, as in a slot
of a ring. zfec takes the shards as `bytes` and returns new ones; it is asked for the parity shards alone. The lost
shards are the first data shards.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import msgspec
import numpy as np

from pipeline.errors import LocalError
from pipeline.fec import codec, shard
from tools.bench.command import DONE, FAILED, print_result
from tools.bench.machine import Machine, machine

try:
    import zfec
except ImportError:
    zfec = None

SCHEMA_VERSION = 1
BLOCKS = (65536, 12000, 4800)  # a full block, the least that is cut into 10 data shards, and one that is cut into 4
LARGE = ((26_880, 20, 4), (38_976, 29, 5), (53_280, 37, 6))
"""Block, n and m of codewords whose rows are datagrams: of 1344 bytes, and 1440 with n = 37."""

SLICE_NS = 2_000_000  # short beside a time slice of the kernel, so that most rounds are not interrupted


class Row(msgspec.Struct, kw_only=True):
    """One thing measured on one block. Without a peer its fields are None."""

    block: int
    n: int
    m: int
    what: str
    us: float
    gigabytes: float
    """A second, of the block."""
    zfec_us: float | None = None
    zfec_gigabytes: float | None = None
    ratio: float | None = None
    """How many times as fast as zfec."""


class Result(msgspec.Struct, kw_only=True):
    schema_version: int = SCHEMA_VERSION
    machine: Machine
    numpy: str
    zfec: str | None
    rounds: int
    rows: list[Row]


class Bench:
    """One block, coded by both."""

    def __init__(self, block: int, n: int, m: int, rounds: int) -> None:
        codec.check(n, m)
        self._block, self._n, self._m, self._rounds = block, n, m, rounds
        self._size = shard.shard_bytes(block, n, m)
        self._codec = codec.Codec()
        content = np.random.default_rng(1).bytes(block).ljust(n * self._size, b"\0")
        self._area = memoryview(bytearray(1 + (n + m) * self._size))[1:]
        self._area[: len(content)] = content
        self._content = content
        self._encode()

    def rows(self) -> list[Row]:
        n, m, size = self._n, self._m, self._size
        found = [self._row("encode", self._encode, self._zfec_encode())]
        for lost in range(1, min(m, n - 1) + 1):
            present = (1 << n + m) - (1 << lost)
            self._area[: lost * size] = bytes(lost * size)
            self._recover(present)
            self._expect(self._area[: n * size], "the codec")
            found.append(self._row(f"recover {lost}", partial(self._recover, present), self._zfec_recover(lost)))
        found.append(self._row("checksum", lambda: self._codec.checksum(self._area, n, m, size), None))
        return found

    def _encode(self) -> None:
        self._codec.encode(self._area, self._n, self._m, self._size)

    def _recover(self, present: int) -> None:
        self._codec.recover(self._area, self._n, self._m, self._size, present)

    def _zfec_shards(self) -> list[bytes]:
        return [self._content[i * self._size : (i + 1) * self._size] for i in range(self._n)]

    def _zfec_encode(self) -> Callable[[], list[bytes]] | None:
        if zfec is None:
            return None
        encoder, shards = zfec.Encoder(self._n, self._n + self._m), self._zfec_shards()
        parity = tuple(range(self._n, self._n + self._m))
        return lambda: encoder.encode(shards, parity)

    def _zfec_recover(self, lost: int) -> Callable[[], list[bytes]] | None:
        encode = self._zfec_encode()
        if encode is None:
            return None
        decoder = zfec.Decoder(self._n, self._n + self._m)
        shards = encode()[:lost] + self._zfec_shards()[lost:]
        numbers = [*range(self._n, self._n + lost), *range(lost, self._n)]
        self._expect(b"".join(decoder.decode(shards, numbers)), "zfec")
        return lambda: decoder.decode(shards, numbers)

    def _expect(self, content: bytes | memoryview, codec: str) -> None:
        if content != self._content:
            raise LocalError(f"{codec} has not recovered the block of {self._n} + {self._m} shards")

    def _row(self, what: str, ours: Callable, theirs: Callable | None) -> Row:
        pair = [ours] if theirs is None else [ours, theirs]
        calls = [max(1, round(SLICE_NS / _nanoseconds(call, 3))) for call in pair]
        rounds = [
            [_nanoseconds(call, count) / 1000 for call, count in zip(pair, calls, strict=True)]
            for _ in range(self._rounds)
        ]
        us = [statistics.median(each) for each in zip(*rounds, strict=True)]
        row = Row(block=self._block, n=self._n, m=self._m, what=what, us=us[0], gigabytes=self._block / us[0] / 1000)
        if theirs is not None:
            row.zfec_us, row.zfec_gigabytes = us[1], self._block / us[1] / 1000
            row.ratio = statistics.median(other / one for one, other in rounds)
        return row


def _nanoseconds(call: Callable, times: int) -> float:
    """One call's share of so many."""
    begun = time.thread_time_ns()
    for _ in range(times):
        call()
    return (time.thread_time_ns() - begun) / times


def table(result: Result) -> str:
    """For people."""
    lines = [
        (f"{result.machine}, numpy {result.numpy}, zfec {result.zfec or 'is not installed'}; {result.rounds} rounds")
    ]
    block = None
    for row in result.rows:
        if row.block != block:
            block = row.block
            lines += [
                "",
                (
                    f"{f'block of {block} bytes, {row.n} + {row.m}':<32}{'us':>9}{'GB/s':>8}"
                    f"{'zfec us':>10}{'GB/s':>8}{'ratio':>8}"
                ),
            ]
        line = f"{row.what:<32}{row.us:>9.1f}{row.gigabytes:>8.2f}"
        if row.ratio is not None:
            line += f"{row.zfec_us:>10.1f}{row.zfec_gigabytes:>8.2f}{row.ratio:>8.1f}"
        lines.append(line)
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    if zfec is None:
        print(
            "bench_codec: zfec is not installed, so there is nothing to compare with; "
            "pip install 'tunnel-supervisor[test]'",
            file=sys.stderr,
        )
    rows = []
    try:
        for block, n, m in _shapes(options):
            rows += Bench(block, n, m, options.rounds).rows()
    except LocalError as error:
        print(f"bench_codec: {error}", file=sys.stderr)
        return FAILED
    result = Result(
        machine=machine(), numpy=np.__version__, zfec=zfec and zfec.__version__, rounds=options.rounds, rows=rows
    )
    print_result(options, result, table)
    return DONE


def _shapes(options: argparse.Namespace) -> list[tuple[int, int, int]]:
    """Block, n and m."""
    blocks = [(block, shard.data_shards(block, options.data), options.parity) for block in options.block or BLOCKS]
    return blocks if options.block else [*blocks, *LARGE]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.codec", description="Measure the erasure code against zfec on this machine."
    )
    parser.add_argument(
        "--block",
        type=int,
        action="append",
        metavar="BYTES",
        help=f"size of a block; may be repeated ({', '.join(map(str, BLOCKS))}, and codewords of datagrams)",
    )
    parser.add_argument("--data", type=int, default=10, metavar="N", help="data shards of a large block (%(default)s)")
    parser.add_argument("--parity", type=int, default=3, metavar="N", help="parity shards (%(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=40, metavar="N", help="one and the other in turn, this often (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="for programs; carries schema_version")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
