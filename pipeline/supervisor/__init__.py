"""The parent process: it starts, watches and restarts the workers, and owns what outlives one of them.

Not here: any packet. Who may connect is decided in peers, when to restart in policy.
Used by the command alone.
"""
