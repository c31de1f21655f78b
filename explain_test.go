package signedplayback

import (
	"bytes"
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

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// siteCaddyfile has a site for most of what stands between a viewer and a gate.
const siteCaddyfile = `{
	signed_playback {
		key_file %s
		geoip_database testdata/country.mmdb
		video site {
			allowed_origins example.com
		}
		video public {
			require_signed_urls off
		}
		video oursite {
			require_signed_urls off
			allowed_origins example.com
			missing_origin allow
		}
	}
	servers {
		trusted_proxies static 10.0.0.0/8
		trusted_proxies_strict
		client_ip_headers X-Forwarded-For
	}
}

http://media.example.net {
	handle_path /play/* {
		signed_playback
		reverse_proxy 127.0.0.1:1
	}
	handle /vod/* {
		uri strip_prefix /vod
		signed_playback {
			downloads *.mp4
			report_only origins
		}
		file_server
	}
	handle /strict/* {
		rewrite * /demo/x.ts
		signed_playback
		respond "from the origin"
	}
	@internal header X-Internal yes
	handle @internal {
		signed_playback {
			enforce off
		}
		respond "from the origin"
	}
	@own path_regexp ^/[^/]+\.[^/]+\.
	signed_playback @own
	@debug header X-Debug *
	request_header @debug Origin https://evil.com
	respond /health ok
	respond "from the origin"
}

http://media.example.net:8080 {
	signed_playback {
		enforce off
	}
	respond "from the origin"
}

https://media.example.net {
	route /a/* {
		vars origin a
		uri strip_prefix /a
		signed_playback
		respond "from the origin"
	}
	signed_playback /demo/*
	respond "no gate" 404
}

https://*.example.org {
	map {host} {backend} {
		default one
	}
	header X-Frame-Options DENY
	encode gzip
	signed_playback
	file_server
}
`

// siteFile writes the Caddyfile of the tests.
func siteFile(t *testing.T) string {
	t.Helper()
	return writeFile(t, "Caddyfile", fmt.Sprintf(siteCaddyfile, writeFile(t, "key.json", publicJWK(testKey()))))
}

// explaining runs the command at testTime for a viewer at 203.0.113.7.
func explaining(config, address string, change func(*explainOptions)) (string, error) {
	opts := explainOptions{config: config, url: address, ip: "203.0.113.7", method: http.MethodGet, now: func() time.Time { return testTime }}
	if change != nil {
		change(&opts)
	}
	var out bytes.Buffer
	err := explain(opts, &out)
	return out.String(), err
}

// explanationOf is explaining for requests that reach a gate.
func explanationOf(t *testing.T, config, address string, change func(*explainOptions)) (e explanation) {
	t.Helper()
	out, err := explaining(config, address, func(o *explainOptions) {
		o.json = true
		if change != nil {
			change(o)
		}
	})
	if decodeErr := json.Unmarshal([]byte(out), &e); decodeErr != nil {
		t.Fatalf("explain printed %q: %v, %v", out, err, decodeErr)
	}
	if refused := errors.Is(err, errRefused); refused == e.Allowed || err != nil && !refused {
		t.Errorf("explain of a request that is allowed: %t ends with %v", e.Allowed, err)
	}
	return e
}

// The two forms of the output, for a request that is refused, with all that
// stands in it.
func TestExplainOutput(t *testing.T) {
	config := siteFile(t)
	compact := signed(func(c *token.Claims) {
		c.VideoID, c.AccessRules = "site", json.RawMessage(`[{"type":"ip.geoip.country","country":["US"],"action":"allow"},{"type":"any","action":"block"}]`)
	})
	id := redact.TokenID(compact)
	address := "http://media.example.net/vod/" + compact + "/video/1.m4s?a=b#t=10"
	text, err := explaining(config, address, nil)
	if !errors.Is(err, errRefused) {
		t.Errorf("explain = %v, want errRefused", err)
	}
	want := strings.Join([]string{
		`method     pass          GET`,
		`path       pass          "video/1.m4s", kind segment, under a token`,
		`token      pass          well-formed, RS256, token id ` + id + `, sub "site"`,
		`key        pass          kid "k1"`,
		`signature  pass          by the key "k1"`,
		`claims     pass          downloadable false, 2 access rules`,
		`dates      pass          exp 2027-01-15T09:00:00Z, in 1h0m0s`,
		`settings   pass          video "site" requires a token, allows the origins example.com and denies requests without one (by its video block in the config)`,
		`                         only reported: origins`,
		`origins    would refuse  neither Origin nor Referer is sent`,
		`                         origin_required: the request has neither Origin nor Referer, and the video has allowed origins`,
		`rules      refuse        rule 1 of 2: ip.geoip.country [US] allow: client 203.0.113.7 is in GB, no match`,
		`                         rule 2 of 2: any block: match: block`,
		`                         rule_blocked: an access rule of the token blocks the viewer`,
		`download   pass          this is no download`,
		"",
		`refused with 403 rule_blocked, for 203.0.113.7 at 2027-01-15T08:00:00Z`,
		"",
	}, "\n")
	if diff := cmp.Diff(want, text); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
	text, err = explaining(config, address, func(o *explainOptions) { o.json = true })
	if !errors.Is(err, errRefused) {
		t.Errorf("explain --json = %v, want errRefused", err)
	}
	if diff := cmp.Diff(strings.ReplaceAll(siteJSON, "{id}", id), text); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

const siteJSON = `{
	"allowed": false,
	"result": "refused",
	"reason": "rule_blocked",
	"status": 403,
	"video": "site",
	"token_id": "{id}",
	"key_id": "k1",
	"client_ip": "203.0.113.7",
	"country": "GB",
	"at": "2027-01-15T08:00:00Z",
	"checks": [
		{
			"check": "method",
			"outcome": "pass",
			"details": [
				"GET"
			]
		},
		{
			"check": "path",
			"outcome": "pass",
			"details": [
				"\"video/1.m4s\", kind segment, under a token"
			]
		},
		{
			"check": "token",
			"outcome": "pass",
			"details": [
				"well-formed, RS256, token id {id}, sub \"site\""
			]
		},
		{
			"check": "key",
			"outcome": "pass",
			"details": [
				"kid \"k1\""
			]
		},
		{
			"check": "signature",
			"outcome": "pass",
			"details": [
				"by the key \"k1\""
			]
		},
		{
			"check": "claims",
			"outcome": "pass",
			"details": [
				"downloadable false, 2 access rules"
			]
		},
		{
			"check": "dates",
			"outcome": "pass",
			"details": [
				"exp 2027-01-15T09:00:00Z, in 1h0m0s"
			]
		},
		{
			"check": "settings",
			"outcome": "pass",
			"details": [
				"video \"site\" requires a token, allows the origins example.com and denies requests without one (by its video block in the config)",
				"only reported: origins"
			]
		},
		{
			"check": "origins",
			"outcome": "report",
			"reason": "origin_required",
			"details": [
				"neither Origin nor Referer is sent",
				"origin_required: the request has neither Origin nor Referer, and the video has allowed origins"
			]
		},
		{
			"check": "rules",
			"outcome": "refuse",
			"reason": "rule_blocked",
			"details": [
				"rule 1 of 2: ip.geoip.country [US] allow: client 203.0.113.7 is in GB, no match",
				"rule 2 of 2: any block: match: block",
				"rule_blocked: an access rule of the token blocks the viewer"
			]
		},
		{
			"check": "download",
			"outcome": "pass",
			"details": [
				"this is no download"
			]
		}
	]
}
`

// The line at the end says it all, for those who read no other.
func TestExplainSummaries(t *testing.T) {
	config := siteFile(t)
	for _, tc := range []struct{ name, address, want string }{
		{"allowed", "http://media.example.net/" + plainToken() + "/x.ts", "allowed, for 203.0.113.7 at 2027-01-15T08:00:00Z"},
		{"refused", "http://media.example.net/play/demo/x.ts", "refused with 401 token_required, for 203.0.113.7 at 2027-01-15T08:00:00Z"},
		{"reported", "http://media.example.net:8080/demo/x.ts", "allowed, because it is only reported: would be refused with 401 token_required, for 203.0.113.7 at 2027-01-15T08:00:00Z"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := explaining(config, tc.address, nil)
			got := out[strings.LastIndexByte(strings.TrimSuffix(out, "\n"), '\n')+1:]
			if got != tc.want+"\n" {
				t.Errorf("the last line is %q, want %q", got, tc.want)
			}
			if (err != nil) != (tc.name == "refused") {
				t.Errorf("explain = %v", err)
			}
		})
	}
}

// A request finds its gate by the matchers of the config, and what stands in
// front of the gate changes it, as on the server.
func TestExplainFindsTheGate(t *testing.T) {
	config := siteFile(t)
	good, site := plainToken(), signedFor("site")
	const own, tls = "http://media.example.net", "https://media.example.net"
	for _, tc := range []struct {
		name, address string
		headers       []string
		want          told
	}{
		{"path matcher", own + "/" + good + "/x.ts", nil, told{true, resultAllowed, "", 0}},
		{"path matcher, default port", own + ":80/" + good + "/x.ts", nil, told{true, resultAllowed, "", 0}},
		{"host in capitals", "http://MEDIA.Example.net/" + good + "/x.ts", nil, told{true, resultAllowed, "", 0}},
		{"handle_path", own + "/play/" + good + "/x.ts", nil, told{true, resultAllowed, "", 0}},
		{"handle_path, video id", own + "/play/demo/x.ts", nil, told{false, resultRefused, reasonTokenRequired, 401}},
		{"strip_prefix", own + "/vod/" + good + "/x.ts", nil, told{true, resultAllowed, "", 0}},
		{"options of that gate", own + "/vod/" + good + "/x.mp4", nil, told{false, resultRefused, reasonDownloadNotAllowed, 403}},
		{"report-only of that gate", own + "/vod/" + site + "/x.ts", nil, told{true, resultWouldRefuse, reasonOriginRequired, 0}},
		{"rewrite", own + "/strict/" + good + "/x.ts", nil, told{false, resultRefused, reasonTokenRequired, 401}},
		{"header matcher", own + "/demo/x.ts", []string{"X-Internal: yes"}, told{true, resultWouldRefuse, reasonTokenRequired, 0}},
		{"header that is set in front of the gate", own + "/" + site + "/x.ts", []string{"X-Debug: 1"}, told{false, resultRefused, reasonOriginNotAllowed, 403}},
		{"another port", own + ":8080/demo/x.ts", nil, told{true, resultWouldRefuse, reasonTokenRequired, 0}},
		{"https", tls + "/demo/x.ts", nil, told{false, resultRefused, reasonTokenRequired, 401}},
		{"https, in a route", tls + "/a/" + good + "/x.ts", nil, told{true, resultAllowed, "", 0}},
		{"wildcard host", "https://any.example.org/" + good, nil, told{true, resultAllowed, "", 0}},
		{"a path that nobody has cleaned", own + "/" + good + "/a/../x.ts", nil, told{false, resultRefused, reasonPathInvalid, 400}},
		{"escapes", own + "/" + good + "/a%2fb", nil, told{false, resultRefused, reasonPathInvalid, 400}},
		{"fragment", own + "/" + good + "/x.ts#a/../b", nil, told{true, resultAllowed, "", 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := explaining(config, tc.address, func(o *explainOptions) { o.headers, o.json = tc.headers, true })
			var e explanation
			if decodeErr := json.Unmarshal([]byte(out), &e); decodeErr != nil {
				t.Fatalf("explain ends with %v", err)
			}
			if diff := cmp.Diff(tc.want, told{e.Allowed, e.Result, e.Reason, e.Status}); diff != "" {
				t.Errorf("(-want +got):\n%s%s", diff, printed(t, e, false))
			}
			if len(e.Notes) > 0 {
				t.Errorf("notes: %q", e.Notes)
			}
		})
	}
}

// A request that reaches no gate is no request that is allowed: whoever asks is
// told what answers it.
func TestExplainFindsNoGate(t *testing.T) {
	config := siteFile(t)
	for address, want := range map[string]string{
		"http://media.example.net/health":         `no gate is reached: static_response answers "media.example.net"`,
		"http://media.example.net/a.b/x.ts":       `no gate is reached: static_response answers "media.example.net"`,
		"https://media.example.net/elsewhere":     `no gate is reached: static_response answers "media.example.net"`,
		"https://nowhere.example.com/demo/x.ts":   `no gate is reached: no site with signed_playback is for the host "nowhere.example.com"`,
		"https://a.b.example.org/demo/x.ts":       `no gate is reached: no site with signed_playback is for the host "a.b.example.org"`,
		"http://media.example.net.evil.com/x.ts":  `for the host "media.example.net.evil.com"`,
		"http://media.example.net/playing/x.ts":   `no gate is reached: static_response answers "media.example.net"`,
		"https://any.example.com:8443/demo/x.ts":  `for the host "any.example.com:8443"`,
		"https://example.org/demo/manifest/x.mpd": `for the host "example.org"`,
	} {
		out, err := explaining(config, address, nil)
		if err == nil || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("%s: %v and %q, want an error with %q and nothing", address, err, out, want)
		}
	}
}

