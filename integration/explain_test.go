package integration

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// explained is the output of `explain --json`, as far as these tests look at it.
type explained struct {
	Allowed bool   `json:"allowed"`
	Result  string `json:"result"`
	Reason  string `json:"reason"`
	Status  int    `json:"status"`
	Video   string `json:"video"`
	Client  string `json:"client_ip"`
	Country string `json:"country"`
	Checks  []struct {
		Check, Outcome string
	} `json:"checks"`
}

// explain runs the command in a folder. It checks that no output contains a part
// of the token, and that the exit status is that of the outcome.
func explain(t testing.TB, dir, address string, args ...string) (e explained) {
	t.Helper()
	args = append([]string{"signed-playback", "explain", "--config", "Caddyfile", "--url", address, "--json"}, args...)
	got := execute(t, dir, "", binary(t), args...)
	if err := json.Unmarshal([]byte(got.stdout), &e); err != nil {
		t.Fatalf("explain printed %q and %q: %v", got.stdout, got.stderr, err)
	}
	if (got.code == 0) != e.Allowed || got.code > 1 {
		t.Errorf("exit status %d for a request that is allowed: %t", got.code, e.Allowed)
	}
	for part := range strings.SplitSeq(address, "/") {
		if strings.Count(part, ".") == 2 && len(part) > 100 {
			wantNoPartOf(t, "the output of explain", got.stdout+got.stderr, map[string]string{"the token": part})
		}
	}
	return e
}

// stateHome makes commands use the storage in a gateway's folder.
func stateHome(t testing.TB, dir string) {
	t.Helper()
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		t.Setenv(name, dir)
	}
}

// explain runs beside the server with the same config and says what the server
// answers. It reads the keys and settings of the control API in the shared store
// and the remote key set, and the origin gets no request.
func TestExplainBesideTheServer(t *testing.T) {
	remote := newSigningKey("remote", privateKey())
	redis := startRedis(t)
	o := startOrigin(t, nil)
	admin := freeAddr(t)
	g := start(t, o, config{
		global: trusting("127.0.0.2/32") + "\nadmin " + admin,
		api:    withAPI,
		app:    redis.option() + "\n" + withCountries(t) + "\njwks_url " + serveKeys(t, remote) + "\nvideo reported {\nreport_only rules\n}",
		site:   accessLog(t, "access.log") + "@private path /private/*\nrespond @private 403\nreverse_proxy " + o.addr(),
	})
	stateHome(t, g.dir)
	key, revoked := g.createKey(t), g.createKey(t)
	g.mustCall(t, http.MethodDelete, "stream/keys/"+revoked.ID, "", nil)
	g.edit(t, "open", `{"requireSignedURLs":false}`)
	g.edit(t, "site", `{"allowedOrigins":["example.com"]}`)
	ofRemote, err := token.Sign(token.Claims{VideoID: "demo", ExpiresAt: time.Now().Add(time.Hour)}, remote)
	if err != nil {
		t.Fatal(err)
	}
	inGB := withRules(`[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]`)
	for _, tc := range []struct {
		name, path, origin string
		want               verdict
	}{
		{"remote key set", segment(ofRemote), "", plays},
		{"key of the API", segment(signWith(t, key, "demo")), "", plays},
		{"revoked key", segment(signWith(t, revoked, "demo")), "", keyUnknown},
		{"open video of the API", segment("open"), "", plays},
		{"origins of the API", segment(mint(t, "site", nil)), "https://evil.example", verdict{http.StatusForbidden, "origin_not_allowed"}},
		{"in another country", segment(mint(t, "demo", inGB)), "", verdict{http.StatusForbidden, "rule_blocked"}},
		{"another country, report-only", segment(mint(t, "reported", inGB)), "", plays},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var header, args []string
			if tc.origin != "" {
				header, args = []string{"Origin: " + tc.origin}, []string{"--origin", tc.origin}
			}
			if got := g.get(t, tc.path, header...).verdict(); got != tc.want {
				t.Fatalf("the server answers %v, want %v", got, tc.want)
			}
			o.take()
			e := explain(t, g.dir, g.url(tc.path), args...)
			var running explained
			asked, _ := json.Marshal(map[string]string{"url": g.url(tc.path), "ip": "127.0.0.1", "origin": tc.origin})
			g.mustCall(t, http.MethodPost, "stream/explain", string(asked), &running)
			if diff := cmp.Diff(e, running); diff != "" {
				t.Errorf("the API explains it differently (-command +API):\n%s", diff)
			}
			want := explained{Allowed: tc.want == plays, Reason: tc.want.Reason, Status: tc.want.Status, Result: "refused", Client: "127.0.0.1", Country: "US"}
			if tc.want == plays {
				want.Status, want.Result = 0, "allowed"
			}
			if strings.Contains(tc.name, "report-only") {
				want.Result, want.Reason = "would_refuse", "rule_blocked"
			}
			want.Video, want.Checks = e.Video, e.Checks
			if diff := cmp.Diff(want, e); diff != "" {
				t.Errorf("(-server +explanation):\n%s", diff)
			}
			if len(e.Checks) < 6 {
				t.Errorf("only %d checks are explained", len(e.Checks))
			}
			o.wantUntouched(t)
		})
	}
	t.Run("counts of the server alone, over a reload", func(t *testing.T) {
		if err := g.load(admin, string(must(os.ReadFile(filepath.Join(g.dir, "Caddyfile")))(t))); err != nil {
			t.Fatal(err)
		}
		var refusals struct {
			Hours []struct{ Refused, WouldRefuse map[string]int }
		}
		g.mustCall(t, http.MethodGet, "stream/refusals", "", &refusals)
		got := make(map[string]int)
		for _, hour := range refusals.Hours {
			for reason, n := range hour.Refused {
				got[reason] += n
			}
			got["reported"] += hour.WouldRefuse["rule_blocked"]
		}
		if diff := cmp.Diff(map[string]int{"key_unknown": 1, "origin_not_allowed": 1, "rule_blocked": 1, "reported": 1}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("through a proxy", func(t *testing.T) {
		e := explain(t, g.dir, g.url(segment(mint(t, "demo", inGB))), "--ip", "127.0.0.2", "--header", "X-Forwarded-For: 203.0.113.7")
		if !e.Allowed || e.Client != "203.0.113.7" || e.Country != "GB" {
			t.Errorf("%+v, want it allowed for 203.0.113.7 in GB", e)
		}
	})
}
