package signedplayback

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/command"
)

// doctor finds each thing to do, and nothing else.
func TestDoctor(t *testing.T) {
	t.Parallel()
	const global = "key_file DIR/public.json"
	down := reservedAddr(t.Cleanup)
	fast := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
		doctorsOrigin(w, r)
	}
	for name, test := range map[string]struct {
		global, site string
		origin       http.HandlerFunc
		upstream     string // instead of the origin
		path         string // of the playback URL; "": none
		gate         string // options of the gate
		flags        []string
		want         map[string]string // check: part of its text
	}{
		"nothing to do":          {global: global},
		"the origin is down":     {global: global, upstream: down, want: map[string]string{"origin": "does not answer", "playback": "502"}},
		"clocks differ":          {global: global, origin: fast, want: map[string]string{"clock": "differ by"}},
		"no keys":                {want: map[string]string{"keys": "no verification keys", "playback": "key_unknown"}},
		"a key set is gone":      {global: global + "\njwks_url http://" + down + "/jwks\naudience x", want: map[string]string{"keys": "connection refused", "playback": "audience_not_allowed"}},
		"a private key":          {global: "key_file DIR/key.json", want: map[string]string{"config": "private key"}},
		"an old database":        {global: global + "\ngeoip_database testdata/country.mmdb", want: map[string]string{"geo": "days ago"}},
		"no store":               {global: global + "\nstore redis redis://" + down, want: map[string]string{"store": "cannot be read", "playback": "state_unavailable"}},
		"no server has started":  {global: global + "\nsessions on", want: map[string]string{"playback": "start the server once"}},
		"no store of sessions":   {global: global + "\nsessions on\nstore redis redis://" + down, want: map[string]string{"store": "cannot be read", "playback": "state_unavailable"}},
		"tokens in logs":         {global: global, site: "log", want: map[string]string{"config": "tokens, get into logs"}},
		"redacted logs":          {global: global, site: "log {\nformat signed_playback\n}", want: map[string]string{"config": "http.log.error"}},
		"no back end answers":    {global: global + "\nsessions on\nsession_secret 0123456789abcdef\nadmission http://" + down + "/s3cret", want: map[string]string{"admission": "does not answer"}},
		"questions in cleartext": {global: global + "\nsessions on\nsession_secret 0123456789abcdef\nadmission http://255.255.255.255/s3cret", want: map[string]string{"admission": "255.255.255.255 does not answer", "config": "not encrypted"}},
		"accepted":               {global: global, site: "log", flags: []string{"--accept", "config"}},
		"URIs lead out":          {global: global, path: "outside.m3u8", want: map[string]string{"playback": "1 of the manifest's 1 URIs"}},
		"the gate refuses URIs":  {global: global, path: "refused.m3u8", want: map[string]string{"config": "refuses files"}},
		"an empty answer":        {global: global, origin: func(http.ResponseWriter, *http.Request) {}, want: map[string]string{"playback": "look at its answer"}},
		"no such manifest":       {global: global, path: "none.m3u8", want: map[string]string{"playback": "404"}},
		"a page":                 {global: global, path: "iframe", gate: "player\nmanifest a%20b/video.m3u8"},
		"a video of some sites":  {global: global + "\nallowed_origins *.example.com", want: map[string]string{"playback": "--referer"}},
		"a page of such a site":  {global: global + "\nallowed_origins *.example.com", flags: []string{"--referer", "https://www.example.com/page", "--origin", "https://www.example.com"}},
		"a page of another site": {global: global + "\nallowed_origins *.example.com", flags: []string{"--referer", "https://evil.com/"}, want: map[string]string{"playback": "origin_not_allowed"}},
		"a page plays nothing":   {global: global, path: "iframe", gate: "player", origin: http.NotFound, want: map[string]string{"playback": "/manifest/video.m3u8: the answer has the status 404"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			must(struct{}{}, errors.Join(os.WriteFile(dir+"/key.json", []byte(must(testKey().JWK())), 0o600), os.WriteFile(dir+"/public.json", []byte(publicJWK(testKey())), 0o600)))
			if test.origin == nil {
				test.origin = doctorsOrigin
			}
			origin := httptest.NewServer(test.origin)
			defer origin.Close()
			if test.upstream == "" {
				test.upstream = origin.Listener.Addr().String()
			}
			logs := "log {\nformat signed_playback\n}"
			if strings.Contains(test.site, "log") {
				logs = ""
			}
			config := "{\nstorage file_system DIR/storage\n" + logs + "\nsigned_playback {\n" + test.global + "\n}\n}\n" +
				"http://media.test {\n" + test.site + "\nsigned_playback {\n" + test.gate + "\n}\nreverse_proxy " + test.upstream + "\n}\n"
			must(struct{}{}, os.WriteFile(dir+"/Caddyfile", []byte(strings.ReplaceAll(config, "DIR", dir)), 0o600))
			url, _, err := run("sign", "--key", dir+"/key.json", "--sub", "demo", "--url", "http://media.test", "--path", "video.m3u8")
			must(url, err)
			url = strings.ReplaceAll(strings.TrimSpace(url), "video.m3u8", cmp.Or(test.path, "video.m3u8"))
			out, _, err := run(append([]string{"doctor", "--json", "--config", dir + "/Caddyfile", "--url", url}, test.flags...)...)
			if (err != nil) != (len(test.want) > 0) || err != nil && !errors.Is(err, command.ErrRefused) {
				t.Errorf("doctor ends with %v", err)
			}
			if strings.Contains(out, "eyJ") {
				t.Error("the output contains the token")
			}
			var findings []struct{ Check, Outcome, Text, Fix string }
			must(struct{}{}, json.Unmarshal([]byte(out), &findings))
			for _, f := range findings {
				if want, found := test.want[f.Check]; (f.Outcome == "to do") != found || found && !strings.Contains(f.Text+f.Fix, want) {
					t.Errorf("%+v, want something to do: %v (%s)", f, found, want)
				}
			}
		})
	}
}

// doctorsOrigin has manifests of one URI.
func doctorsOrigin(w http.ResponseWriter, r *http.Request) {
	uri, known := map[string]string{"video.m3u8": "1.ts", "outside.m3u8": "/other/1.ts", "refused.m3u8": "a;b.ts"}[filepath.Base(r.URL.Path)]
	if !known {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/vnd.apple.mpegurl")
	_, _ = w.Write([]byte("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n" + uri + "\n#EXT-X-ENDLIST\n"))
}
