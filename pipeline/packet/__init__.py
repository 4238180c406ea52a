"""What is in an IP packet: headers, checksums, segmentation, flows, prefixes, addresses.

Not here: how packets are framed for a connection (wire), where they lie in memory (shm).
Used by the tun worker, and by peers for addresses and routes.
"""
