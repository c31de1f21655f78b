package signedplayback

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/geo"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// wantRefusedBody holds that a body is refused with 400 and a text that says
// why.
func wantRefusedBody(t *testing.T, body string, err error, why string) {
	t.Helper()
	var refused *apiError
	if !errors.As(err, &refused) || refused.status != http.StatusBadRequest || refused.Code != codeBadRequest {
		t.Errorf("%s: %v, want a bad request", body, err)
		return
	}
	if !strings.Contains(refused.Message, why) || len(refused.Message) > 500 {
		t.Errorf("%s is refused with %q, want %q in it", body, refused.Message, why)
	}
}

// A6: what no token is minted for. Numbers of another kind, null and unknown
// members are refused, not read as something else: a claim that is dropped may
// be the one that was to keep somebody out.
func TestMintRequestsThatAreRefused(t *testing.T) {
	for _, tc := range []struct{ body, why string }{
		{`{"exp":"1800003600"}`, "exp"},
		{`{"exp":1800003600.5}`, "exp"},
		{`{"exp":1800003600.0}`, "exp"},
		{`{"exp":1.8e9}`, "exp"},
		{`{"exp":-1}`, "exp"},
		{`{"exp":null}`, "exp"},
		{`{"exp":{}}`, "exp"},
		{`{"exp":"2090-01-01T00:00:00Z"}`, "exp"},
		{`{"exp":true}`, "exp"},
		{`{"exp":[1800003600]}`, "exp"},
		{`{"exp":"1h"}`, "exp"},
		{`{"exp":99999999999999999999}`, "exp"},
		{`{"exp":""}`, "exp"},
		{`{"nbf":"1800000000"}`, "nbf"},
		{`{"nbf":-1}`, "nbf"},
		{`{"nbf":null}`, "nbf"},
		{`{"nbf":0.5}`, "nbf"},
		{`{"downloadable":"true"}`, "downloadable"},
		{`{"downloadable":1}`, "downloadable"},
		{`{"downloadable":null}`, "downloadable"},
		{`{"id":1,"pem":"x"}`, "id"},
		{`{"id":null,"pem":"x"}`, "id"},
		{`{"id":"` + testKey().PEM() + `","pem":"` + testKey().PEM() + `"}`, "id"}, // which the answer must not repeat
		{`{"id":"` + testKey().PEM() + `","pem":"k1"}`, "id"},
		{`{"id":"k1"}`, "go together"},
		{`{"pem":"x"}`, "go together"},
		{`{"id":"","pem":"x"}`, "go together"},
		{`{"id":"k1","pem":""}`, "go together"},
		{`{"flags":true}`, "flags"},
		{`{"flags":null}`, "flags"},
		{`{"flags":[]}`, "flags"},
		{`{"flags":{"original":true}}`, "flags.original"},
		{`{"flags":{"other":true}}`, "flags.other"},
		{`{"flags":{"original":"false"}}`, "flags.original"},
		{`{"flags":{"original":null}}`, "flags.original"},
		{`{"flags":{"original":false,"other":1}}`, "flags.other"},
		{`{"accessRules":{}}`, "accessRules"},
		{`{"accessRules":{"type":"any","action":"block"}}`, "accessRules"},
		{`{"accessRules":"[]"}`, "accessRules"},
		{`{"accessRules":[null]}`, "rule 1"},
		{`{"accessRules":[{"type":"any","action":"allow"},{"type":"ip.src","action":"block"}]}`, "rule 2: ip is missing"},
		{`{"accessRules":[{"type":"ip.src","action":"block","ip":["300.1.1.1"]}]}`, `"300.1.1.1"`},
		{`{"accessRules":[{"type":"ip.src","action":"Block","ip":["192.0.2.1"]}]}`, `"Block"`},
		{`{"accessRules":[{"type":"ip.geoip.country","action":"allow","country":["GBR"]}]}`, `"GBR"`},
		{`{"accessRules":[{"type":"ip.geoip.asnum","action":"allow"}]}`, `"ip.geoip.asnum"`},
		{`{"accessRules":` + manyRules(maxRules+1) + `}`, "more than 64"},
		{`{"sub":"other"}`, `"sub"`},
		{`{"kid":"k1"}`, `"kid"`},
		{`{"iat":1}`, `"iat"`},
		{`{"alg":"none"}`, `"alg"`},
		{`{"aud":"x"}`, `"aud"`},
		{`{"viewerId":"x"}`, `"viewerId"`},
		{`{"Exp":1800003600}`, `"Exp"`},
		{`{"EXP":1800003600}`, `"EXP"`},
		{`{"exp ":1800003600}`, `"exp "`},
		{`{"exp\u0000":1}`, "unknown member"},
		{`{"x\",\"sub\":\"other":1}`, "unknown member"},
		{`{"x\":1}.{\"sub\":\"other\"":1}`, "unknown member"},
		{`{"access_rules":[]}`, `"access_rules"`},
		{`{"__proto__":{}}`, `"__proto__"`},
		{`{"accessrules":[]}`, `"accessrules"`},
		{`{"` + strings.Repeat("x", 1000) + `":1}`, "unknown member"},
	} {
		mint, err := parseMintRequest(parsed(t, tc.body))
		wantRefusedBody(t, tc.body, err, tc.why)
		if mint != nil {
			t.Errorf("%s: a request beside the error", tc.body)
		}
	}
}

