"""What lies in /dev/shm: every offset, the rings, the slots, the scoreboard, the peer table.

Not here: which rings a worker visits (runtime), what the bytes of a packet mean (packet, wire).
Used by every worker and by the supervisor.
"""
