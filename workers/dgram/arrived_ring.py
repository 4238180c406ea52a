"""Whole blocks of peers go into the slots of a lane's arrived ring, for the tun workers.

A slot holds runs of one peer, for one lane, of one traffic class: several blocks if they are small. Each is a run that
is whole, sealed as it came. Where peers share the ring, none of them takes all of it (pipeline.policy.ring_shares).
"""

from __future__ import annotations

from pipeline.datagram.arriving_block import Block, Single
from pipeline.fec import shard
from pipeline.policy.lane_pairs import own_lane
from pipeline.policy.ring_shares import RingShares
from pipeline.runtime.port import Port
from pipeline.sealing.kinds import lane_of
from pipeline.shm.layout import PEER_INDEX_MASK, SLOT_HEADER_BYTES, SLOT_TAKEN_BACK
from pipeline.shm.slot import SLOT_BYTES_MIN, write_header
from pipeline.wire import charge, framing
from workers.dgram.path import TakenBack
from workers.dgram.reception import Reception

RUNS_AT = SLOT_HEADER_BYTES
RUNS_MOST = 64
"""Runs in a slot: they cost the next duty a third of a millisecond, as in workers.tcp.frame_reader."""

_CLASS_BIT, _LANE_SHIFT, _LANES_MASK = (
    1 << 32,
    35,
    31,
)  # of a key: the stream is its upper half (pipeline.sealing.kinds)

assert RUNS_AT + shard.RUN_BYTES + shard.BLOCK_BYTES_MAX <= SLOT_BYTES_MIN


class ArrivedRing:
    """`lanes`: of this end."""

    def __init__(self, port: Port, lanes: int, is_shared: bool) -> None:
        self._port = port
        self._lanes = lanes
        self._shares = RingShares(port.ring.capacity) if is_shared else None
        self.ready = port.ready
        self.wake_ahead = port.wake_ahead

    def take_back(self, block: TakenBack) -> bool:
        """Put a block of ours into a free slot. False if there is none."""
        port = self._port
        if not port.ready():
            return False
        slot = port.slot()
        size = len(block.sealed)
        end = RUNS_AT + shard.RUN_BYTES + size
        shard.SEALED_RUN.pack_into(
            slot, RUNS_AT, end - RUNS_AT - framing.LENGTH.size, framing.RUN,
            block.stream, block.number, 1, 0, 0, 1, size, block.epoch, 0,
        )  # fmt: skip
        slot[RUNS_AT + shard.RUN_BYTES : end] = block.sealed
        lane = own_lane(lane_of(block.stream), block.peer_handle & PEER_INDEX_MASK, self._lanes)
        write_header(slot, RUNS_AT, end - RUNS_AT, lane, block.peer_handle, block.stream & 1, 0, SLOT_TAKEN_BACK)
        port.advance(1)
        return True

    def take_blocks(self, reception: Reception, now: int) -> int:
        """Fill free slots with the blocks of a session that may be delivered. Slots; if there were too few of them, a
        block is held."""
        assembly = reception.assembly
        block = reception.held or assembly.pop(now)
        if block is None:
            return 0
        port, shares, peer = self._port, self._shares, reception.session.peer
        free = port.ready()
        done = 0
        while block is not None and done < free:
            if shares is not None:
                shares.follow(free - done)
                if not shares.may_add(peer):
                    break
            slot = port.slot(done)
            key = block.key
            at, runs = RUNS_AT, 0
            while True:
                at = assembly.write(block, slot, at)
                runs += 1
                block = assembly.pop(now)
                if (
                    block is None
                    or runs == RUNS_MOST
                    or (block.key ^ key) >> 32
                    or at + shard.RUN_BYTES + _size(block) > len(slot)
                ):
                    break
            lane = own_lane(key >> _LANE_SHIFT & _LANES_MASK, peer, self._lanes)
            write_header(slot, RUNS_AT, at - RUNS_AT, lane, reception.session.peer_handle, int(bool(key & _CLASS_BIT)))
            if shares is not None:
                shares.add(peer, at - RUNS_AT + runs * charge.RUN)
            done += 1
        reception.held = block
        if done:
            port.advance(done)
        return done


def _size(block: Block | Single) -> int:
    return block.size if isinstance(block, Block) else len(block.content)
