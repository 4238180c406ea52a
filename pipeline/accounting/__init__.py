"""Accounting: what each peer has received and sent, by day and by month, in a file that outlives every process.

Not here: where the numbers come from and what follows from them (policy, peers, supervisor/accounting).
Used by the supervisor, which writes, and by the command `peers`, which reads.
"""

FILE_NAME = "accounting.sqlite"
"""In the state directory."""
