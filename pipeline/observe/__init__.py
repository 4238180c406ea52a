"""A running instance as an observer sees it: attached read-only, by its name, without a word from any process.

Not here: what is done with it (cli, supervisor), and anything that writes shared memory.
Used by the supervisor for `status`, by the commands `status`, `events` and `top`, and by the exporter.
"""
