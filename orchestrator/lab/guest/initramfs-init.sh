#!/bin/sh
# PID 1 of the initramfs (busybox sh): load the modules, mount the root, lay this machine's own files into it,
# hand over to the init that the kernel command line names. If it dies the kernel panics, and panic=N resets.
b=/bin/busybox
say() { echo "kexec-fleet-lab: $*"; }

$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys

root=/dev/vda
init=mini
ramoops=
watchdog=
fault=
ours=
for word in $($b cat /proc/cmdline); do
    case $word in
        root=/dev/*) root=${word#root=} ;;
        kexec_fleet_lab.init=*) init=${word#*=} ;;
        # busybox's insmod does not read /proc/cmdline, modprobe would.
        ramoops.*) ramoops="$ramoops ${word#ramoops.}" ;;
        watchdog.*) watchdog="$watchdog ${word#watchdog.}" ;;
        # Faults that a scenario asked for. They come on the new kernel's command line, beside the attempt's nonce:
        # the firmware's boot has neither and must stay good.
        kexec_fleet_lab.fault=*) fault=${word#*=} ;;
        kexec_fleet.nonce=*) ours=1 ;;
        # The accelerator probe wants to know only that user space was reached.
        kexec_fleet_lab.probe=*) say "user space reached"; $b poweroff -f ;;
    esac
done

[ -n "$ours" ] || fault=
case $fault in
    panic) say "fault: panic"; echo c > /proc/sysrq-trigger ;;
    hang) say "fault: hang"; while :; do $b sleep 1000; done ;;
esac

while read -r module; do
    options=
    case $module in
        /modules/ramoops.ko | /modules/reed_solomon.ko) [ -n "$ramoops" ] || continue ;;
    esac
    [ "$module" != /modules/ramoops.ko ] || options=$ramoops
    [ "$module" != /modules/watchdog.ko ] || options=$watchdog
    $b insmod "$module" $options || say "could not load $module"
done < /modules/order

tries=0
until [ -b "$root" ]; do
    tries=$((tries + 1))
    [ $tries -gt 600 ] && { say "no $root after a minute"; exit 1; }
    $b sleep 0.1
done
$b mount -t ext4 -o rw "$root" /newroot || { say "could not mount $root"; exit 1; }

# Who this machine is comes on a disk of its own (a tar archive), so that one root image serves all and no key
# is ever on the kernel command line.
for serial in /sys/block/*/serial; do
    [ "$($b cat "$serial")" = lab-identity ] || continue
    disk=${serial%/serial}
    $b tar -x -f "/dev/${disk##*/}" -C /newroot || say "could not read this machine's identity"
done

for place in dev proc sys; do
    $b mount -o move /$place /newroot/$place || say "could not move /$place"
done
case $init in
    systemd) next=/sbin/init ;;
    *) next=/usr/lib/kexec-fleet-lab/mini_init.py ;;
esac
say "starting $next"
exec $b switch_root /newroot $next
