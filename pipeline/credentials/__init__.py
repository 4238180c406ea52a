"""Secrets and what they make: keys, certificates, invitations, the state directory.

Not here: how a proof travels (wire), who may connect (peers).
Used by the supervisor and the command; workers get what they need handed down.
"""
