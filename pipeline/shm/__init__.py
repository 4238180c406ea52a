"""The shared memory of an instance: every offset, the rings, the slots, the scoreboard, the peer table.

Not here: which rings a worker visits (runtime), what the bytes of a packet mean (packet, wire).
Used by everything above, and by all kinds of workers.
"""
