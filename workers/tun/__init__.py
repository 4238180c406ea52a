"""The tun worker: packets of a TUN queue into blocks, and blocks of the peers back into packets.

Not here: the TUN device itself (the supervisor opens it), shards (workers/fec), connections (workers/tcp).
Used by workers/__main__ alone.
"""
