// Command caddy is Caddy with its standard modules and Signed Playback, for
// development, the examples and the tests. Production builds come from xcaddy.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/signed-playback/caddy-signed-playback"
)

func main() {
	caddycmd.Main()
}
