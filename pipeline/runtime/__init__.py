"""What every worker process is: its plan, its rings and doorbells, its loop, its loss of privileges.

Not here: what a kind of worker does (workers), how workers are started and watched (supervisor).
Used by the workers, and by the supervisor for the plan and the TUN device.
"""
