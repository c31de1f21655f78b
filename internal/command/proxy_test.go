package command

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/playbackpath"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// --from has the meaning that it has for `caddy reverse-proxy`, and the printed
// URL leads there.
func TestParseProxySite(t *testing.T) {
	t.Parallel()
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
		parsed, err := parseProxySite(tc.from)
		got := site{parsed.String(), parsed.listen(), parsed.anyHost}
		if err != nil || got != tc.want {
			t.Errorf("parseProxySite(%q) = %+v, %v; want %+v", tc.from, got, err, tc.want)
		}
	}
	for _, from := range []string{
		"", "ftp://a", "localhost/media", "localhost?a", "localhost#a", "http://a@b", "*.example.com", "{env.HOST}", "{$HOST}", "a b",
		"a`b", `a"b`, "a\nb", ":0", ":08", ":99999", ":8080-8090", "https://:8443", "https://0.0.0.0", "https://[::]", ":443", "https://a:80", "http://a:443", "[::1", "::1",
	} {
		if got, err := parseProxySite(from); err == nil {
			t.Errorf("parseProxySite(%q) = %+v, want an error", from, got)
		}
	}
}

// --to is the address to dial, and the folder that contains the videos' folders.
func TestParseProxyOrigin(t *testing.T) {
	t.Parallel()
	type origin struct{ url, address, template string }
	for _, tc := range []struct {
		to   string
		want origin
	}{
		{"127.0.0.1:8081", origin{"http://127.0.0.1:8081", "127.0.0.1:8081", "/{video}"}},
		{":80", origin{"http://localhost", "localhost:80", "/{video}"}},
		{":8081", origin{"http://localhost:8081", "localhost:8081", "/{video}"}},
		{"origin.example.com", origin{"http://origin.example.com", "origin.example.com:80", "/{video}"}},
		{"origin.example.com/videos", origin{"http://origin.example.com", "origin.example.com:80", "/videos/{video}"}},
		{"http://10.0.0.2:8081", origin{"http://10.0.0.2:8081", "10.0.0.2:8081", "/{video}"}},
		{"http://10.0.0.2:8081/", origin{"http://10.0.0.2:8081", "10.0.0.2:8081", "/{video}"}},
		{"https://Origin.example.com", origin{"https://origin.example.com", "origin.example.com:443", "/{video}"}},
		{"https://origin.example.com/a/b-2/", origin{"https://origin.example.com", "origin.example.com:443", "/a/b-2/{video}"}},
		{"http://a/my videos/é", origin{"http://a", "a:80", "/my%20videos/%C3%A9/{video}"}},
		{"http://a/b%20c/", origin{"http://a", "a:80", "/b%20c/{video}"}},
		{"https://[2001:db8::1]:8443/v", origin{"https://[2001:db8::1]:8443", "[2001:db8::1]:8443", "/v/{video}"}},
	} {
		parsed, err := parseProxyOrigin(tc.to)
		got := origin{parsed.String(), parsed.Address(), parsed.template}
		if err != nil || got != tc.want {
			t.Errorf("parseProxyOrigin(%q) = %+v, %v; want %+v", tc.to, got, err, tc.want)
		}
	}
	for _, to := range []string{
		"h2c://a", "http://a/?b", "http://a?b", "http://a/#b", "https:///videos", "http://", "unix//run/origin.sock", "a:99999", "https://a:80", "http://a:443",
		"http://a/b/../c", "http://a/b//c", "http://a/b%2Fc", "http://a/b%", "http://a/{video}/b", "http://a/{env.HOME}", "http://a/b;c", "{env.HOST}", "*.a",
	} {
		if got, err := parseProxyOrigin(to); err == nil {
			t.Errorf("parseProxyOrigin(%q) = %+v, want an error", to, got)
		}
	}
}

// proxying returns the options of a proxy command with testKey for the video
// "demo". Every origin answers, and every address is free.
func proxying(t *testing.T, change func(*proxyOptions)) (opts proxyOptions, warnings *bytes.Buffer) {
	t.Helper()
	warnings = new(bytes.Buffer)
	opts = proxyOptions{
		terminal: terminal{in: strings.NewReader(must(testKey().JWK())), err: warnings, now: testTime},
		from:     "http://127.0.0.1:8080", to: "127.0.0.1:8081",
		key: "-", video: "demo", expires: "1h", path: playbackpath.DefaultManifest,
		publicKey: filepath.Join(t.TempDir(), "public.json"),
		claim:     func(string) error { return nil },
		reach:     func(weborigin.Origin) error { return nil },
	}
	if change != nil {
		change(&opts)
	}
	return opts, warnings
}

