#!/bin/sh
# Before the removal, and in RPM before an upgrade ($1 is 1 then) as well.
set -e
case "$1" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now caddy.service || true
	fi
	;;
esac
