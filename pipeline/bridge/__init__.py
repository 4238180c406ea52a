"""The bridge: a process that speaks what must stay around a connection for its life.

A tcp worker speaks TCP and nothing else. At a client, TLS to a proxy, the pipes of a command or a WebSocket may lie
between it and the server. Then its connections lead to this process on the loopback, which carries their bytes on. At a
server, WebSockets of a web server in front end in such a process. Without these settings there is no bridge.

Not here: its start and its end (supervisor), the request of a worker (wire/bridge_approach).
Used by nothing but itself: the supervisor starts it as a module.
"""
