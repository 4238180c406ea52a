"""The listening socket: which families it serves, on machines with IPv6 and without."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable

import pytest

from pipeline.config.values import parse_endpoint
from pipeline.errors import LocalError
from pipeline.supervisor.kernel.listener import listen

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2  # linux/prctl.h, linux/seccomp.h
SYS_SOCKET = {"x86_64": 41, "aarch64": 198}[os.uname().machine]  # asm/unistd.h
SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # linux/sockios.h, linux/if.h
CLONE_NEWNET = 0x40000000  # linux/sched.h
RET_ERRNO, RET_ALLOW = 0x00050000, 0x7FFF0000
LD_W_ABS, JEQ_K, RET_K = 0x20, 0x15, 0x06  # linux/bpf_common.h


def reached(listener: socket.socket, host: str) -> bool:
    """Whether a client that dials this address is accepted."""
    try:
        with socket.create_connection((host, listener.getsockname()[1]), 5):
            listener.setblocking(True)
            listener.accept()[0].close()
            return True
    except ConnectionRefusedError:
        return False


@pytest.mark.parametrize(
    ("local_addr", "families"),
    [(":0", (True, True)), ("[::]:0", (True, True)), ("0.0.0.0:0", (True, False)), ("[::1]:0", (False, True))],
)
def test_a_listener_without_a_host_serves_both_families(local_addr: str, families: tuple[bool, bool]) -> None:
    with listen(parse_endpoint(local_addr)) as listener:
        assert (reached(listener, "127.0.0.1"), reached(listener, "::1")) == families


def test_a_port_that_is_taken_in_either_family_is_taken() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(LocalError, match="another program listens there"),
    ):
        listen(parse_endpoint(f":{other.getsockname()[1]}"))


@pytest.mark.parametrize("sysctl", ["bindv6only", "conf/all/disable_ipv6"])
def test_a_system_that_is_set_otherwise_changes_nothing_for_ipv4(sysctl: str) -> None:
    def look() -> bool:
        with open(f"/proc/sys/net/ipv6/{sysctl}", "w") as file:
            file.write("1")
        with listen(parse_endpoint(":0")) as listener:
            return reached(listener, "127.0.0.1") and (sysctl != "bindv6only" or reached(listener, "::1"))

    assert in_child(look, new_network=True)


def test_a_kernel_without_ipv6_is_served_on_every_ipv4_address() -> None:
    def look() -> bool:
        without_ipv6()
        with pytest.raises(OSError) as caught:
            socket.socket(socket.AF_INET6)
        assert caught.value.errno == errno.EAFNOSUPPORT
        with listen(parse_endpoint(":0")) as listener:
            return listener.getsockname()[0] == "0.0.0.0" and reached(listener, "127.0.0.1")

    assert in_child(look)


def test_an_ipv6_address_on_a_kernel_without_ipv6_is_an_error_that_names_it() -> None:
    def look() -> bool:
        without_ipv6()
        with pytest.raises(LocalError, match=r"local_addr \[::1\]:9000"):
            listen(parse_endpoint("[::1]:9000"))
        return True

    assert in_child(look)


def in_child(look: Callable[[], bool], new_network: bool = False) -> bool:
    """What `look` says in a process of its own, with a network of its own if that is wished."""
    child = os.fork()
    if not child:
        status = 1
        try:
            if new_network:
                assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
                loopback_up()
            status = 0 if look() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def without_ipv6() -> None:
    """As with ipv6.disable=1: the kernel knows no such family."""
    program = [
        (LD_W_ABS, 0, 0, 0),  # number of the system call
        (JEQ_K, 0, 3, SYS_SOCKET),
        (LD_W_ABS, 0, 0, 16),  # its first argument
        (JEQ_K, 0, 1, socket.AF_INET6),
        (RET_K, 0, 0, RET_ERRNO | errno.EAFNOSUPPORT),
        (RET_K, 0, 0, RET_ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    filter_program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_program, 0, 0) == 0
