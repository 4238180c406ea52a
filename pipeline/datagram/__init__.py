"""Sealed blocks as datagrams: how a block is cut into segments, and how segments become blocks again.

Here: the format of segments, and what is computed for each of them. Not here: sockets (`workers.dgram`), the pace and
the size of segments (`pipeline.policy`), the code itself (`pipeline.fec`). All of it is pure.
"""
