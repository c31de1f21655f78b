package signedplayback

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/signed-playback/caddy-signed-playback/internal/command"
	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/replay"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/siteconfig"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// siteFile writes the Caddyfile of the tests, which has a site for most of what
// there can be between a viewer and a gate.
func siteFile(t *testing.T) string {
	t.Helper()
	text := string(must(os.ReadFile("testdata/explain.caddyfile")))
	return writeFile(t, "Caddyfile", strings.Replace(text, "KEY", writeFile(t, "key.json", publicJWK(testKey())), 1))
}

// adaptedWithoutLog adapts a Caddyfile to a config in JSON that logs nothing.
func adaptedWithoutLog(file string) string {
	config := must(siteconfig.Adapt(file))
	delete(config, "logging")
	return string(must(json.Marshal(config)))
}

// running provisions a config as a server does, and returns the explanations of its API. Only
// the command notes that there are no keys: the tests have them in files.
func running(t *testing.T, config string) func(address string, change func(*replay.Request)) (*replay.Explanation, error) {
	t.Helper()
	servers := serversOf(t, adaptedWithoutLog(config))
	return func(address string, change func(*replay.Request)) (*replay.Explanation, error) {
		asked := replay.Request{URL: address, IP: "203.0.113.7", Method: http.MethodGet}
		if change != nil {
			change(&asked)
		}
		return replay.Running(servers, traced).Explain(must(asked.HTTP()), testTime)
	}
}

// explanationOf is explaining for a request that reaches a gate.
func explanationOf(t *testing.T, config, address string, change func(*replay.Request)) *replay.Explanation {
	t.Helper()
	out, err := explaining(config, address, change, "--json")
	e := new(replay.Explanation)
	if decodeErr := json.Unmarshal([]byte(out), e); decodeErr != nil {
		t.Fatalf("explain printed %q: %v, %v", out, err, decodeErr)
	}
	if refused := errors.Is(err, command.ErrRefused); refused == e.Allowed || err != nil && !refused {
		t.Errorf("explain of a request that is allowed: %t ends with %v", e.Allowed, err)
	}
	return e
}

// explainedTwice explains a request by the command and in a running config, with the same result.
func explainedTwice(t *testing.T, config string, inRunning func(string, func(*replay.Request)) (*replay.Explanation, error), address string, change func(*replay.Request)) *replay.Explanation {
	t.Helper()
	e := explanationOf(t, config, address, change)
	e.Notes = slices.DeleteFunc(e.Notes, func(note string) bool { return note == noKeys })
	got, err := inRunning(address, change)
	if diff := cmp.Diff(e, got, cmpopts.EquateEmpty()); diff != "" || err != nil {
		t.Errorf("the running config: %v (-command +running):\n%s", err, diff)
	}
	return e
}

