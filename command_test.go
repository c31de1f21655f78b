package signedplayback

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/signed-playback/caddy-signed-playback/internal/redact"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// generated runs keygen.
func generated(t *testing.T, keyID string) (out string, key generatedKey) {
	t.Helper()
	var buf bytes.Buffer
	if err := keygen(keygenOptions{keyID: keyID}, &buf); err != nil {
		t.Fatalf("keygen = %v", err)
	}
	if err := json.Unmarshal(buf.Bytes(), &key); err != nil {
		t.Fatalf("keygen printed %q: %v", &buf, err)
	}
	return buf.String(), key
}

// All that keygen prints, and each part of it, is a key to the other commands
// and to the gate, under one id.
func TestKeygen(t *testing.T) {
	out, key := generated(t, "my-key")
	if key.ID != "my-key" {
		t.Errorf("id = %q, want my-key", key.ID)
	}
	for name, text := range map[string]string{"the whole": out, "pem": key.PEM, "jwk": key.JWK} {
		signer, err := token.ParseSigningKey([]byte(text), "my-key")
		if err != nil {
			t.Errorf("%s: ParseSigningKey = %v", name, err)
			continue
		}
		if signer.ID() != "my-key" || !signer.Public().Equal(must(token.ParsePublicKeys([]byte(out), ""))[0]) {
			t.Errorf("%s holds another key", name)
		}
	}
	public := string(must(json.Marshal(key.JWKS)))
	set, skipped, err := token.ParseJWKS([]byte(public))
	if err != nil || len(skipped) > 0 {
		t.Fatalf("jwks: %v, %v", skipped, err)
	}
	if diff := cmp.Diff([]string{"my-key"}, set.IDs()); diff != "" {
		t.Errorf("ids in jwks (-want +got):\n%s", diff)
	}
	for _, private := range []string{`"d"`, `"p"`, `"q"`, `"dp"`, `"dq"`, `"qi"`} {
		if strings.Contains(public, private) {
			t.Errorf("jwks has the private member %s", private)
		}
	}
}

func TestKeygenMakesUpAnID(t *testing.T) {
	_, one := generated(t, "")
	_, two := generated(t, "")
	form := regexp.MustCompile(`^[0-9a-f]{32}$`)
	if !form.MatchString(one.ID) || !form.MatchString(two.ID) || one.ID == two.ID {
		t.Errorf("ids are %q and %q, want two of 32 hexadecimal digits", one.ID, two.ID)
	}
}

func TestKeygenRefusesAnIDThatNoTokenCanHave(t *testing.T) {
	for _, id := range []string{"a b", "é", "a\n", strings.Repeat("x", 256)} {
		var out bytes.Buffer
		if err := keygen(keygenOptions{keyID: id}, &out); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", id)) {
			t.Errorf("keygen --kid %.10q = %v, want an error that names the id", id, err)
		}
		if out.Len() > 0 {
			t.Errorf("keygen --kid %.10q printed something with an error", id)
		}
	}
}

// signing are the options of a sign command for the video "demo", with what
// change makes of them.
func signing(t *testing.T, change func(*signOptions)) signOptions {
	t.Helper()
	opts := signOptions{
		key: writeFile(t, "key.txt", must(testKey().JWK())), video: "demo", expires: "1h",
		now: func() time.Time { return testTime },
	}
	if change != nil {
		change(&opts)
	}
	return opts
}

// signedBy runs sign and returns what it prints.
func signedBy(t *testing.T, opts signOptions) string {
	t.Helper()
	var out bytes.Buffer
	if err := sign(opts, &out); err != nil {
		t.Fatalf("sign = %v", err)
	}
	line, rest, ok := strings.Cut(out.String(), "\n")
	if !ok || rest != "" {
		t.Fatalf("sign printed %q, want one line", &out)
	}
	return line
}

