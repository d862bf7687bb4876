#!/bin/sh
# reboot, poweroff, halt and shutdown for a guest under the mini init (systemd's own need systemd as PID 1).
name=${0##*/}
if [ -d /run/systemd/system ]; then
    exec "/usr/sbin/$name" "$@"
fi
case "$name $*" in
    poweroff* | halt* | *" -h"* | *" -P"*) exec kill -USR2 1 ;;
    *) exec kill -TERM 1 ;;
esac
