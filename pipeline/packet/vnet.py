"""The virtio-net header in front of each packet that TUN reads or writes, little-endian (TUNSETVNETLE)."""

from __future__ import annotations

import struct

VNET_HEADER_BYTES = 10  # struct virtio_net_hdr, linux/virtio_net.h
PACKET_BYTES_MAX = 65535 + VNET_HEADER_BYTES + 4  # one super-packet as TUN gives it, rounded up

VNET = struct.Struct("<BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
NO_VNET = bytes(VNET_HEADER_BYTES)

# linux/virtio_net.h
NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4 = 0, 1, 4, 5
GSO_ECN = 0x80
