"""Pure decisions: a state and the time go in, what to do comes out.

Not here: anything that reads a clock, a socket or shared memory.
Used by log, transport, the supervisor and the tcp worker.
"""