func TestMintRequests(t *testing.T) {
	rules := `[ {"type":"any", "action":"block"} ]`
	for _, tc := range []struct {
		body string
		want mintRequest
	}{
		{"", mintRequest{}},
		{`{}`, mintRequest{}},
		{`{"exp":0,"nbf":0}`, mintRequest{}},
		{`{"exp":-0}`, mintRequest{}},
		{`{"exp":1800003600,"nbf":1}`, mintRequest{expires: time.Unix(1800003600, 0), notBefore: time.Unix(1, 0)}},
		{`{"downloadable":true}`, mintRequest{downloadable: true}},
		{`{"downloadable":false}`, mintRequest{}},
		{`{"flags":{}}`, mintRequest{}},
		{`{"flags":{"original":false,"later":false}}`, mintRequest{}},
		{`{"accessRules":null}`, mintRequest{}},
		{`{"accessRules":[]}`, mintRequest{rawRules: json.RawMessage(`[]`)}},
		{`{"accessRules":` + rules + `}`, mintRequest{rawRules: json.RawMessage(rules)}},
		{`{"accessRules":` + manyRules(maxRules) + `}`, mintRequest{rawRules: json.RawMessage(manyRules(maxRules))}},
		{`{"id":"k1","pem":"abc"}`, mintRequest{keyID: "k1", pem: "abc"}},
		{`{"id":"","pem":""}`, mintRequest{}},
	} {
		value := noBody
		if tc.body != "" {
			value = parsed(t, tc.body)
		}
		got, err := parseMintRequest(value)
		if err != nil {
			t.Errorf("%s: %v", tc.body, err)
			continue
		}
		if want := len(must(compileRules(tc.want.rawRules))); len(got.rules) != want {
			t.Errorf("%s: %d rules, want %d", tc.body, len(got.rules), want)
		}
		got.rules = nil
		if diff := cmp.Diff(tc.want, *got, cmp.AllowUnexported(mintRequest{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.body, diff)
		}
	}
}

// The dates of a token: what is not set is an hour from now and an hour ago,
// and no token is for the past, for more than a day, or for never.
func TestDatesOfMintedTokens(t *testing.T) {
	unix := func(d time.Duration) int64 { return testTime.Add(d).Unix() }
	const day = 24 * time.Hour
	for _, tc := range []struct {
		name     string
		exp, nbf int64 // 0: not set
		wantExp  int64
		wantNbf  int64
		why      string // "" for a token
	}{
		{"neither is set", 0, 0, unix(time.Hour), unix(-time.Hour), ""},
		{"in a second", unix(time.Second), 0, unix(time.Second), unix(-time.Hour), ""},
		{"now", unix(0), 0, 0, 0, "past"},
		{"a second ago", unix(-time.Second), 0, 0, 0, "past"},
		{"in 1970", 1, 0, 0, 0, "past"},
		{"in a day", unix(day), 0, unix(day), unix(-time.Hour), ""},
		{"in a day and a second", unix(day + time.Second), 0, 0, 0, "24 hours"},
		{"in milliseconds", unix(time.Hour) * 1000, 0, 0, 0, "Unix seconds"},
		{"beyond the year 9999", 253402300800, 0, 0, 0, "24 hours"},
		{"the largest number", 1<<63 - 1, 0, 0, 0, ""},
		{"nbf now", 0, unix(0), unix(time.Hour), unix(0), ""},
		{"nbf in 1970", 0, 1, unix(time.Hour), 1, ""},
		{"nbf in the future", 0, unix(30 * time.Minute), unix(time.Hour), unix(30 * time.Minute), ""},
		{"nbf a second before exp", unix(day), unix(day - time.Second), unix(day), unix(day - time.Second), ""},
		{"nbf is exp", unix(day), unix(day), 0, 0, "not before exp"},
		{"nbf after exp", unix(time.Hour), unix(2 * time.Hour), 0, 0, "not before exp"},
		{"nbf after exp by default", 0, unix(2 * time.Hour), 0, 0, "not before exp"},
		{"nbf in milliseconds", 0, unix(0) * 1000, 0, 0, "not before exp"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			body := fmt.Sprintf(`{"exp":%d,"nbf":%d}`, tc.exp, tc.nbf)
			mint, err := parseMintRequest(parsed(t, body))
			if err != nil {
				t.Fatal(err)
			}
			claims, err := mint.claims("demo", testTime)
			if tc.wantExp == 0 {
				wantRefusedBody(t, body, err, tc.why)
				if diff := cmp.Diff(token.Claims{}, claims); diff != "" {
					t.Errorf("claims beside the error:\n%s", diff)
				}
				return
			}
			want := token.Claims{VideoID: "demo", ExpiresAt: time.Unix(tc.wantExp, 0), NotBefore: time.Unix(tc.wantNbf, 0)}
			if diff := cmp.Diff(want, claims); err != nil || diff != "" {
				t.Errorf("%v; claims (-want +got):\n%s", err, diff)
			}
		})
	}
}

