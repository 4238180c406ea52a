"""The peers of a server: which clients may connect, and the index, addresses and routes that each of them gets.

Not here: the connections themselves (workers/tcp), the layout of the peer table (shm).
Used by the supervisor, for a server.
"""