// A request finds its gate by the matchers of the config, and the handlers before
// the gate change it, as on the server.
func TestExplainFindsTheGate(t *testing.T) {
	t.Parallel()
	config := siteFile(t)
	inRunning := running(t, config)
	good, site := plainToken(), signedFor("site")
	const own, tls = "http://media.example.net", "https://media.example.net"
	for _, tc := range []struct {
		name, address string
		headers       []string
		want          told
	}{
		{"path matcher", own + "/" + good + "/x.ts", nil, told{true, refusal.Allowed, "", 0}},
		{"path matcher, default port", own + ":80/" + good + "/x.ts", nil, told{true, refusal.Allowed, "", 0}},
		{"host in capitals", "http://MEDIA.Example.net/" + good + "/x.ts", nil, told{true, refusal.Allowed, "", 0}},
		{"handle_path", own + "/play/" + good + "/x.ts", nil, told{true, refusal.Allowed, "", 0}},
		{"handle_path, video id", own + "/play/demo/x.ts", nil, told{false, refusal.Refused, refusal.TokenRequired, 401}},
		{"strip_prefix", own + "/vod/" + good + "/x.ts", nil, told{true, refusal.Allowed, "", 0}},
		{"options of that gate", own + "/vod/" + good + "/x.mp4", nil, told{false, refusal.Refused, refusal.DownloadNotAllowed, 403}},
		{"report-only of that gate", own + "/vod/" + site + "/x.ts", nil, told{true, refusal.WouldRefuse, refusal.OriginRequired, 0}},
		{"rewrite", own + "/strict/" + good + "/x.ts", nil, told{false, refusal.Refused, refusal.TokenRequired, 401}},
		{"header matcher", own + "/demo/x.ts", []string{"X-Internal: yes"}, told{true, refusal.WouldRefuse, refusal.TokenRequired, 0}},
		{"header that is set before the gate", own + "/" + site + "/x.ts", []string{"X-Debug: 1"}, told{false, refusal.Refused, refusal.OriginNotAllowed, 403}},
		{"another port", own + ":8080/demo/x.ts", nil, told{true, refusal.WouldRefuse, refusal.TokenRequired, 0}},
		{"https", tls + "/demo/x.ts", nil, told{false, refusal.Refused, refusal.TokenRequired, 401}},
		{"https, in a route", tls + "/a/" + good + "/x.ts", nil, told{true, refusal.Allowed, "", 0}},
		{"wildcard host", "https://any.example.org/" + good, nil, told{true, refusal.Allowed, "", 0}},
		{"a path that is not clean", own + "/" + good + "/a/../x.ts", nil, told{false, refusal.Refused, refusal.PathInvalid, 400}},
		{"escapes", own + "/" + good + "/a%2fb", nil, told{false, refusal.Refused, refusal.PathInvalid, 400}},
		{"fragment", own + "/" + good + "/x.ts#a/../b", nil, told{true, refusal.Allowed, "", 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := explainedTwice(t, config, inRunning, tc.address, func(o *replay.Request) { o.Headers = tc.headers })
			if diff := cmp.Diff(tc.want, told{e.Allowed, e.Result, e.Reason, e.Status}); diff != "" {
				t.Errorf("(-want +got):\n%s%s", diff, printed(t, e, false))
			}
			if len(e.Notes) > 0 {
				t.Errorf("notes: %q", e.Notes)
			}
		})
	}
}

// A request that reaches no gate is not allowed. The error says what answers it.
func TestExplainFindsNoGate(t *testing.T) {
	t.Parallel()
	config := siteFile(t)
	inRunning := running(t, config)
	for address, want := range map[string]string{
		"http://media.example.net/health":          `static_response answers "media.example.net"`,
		"http://media.example.net/a.b/x.ts":        `each gate of the site (`,
		"https://media.example.net/other/x.ts":     `Caddyfile:68) comes after that handler, or has a matcher`,
		"https://www.example.net/demo/x.ts":        `no site with signed_playback is for the host "www.example.net", and static_response answers`,
		"https://bare.example.net/other/x.ts":      `Caddyfile:90) has a matcher, or one of a block around it, that does not match the request`,
		"https://media.example.net/elsewhere":      `static_response answers "media.example.net"`,
		"https://nowhere.example.com/demo/x.ts":    `the host "nowhere.example.com"`,
		"https://a.b.example.org/demo/x.ts":        `the host "a.b.example.org"`,
		"http://media.example.net.evil.com/x.ts":   `the host "media.example.net.evil.com"`,
		"https://media.example.net:8443/demo/x.ts": `port "8443", but on :443, :80, :8080 (and perhaps on port 80`,
		"http://media.example.net:0/demo/x.ts":     `port "0", but on`,
		"http://media.example.net:99999/demo/x.ts": `port "99999", but on`,
		"http://media.example.net:8080x/demo/x.ts": `port "8080x", but on`,
	} {
		out, err := explaining(config, address, nil)
		if err == nil || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("%s: %v and %q, want an error with %q and nothing", address, err, out, want)
		}
		want, _, _ = strings.Cut(want, " (and perhaps") // Caddy knows
		if e, err := inRunning(address, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the running config explains it: %v and %v, want an error with %q", address, e, err, want)
		}
	}
}