// A number that overflows a date must not come out as one that is valid: no
// token is minted for either, whatever else is said.
func TestHugeDates(t *testing.T) {
	c := control(t, new(App), new(API))
	c.node.fleet.plantSigningKey("own", testTime)
	c.state.sync(t.Context())
	for _, huge := range []int64{1<<63 - 1, 1<<63 - 62135596800, 1<<63 - 62135596801, 1 << 62, 1 << 53, 1e15} {
		for _, body := range []string{fmt.Sprintf(`{"exp":%d}`, huge), fmt.Sprintf(`{"nbf":%d}`, huge), fmt.Sprintf(`{"exp":%d,"nbf":%d}`, huge, huge)} {
			wantReply(t, body, c.call(t, "POST", "demo/token", body), 400, codeBadRequest)
		}
	}
}

// Rules that fit a call and no token are the caller's mistake.
func TestTokenThatWouldBeTooLong(t *testing.T) {
	c := control(t, new(App), new(API))
	c.node.fleet.plantSigningKey("own", testTime)
	c.state.sync(t.Context())
	prefixes := make([]string, 600)
	for i := range prefixes {
		prefixes[i] = fmt.Sprintf("2001:db8:%x::/48", i)
	}
	rules := must(json.Marshal([]token.AccessRule{{Type: "ip.src", Action: "block", IP: prefixes}}))
	a := c.call(t, "POST", "demo/token", `{"accessRules":`+string(rules)+`}`)
	wantReply(t, "600 networks", a, 400, codeBadRequest)
	if !strings.Contains(a.raw, strconv.Itoa(token.MaxLength)) {
		t.Errorf("the answer does not say how long a token may be: %s", a.raw)
	}
}

