"""The processes of the workers: where they run, how they are started, told, watched, ended, and replaced by spares.

Not here: when that happens (policy.lifecycle, policy.spare_schedule, policy.rolling_restart).
"""
