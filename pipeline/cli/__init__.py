"""The command `tunnel-supervisor`: arguments in, text and an exit status out.

Not here: what a command does; that is in supervisor, credentials and peers.
Used by the installed command alone.
"""
