"""Networks of namespaces on this machine, with emulated links.

Not here: traffic (load), measurements (bench).
"""
