"""The state of an instance in one sentence that a person can use, and what to do if it does not work.

Pure: a snapshot goes in. Of what it has, little is taken for granted, since the instance may be of another version.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.log import printable
from pipeline.observe.process_stat import HALTED

UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
REASONS_MAX = 2  # each lane of a client may have one
SHARE_FROM = 200  # segments; a share of fewer says nothing about the path

ADVICE = (
    ("connection refused", "Check that the server runs, and that the port in remote_addr is its port."),
    ("no answer", "Check that the server is up, and that no firewall on the way drops TCP to this port."),
    ("the name is unknown", "Check the spelling of remote_addr, and the DNS server of this machine."),
    ("the name has no address", "Check the spelling of remote_addr, and the DNS server of this machine."),
    ("the DNS server", "Check the DNS server of this machine (/etc/resolv.conf): is it behind the tunnel?"),
    ("the resolver", "Check the DNS server of this machine (/etc/resolv.conf): is it behind the tunnel?"),
    ("no route", "Check the network of this machine: `ip route get` with the server's address."),
    ("the network interface", "Check the network of this machine: `ip link`."),
    ("firewall of this machine", "Check the firewall of this machine: `nft list ruleset`."),
    ("does not know us", "Ask the server's administrator whether this peer was revoked: `peers` on the server."),
    ("has not proved", "The server has another key: ask its administrator for a new invitation."),
    ("fingerprint", "The server has another certificate: ask its administrator for a new invitation."),
    ("is disabled", "Ask the server's administrator: `peers enable` on the server lets it in again."),
    ("has been revoked", "Ask the server's administrator for a new invitation."),
    ("quota", "Ask the server's administrator for a greater quota, or wait for the next month."),
    ("newer session", "Another machine has this client's key: give each machine an invitation of its own."),
    ("too many sessions", "Another machine may have this client's key: give each machine an invitation of its own."),
    ("another client is connected", "The server serves one client at a time: see multi_client there."),
    ("number of peers", "The server is full: see max_clients there, and revoke peers that are gone."),
    ("number of connections", "See max_connections_per_client on the server, and connections here."),
    ("address is left", "Enlarge the subnet of tunnel_addr on the server, or revoke peers that are gone there."),
    ("requested address", "Leave tunnel_addr out of the configuration of this client: the server gives it an address."),
    ("this server speaks version", "Upgrade the older one of the two ends."),
    ("seals no blocks", "Upgrade the older one of the two ends, and give both the same `encryption`."),
    ("another certificate than ours", "Something between the two ends ends TLS and shows a certificate of its own."),
    ("repeats a key share", "Several servers may answer at remote_addr: put the address of one of them there."),
    ("is used up", "Wait a moment. If it goes on for minutes, restart this client."),
    ("for several machines", "Use `tunnel-supervisor join` with this invitation."),
    ("this invitation", "Ask the server's administrator for a new invitation."),
    ("cannot record", "Ask the server's administrator to look at the disk of the server."),
    ("certificate", "`tunnel-supervisor doctor` looks at the certificates and at the clock."),
    ("speaks no TLS", "Check the port in remote_addr, and for a proxy on the way."),
    ("is no tunnel", "Check the port in remote_addr, and for a proxy on the way."),
)
"""By words of the reason (pipeline.transport.failure_words, pipeline.wire.handshake). The first that fits counts."""

OF_PROXY = (
    ("connection refused", "Check that the proxy runs, and host and port in `proxy`."),
    ("no answer from the server", "Check that the server is up, and remote_addr: the proxy dials what stands there."),
    ("no answer", "Check that the proxy is up, and host and port in `proxy`."),
    ("the name", "Check the spelling of `proxy`, and the DNS server of this machine."),
    ("does not accept this user", "Check the file of proxy_login_file; `reload` reads it again."),
    ("proxy_login_file", "Put USER:PASSWORD into a file of mode 0600, and name it in proxy_login_file."),
    ("this path", "Check host and path in `websocket`, and the location in the web server's configuration."),
    ("server behind it", "Check that the server runs, and where the web server leads this path."),
    ("TLS to the web server", "Check `websocket`, the clock, and the certificate of the web server (proxy_ca_file)."),
    ("captive portal", "Log in at the portal with a browser, or check host and port in `proxy`."),
    ("proxy_command has ended", "The log has what it has said; run it by hand, as the user of the workers."),
    ("proxy_command cannot", "Check the path in proxy_command, and that the user of the workers may run it."),
    ("needs proxy_command", "Let a program that knows that login stand between: docs/proxy.md."),
    ("port 443", "Let the server listen on port 443, or ask the proxy's administrator."),
    ("this proxy's port", "Check host, port and scheme in `proxy`."),
    ("no proxy", "Check host, port and scheme in `proxy`."),
    ("understand CONNECT", "Check host, port and scheme in `proxy`."),
    ("the proxy wants TLS", "Check the scheme in `proxy`."),
    ("the proxy", "Check remote_addr, and ask the proxy's administrator whether this machine may go there."),
)
"""Of a client with a proxy these come first."""

OF_WEBSOCKET = (
    ("connection refused", "Check that the web server runs, and host and port in `websocket`."),
    ("no answer", "Check that the web server is up, and host and port in `websocket`."),
    ("the name", "Check the spelling of `websocket`, and the DNS server of this machine."),
)
"""Of one that dials a web server these come before."""

RECOVERED = ("fec.blocks_recovered_", "dgram.blocks_recovered")
"""Beginnings of the names of counters."""

DOCTOR = "`tunnel-supervisor doctor` looks for the cause."


class Health(NamedTuple):
    """`works`: a client is connected, a server serves. `advice`: "" where there is nothing to do."""

    works: bool
    sentence: str
    advice: str = ""


def describe(snapshot: dict[str, Any]) -> Health:
    if snapshot["state"] not in ("running", "degraded"):
        return Health(False, f"{snapshot['state']} ({spoken(snapshot['uptime_seconds'])} after its start)")
    if snapshot["mode"] == "client":
        return _of_client(snapshot)
    return _of_server(snapshot)


def _of_client(snapshot: dict[str, Any]) -> Health:
    server = snapshot.get("server") or {}
    rows = established(snapshot)
    host, port = server.get("host", "the server"), server.get("port", 0)
    way = f"{server['way']} to " if server.get("way") else ""
    if rows:
        wanted = server.get("connections_wanted", len(rows))
        missing = f"{len(rows)} of {wanted} connections" if len(rows) < wanted else ""
        through = f" through {server['way']}" if server.get("way") else ""
        since = f"connected to {host}{through} since {_of_session(snapshot, rows)}"
        parts = [since, missing, *_figures(snapshot, rows), *_choice(server)]
        return Health(True, ", ".join(filter(None, [*parts, *_workers(snapshot)])), _why_missing(server))
    reasons = [printable(reason) for reason in server.get("trouble", [])]
    if not reasons:
        return Health(False, f"not connected yet: dialing {way}{host} port {port}")
    attempts = server.get("failed_attempts", 0)
    since = (
        f", for {spoken(server.get('trouble_seconds', 0))} ({_count(attempts, 'failed attempt')})" if attempts else ""
    )
    return Health(False, f"not connected: {way}{host} port {port}: {_listed(reasons)}{since}", advice_for(reasons, way))


def _choice(server: dict[str, Any]) -> list[str]:
    """Of a client with several servers: why it is at this one, and which one stands by."""
    why, listed = server.get("why", ""), server.get("list", [])
    standing = [each["server"] for each in listed if each.get("state") == "standby"]
    found = [f"here because {printable(why)}"] if why and listed and listed[0].get("state") != "current" else []
    return [*found, *(f"{each} stands by" for each in standing)]


def _why_missing(server: dict[str, Any]) -> str:
    """Of a client that is connected, and whose connections do not all stand or cannot be replaced."""
    reasons = [printable(reason) for reason in server.get("trouble", [])]
    advice = advice_for(reasons, server.get("way", ""))
    return f"Not all connections stand: {_listed(reasons)}. {advice}" if reasons else ""


def advice_for(reasons: Sequence[str], way: str = "") -> str:
    """`way`: of a client that reaches its server through something."""
    table = [*ADVICE]
    if way:
        table = [*OF_PROXY, *table]
    if way.startswith("websocket "):
        table = [*OF_WEBSOCKET, *table]
    for words, advice in table:
        if any(words in reason for reason in reasons):
            return advice
    return DOCTOR


def peers_of(snapshot: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The peers of a server; None if the snapshot is a client's, or does not tell them."""
    peers: list[dict[str, Any]] | None = snapshot.get("peers") if snapshot["mode"] == "server" else None
    return peers


