# A Next.js site with the route of the example, and a login by a header: prints what a visitor and what the user 7 get.
set -eu
export NEXT_TELEMETRY_DISABLED=1 SIGNED_PLAYBACK_KEY_FILE=key.json SIGNED_PLAYBACK_URL=https://media.example.com
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
cat >auth.js <<'JS'
import { headers } from 'next/headers';

export async function auth() {
	const id = (await headers()).get('x-user');
	return id ? { user: { id } } : null;
}
JS
echo '{"compilerOptions": {"paths": {"@/*": ["./*"]}}}' >jsconfig.json
node_modules/.bin/next build >&2
node_modules/.bin/next start --hostname 127.0.0.1 --port "$PORT" >&2 &
server=$!
trap 'kill "$server"; wait "$server" || true' EXIT
address=http://127.0.0.1:$PORT/api/playback/demo
curl -s -o /dev/null --retry 30 --retry-delay 1 --retry-connrefused -w 'visitor: %{http_code}\n' "$address"
printf 'user: '
curl -sSi -H 'X-User: 7' "$address"
