#!/bin/sh
# An Ethernet segment (layer 2) over the tunnel, by VXLAN: broadcasts, ARP, DHCP and protocols that are not IP.
#
#   "on": {"connected": ["/etc/tunnel-supervisor/vxlan.sh", "42", "10.0.0.1"]}     a client; the hub is 10.0.0.1
#   "on": {"up": ["/etc/tunnel-supervisor/vxlan.sh", "42", "10.0.0.2", "10.0.0.3"]}     the hub, with two clients
#
# The words: the number of the segment, then the tunnel addresses of all other ends of it. Clients that shall reach each
# other name each other, too. The device is vx42; with BRIDGE below it becomes a port of that bridge. It goes with the
# device of the tunnel. To carry frames of 1500 bytes, set "mtu": 1550 at each end (1570 with IPv6 addresses).
set -eu

BRIDGE=

segment=$1
shift
device=vx$segment
local=
for address in $TUNNEL_ADDRESSES; do # the one of the version that the others have
    case $1 in
    *:*) case $address in *:*) local=${local:-${address%/*}} ;; esac ;;
    *) case $address in *:*) ;; *) local=${local:-${address%/*}} ;; esac ;;
    esac
done
if [ -z "$local" ]; then
    echo "$TUNNEL_DEVICE has no address of the version of $1 yet"
    exit 1
fi
if ip -d link show dev "$device" 2>/dev/null | grep -q " local $local "; then
    exit 0
fi
ip link delete dev "$device" 2>/dev/null || true

# Ethernet 14, VXLAN 8, UDP 8, and IP 20 or 40 (RFC 7348)
case $local in *:*) overhead=70 ;; *) overhead=50 ;; esac
mtu=$(ip -o link show dev "$TUNNEL_DEVICE" | sed 's/.* mtu \([0-9]*\) .*/\1/')

ip link add "$device" mtu $((mtu - overhead)) type vxlan id "$segment" local "$local" dev "$TUNNEL_DEVICE" dstport 4789
for remote; do # what is for everybody, or for a station that is not known yet, goes to each of these
    bridge fdb append 00:00:00:00:00:00 dev "$device" dst "$remote"
done
if [ -n "$BRIDGE" ]; then
    ip link set dev "$device" master "$BRIDGE"
fi
ip link set dev "$device" up
