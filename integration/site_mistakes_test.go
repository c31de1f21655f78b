package integration

import (
	"net/http"
	"strings"
	"testing"
)

// The attack: a viewer without a token asks for a path that the gate's matcher does not
// match. The server has warned of it at its start, with the site and the line. Where
// nothing is behind a gate, a viewer with a token gets 502 instead of an empty video.
func TestSiteMistakes(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	past := freeAddr(t)
	g := start(t, o, config{
		site:  "header X-Own b",
		sites: "http://" + past + " {\n@media path *.m3u8 *.ts\nsigned_playback @media\nreverse_proxy " + o.addr() + "\n}",
	})
	for _, want := range []string{"requests get past the gate to reverse_proxy " + o.addr(), "nothing is behind the gate", `"gate":"Caddyfile:`} {
		if !strings.Contains(g.log.String(), want) {
			t.Errorf("the server does not say %q at its start", want)
		}
	}
	(&gateway{addr: past}).get(t, "/demo/k.key")
	if seen := o.take(); len(seen) != 1 || seen[0].uri != "/demo/k.key" {
		t.Errorf("the origin gets %+v: the warning was for nothing", seen)
	}
	if res := g.get(t, "/"+mint(t, "demo", nil)+"/x.ts"); res.StatusCode != http.StatusBadGateway {
		t.Errorf("nothing behind the gate: status %d, want 502", res.StatusCode)
	}
	if !g.log.await("no handler behind the gate answers the request", startTimeout) {
		t.Error("nothing in the log says why")
	}
}
