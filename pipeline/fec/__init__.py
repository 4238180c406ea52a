"""Forward error correction: the code, shards, their spread over connections, reassembly, reordering.

Not here: when there is parity (policy), where shards lie in a slot (shm).
Used by runtime and by all kinds of workers.
"""
