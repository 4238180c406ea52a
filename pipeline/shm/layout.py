"""Every offset in shared memory, once; a test compares `docs/shared-memory.md` with this file.

There are five kinds of segment. A *ring* carries slots. On the *scoreboard* workers publish their heartbeats and
counters. The *peer table* says which peers are connected, and how packets find them. The *overview* is what the
supervisor knows, for observers. The *event log* has the last events.

Each word has one writer. Words that different processes write never share a 64-byte cache line. Cursors keep 128 bytes
apart, because x86-64 prefetches lines in pairs, and some arm64 processors have lines of 128 bytes.

The areas that one worker alone writes begin and end at pages of the machine, which have 16 or 64 KiB on some arm64
machines. All else is equal on every machine.
"""

from __future__ import annotations

import mmap

# fmt: off
CACHE_LINE = 64
PAGE = 4096                # unit of slots, and of what no worker maps by itself
MAP_PAGE = max(PAGE, mmap.PAGESIZE)   # a page of this machine: what one process writes is whole ones (mmap(2), offset)
MASK64 = (1 << 64) - 1

LAYOUT_VERSION = 12

# --- every segment -----------------------------------------------------------------------------
MAGIC_AT = 0               # u64, creator: one of the five below
VERSION_AT = 8             # u64, creator: LAYOUT_VERSION
RING_MAGIC = int.from_bytes(b"tnl-ring", "little")
SCOREBOARD_MAGIC = int.from_bytes(b"tnlboard", "little")
PEER_TABLE_MAGIC = int.from_bytes(b"tnlpeers", "little")
OVERVIEW_MAGIC = int.from_bytes(b"overview", "little")
EVENT_LOG_MAGIC = int.from_bytes(b"tnlevent", "little")

# --- ring --------------------------------------------------------------------------------------
RING_SLOTS_AT = 16         # u64, creator: capacity, a power of two because cursors wrap at 2^64
RING_SLOT_BYTES_AT = 24    # u64, creator
RING_MEMBERS_AT = 32       # u64, creator: number of cursors
RING_CURSORS_AT = MAP_PAGE # one cursor per member, on pages that every member can write to
CURSOR_STRIDE = 128

# --- slot: `slot` writes and reads it ----------------------------------------------------------
SLOT_START_AT = 0          # u64, stage 0: offset in the slot of the first wire byte
SLOT_LENGTH_AT = 8         # u64, stage 0: number of wire bytes
SLOT_CONSUMER_AT = 16      # u64, stage 0: position, in the next group, of the worker that acts on this slot
SLOT_PEER_HANDLE_AT = 24   # u64, stage 0: the peer that it goes to (outbound) or comes from (inbound)
SLOT_RUNS_AT = 32          # u64, the stage before the tcp workers: rows in the run table; 0: the slot is one unit
SLOT_SKIPPABLE_AT = 40     # u64, the stage before the tcp workers: shards that may stay unsent
SLOT_SKIP_OWNER_AT = 48    # u64, the stage before the tcp workers: position of the member that may skip them
SLOT_TRAFFIC_CLASS_AT = 56 # u32, stage 0 of transit, returned: class of the block; inbound, arrived, decoded: class of
                           # the connection or stream it comes from
SLOT_NUMBER_AT = 60        # u32, stage 0 of coded and transit: number of the block in its stream
SLOT_HEADER_BYTES = CACHE_LINE
SLOT_RUN_TABLE_AT = 64     # the stage before the tcp workers: rows of RUN_ROW_BYTES
RUN_ROW_BYTES = 16         # u16 consumer, u16 ordinal, u16 shards, u16 offset of header, u32 start, u32 length
RUNS_MAX = 40
SLOT_RUN_HEADERS_AT = SLOT_RUN_TABLE_AT + RUN_ROW_BYTES * RUNS_MAX   # frame headers of runs
RUN_HEADER_STRIDE = 32
SLOT_RUN_HEADERS_END = SLOT_RUN_HEADERS_AT + RUN_HEADER_STRIDE * RUNS_MAX
SLOT_CONNECTION_AT = 32    # u64, inbound: serial number of the connection, in the place of the number of runs;
                           # arrived: 0, or SLOT_TAKEN_BACK
