"""The dgram worker: sealed blocks as UDP datagrams, and datagrams as sealed blocks again.

Not here: cutting and assembling blocks (pipeline/datagram), what is decided about a path (pipeline/policy), the keys of
blocks (workers/tun).
Used by workers/__main__ alone.
"""
