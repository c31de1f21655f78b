package controlapi

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// A6: what no token is minted for. Numbers of another kind, null and unknown
// members are refused, not read as something else: a claim that is dropped may
// be the one that was to keep somebody out.
func TestMintRequestsThatAreRefused(t *testing.T) {
	t.Parallel()
	c := &call{Server: control(t, func(config *Config) {
		config.CheckRules = func(rules json.RawMessage) ([]string, error) { return nil, errors.New("refused by the gate") }
	}).Server}
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
		{`{"accessRules":[{"type":"refused by the gate"}]}`, "refused by the gate"},
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
		mint, err := c.parseMintRequest(parsed(t, tc.body))
		wantBadRequest(t, tc.body, err, tc.why)
		if mint != nil {
			t.Errorf("%s: a request beside the error", tc.body)
		}
	}
}

func TestMintRequests(t *testing.T) {
	t.Parallel()
	c := &call{Server: control(t, func(config *Config) {
		config.CheckRules = func(rules json.RawMessage) ([]string, error) { return []string{"a warning"}, nil }
	}).Server}
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
		{`{"accessRules":` + rules + `}`, mintRequest{rules: json.RawMessage(rules), warnings: []string{"a warning"}}},
		{`{"id":"k1","pem":"abc"}`, mintRequest{keyID: "k1", pem: "abc"}},
		{`{"id":"","pem":""}`, mintRequest{}},
	} {
		value := noBody
		if tc.body != "" {
			value = parsed(t, tc.body)
		}
		got, err := c.parseMintRequest(value)
		if err != nil {
			t.Errorf("%s: %v", tc.body, err)
			continue
		}
		if diff := cmp.Diff(tc.want, *got, cmp.AllowUnexported(mintRequest{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.body, diff)
		}
	}
}

