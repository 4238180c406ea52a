"""Entries of ours in the kernel: the device, its addresses and routes, the clamp's table, the listening socket.

Each entry is ours alone, is put back when somebody takes it, and goes at the end. The wishes are decided elsewhere
(policy.reconcile, policy.pushed).
"""
