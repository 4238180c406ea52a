"""The requests to a running instance, carried out: the commands of the control socket, and the reload.

Not here: the commands about peers (roles); the socket itself (control).
"""