func TestSign(t *testing.T) {
	rules := `[{"type":"any","action":"block"}]`
	rulesFile := writeFile(t, "rules.json", "\n[ {\"type\":\"any\", \"action\":\"block\"} ]\n")
	hour := testTime.Add(time.Hour)
	for _, tc := range []struct {
		name   string
		change func(*signOptions)
		want   token.Claims
	}{
		{"least", nil, token.Claims{VideoID: "demo", KeyID: "k1", ExpiresAt: hour}},
		{"all", func(o *signOptions) {
			o.notBefore, o.downloadable, o.rules = "-5m", true, rules
		}, token.Claims{
			VideoID: "demo", KeyID: "k1", ExpiresAt: hour, NotBefore: testTime.Add(-5 * time.Minute), Downloadable: true,
			AccessRules: json.RawMessage(rules),
		}},
		{"rules from a file", func(o *signOptions) { o.rules = "@" + rulesFile }, token.Claims{
			VideoID: "demo", KeyID: "k1", ExpiresAt: hour, AccessRules: json.RawMessage(rules),
		}},
		{"no rules at all", func(o *signOptions) { o.rules = "[]" }, token.Claims{
			VideoID: "demo", KeyID: "k1", ExpiresAt: hour, AccessRules: json.RawMessage("[]"),
		}},
		{"exp in days", func(o *signOptions) { o.expires = "2d" }, token.Claims{VideoID: "demo", KeyID: "k1", ExpiresAt: testTime.Add(48 * time.Hour)}},
		{"exp in Unix seconds", func(o *signOptions) { o.expires = "1800003600" }, token.Claims{VideoID: "demo", KeyID: "k1", ExpiresAt: hour}},
		{"exp in RFC 3339", func(o *signOptions) { o.expires = "2027-01-15T10:00:00+01:00" }, token.Claims{VideoID: "demo", KeyID: "k1", ExpiresAt: time.Unix(1_800_003_600, 0)}},
		{"exp in the past", func(o *signOptions) { o.expires = "-1h" }, token.Claims{VideoID: "demo", KeyID: "k1", ExpiresAt: testTime.Add(-time.Hour)}},
		{"nbf in Unix seconds", func(o *signOptions) { o.notBefore = "1800000000" }, token.Claims{VideoID: "demo", KeyID: "k1", ExpiresAt: hour, NotBefore: testTime}},
		{"kid of the key, given again", func(o *signOptions) { o.keyID = "k1" }, token.Claims{VideoID: "demo", KeyID: "k1", ExpiresAt: hour}},
		{"kid for a key without one", func(o *signOptions) {
			o.key, o.keyID = writeFile(t, "site.pem", testKey().PEM()), "given"
		}, token.Claims{VideoID: "demo", KeyID: "given", ExpiresAt: hour}},
		{"kid of the file's name", func(o *signOptions) { o.key = writeFile(t, "site.pem", testKey().PEM()) }, token.Claims{VideoID: "demo", KeyID: "site", ExpiresAt: hour}},
		{"key on standard input", func(o *signOptions) {
			o.key, o.stdin = "-", strings.NewReader(must(testKey().JWK()))
		}, token.Claims{VideoID: "demo", KeyID: "k1", ExpiresAt: hour}},
		{"key without kid on standard input", func(o *signOptions) {
			o.key, o.keyID, o.stdin = "-", "given", strings.NewReader(testKey().PEM())
		}, token.Claims{VideoID: "demo", KeyID: "given", ExpiresAt: hour}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			compact := signedBy(t, signing(t, tc.change))
			public := must(token.ParsePublicKeys([]byte(testKey().PEM()), tc.want.KeyID))
			parsed, err := token.Parse(compact)
			if err != nil {
				t.Fatalf("sign printed a token that is none: %v", err)
			}
			claims, err := parsed.Verify(public[0])
			if err != nil {
				t.Fatalf("sign printed a token that does not verify: %v", err)
			}
			if diff := cmp.Diff(tc.want, claims); diff != "" {
				t.Errorf("claims (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSignPrintsAPlaybackURL(t *testing.T) {
	for _, tc := range []struct{ base, want string }{
		{"https://media.example.com", "https://media.example.com/T/manifest/video.m3u8"},
		{"https://media.example.com/", "https://media.example.com/T/manifest/video.m3u8"},
		{"http://localhost:8080", "http://localhost:8080/T/manifest/video.m3u8"},
		{"https://example.com/media/v", "https://example.com/media/v/T/manifest/video.m3u8"},
		{"https://example.com/media/v/", "https://example.com/media/v/T/manifest/video.m3u8"},
		{"http://[::1]:8080", "http://[::1]:8080/T/manifest/video.m3u8"},
	} {
		got := signedBy(t, signing(t, func(o *signOptions) { o.baseURL = tc.base }))
		compact := must(findToken(inspectOptions{token: got}))
		if _, err := token.Parse(compact); err != nil {
			t.Errorf("--url %s printed %q: %v", tc.base, got, err)
		}
		if got := strings.Replace(got, compact, "T", 1); got != tc.want {
			t.Errorf("--url %s printed %q, want %q", tc.base, got, tc.want)
		}
	}
}

// A token that the gate would refuse is not worth printing, and whoever asked
// for it is told which option is wrong.
func TestSignRefuses(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none")
	badRules := writeFile(t, "rules.json", `[{"type":"any","action":"blok"}]`)
	for _, tc := range []struct {
		name   string
		change func(*signOptions)
		want   []string
	}{
		{"no key", func(o *signOptions) { o.key = "" }, []string{"--key", "--sub"}},
		{"no video", func(o *signOptions) { o.video = "" }, []string{"--key", "--sub"}},
		{"key missing", func(o *signOptions) { o.key = missing }, []string{missing}},
		{"key that is none", func(o *signOptions) { o.key = writeFile(t, "key.json", "no key") }, []string{"--key", "key.json", "neither JSON"}},
		{"key without a private half", func(o *signOptions) { o.key = writeFile(t, "key.json", publicJWK(testKey())) }, []string{"--key", "no private key"}},
		{"another kid than the key's", func(o *signOptions) { o.keyID = "k2" }, []string{`--kid "k2"`, `"k1"`}},
		{"key without kid on standard input", func(o *signOptions) { o.key, o.stdin = "-", strings.NewReader(testKey().PEM()) }, []string{"--key", "key id"}},
		{"nothing on standard input", func(o *signOptions) { o.key, o.stdin = "-", strings.NewReader("") }, []string{"--key", "empty"}},
		{"video id", func(o *signOptions) { o.video = "../demo" }, []string{`"../demo"`, "1 to 64"}},
		{"video id too long", func(o *signOptions) { o.video = strings.Repeat("a", 65) }, []string{"1 to 64"}},
		{"exp", func(o *signOptions) { o.expires = "tomorrow" }, []string{`--exp "tomorrow"`, "like 1h"}},
		{"exp empty", func(o *signOptions) { o.expires = "" }, []string{`--exp ""`}},
		{"exp without a unit", func(o *signOptions) { o.expires = "1.5" }, []string{`--exp "1.5"`}},
		{"exp before 1970", func(o *signOptions) { o.expires = "-100000d" }, []string{"exp"}},
		{"exp in milliseconds", func(o *signOptions) { o.expires = "1800003600000" }, []string{"exp", "year 9999"}},
		{"nbf", func(o *signOptions) { o.notBefore = "yesterday" }, []string{`--nbf "yesterday"`}},
		{"nbf behind exp", func(o *signOptions) { o.notBefore = "2h" }, []string{"--nbf 2h", "--exp 1h"}},
		{"nbf at exp", func(o *signOptions) { o.notBefore = "1h" }, []string{"--nbf 1h", "--exp 1h"}},
		{"rules that are not JSON", func(o *signOptions) { o.rules = "block" }, []string{"--rules"}},
		{"rules null", func(o *signOptions) { o.rules = "null" }, []string{"--rules", "not an array"}},
		{"rules that nobody understands", func(o *signOptions) { o.rules = `[{"type":"ip.geoip.country","action":"block","country":["USA"]}]` }, []string{"--rules", "rule 1", `"USA"`}},
		{"rules from a file that is missing", func(o *signOptions) { o.rules = "@" + missing }, []string{"--rules", missing}},
		{"rules from a file that nobody understands", func(o *signOptions) { o.rules = "@" + badRules }, []string{"--rules", `"blok"`}},
		{"rules from an empty file", func(o *signOptions) { o.rules = "@" + writeFile(t, "rules.json", "") }, []string{"--rules"}},
		{"rules from no file", func(o *signOptions) { o.rules = "@" }, []string{"--rules"}},
		{"rules that make the token too long", func(o *signOptions) {
			o.rules = `[{"type":"any","action":"block","note":"` + strings.Repeat("x", token.MaxLength) + `"}]`
		}, []string{"longer than 8192 bytes"}},
		{"url without a scheme", func(o *signOptions) { o.baseURL = "media.example.com" }, []string{`--url "media.example.com"`, "like https://"}},
		{"url of another scheme", func(o *signOptions) { o.baseURL = "ftp://media.example.com" }, []string{"--url"}},
		{"url without a host", func(o *signOptions) { o.baseURL = "https:///x" }, []string{"--url"}},
		{"url with a query", func(o *signOptions) { o.baseURL = "https://media.example.com/?a=b" }, []string{"--url"}},
		{"url with a fragment", func(o *signOptions) { o.baseURL = "https://media.example.com/#a" }, []string{"--url"}},
		{"url that is none", func(o *signOptions) { o.baseURL = "https://[::1" }, []string{"--url"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			err := sign(signing(t, tc.change), &out)
			if err == nil {
				t.Fatalf("sign printed %q, want an error", &out)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("sign = %v, want %s in it", err, want)
				}
			}
			if out.Len() > 0 {
				t.Errorf("sign printed %q with an error", &out)
			}
			if private := privatePEM(t, testKey()); strings.Contains(err.Error(), string(private.Bytes)) {
				t.Error("the error has the key in it")
			}
		})
	}
}

// What sign prints, the gate lets in; with the whole output of keygen as the
// key of both.
func TestKeygenSignAndGate(t *testing.T) {
	out, _ := generated(t, "fresh")
	file := writeFile(t, "key.json", out)
	url := signedBy(t, signing(t, func(o *signOptions) { o.key, o.baseURL = file, "https://media.example.net" }))
	_, g, err := provisioned(t, &App{KeyFiles: []string{file}}, new(Gate))
	if err != nil {
		t.Fatal(err)
	}
	if a := ask(t, g, requestFor(t, url, nil)); !a.allowed() || a.origin[0].URL.Path != "/demo/manifest/video.m3u8" {
		t.Errorf("%d %s %s, want it allowed", a.status, a.reason, a.text)
	}
	if set := must(loadKeyFiles([]string{file})); strings.Contains(string(must(set.Lookup("fresh").JWK())), `"d"`) {
		t.Error("the gate keeps the private half")
	}
}

func inspecting(text, key string) (string, error) {
	var out bytes.Buffer
	err := inspect(inspectOptions{token: text, key: key, now: func() time.Time { return testTime }}, &out)
	return out.String(), err
}

func TestInspect(t *testing.T) {
	compact := must(token.Sign(token.Claims{
		VideoID: "demo", ExpiresAt: testTime.Add(90 * time.Minute), NotBefore: testTime.Add(-time.Minute), Downloadable: true,
		AccessRules: json.RawMessage(`[{"type":"any","action":"allow"},{"type":"any","action":"block"}]`),
	}, testKey()))
	payload := `{"sub":"demo","kid":"k1","exp":1800005400,"nbf":1799999940,"downloadable":true,` +
		`"accessRules":[{"type":"any","action":"allow"},{"type":"any","action":"block"}]}`
	described := `token id:   ` + redact.TokenID(compact) + `
header:     {"alg":"RS256","kid":"k1"}
payload:    ` + payload + `
video:      demo
key id:     k1
expires:    2027-01-15T09:30:00Z (in 1h30m0s)
not before: 2027-01-15T07:59:00Z (1m0s ago)
rules:      2
`
	const unchecked, valid = "signature:  not checked; give --key\n", "signature:  valid, and so is the token at present\n"
	public := writeFile(t, "public.json", keySetOf(testKey(), otherKey()))
	for _, tc := range []struct{ name, text, key, want string }{
		{"token", compact, "", described + unchecked},
		{"token with white space", " " + compact + "\n", "", described + unchecked},
		{"playback URL", "https://media.example.com/" + compact + "/manifest/video.m3u8?a=b", "", described + unchecked},
		{"URL of the player", "https://media.example.com:8443/" + compact, "", described + unchecked},
		{"URL below a path", "http://localhost/a/b.c/" + compact + "/x.ts", "", described + unchecked},
		{"URL without its scheme", "media.example.com/" + compact + "/x.ts", "", described + unchecked},
		{"path", "/" + compact + "/x.ts", "", described + unchecked},
		{"key", compact, public, described + valid},
		{"private key", compact, writeFile(t, "key.txt", must(testKey().JWK())), described + valid},
		{"PEM of the key's id", compact, writeFile(t, "k1.pem", publicPEM(t, testKey())), described + valid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := inspecting(tc.text, tc.key)
			if err != nil {
				t.Fatalf("inspect = %v", err)
			}
			if diff := cmp.Diff(tc.want, out); diff != "" {
				t.Errorf("inspect (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("standard input", func(t *testing.T) {
		var out bytes.Buffer
		err := inspect(inspectOptions{token: "-", stdin: strings.NewReader(compact + "\n"), now: func() time.Time { return testTime }}, &out)
		if diff := cmp.Diff(described+unchecked, out.String()); err != nil || diff != "" {
			t.Errorf("inspect - = %v (-want +got):\n%s", err, diff)
		}
	})
	t.Run("key on standard input", func(t *testing.T) {
		var out bytes.Buffer
		err := inspect(inspectOptions{token: compact, key: "-", stdin: strings.NewReader(publicJWK(testKey())), now: func() time.Time { return testTime }}, &out)
		if diff := cmp.Diff(described+valid, out.String()); err != nil || diff != "" {
			t.Errorf("inspect --key - = %v (-want +got):\n%s", err, diff)
		}
	})
}

// inspect shows as much of a token as there is to be shown, and ends with the
// reason for which the gate would refuse it.
func TestInspectOfTokensThatAreRefused(t *testing.T) {
	public := writeFile(t, "k1.pem", publicPEM(t, testKey()))
	expired := signed(func(c *token.Claims) { c.ExpiresAt = testTime.Add(-time.Minute) })
	early := signed(func(c *token.Claims) { c.NotBefore = testTime.Add(time.Minute) })
	forged := must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)}, strangerKey()))
	for _, tc := range []struct{ name, text, key, shows, err string }{
		{"expired", expired, public, "(1m0s ago)", "expired"},
		{"not yet valid", early, public, "not before: 2027-01-15T08:01:00Z (in 1m0s)", "not yet valid"},
		{"signed by another key", forged, public, "video:      demo", "invalid signature"},
		{"key that is not there", plainToken(), writeFile(t, "k2.pem", publicPEM(t, otherKey())), "key id:     k1", "unknown key"},
		{"key file missing", plainToken(), filepath.Join(t.TempDir(), "none.pem"), "video:      demo", "--key"},
		{"key file that is none", plainToken(), writeFile(t, "key.pem", "no key"), "video:      demo", "--key"},
		{"rules that nobody understands", signedWithRules(`[{"type":"x","action":"allow"}]`), public, `"accessRules":[{"type":"x"`, `type is "x"`},
		{"token and key both on standard input", "-", "-", "", "standard input"},
		{"not a token", "abc", "", "token id:   " + redact.TokenID("abc"), "not three segments"},
		{"empty", "", "", "", "not three segments"},
		{"padded", plainToken() + "=", "", "token id:", "base64url"},
		{"cut off", plainToken()[:60], "", "token id:", "not three segments"},
		{"alg none", encoded(`{"alg":"none"}`, `{"sub":"demo","exp":1800000060}`), "", "token id:", "algorithm not allowed"},
		{"no exp", encoded(`{"alg":"RS256"}`, `{"sub":"demo"}`), "", "token id:", "no exp"},
		{"URL without a token", "https://media.example.com/demo/x.ts", "", "", "the URL contains no token"},
		{"URL without a path", "https://media.example.com", "", "", "the URL contains no token"},
		{"path without a token", "/demo/x.ts", "", "", "the URL contains no token"},
		{"URL with a token in its query alone", "https://media.example.com/demo?t=" + plainToken(), "", "", "the URL contains no token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := inspecting(tc.text, tc.key)
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("inspect = %v, want an error with %q", err, tc.err)
			}
			if !strings.Contains(out, tc.shows) {
				t.Errorf("inspect printed %q, want %q in it", out, tc.shows)
			}
			if strings.Contains(out, "valid, and so") {
				t.Error("inspect calls the token valid")
			}
			if len(tc.text) > 100 && err != nil && strings.Contains(err.Error(), tc.text[len(tc.text)-60:]) {
				t.Errorf("the error has the token in it: %v", err)
			}
		})
	}
}