// ProxyConfig returns the config of a proxy command, and the address on which it listens.
func ProxyConfig(t *testing.T, from string) (caddyfile []byte, listen string) {
	t.Helper()
	opts, _ := proxying(t, func(o *proxyOptions) { o.from, o.player = from, true })
	caddyfile, _, err := opts.proxy()
	if err != nil {
		t.Fatal(err)
	}
	return caddyfile, must(parseProxySite(from)).listen()
}

func caddyfileOf(t *testing.T, opts proxyOptions) string {
	t.Helper()
	text, err := opts.caddyfile(must(parseProxySite(opts.from)), must(parseProxyOrigin(opts.to)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The config contains what the flags say and nothing else: no admin endpoint, no
// copy of it on disk, and no token in the log.
func TestProxyCaddyfile(t *testing.T) {
	t.Parallel()
	const want = `{
	admin off
	persist_config off
	debug
	log {
		format signed_playback
	}
	signed_playback {
		key_file 'PUBLIC'
		geoip_database '../../testdata/country.mmdb'
		allowed_origins '*.example.com' 'localhost:3000'
	}
}
https://media.example.com {
	log
	signed_playback {
		origin_path /videos/{video}
		manifest hls/master%20playlist.m3u8
		manifest_hosts origin.example.com:443
		player 'hls.min.js'
	}
	reverse_proxy https://origin.example.com
}
`
	opts, _ := proxying(t, func(o *proxyOptions) {
		o.from, o.to = "media.example.com", "https://origin.example.com/videos"
		o.allowedOrigins, o.geoIPDatabase = []string{"*.example.com", "localhost:3000"}, "../../testdata/country.mmdb"
		o.path = "hls/master%20playlist.m3u8"
		o.player, o.hlsJS, o.accessLog, o.debug = true, "hls.min.js", true, true
	})
	got := strings.NewReplacer(opts.publicKey, "PUBLIC", "`", "'").Replace(caddyfileOf(t, opts))
	got = regexp.MustCompile(`\n\s*\n`).ReplaceAllString(got, "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	opts, _ = proxying(t, nil)
	least := caddyfileOf(t, opts)
	for _, never := range []string{"debug", "geoip_database", "allowed_origins", "player", "\tlog\n"} {
		if strings.Contains(least, never) {
			t.Errorf("without a flag for it, the config has %s:\n%s", never, least)
		}
	}
	for _, want := range []string{"\tauto_https off\n", "\nhttp://127.0.0.1:8080 {\n\tbind 127.0.0.1\n"} {
		if !strings.Contains(least, want) {
			t.Errorf("for HTTP on a loopback address, the config lacks %q:\n%s", want, least)
		}
	}
}

// The attack: a script passes a file name or a pattern of somebody else to
// proxy, and the value ends its token in the Caddyfile and adds a directive, or
// makes Caddy read an environment variable. Such a value is refused, and every
// other one is a single token.
func TestProxyValuesAreNotCaddyfileSyntax(t *testing.T) {
	t.Parallel()
	for _, hostile := range []string{
		"a\n}\nadmin :2019", "a\r\nb", "a`b", "` `", "`", "{$HOME}", "{$HOME:x}", "{env.HOME}", "{file./etc/passwd}", "{", "}", "{ respond", "a\x00b", "a\u0085b", "\xff",
	} {
		opts, _ := proxying(t, func(o *proxyOptions) { o.geoIPDatabase = hostile })
		if _, _, err := opts.proxy(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("--geoip-database: %q", hostile)) {
			t.Errorf("%q: %v, want an error that names the flag and the value", hostile, err)
		}
	}
	for _, odd := range []string{
		`a" "b`, `"`, `"a b"`, `a\`, `\"`, "a b", " ", "#a", "a #b", "<<END", "import /etc/passwd", "a,b", "'a'", "\u00a0", "\u2028", "\ufeff", "$HOME", "(snippet)", "&(a)", "@m",
	} {
		opts, _ := proxying(t, func(o *proxyOptions) {
			o.player, o.hlsJS, o.geoIPDatabase, o.publicKey = true, odd, odd, odd
		})
		for _, name := range []string{"key_file", "geoip_database", "player"} {
			if got := argumentsOf(t, opts, name); !slices.Equal(got, []string{odd}) {
				t.Errorf("%q: %s has the arguments %q", odd, name, got)
			}
		}
		if got := argumentsOf(t, opts, "admin"); !slices.Equal(got, []string{"off"}) {
			t.Errorf("%q: admin has the arguments %q", odd, got)
		}
	}
}

// argumentsOf returns the arguments of an option in the config, as Caddy's parser reads them.
func argumentsOf(t *testing.T, opts proxyOptions, option string) []string {
	t.Helper()
	tokens, err := caddyfile.Tokenize([]byte(caddyfileOf(t, opts)), "Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	for d := caddyfile.NewDispenser(tokens); d.Next(); {
		if d.Val() == option {
			return d.RemainingArgs()
		}
	}
	t.Fatalf("the config has no %s", option)
	return nil
}

// An error names the flag, and no password in the origin's address, because it may end up in a log. proxy
// prints no URL that has expired at its start.
func TestProxyRefuses(t *testing.T) {
	t.Parallel()
	for to, expires := range map[string]string{
		"https://me:hunter2@origin.example.com": "1h", "me:hunter2@origin:8081": "1h", "http://me:hunter2@[::1": "1h",
		"127.0.0.1:1": "0s", "127.0.0.1:2": "-1s", "127.0.0.1:3": "1800000000",
	} {
		opts, _ := proxying(t, func(o *proxyOptions) { o.to, o.expires = to, expires })
		want := map[bool]string{true: "--to", false: `--exp "` + expires + `"`}[expires == "1h"]
		if _, _, err := opts.proxy(); err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), want) {
			t.Errorf("proxy --to %s --exp %s = %v, want an error with %s and not the password", to, expires, err, want)
		}
	}
}

// The private key is not in the output, in the warnings, in the config, or in the
// file for the gate. Without --key each start makes a new key.
func TestProxyKeepsThePrivateKey(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	file := filepath.Join(t.TempDir(), "k1.pem")
	if err := os.WriteFile(file, []byte(testKey().PEM()), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, key := range []string{"", "", file, "-"} {
		opts, written := proxying(t, func(o *proxyOptions) { o.key = key })
		config, description, err := opts.proxy()
		if err != nil {
			t.Fatal(err)
		}
		written.Write(config)
		written.WriteString(description)
		public := must(os.ReadFile(opts.publicKey))
		written.Write(public)
		keys, err := token.ParsePublicKeys(public, "")
		if err != nil || len(keys) != 1 || seen[keys[0].ID()] && i < 2 || i >= 2 && !keys[0].Equal(testKey().Public()) {
			t.Fatalf("--key %q: the gate gets %s: %v", key, public, err)
		}
		seen[keys[0].ID()] = true
		compact := must(findToken(must(firstURL(written.String())), "", nil))
		if _, err := token.Verify(compact, must(token.NewKeySet(keys...)), testTime, token.Policy{}); err != nil {
			t.Errorf("--key %q: the gate's key does not verify the URL: %v", key, err)
		}
		for _, private := range []string{`"d"`, `"p"`, "PRIVATE KEY", "LS0tLS1CRUdJTi"} {
			if strings.Contains(written.String(), private) {
				t.Errorf("--key %q: %s of the private key is written", key, private)
			}
		}
		if mode := must(os.Stat(opts.publicKey)).Mode().Perm(); mode != 0o600 {
			t.Errorf("the file for the gate has the mode %s", mode)
		}
	}
}

// The output has the addresses, and URLs of the video, the key and the time that
// the flags name. T stands for the token.
func TestProxyOutput(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		change   func(*proxyOptions)
		want     string
		warnings []string // what the warnings have; nil for none
	}{
		{"a player page, a folder, a new key and allowed origins", func(o *proxyOptions) {
			o.from, o.to, o.player, o.key, o.allowedOrigins = "media.example.com", "https://origin.example.com/videos", true, "", []string{"*.example.com"}
		}, `
The gate listens on :443. Viewers ask it for
  https://media.example.com/<token>/<path>
and it asks the origin for
  https://origin.example.com/videos/<video>/<path>

The video demo plays until 2027-01-15T09:00:00Z (in 1h0m0s):
  Page  https://media.example.com/T/iframe
  HLS   https://media.example.com/T/manifest/video.m3u8
It plays on the allowed sites only, the page in an iframe there. With curl, add
  -H 'Origin: https://example.com'

To sign more, make a key and start again with --key key.json:
  caddy signed-playback keygen -o key.json

Then sign with
  caddy signed-playback sign --key key.json --sub demo --url https://media.example.com
Stop with Ctrl-C.

`, []string{"--key", "in memory", "--hls-js", "npm pack hls.js"}},
		{"another manifest", func(o *proxyOptions) { o.path = "hls/$a.m3u8" }, `
The gate listens on 127.0.0.1:8080. Viewers ask it for
  http://127.0.0.1:8080/<token>/<path>
and it asks the origin for
  http://127.0.0.1:8081/<video>/<path>

The video demo plays until 2027-01-15T09:00:00Z (in 1h0m0s):
  HLS   http://127.0.0.1:8080/T/hls/$a.m3u8

Sign more with
  caddy signed-playback sign --key - --sub demo --url http://127.0.0.1:8080 --path 'hls/$a.m3u8'
Stop with Ctrl-C.

`, nil},
		{"an origin that does not answer", func(o *proxyOptions) {
			o.reach = func(origin weborigin.Origin) error { return errors.New("no way to " + origin.Address()) }
		}, "", []string{`--to "127.0.0.1:8081"`, "no way to 127.0.0.1:8081", "502"}},
		{"allowed origins, and a gate without a name", func(o *proxyOptions) {
			o.from, o.allowedOrigins = ":8080", []string{"example.com"}
		}, "", []string{`--from ":8080"`, "host name"}},
		{"allowed origins, and a gate with a name", func(o *proxyOptions) { o.allowedOrigins = []string{"*"} }, "", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			opts, warnings := proxying(t, tc.change)
			_, out, err := opts.proxy()
			if err != nil {
				t.Fatal(err)
			}
			compact := must(findToken(must(firstURL(out)), "", nil))
			if diff := cmp.Diff(tc.want, strings.ReplaceAll(out, compact, "T")); diff != "" && tc.want != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if claims := must(token.Parse(compact)).Unverified(); claims.VideoID != "demo" || !claims.ExpiresAt.Equal(testTime.Add(time.Hour)) {
				t.Errorf("the URL is for %s until %s", claims.VideoID, claims.ExpiresAt)
			}
			if (warnings.Len() > 0) != (len(tc.warnings) > 0) {
				t.Errorf("the warnings are %q", warnings)
			}
			for _, want := range tc.warnings {
				if !strings.Contains(warnings.String(), want) {
					t.Errorf("no %q in the warning: %s", want, warnings)
				}
			}
		})
	}
}

// firstURL returns the signed URL that proxy has printed.
func firstURL(printed string) (string, error) {
	_, after, ok := strings.Cut(printed, "  HLS   ")
	line, _, _ := strings.Cut(after, "\n")
	if !ok {
		return "", errors.New("no URL in:\n" + printed)
	}
	return line, nil
}

// A shell reads a printed word as the word that was meant.
func TestShellWord(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"key.json", "../keys/a-b_c.json", "http://[::1]:8080", "my key.json", "it's", "$HOME;`id`&", "ключ", "", "\u0161a"} {
		out, err := exec.Command("sh", "-c", "printf %s "+shellWord(text)).Output()
		if err != nil || string(out) != text {
			t.Errorf("shellWord(%q) = %s, which sh reads as %q: %v", text, shellWord(text), out, err)
		}
	}
	if got := shellWord("https://media.example.com:8443/a_b-c+d=e"); strings.Contains(got, "'") {
		t.Errorf("it has quotes that it does not need: %s", got)
	}
}