// explain follows an allowed request to the handlers after the gate, as the server does:
// to another gate, which gets the origin's path, or to none.
func TestExplainGoesOn(t *testing.T) {
	t.Parallel()
	key := writeFile(t, "key.json", publicJWK(testKey()))
	for name, tc := range map[string]struct {
		site string
		want told
		text string
	}{
		"one gate":             {"signed_playback\nreverse_proxy 127.0.0.1:1", told{true, refusal.Allowed, "", 0}, "allowed,"},
		"another gate":         {"route {\nsigned_playback\n@a path *.ts\nsigned_playback @a\nreverse_proxy 127.0.0.1:1\n}", told{false, refusal.Refused, refusal.TokenRequired, 401}, "gate       refuse"},
		"another gate's path":  {"route {\nsigned_playback\n@a path *.ts\nsigned_playback @a\nreverse_proxy 127.0.0.1:1\n}", told{false, refusal.Refused, refusal.TokenRequired, 401}, `gets the path "/demo/x.ts"`},
		"not the other gate":   {"route {\nsigned_playback\n@a path *.m4s\nsigned_playback @a\nreverse_proxy 127.0.0.1:1\n}", told{true, refusal.Allowed, "", 0}, "allowed,"},
		"nothing":              {"signed_playback", told{true, refusal.Allowed, "", 0}, "the server answers 502"},
		"nothing at this path": {"signed_playback\nreverse_proxy /other/* 127.0.0.1:1", told{true, refusal.Allowed, "", 0}, "the server answers 502"},
		"the player page":      {"signed_playback {\nplayer\n}", told{true, refusal.Allowed, "", 0}, "allowed,"},
		"the player SDK":       {"signed_playback {\nplayer\n}", told{true, refusal.Allowed, "", 0}, "needs no token"},
	} {
		t.Run(name, func(t *testing.T) {
			config := writeFile(t, "Caddyfile", "{\nsigned_playback {\nkey_file "+key+"\n}\n}\nhttp://media.example.net {\n"+tc.site+"\n}\n")
			path := "/x.ts"
			if strings.Contains(tc.site, "player") {
				path = "/iframe"
			}
			if path = "/" + plainToken() + path; name == "the player SDK" {
				path = sdkPath
			}
			e := explainedTwice(t, config, running(t, config), "http://media.example.net"+path, nil)
			text := printed(t, e, false)
			if diff := cmp.Diff(tc.want, told{e.Allowed, e.Result, e.Reason, e.Status}); diff != "" || !strings.Contains(text, tc.text) || strings.Contains(text, "answers 502") != strings.Contains(tc.text, "answers 502") {
				t.Errorf("(-want +got):\n%s%s", diff, text)
			}
		})
	}
	config := writeFile(t, "Caddyfile", "http://media.example.net {\nsigned_playback\nhandle {\nsigned_playback\n}\nreverse_proxy 127.0.0.1:1\n}\n")
	if _, err := explaining(config, "http://media.example.net/demo/x.ts", nil); err == nil || !strings.Contains(err.Error(), "two gates in one chain") {
		t.Errorf("a config that does not load: %v", err)
	}
}