// What asks somebody whether the viewer may pass is not asked, and the
// explanation says that it has not been.
func TestExplainPassesByWhatAsksOthers(t *testing.T) {
	for name, guard := range map[string]string{
		"authentication": "basic_auth {\n\tu $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}",
		"reverse_proxy":  "forward_auth 127.0.0.1:1 {\n\turi /check\n}",
		"request_body":   "request_body {\n\tmax_size 1\n}",
	} {
		t.Run(name, func(t *testing.T) {
			config := writeFile(t, "Caddyfile", "http://media.example.net {\n"+guard+"\nsigned_playback\nfile_server\n}\n")
			out, err := explaining(config, "http://media.example.net/demo/x.ts", nil)
			if !errors.Is(err, errRefused) || !strings.Contains(out, "refused with 401 token_required") {
				t.Errorf("explain = %v, want it refused by the gate: %s", err, out)
			}
			if want := "note: the handler " + name + " was not replayed"; !strings.Contains(out, want) {
				t.Errorf("explain says nothing of what stands before the gate: %s", out)
			}
		})
	}
}

// The viewer's address is what the server would take for it: that of the
// connection, or what a proxy that is trusted says.
func TestExplainAddresses(t *testing.T) {
	config := siteFile(t)
	compact := signedWithRules(needsCountry) // GB only
	for _, tc := range []struct {
		name, ip string
		headers  []string
		client   string
		country  string
		allowed  bool
	}{
		{"GB", "203.0.113.7", nil, "203.0.113.7", "GB", true},
		{"DE", "198.51.100.1", nil, "198.51.100.1", "DE", false},
		{"default", "", nil, "127.0.0.1", "US", false},
		{"mapped", "::ffff:203.0.113.7", nil, "203.0.113.7", "GB", true},
		{"IPv6", "2001:db8::1", nil, "2001:db8::1", "", false},
		{"with a zone", "fe80::1%eth0", nil, "fe80::1", "", false},
		{"trusted proxy", "10.0.0.1", []string{"X-Forwarded-For: 203.0.113.7"}, "203.0.113.7", "GB", true},
		{"trusted proxy, two addresses, of which the viewer can write one", "10.0.0.1", []string{"X-Forwarded-For: 203.0.113.7, 198.51.100.1"}, "198.51.100.1", "DE", false},
		{"trusted proxies in a row", "10.0.0.1", []string{"X-Forwarded-For: 203.0.113.7, 10.0.0.2"}, "203.0.113.7", "GB", true},
		{"no proxy that is trusted", "198.51.100.1", []string{"X-Forwarded-For: 203.0.113.7"}, "198.51.100.1", "DE", false},
		{"a header that is not believed", "10.0.0.1", []string{"X-Real-IP: 203.0.113.7"}, "10.0.0.1", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := explanationOf(t, config, "http://media.example.net/"+compact+"/x.ts", func(o *explainOptions) { o.ip, o.headers = tc.ip, tc.headers })
			if e.Client != tc.client || e.Country != tc.country || e.Allowed != tc.allowed {
				t.Errorf("client %s in %q, allowed %t; want %s in %q, %t", e.Client, e.Country, e.Allowed, tc.client, tc.country, tc.allowed)
			}
		})
	}
}

