"""rtnetlink messages: what is written can be read, and what cannot be read is nothing."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.bypass import fences, numbers
from pipeline.policy.kernel_entries import Address, Link, Route
from pipeline.supervisor.kernel import rtnetlink as rt
from pipeline.supervisor.kernel.rtnetlink import Message, Refusal

VERSIONS = st.sampled_from([4, 6])
KINDS = st.sampled_from([rt.RTM_NEWLINK, rt.RTM_DELLINK, rt.RTM_NEWADDR, rt.RTM_NEWROUTE, rt.RTM_DELROUTE, 99])


def address(version: int) -> st.SearchStrategy:
    return st.integers(0, 2 ** (32 if version == 4 else 128) - 1).map(
        lambda number: ip_address(number.to_bytes(4 if version == 4 else 16, "big"))
    )


@st.composite
def routes(draw: st.DrawFn) -> Route:
    version = draw(VERSIONS)
    length = draw(st.integers(0, 32 if version == 4 else 128))
    prefix = ip_network((draw(address(version)).packed, length), strict=False)
    source = draw(st.one_of(st.none(), address(version)))
    return Route(prefix, draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 2**31 - 1)), None, source)


@given(routes())
def test_a_route_that_is_written_can_be_read(route: Route) -> None:
    assert rt.decode(Message(rt.RTM_NEWROUTE, 0, 1, rt.route_body(route))) == route


@pytest.mark.parametrize("route", [*fences(4, numbers("hub")), *fences(6, numbers("hub"))], ids=str)
def test_a_fence_and_its_gaps_that_are_written_can_be_read(route: Route) -> None:
    assert rt.decode(Message(rt.RTM_NEWROUTE, 0, 1, rt.route_body(route))) == route


@given(st.data(), VERSIONS)
def test_an_address_that_is_written_can_be_read(data: st.DataObject, version: int) -> None:
    own = ip_interface((data.draw(address(version)).packed, data.draw(st.integers(0, 32))))
    assert rt.decode(Message(rt.RTM_NEWADDR, 0, 1, rt.address_body(7, own))) == Address(7, own, own.network)


@pytest.mark.parametrize("up", [True, False])
def test_a_link_that_is_written_can_be_read(up: bool) -> None:
    body = rt.set_link_body(7, 1400, 1000, up=up)
    assert rt.decode(Message(rt.RTM_NEWLINK, 0, 1, body)) == Link(7, "", up)


FAMILIES = st.sampled_from([socket.AF_INET, socket.AF_INET6, 128])
LENGTHS = st.integers(0, 40) | st.integers(0, 255)
NEARLY_BODIES = st.builds(
    lambda head, attributes: head + b"".join(attributes),
    st.builds(lambda family, length: rt.ADDRESS.pack(family, length, 0, 0, 7), FAMILIES, LENGTHS)
    | st.builds(
        lambda family, length, kind: rt.ROUTE.pack(family, length, 0, 0, 254, 3, 0, kind, 0),
        *(FAMILIES, LENGTHS, st.sampled_from([rt.RTN_UNICAST, rt.RTN_LOCAL, 5])),
    ),
    st.lists(
        st.builds(
            rt._attribute, st.integers(0, 20), st.sampled_from([b"", bytes(4), bytes(16)]) | st.binary(max_size=20)
        ),
        max_size=4,
    ),
)


@given(KINDS, st.binary(max_size=80) | NEARLY_BODIES)
def test_any_bytes_are_a_value_or_nothing(kind: int, body: bytes) -> None:
    rt.decode(Message(kind, 0, 0, body))
    rt.refusal(Message(rt.NLMSG_ERROR, rt.NLM_F_ACK_TLVS, 0, body))


@given(st.binary(max_size=200))
def test_any_datagram_is_cut_to_its_end(data: bytes) -> None:
    assert sum(rt.HEADER.size + len(each.body) for each in rt.split(data)) <= len(data)


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_messages_behind_each_other_are_all_read(bodies: list[bytes]) -> None:
    data = b"".join(
        rt.request(rt.RTM_NEWADDR, 0, 5, body).ljust(-(-(16 + len(body)) // 4) * 4, b"\0") for body in bodies
    )
    assert [each.body for each in rt.split(data)] == bodies


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (rt.RTM_NEWADDR, rt.ADDRESS.pack(socket.AF_INET, 24, 0, 0, 7)),
        (rt.RTM_NEWADDR, rt.ADDRESS.pack(128, 24, 0, 0, 7) + rt._attribute(rt.IFA_ADDRESS, bytes(4))),
        (rt.RTM_NEWROUTE, rt.ROUTE.pack(128, 0, 0, 0, 254, 3, 0, rt.RTN_UNICAST, 0)),
        (rt.RTM_NEWROUTE, rt.ROUTE.pack(socket.AF_INET, 0, 0, 0, 254, 3, 0, 5, 0)),
    ],
    ids=["no-address", "address-of-another-family", "route-of-another-family", "multicast-route"],
)
def test_what_has_no_address_or_is_of_another_kind_is_nothing(kind: int, body: bytes) -> None:
    assert rt.decode(Message(kind, 0, 0, body)) is None


def test_attributes_that_are_cut_off_end_the_message() -> None:
    whole = rt.address_body(7, ip_interface("10.0.0.1/24"))
    for rest in (b"\x09\0", b"\x09\0\x03\0", b"\0\0\x03\0"):
        assert rt.decode(Message(rt.RTM_NEWADDR, 0, 0, whole + rest)) == rt.decode(Message(rt.RTM_NEWADDR, 0, 0, whole))


def test_a_route_with_a_gateway_of_the_other_family_and_one_with_several_show_the_first() -> None:
    def attribute(kind: int, value: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)

    head = rt.ROUTE.pack(socket.AF_INET, 0, 0, 0, 254, 3, 0, rt.RTN_UNICAST, 0)
    six = ip_address("fe80::1")
    via = attribute(rt.RTA_VIA, struct.pack("=H", socket.AF_INET6) + six.packed) + attribute(rt.RTA_OIF, b"\2\0\0\0")
    assert rt.decode(Message(rt.RTM_NEWROUTE, 0, 0, head + via)) == Route(ip_network("0.0.0.0/0"), 0, 2, six, None, 3)
    four = ip_address("192.0.2.1")
    gateway = attribute(rt.RTA_GATEWAY, four.packed)
    hops = b"".join(rt.NEXT_HOP.pack(8 + len(gateway), 0, 0, device) + gateway for device in (4, 5))
    several = rt.decode(Message(rt.RTM_NEWROUTE, 0, 0, head + attribute(rt.RTA_MULTIPATH, hops)))
    assert several == Route(ip_network("0.0.0.0/0"), 0, 4, four, None, 3)


def test_a_refusal_has_the_kernels_words_or_those_of_its_number() -> None:
    number = struct.pack("=i", -errno.EEXIST)
    request = rt.HEADER.pack(16, 24, 0, 1, 0)
    text = struct.pack("=HH", 4 + 8, rt.NLMSGERR_ATTR_MSG) + b"a text.\0"
    said = Message(rt.NLMSG_ERROR, rt.NLM_F_CAPPED | rt.NLM_F_ACK_TLVS, 1, number + request + text)
    assert rt.refusal(said) == Refusal(errno.EEXIST, "a text")
    assert rt.refusal(Message(rt.NLMSG_ERROR, 0, 1, number + request)) == Refusal(errno.EEXIST, "File exists")
    assert rt.refusal(said._replace(flags=rt.NLM_F_CAPPED)) == Refusal(errno.EEXIST, "File exists")
    assert rt.refusal(Message(rt.NLMSG_ERROR, 0, 1, bytes(4) + request)) is None
