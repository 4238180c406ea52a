"""Which program sets the DNS servers of a machine. With resolvconf itself: tests/netns."""

from __future__ import annotations

import pytest

from pipeline.supervisor.kernel.name_servers import tool
from pipeline.transport.uplink_names import servers_in

STUB = "# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0\n"
PLAIN = "nameserver 192.168.1.1\n"
BOTH = ["resolvectl", "resolvconf"]


@pytest.mark.parametrize(
    ("text", "link", "programs", "expected"),
    [
        (STUB, "/etc/resolv.conf", BOTH, "resolvectl"),
        (PLAIN, "/run/systemd/resolve/resolv.conf", BOTH, "resolvectl"),
        (PLAIN, "/etc/resolv.conf", BOTH, "resolvconf"),  # resolved runs, and nobody asks it
        (STUB, "/etc/resolv.conf", ["resolvconf"], "resolvconf"),
        (PLAIN, "/etc/resolv.conf", ["resolvectl"], ""),
        (PLAIN, "/etc/resolv.conf", [], ""),
        ("", "/etc/resolv.conf", [], ""),
    ],
)
def test_the_program_that_manages_the_file_is_asked(text: str, link: str, programs: list[str], expected: str) -> None:
    assert tool(text, link, programs) == expected


def test_the_servers_of_a_file_are_read_as_the_resolver_does() -> None:
    text = "# nameserver 1.1.1.1\nsearch lan\nnameserver\nnameserver 192.168.1.1 \nnameserver fe80::1%eth0\n"
    assert servers_in(text) == ["192.168.1.1", "fe80::1%eth0"]
