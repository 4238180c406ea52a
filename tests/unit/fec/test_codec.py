"""The erasure code: parity is as the document defines it, any m losses are recovered, no other byte is touched."""

from __future__ import annotations

import random
import re
import tracemalloc
from functools import partial
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LocalError
from pipeline.fec import shard
from pipeline.fec.codec import CUTS_KEPT, Codec
from tests.support import ROOT
from tools.bench.codec import Bench

DOCUMENT = ROOT / "docs" / "fec-code.md"
GUARD = b"\xa5" * 16
N, M, SIZE = 10, 3, 160
ALL = (1 << N + M) - 1

CUTS = st.tuples(st.integers(2, shard.DATA_SHARDS_MAX), st.integers(1, shard.PARITY_SHARDS_MAX), st.integers(1, 4))


def size_of(n: int, m: int, words: int) -> int:
    """Bytes of a shard with rows of so many words."""
    return (shard.prime(n, m) - 1) * 8 * words


class Block:
    """Shards of one block at some alignment, with a guard on both sides; filled at random."""

    def __init__(self, n: int, m: int, size: int, offset: int = 0, seed: int = 0) -> None:
        self.n, self.m, self.size = n, m, size
        self.random = np.random.default_rng(seed)
        length = (n + m) * size
        self._memory = bytearray(GUARD + bytes(offset) + self.random.bytes(length) + GUARD)
        self._begin = len(GUARD) + offset
        self.area = memoryview(self._memory)[self._begin : self._begin + length]

    @property
    def cut(self) -> tuple[int, int, int]:
        return self.n, self.m, self.size

    def shard(self, i: int) -> memoryview:
        return self.area[i * self.size : (i + 1) * self.size]

    def data(self) -> bytes:
        return bytes(self.area[: self.n * self.size])

    def parity(self) -> bytes:
        return bytes(self.area[self.n * self.size :])

    def lose(self, shards: list[int]) -> int:
        """Overwrite these shards; the bits of those that are still present."""
        for i in shards:
            self.shard(i)[:] = self.random.bytes(self.size)
        return (1 << self.n + self.m) - 1 & ~sum(1 << i for i in shards)

    def guarded(self) -> bool:
        return self._memory[: len(GUARD)] == self._memory[-len(GUARD) :] == GUARD


def coded(n: int = N, m: int = M, size: int = SIZE, offset: int = 0, seed: int = 0) -> Block:
    block = Block(n, m, size, offset, seed)
    Codec().encode(block.area, *block.cut)
    return block


def defined_parity(data: bytes, n: int, m: int, size: int) -> bytes:
    """The parity shards as docs/fec-code.md defines them, row by row."""
    p = shard.prime(n, m)
    width = size // (p - 1)
    rows = [
        [int.from_bytes(data[at : at + width], "little") for at in range(i * size, (i + 1) * size, width)] + [0]
        for i in range(n)
    ]
    parity = b""
    for j in range(m):
        total = [0] * p
        for i in range(n):
            for r in range(p):
                total[r] ^= rows[i][(r + i * j) % p]
        parity += b"".join((row ^ total[-1]).to_bytes(width, "little") for row in total[:-1])
    return parity


def defined_checksum(data: bytes, n: int, m: int, size: int) -> int:
    width = size // (shard.prime(n, m) - 1)
    sums = b""
    for at in range(0, n * size, width):
        words = [int.from_bytes(data[k : k + 8], "little") for k in range(at, at + width, 8)]
        sums += (sum(words) % (1 << 64)).to_bytes(8, "little")
    return crc32(sums)


@pytest.mark.parametrize("m", range(1, shard.PARITY_SHARDS_MAX + 1))
@pytest.mark.parametrize("n", [2, 3, 10, 11, 12, 13, 14, 19, 20, 29, 30, 37])
def test_parity_is_what_the_definition_says(n: int, m: int) -> None:
    block = coded(n, m, size_of(n, m, 2))
    assert block.parity() == defined_parity(block.data(), *block.cut)


@given(CUTS, st.integers(0, 2**32), st.integers(0, 8))
@settings(max_examples=60)
def test_parity_is_what_the_definition_says_for_any_cut(cut: tuple[int, int, int], seed: int, offset: int) -> None:
    n, m, words = cut
    block = Block(n, m, size_of(n, m, words), offset, seed)
    data = block.data()
    Codec().encode(block.area, *block.cut)
    assert block.parity() == defined_parity(data, *block.cut)
    assert block.data() == data
    assert block.guarded()


def test_parity_0_is_the_plain_xor() -> None:
    block = coded(m=1)
    plain = 0
    for i in range(N):
        plain ^= int.from_bytes(block.shard(i), "little")
    assert int.from_bytes(block.shard(N), "little") == plain