// What Cloudflare's own endpoint answers: these members, in this order, with
// dates as text.
func TestTokensAreAsCloudflaresOwn(t *testing.T) {
	rules := json.RawMessage(`[{"type":"any","action":"block"}]`)
	for _, tc := range []struct {
		claims  token.Claims
		payload string
	}{
		{
			token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour), NotBefore: testTime.Add(-time.Hour)},
			`{"sub":"demo","kid":"k1","exp":"1800003600","nbf":"1799996400"}`,
		},
		{
			token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour), NotBefore: testTime, Downloadable: true, AccessRules: rules},
			`{"sub":"demo","kid":"k1","exp":"1800003600","nbf":"1800000000","downloadable":true,"accessRules":[{"type":"any","action":"block"}]}`,
		},
		{
			token.Claims{VideoID: "demo", ExpiresAt: testTime.Add(time.Hour)},
			`{"sub":"demo","kid":"k1","exp":"1800003600"}`,
		},
	} {
		compact, err := token.SignWithTextDates(tc.claims, testKey())
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := token.Parse(compact)
		if err != nil {
			t.Fatal(err)
		}
		header, payload := parsed.Documents()
		if header != `{"alg":"RS256","kid":"k1"}` || payload != tc.payload {
			t.Errorf("%s %s, want %s", header, payload, tc.payload)
		}
		tc.claims.KeyID = "k1"
		got, err := token.Verify(compact, must(token.NewKeySet(testKey().Public())), testTime, token.Policy{MaxLifetime: maxMintedLifetime})
		if diff := cmp.Diff(tc.claims, got); err != nil || diff != "" {
			t.Errorf("Verify = %v (-want +got):\n%s", err, diff)
		}
		// Dates as numbers are the same token to a reader.
		plain := must(token.Sign(tc.claims, testKey()))
		if got, err := token.Verify(plain, must(token.NewKeySet(testKey().Public())), testTime, token.Policy{}); err != nil || cmp.Diff(tc.claims, got) != "" {
			t.Errorf("Verify = %v (-want +got):\n%s", err, cmp.Diff(tc.claims, got))
		}
	}
	for _, claims := range []token.Claims{
		{VideoID: "a/b", ExpiresAt: testTime},
		{VideoID: "demo"},
		{VideoID: "demo", ExpiresAt: time.Unix(253402300800, 0)},
		{VideoID: "demo", ExpiresAt: testTime, NotBefore: time.Unix(253402300800, 0)},
		{VideoID: "demo", ExpiresAt: time.Unix(-1, 0)},
		{VideoID: "demo", ExpiresAt: testTime, AccessRules: json.RawMessage(`[{"a":1,"a":2}]`)},
	} {
		if compact, err := token.SignWithTextDates(claims, testKey()); err == nil {
			t.Errorf("%+v is signed: %s", claims, compact)
		}
	}
}

// A token of the API plays at the gate beside it, and nowhere else.
func TestMintedTokensPlay(t *testing.T) {
	g := newGate(t, new(App), new(Gate))
	f := newFleet()
	f.plantSigningKey("own", testTime)
	s := newTestState(t, f.node())
	setTime(s)
	useState(t, g.app, s)
	c := controlled{api: &API{app: g.app, credentials: credentialsOf(&API{BearerTokens: []string{apiSecret}}), failures: newFailureLimit(), listing: make(chan struct{}, 1)}}
	c.api.logger, c.logs = observedLog()
	mint := func(body string) string {
		t.Helper()
		a := c.call(t, "POST", "demo/token", body)
		wantReply(t, body, a, 200, 0)
		var created createdToken
		if err := json.Unmarshal(a.result, &created); err != nil {
			t.Fatal(err)
		}
		return created.Token
	}
	for body, want := range map[string]string{
		"":                      "",
		`{"downloadable":true}`: "",
		`{"accessRules":[{"type":"ip.src","action":"allow","ip":["203.0.113.7"]},{"type":"any","action":"block"}]}`: "",
		`{"accessRules":[{"type":"any","action":"block"}]}`:                                                         "rule_blocked",
		`{"nbf":` + strconv.FormatInt(testTime.Unix()+600, 10) + `}`:                                                "token_not_yet_valid",
		`{"id":"k1","pem":"` + testKey().PEM() + `"}`:                                                               "",
	} {
		compact := mint(body)
		r := requestFor(t, "/"+compact+"/x.ts", nil)
		switch a := ask(t, g, r); {
		case want != "":
			wantRefusal(t, r, a, want)
		case !a.allowed():
			t.Errorf("a token of %s = %d %s", body, a.status, a.reason)
		}
	}
	for body, allowed := range map[string]bool{"": false, `{"downloadable":true}`: true} {
		r := requestFor(t, "/"+mint(body)+"/downloads/default.mp4", nil)
		if a := ask(t, g, r); a.allowed() != allowed {
			t.Errorf("a download with a token of %s is allowed: %t, want %t", body, a.allowed(), allowed)
		}
	}
	compact := mint("")
	header, payload := must(token.Parse(compact)).Documents()
	if header != `{"alg":"RS256","kid":"own"}` || payload != `{"sub":"demo","kid":"own","exp":"1800003600","nbf":"1799996400"}` {
		t.Errorf("the token is %s %s", header, payload)
	}
	if err := s.revoke(t.Context(), "own"); err != nil {
		t.Fatal(err)
	}
	r := requestFor(t, "/"+compact+"/x.ts", nil)
	wantRefusal(t, r, ask(t, g, r), "key_unknown")
}

