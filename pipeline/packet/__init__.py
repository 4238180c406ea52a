"""Contents of an IP packet: headers, checksums, segmentation, flows, prefixes, addresses.

Not here: how packets are framed for a connection (wire), where they lie in memory (shm).
Used by most folders above, and by the tun worker.
"""
