"""The tunnel as a library that starts nothing; it can be imported without root.

Each folder says in its `__init__` what belongs there, what does not, and who uses it. Imports point down:

    cli            exporter
    doctor         service
    supervisor
    observe
    peers          accounting
    credentials    runtime
    config     fec           transport
    shm
    log            system
    wire       packet        policy
    counters   events        version
    errors
    secret_text

The modules that lie here are the words that all processes share: what is counted, what happens, what is logged, what
goes wrong. The supervisor has layers of its own: its parts know nothing of it.
"""