SLOT_TAKEN_BACK = 1        # a block of ours that no datagram has brought to a partner
SLOT_SEALED_AT = 2016      # of a sealed block: its run header ends here
SLOT_BODY_AT = PAGE        # outbound: the first packet; frame header and length table end here

# --- scoreboard --------------------------------------------------------------------------------
SCOREBOARD_WORKERS_AT = 16 # u64, creator: number of pages
SCOREBOARD_PAGES_AT = MAP_PAGE # one page per worker
SCOREBOARD_PAGE_BYTES = MAP_PAGE

# in a worker's page
DUTIES = ("outbound", "inbound")
DUTY_AT = 0                # one area per duty
DUTY_STRIDE = 128
DUTY_HEARTBEAT_AT = 0      # u64, duty: CLOCK_MONOTONIC ns of its last loop
DUTY_WAITING_AT = 8        # u64, duty of a tcp worker: peers that wait for the rate of all
DUTY_SLEEPING_AT = 64      # u64, duty: 1 while it waits on its doorbell
CONNECTIONS_AT = 384       # u64, tcp inbound duty of a server: connections that it has, handshakes included
COUNTERS_AT = 512          # u64 each, index = counter id
COUNTERS_MAX = 320

assert COUNTERS_AT + 8 * COUNTERS_MAX <= SCOREBOARD_PAGE_BYTES

