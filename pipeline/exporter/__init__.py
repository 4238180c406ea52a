"""The exporter: a process of its own that shows a running instance to Prometheus and to a browser.

It only reads: shared memory, mapped read-only, and requests of HTTP. Nothing of the instance waits for it or needs it.
Not here: its start and its restarts (supervisor), what is read from shared memory (observe).
Used by the supervisor alone, as `python -I -m pipeline.exporter`.
"""
