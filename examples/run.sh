#!/usr/bin/env bash
# Starts examples/Caddyfile with a key of its own and prints signed URLs to try.
# Usage: examples/run.sh <caddy binary>. Ctrl-C ends it.
set -eu
caddy=$(realpath "$1")
cd "$(dirname "$0")/.."

# Two servers of Caddy can share a port, and each would get half of the requests.
for port in 8080 8081; do
	if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
		echo "Port $port is in use, and the demo needs it. Is another one running?" >&2
		exit 1
	fi
done

key=examples/key.json
[ -s "$key" ] || (umask 077 && "$caddy" signed-playback keygen >"$key")
export SIGNED_PLAYBACK_KEY_FILE=$key

"$caddy" run --config examples/Caddyfile &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT

# The port is probed by bash itself, because a fresh machine need not have curl.
until (exec 3<>/dev/tcp/127.0.0.1/8080) 2>/dev/null; do
	if ! kill -0 "$server" 2>/dev/null; then
		wait "$server"
		exit 1
	fi
	sleep 0.1
done
sign() {
	"$caddy" signed-playback sign --key "$key" --sub demo --url http://localhost:8080 "$@"
}
only_gb='[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]'
plays=$(sign --exp 12h --downloadable)
base=${plays%/manifest/video.m3u8}

cat <<URLS

The gate listens on http://localhost:8080, in front of the origin on port 8081.
Open the page in a browser that plays HLS (Safari, Chrome from 142 on, Edge), the others in a player (VLC, ffplay), or
ask with curl -i.

These play for the next 12 hours:
  Page  $base/iframe
  HLS   $plays
  TS    $base/manifest/ts.m3u8
  DASH  $base/manifest/video.mpd
  MP4   $base/downloads/default.mp4

This one has expired (401 token_expired):
  $(sign --exp=-1h)

This one is for viewers in GB only, and this machine counts as in the US (403 rule_blocked):
  $(sign --rules "$only_gb")

Without a token (401 token_required):
  http://localhost:8080/demo/manifest/video.m3u8

Sign more with
  $1 signed-playback sign --key $key --sub demo --url http://localhost:8080
Stop with Ctrl-C.

URLS
wait "$server"
