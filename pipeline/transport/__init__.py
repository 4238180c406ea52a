"""TCP connections and TLS over them, on sockets that never block.

Not here: what the bytes mean (wire), which connection carries what (workers/tcp).
Used by the tcp worker, credentials, runtime and the supervisor.
"""
