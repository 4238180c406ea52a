"""Fake TCP: segments behind TCP headers, which nothing sends again and nothing holds back (docs/fake-tcp.md).

Here: the numbers in these headers, and which packets the kernel gives to which socket. Not here: sockets
(`pipeline.transport.fake_tcp`), and who opens them (`pipeline.supervisor.kernel`). All of it is pure.
"""
