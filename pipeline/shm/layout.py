"""Every offset in shared memory, once; `docs/shared-memory.md` is held against this file by a test.

Three kinds of segment. A *ring* carries slots, the *board* carries what workers say about themselves, the *peers* who
is connected and how packets find them.
Each word has one writer. Words that different processes write never share a 64-byte cache line
(cursors keep 128, because x86-64 prefetches lines in pairs).
"""

from __future__ import annotations

# fmt: off
CACHE_LINE = 64
PAGE = 4096
MASK64 = (1 << 64) - 1

LAYOUT_VERSION = 3

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
SLOT_CONSUMER_AT = 16        # u64, stage 0: the member of the next group that acts on this slot
SLOT_PEER_HANDLE_AT = 24          # u64, stage 0: the seat that it goes to (outbound) or comes from (inbound)
SLOT_RUNS_AT = 32          # u64, the stage before the tcp workers: runs in the table; 0: the slot is one, `member`'s
SLOT_SKIPPABLE_AT = 40         # u64, the same: shards that may stay unsent
SLOT_SKIP_OWNER_AT = 48        # u64, the same: the member that may leave them so
SLOT_TRAFFIC_CLASS_AT = 56       # u32, stage 0 of transit, inbound and decoded: what its connection or stream is for
SLOT_NUMBER_AT = 60        # u32, stage 0 of coded and transit: the block's number in its peer's stream
SLOT_HEADER_BYTES = CACHE_LINE
SLOT_TABLE_AT = 64         # rows of RUN_ROW_BYTES, the same
RUN_ROW_BYTES = 16         # u16 member, u16 connection, u16 shards, u16 head, u32 start, u32 length
RUNS_MAX = 40
SLOT_HEADS_AT = SLOT_TABLE_AT + RUN_ROW_BYTES * RUNS_MAX   # frame headers of runs
RUN_HEAD_BYTES = 32
SLOT_HEADS_END = SLOT_HEADS_AT + RUN_HEAD_BYTES * RUNS_MAX
SLOT_BODY_AT = PAGE        # outbound: first packet; frame header and length table end here

# --- board segment -----------------------------------------------------------------------------
SCOREBOARD_MAGIC = int.from_bytes(b"tnlboard", "little")
SCOREBOARD_MAGIC_AT = 0         # u64, creator
SCOREBOARD_VERSION_AT = 8       # u64, creator
SCOREBOARD_WORKERS_AT = 16      # u64, creator
SCOREBOARD_PAGES_AT = PAGE      # one page per worker
SCOREBOARD_PAGE_BYTES = PAGE

# in a worker's page
DUTIES = ("outbound", "inbound")
DUTY_AT = 0                # one line per duty
DUTY_STRIDE = 128
DUTY_HEARTBEAT_AT = 0      # u64, duty: CLOCK_MONOTONIC ns of its last loop
DUTY_SLEEPING_AT = 64      # u64, duty: 1 while it waits on its doorbell
COUNTERS_AT = 512          # u64 each, index = counter id
COUNTERS_MAX = 256

assert COUNTERS_AT + 8 * COUNTERS_MAX <= SCOREBOARD_PAGE_BYTES

# --- peers segment -----------------------------------------------------------------------------
PEER_TABLE_MAGIC = int.from_bytes(b"tnlpeers", "little")
PEER_TABLE_MAGIC_AT = 0         # u64, creator
PEER_TABLE_VERSION_AT = 8       # u64, creator
PEER_TABLE_CAPACITY_AT = 16     # u64, creator: peers that can be connected at a time
PEER_TABLE_LANES_AT = 24        # u64, creator
PEER_TABLE_ROWS_AT = 32         # u64, creator: connection rows of a tcp worker
ROUTES_VERSION_AT = 128    # u64, supervisor: odd while it writes routes, higher afterwards
ROUTES_COUNT_AT = 136      # u64, supervisor
ROUTES_AT = PAGE           # rows of ROUTE_BYTES
ROUTE_BYTES = 32           # u8 4 or 6, u8 prefix length, 6 bytes 0, i64 seat, 16 bytes address
ROUTES_MAX = 8192
RECORDS_AT = ROUTES_AT + ROUTE_BYTES * ROUTES_MAX
RECORD_WORDS = CACHE_LINE // 8
PEER_INDEX_BITS = 12             # of a seat: the index of a peer; above it, how many occupations there have been before
PEER_INDEX_MASK = (1 << PEER_INDEX_BITS) - 1
FIRST_PEER_HANDLE = 1 << PEER_INDEX_BITS    # of peer 0 where there is no other

# kinds of lines, each with RECORD_WORDS for every peer: words in it. The first once, the others once per lane.
PEER_HANDLE, PEER_RATE = range(2)                      # supervisor: the current seat; bytes a second each way or 0
(LINK_ESTABLISHED, LINK_OFFLOADS, LINK_LIGHT, LINK_ACCEPTS_SHARDS, LINK_PARITY,
 LINK_RECEIVED_BYTES) = range(6)                        # tcp inbound duty: see pipeline.carrier
SENT_BYTES, SENT_DROPPED = range(2)                  # tcp outbound duty
NUMBER_CODED, NUMBER_LIGHT = range(2)                # tun outbound duty: the next block of the peer's stream
TRANSIT_BULK, TRANSIT_LIGHT = range(2)               # tun inbound duty: the same of blocks between peers
LANE_RECORDS = ("carrier", "sent", "numbers", "transit")

ROW_BYTES = 128            # connection rows, tcp inbound duty; behind the lines, lane by lane

# fmt: on


def records_at(capacity: int, lane: int, kind: str) -> int:
    """Offset of a lane's lines of one kind of LANE_RECORDS."""
    return RECORDS_AT + CACHE_LINE * capacity * (1 + len(LANE_RECORDS) * lane + LANE_RECORDS.index(kind))


def rows_at(capacity: int, lanes: int, rows: int, lane: int) -> int:
    """Offset of a tcp worker's connection rows."""
    return records_at(capacity, lanes, LANE_RECORDS[0]) + ROW_BYTES * rows * lane


def peer_table_bytes(capacity: int, lanes: int, rows: int) -> int:
    """Size of the peers segment."""
    return rows_at(capacity, lanes, rows, lanes)


def ring_slots_at(members: int) -> int:
    """Offset of slot 0 in a ring segment with that many cursors."""
    end = RING_CURSORS_AT + CURSOR_STRIDE * members
    return -(-end // PAGE) * PAGE


def ring_bytes(members: int, slots: int, slot_bytes: int) -> int:
    """Size of a ring segment."""
    return ring_slots_at(members) + slots * slot_bytes


def scoreboard_bytes(workers: int) -> int:
    """Size of the board segment."""
    return SCOREBOARD_PAGES_AT + workers * SCOREBOARD_PAGE_BYTES


def page_at(worker: int) -> int:
    """Offset of a worker's page in the board."""
    return SCOREBOARD_PAGES_AT + worker * SCOREBOARD_PAGE_BYTES
