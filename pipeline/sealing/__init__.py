"""Encryption of packets: the secrets of a session, the seals of blocks and of headers, and the records on a connection.

Here: everything between the key shares of a handshake and the bytes on a connection that carries sealed records
(docs/wire.md). Not here: who gets a key (`pipeline.supervisor`), and TLS, which carries the handshake
(`pipeline.transport`). All of it is pure but for the replay windows, which are in memory that is given.
"""
