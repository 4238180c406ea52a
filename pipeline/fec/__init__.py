"""Forward error correction: the code, shards, how they are spread, reassembled and put in order.

Not here: when there is parity (policy), where shards lie in a slot (shm).
Used by the fec worker and, to spread copies, by the tun worker.
"""
