"""The common part of all worker processes: the plan, rings and doorbells, the loop, the loss of privileges.

Not here: what a kind of worker does (workers), how workers are started and watched (supervisor).
Used by the workers, peers and the supervisor.
"""
