#!/bin/sh
# After the removal. Keys, settings and certificates go only with `apt purge`, and not if another
# package of Caddy uses the folders now.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
if [ "$1" = purge ] && [ ! -e /usr/bin/caddy ]; then
	rm -rf /var/lib/caddy /var/cache/caddy /var/log/caddy
fi
