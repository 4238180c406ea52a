"""The bytes on a connection: frames, blocks, handshake messages and their proofs. Bytes in, values out.

Not here: sockets and TLS (transport), slots (shm), shards (fec).
Used by the tcp and fec workers, by peers, and by the load tools.
"""
