"""The dgram worker: sealed blocks to peers and from them in UDP datagrams.

Not here: the format of segments and the assembly of blocks (pipeline/datagram), decisions about a path
(pipeline/policy). Used by workers/__main__ alone.
"""
