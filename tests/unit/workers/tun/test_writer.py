"""Writes that the kernel refuses: what explains them is counted, anything else ends the worker."""

from __future__ import annotations

import errno

import pytest

from pipeline.counters import ID
from pipeline.packet.vnet import GSO_NONE, GSO_TCPV4
from workers.tun.writer import _refused


@pytest.mark.parametrize(
    ("number", "gso", "counter"),
    [
        (errno.EIO, GSO_NONE, "tun.dropped_link_down"),
        (errno.EBADFD, GSO_NONE, "tun.dropped_link_down"),
        (errno.ENODEV, GSO_TCPV4, "tun.dropped_link_down"),
        (errno.EINVAL, GSO_NONE, "tun.dropped_write_refused"),
        (errno.EINVAL, GSO_TCPV4, "tun.dropped_offload_refused"),
        (errno.ENOBUFS, GSO_NONE, "tun.dropped_write_refused"),
    ],
    ids=lambda value: errno.errorcode.get(value) if isinstance(value, int) else None,
)
def test_a_refused_write_has_the_counter_of_its_reason(number: int, gso: int, counter: str) -> None:
    assert _refused(OSError(number, ""), gso) == ID[counter]


def test_an_error_that_no_packet_explains_ends_the_worker() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        _refused(OSError(errno.EBADF, "Bad file descriptor"), GSO_NONE)