// explain does not ask another server whether the viewer may pass, and says so.
func TestExplainDoesNotAskOthers(t *testing.T) {
	t.Parallel()
	for name, guard := range map[string]string{
		"authentication": "basic_auth {\n\tu $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}",
		"reverse_proxy":  "forward_auth 127.0.0.1:1 {\n\turi /check\n}",
		"request_body":   "request_body {\n\tmax_size 1\n}",
	} {
		t.Run(name, func(t *testing.T) {
			config := writeFile(t, "Caddyfile", "http://media.example.net {\n"+guard+"\nsigned_playback\nfile_server\n}\nhttp://other.example.net {\nsigned_playback\nfile_server\n}\n")
			out, err := explaining(config, "http://media.example.net/demo/x.ts", nil)
			if !errors.Is(err, command.ErrRefused) || !strings.Contains(out, "refused with 401 token_required") {
				t.Errorf("explain = %v, want it refused by the gate: %s", err, out)
			}
			want := "note: the handler " + name + " was not replayed"
			if !strings.Contains(out, want) {
				t.Errorf("explain does not mention the handler before the gate: %s", out)
			}
			if e, err := running(t, config)("http://media.example.net/demo/x.ts", nil); err != nil || !strings.Contains("note: "+strings.Join(e.Notes, "\nnote: "), want) {
				t.Errorf("the running config: %+v, %v, want %q", e, err, want)
			}
			if out, err = explaining(config, "http://other.example.net/demo/x.ts", nil); !errors.Is(err, command.ErrRefused) || strings.Contains(out, "not replayed") {
				t.Errorf("explain = %v, and mentions a handler of another site: %s", err, out)
			}
		})
	}
}

// The client address is that of the connection, or the one that a trusted proxy
// sends, as on the server.
func TestExplainAddresses(t *testing.T) {
	t.Parallel()
	config := siteFile(t)
	inRunning := running(t, config)
	compact := signedWithRules(needsCountry) // GB only
	for _, tc := range []struct {
		name, ip string
		headers  []string
		client   string
		country  string
		allowed  bool
	}{
		{"GB", "203.0.113.7", nil, "203.0.113.7", "GB", true},
		{"mapped", "::ffff:203.0.113.7", nil, "203.0.113.7", "GB", true},
		{"IPv6", "2001:db8::1", nil, "2001:db8::1", "", false},
		{"with a zone", "fe80::1%eth0", nil, "fe80::1", "", false},
		{"trusted proxy", "10.0.0.1", []string{"X-Forwarded-For: 203.0.113.7"}, "203.0.113.7", "GB", true},
		{"trusted proxy, and an address that the client has sent", "10.0.0.1", []string{"X-Forwarded-For: 203.0.113.7, 198.51.100.1"}, "198.51.100.1", "DE", false},
		{"two trusted proxies", "10.0.0.1", []string{"X-Forwarded-For: 203.0.113.7, 10.0.0.2"}, "203.0.113.7", "GB", true},
		{"not a trusted proxy", "198.51.100.1", []string{"X-Forwarded-For: 203.0.113.7"}, "198.51.100.1", "DE", false},
		{"not a trusted header", "10.0.0.1", []string{"X-Real-IP: 203.0.113.7"}, "10.0.0.1", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := explainedTwice(t, config, inRunning, "http://media.example.net/"+compact+"/x.ts", func(o *replay.Request) { o.IP, o.Headers = tc.ip, tc.headers })
			if e.Client != tc.client || e.Country != tc.country || e.Allowed != tc.allowed {
				t.Errorf("client %s in %q, allowed %t; want %s in %q, %t", e.Client, e.Country, e.Allowed, tc.client, tc.country, tc.allowed)
			}
		})
	}
}

// explain reads JSON in all the forms that Caddy's admin API accepts.
func TestExplainReadsJSON(t *testing.T) {
	t.Parallel()
	key := writeFile(t, "key.json", publicJWK(testKey()))
	for name, routes := range map[string]string{
		"a gate":               `[{"handle": [{"handler": "signed_playback"}]}]`,
		"a gate in a subroute": `[{"handle": [{"handler": "subroute", "routes": [{"match": [{"path": ["/*"]}], "handle": [{"handler": "signed_playback"}, {"handler": "file_server"}]}], "errors": {"routes": []}}]}]`,
		"a named route":        `[{"handle": [{"handler": "invoke", "name": "gate"}]}]`,
		"with ids":             `[{"@id": "gate", "group": "g", "terminal": true, "handle": [{"@id": "x", "handler": "signed_playback"}]}]`,
	} {
		t.Run(name, func(t *testing.T) {
			config := writeFile(t, "config.json", fmt.Sprintf(`{"apps": {
				"signed_playback": {"key_file": [%q]},
				"http": {"servers": {"one": {"listen": [":443"], "routes": %s, "named_routes": {"gate": {"handle": [{"handler": "signed_playback"}]}}}}}
			}}`, key, routes))
			if e := explanationOf(t, config, "https://media.example.net/"+plainToken()+"/x.ts", nil); !e.Allowed {
				t.Errorf("it is refused: %s", e.Reason)
			}
			if e := explainedTwice(t, config, running(t, config), "https://media.example.net/demo/x.ts", nil); e.Reason != refusal.TokenRequired {
				t.Errorf("a video id: %q", e.Reason)
			}
		})
	}
}

