#!/bin/sh
# Public IPv6 addresses for the clients of a hub, out of the /64 that is on its link to the Internet: the hub answers
# there for each client that is connected (neighbour discovery proxy). See docs/network.md.
#
#   "tunnel_addr": ["10.0.0.1/24", "2001:db8:1:2:7::1/80"],
#   "on": {"peer-joined": ["/etc/tunnel-supervisor/ndp-proxy.sh", "eth0"],
#          "peer-left": ["/etc/tunnel-supervisor/ndp-proxy.sh", "eth0"]}
set -eu

link=$1
case $TUNNEL_EVENT in
peer-joined) verb=replace ;;
peer-left) verb=delete ;;
*)
    echo "no use at $TUNNEL_EVENT: name it at peer-joined and at peer-left"
    exit 1
    ;;
esac
for address in $TUNNEL_PEER_ADDRESSES; do
    case $address in
    */* | fd*:* | fc*:*) ;; # a network behind the peer, or a private address
    *:*) ip -6 neighbour "$verb" proxy "$address" dev "$link" ;;
    esac
done
