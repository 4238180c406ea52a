"""The operating system, asked with care: files that may be anything, calls that may never return,
tasks that it may refuse, an inheritance from a careless parent.

Not here: sockets (transport), the kernel's network (supervisor.kernel). Used by everything that reads files or starts
threads and processes.
"""