// The same request was another one an hour ago.
func TestExplainTimes(t *testing.T) {
	config := siteFile(t)
	compact := signed(func(c *token.Claims) { c.NotBefore = testTime.Add(-time.Minute) })
	for at, want := range map[string]reason{
		"":                          "",
		"30m":                       "",
		"-30s":                      "",
		"-2h":                       reasonTokenNotYetValid,
		"1h":                        reasonTokenExpired,
		"2d":                        reasonTokenExpired,
		"1800000000":                "",
		"1800003600":                reasonTokenExpired,
		"2027-01-15T08:59:59Z":      "",
		"2027-01-15T10:00:00+01:00": reasonTokenExpired,
	} {
		e := explanationOf(t, config, "http://media.example.net/"+compact+"/x.ts", func(o *explainOptions) { o.at = at })
		if e.Reason != want {
			t.Errorf("at %q: %q, want %q", at, e.Reason, want)
		}
		if e.At.Location() != time.UTC {
			t.Errorf("at %q: shown in %s", at, e.At.Location())
		}
	}
}

// A URL through a pipe does not end up in the history of a shell.
func TestExplainReadsStandardInput(t *testing.T) {
	config := siteFile(t)
	address := "http://media.example.net/" + plainToken() + "/x.ts"
	for name, stdin := range map[string]string{"plain": address, "with a line end": address + "\n", "with white space": "\n  " + address + " \r\n"} {
		e := explanationOf(t, config, "-", func(o *explainOptions) { o.stdin = strings.NewReader(stdin) })
		if e.TokenID != redact.TokenID(plainToken()) || !e.Allowed {
			t.Errorf("%s: token id %s, allowed %t", name, e.TokenID, e.Allowed)
		}
	}
	if _, err := explaining(config, "-", func(o *explainOptions) { o.stdin = strings.NewReader("") }); err == nil || !strings.Contains(err.Error(), "--url") {
		t.Errorf("nothing on standard input: %v", err)
	}
}