// Two Caddy servers can share a port, and each would get some of the requests.
// So a port that is in use is refused, and a free port stays free.
func TestClaimAddress(t *testing.T) {
	t.Parallel()
	address := reservedAddr(t.Cleanup)
	for range 2 {
		if err := claimAddress(address); err != nil {
			t.Errorf("claimAddress of a free port = %v", err)
		}
	}
	listener := must(net.Listen("tcp", address))
	defer listener.Close()
	if err := claimAddress(address); err == nil || !strings.Contains(err.Error(), address) {
		t.Errorf("claimAddress of a port in use = %v, want an error that names it", err)
	}
}

// An origin answers if the gateway can connect to it.
func TestReachOrigin(t *testing.T) {
	t.Parallel()
	originOf := func(server *httptest.Server) weborigin.Origin { return must(parseProxyOrigin(server.URL)).Origin }
	plain := httptest.NewServer(nil)
	defer plain.Close()
	if err := reachOrigin(originOf(plain)); err != nil {
		t.Errorf("an origin that is up: %v", err)
	}
	if err := reachOrigin(must(parseProxyOrigin("http://" + reservedAddr(t.Cleanup))).Origin); err == nil {
		t.Error("an origin that is down counts as up")
	}
	untrusted := httptest.NewUnstartedServer(nil)
	untrusted.Config.ErrorLog = log.New(io.Discard, "", 0)
	untrusted.StartTLS()
	defer untrusted.Close()
	if err := reachOrigin(originOf(untrusted)); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an origin with an untrusted certificate: %v", err)
	}
}
