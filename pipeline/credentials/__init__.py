"""Credentials: keys, certificates, invitations, TLS settings, and the state directory that keeps them.

Not here: how a proof travels (wire), which peers may connect (peers).
Used by everything above. Workers get what they need handed down.
"""
