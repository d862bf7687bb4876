#!/bin/sh
# Static network of a lab guest: QEMU's user-mode network is always 10.0.2.0/24. The interface is the one with a
# device behind it, whatever it is called (net.ifnames may be missing from a command line of the user's own).
set -e
ip link set lo up
for link in /sys/class/net/*; do
    [ -e "$link/device" ] || continue
    name=${link##*/}
    ip link set "$name" up
    ip address replace 10.0.2.15/24 dev "$name"
    ip route replace default via 10.0.2.2
    exit 0
done
echo "kexec-fleet-lab: no network interface" >&2
exit 1
