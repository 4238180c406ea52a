"""The exporter of the largest hub stays within its memory while a page shows all of its peers.

25 MB are asked for, with its share of the 11 MB of Python's libraries: 2 MB beside five processes that have them, and 6
beside one. So what counts here is what it has written itself.
"""

from __future__ import annotations

from tools.bench import exporter

PEERS_MAX = 4096
WRITTEN_MAX = 23_000_000


def test_the_exporter_of_a_hub_with_4096_peers_writes_at_most_23_megabytes() -> None:
    options = exporter._parser().parse_args(["--peers", str(PEERS_MAX), "--only", "page", "--seconds", "2.5"])
    (case,) = exporter.run(options).cases
    assert 0 < case.written < WRITTEN_MAX