// A config in JSON is read as it is, whatever an API has made of it.
func TestExplainReadsJSON(t *testing.T) {
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
			if e := explanationOf(t, config, "https://media.example.net/demo/x.ts", nil); e.Reason != reasonTokenRequired {
				t.Errorf("a video id: %q", e.Reason)
			}
		})
	}
}

// Whatever the request, the command says what the server answers that has the
// same config.
func TestExplainIsTheServersAnswer(t *testing.T) {
	config := siteFile(t)
	adapted := must(adaptConfig(config))
	adapted["logging"] = map[string]any{"logs": map[string]any{"default": map[string]any{"writer": map[string]any{"output": "discard"}}}}
	raw, err := json.Marshal(adapted)
	if err != nil {
		t.Fatal(err)
	}
	var server *caddyhttp.Server
	for _, s := range serversOf(t, string(raw)) {
		if slices.Contains(s.Listen, ":80") {
			server = s
		}
	}
	random := rand.New(rand.NewPCG(6, 2))
	credentials, sites := playbacks()
	credentials = slices.DeleteFunc(credentials, func(c credential) bool { return c.first == ".." }) // leads out of what is mounted
	seen := make(map[reason]int)
	for range 200 {
		first, from := pick(random, credentials).first, pick(random, sites)
		target := pick(random, []string{"/play/", "/vod/"}) + first + pick(random, []string{"", "/x.ts", "/x.mp4", "/downloads/x", "/a/../b"})
		ip, m := pick(random, []string{"203.0.113.7", "198.51.100.1", "8.8.8.8"}), pick(random, []string{"GET", "GET", "GET", "GET", "GET", "GET", "HEAD", "OPTIONS", "POST"})
		r := httptest.NewRequest(m, target, nil)
		r.Host, r.RemoteAddr, r.Header = "media.example.net", net.JoinHostPort(ip, "1234"), from.header.Clone()
		w := httptest.NewRecorder()
		server.ServeHTTP(w, r)
		e := explanationOf(t, config, "http://media.example.net"+target, func(o *explainOptions) {
			o.ip, o.method = ip, m
			for name, values := range from.header {
				o.headers = append(o.headers, name+": "+values[0])
			}
		})
		answer := reason(w.Header().Get(reasonHeader))
		if e.Allowed != (answer == "") || !e.Allowed && (e.Reason != answer || e.Status != w.Code) {
			t.Fatalf("%s %.60s… %v from %s: the server answers %d %s, explain says allowed %t, %d %s",
				m, target, from.header, ip, w.Code, answer, e.Allowed, e.Status, e.Reason)
		}
		seen[answer]++
	}
	if len(seen) < 9 {
		t.Errorf("the requests ended in %d ways only: %v", len(seen), seen)
	}
}

