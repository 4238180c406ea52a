"""The results of `bench hub`, as values and as a table. schema_version counts up when a field changes its meaning or
goes."""

from __future__ import annotations

import msgspec

from tools.bench.machine import Machine
from tools.load.flood import Flooded

SCHEMA_VERSION = 1
KILOBYTE = 1000


class Compared(msgspec.Struct):
    """The same thing measured in turn, as it is and beside something: medians over the rounds, and the rounds."""

    plain: float
    beside: float
    ratio: float
    plain_rounds: list[float]
    beside_rounds: list[float]


class Idle(msgspec.Struct, kw_only=True):
    """So many clients that say nothing but keepalives."""

    clients: int
    connections: int
    invited_seconds: float
    """To add them to the running server, one by one."""
    first_seconds: float | None
    """From the first attempt until all had a connection."""
    complete_seconds: float | None
    """Until all had all of their connections."""
    handshake_p50_ms: float
    handshake_p99_ms: float
    failed: dict[str, int]
    """Attempts that ended before the welcome, by reason."""
    pingable: int
    """Clients that answered an echo request of the server."""
    bytes_empty: dict[str, int]
    """Memory (PSS) of the server's processes without a client."""
    bytes_full: dict[str, int]
    """And with all of them."""
    bytes_per_client: float
    cpu_percent_empty: dict[str, float]
    cpu_percent_full: dict[str, float]
    """Of one core, by process."""


class Return(msgspec.Struct):
    """All clients come back after another server has taken the place of the one that ended."""

    how: str
    clients: int
    down_seconds: float
    """From the signal until the next server ran."""
    back_seconds: float
    """From then until all clients had a connection."""
    complete_seconds: float | None
    """From then until all had all of their connections."""
    attempts: int


class Garbage(msgspec.Struct):
    """One TCP stream of a client to the server, beside a flood of connections that send no handshake."""

    at_server: Compared
    at_nobody: Compared
    """Beside the same flood to a port where nobody listens: what the flood itself costs this machine."""
    flood: Flooded
    counted: dict[str, int]
    """The server's counters."""


class HostileRow(msgspec.Struct):
    """One client beside a peer that sends this kind of bytes at full speed (tools.load.hostile_bytes)."""

    kind: str
    connections: int
    gbit: float
    """Of the client's TCP stream to the server."""
    p50_ms: float
    p99_ms: float
    """Of the client's echoes to the server, without that stream."""
    attack_mbit: float
    attack_seconds: float
    """Less than the measurements take if the server has ended all connections, or has taken all that was made."""
    ended: int
    """Connections that the server has ended."""


class Hellos(msgspec.Struct):
    """One TCP stream of a client to the server, beside a flood of TLS handshakes that others begin and leave."""

    at_server: Compared
    at_plain: Compared
    """Beside the same flood to a server without TLS."""
    newcomer_seconds: list[float]
    """Until a new client has a connection."""
    newcomer_seconds_beside: list[float]
    """The same beside connections at that rate from one other address."""
    flood: Flooded


class HubResult(msgspec.Struct, kw_only=True):
    schema_version: int = SCHEMA_VERSION
    machine: Machine
    seconds: int
    rounds: int
    settings: list[str]
    idle: Idle | None = None
    returns: list[Return] = []
    garbage: Garbage | None = None
    hellos: Hellos | None = None
    client_to_server: Compared | None = None
    """Gbit/s of one TCP stream, on the bare link and through the tunnel."""
    client_to_client: Compared | None = None
    deaf: Compared | None = None
    """Gbit/s of one TCP stream from the server to a client, beside packets to a peer that reads them, and beside the
    same packets to a peer that reads nothing."""
    hostile: list[HostileRow] = []
    left_behind: list[str] = []

    @property
    def failed(self) -> bool:
        return bool(self.left_behind)