def test_each_loss_of_10_and_3_is_recovered_byte_for_byte_or_refused() -> None:
    codec, block = Codec(), coded()
    original = bytes(block.area)
    recovered = refused = 0
    for present in range(ALL + 1):
        lost = [i for i in range(N + M) if not present >> i & 1]
        block.area[:] = original
        block.lose(lost)
        before = bytes(block.area)
        if len(lost) <= M:
            assert codec.recover(block.area, *block.cut, present) == sum(i < N for i in lost)
            assert block.data() == original[: N * SIZE]
            assert block.parity() == before[N * SIZE :]
            recovered += 1
        else:
            with pytest.raises(LocalError, match=f": {N} expected .*, {N + M - len(lost)} are present"):
                codec.recover(block.area, *block.cut, present)
            assert block.area == before
            refused += 1
    assert (recovered, refused) == (1 + 13 + 78 + 286, 8192 - 378)


@given(CUTS, st.integers(0, 2**32), st.integers(0, 8), st.data())
@settings(max_examples=300)
def test_any_m_losses_of_any_cut_are_recovered(
    cut: tuple[int, int, int], seed: int, offset: int, data: st.DataObject
) -> None:
    n, m, words = cut
    lost = data.draw(st.lists(st.integers(0, n + m - 1), max_size=m, unique=True), label="lost")
    block = coded(n, m, size_of(n, m, words), offset, seed)
    original = block.data()
    present = block.lose(lost)
    assert Codec().recover(block.area, *block.cut, present) == sum(i < n for i in lost)
    assert block.data() == original
    assert block.guarded()


@pytest.mark.parametrize("n", [4, 10, 37])
@pytest.mark.parametrize("m", [4, 5, 6])
def test_losses_of_data_and_of_the_parity_between_are_recovered(n: int, m: int) -> None:
    """The parity that is left is no arithmetic progression, so the equations are not Vandermonde's."""
    block = coded(n, m, size_of(n, m, 1))
    original, parity = block.data(), block.parity()
    for between in range(1, m - 1):
        block.area[n * block.size :] = parity
        present = block.lose([*range(min(n, m - 1)), n + between])
        assert Codec().recover(block.area, *block.cut, present) == min(n, m - 1)
        assert block.data() == original


@given(st.lists(st.tuples(CUTS, st.booleans()), min_size=2, max_size=8))
@settings(max_examples=60)
def test_one_codec_serves_cuts_in_any_order(calls: list[tuple[tuple[int, int, int], bool]]) -> None:
    codec = Codec()
    for seed, ((n, m, words), recover) in enumerate(calls):
        block = coded(n, m, size_of(n, m, words), seed=seed)
        original = bytes(block.area)
        if recover:
            codec.recover(block.area, *block.cut, block.lose(list(range(min(n, m)))))
        else:
            block.lose(list(range(n, n + m)))
            block.area[: n * block.size] = original[: n * block.size]
            codec.checksum(block.area, *block.cut)
            codec.encode(block.area, *block.cut)
        assert block.area == original


def test_more_cuts_than_are_kept_take_no_more_memory_and_do_no_harm() -> None:
    codec, used = Codec(), []
    tracemalloc.start()
    try:
        for words in range(3 * CUTS_KEPT, 0, -1):
            block = Block(2, 3, size_of(2, 3, words))
            codec.encode(block.area, *block.cut)
            expected = block.data()
            codec.recover(block.area, *block.cut, block.lose([0, 1]))
            assert block.data() == expected
            del block
            used.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(used[CUTS_KEPT:]) < max(used[:CUTS_KEPT]) + 100_000


def test_no_reference_to_an_area_is_kept() -> None:
    codec, area = Codec(), bytearray((N + M) * SIZE)
    codec.encode(area, N, M, SIZE)
    codec.recover(area, N, M, SIZE, ALL & ~7)
    codec.checksum(area, N, M, SIZE)
    area.append(0)  # BufferError while anything exports it


