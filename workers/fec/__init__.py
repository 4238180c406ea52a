"""The fec worker: blocks into shards with parity, and shards back into blocks.

Not here: the code itself (pipeline/fec), sending the shards (workers/tcp).
Used by workers/__main__ alone.
"""
