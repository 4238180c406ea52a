"""The keys of `status --json`, as a table; docs/status.md has it, and a test holds it against a real answer.

    python -m pipeline.cli.status_keys     write the table in the document again

A name with [] is a list of objects. A key is promised as long as SCHEMA_VERSION stays; new ones may come at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCUMENT = Path("docs/status.md")
BEGIN = "<!-- keys: made by python -m pipeline.cli.status_keys -->\n"
END = "<!-- end of the keys -->\n"

KEYS = {
    "schema_version": "counts up when a key changes its meaning or goes",
    "works": "whether a client is connected, or a server serves; the exit status is 0 then, else 1",
    "sentence": "the state in a sentence for people",
    "advice": 'what to do; "" for nothing',
    "version": "of the program that the supervisor runs",
    "name": "of the instance",
    "mode": "client or server",
    "state": "starting, running, degraded (a worker is missing), stopping or stopped",
    "pid": "of the supervisor",
    "run": "number of this run, hexadecimal",
    "taken_ns": "when, CLOCK_MONOTONIC in ns: two answers of one run give rates",
    "tun_name": "present name of the device",
    "supervisor.pid": "its process",
    "supervisor.state": "running; stopped or traced, by somebody; or silent: it hangs",
    "supervisor.heartbeat_age_ms": "of its loop",
    "supervisor.process": "as of a worker",
    "supervisor.cpu_percent": "as of a worker",
    "supervisor.cpu_seconds": "as of a worker",
    "supervisor.rss_bytes": "as of a worker",
    "supervisor.core": "as of a worker",
    "supervisor_failures": "exceptions that the supervisor has survived",
    "uptime_seconds": "since the start",
    "workers[].name": "such as tcp-0",
    "workers[].kind": "tun, fec, dgram or tcp",
    "workers[].lane": "from 0",
    "workers[].duties": "outbound, inbound or both: those that its process has",
    "workers[].pid": "0 while it has no process",
    "workers[].state": "stopped, starting, running, stopping, backoff (dead, started again soon) or failed",
    "workers[].restarts": "how often it was started again",
    "workers[].deaths": "of these, how often because it had ended or hung, and not for a reload or a restart",
    "workers[].heartbeat_age_ms": "of the duty that is silent for longer; null before the first heartbeat",
    "workers[].process": "running, sleeping, waiting for a device, stopped, traced, zombie or dead, as the kernel says",
    "workers[].cpu_seconds": "since the process began",
    "workers[].core": "on which it ran last; null without a process",
    "workers[].cpu_percent": "of one core, lately",
    "workers[].rss_bytes": "resident memory, shared memory included",
    "workers[].cores": "numbers of the cores that it may use; empty for any",
    "workers[].counters": "those of its kind, by name",
    "lanes[].lane": "from 0",
    "lanes[].cores": "of its workers; empty if none of them is pinned",
    "lanes[].flows": "flows from TUN that have begun in it; always 0 with compat",
    "lanes[].sent_packets": "from TUN",
    "lanes[].sent_bytes": "from TUN",
    "lanes[].received_packets": "to TUN",
    "lanes[].received_bytes": "to TUN",
    "placement": "why workers are pinned, or are not: sentences",
    "spares[].kind": "tun, fec, dgram or tcp",
    "spares[].pid": "of the process that waits",
    "spares[].state": "importing or waiting",
    "spares[].rss_bytes": "resident memory",
    "rolling.left": "names of workers that a rolling restart has still to replace",
    "rolling.error": 'why a rolling restart has ended early; "" for no reason',
    "rings[].name": "such as plain-0",
    "rings[].kind": "plain, light, coded, inbound, decoded or transit",
    "rings[].lane": "from 0",
    "rings[].capacity": "slots",
    "rings[].stages[].duty": "outbound or inbound",
    "rings[].stages[].depth": "by worker, the slots that wait for it",
    "fec.mode": "off, on or auto; with off the other keys of fec are missing",
    "fec.data": "data shards of a full block",
    "fec.parity": "parity shards of a full block now, for the peer that needs most",
    "fec.parity_max": "parity shards of a full block, at most",
    "fec.copies": "copies of a light packet, beside the first, that losses call for; 0: one, as far as a budget pays",
    "fec.spacing_ms": "time between two copies, or two runs of a block, after losses in bursts; 0: as short as ever",
    "fec.peer_accepts_shards": "whether all other ends accept shards",
    "peers_connected": "peers with a connection",
    "peers_max": "peers that can be connected at a time",
    "peers": "of a server its peers, of a client its server: the keys of `peers --json`, with figures of traffic",
    "peers_left_out": "peers that there was no room for here; `peers --json` has them all",
    "accounting": "null without accounting",
    "accounting.path": "of the file that has the account",
    "accounting.failures": "writes of it that have failed",
    "accounting.problem": 'why it cannot be written now; "" if it can',
    "direct": "null where `direct` is off; else pairs of clients: docs/direct.md",
    "direct[].peers": "names: of a hub both clients, of a client its partner",
    "direct[].state": "direct or relayed",
    "direct[].reason": "why",
    "direct[].state_seconds": "since when",
    "direct[].endpoint": 'of a client, HOST:PORT where the partner is; "" if it is not known',
    "direct[].rtt_ms": "of a client, the round trip time of the direct path; null if it is not known",
    "certificate_expires": "when the certificate of this end expires, seconds since 1970; null without one",
    "hooks": "null in an answer of an older version",
    "hooks.running": "names of the commands that run now",
    "hooks.run": "commands that were run",
    "hooks.failed": "commands that have failed, or took too long",
    "hooks.dropped": "events for which no command was run, since too many waited",
    "websockets": "of a server with `websocket_addr`, its bridge; else null. Each of its processes counts anew",
    "websockets.pid": "0: it is about to be started",
    "websockets.open": "WebSockets that are open now",
    "websockets.opened": "WebSockets that were opened",
    "websockets.not_ours": "requests for anything else, answered with 404 or passed to `fallback`",
    "websockets.without_upgrade": "of these, requests at `websocket_path` that ask for no WebSocket",
    "websockets.late": "requests that did not come in time, were too long, or made room for another",
    "websockets.full": "connections that found no place",
    "websockets.bad_frames": "WebSockets that ended for frames that break RFC 6455, or for text",
    "websockets.bare_frames": "WebSockets that ended for too many frames without contents, such as pings",
    "websockets.failed": "connections to tcp workers or to `fallback` that could not be made",
    "server": "of a client, its server; null at a server",
    "server.host": "as in remote_addr; of several servers, that of the one where the client is",
    "server.port": "as in remote_addr",
    "server.way": '`proxy`, `proxy_command` or `websocket` through which it is dialed, in words; "" for none',
    "server.connections": "connections to it that stand",
    "server.carrier": 'by which blocks go to it now: udp, faketcp, tcp or none; "" without a connection',
    "server.connections_wanted": "connections that are kept up",
    "server.trouble": "reasons why not all stand, or cannot be replaced",
    "server.failed_attempts": "since the trouble began",
    "server.trouble_seconds": "since the first failed attempt",
    "server.version": 'of its program; "" if it does not tell it',
    "server.mtu": "of its device; 0 before the first connection",
    "server.fec": "whether it accepts shards; null before the first connection",
    "server.clock_ahead_seconds": "of its clock before ours; null if it does not tell it",
    "server.why": 'of several servers: why the client is at this one; else ""',
    "server.why_seconds": "for how long it has been there; 0 with one server",
    "server.list[].server": "of several servers, each, the preferred one first",
    "server.list[].state": 'current; standby, if a connection stands by; dialed; else ""',
    "server.uplinks[].interface": "of a client with several, each, in the order of the setting",
    "server.uplinks[].role": "main or backup",
    "server.uplinks[].connections": "on it that stand",
    "server.uplinks[].connections_wanted": "on it that are kept up",
    "server.uplinks[].carries": "whether packets go on it now: not while it is silent, too far, or a backup in reserve",
    "server.uplinks[].rtt_ms": "the shortest round trip time of its connections; 0 without one",
    "server.uplinks[].sent_bytes": "by its present connections",
    "server.uplinks[].received_bytes": "by its present connections",
    "server.uplinks[].resent_segments": "by its present connections, as of a connection",
    "server.uplinks[].sent_segments": "by its present connections, as of a connection",
    "server.uplinks[].trouble": "reasons why not all of its connections stand",
    "notes": "sentences about all that is wrong or in doubt",
    "left_out[].kind": "address or route",
    "left_out[].entry": "that is wanted and not in the kernel",
    "left_out[].from_server": "whether the server asks for it",
    "left_out[].reason": "why it is left out",
    "full_tunnel": "null in an answer of an older version",
    "full_tunnel.on": "whether everything from this machine goes into the tunnel, or nowhere",
    "full_tunnel.kill_switch": "whether it is shut",
    "full_tunnel.dns": "DNS servers that have been set",
    "full_tunnel.lan_dns": "whether DNS servers in the LAN can be asked",
    "connections[].worker": "its tcp worker",
    "connections[].serial": "its number at that worker",
    "connections[].state": "handshake, established, or standby: established, to a server where the client is not",
    "connections[].address": "of the other end",
    "connections[].peer": "index of the peer",
    "connections[].lane": "whose tun worker its packets go to",
    "connections[].traffic_class": "bulk or light",
    "connections[].sent_bytes": "on the wire",
    "connections[].received_bytes": "on the wire",
    "connections[].age_seconds": "since its state began",
    "connections[].last_received_ms_ago": "milliseconds since the last byte",
    "connections[].rtt_ms": "smoothed round trip time",
    "connections[].resent_segments": "lost TCP segments sent again: `retrans` of `ss -ti` without `dsack_dups`",
    "connections[].sent_segments": "TCP segments with data, those sent again included",
    "connections[].congestion": 'the congestion control of its socket, such as `cubic`; `""` before it is established',
    "connections[].uplink": "number of its uplink, from 0; null if the client has one uplink alone",
    "counters": "by name, the sum over all workers (`pipeline/counters.py`)",
    "events": "the last events; `events --json` has their keys",
}

FREE = ("counters", "workers[].counters", "rings[].stages[].depth", "peers", "events")
"""Objects whose keys are names of other things, and lists that have a document of their own."""


def keys_of(value: Any, at: str = "") -> Iterator[str]:
    """The keys of an answer, as this table names them."""
    match value:
        case dict() if at not in FREE:
            if not value:
                yield at
            for name, each in value.items():
                yield from keys_of(each, f"{at}.{name}" if at else name)
        case [dict(), *_] if at not in FREE:
            for each in value:
                yield from keys_of(each, f"{at}[]")
        case _:
            yield at


def table() -> str:
    rows = [f"| `{name}` | {meaning} |" for name, meaning in KEYS.items()]
    return "\n".join(["", "| key | meaning |", "|---|---|", *rows, "", ""])


def with_table(document: str) -> str:
    """The document, with its table replaced by the current one."""
    intro, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    return intro + begin + table() + end + after


if __name__ == "__main__":
    file = Path(__file__).parents[2] / DOCUMENT
    file.write_text(with_table(file.read_text()))
