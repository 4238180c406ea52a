"""`tunnel-supervisor bench`: which benchmark.

    bench [options]         the tunnel against the bare link (throughput)
    bench fec [options]     what loss and the end of a connection do to the traffic (loss)
    bench codec [options]   the erasure code against zfec (codec)
    bench coexist [options] a bulk transfer of ours beside a bare TCP flow, on one slow link (coexist)
    bench hub [options]     a server with many clients, and with clients that never authenticate (hub)
    bench exporter [options]    what the exporter takes beside a hub (exporter)
    bench pairs [options]       two groups of settings, in turn (pairs)
    bench peers [options]       this tunnel beside OpenVPN, WireGuard and fastd (peers)
    bench uplinks [options]     a client with two uplinks, and a cable that is pulled (uplinks)

Each is imported only if it is asked for: some need what others do not.
"""

from __future__ import annotations

import sys
from importlib import import_module

BENCHMARKS = {"fec": "loss"} | {
    name: name for name in ("codec", "coexist", "hub", "exporter", "pairs", "peers", "uplinks")
}


def main(argv: list[str]) -> int:
    """Run one benchmark. Its exit status."""
    module = BENCHMARKS.get(argv[0]) if argv else None
    benchmark = import_module(f"tools.bench.{module or 'throughput'}")
    status: int = benchmark.main(argv[1:] if module else argv)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