// busyCaddyfile does as much as a config can do when it is started.
const busyCaddyfile = `{
	admin %[1]s
	storage file_system %[2]s/storage
	acme_ca http://%[1]s/acme
	email ops@example.com
	persist_config off
	log {
		output file %[2]s/default.log
	}
	servers {
		metrics
		protocols h1 h2 h3
		trusted_proxies static private_ranges
	}
	on_demand_tls {
		ask http://%[1]s/ask
	}
	signed_playback {
		key_file %[3]s
	}
}

https://media.example.net {
	log {
		output file %[2]s/access.log
	}
	tls {
		on_demand
	}
	tracing
	forward_auth /private/* %[1]s {
		uri /check
	}
	signed_playback
	reverse_proxy %[1]s {
		health_uri /health
		health_interval 10ms
		lb_try_duration 1s
	}
	handle_errors {
		reverse_proxy %[1]s
	}
}

https://other.example.net {
	tls %[2]s/certificate-of-another-user.pem %[2]s/key-of-another-user.pem
	signed_playback
	reverse_proxy %[1]s
}

http://%[1]s {
	bind 127.0.0.1
	signed_playback
	reverse_proxy %[1]s
}
`

// To explain is not to start: nobody is listened for, asked or written to, not
// the port that the server itself has at the moment, nor its log.
func TestExplainDoesNothingElse(t *testing.T) {
	var asked atomic.Int32
	everybody := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		t.Errorf("explain asks for %s %s", r.Method, r.URL.Path)
	}))
	defer everybody.Close()
	dir := t.TempDir()
	key := writeFile(t, "key.json", publicJWK(testKey()))
	config := writeFile(t, "Caddyfile", fmt.Sprintf(busyCaddyfile, everybody.Listener.Addr(), dir, key))
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