def table(result: HubResult) -> str:
    """For people."""
    lines = [
        f"{result.machine}; {result.rounds} rounds of {result.seconds} s",
        f"settings: {' '.join(result.settings) or 'defaults'}",
    ]
    if result.idle:
        lines += _idle(result.idle)
    if result.returns:
        lines += ["", _row("all clients come back, s", "clients", "down", "first", "complete", "attempts")]
        lines += [
            _row(
                f"  after {one.how}",
                one.clients,
                f"{one.down_seconds:.1f}",
                f"{one.back_seconds:.1f}",
                f"{one.complete_seconds:.1f}",
                one.attempts,
            )
            for one in result.returns
        ]
    compared = [
        ("client to server, beside the bare link", result.client_to_server),
        ("client to client, beside the bare link", result.client_to_client),
        ("beside packets to a peer that reads nothing", result.deaf),
    ]
    if result.garbage:
        compared += [
            ("beside a flood of garbage at the server", result.garbage.at_server),
            ("beside that garbage at a closed port", result.garbage.at_nobody),
        ]
    if result.hellos:
        compared += [
            ("beside a flood of TLS handshakes at the server", result.hellos.at_server),
            ("beside that flood at a server without TLS", result.hellos.at_plain),
        ]
    if any(values for _, values in compared):
        lines += ["", _row("one TCP stream, Gbit/s", "plain", "beside", "ratio")]
    lines += [
        _row(f"  {name}", f"{values.plain:.2f}", f"{values.beside:.2f}", f"{values.ratio:.2f}")
        for name, values in compared
        if values
    ]
    if result.garbage:
        flood = result.garbage.flood
        counted = ", ".join(f"{name} {count}" for name, count in result.garbage.counted.items())
        lines.append(f"  the flood: {flood.opened_a_second:.0f} connections a second; the server counted {counted}")
    if result.hostile:
        lines += _hostile(result.hostile)
    if result.hellos:
        flood = result.hellos.flood
        alone, beside = (max(each) for each in (result.hellos.newcomer_seconds, result.hellos.newcomer_seconds_beside))
        lines += [
            f"  the handshakes: {flood.opened_a_second:.0f} a second, {flood.ended.get('answered', 0)} answered",
            f"  a new client is connected after {alone:.2f} s, beside connections from one address {beside:.2f} s",
        ]
    if result.left_behind:
        lines += ["", "LEFT BEHIND: " + ", ".join(result.left_behind)]
    return "\n".join(lines)


def _idle(idle: Idle) -> list[str]:
    failed = sum(idle.failed.values())
    lines = [
        "",
        (
            f"{idle.clients} clients with {idle.connections} connections each, {idle.pingable} pingable; "
            f"invited in {idle.invited_seconds:.1f} s"
        ),
        (
            f"  all connected after {idle.first_seconds:.1f} s, with all connections after "
            f"{idle.complete_seconds:.1f} s; {failed} attempts failed"
        ),
        f"  a handshake took {idle.handshake_p50_ms:.0f} ms (p50), {idle.handshake_p99_ms:.0f} ms (p99)",
        f"  memory of a client in all processes of the server: {idle.bytes_per_client / KILOBYTE:.0f} kB",
        _row("  process", "kB empty", "kB full", "a client", "CPU % empty", "CPU % full"),
    ]
    for name, full in idle.bytes_full.items():
        empty = idle.bytes_empty[name]
        lines.append(
            _row(
                f"  {name}",
                f"{empty / KILOBYTE:.0f}",
                f"{full / KILOBYTE:.0f}",
                f"{(full - empty) / idle.clients / KILOBYTE:.1f}",
                f"{idle.cpu_percent_empty[name]:.1f}",
                f"{idle.cpu_percent_full[name]:.1f}",
            )
        )
    return lines


def _hostile(rows: list[HostileRow]) -> list[str]:
    neighbours = {row.connections: row for row in rows if row.kind == rows[0].kind}
    lines = [
        "",
        _row("beside a hostile peer", "connections", "Gbit/s", "of full", "p50 ms", "p99 ms", "its Mbit/s", "ended"),
    ]
    for row in rows:
        ratio = row.gbit / max(neighbours[row.connections].gbit, 1e-9)
        cells = f"{row.gbit:.2f}", f"{ratio:.2f}", f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}", f"{row.attack_mbit:.0f}"
        lines.append(_row(f"  {row.kind}", row.connections, *cells, row.ended))
    return lines


def _row(name: str, *cells: object) -> str:
    return f"{name:<44}" + "".join(f"{cell!s:>12}" for cell in cells)
