"""Hours of mixed traffic under random faults: does the tunnel come back each time, unaltered, and does nothing grow?

Not here: load generators (load), networks (lab), the measurement of one thing at a time (bench).
"""