// What the server knows from elsewhere decides here too: a remote key set, and
// what the control API has stored.
func TestExplainReadsKeySetAndStore(t *testing.T) {
	keys := newKeyServer(t)
	keys.body = keySetOf(otherKey())
	remote := must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, otherKey()))

	folder := t.TempDir()
	app := loaded(t, folder, new(App))
	stored := keyOf("stored")
	if _, err := app.state.createKey(t.Context(), stored.Public(), true, ""); err != nil {
		t.Fatal(err)
	}
	revoked := keyOf("revoked")
	if _, err := app.state.createKey(t.Context(), revoked.Public(), true, ""); err != nil {
		t.Fatal(err)
	}
	if err := app.state.revoke(t.Context(), "revoked"); err != nil {
		t.Fatal(err)
	}
	of := func(key *token.SigningKey) string {
		return must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, key))
	}
	const text = "{\n\tstorage file_system %s\n\tsigned_playback {\n\t\tjwks_url %s\n\t}\n}\n\nhttp://media.example.net {\n\tsigned_playback\n}\n"
	config := writeFile(t, "Caddyfile", fmt.Sprintf(text, folder, keys.URL))
	for _, tc := range []struct {
		name, compact string
		want          reason
	}{
		{"of the key set", remote, ""},
		{"of the store", of(stored), ""},
		{"revoked", of(revoked), reasonKeyUnknown},
		{"of nobody", plainToken(), reasonKeyUnknown},
	} {
		if e := explanationOf(t, config, "http://media.example.net/"+tc.compact+"/x.ts", nil); e.Reason != tc.want || len(e.Notes) > 0 && e.Allowed {
			t.Errorf("a token of a key %s: %q %q, want %q", tc.name, e.Reason, e.Notes, tc.want)
		}
	}

	keys.status = http.StatusInternalServerError
	config = writeFile(t, "Caddyfile", fmt.Sprintf(text, t.TempDir(), keys.URL+"/away"))
	e := explanationOf(t, config, "http://media.example.net/"+remote+"/x.ts", nil)
	if e.Reason != reasonStateUnavailable || e.Status != http.StatusServiceUnavailable {
		t.Errorf("a key set that cannot be loaded: %d %s", e.Status, e.Reason)
	}
	if !slices.ContainsFunc(e.Notes, func(note string) bool { return strings.Contains(note, "the key set of jwks_url cannot be loaded now") }) {
		t.Errorf("notes: %q, want why the key set is not there", e.Notes)
	}
}

