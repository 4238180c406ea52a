"""The tunnel as a library that starts nothing; it can be imported without root.

Each folder says in its `__init__` what belongs there, what does not, and who uses it. Imports point down:

    cli
    supervisor
    peers
    credentials    runtime
    config     fec           transport
    shm
    wire       packet        policy
    small_file
    counters   log           hang_guard
    errors     task_limit

The supervisor has layers of its own: its parts (roles, control, processes, run, kernel) know nothing of it.
"""
