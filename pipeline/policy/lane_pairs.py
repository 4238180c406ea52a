"""Which lane of an end gets what a lane of the other end sends.

The kernel sends the packets of a flow to the TUN queue through which the last packet of the other way has come
(tun_flow_update, drivers/net/tun.c). So the lane of a flow at one end follows from its lane at the other, and that
again from the first. If those two choices did not fit, a flow would change its lane with every round trip, and its
packets would overtake each other.

Each end therefore tells its lane: in the handshake for a connection, in the stream for a block that is coded. Lane l
that the other end tells is our lane l, modulo the lanes that we have. With 2 lanes here and 5 there, each flow is in
one of two pairs. It gets there with its first packet that is answered, and stays there.

A hub's clients have one lane each, as a rule, and it would get all that they send in its own lane 0. So it turns its
lanes, by the index of the peer. A peer notices nothing. A client has one peer, of index 0, and turns nothing.
"""

from __future__ import annotations


def told_lane(lane: int, peer: int, lanes: int) -> int:
    """The number by which this peer knows our lane."""
    return (lane - peer) % lanes


def own_lane(told: int, peer: int, lanes: int) -> int:
    """Our lane for what this peer sends in a lane that it has told."""
    return (told + peer) % lanes
