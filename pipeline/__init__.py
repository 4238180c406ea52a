"""The tunnel as a library that starts nothing; importable without root.

Imports point down the floors:

    floor 0   errors, layout            names and numbers
    floor 1   wire, block, ippacket, session, counters, backoff     pure: bytes and `now` in, values out
              segment, ring, doorbell, board                        shared memory
    floor 2   config*, plan, topology, tun, connection, intake, log, worker
    floor 3   restart, cores, device, supervisor, control, cli
"""