// explain has the outcome of a server with the same config, for random requests.
func TestExplainIsTheServersAnswer(t *testing.T) {
	t.Parallel()
	config := siteFile(t)
	explaining := replayed(t, config)
	var server *caddyhttp.Server
	for _, s := range serversOf(t, adaptedWithoutLog(config)) {
		if slices.Contains(s.Listen, ":80") {
			server = s
		}
	}
	random := rand.New(rand.NewPCG(6, 2))
	credentials, sites := playbacks()
	credentials = slices.DeleteFunc(credentials, func(c credential) bool { return c.first == ".." }) // leads out of the prefix
	seen := make(map[refusal.Reason]int)
	for range 100 {
		first, from := pick(random, credentials).first, pick(random, sites)
		target := pick(random, []string{"/play/", "/vod/"}) + first + pick(random, []string{"", "/x.ts", "/x.mp4", "/downloads/x", "/a/../b"})
		ip, m := pick(random, []string{"203.0.113.7", "198.51.100.1", "8.8.8.8"}), pick(random, []string{"GET", "GET", "GET", "GET", "GET", "GET", "HEAD", "OPTIONS", "POST"})
		r := httptest.NewRequest(m, target, nil)
		r.Host, r.RemoteAddr, r.Header = "media.example.net", net.JoinHostPort(ip, "1234"), from.header.Clone()
		w := httptest.NewRecorder()
		server.ServeHTTP(w, r)
		asked := replay.Request{URL: "http://media.example.net" + target, IP: ip, Method: m}
		for name, values := range from.header {
			asked.Headers = append(asked.Headers, name+": "+values[0])
		}
		e := must(explaining.Explain(must(asked.HTTP()), testTime))
		answer := refusal.Reason(w.Header().Get(headerpolicy.ReasonHeader))
		if e.Allowed != (answer == "") || !e.Allowed && (e.Reason != answer || e.Status != w.Code) {
			t.Fatalf("%s %.60s… %v from %s: the server answers %d %s, explain says allowed %t, %d %s",
				m, target, from.header, ip, w.Code, answer, e.Allowed, e.Status, e.Reason)
		}
		seen[answer]++
	}
	if len(seen) < 9 {
		t.Errorf("only %d outcomes: %v", len(seen), seen)
	}
}

// explain listens nowhere, sends no request and writes no file. It does not need
// the port or the log that the server itself has open.
func TestExplainDoesNothingElse(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	everybody := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		t.Errorf("explain asks for %s %s", r.Method, r.URL.Path)
	}))
	defer everybody.Close()
	dir := t.TempDir()
	key := writeFile(t, "key.json", publicJWK(testKey()))
	busy := string(must(os.ReadFile("testdata/explain_busy.caddyfile"))) // does at its start all that a config can do
	config := writeFile(t, "Caddyfile", strings.NewReplacer("ADDRESS", everybody.Listener.Addr().String(), "FOLDER", dir, "KEY", key).Replace(busy))
	for _, address := range []string{
		"https://media.example.net/" + plainToken() + "/manifest/video.m3u8",
		"https://media.example.net/demo/x.ts",
		"https://other.example.net/" + plainToken() + "/x.ts",
		"http://" + everybody.Listener.Addr().String() + "/" + plainToken() + "/x.ts",
	} {
		explanationOf(t, config, address, nil)
	}
	var files []string
	if err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		files = append(files, path)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{dir}, files); diff != "" {
		t.Errorf("explain has made files (-want +got):\n%s", diff)
	}
}

