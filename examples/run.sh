#!/usr/bin/env bash
# Starts examples/Caddyfile with a new key, a page of signed links, and the console.
# Usage: examples/run.sh <caddy binary>. Ctrl-C ends it.
set -eu
caddy=$(realpath "$1")
cd "$(dirname "$0")/.."
trap 'exit 0' INT TERM
gate=http://localhost:8080 origin=http://localhost:8081 api=http://localhost:8082

# Two servers of Caddy can share a port, and each would get a part of the requests.
for port in "${gate##*:}" "${origin##*:}" "${api##*:}"; do
	if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
		echo "Port $port is in use, and the demo needs it. Is another one running?" >&2
		exit 1
	fi
done

made=bin/demo
mkdir -p "$made/page"
rm -f "$made/key.json" "$made/public.json"
"$caddy" signed-playback keygen -o "$made/key.json" --public "$made/public.json"
export SIGNED_PLAYBACK_KEY_FILE=$made/public.json SIGNED_PLAYBACK_HLS_JS=$made/hls.min.js

# Many browsers do not play HLS without hls.js, which is not part of this repository.
if [ ! -s "$SIGNED_PLAYBACK_HLS_JS" ]; then
	if ! packaging/hls-js "$made" 2>/dev/null; then
		SIGNED_PLAYBACK_HLS_JS=
		echo "npm cannot fetch hls.js, so the page plays only in browsers with HLS of their own: Safari, Chrome from 142 on." >&2
	fi
fi

sign() {
	"$caddy" signed-playback sign --key "$made/key.json" --sub demo "$@"
}
only_gb='[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]'
page=$(<examples/page.html)
page=${page//PLAYS/$(sign --exp 12h --downloadable)}
page=${page//EXPIRED/$(sign --exp=-1h 2>/dev/null)}
page=${page//BLOCKED/$(sign --exp 12h --rules "$only_gb")}
page=${page//GATE/$gate}
echo "${page//ORIGIN/$origin}" >"$made/page/index.html"

# The console, with a new token for each run.
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
(umask 077 && echo "$token" >"$made/api-token")
cat examples/Caddyfile - >"$made/Caddyfile" <<SITE
$api {
	bind 127.0.0.1
	signed_playback_api {
		bearer_token {file.$made/api-token}
		console
	}
	respond 404
}
SITE

"$caddy" run --config "$made/Caddyfile" 2>"$made/log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT

# The port is probed by bash itself, because a fresh machine need not have curl.
until (exec 3<>"/dev/tcp/127.0.0.1/${gate##*:}") 2>/dev/null; do
	if ! kill -0 "$server" 2>/dev/null; then
		cat "$made/log" >&2
		exit 1
	fi
	sleep 0.1
done

cat <<TEXT

Open $gate to see a video that plays, and links that the gate refuses.

Open $api/console/ to make links and to say who may watch. Sign in with $token

Sign more links:  $1 signed-playback sign --key $made/key.json --sub demo --url $gate
The server's log: $made/log
Stop with Ctrl-C.
TEXT
wait "$server"