// run executes a command as the command line does.
func run(cmd *cobra.Command, stdin string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err := cmd.Execute()
	return out.String(), err
}

// The flags of the command line reach the functions that do the work.
func TestCommandLine(t *testing.T) {
	key, err := run(keygenCommand(), "", "--kid", "cli")
	if err != nil {
		t.Fatalf("keygen = %v", err)
	}
	url, err := run(signCommand(), key, "--key", "-", "--sub", "demo", "--exp", "2h", "--nbf", "-1h", "--downloadable",
		"--rules", `[{"type":"any","action":"allow"}]`, "--url", "https://media.example.com", "--kid", "cli")
	if err != nil {
		t.Fatalf("sign = %v", err)
	}
	out, err := run(inspectCommand(), key, strings.TrimSpace(url), "--key", "-")
	if err != nil {
		t.Fatalf("inspect = %v", err)
	}
	for _, want := range []string{"video:      demo\n", "key id:     cli\n", "not before:", `"downloadable":true`, "rules:      1\n", "valid, and so"} {
		if !strings.Contains(out, want) {
			t.Errorf("inspect printed %q, want %q in it", out, want)
		}
	}
	for name, args := range map[string][]string{
		"sign with an argument":     {"sign", "demo"},
		"sign with an unknown flag": {"sign", "--subject", "demo"},
		"sign without anything":     {"sign"},
		"keygen with an argument":   {"keygen", "k1"},
		"inspect without a token":   {"inspect"},
		"inspect with two":          {"inspect", "a", "b"},
	} {
		commands := map[string]func() *cobra.Command{"sign": signCommand, "keygen": keygenCommand, "inspect": inspectCommand}
		if out, err := run(commands[args[0]](), "", args[1:]...); err == nil {
			t.Errorf("%s succeeds and prints %q", name, out)
		}
	}
}

// The defaults that the help texts promise.
func TestSignCommandsDefaults(t *testing.T) {
	for flag, want := range map[string]string{"exp": "1h", "nbf": "", "kid": "", "rules": "", "url": "", "downloadable": "false"} {
		if got := signCommand().Flag(flag).DefValue; got != want {
			t.Errorf("--%s is %q by default, want %q", flag, got, want)
		}
	}
}

func TestCommandIsRegistered(t *testing.T) {
	command, ok := caddycmd.Commands()["signed-playback"]
	if !ok {
		t.Fatal("there is no command signed-playback")
	}
	cmd := &cobra.Command{Use: "signed-playback"}
	command.CobraFunc(cmd)
	var names []string
	for _, sub := range cmd.Commands() {
		names = append(names, sub.Name())
	}
	for _, want := range []string{"inspect", "keygen", "sign"} {
		if !slices.Contains(names, want) {
			t.Errorf("subcommands are %q, want %s among them", names, want)
		}
	}
	if _, err := run(cmd, "", "sgin"); err == nil {
		t.Error("an unknown subcommand succeeds")
	}
}
