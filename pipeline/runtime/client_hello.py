"""The HELLO of a client: its settings determine everything but the dial index, the nonce, knock and padding.

A tcp worker sends it. The supervisor, which has the key, makes it anew, and proves no other.
"""

from __future__ import annotations

from ipaddress import ip_address

from pipeline.runtime.plan import WorkerSettings
from pipeline.wire import framing, messages, noise


def client_hello(settings: WorkerSettings, key_id: bytes, dial_index: int, nonce: bytes) -> messages.Hello:
    """`key_id`: b"" for a client without a key; `nonce`: random bytes, new for each connection."""
    return messages.Hello(
        version=messages.VERSION,
        offloads=settings.offloads_accepted,
        connection_index=dial_index,
        connections=settings.connections,
        mtu=settings.mtu,
        client_id=settings.client_id,
        session=settings.session,
        traffic_class=framing.LIGHT if dial_index >= settings.connections else framing.BULK,
        features=messages.features(settings.fec != "off", settings.takes_datagrams, settings.takes_notes),
        auth=messages.AUTH_KEY if key_id else messages.AUTH_NONE,
        key_id=key_id or bytes(messages.KEY_ID_BYTES),
        nonce=nonce,
        requested_addresses=tuple(map(ip_address, settings.requested_addresses)),
        program=settings.program,
        key_share=bytes.fromhex(settings.key_share),
        lane=dial_index % settings.lanes,
        moves=settings.has_others and settings.seals,
        uplink=settings.uplink_of(dial_index),
        padding=noise.padding(noise.IN_HELLO) if settings.noise else b"",
    )
