"""Traffic and clients for a lab: streams, pings, floods, swarms of clients.

Not here: what is concluded from them (bench).
"""
