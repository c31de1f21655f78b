#!/usr/bin/env bash
# Sees to the programs that the tests need: installs the Debian packages of
# those that are missing, or names them where it may not install, fetches the npm
# packages of package-lock.json and builds oauth2-proxy and MediaMTX. Silent when everything is there.
set -eu
cd "$(dirname "$0")"

# Each line: a program, and the Debian packages that it comes with. The race
# detector needs gcc together with the headers of the C library. PHP, Ruby and Python
# are for the guide and the examples of signing, with libraries and frameworks.
# Debian's Python is named by its path, for another one would not have Debian's.
tools='gcc gcc libc6-dev
ffmpeg ffmpeg
ffprobe ffmpeg
chromium chromium
cvlc vlc-bin vlc-plugin-base
node nodejs
npm npm
curl curl
openssl openssl
redis-server redis-server
redis-cli redis-tools
prometheus prometheus
promtool prometheus
jq jq
nginx nginx libnginx-mod-rtmp
debootstrap debootstrap debian-archive-keyring
buildah buildah
podman podman
runc runc
skopeo skopeo
rpm rpm
systemd-analyze systemd
php php-cli php-laravel-framework
ruby ruby ruby-jwt
/usr/bin/python3 python3 python3-jwt python3-cryptography python3-django'

works() {
	command -v "$1" >/dev/null || return 1
	case $1 in
	gcc) echo '#include <stdlib.h>' | gcc -E -x c - >/dev/null 2>&1 ;;
	nginx) [ -e /usr/lib/nginx/modules/ngx_rtmp_module.so ] ;;
	php) "$1" -r 'require "Illuminate/autoload.php";' 2>/dev/null ;;
	ruby) "$1" -r jwt -e '' 2>/dev/null ;;
	/usr/bin/python3) "$1" -c 'import jwt, cryptography, django' 2>/dev/null ;;
	esac
}

# Prints the lines of the tools that do not work.
missing() {
	while read -r tool packages; do
		works "$tool" || echo "$tool $packages"
	done <<<"$tools"
}

root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

absent=$(missing)
if [ -n "$absent" ] && command -v apt-get >/dev/null && root true 2>/dev/null; then
	packages=$(cut -d ' ' -f 2- <<<"$absent" | tr ' ' '\n' | sort -u)
	root apt-get update
	# One word per package is what is wanted here, and no service of theirs.
	# shellcheck disable=SC2086
	root env DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 apt-get install -y --no-install-recommends $packages
	absent=$(missing)
fi
if [ -n "$absent" ]; then
	echo 'The tests need programs that are not installed:' >&2
	while read -r tool packages; do
		echo "  $tool (on Debian: apt-get install $packages)" >&2
	done <<<"$absent"
	exit 1
fi

if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
	npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
fi

ln -sf "$(../.ci/tool github.com/oauth2-proxy/oauth2-proxy/v7 v7.15.6)" ../bin/oauth2-proxy

# Its module lacks two files that it embeds, which its own build fetches.
mediamtx=v1.19.3
if [ "$(../bin/mediamtx --version 2>/dev/null)" != $mediamtx ]; then
	module=$(go mod download -json github.com/bluenviron/mediamtx@$mediamtx | jq -r .Dir)
	source=$(mktemp -d)
	trap 'rm -r "$source"' EXIT
	cp -r --no-preserve=mode "$module/." "$source"
	printf %s $mediamtx >"$source/internal/core/VERSION"
	cp node_modules/hls.js/dist/hls.min.js "$source/internal/servers/hls/"
	go build -C "$source" -o "$PWD/../bin/mediamtx" .
fi