// A6: the caller's own key signs only if the gateway knows it and it is the
// right one: the tokens of any other would not play.
func TestMintingWithACallersKey(t *testing.T) {
	f := newFleet()
	f.plant(keyNamed("stored"), liveKey("stored"))
	f.plant(keyNamed("gone"), revokedKey("gone"))
	f.damage(keyNamed("broken"))
	s := newTestState(t, f.node())
	app := &App{state: s, keys: ringOf(s)}
	pemOf := func(key *token.SigningKey) string { return key.PEM() }
	for _, tc := range []struct {
		name, id, pem string
		want          string // in the message; "" for a key
	}{
		{"of the config", "k1", pemOf(testKey()), ""},
		{"of the API", "stored", pemOf(testKey()), ""},
		{"pem in its own armour", "k1", pemText("RSA PRIVATE KEY", privatePEM(t, testKey()).Bytes), ""},
		{"unknown", "nobody", pemOf(testKey()), "no key"},
		{"revoked", "gone", pemOf(testKey()), "revoked"},
		{"of another pair", "k1", pemOf(otherKey()), "not the private half"},
		{"of another pair in the store", "stored", pemOf(otherKey()), "not the private half"},
		{"public half", "k1", publicPEM(t, testKey()), "pem"},
		{"public key set", "k1", keySetOf(testKey()), "pem"},
		{"path", "k1", "/etc/ssl/private/key.pem", "pem"},
		{"id that is a path", "../signing/current", testKey().PEM(), "no key"},
		{"nonsense", "k1", "nonsense", "pem"},
		{"id that no key can have", "a b", pemOf(testKey()), "pem"},
		{"id that is long", strings.Repeat("x", 255), pemOf(testKey()), "no key"},
	} {
		key, err := app.mintingKey(t.Context(), &mintRequest{keyID: tc.id, pem: tc.pem})
		switch {
		case tc.want == "" && (err != nil || key.ID() != tc.id):
			t.Errorf("%s: %v, %v", tc.name, key, err)
		case tc.want != "":
			wantRefusedBody(t, tc.name, err, tc.want)
			if key != nil {
				t.Errorf("%s: a key beside the error", tc.name)
			}
			if err != nil && strings.Contains(err.Error(), tc.pem[:min(len(tc.pem), 60)]) && tc.pem != "nonsense" {
				t.Errorf("%s: the error has the key: %v", tc.name, err)
			}
		}
	}
	if _, err := app.mintingKey(t.Context(), &mintRequest{keyID: "broken", pem: testKey().PEM()}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a key whose object is damaged: %v, want ErrUnavailable", err)
	}
	s.forget()
	if _, err := app.mintingKey(t.Context(), &mintRequest{keyID: "k1", pem: testKey().PEM()}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("while nothing is known: %v, want ErrUnavailable", err)
	}
}

