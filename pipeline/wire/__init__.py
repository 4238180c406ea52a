"""The bytes on a connection: frames, blocks, the handshake and its proofs. Bytes in, values out.

Not here: sockets and TLS (transport), slots (shm), shards (fec).
Used by everything above, and by all kinds of workers.
"""