// A command that cannot tell says which of its options is to blame, with what
// it was given and what it wants.
func TestExplainErrors(t *testing.T) {
	config := siteFile(t)
	const address = "http://media.example.net/demo/x.ts"
	withConfig := func(name, text string) func(*explainOptions) {
		return func(o *explainOptions) { o.config = writeFile(t, name, text) }
	}
	for name, tc := range map[string]struct {
		change func(*explainOptions)
		want   []string
	}{
		"no URL":                        {func(o *explainOptions) { o.url = "" }, []string{"--url", "the whole URL", "https://"}},
		"URL without a scheme":          {func(o *explainOptions) { o.url = "media.example.net/demo/x.ts" }, []string{"--url", "the whole URL"}},
		"path":                          {func(o *explainOptions) { o.url = "/demo/x.ts" }, []string{"--url", "the whole URL"}},
		"URL of another scheme":         {func(o *explainOptions) { o.url = "ftp://media.example.net/demo/x.ts" }, []string{"--url", "the whole URL"}},
		"URL without a host":            {func(o *explainOptions) { o.url = "https:///demo/x.ts" }, []string{"--url", "no host"}},
		"URL with a user":               {func(o *explainOptions) { o.url = "https://u:p@media.example.net/demo/x.ts" }, []string{"--url", "no host"}},
		"URL with a broken escape":      {func(o *explainOptions) { o.url = "https://media.example.net/demo/%zz" }, []string{"--url", "a path that no server accepts"}},
		"URL with a line in it":         {func(o *explainOptions) { o.url = "https://media.example.net/demo/x\ny" }, []string{"--url", "a path that no server accepts"}},
		"address that is a name":        {func(o *explainOptions) { o.ip = "localhost" }, []string{`--ip "localhost"`, "want an IP address"}},
		"address with a port":           {func(o *explainOptions) { o.ip = "203.0.113.7:443" }, []string{`--ip "203.0.113.7:443"`, "want an IP address"}},
		"address that is a network":     {func(o *explainOptions) { o.ip = "203.0.113.0/24" }, []string{`--ip "203.0.113.0/24"`, "want an IP address"}},
		"time that is a word":           {func(o *explainOptions) { o.at = "yesterday" }, []string{"--at", `"yesterday"`, "a duration like 1h"}},
		"time that is a small number":   {func(o *explainOptions) { o.at = "60" }, []string{"--at", `"60"`, "60s"}},
		"header without a colon":        {func(o *explainOptions) { o.headers = []string{"X-Forwarded-For 203.0.113.7"} }, []string{"--header", "'Name: value'"}},
		"header without a name":         {func(o *explainOptions) { o.headers = []string{": x"} }, []string{"--header", "'Name: value'"}},
		"config that is not there":      {func(o *explainOptions) { o.config = filepath.Join(filepath.Dir(config), "none") }, []string{"--config", "none", "no such file"}},
		"config that is a folder":       {func(o *explainOptions) { o.config = filepath.Dir(config) }, []string{"--config", filepath.Dir(config)}},
		"Caddyfile that is none":        {withConfig("Caddyfile", "http://a {\n\tsigned_playbak\n}\n"), []string{"--config", "signed_playbak", "Caddyfile:2"}},
		"Caddyfile with a wrong option": {withConfig("Caddyfile", "http://a {\n\tsigned_playback {\n\t\tenforce maybe\n\t}\n}\n"), []string{"--config", `enforce "maybe": want on or off`, "Caddyfile:3"}},
		"JSON that is cut":              {withConfig("config.json", `{"apps":`), []string{"--config", "config.json"}},
		"JSON that is no object":        {withConfig("config.json", `[]`), []string{"--config", "config.json"}},
		"JSON with an unknown field":    {withConfig("config.json", `{"apps":{"http":{"servers":{"a":{"route":[]}}}}}`), []string{"config.json", "route"}},
		"Caddyfile without a site":      {withConfig("Caddyfile", "{\n\tsigned_playback\n}\n"), []string{"Caddyfile", "the config has no site, so no gate"}},
		"empty Caddyfile":               {withConfig("Caddyfile", ""), []string{"--config", "Caddyfile"}},
		"key file that is not there":    {withConfig("Caddyfile", "{\n\tsigned_playback {\n\t\tkey_file /nowhere/key.json\n\t}\n}\nhttp://media.example.net {\n\tsigned_playback\n}\n"), []string{"Caddyfile", "/nowhere/key.json"}},
		"site without a gate":           {withConfig("Caddyfile", "http://media.example.net {\n\trespond ok\n}\n"), []string{"no gate is reached: static_response answers"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := explaining(config, address, tc.change)
			if err == nil || out != "" {
				t.Fatalf("explain = %v and %q, want an error and nothing", err, out)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("explain = %v, want %s in it", err, want)
				}
			}
		})
	}
}

// The attack: nobody's. But terminals are shared and errors are pasted into
// tickets, so a token that an operator puts into the wrong place must not be
// repeated from there.
func TestExplainErrorsHaveNoToken(t *testing.T) {
	config := siteFile(t)
	compact := signed(func(c *token.Claims) { c.NotBefore = testTime.Add(-time.Minute) })
	address := "http://media.example.net/" + compact + "/x.ts"
	for name, args := range map[string][]string{
		"URL without a scheme":     {"--url", "media.example.net/" + compact + "/x.ts"},
		"token alone":              {"--url", compact},
		"token for a host":         {"--url", "https://" + compact + "/manifest/video.m3u8"},
		"broken escape":            {"--url", address + "%zz"},
		"user":                     {"--url", "https://" + compact + "@media.example.net/x.ts"},
		"no gate":                  {"--url", "http://media.example.net:9999/health?token=" + compact},
		"as the address":           {"--url", address, "--ip", compact},
		"as the time":              {"--url", address, "--at", compact},
		"as the origin":            {"--url", "http://media.example.net/play/oursite/x.ts", "--origin", address},
		"as the referer":           {"--url", "http://media.example.net/play/oursite/x.ts", "--referer", address},
		"as a header":              {"--url", address, "--header", compact},
		"as a header's name":       {"--url", address, "--header", compact + ": x"},
		"as the method":            {"--url", address, "--method", compact},
		"as the config":            {"--url", address, "--config", compact},
		"URL as the config":        {"--url", address, "--config", address},
		"as an argument":           {"--url", address, compact},
		"URL as an argument":       {address},
		"as a flag":                {"--" + compact},
		"as a flag's value":        {"--url", address, "--json=" + compact},
		"behind the path":          {"--url", "http://media.example.net/play/oursite/" + compact + "/x.ts"},
		"without what is stripped": {"--url", "http://media.example.net:8080/watch/" + compact + "/x.ts"},
	} {
		t.Run(name, func(t *testing.T) {
			if !slices.Contains(args, "--config") {
				args = append([]string{"--config", config}, args...)
			}
			out, err := run(explainCommand(), "", args...)
			text := fmt.Sprintf("%s\n%v", out, err)
			for segment := range strings.SplitSeq(compact, ".") {
				if strings.Contains(text, segment) {
					t.Errorf("a part of the token is printed: %.300s", text)
					return
				}
			}
		})
	}
}

