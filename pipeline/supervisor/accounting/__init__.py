"""The account of what peers receive and send, kept by a running instance, and the quotas that follow from it."""
