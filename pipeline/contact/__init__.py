"""A word with a server outside of any instance: on one connection, with a key, and without a session.

Here: the exchange of an invitation's key, the word that a client leaves, and the question whether a server knows a key.
Not here: what becomes of the answers (cli, doctor), and the connections of an instance (transport).
Used by `join` and `leave`, and by the doctor. Nothing of the machine is changed.
"""
