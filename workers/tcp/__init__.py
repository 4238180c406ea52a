"""The tcp worker: what the rings hold onto connections, and what connections bring into a ring.

Not here: sockets and TLS as such (pipeline/transport), who may connect (pipeline/peers).
Used by workers/__main__ alone.
"""
