"""The command `top`: a live picture of a running instance, drawn from snapshots of its shared memory.

    state      the choices of the user, and what each key changes: pure
    keys       bytes of a terminal as keys: pure
    picture    the pipeline as it is wired, with the fill of the rings: pure
    tables     workers, peers, connections, drops, events: pure
    frame      all of it in the rows and columns that there are: pure
    screen     the terminal: entered, drawn on, and left as it was found

Not here: how a snapshot is made (observe). Used by pipeline.cli.top_command alone, which imports it late:
it needs `rich`.
"""
