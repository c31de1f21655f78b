package signedplayback

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// --from means what it means to caddy reverse-proxy, and what is printed leads
// there.
func TestParseProxySite(t *testing.T) {
	type site struct {
		url, listen string
		anyHost     bool
	}
	for _, tc := range []struct {
		from string
		want site
	}{
		{"localhost", site{"https://localhost", ":443", false}},
		{"media.example.com", site{"https://media.example.com", ":443", false}},
		{"MEDIA.example.com.", site{"https://media.example.com", ":443", false}},
		{"media.example.com:8443", site{"https://media.example.com:8443", ":8443", false}},
		{"https://media.example.com/", site{"https://media.example.com", ":443", false}},
		{"http://media.example.com", site{"http://media.example.com", ":80", false}},
		{"media.example.com:80", site{"http://media.example.com", ":80", false}},
		{":8080", site{"http://localhost:8080", ":8080", true}},
		{":80", site{"http://localhost", ":80", true}},
		{"http://", site{"http://localhost", ":80", true}},
		{"http://:8080", site{"http://localhost:8080", ":8080", true}},
		{"http://127.0.0.1:8080", site{"http://127.0.0.1:8080", "127.0.0.1:8080", false}},
		{"127.0.0.1:8443", site{"https://127.0.0.1:8443", "127.0.0.1:8443", false}},
		{"http://[0:0::1]:8080", site{"http://[::1]:8080", "[::1]:8080", false}},
		{"https://[::1]", site{"https://[::1]", "[::1]:443", false}},
		{"http://192.0.2.1:8080", site{"http://192.0.2.1:8080", ":8080", false}},
		{"0.0.0.0:8080", site{"http://localhost:8080", "0.0.0.0:8080", true}},
		{"[::]:8080", site{"http://localhost:8080", "[::]:8080", true}},
	} {
		t.Run(tc.from, func(t *testing.T) {
			got, err := parseProxySite(tc.from)
			if err != nil {
				t.Fatalf("parseProxySite = %v", err)
			}
			if diff := cmp.Diff(tc.want, site{got.url(), got.listen, got.anyHost}, cmp.AllowUnexported(site{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got.https != strings.HasPrefix(tc.want.url, "https:") {
				t.Errorf("https = %t", got.https)
			}
		})
	}
}

// The path of --to is where the videos' folders are, and the rest is what to
// dial.
func TestParseProxyOrigin(t *testing.T) {
	type origin struct{ url, address, template string }
	for _, tc := range []struct {
		to   string
		want origin
	}{
		{"127.0.0.1:8081", origin{"http://127.0.0.1:8081", "127.0.0.1:8081", "/{video}"}},
		{":8081", origin{"http://localhost:8081", "localhost:8081", "/{video}"}},
		{"origin.example.com", origin{"http://origin.example.com", "origin.example.com:80", "/{video}"}},
		{"origin.example.com/videos", origin{"http://origin.example.com", "origin.example.com:80", "/videos/{video}"}},
		{"http://10.0.0.2:8081", origin{"http://10.0.0.2:8081", "10.0.0.2:8081", "/{video}"}},
		{"http://10.0.0.2:8081/", origin{"http://10.0.0.2:8081", "10.0.0.2:8081", "/{video}"}},
		{"https://Origin.example.com", origin{"https://origin.example.com", "origin.example.com:443", "/{video}"}},
		{"https://origin.example.com/a/b-2/", origin{"https://origin.example.com", "origin.example.com:443", "/a/b-2/{video}"}},
		{"https://[2001:db8::1]:8443/v", origin{"https://[2001:db8::1]:8443", "[2001:db8::1]:8443", "/v/{video}"}},
	} {
		t.Run(tc.to, func(t *testing.T) {
			got, err := parseProxyOrigin(tc.to)
			if err != nil {
				t.Fatalf("parseProxyOrigin = %v", err)
			}
			if diff := cmp.Diff(tc.want, origin{got.url(), got.address(), got.template}, cmp.AllowUnexported(origin{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// proxying are the options of a proxy command with testKey for the video
// "demo", with what change makes of them. Every origin is up, and every address
// free.
func proxying(t *testing.T, change func(*proxyOptions)) (opts proxyOptions, warnings *bytes.Buffer) {
	t.Helper()
	warnings = new(bytes.Buffer)
	opts = proxyOptions{
		from: "http://127.0.0.1:8080", to: "127.0.0.1:8081",
		key: writeFile(t, "key.txt", must(testKey().JWK())), video: "demo", expires: "1h",
		publicKey: filepath.Join(t.TempDir(), "public.json"),
		stdin:     strings.NewReader(""), warnings: warnings,
		now:   func() time.Time { return testTime },
		claim: func(string) error { return nil },
		reach: func(webOrigin) error { return nil },
	}
	if change != nil {
		change(&opts)
	}
	return opts, warnings
}

// proxied runs proxy, which must succeed.
func proxied(t *testing.T, opts proxyOptions) (config *caddy.Config, printed string) {
	t.Helper()
	var out bytes.Buffer
	config, err := proxy(opts, &out)
	if err != nil {
		t.Fatalf("proxy = %v", err)
	}
	return config, out.String()
}

// A flag that is wrong is named with its value and with what would be right,
// and nothing is printed or left.
func TestProxyErrors(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "nowhere")
	for _, tc := range []struct {
		name   string
		change func(*proxyOptions)
		want   []string
	}{
		{"no from", func(o *proxyOptions) { o.from = "" }, []string{`--from ""`, "empty", "want an address like"}},
		{"from of another scheme", func(o *proxyOptions) { o.from = "ftp://a" }, []string{`--from "ftp://a"`, "neither http nor https"}},
		{"from with a path", func(o *proxyOptions) { o.from = "localhost/media" }, []string{`--from "localhost/media"`, "want an address like"}},
		{"from with a user", func(o *proxyOptions) { o.from = "http://a@b" }, []string{`--from "http://a@b"`, "host is not valid"}},
		{"from of any name", func(o *proxyOptions) { o.from = "*.example.com" }, []string{`--from "*.example.com"`, "host is not valid"}},
		{"from with a placeholder", func(o *proxyOptions) { o.from = "{env.HOST}" }, []string{`--from "{env.HOST}"`, "host is not valid"}},
		{"from with port 0", func(o *proxyOptions) { o.from = ":0" }, []string{`--from ":0"`, "1 to 65535"}},
		{"from with a port range", func(o *proxyOptions) { o.from = ":8080-8090" }, []string{`--from ":8080-8090"`, "1 to 65535"}},
		{"HTTPS without a host", func(o *proxyOptions) { o.from = "https://:8443" }, []string{`--from "https://:8443"`, "host name"}},
		{"HTTPS for every address", func(o *proxyOptions) { o.from = "https://0.0.0.0" }, []string{`--from "https://0.0.0.0"`, "host name"}},
		{"HTTP on the port of HTTPS", func(o *proxyOptions) { o.from = ":443" }, []string{`--from ":443"`, "port 443"}},
		{"HTTPS on the port of HTTP", func(o *proxyOptions) { o.from = "https://a:80" }, []string{`--from "https://a:80"`, "port 80"}},
		{"a port that is taken", func(o *proxyOptions) {
			o.claim = func(address string) error { return errors.New(address + " is taken") }
		}, []string{`--from "http://127.0.0.1:8080"`, "127.0.0.1:8080 is taken", "give a port"}},
		{"no to", func(o *proxyOptions) { o.to = "" }, []string{"needs --to", "like 127.0.0.1:8081"}},
		{"to of another scheme", func(o *proxyOptions) { o.to = "h2c://a" }, []string{`--to "h2c://a"`, "neither http nor https"}},
		{"to with a query", func(o *proxyOptions) { o.to = "http://a/?b" }, []string{`--to "http://a/?b"`, "query"}},
		{"to with a fragment", func(o *proxyOptions) { o.to = "http://a/#b" }, []string{`--to "http://a/#b"`, "fragment"}},
		{"to without a host", func(o *proxyOptions) { o.to = "https:///videos" }, []string{`--to "https:///videos"`, "host is not valid"}},
		{"to a socket", func(o *proxyOptions) { o.to = "unix//run/origin.sock" }, []string{`--to "unix//run/origin.sock"`, "want an origin like"}},
		{"to with a port out of range", func(o *proxyOptions) { o.to = "a:99999" }, []string{`--to "a:99999"`, "1 to 65535"}},
		{"to HTTPS on the port of HTTP", func(o *proxyOptions) { o.to = "https://a:80" }, []string{`--to "https://a:80"`, "port 80"}},
		{"to with a dot segment", func(o *proxyOptions) { o.to = "http://a/b/../c" }, []string{`--to "http://a/b/../c"`, `path "/b/../c"`}},
		{"to with an escape", func(o *proxyOptions) { o.to = "http://a/b%20c" }, []string{`--to "http://a/b%20c"`, "in letters, digits"}},
		{"to with a placeholder", func(o *proxyOptions) { o.to = "http://a/{video}/b" }, []string{`--to "http://a/{video}/b"`, `path "/{video}/b"`}},
		{"hls.js without a player", func(o *proxyOptions) { o.hlsJS = "hls.min.js" }, []string{`--hls-js "hls.min.js"`, "add --player"}},
		{"no such hls.js", func(o *proxyOptions) { o.player, o.hlsJS = true, missing }, []string{"--hls-js", missing, "dist/hls.min.js"}},
		{"not an allowed origin", func(o *proxyOptions) { o.allowedOrigins = []string{"a.test", "https://b.test"} }, []string{"--allowed-origins", `"https://b.test"`, "must not specify protocol", "like *.example.com"}},
		{"no such geo database", func(o *proxyOptions) { o.geoIPDatabase = missing }, []string{"--geoip-database", missing, "want a MaxMind DB"}},
		{"no such key", func(o *proxyOptions) { o.key = missing }, []string{missing, "keygen"}},
		{"a public key", func(o *proxyOptions) { o.key = writeFile(t, "key.json", publicJWK(testKey())) }, []string{"--key", "key.json", "no private half", "keygen"}},
		{"not a video id", func(o *proxyOptions) { o.video = "../demo" }, []string{`--sub "../demo"`, "1 to 64 of"}},
		{"not a time", func(o *proxyOptions) { o.expires = "tomorrow" }, []string{`--exp "tomorrow"`, "like 1h"}},
		{"a time that is over", func(o *proxyOptions) { o.expires = "0s" }, []string{`--exp "0s"`, "in the past", "like 1h"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			opts, warnings := proxying(t, tc.change)
			var out bytes.Buffer
			_, err := proxy(opts, &out)
			if err == nil {
				t.Fatal("proxy succeeded")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("proxy = %v, want an error with %q", err, want)
				}
			}
			if _, err := os.Stat(opts.publicKey); out.Len() > 0 || warnings.Len() > 0 || err == nil {
				t.Errorf("with the error, it printed %q and %q, and a key file: %v", &out, warnings, err)
			}
		})
	}
}

// A password in the origin's address stays out of the error, which ends up in
// somebody's log.
func TestProxyRepeatsNoPassword(t *testing.T) {
	for _, to := range []string{"https://me:hunter2@origin.example.com", "me:hunter2@origin:8081", "http://me:hunter2@[::1"} {
		opts, _ := proxying(t, func(o *proxyOptions) { o.to = to })
		_, err := proxy(opts, new(bytes.Buffer))
		if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "--to") {
			t.Errorf("proxy --to %s = %v, want an error that names the flag and no password", to, err)
		}
	}
}

// The config does what the flags say and nothing else: no admin endpoint, no
// copy of it on disk, and no token in the log.
func TestProxyConfig(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*proxyOptions)
		want   string
	}{
		{"least", nil, `{
			"admin": {"disabled": true, "config": {"persist": false}},
			"logging": {"logs": {"default": {"encoder": {"format": "filter", "fields": {
				"request>headers": {"filter": "signed_playback"}, "request>uri": {"filter": "signed_playback"},
				"resp_headers": {"filter": "signed_playback"}, "uri": {"filter": "signed_playback"},
				"from_path": {"filter": "signed_playback"}, "to_path": {"filter": "signed_playback"}
			}}}}},
			"apps": {
				"http": {"servers": {"proxy": {
					"listen": ["127.0.0.1:8080"],
					"automatic_https": {"disable": true},
					"routes": [{
						"match": [{"host": ["127.0.0.1"]}],
						"handle": [
							{"handler": "signed_playback", "origin_path": "/{video}", "manifest_hosts": ["127.0.0.1:8081"]},
							{"handler": "reverse_proxy", "transport": {"protocol": "http"}, "upstreams": [{"dial": "127.0.0.1:8081"}]}
						]
					}]
				}}},
				"signed_playback": {"key_file": ["PUBLIC"]}
			}
		}`},
		{"most", func(o *proxyOptions) {
			o.from, o.to = "media.example.com", "https://origin.example.com/videos"
			o.allowedOrigins, o.geoIPDatabase = []string{"*.example.com", "localhost:3000"}, "testdata/country.mmdb"
			o.player, o.accessLog, o.debug = true, true, true
		}, `{
			"admin": {"disabled": true, "config": {"persist": false}},
			"logging": {"logs": {"default": {"level": "DEBUG", "encoder": {"format": "filter", "fields": {
				"request>headers": {"filter": "signed_playback"}, "request>uri": {"filter": "signed_playback"},
				"resp_headers": {"filter": "signed_playback"}, "uri": {"filter": "signed_playback"},
				"from_path": {"filter": "signed_playback"}, "to_path": {"filter": "signed_playback"}
			}}}}},
			"apps": {
				"http": {"servers": {"proxy": {
					"listen": [":443"],
					"routes": [{
						"match": [{"host": ["media.example.com"]}],
						"handle": [
							{"handler": "signed_playback", "origin_path": "/videos/{video}", "manifest_hosts": ["origin.example.com:443"], "player": {}},
							{"handler": "reverse_proxy", "transport": {"protocol": "http", "tls": {}}, "upstreams": [{"dial": "origin.example.com:443"}]}
						]
					}],
					"logs": {}
				}}},
				"signed_playback": {"key_file": ["PUBLIC"], "geoip_database": "testdata/country.mmdb", "allowed_origins": ["*.example.com", "localhost:3000"]}
			}
		}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			opts, _ := proxying(t, tc.change)
			config, _ := proxied(t, opts)
			var got, want any
			text := string(must(json.Marshal(config)))
			for doc, value := range map[string]*any{text: &got, strings.Replace(tc.want, "PUBLIC", opts.publicKey, 1): &want} {
				if err := json.Unmarshal([]byte(doc), value); err != nil {
					t.Fatalf("%v: %s", err, doc)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if err := caddy.Validate(config); err != nil {
				t.Errorf("Caddy does not take it: %v", err)
			}
		})
	}
}

// A site without a name answers to every name, or nobody would get in by the
// machine's address.
func TestProxyConfigWithoutAHost(t *testing.T) {
	opts, _ := proxying(t, func(o *proxyOptions) { o.from = ":8080" })
	config, _ := proxied(t, opts)
	if server := string(config.AppsRaw["http"]); strings.Contains(server, `"match"`) || !strings.Contains(server, `"listen":[":8080"]`) {
		t.Errorf("the HTTP app is %s", server)
	}
}

// The private half is not in what is printed, in the config, or in the file for
// the gate, whether it is the user's or a new one.
func TestProxyKeepsThePrivateHalf(t *testing.T) {
	for name, key := range map[string]string{"a new key": "", "the user's": writeFile(t, "key.txt", testKey().PEM()), "standard input": "-"} {
		t.Run(name, func(t *testing.T) {
			opts, warnings := proxying(t, func(o *proxyOptions) {
				o.key = key
				o.stdin = strings.NewReader(must(testKey().JWK()))
			})
			config, printed := proxied(t, opts)
			public := string(must(os.ReadFile(opts.publicKey)))
			keys, err := token.ParsePublicKeys([]byte(public), "")
			if err != nil || len(keys) != 1 || key == "-" && !keys[0].Equal(testKey().Public()) {
				t.Errorf("the gate gets %d keys: %v", len(keys), err)
			}
			if _, err := token.ParseSigningKey([]byte(public), "k1"); err == nil {
				t.Error("the file for the gate has a private half")
			}
			if info := must(os.Stat(opts.publicKey)); info.Mode().Perm() != 0o600 {
				t.Errorf("the file for the gate has the mode %s", info.Mode())
			}
			secret := privateMember(t, testKey(), "d")
			for where, text := range map[string]string{
				"output": printed, "warnings": warnings.String(), "config": string(must(json.Marshal(config))), "file": public,
			} {
				for _, private := range []string{secret, `"d"`, `"p"`, "PRIVATE KEY", "LS0tLS1CRUdJTi"} {
					if strings.Contains(text, private) {
						t.Errorf("%s has %.20s of the private key", where, private)
					}
				}
			}
		})
	}
}

// privateMember returns a member of a key's private JWK.
func privateMember(t *testing.T, key *token.SigningKey, name string) string {
	t.Helper()
	decoded := must(base64.StdEncoding.DecodeString(must(key.JWK())))
	var members map[string]string
	if err := json.Unmarshal(decoded, &members); err != nil || members[name] == "" {
		t.Fatalf("no member %s in the JWK: %v", name, err)
	}
	return members[name]
}

// Without --key, each start makes a key of its own.
func TestProxyMakesAKey(t *testing.T) {
	ids := make(map[string]bool)
	for range 2 {
		opts, _ := proxying(t, func(o *proxyOptions) { o.key = "" })
		_, printed := proxied(t, opts)
		key := must(token.ParsePublicKeys(must(os.ReadFile(opts.publicKey)), ""))[0]
		ids[key.ID()] = true
		compact := strings.Split(printedURL(t, printed, "HLS").Path, "/")[1]
		if _, err := token.Verify(compact, must(token.NewKeySet(key)), testTime, token.Policy{}); err != nil {
			t.Errorf("the gate's key does not verify the URL: %v", err)
		}
	}
	if len(ids) != 2 {
		t.Errorf("two starts have the keys %v", ids)
	}
}

// printedURL returns the URL on the line that begins with a name.
func printedURL(t *testing.T, printed, name string) *url.URL {
	t.Helper()
	for line := range strings.Lines(printed) {
		fields := strings.Fields(line)
		if len(fields) == 2 && fields[0] == name {
			return must(url.Parse(fields[1]))
		}
	}
	t.Fatalf("no %s in:\n%s", name, printed)
	return nil
}

// What is printed says where what is, and its URLs are of the video, the key
// and the time that were asked for.
func TestProxyDescription(t *testing.T) {
	for _, tc := range []struct {
		name        string
		change      func(*proxyOptions)
		base        string
		want, never []string
	}{
		{"least", nil, "http://127.0.0.1:8080", []string{
			"listens on 127.0.0.1:8080", "http://127.0.0.1:8080/<token>/<path>", "http://127.0.0.1:8081/<video>/<path>",
			"The video demo plays until 2027-01-15T09:00:00Z (in 1h0m0s)",
			"key.txt --sub demo --url http://127.0.0.1:8080\n", "Ctrl-C",
		}, []string{"Page", "keygen", "Origin"}},
		{"a player page and a base path", func(o *proxyOptions) {
			o.from, o.to, o.player = "media.example.com", "https://origin.example.com/videos", true
		}, "https://media.example.com", []string{"listens on :443", "https://origin.example.com/videos/<video>/<path>", "Page"}, []string{"iframe there"}},
		{"a new key", func(o *proxyOptions) { o.key = "" }, "http://127.0.0.1:8080", []string{
			"keygen > key.json", "--key key.json", "sign --key key.json --sub demo --url http://127.0.0.1:8080\n",
		}, nil},
		{"allowed origins", func(o *proxyOptions) { o.allowedOrigins = []string{"*.example.com"} }, "http://127.0.0.1:8080", []string{
			"-H 'Origin: https://example.com'", "iframe there",
		}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			opts, _ := proxying(t, tc.change)
			_, printed := proxied(t, opts)
			for _, want := range tc.want {
				if !strings.Contains(printed, want) {
					t.Errorf("no %q in:\n%s", want, printed)
				}
			}
			for _, never := range tc.never {
				if strings.Contains(printed, never) {
					t.Errorf("%q is in:\n%s", never, printed)
				}
			}
			playback := printedURL(t, printed, "HLS").String()
			below, ok := strings.CutPrefix(playback, tc.base+"/")
			compact, suffix, _ := strings.Cut(below, "/")
			if !ok || suffix != "manifest/video.m3u8" {
				t.Errorf("the URL is %s", playback)
			}
			if opts.player && printedURL(t, printed, "Page").String() != tc.base+"/"+compact+"/iframe" {
				t.Errorf("the page is %s", printedURL(t, printed, "Page"))
			}
			if opts.key == "" {
				return
			}
			claims, err := token.Verify(compact, must(token.NewKeySet(testKey().Public())), testTime, token.Policy{})
			want := token.Claims{VideoID: "demo", KeyID: "k1", ExpiresAt: testTime.Add(time.Hour)}
			if diff := cmp.Diff(want, claims); err != nil || diff != "" {
				t.Errorf("claims: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// What may be a surprise is said, and nothing else is.
func TestProxyWarnings(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*proxyOptions)
		want   []string
	}{
		{"nothing to warn of", nil, nil},
		{"a key in memory only", func(o *proxyOptions) { o.key = "" }, []string{"no --key", "end with this process"}},
		{"an origin that is down", func(o *proxyOptions) {
			o.reach = func(origin webOrigin) error { return errors.New("no way to " + origin.address()) }
		}, []string{`--to "127.0.0.1:8081"`, "no way to 127.0.0.1:8081", "502"}},
		{"sites are told by their names, the gate has none", func(o *proxyOptions) {
			o.from, o.allowedOrigins = ":8080", []string{"example.com"}
		}, []string{`--from ":8080"`, "every host name", "give the host name"}},
		{"sites are told by their names, and the gate has one", func(o *proxyOptions) { o.allowedOrigins = []string{"example.com"} }, nil},
		{"no name, and no sites to tell", func(o *proxyOptions) { o.from = ":8080" }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			opts, warnings := proxying(t, tc.change)
			proxied(t, opts)
			for _, want := range tc.want {
				if !strings.Contains(warnings.String(), want) {
					t.Errorf("no %q in the warnings: %s", want, warnings)
				}
			}
			if lines := strings.Count(warnings.String(), "\n"); lines != min(len(tc.want), 1) {
				t.Errorf("%d lines of warnings: %s", lines, warnings)
			}
		})
	}
}

// The Origin that is printed for trying is one that the gate lets through.
func TestExampleOriginIsAllowed(t *testing.T) {
	for _, pattern := range []string{"*", "example.com", "*.example.com", "example.com:443", "example.com:80", "localhost:3000", "*.example.com:8443", "192.0.2.1", "[2001:db8::1]:8080"} {
		example := exampleOrigin(pattern)
		if origin, err := parseOrigin(example); err != nil || !must(compileOrigins([]string{pattern})).allows(origin) {
			t.Errorf("exampleOrigin(%q) = %q, which is not covered: %v", pattern, example, err)
		}
	}
}

// A printed command is taken apart by a shell as it is meant.
func TestShellWord(t *testing.T) {
	for _, text := range []string{"key.json", "../keys/a-b_c.json", "http://[::1]:8080", "my key.json", "it's", "$HOME;`id`&", "ключ", "", "\u0161a"} {
		out, err := exec.Command("sh", "-c", "printf %s "+shellWord(text)).Output()
		if err != nil || string(out) != text {
			t.Errorf("shellWord(%q) = %s, which sh reads as %q: %v", text, shellWord(text), out, err)
		}
	}
	if got := shellWord("https://media.example.com:8443/a_b-c+d=e"); strings.Contains(got, "'") {
		t.Errorf("what needs no quotes has some: %s", got)
	}
}

// Two servers of Caddy can share a port, and each would get some of the
// viewers, so a port that somebody has is refused. One that is free stays so.
func TestClaimAddress(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := claimAddress(address); err == nil || !strings.Contains(err.Error(), address) {
		t.Errorf("claimAddress of a port in use = %v, want an error that names it", err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := claimAddress(address); err != nil {
			t.Errorf("claimAddress of a free port = %v", err)
		}
	}
}

// An origin counts as up if it can be connected to, as the gateway will.
func TestReachOrigin(t *testing.T) {
	originOf := func(server *httptest.Server) webOrigin { return must(parseProxyOrigin(server.URL)).webOrigin }
	plain := httptest.NewServer(nil)
	if err := reachOrigin(originOf(plain)); err != nil {
		t.Errorf("an origin that is up: %v", err)
	}
	plain.Close()
	if err := reachOrigin(originOf(plain)); err == nil {
		t.Error("an origin that is down is taken for one that is up")
	}
	untrusted := httptest.NewUnstartedServer(nil)
	untrusted.Config.ErrorLog = log.New(io.Discard, "", 0)
	untrusted.StartTLS()
	defer untrusted.Close()
	if err := reachOrigin(originOf(untrusted)); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an origin whose certificate nobody vouches for: %v", err)
	}
}