// explain uses the remote key set and the keys of the control API, as the server
// does.
func TestExplainReadsKeySetAndStore(t *testing.T) {
	t.Parallel()
	keys := newKeyServer(t)
	keys.body = keySetOf(otherKey())
	remote := must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, otherKey()))

	folder := t.TempDir()
	app := loaded(t, folder, new(App))
	app.state.Start()
	defer app.Cleanup()
	stored, _, err := app.state.CreateKey(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	revoked, _, err := app.state.CreateKey(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := app.state.Revoke(t.Context(), revoked.ID()); err != nil {
		t.Fatal(err)
	}
	of := func(key *token.SigningKey) string {
		return must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, key))
	}
	const text = "{\n\tstorage file_system %s\n\tsigned_playback {\n\t\tjwks_url %s\n\t}\n}\n\nhttp://media.example.net {\n\tsigned_playback\n\trespond ok\n}\n"
	config := writeFile(t, "Caddyfile", fmt.Sprintf(text, folder, keys.URL))
	for _, tc := range []struct {
		name, compact string
		want          refusal.Reason
	}{
		{"of the key set", remote, ""},
		{"of the store", of(stored), ""},
		{"revoked", of(revoked), refusal.KeyUnknown},
		{"unknown", plainToken(), refusal.KeyUnknown},
	} {
		if e := explanationOf(t, config, "http://media.example.net/"+tc.compact+"/x.ts", nil); e.Reason != tc.want || len(e.Notes) > 0 && e.Allowed {
			t.Errorf("a token of a key %s: %q %q, want %q", tc.name, e.Reason, e.Notes, tc.want)
		}
	}

	keys.status = http.StatusInternalServerError
	config = writeFile(t, "Caddyfile", fmt.Sprintf(text, t.TempDir(), keys.URL+"/away"))
	e := explanationOf(t, config, "http://media.example.net/"+remote+"/x.ts", nil)
	if e.Reason != refusal.StateUnavailable || e.Status != http.StatusServiceUnavailable {
		t.Errorf("a key set that cannot be loaded: %d %s", e.Status, e.Reason)
	}
	if !slices.ContainsFunc(e.Notes, func(note string) bool { return strings.Contains(note, "the key set of jwks_url cannot be loaded now") }) {
		t.Errorf("notes: %q, want why the key set is not there", e.Notes)
	}
}

