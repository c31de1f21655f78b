package signedplayback

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// formatted returns a Caddyfile as `caddy fmt` writes it.
func formatted(text string) string { return string(caddyfile.Format([]byte(text))) }

// warning is a line of the log at level WARN.
type warning struct {
	Site, Gate, Msg string
	Logs            []string
}

// validateWarnings validates a config and returns its warnings. The default log, unless
// the config has one, redacts tokens and goes to a file.
func validateWarnings(t *testing.T, adapted, file string) (warnings []warning, err error) {
	t.Helper()
	var cfg caddy.Config
	if err := json.Unmarshal([]byte(adapted), &cfg); err != nil {
		t.Fatalf("%v: %s", err, adapted)
	}
	cfg.StorageRaw = caddyconfig.JSONModuleObject(map[string]string{"root": filepath.Dir(file)}, "module", "file_system", nil)
	if cfg.Logging == nil {
		cfg.Logging = &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{
			EncoderRaw: json.RawMessage(`{"format":"signed_playback","wrap":{"format":"json"}}`),
		}}}}
	}
	cfg.Logging.Logs["default"].WriterRaw = caddyconfig.JSONModuleObject(map[string]string{"filename": file}, "output", "file", nil)
	err = validateConfig(&cfg)
	for line := range strings.Lines(string(must(os.ReadFile(file)))) {
		var entry struct {
			Level, Logger string
			warning
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if entry.Level == "warn" && entry.Logger == appID {
			warnings = append(warnings, entry.warning)
		}
	}
	return warnings, err
}

