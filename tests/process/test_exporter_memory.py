"""The exporter of the largest hub stays within its memory while a page shows all of its peers."""

from __future__ import annotations

from tools.bench import exporter

PEERS_MAX = 4096
MEMORY_MAX = 25 << 20


def test_the_exporter_of_a_hub_with_4096_peers_needs_at_most_25_megabytes() -> None:
    options = exporter._parser().parse_args(["--peers", str(PEERS_MAX), "--only", "page", "--seconds", "2.5"])
    (case,) = exporter.run(options).cases
    assert 0 < case.memory < MEMORY_MAX
