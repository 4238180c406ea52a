"""Measurements: the tunnel beside the bare link in the same run, and their reports.

Not here: the generators (load) and the networks (lab).
"""