# --- peer table --------------------------------------------------------------------------------
PEER_TABLE_CAPACITY_AT = 16     # u64, creator: peers that can be connected at a time
PEER_TABLE_LANES_AT = 24        # u64, creator
PEER_TABLE_STATUS_ROWS_AT = 32  # u64, creator: status rows of a tcp worker
PEER_TABLE_DATAGRAMS_AT = 40    # u64, creator: 1 if there are dgram workers
ROUTES_VERSION_AT = 128    # u64, supervisor: odd while it writes routes, higher afterwards
ROUTES_COUNT_AT = 136      # u64, supervisor
TOTAL_RATE_AT = 144        # u64, supervisor: bytes a second of all peers together, each way, or 0
ROUTES_AT = PAGE           # rows of ROUTE_BYTES
ROUTE_BYTES = 32           # u8 4 or 6, u8 prefix length, 6 bytes 0, i64 peer handle, 16 bytes address
ROUTES_MAX = 8192
RECORDS_AT = -(-(ROUTES_AT + ROUTE_BYTES * ROUTES_MAX) // MAP_PAGE) * MAP_PAGE
RECORD_WORDS = CACHE_LINE // 8
PEER_INDEX_BITS = 12       # of a peer handle: the index; above it, a number that never repeats while the instance runs
PEER_INDEX_MASK = (1 << PEER_INDEX_BITS) - 1
FIRST_PEER_HANDLE = 1 << PEER_INDEX_BITS   # of peer 0 where there is no other
SERVER = 0                 # the peer index of a client's server; partners have those above

# kinds of records, each with RECORD_WORDS for every peer: words in it. The first exists once, the others in each lane.
(PEER_HANDLE, PEER_RATE, PEER_BULK_RATE,
 PEER_OFFLOADS) = range(4)                             # supervisor: current handle; bytes a second each way, or 0;
                                                       # one more than its own bytes a second of the class bulk, or 0;
                                                       # TUN_F_* bits of a partner, which has no connection
(LINK_ESTABLISHED, LINK_OFFLOADS, LINK_LIGHT, LINK_ACCEPTS_SHARDS, LINK_REQUESTS, LINK_LANES,
 LINK_RECEIVED_BYTES, LINK_COUNTED_BYTES) = range(8)   # tcp inbound duty: see runtime.link_view
STATE_WORDS = LINK_RECEIVED_BYTES   # of a link record: those that change with the connections, and not with bytes
REQUESTS_BITS = 8       # of LINK_REQUESTS: parity; then as many of copies; above them the spacing, in microseconds
LIGHT_LANES_SHIFT = 32  # of LINK_LANES: a bit for each lane of bulk connections, above them one of light ones
SENT_BYTES, SENT_DROPPED = range(2)                    # tcp outbound duty
(NUMBER_CODED, NUMBER_LIGHT, NUMBER_PACKETS, NUMBER_COPIED, NUMBER_LIGHT_BYTES, NUMBER_BULK_BYTES,
 NUMBER_VOICE_CLASS, NUMBER_BULK_CLASS) = range(8)     # tun outbound duty: next block number of a stream; packets of
                                                       # bulk for the peer; bytes of copies for it; bytes of packets
                                                       # for it by how they go, and what rules have made of them
(TRANSIT_NUMBER_BULK, TRANSIT_NUMBER_LIGHT, TRANSIT_CHARGE, TRANSIT_EPOCH_OPENED, TRANSIT_EPOCH_ACKNOWLEDGED,
 TRANSIT_UNOPENED) = range(6)                          # tun inbound duty: next block number of a transit stream; charge
                                                       # that only this duty could know; with the peer handle in front,
                                                       # the latest epoch that it has opened, and the latest of ours
                                                       # that the peer has; a connection that brings blocks which cannot
                                                       # be opened, and how many in a row
RECOVERED_BLOCKS, EXPIRED_BLOCKS = range(2)            # fec inbound duty
PATH_BULK, PATH_LIGHT, PATH_RATES = range(3)           # tcp inbound duty: see runtime.link_paths
(ARRIVED_BULK_BYTES, ARRIVED_LIGHT_BYTES, ARRIVED_TRANSIT_BULK_BYTES, ARRIVED_TRANSIT_LIGHT_BYTES,
 ARRIVED_TRANSIT_FROM) = range(5)                      # tun inbound duty: bytes of packets from the peer, and of
                                                       # other peers' for it, by the traffic class that they came in;
                                                       # the handle of the peer whose packets for it were the latest
LANE_RECORDS = ("link", "sent", "number", "transit", "recovered", "path", "arrived")

STATUS_ROW_BYTES = 128     # tcp inbound duty: one connection each, behind the records, lane by lane

# kinds of records behind the status rows, lane by lane, of an instance with dgram workers
(DATAGRAM_PATH, DATAGRAM_STATE, DATAGRAM_RECEIVED_BYTES, DATAGRAM_RECOVERED, DATAGRAM_EXPIRED, DATAGRAM_SINCE,
 DATAGRAM_HOST, DATAGRAM_HOST_LOWER) = range(8)        # dgram inbound duty: the current peer handle while a path is
                                                       # open here, else 0; blocks that parity has made whole, and
                                                       # blocks given up; the others: see shm.datagram_status. The
                                                       # record of fake TCP has STATE, SINCE, HOST and HOST_LOWER alone
DATAGRAM_WAITS = 1 << 63   # beside the handle in DATAGRAM_PATH: no path is open, and blocks wait for one here
(DATAGRAM_SENT_BYTES, DATAGRAM_DROPPED, DATAGRAM_RATE, DATAGRAM_ROUND_TRIP, DATAGRAM_SENT_SEGMENTS,
 DATAGRAM_LOST_SEGMENTS, DATAGRAM_CUT,
 DATAGRAM_BULK_BY_TCP) = range(8)                      # dgram outbound duty: blocks dropped; pace in bytes a second;
                                                       # microseconds; segments, and of these the lost ones; 256 times
                                                       # the data rows of a codeword, and its parity rows; the current
                                                       # peer handle while bulk goes by TCP although a path is open
DATAGRAM_RECORDS = ("datagram_in", "datagram_out", "datagram_fake_tcp")

# tables of records, and the status rows of a worker, have pages of their own: a process maps those that it writes

# --- overview: the supervisor alone writes it --------------------------------------------------
OVERVIEW_BYTES_AT = 16     # u64, creator: size of each of the two places
OVERVIEW_COUNT_AT = 128    # u64: texts published so far; the last one is in place (count modulo 2)
OVERVIEW_HEARTBEAT_AT = 136 # u64: CLOCK_MONOTONIC ns of the supervisor's last loop
OVERVIEW_ENDED_AT = 144    # u64: 1 once this memory is in use no more
OVERVIEW_PLACES_AT = PAGE  # the two places: u64 length, and the text

# --- event log: the supervisor alone writes it -------------------------------------------------
EVENTS_KEPT_AT = 16        # u64, creator: number of records
EVENT_COUNT_AT = 128       # u64: events written so far
EVENTS_AT = PAGE           # the records
EVENT_BYTES = 512          # u64 number + 1 (0: empty); u64 time, u64 begin of counting, u32 count, u16 kind, u16 bytes
                           # of the subject, u16 bytes of the text; subject, text
EVENTS_KEPT = 512

# fmt: on


def records_at(capacity: int, lane: int, kind: str) -> int:
    """Offset of a lane's records of one kind of LANE_RECORDS."""
    return RECORDS_AT + records_bytes(capacity) * (1 + len(LANE_RECORDS) * lane + LANE_RECORDS.index(kind))


def records_bytes(capacity: int) -> int:
    """Size of a table of records."""
    return _whole_pages(CACHE_LINE * capacity)


def status_rows_at(capacity: int, lanes: int, rows: int, lane: int) -> int:
    """Offset of a tcp worker's status rows."""
    return records_at(capacity, lanes, LANE_RECORDS[0]) + status_rows_bytes(rows) * lane


def status_rows_bytes(rows: int) -> int:
    """Size of a tcp worker's status rows."""
    return _whole_pages(STATUS_ROW_BYTES * rows)


def datagram_records_at(capacity: int, lanes: int, rows: int, lane: int, kind: str) -> int:
    """Offset of a lane's records of one kind of DATAGRAM_RECORDS."""
    tables = len(DATAGRAM_RECORDS) * lane + DATAGRAM_RECORDS.index(kind)
    return status_rows_at(capacity, lanes, rows, lanes) + records_bytes(capacity) * tables


def peer_table_bytes(capacity: int, lanes: int, rows: int, datagrams: bool = False) -> int:
    """Size of the peer table."""
    return datagram_records_at(capacity, lanes, rows, lanes if datagrams else 0, DATAGRAM_RECORDS[0])


def overview_bytes(place: int) -> int:
    """Size of an overview with two places of so many bytes, which are whole pages."""
    return OVERVIEW_PLACES_AT + 2 * place


def event_log_bytes() -> int:
    """Size of the event log."""
    return EVENTS_AT + EVENTS_KEPT * EVENT_BYTES


def ring_slots_at(members: int) -> int:
    """Offset of slot 0 in a ring with so many cursors."""
    return _whole_pages(RING_CURSORS_AT + CURSOR_STRIDE * members)


def ring_bytes(members: int, slots: int, slot_bytes: int) -> int:
    """Size of a ring."""
    return ring_slots_at(members) + slots * slot_bytes


def scoreboard_bytes(workers: int) -> int:
    """Size of the scoreboard."""
    return SCOREBOARD_PAGES_AT + workers * SCOREBOARD_PAGE_BYTES


def page_at(worker: int) -> int:
    """Offset of a worker's page in the scoreboard."""
    return SCOREBOARD_PAGES_AT + worker * SCOREBOARD_PAGE_BYTES


def _whole_pages(size: int) -> int:
    return -(-size // MAP_PAGE) * MAP_PAGE