// People share terminals and paste output into tickets. So neither the explanation
// nor an error shows a token, also if it is in the wrong place.
func TestExplainShowsNoToken(t *testing.T) {
	config := siteFile(t)
	compact := signed(func(c *token.Claims) { c.NotBefore = testTime.Add(-time.Minute) })
	const host = "http://media.example.net"
	address, open := host+"/"+compact+"/x.ts", host+"/play/oursite/x.ts"
	for _, args := range [][]string{
		{"--url", "media.example.net/" + compact + "/x.ts"},
		{"--url", compact},
		{"--url", "https://" + compact + "/manifest/video.m3u8"},
		{"--url", address + "%zz"},
		{"--url", "https://" + compact + "@media.example.net/x.ts"},
		{"--url", host + ":9999/health?token=" + compact},
		{"--url", address, "--ip", compact},
		{"--url", address, "--at", compact},
		{"--url", open, "--origin", address},
		{"--url", open, "--referer", address},
		{"--url", address, "--header", compact},
		{"--url", address, "--header", compact + ": x"},
		{"--url", address, "--method", compact},
		{"--url", address, "--config", compact},
		{"--url", address, "--config", address},
		{"--url", address, compact},
		{address},
		{"--" + compact},
		{"--url", address, "--json=" + compact},
		{"--url", host + "/" + plainToken() + "/" + compact + "/x.ts"},
		{"--url", host + "/" + compact + "/" + compact + "/x.ts"},
		{"--url", host + "/play/" + compact + "A/x.ts"},
		{"--url", host + "/play/" + strings.ReplaceAll(compact, ".", "%2E") + "/x.ts"},
		{"--url", host + "/play/" + compact[strings.LastIndexByte(compact, '.')+1:] + "/x.ts"},
		{"--url", open + "?token=" + compact},
		{"--url", open, "--origin", "https://example.com", "--header", "Origin: " + compact},
		{"--url", host + "/play/oursite/" + compact + "/x.ts"},
		{"--url", host + ":8080/watch/" + compact + "/x.ts"},
	} {
		if !slices.Contains(args, "--config") {
			args = append([]string{"--config", config}, args...)
		}
		stdout, stderr, err := run(append([]string{"explain"}, args...)...)
		for segment := range strings.SplitSeq(compact, ".") {
			if text := fmt.Sprintf("%s\n%s\n%v", stdout, stderr, err); strings.Contains(text, segment) {
				t.Errorf("%.300q: a part of the token is printed: %.300s", args, text)
				break
			}
		}
	}
}

// explain works for the config that operators start from.
func TestExplainOfTheProductionExample(t *testing.T) {
	t.Setenv("SIGNED_PLAYBACK_API_TOKEN", "a-secret-of-some-length")
	t.Setenv("SIGNED_PLAYBACK_GEOIP", must(filepath.Abs("testdata/country.mmdb")))
	const config = "examples/Caddyfile.production"
	if _, err := os.Stat(config); err != nil {
		t.Fatal(err)
	}
	e := explanationOf(t, config, "https://media.example.com/demo/x.ts", func(o *replay.Request) { o.IP, o.Headers = "10.0.0.1", []string{"X-Forwarded-For: 203.0.113.7"} })
	if e.Reason != refusal.TokenRequired || e.Client != "203.0.113.7" || e.Country != "GB" {
		t.Errorf("%s for %s in %s, want token_required for 203.0.113.7 in GB", e.Reason, e.Client, e.Country)
	}
}

// Explain verifies a session in the path, without counting it.
func TestExplainSession(t *testing.T) {
	t.Parallel()
	g := newGate(t, sessionApp(nil), new(Gate))
	limited := sessionToken(func(c *token.Claims) { c.SessionLimit, c.StartBy = 2, testTime.Add(time.Minute) })
	session := begin(t, g, "/"+limited+"/master.m3u8")
	key, _ := sessions.KeyIn(session)
	for target, want := range map[string]string{
		"~" + session + "/7.ts":                 "pass: startBy 2027-01-15T08:01:00Z, in 1m0s; the session " + key.ID().String() + ", which began 2027-01-15T08:00:00Z, 0s ago; at most 2 at a time",
		"7.ts":                                  "pass: startBy 2027-01-15T08:01:00Z, in 1m0s; no session in the path; at most 2 at a time",
		"~" + strings.Repeat("A", 32) + "/7.ts": "refuse session_invalid: startBy",
	} {
		before := runningSessions(g)
		trace := &trace{at: testTime}
		_ = trace.follow(newDecision(g, requestFor(t, "/"+limited+"/"+target, nil), trace), httptest.NewRecorder(), caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil }))
		got := ""
		for _, check := range trace.checks {
			if check.Check == "session" {
				got = strings.TrimSpace(string(check.Outcome)+" "+string(check.Reason)) + ": " + strings.Join(check.Details, "; ")
			}
		}
		if !strings.HasPrefix(got, want) || strings.Contains(got, session) {
			t.Errorf("%.20s…: %s, want %s", target, got, want)
		}
		if runningSessions(g) != before {
			t.Errorf("%.20s…: explain counts a session", target)
		}
	}
}