// The flags reach what does the work, and have the defaults that the help
// promises.
func TestExplainCommandLine(t *testing.T) {
	config := siteFile(t)
	for flag, want := range map[string]string{
		"config": "Caddyfile", "url": "", "ip": "", "origin": "", "referer": "", "header": "[]", "method": "GET", "at": "", "json": "false",
	} {
		if got := explainCommand().Flag(flag).DefValue; got != want {
			t.Errorf("--%s is %q by default, want %q", flag, got, want)
		}
	}
	const base = "http://media.example.net/play/oursite/x.ts"
	for name, tc := range map[string]struct {
		args []string
		want told
	}{
		"origin":      {[]string{"--url", base, "--origin", "https://evil.com"}, told{false, resultRefused, reasonOriginNotAllowed, 403}},
		"referer":     {[]string{"--url", base, "--referer", "https://evil.com/page"}, told{false, resultRefused, reasonOriginNotAllowed, 403}},
		"header":      {[]string{"--url", base, "--header", "Origin: https://evil.com"}, told{false, resultRefused, reasonOriginNotAllowed, 403}},
		"two headers": {[]string{"--url", base, "--header", "Origin: https://example.com", "--header", "Origin:https://evil.com"}, told{false, resultRefused, reasonOriginNotAllowed, 403}},
		"method":      {[]string{"--url", base, "--method", "DELETE"}, told{false, resultRefused, reasonMethodNotAllowed, 405}},
		"ip":          {[]string{"--url", "http://media.example.net/" + signedWithRules(needsAddress) + "/x.ts", "--at", "1800000000", "--ip", "198.51.100.1"}, told{false, resultRefused, reasonRuleBlocked, 403}},
		"at":          {[]string{"--url", "http://media.example.net/" + plainToken() + "/x.ts", "--at", "2027-01-15T09:00:00Z"}, told{false, resultRefused, reasonTokenExpired, 401}},
		"allowed":     {[]string{"--url", base, "--origin", "https://example.com"}, told{true, resultAllowed, "", 0}},
	} {
		out, err := run(explainCommand(), "", append(tc.args, "--json", "-c", config)...)
		var e explanation
		if decodeErr := json.Unmarshal([]byte(out), &e); decodeErr != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(tc.want, told{e.Allowed, e.Result, e.Reason, e.Status}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if (err == nil) != e.Allowed {
			t.Errorf("%s: allowed %t, and the command ends with %v", name, e.Allowed, err)
		}
	}
	if _, err := run(explainCommand(), "", "--config", config, "--url", base, "--jsn"); err == nil {
		t.Error("an unknown flag is accepted")
	}
}

// The example of an operator's config is one that can be explained.
func TestExplainOfTheProductionExample(t *testing.T) {
	t.Setenv("SIGNED_PLAYBACK_API_TOKEN", "a-secret-of-some-length")
	t.Setenv("SIGNED_PLAYBACK_GEOIP", must(filepath.Abs("testdata/country.mmdb")))
	const config = "examples/Caddyfile.production"
	if _, err := os.Stat(config); err != nil {
		t.Fatal(err)
	}
	e := explanationOf(t, config, "https://media.example.com/demo/x.ts", func(o *explainOptions) { o.ip, o.headers = "10.0.0.1", []string{"X-Forwarded-For: 203.0.113.7"} })
	if e.Reason != reasonTokenRequired || e.Client != "203.0.113.7" || e.Country != "GB" {
		t.Errorf("%s for %s in %s, want token_required for 203.0.113.7 in GB", e.Reason, e.Client, e.Country)
	}
}
