"""Who may connect to a server, under which index, with which addresses and routes.

Not here: the connections themselves (workers/tcp), the peer table's layout (shm).
Used by the supervisor's server role and by the commands about peers.
"""
