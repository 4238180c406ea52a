"""The parent process: it starts, watches and restarts the workers, and owns what outlives one of them.

    supervisor       the loop
    set_up           all parts, in the order in which they are made
    commands         requests to a running instance: commands, the reload
    memory_keeper    the shared memory, made anew when its names are gone
    roles            what only a server has, or only a client
    hooks, accounting, control, processes, run, kernel, instance
                     the parts, each below those before it

Not here: any packet; which peers may connect (peers); when a worker is started, ended or given up (policy).
Used by cli. No worker imports it.
"""
