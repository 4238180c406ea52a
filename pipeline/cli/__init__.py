"""The command `tunnel-supervisor`: arguments in, text and an exit status out.

Not here: what a command does; that is the supervisor's, or credentials' and peers'.
Used by nobody.
"""
