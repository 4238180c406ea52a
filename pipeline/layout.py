"""Floor 0. Every offset in shared memory, once; `docs/shared-memory.md` is held against this file by a test.

Two kinds of segment. A *ring* carries slots, the *board* carries what workers say about themselves.
Each word has one writer. Words that different processes write never share a 64-byte cache line
(cursors keep 128, because x86-64 prefetches lines in pairs).
"""

from __future__ import annotations

CACHE_LINE = 64
PAGE = 4096
MASK64 = (1 << 64) - 1

LAYOUT_VERSION = 2

# --- ring segment ------------------------------------------------------------------------------
RING_MAGIC = int.from_bytes(b"tnl-ring", "little")
RING_MAGIC_AT = 0          # u64, creator
RING_VERSION_AT = 8        # u64, creator
RING_SLOTS_AT = 16         # u64, creator: capacity, a power of two because cursors wrap at 2^64
RING_SLOT_BYTES_AT = 24    # u64, creator
RING_MEMBERS_AT = 32       # u64, creator: number of cursors
RING_CURSORS_AT = 128      # one cursor per member
CURSOR_STRIDE = 128

# --- slot --------------------------------------------------------------------------------------
SLOT_START_AT = 0          # u64, stage 0: offset in the slot of the first wire byte
SLOT_LENGTH_AT = 8         # u64, stage 0: number of wire bytes
SLOT_MEMBER_AT = 16        # u64, stage 0: the member of the next group that acts on this slot
SLOT_PACKETS_AT = 24       # u64, stage 0: packets in it (outbound) or connection serial (inbound)
SLOT_RUNS_AT = 32          # u64, the stage before the tcp workers: runs in the table; 0: the slot is one, `member`'s
SLOT_SPARE_AT = 40         # u64, the same: shards that may stay unsent
SLOT_SPARER_AT = 48        # u64, the same: the member that may leave them so
SLOT_HEADER_BYTES = CACHE_LINE
SLOT_TABLE_AT = 64         # rows of RUN_ROW_BYTES, the same
RUN_ROW_BYTES = 16         # u16 member, u16 connection, u16 shards, u16 head, u32 start, u32 length
RUNS_MAX = 40
SLOT_HEADS_AT = SLOT_TABLE_AT + RUN_ROW_BYTES * RUNS_MAX   # frame headers of runs
RUN_HEAD_BYTES = 32
SLOT_HEADS_END = SLOT_HEADS_AT + RUN_HEAD_BYTES * RUNS_MAX
SLOT_BODY_AT = PAGE        # outbound: first packet; frame header and length table end here

# --- board segment -----------------------------------------------------------------------------
BOARD_MAGIC = int.from_bytes(b"tnlboard", "little")
BOARD_MAGIC_AT = 0         # u64, creator
BOARD_VERSION_AT = 8       # u64, creator
BOARD_WORKERS_AT = 16      # u64, creator
BOARD_PAGES_AT = PAGE      # one page per worker
BOARD_PAGE_BYTES = 4 * PAGE

# in a worker's page
DUTIES = ("outbound", "inbound")
DUTY_AT = 0                # one line per duty
DUTY_STRIDE = 128
DUTY_HEARTBEAT_AT = 0      # u64, duty: CLOCK_MONOTONIC ns of its last loop
DUTY_SLEEPING_AT = 64      # u64, duty: 1 while it waits on its doorbell
CARRIER_AT = 256           # tcp inbound duty
CARRIER_ESTABLISHED_AT = 256   # u64: connections that carry packets now
CARRIER_OFFLOADS_AT = 264      # u64: offloads that every connected peer accepts
CARRIER_CLIENT_AT = 272        # u64: identity of the connected client (server)
CARRIER_SESSION_AT = 280       # u64: its session
CARRIER_LIGHT_AT = 288         # u64: those of the established that are for light flows
CARRIER_DECODES_AT = 296       # u64: 1 if every connected peer takes shards
CARRIER_PARITY_AT = 304        # u64: parity shards that the state of the connections calls for
CARRIER_WORDS = 7
COUNTERS_AT = 512          # u64 each, index = counter id
COUNTERS_MAX = 256
ROWS_AT = PAGE             # connection rows, tcp inbound duty
ROW_BYTES = 128
ROWS_MAX = 64

assert COUNTERS_AT + 8 * COUNTERS_MAX <= ROWS_AT
assert ROWS_AT + ROW_BYTES * ROWS_MAX <= BOARD_PAGE_BYTES


def ring_slots_at(members: int) -> int:
    """Offset of slot 0 in a ring segment with that many cursors."""
    end = RING_CURSORS_AT + CURSOR_STRIDE * members
    return -(-end // PAGE) * PAGE


def ring_bytes(members: int, slots: int, slot_bytes: int) -> int:
    """Size of a ring segment."""
    return ring_slots_at(members) + slots * slot_bytes


def board_bytes(workers: int) -> int:
    """Size of the board segment."""
    return BOARD_PAGES_AT + workers * BOARD_PAGE_BYTES


def page_at(worker: int) -> int:
    """Offset of a worker's page in the board."""
    return BOARD_PAGES_AT + worker * BOARD_PAGE_BYTES