def test_nothing_is_allocated_once_the_cuts_are_known() -> None:
    codec, blocks = Codec(), [coded(N, M, size) for size in (65600, 6560, 1200)]

    def work() -> None:
        for block in blocks:
            codec.encode(block.area, *block.cut)
            codec.recover(block.area, *block.cut, ALL & ~0b0000000010110)
            codec.recover(block.area, *block.cut, ALL & ~0b0010000010100)
            codec.checksum(block.area, *block.cut)

    def held() -> int:
        """Bytes that the codec's own lines hold; another thread of this process may allocate meanwhile."""
        taken = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/pipeline/fec/*")])
        return sum(trace.size for trace in taken.traces)

    work()
    tracemalloc.start()
    try:
        work()
        held_before = held()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(20):
            work()
        _, peak = tracemalloc.get_traced_memory()
        held_after = held()
    finally:
        tracemalloc.stop()
    assert held_after - held_before < 1000
    assert peak - before < 16384  # views, and an iterator's buffer of at most 8192 elements; no copy of a large shard


@given(CUTS, st.integers(0, 2**32), st.integers(0, 8))
@settings(max_examples=60)
def test_the_checksum_is_what_the_definition_says(cut: tuple[int, int, int], seed: int, offset: int) -> None:
    n, m, words = cut
    block = Block(n, m, size_of(n, m, words), offset, seed)
    assert Codec().checksum(block.area, *block.cut) == defined_checksum(block.data(), *block.cut)


def test_the_checksum_sees_each_single_bit() -> None:
    codec, block = Codec(), Block(3, 2, 160)
    before = codec.checksum(block.area, *block.cut)
    for at in range(3 * 160):
        for bit in range(8):
            block.area[at] ^= 1 << bit
            assert codec.checksum(block.area, *block.cut) != before
            block.area[at] ^= 1 << bit


def test_the_checksum_sees_rows_in_other_places_and_swapped_shards() -> None:
    codec, block = Codec(), Block(N, M, SIZE)
    width = SIZE // 10
    original = block.data()
    seen = {codec.checksum(block.area, *block.cut)}
    for i in range(N):
        for k in range(1, 10):
            mine = block.shard(i)
            mine[:] = bytes(mine[k * width :]) + bytes(mine[: k * width])
            seen.add(codec.checksum(block.area, *block.cut))
            block.area[: N * SIZE] = original
        for other in range(i):
            block.shard(i)[:], block.shard(other)[:] = bytes(block.shard(other)), bytes(block.shard(i))
            seen.add(codec.checksum(block.area, *block.cut))
            block.area[: N * SIZE] = original
    assert len(seen) == 1 + N * 9 + N * (N - 1) // 2


def test_the_checksum_sees_a_top_bit_in_every_row() -> None:
    """Sums alone would not see it: each top bit adds 2^63, and an even number of them adds nothing."""
    codec, block = Codec(), Block(N, M, SIZE)
    before = codec.checksum(block.area, *block.cut)
    for at in range(7, SIZE, SIZE // 10):
        block.shard(0)[at] ^= 0x80
    assert codec.checksum(block.area, *block.cut) != before


@pytest.mark.parametrize("foreign", range(M))
def test_the_checksum_sees_a_recovery_from_another_blocks_parity(foreign: int) -> None:
    codec, block, other = Codec(), coded(), coded(seed=1)
    before = codec.checksum(block.area, *block.cut)
    block.shard(N + foreign)[:] = other.shard(N + foreign)
    codec.recover(block.area, *block.cut, block.lose([2, 3, 4]))
    assert codec.checksum(block.area, *block.cut) != before


@pytest.mark.parametrize(
    ("n", "m", "size", "text"),
    [
        (1, 3, 80, "code of 1 + 3 shards: 2 to 37 data shards expected, found 1: a single one is copied, not coded"),
        (
            38,
            3,
            288,
            (
                "code of 38 + 3 shards: 2 to 37 data shards expected, found 38: "
                "beyond, not every loss of 3 shards is known to be recovered"
            ),
        ),
        (
            10,
            0,
            80,
            ("code of 10 + 0 shards: 1 to 6 parity shards expected, found 0: without parity there is nothing to code"),
        ),
        (
            10,
            7,
            80,
            (
                "code of 10 + 7 shards: 1 to 6 parity shards expected, found 7: "
                "beyond, not every loss of 7 shards is known to be recovered"
            ),
        ),
        (10, 3, 0, "block of 10 + 3 shards: a multiple of 80 bytes expected as the size of a shard, found 0"),
        (10, 3, 81, "block of 10 + 3 shards: a multiple of 80 bytes expected as the size of a shard, found 81"),
        (13, 6, 96, "block of 13 + 6 shards: a multiple of 144 bytes expected as the size of a shard, found 96"),
    ],
)
def test_a_shape_outside_the_domain_is_refused_with_the_reason(n: int, m: int, size: int, text: str) -> None:
    codec, area = Codec(), bytearray(100_000)
    for call in (codec.encode, codec.checksum, partial(codec.recover, present=0b10)):
        with pytest.raises(LocalError, match=f"^{re.escape(text)}$"):
            call(area, n, m, size)
    assert not any(area)


def test_an_area_that_is_too_small_is_refused() -> None:
    area = bytearray((N + M) * SIZE - 1)
    with pytest.raises(TypeError, match="too small"):
        Codec().encode(area, N, M, SIZE)
    assert not any(area)


def documented(n: int, m: int, bytes_of_block: int) -> Block:
    """A block of the document's vectors, with zeros as parity."""
    block = Block(n, m, shard.shard_bytes(bytes_of_block, n, m))
    content = bytes((k * k + 7 * k) % 251 for k in range(bytes_of_block))
    block.area[:] = content.ljust(len(block.area), b"\0")
    return block


def test_the_documents_vectors_in_full_are_coded_and_decoded() -> None:
    found = re.findall(
        r"^(\d+) \+ (\d+) shards, a block of (\d+) bytes, shards of (\d+) bytes, checksum (\w{8})\.\n"
        r"((?:.*\n)*?)(?=\d+ \+ \d|The CRC)",
        DOCUMENT.read_text(),
        re.MULTILINE,
    )
    assert len(found) == 2
    for n, m, length, size, checksum, body in found:
        block = documented(int(n), int(m), int(length))
        shown = {
            name: bytes.fromhex(digits)
            for name, digits in re.findall(r"^(\w[\w ]*):\n\n((?: {4}[0-9a-f]+\n)+)", body, re.MULTILINE)
        }
        assert shown.pop("The data", block.data()) == block.data()
        parity = b"".join(shown[f"Parity {j}"] for j in range(block.m))
        codec = Codec()
        codec.encode(block.area, *block.cut)
        assert (str(block.size), block.parity()) == (size, parity)
        assert defined_parity(block.data(), *block.cut) == parity
        assert f"{codec.checksum(block.area, *block.cut):08x}" == checksum
        original = block.data()
        codec.recover(block.area, *block.cut, block.lose(list(range(block.m))))
        assert block.data() == original


def test_the_documents_vectors_in_short_are_what_the_code_makes() -> None:
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([0-9a-f]{8}) \| ([0-9a-f ]+) \|$",
        DOCUMENT.read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 11
    codec = Codec()
    for n, m, p, length, size, checksum, parity in rows:
        block = documented(int(n), int(m), int(length))
        codec.encode(block.area, *block.cut)
        assert (p, size) == (str(shard.prime(block.n, block.m)), str(block.size))
        assert block.parity() == defined_parity(block.data(), *block.cut)
        assert [f"{crc32(block.shard(block.n + j)):08x}" for j in range(block.m)] == parity.split()
        assert f"{codec.checksum(block.area, *block.cut):08x}" == checksum


@pytest.mark.parametrize("p", shard.PRIMES)
def test_the_documents_ways_to_divide_give_what_multiplies_back(p: int) -> None:
    random = np.random.default_rng(p)
    for k in range(1, p):
        z = random.integers(0, 256, p, np.uint8)
        even = z ^ np.bitwise_xor.reduce(z)
        by_rows, r = np.zeros(p, np.uint8), p - 1
        for _ in range(p - 1):
            by_rows[(r + k) % p] = by_rows[r] ^ even[r]
            r = (r + k) % p
        by_turns = np.bitwise_xor.reduce([np.roll(z, -odd * k) for odd in range(1, p - 1, 2)])
        for quotient in (by_rows, by_turns):
            back = quotient ^ np.roll(quotient, -k)
            assert len(set(back ^ z)) == 1  # one value in all rows


def test_the_bench_measures_the_code_beside_zfec() -> None:
    rows = Bench(4800, 4, 3, rounds=1).rows()
    assert [row.what for row in rows] == ["encode", "recover 1", "recover 2", "recover 3", "checksum"]
    assert all(row.us > 0 and (row.zfec_us or 0) > 0 for row in rows[:-1])


def test_a_codec_that_goes_from_shape_to_shape_recovers_each_as_if_it_were_the_only_one() -> None:
    sizes = {(10, 3): shard.shard_bytes(13_000, 10, 3), (10, 2): shard.shard_bytes(60_000, 10, 2)}
    kept = Codec()
    for n, m in [(10, 3), (10, 2), (10, 3), (10, 2), (10, 3), (10, 3)]:
        size = sizes[n, m]
        whole = bytearray(random.Random(n * m).randbytes(n * size) + bytes(m * size))
        Codec().encode(whole, n, m, size)
        expected = bytes(whole[: n * size])
        damaged = bytearray(bytes(m * size) + whole[m * size :])
        kept.recover(damaged, n, m, size, (1 << n + m) - 1 & ~((1 << m) - 1))
        assert damaged[: n * size] == expected
        other = bytearray(whole)
        kept.encode(other, n, m, size)
        assert other == whole
        kept.checksum(other, n, m, size)
