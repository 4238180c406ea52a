"""IP packets with ICMP echoes, made and read by hand (RFC 791, 792, 8200, 4443). The program's code is not used.

echo_request("10.0.0.2", "10.0.0.1", 7)     an echo request
reply_to(packet)                            the reply to an echo request; None for any other packet
is_reply(packet, request)                   whether the packet answers the request
udp_payload(packet)                         the payload of a UDP datagram with right checksums; None for others
"""

from __future__ import annotations

import ipaddress
import struct

ICMP, UDP, ICMP6 = 1, 17, 58
REQUEST, REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
IDENTITY = 0x7065
HOPS = 64


def echo_request(source: str, destination: str, number: int, payload: bytes = b"abcdefgh") -> bytes:
    version = ipaddress.ip_address(source).version
    message = struct.pack(">BBHHH", REQUEST[version], 0, 0, IDENTITY, number) + payload
    return _packet(version, ipaddress.ip_address(source).packed, ipaddress.ip_address(destination).packed, message)


def reply_to(packet: bytes) -> bytes | None:
    version, source, destination, protocol, message = _parts(packet)
    if protocol not in (ICMP, ICMP6) or message[0] != REQUEST[version]:
        return None
    return _packet(version, destination, source, bytes([REPLY[version], 0, 0, 0]) + message[4:])


def is_reply(packet: bytes, request: bytes) -> bool:
    version, source, _, protocol, message = _parts(packet)
    _, _, asked, _, question = _parts(request)
    return (
        protocol in (ICMP, ICMP6) and source == asked and message[0] == REPLY[version] and message[4:] == question[4:]
    )


def udp_payload(packet: bytes) -> bytes | None:
    version, source, destination, protocol, message = _parts(packet)
    if protocol != UDP:
        return None
    right = not _checksum(_pseudo(version, source, destination, UDP, message) + message)
    return message[8:] if right and (version == 6 or not _checksum(packet[:20])) else None


def _parts(packet: bytes) -> tuple[int, bytes, bytes, int, bytes]:
    """Version, source, destination, protocol, and the bytes behind the header."""
    if packet[0] >> 4 == 4:
        return 4, packet[12:16], packet[16:20], packet[9], packet[(packet[0] & 15) * 4 :]
    return 6, packet[8:24], packet[24:40], packet[6], packet[40:]


def _packet(version: int, source: bytes, destination: bytes, message: bytes) -> bytes:
    """An ICMP message whose checksum is 0 so far, with its IP header."""
    pseudo = _pseudo(6, source, destination, ICMP6, message) if version == 6 else b""
    message = message[:2] + _checksum(pseudo + message).to_bytes(2, "big") + message[4:]
    if version == 6:
        return struct.pack(">IHBB", 6 << 28, len(message), ICMP6, HOPS) + source + destination + message
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(message), 0, 0, HOPS, ICMP, 0) + source + destination
    return header[:10] + _checksum(header).to_bytes(2, "big") + header[12:] + message


def _pseudo(version: int, source: bytes, destination: bytes, protocol: int, message: bytes) -> bytes:
    form = ">IHBB" if version == 6 else ">BBH"
    rest = (len(message), 0, 0, protocol) if version == 6 else (0, protocol, len(message))
    return source + destination + struct.pack(form, *rest)


def _checksum(data: bytes) -> int:
    """RFC 1071; 0 over data that includes its own checksum."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
