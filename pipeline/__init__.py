"""The tunnel as a library that starts nothing; importable without root.

Imports point down the floors:

    floor 0   errors, layout                                            names and numbers
    floor 1   wire, block, ippacket, superpacket, session, proof        pure: bytes and `now` in, values out
              counters, backoff, bucket, gate, routes, pool
              shard, stripe, flowtable, adapt, pace, row
              codec, codec_field, codec_views, order, buffers, reassembly
              segment, ring, doorbell, board, peers                     shared memory
    floor 2   config, config_*, addresses, membership                   what was configured, and who gets what
              keys, certificates, invitation, peerfile, tls, tls_*      secrets, and what they protect
              plan, topology, port, worker, privileges, log             what every worker process is
              tun, connection, intake, dialer, desk, carrier, ways      what the kinds of workers are made of
    floor 3   restart, cores, instance, memory, process, settings       the supervisor
              device, firewall, listener, notify, reload
              credentials, identities, state, hub, desks, server_end, client_end
              status, status_text, control, supervisor, cli, cli_keys
"""