// The dates of a token: what is not set is an hour from now and an hour ago,
// and no token is for the past, for more than a day, or for never.
func TestDatesOfMintedTokens(t *testing.T) {
	t.Parallel()
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
			mint, err := new(call).parseMintRequest(parsed(t, body))
			if err != nil {
				t.Fatal(err)
			}
			claims, err := mint.claims("demo", testTime)
			if tc.wantExp == 0 {
				wantBadRequest(t, body, err, tc.why)
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

// A number that overflows a date must not come out as a valid one, and rules that
// fit a call but no token are the client's mistake: no token is minted.
func TestTokensThatAreNotMinted(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	for _, huge := range []int64{1<<63 - 1, 1<<63 - 62135596800, 1<<63 - 62135596801, 1 << 62, 1 << 53, 1e15} {
		for _, body := range []string{fmt.Sprintf(`{"exp":%d}`, huge), fmt.Sprintf(`{"nbf":%d}`, huge), fmt.Sprintf(`{"exp":%d,"nbf":%d}`, huge, huge)} {
			wantReply(t, body, c.call(t, "POST", "demo/token", body), 400, codeBadRequest)
		}
	}
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

// A token is signed by the gateway's own key or by the client's, says what was
// asked for, as Cloudflare's own endpoint does, and its answer has the warnings of
// the rules and one about a life that the gateway does not allow.
func TestMintedTokens(t *testing.T) {
	t.Parallel()
	c := control(t, func(config *Config) {
		config.MaxTokenLifetime = 2 * time.Hour
		config.CheckRules = func(rules json.RawMessage) ([]string, error) { return []string{"100 % sure?"}, nil }
	})
	for _, tc := range []struct {
		body, header, payload string
		warnings              int
	}{
		{"", `{"alg":"RS256","kid":"own"}`, `{"sub":"demo","kid":"own","exp":"1800003600","nbf":"1799996400"}`, 0},
		{`{"exp":1800007200}`, `{"alg":"RS256","kid":"own"}`, `{"sub":"demo","kid":"own","exp":"1800007200","nbf":"1799996400"}`, 0},
		{`{"exp":1800007201}`, `{"alg":"RS256","kid":"own"}`, `{"sub":"demo","kid":"own","exp":"1800007201","nbf":"1799996400"}`, 1},
		{
			`{"downloadable":true,"accessRules":[ {"type":"any"} ],"id":"k1","pem":"` + testKey().PEM() + `","exp":1800007201}`, `{"alg":"RS256","kid":"k1"}`,
			`{"sub":"demo","kid":"k1","exp":"1800007201","nbf":"1799996400","downloadable":true,"accessRules":[{"type":"any"}]}`, 2,
		},
	} {
		a := c.call(t, "POST", "demo/token", tc.body)
		if wantReply(t, tc.body, a, 200, 0); len(a.messages) != tc.warnings || tc.warnings == 2 && a.messages[0] != (message{codeWarning, "100 % sure?"}) {
			t.Errorf("%s: the messages are %v, want %d", tc.body, a.messages, tc.warnings)
		}
		var created createdToken
		if err := json.Unmarshal(a.result, &created); err != nil {
			t.Fatal(err)
		}
		header, payload := must(token.Parse(created.Token)).Documents()
		if header != tc.header || payload != tc.payload {
			t.Errorf("%s: the token is %s %s, want %s %s", tc.body, header, payload, tc.header, tc.payload)
		}
	}
	// A body that is refused warns of nothing.
	if a := c.call(t, "POST", "demo/token", `{"accessRules":[],"exp":1}`); a.status != 400 || len(a.messages) != 0 {
		t.Errorf("a refused body is answered %s", a.raw)
	}
	c.store.plant(store.Signing, "current", "")
	c.State.Sync(t.Context())
	a := c.call(t, "POST", "demo/token", "")
	if wantReply(t, "a damaged signing key", a, 503, codeUnavailable); !strings.Contains(fmt.Sprint(c.logs.All()), "rotate") {
		t.Errorf("the log does not say what to do: %v", c.logs.All())
	}
}

// A6: the client's own key signs only if the gateway knows it and it is the right
// one: the tokens of any other would not play. No error repeats the key.
func TestMintingWithAClientsKey(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	block, _ := pem.Decode(must(base64.StdEncoding.DecodeString(testKey().PEM())))
	armoured := string(pem.EncodeToMemory(block))
	public := string(must(testKey().Public().JWK()))
	for _, tc := range []struct {
		name, id, pem string
		want          string // in the message; "" for a key
	}{
		{"known", "k1", testKey().PEM(), ""},
		{"pem in its own armour", "k1", armoured, ""},
		{"unknown", "nobody", testKey().PEM(), "no key"},
		{"revoked", "gone", testKey().PEM(), "revoked"},
		{"of another pair", "k1", otherKey().PEM(), "not the private half"},
		{"public half", "k1", public, "pem"},
		{"public key set", "k1", `{"keys":[` + public + `]}`, "pem"},
		{"path", "k1", "/etc/ssl/private/key.pem", "pem"},
		{"id that is a path", "../signing/current", testKey().PEM(), "no key"},
		{"nonsense", "k1", "nonsense", "pem"},
		{"id that no key can have", "a b", testKey().PEM(), "pem"},
		{"id that is long", strings.Repeat("x", 255), testKey().PEM(), "no key"},
	} {
		key, err := (&call{Server: c.Server, request: request("POST", "/", "")}).mintingKey(&mintRequest{keyID: tc.id, pem: tc.pem})
		if tc.want == "" {
			if err != nil || key.ID() != tc.id {
				t.Errorf("%s: %v, %v", tc.name, key, err)
			}
			continue
		}
		wantBadRequest(t, tc.name, err, tc.want)
		if key != nil || tc.pem != "nonsense" && strings.Contains(err.Error(), tc.pem[:min(len(tc.pem), 60)]) {
			t.Errorf("%s: %v beside the error, which may contain the key: %v", tc.name, key, err)
		}
	}
	c.LookupKey = func(string) (*token.PublicKey, bool) { return nil, false }
	body := `{"id":"k1","pem":"` + testKey().PEM() + `"}`
	wantReply(t, "a key that may be where it cannot be read", c.call(t, "POST", "demo/token", body), 503, codeUnavailable)
}
