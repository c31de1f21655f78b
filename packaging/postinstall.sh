#!/bin/sh
# After installation and upgrades: the user of the service, and the service itself.
set -e
if ! getent group caddy >/dev/null; then
	groupadd --system caddy
fi
if ! getent passwd caddy >/dev/null; then
	useradd --system --gid caddy --home-dir /var/lib/caddy --no-create-home --shell /usr/sbin/nologin \
		--comment "Caddy web server" caddy
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl enable caddy.service
	# Viewers keep playing: a restart waits for their segments, and no longer than grace_period.
	systemctl restart caddy.service || echo "caddy.service does not start: see journalctl -u caddy" >&2
fi
