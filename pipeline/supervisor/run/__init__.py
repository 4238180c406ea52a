"""One run of an instance: its plan, its names in shared memory, the account and the settings of its workers.

It is made at a start, and made anew in part by a reload or when names vanish. Not here: any process.
"""
