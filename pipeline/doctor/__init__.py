"""Looks for what is wrong with this machine, with an instance, with its network, and says what to do about each thing.

    examine(subject)    every check of the table, side by side, within a bounded time

Here: checks, each with a part that looks (the edge) and a part that judges facts (pure), and the support bundle.
Not here: reading a configuration (config), and what a supervisor finds out by itself (its notes, in `status`).
Used by the commands alone: `doctor`, `check` and `support-bundle`. Nothing of the machine is changed.
"""