def _of_server(snapshot: dict[str, Any]) -> Health:
    rows, peers = established(snapshot), peers_of(snapshot)
    up = [f"up {spoken(snapshot['uptime_seconds'])}", *_workers(snapshot)]
    if snapshot.get("peers_max") == 1:
        if not rows:
            return Health(True, ", ".join(["no client is connected", *up]))
        return Health(True, ", ".join([f"a client is connected since {_since(rows)}", *_figures(snapshot, rows), *up]))
    count = snapshot.get("peers_connected", 0)
    if peers is None:
        what = f"{_count(count, 'client')} connected"
    elif not peers:
        return Health(True, ", ".join(["no peer yet", *up]), "Add one: tunnel-supervisor invite NAME.")
    else:
        connected = sum(peer.get("state") == "connected" for peer in peers)
        known = len(peers) + snapshot.get("peers_left_out", 0)
        what = f"{connected} of {_count(known, 'peer')} connected"
    return Health(True, ", ".join([what, *(_figures(snapshot, rows) if rows else ()), *up]))


def established(snapshot: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in snapshot.get("connections", ()) if row["state"] == "established"]


def _figures(snapshot: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Round trip, loss, and the bytes of packets that have come and gone since the start."""
    trips = sorted(row["rtt_ms"] for row in rows if row["rtt_ms"] > 0)
    trip = [f"{_short(trips[len(trips) // 2])} ms"] if trips else []
    counters = snapshot.get("counters", {})
    traffic = (("tun.bytes_written", "in"), ("tun.bytes_read", "out"))
    return [*trip, *loss(snapshot), *(f"{amount(counters.get(name, 0))} {way}" for name, way in traffic)]


def loss(snapshot: dict[str, Any]) -> list[str]:
    """The losses on the way to the other end, of the connections that stand, and the blocks that FEC has recovered.

    TCP sends lost segments again, so nothing is lost for good.
    """
    rows = [row for row in established(snapshot) if "resent_segments" in row]
    counters = snapshot.get("counters", {})
    recovered = sum(count for name, count in counters.items() if name.startswith(RECOVERED))
    about = [peer["datagrams"] for peer in snapshot.get("peers", ()) if peer.get("datagrams")]
    lost, datagrams = (sum(each[name] for each in about) for name in ("lost_segments", "sent_segments"))
    repeated, sent = (sum(row[name] for row in rows) for name in ("resent_segments", "sent_segments"))
    if rows and not repeated and not recovered and not lost:
        return ["no loss"]
    found = []
    if repeated:
        found.append(f"{sent_again(repeated, sent)} sent again")
    if lost:
        found.append(_of_datagrams(lost, datagrams))
    if recovered:
        found.append(f"{_count(recovered, 'block')} recovered")
    return found


def sent_again(repeated: int, sent: int) -> str:
    """The share of segments that were sent again; of few segments, their number."""
    return _share(repeated, sent, "segment")


def _share(part: int, whole: int, noun: str) -> str:
    """The percentage; of few, their number."""
    if whole < SHARE_FROM:
        return _count(part, noun)
    percent = 100 * part / whole
    return f"{_short(percent)} %" if percent >= 0.01 else "under 0.01 %"


def _of_datagrams(lost: int, sent: int) -> str:
    share = _share(lost, sent, "datagram")
    return f"{share} lost" if sent < SHARE_FROM else f"{share} of datagrams lost"


def _workers(snapshot: dict[str, Any]) -> list[str]:
    """The processes that do not run, or that somebody has stopped."""
    workers = [(row["name"], row["state"], row.get("process", "")) for row in snapshot.get("workers", ())]
    supervisor = snapshot.get("supervisor", {"state": "running"})["state"]
    found = [("the supervisor", supervisor, ""), *workers]
    return [
        f"{name} is {process if process in HALTED else state}"
        for name, state, process in found
        if state != "running" or process in HALTED
    ]


def _of_session(snapshot: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """For how long a client is at this server: its connections may be younger. An outline has no peers."""
    seconds = next((each.get("session_seconds") for each in snapshot.get("peers", ())), None)
    here = (snapshot.get("server") or {}).get("why_seconds", 0)  # of several servers
    return _since(rows) if seconds is None else spoken(min(seconds, here) if here else seconds)


def _since(rows: Sequence[dict[str, Any]]) -> str:
    return spoken(max(row["age_seconds"] for row in rows))


def _listed(texts: Sequence[str]) -> str:
    """The first few, and how many there are besides."""
    more = len(texts) - REASONS_MAX
    return "; ".join([*texts[:REASONS_MAX], *([f"and {more} more"] if more > 0 else [])])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _short(value: float) -> str:
    """Two digits that count: 0.04, 0.41, 4.1, 41, 412."""
    if value >= 10:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def spoken(seconds: float) -> str:
    """The largest unit alone: 12 s, 4 min, 3 h, 2 days."""
    whole = int(seconds)
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def amount(size: float) -> str:
    """Bytes with a decimal unit."""
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return ""
