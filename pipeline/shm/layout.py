"""Every offset in shared memory, once; `docs/shared-memory.md` is held against this file by a test.

Three kinds of segment. A *ring* carries slots, the *board* carries what workers say about themselves, the *peers* who
is connected and how packets find them.
Each word has one writer. Words that different processes write never share a 64-byte cache line
(cursors keep 128, because x86-64 prefetches lines in pairs).
"""

from __future__ import annotations

# fmt: off  (tables)
CACHE_LINE = 64
PAGE = 4096
MASK64 = (1 << 64) - 1

LAYOUT_VERSION = 3

# --- ring segment ------------------------------------------------------------------------------
RING_MAGIC = int.from_bytes(b"tnl-ring", "little")
RING_MAGIC_AT = 0  # u64, creator
RING_VERSION_AT = 8  # u64, creator
RING_SLOTS_AT = 16  # u64, creator: capacity, a power of two because cursors wrap at 2^64
RING_SLOT_BYTES_AT = 24  # u64, creator
RING_MEMBERS_AT = 32  # u64, creator: number of cursors
RING_CURSORS_AT = 128  # one cursor per member
CURSOR_STRIDE = 128

# --- slot --------------------------------------------------------------------------------------
SLOT_START_AT = 0  # u64, stage 0: offset in the slot of the first wire byte
SLOT_LENGTH_AT = 8  # u64, stage 0: number of wire bytes
SLOT_MEMBER_AT = 16  # u64, stage 0: the member of the next group that acts on this slot
SLOT_SEAT_AT = 24  # u64, stage 0: the seat that it goes to (outbound) or comes from (inbound)
SLOT_RUNS_AT = 32  # u64, the stage before the tcp workers: runs in the table; 0: the slot is one, `member`'s
SLOT_SPARE_AT = 40  # u64, the same: shards that may stay unsent
SLOT_SPARER_AT = 48  # u64, the same: the member that may leave them so
SLOT_PURPOSE_AT = 56  # u32, stage 0 of transit, inbound and decoded: what its connection or stream is for
SLOT_NUMBER_AT = 60  # u32, stage 0 of coded and transit: the block's number in its peer's stream
SLOT_HEADER_BYTES = CACHE_LINE
SLOT_TABLE_AT = 64  # rows of RUN_ROW_BYTES, the same
RUN_ROW_BYTES = 16  # u16 member, u16 connection, u16 shards, u16 head, u32 start, u32 length
RUNS_MAX = 40
SLOT_HEADS_AT = SLOT_TABLE_AT + RUN_ROW_BYTES * RUNS_MAX  # frame headers of runs
RUN_HEAD_BYTES = 32
SLOT_HEADS_END = SLOT_HEADS_AT + RUN_HEAD_BYTES * RUNS_MAX
SLOT_BODY_AT = PAGE  # outbound: first packet; frame header and length table end here

# --- board segment -----------------------------------------------------------------------------
BOARD_MAGIC = int.from_bytes(b"tnlboard", "little")
BOARD_MAGIC_AT = 0  # u64, creator
BOARD_VERSION_AT = 8  # u64, creator
BOARD_WORKERS_AT = 16  # u64, creator
BOARD_PAGES_AT = PAGE  # one page per worker
BOARD_PAGE_BYTES = PAGE

# in a worker's page
DUTIES = ("outbound", "inbound")
DUTY_AT = 0  # one line per duty
DUTY_STRIDE = 128
DUTY_HEARTBEAT_AT = 0  # u64, duty: CLOCK_MONOTONIC ns of its last loop
DUTY_SLEEPING_AT = 64  # u64, duty: 1 while it waits on its doorbell
COUNTERS_AT = 512  # u64 each, index = counter id
COUNTERS_MAX = 256

assert COUNTERS_AT + 8 * COUNTERS_MAX <= BOARD_PAGE_BYTES

# --- peers segment -----------------------------------------------------------------------------
PEERS_MAGIC = int.from_bytes(b"tnlpeers", "little")
PEERS_MAGIC_AT = 0  # u64, creator
PEERS_VERSION_AT = 8  # u64, creator
PEERS_CAPACITY_AT = 16  # u64, creator: peers that can be connected at a time
PEERS_LANES_AT = 24  # u64, creator
PEERS_ROWS_AT = 32  # u64, creator: connection rows of a tcp worker
ROUTES_VERSION_AT = 128  # u64, supervisor: odd while it writes routes, higher afterwards
ROUTES_COUNT_AT = 136  # u64, supervisor
ROUTES_AT = PAGE  # rows of ROUTE_BYTES
ROUTE_BYTES = 32  # u8 4 or 6, u8 prefix length, 6 bytes 0, i64 seat, 16 bytes address
ROUTES_MAX = 8192
LINES_AT = ROUTES_AT + ROUTE_BYTES * ROUTES_MAX
LINE_WORDS = CACHE_LINE // 8
PEER_BITS = 12  # of a seat: the index of a peer; above it, how many occupations there have been before
PEER_MASK = (1 << PEER_BITS) - 1
FIRST_SEAT = 1 << PEER_BITS  # of peer 0 where there is no other

# kinds of lines, each with LINE_WORDS for every peer: words in it. The first once, the others once per lane.
PEER_SEAT, PEER_RATE = range(2)  # supervisor: the current seat; bytes a second each way or 0
(CARRIER_ESTABLISHED, CARRIER_OFFLOADS, CARRIER_LIGHT, CARRIER_DECODES, CARRIER_PARITY, CARRIER_RECEIVED) = range(
    6
)  # tcp inbound duty: see workers.tcp.link_publisher
SENT_BYTES, SENT_DROPPED = range(2)  # tcp outbound duty
NUMBER_CODED, NUMBER_LIGHT = range(2)  # tun outbound duty: the next block of the peer's stream
TRANSIT_BULK, TRANSIT_LIGHT = range(2)  # tun inbound duty: the same of blocks between peers
LANE_LINES = ("carrier", "sent", "numbers", "transit")

ROW_BYTES = 128  # connection rows, tcp inbound duty; behind the lines, lane by lane


def lines_at(capacity: int, lane: int, kind: str) -> int:
    """Offset of a lane's lines of one kind of LANE_LINES."""
    return LINES_AT + CACHE_LINE * capacity * (1 + len(LANE_LINES) * lane + LANE_LINES.index(kind))


def rows_at(capacity: int, lanes: int, rows: int, lane: int) -> int:
    """Offset of a tcp worker's connection rows."""
    return lines_at(capacity, lanes, LANE_LINES[0]) + ROW_BYTES * rows * lane


def peers_bytes(capacity: int, lanes: int, rows: int) -> int:
    """Size of the peers segment."""
    return rows_at(capacity, lanes, rows, lanes)


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