// Rules that are valid and most likely not meant are minted, with a warning.
func TestWarningsAboutRules(t *testing.T) {
	const (
		open    = "restricts nothing"
		country = "geoip_database"
		v6      = "IPv6"
	)
	rule := func(typ, action, more string) string {
		return `{"type":"` + typ + `","action":"` + action + `"` + more + `}`
	}
	v4 := `,"ip":["192.0.2.1"]`
	gb := `,"country":["GB"]`
	for _, tc := range []struct {
		name, rules string
		want        []string
		withoutDB   []string // in addition
	}{
		{"none", ``, nil, nil},
		{"empty", `[]`, nil, nil},
		{"blocks all", `[` + rule("any", "block", "") + `]`, nil, nil},
		{"allows all", `[` + rule("any", "allow", "") + `]`, []string{open}, nil},
		{"allows some without a final block", `[` + rule("ip.geoip.country", "allow", gb) + `]`, []string{open}, []string{country}},
		{"allows some and blocks the rest", `[` + rule("ip.geoip.country", "allow", gb) + `,` + rule("any", "block", "") + `]`, nil, []string{country}},
		{"allows some, and all", `[` + rule("ip.geoip.country", "allow", gb) + `,` + rule("any", "allow", "") + `]`, []string{open}, []string{country}},
		{"blocks some", `[` + rule("ip.geoip.country", "block", gb) + `]`, nil, []string{country}},
		{"blocks some and allows the rest", `[` + rule("ip.geoip.country", "block", gb) + `,` + rule("any", "allow", "") + `]`, nil, []string{country}},
		{"blocks some, then allows others", `[` + rule("ip.geoip.country", "block", gb) + `,` + rule("ip.src", "allow", `,"ip":["2001:db8::/32"]`) + `]`, []string{open}, []string{country}},
		{"IPv4 alone", `[` + rule("ip.src", "allow", v4) + `,` + rule("any", "block", "") + `]`, []string{v6}, nil},
		{"IPv4 blocked", `[` + rule("ip.src", "block", v4) + `]`, []string{v6}, nil},
		{"IPv4 written as IPv6", `[` + rule("ip.src", "block", `,"ip":["::ffff:192.0.2.1"]`) + `]`, []string{v6}, nil},
		{"IPv6 alone", `[` + rule("ip.src", "block", `,"ip":["2001:db8::/32"]`) + `]`, nil, nil},
		{"both in one rule", `[` + rule("ip.src", "block", `,"ip":["192.0.2.0/24","2001:db8::/32"]`) + `]`, nil, nil},
		{"both in two rules", `[` + rule("ip.src", "block", v4) + `,` + rule("ip.src", "block", `,"ip":["2001:db8::/32"]`) + `]`, nil, nil},
		{"country of a rule of another type", `[` + rule("any", "block", gb) + `]`, nil, nil},
		{"all at once", `[` + rule("ip.src", "allow", v4) + `,` + rule("ip.geoip.country", "allow", gb) + `]`, []string{open, v6}, []string{country}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var raw []byte
			if tc.rules != "" {
				raw = []byte(tc.rules)
			}
			rules := must(compileRules(raw))
			for _, app := range []*App{{}, {countries: new(geo.Database)}} {
				c := &call{api: &API{app: app}}
				c.warnOfRules(rules)
				want := tc.want
				if app.countries == nil {
					want = slices.Concat(want, tc.withoutDB)
				}
				if len(c.messages) != len(want) {
					t.Errorf("%d warnings, want %d: %v", len(c.messages), len(want), c.messages)
				}
				for _, text := range want {
					found := 0
					for _, message := range c.messages {
						if strings.Contains(message.Message, text) && message.Code == codeWarning {
							found++
						}
					}
					if found != 1 {
						t.Errorf("%d warnings of %q: %v", found, text, c.messages)
					}
				}
			}
		})
	}
}

// A token that lives longer than the gateway allows is one that it refuses.
func TestWarningAboutTheLifetime(t *testing.T) {
	for _, tc := range []struct {
		longest, life time.Duration
		want          int
	}{
		{0, 24 * time.Hour, 0},
		{time.Hour, time.Hour, 0},
		{time.Hour, time.Hour + time.Second, 1},
	} {
		app := &App{now: func() time.Time { return testTime }, policy: token.Policy{MaxLifetime: tc.longest}}
		c := &call{api: &API{app: app}}
		c.warnOfLifetime(token.Claims{ExpiresAt: testTime.Add(tc.life)})
		if len(c.messages) != tc.want {
			t.Errorf("a cap of %s and a life of %s: %v, want %d warnings", tc.longest, tc.life, c.messages, tc.want)
		}
	}
	c := control(t, &App{MaxTokenLifetime: caddy.Duration(time.Minute)}, new(API))
	c.node.fleet.plantSigningKey("own", testTime)
	c.state.sync(t.Context())
	a := c.call(t, "POST", "demo/token", `{"accessRules":[{"type":"any","action":"allow"}]}`)
	if wantReply(t, "mint", a, 200, 0); len(a.messages) != 2 {
		t.Errorf("the answer has %d messages, want 2: %s", len(a.messages), a.raw)
	}
	// A body that is refused warns of nothing.
	if a := c.call(t, "POST", "demo/token", `{"accessRules":[{"type":"any","action":"allow"}],"exp":1}`); a.status != 400 || len(a.messages) != 0 {
		t.Errorf("a refused body is answered %s", a.raw)
	}
}
