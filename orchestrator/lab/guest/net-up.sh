#!/bin/sh
# Static network of a lab guest: QEMU's user-mode network is always 10.0.2.0/24. The interface is the one with a
# device behind it, whatever it is called (net.ifnames may be missing from a command line of the user's own).
set -e
ip link set lo up
case " $(cat /proc/cmdline) " in
    # A scenario's fault; only in a boot that an attempt of ours made.
    *" kexec_fleet.nonce="*" kexec_fleet_lab.fault=nonet "* | *" kexec_fleet_lab.fault=nonet "*" kexec_fleet.nonce="*)
        echo "kexec-fleet-lab: fault: no network" > /dev/kmsg
        exit 0 ;;
esac
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
