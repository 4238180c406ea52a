"""The tunnel as a library that starts nothing; importable without root.

Imports point down the floors:

    floor 0   errors, layout                                            names and numbers
    floor 1   wire, block, ippacket, session, counters, backoff         pure: bytes and `now` in, values out
              shard, stripe, flowtable, adapt, pace, codec, codec_field, codec_views, order, buffers, reassembly
              segment, ring, doorbell, board                            shared memory
    floor 2   config, config_fields, config_values, config_checks, config_notices, config_text
              plan, topology, port, tun, connection, intake, dialer, log, worker, carrier, ways
    floor 3   restart, cores, instance, memory, process, settings, device, listener, notify, reload
              status, status_text, control, supervisor, cli
"""
