"""The parent process: it starts, watches and restarts the workers, and owns what outlives one of them.

Not here: any packet; which peers may connect (peers); when a worker is started, ended or given up (policy).
Used by cli. No worker imports it.
"""