// A gate whose requests get into a log without the log format is named, with those
// logs. Sites without a gate, and logs that get no requests, are not.
func TestLogsWithoutTheFormat(t *testing.T) {
	dir := t.TempDir()
	const (
		format = "format signed_playback json"
		fields = "format filter {\nwrap json\nrequest>uri signed_playback\n}"
		object = "format filter {\nwrap json\nrequest signed_playback\n}"
		errors = "http.log.error"
		debug  = "http.handlers.reverse_proxy"
		access = "http.log.access"
	)
	for name, tc := range map[string]struct {
		global, site string
		want         []string
	}{
		"everything redacted":                {"log {\n" + format + "\n}\ndebug", "log", nil},
		"fields redacted":                    {"log {\n" + fields + "\n}", "log", nil},
		"an object redacted":                 {"log {\n" + object + "\n}", "log", nil},
		"nothing redacted":                   {"log {\nformat json\n}", "", []string{errors}},
		"debug":                              {"log {\nformat json\n}\ndebug", "", []string{errors, debug}},
		"access log in the default log":      {"log {\nformat json\n}", "log", []string{errors, access}},
		"access log of its own":              {"log {\n" + format + "\n}", "log {\noutput file DIR/own\nformat json\n}", []string{access + ".log0"}},
		"access log of its own, console":     {"log {\n" + format + "\n}", "log {\noutput file DIR/own\nformat console\n}", []string{access + ".log0"}},
		"access log of its own, redacted":    {"log {\n" + format + "\n}", "log {\noutput file DIR/own\n" + format + "\n}", nil},
		"access log of its own, by a filter": {"log {\n" + format + "\n}", "log {\noutput file DIR/own\n" + fields + "\n}", nil},
		"a filter of another field":          {"log {\n" + format + "\n}", "log {\noutput file DIR/own\nformat filter {\nrequest>host signed_playback\n}\n}", []string{access + ".log0"}},
		"another log that gets all lines":    {"log {\n" + format + "\n}\nlog all {\noutput file DIR/all\nformat json\n}", "", []string{errors}},
		"another log without requests":       {"log {\n" + format + "\n}\nlog admin {\noutput file DIR/admin\nformat json\ninclude admin.api\n}", "log", nil},
		"a discarded log":                    {"log {\n" + format + "\n}", "log {\noutput discard\nformat json\n}", nil},
		"a sampled log":                      {"log {\n" + format + "\nsampling {\nfirst 1\n}\n}", "log {\noutput file DIR/own\nformat json\nsampling {\nfirst 1\n}\n}", []string{access + ".log0"}},
	} {
		t.Run(name, func(t *testing.T) {
			text := fmt.Sprintf("{\n%s\n}\nhttp://open.example.com {\nlog open {\noutput file DIR/open\nformat json\n}\nreverse_proxy o:1\n}\n"+
				"http://media.example.com {\n%s\nsigned_playback\nreverse_proxy o:1\n}\n", tc.global, tc.site)
			warnings, err := validateWarnings(t, adapt(t, formatted(strings.ReplaceAll(text, "DIR", dir))), filepath.Join(dir, strings.ReplaceAll(name, " ", "-")))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range warnings {
				got = append(got, w.Logs...)
				if w.Site != "media.example.com" || !strings.HasPrefix(w.Gate, "Caddyfile:") {
					t.Errorf("neither site nor line: %+v", w)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("the logs (-want +got):\n%s", diff)
			}
		})
	}
}

// The response with a link is in the access log of the login's site. Without public_url, the link
// leads to that site, too.
func TestLinksWithoutTheFormatOrAGate(t *testing.T) {
	const link = "signed_playback_mint {\nvideo demo\nuid {http.auth.user.id}\n}\n"
	for name, tc := range map[string]struct {
		global, site string
		logs         []string
		alone        bool
	}{
		"all right":            {"log {\nformat signed_playback\n}\nsigned_playback {\npublic_url https://media.example.com\n}\ndebug", "log\n" + link, nil, false},
		"a gate beside it":     {"", link + "handle {\nsigned_playback {\nplayer\n}\nrespond ok\n}", nil, false},
		"no gate":              {"", link, nil, true},
		"an access log":        {"signed_playback {\npublic_url https://media.example.com\n}", "log {\nformat json\noutput file DIR/own\n}\n" + link, []string{"http.log.access.log0"}, false},
		"no access log at all": {"log {\nformat json\n}\nsigned_playback {\npublic_url https://media.example.com\n}", link, nil, false},
	} {
		dir := t.TempDir()
		text := strings.ReplaceAll(fmt.Sprintf("{\n%s\n}\nhttp://www.example.com {\n%s\n}\n", tc.global, tc.site), "DIR", dir)
		warnings, err := validateWarnings(t, adapt(t, formatted(text)), filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		var logs []string
		var alone bool
		for _, w := range warnings {
			if strings.HasPrefix(w.Msg, "links of ") {
				logs, alone = append(logs, w.Logs...), alone || strings.Contains(w.Msg, "public_url")
			}
		}
		if !cmp.Equal(logs, tc.logs) || alone != tc.alone {
			t.Errorf("%s: %+v", name, warnings)
		}
	}
}

// The attack: a page that error routes get with success hides the gate's refusal. Without
// the server's writer for idle timeouts the gate cannot keep its status.
func TestErrorRoutesWithoutWriteIdle(t *testing.T) {
	dir := t.TempDir()
	const errors = "handle_errors {\nreverse_proxy o:2\n}"
	for name, tc := range map[string]struct {
		timeout, site string
		want          int
	}{
		"off":                 {"-1s", "signed_playback\nreverse_proxy o:1\n" + errors, 1},
		"off, no error route": {"-1s", "signed_playback\nreverse_proxy o:1", 0},
		"off, no gate":        {"-1s", "reverse_proxy o:1\n" + errors, 0},
		"default":             {"0s", "signed_playback\nreverse_proxy o:1\n" + errors, 0},
		"on":                  {"10m", "signed_playback\nreverse_proxy o:1\n" + errors, 0},
	} {
		t.Run(name, func(t *testing.T) {
			text := fmt.Sprintf("{\nservers {\ntimeouts {\nwrite_idle %s\n}\n}\n}\nhttp://media.example.com {\n%s\n}\n", tc.timeout, tc.site)
			warnings, err := validateWarnings(t, adapt(t, formatted(text)), filepath.Join(dir, strings.ReplaceAll(name, " ", "-")))
			if err != nil || len(warnings) != tc.want {
				t.Errorf("%v %+v, want %d warnings", err, warnings, tc.want)
			}
		})
	}
}

// The attack: somebody on the network, or with read access to the gate, gets a key with
// which they sign tokens. Connections within the machine are no reason to warn. No
// password gets into the log.
func TestExposedSecrets(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://:hunter2@10.0.0.5")
	private, public := writeFile(t, "key.pem", testKey().PEM()), writeFile(t, "k1.json", publicJWK(testKey()))
	set := writeFile(t, "set.json", `{"keys":[`+publicJWK(otherKey())+`,`+string(must(base64.StdEncoding.DecodeString(must(testKey().JWK()))))+`]}`)
	for name, tc := range map[string]struct {
		app  App
		want []string // part of the warning; none without one
	}{
		"a public key":                  {App{KeyFiles: []string{public}}, nil},
		"a private key":                 {App{KeyFiles: []string{private}}, []string{private}},
		"a private key in a set":        {App{KeyFiles: []string{set}}, []string{set}},
		"https":                         {App{JWKSURL: "https://id.example.com/jwks"}, nil},
		"http":                          {App{JWKSURL: "http://id.example.com/jwks"}, []string{"id.example.com"}},
		"http in a private network":     {App{JWKSURL: "http://10.0.0.5:8080/jwks"}, []string{"10.0.0.5:8080"}},
		"http and a name like it":       {App{JWKSURL: "http://localhost.example.com/jwks"}, []string{"localhost.example.com"}},
		"http on this machine":          {App{JWKSURL: "http://127.0.0.1:1/jwks"}, nil},
		"http on localhost":             {App{JWKSURL: "http://LOCALHOST:1/jwks"}, nil},
		"http on this machine, IPv6":    {App{JWKSURL: "http://[::1]:1/jwks"}, nil},
		"redis":                         {App{Store: "redis", StoreURL: "redis://:hunter2@redis.internal:1"}, []string{"redis.internal:1"}},
		"redis by a placeholder":        {App{Store: "redis", StoreURL: "{env.REDIS_URL}"}, []string{"10.0.0.5:6379"}},
		"valkey":                        {App{Store: "redis", StoreURL: "valkey://redis.internal:1"}, []string{"redis.internal:1"}},
		"a second address":              {App{Store: "redis", StoreURL: "redis://127.0.0.1:1?addr=redis.internal:2"}, []string{"redis.internal:2"}},
		"redis on this machine":         {App{Store: "redis", StoreURL: "redis://:hunter2@localhost:1"}, nil},
		"redis on a socket":             {App{Store: "redis", StoreURL: "unix:///nowhere/redis.sock"}, nil},
		"rediss":                        {App{Store: "redis", StoreURL: "rediss://:hunter2@redis.internal:1"}, nil},
		"rediss without a check":        {App{Store: "redis", StoreURL: "rediss://:hunter2@redis.internal:1?skip_verify=true"}, []string{"skip_verify"}},
		"rediss without a check, 1":     {App{Store: "redis", StoreURL: "rediss://redis.internal:1?skip_verify=1"}, []string{"skip_verify"}},
		"rediss without a check, empty": {App{Store: "redis", StoreURL: "valkeys://redis.internal:1?skip_verify"}, []string{"skip_verify"}},
		"rediss with the check":         {App{Store: "redis", StoreURL: "rediss://redis.internal:1?skip_verify=false"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			core, logs := observer.New(zapcore.WarnLevel)
			tc.app.logger = zap.New(core)
			tc.app.warnOfExposure()
			log := ""
			for _, entry := range logs.All() {
				log += fmt.Sprintln(entry.Message, entry.ContextMap())
			}
			if strings.Contains(log, "hunter2") || (log != "") != (tc.want != nil) {
				t.Errorf("the log is %q", log)
			}
			for _, want := range tc.want {
				if !strings.Contains(log, want) {
					t.Errorf("no %s in %s", want, log)
				}
			}
		})
	}
}
