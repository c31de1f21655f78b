package controlapi

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// A6: bodies for which the API mints no token. Numbers of another kind, null and unknown
// members are refused rather than read as something else: the caller may rely on a
// member that the API would drop to keep somebody out.
func TestMintRequestsThatAreRefused(t *testing.T) {
	t.Parallel()
	c := &call{Server: control(t, func(config *Config) {
		config.CheckRules = func(rules json.RawMessage) ([]string, error) { return nil, errors.New("refused by the gate") }
	}).Server}
	pem := testKey().PEM()
	for why, bodies := range map[string][]string{
		"exp is ": {
			`{"exp":"1800003600"}`, `{"exp":1800003600.5}`, `{"exp":1800003600.0}`, `{"exp":1.8e9}`, `{"exp":-1}`, `{"exp":null}`, `{"exp":{}}`,
			`{"exp":"2090-01-01T00:00:00Z"}`, `{"exp":true}`, `{"exp":[1800003600]}`, `{"exp":"1h"}`, `{"exp":99999999999999999999}`, `{"exp":""}`,
		},
		"nbf is ":             {`{"nbf":"1800000000"}`, `{"nbf":-1}`, `{"nbf":null}`, `{"nbf":0.5}`},
		"downloadable is ":    {`{"downloadable":"true"}`, `{"downloadable":1}`, `{"downloadable":null}`},
		"id is not":           {`{"id":1,"pem":"x"}`, `{"id":null,"pem":"x"}`},
		"no key":              {`{"id":"` + pem + `","pem":"` + pem + `"}`, `{"id":"` + pem + `","pem":"k1"}`}, // the answer must not repeat the private key
		"go together":         {`{"id":"k1"}`, `{"pem":"x"}`, `{"id":"","pem":"x"}`, `{"id":"k1","pem":""}`},
		"flags is not":        {`{"flags":true}`, `{"flags":null}`, `{"flags":[]}`},
		"flags.original":      {`{"flags":{"original":"true"}}`, `{"flags":{"original":null}}`, `{"flags":{"original":1}}`, `{"flags":{"original":{}}}`},
		"uid is ":             {`{"uid":1}`, `{"uid":""}`, `{"uid":null}`, `{"uid":["a"]}`},
		"climit is ":          {`{"climit":0}`, `{"climit":-1}`, `{"climit":"1"}`, `{"climit":1.0}`, `{"climit":1e1}`, `{"climit":null}`, `{"climit":2147483648}`},
		"startBy is ":         {`{"startBy":0}`, `{"startBy":1800000000}`, `{"startBy":"1800003600"}`, `{"startBy":-1}`, `{"startBy":null}`, `{"startBy":1e10}`, `{"startBy":253402300800}`, `{"startBy":1800003600000}`},
		`mean "startBy"`:      {`{"startby":1800003600}`},
		`unknown member "hd"`: {`{"flags":{"hd":true}}`, `{"flags":{"original":true,"hd":false}}`},
		`mean "original"`:     {`{"flags":{"Original":true}}`},
		"refused by the gate": {`{"accessRules":[{"type":"refused by the gate"}]}`},
		"unknown member": {
			`{"sub":"other"}`, `{"kid":"k1"}`, `{"iat":1}`, `{"alg":"none"}`, `{"aud":"x"}`, `{"Exp":1800003600}`, `{"EXP":1800003600}`, `{"exp ":1800003600}`,
			`{"exp\u0000":1}`, `{"x\",\"sub\":\"other":1}`, `{"x\":1}.{\"sub\":\"other\"":1}`, `{"access_rules":[]}`, `{"__proto__":{}}`,
			`{"` + strings.Repeat("x", 1000) + `":1}`,
		},
		`did you mean "accessRules"`: {`{"accessrules":[]}`},
	} {
		for _, body := range bodies {
			mint, err := c.parseMintRequest(parsed(t, body))
			wantBadRequest(t, body, err, why)
			if mint != nil || strings.Contains(err.Error(), pem[:60]) {
				t.Errorf("%.100s: a request and an error, or the key is in the error %v", body, err)
			}
		}
	}
}

func TestMintRequests(t *testing.T) {
	t.Parallel()
	c := &call{Server: control(t, func(config *Config) {
		config.CheckRules = func(rules json.RawMessage) ([]string, error) { return []string{"a warning"}, nil }
	}).Server}
	rules := `[ {"type":"any", "action":"block"} ]`
	wanted := map[string]mintRequest{
		`{"exp":1800003600,"nbf":1}`:  {claims: token.Claims{ExpiresAt: time.Unix(1800003600, 0), NotBefore: time.Unix(1, 0)}},
		`{"flags":{"original":true}}`: {claims: token.Claims{Original: true}},
		`{"downloadable":true}`:       {claims: token.Claims{Downloadable: true}},
		`{"uid":"\u0061","climit":2,"startBy":1800000001}`: {
			claims: token.Claims{Viewer: "a", SessionLimit: 2, StartBy: time.Unix(1800000001, 0)},
		},
		`{"accessRules":` + rules + `}`: {claims: token.Claims{AccessRules: json.RawMessage(rules)}, warnings: []string{"a warning"}},
		`{"id":"k1","pem":"abc"}`:       {keyID: "k1", pem: "abc"},
	}
	for _, nothing := range []string{
		`{}`, `{"exp":0,"nbf":0}`, `{"exp":-0}`, `{"downloadable":false}`, `{"flags":{}}`, `{"flags":{"original":false}}`, `{"accessRules":null}`,
		`{"id":"","pem":""}`,
	} {
		wanted[nothing] = mintRequest{}
	}
	for body, want := range wanted {
		got, err := c.parseMintRequest(parsed(t, body))
		if err != nil {
			t.Errorf("%s: %v", body, err)
			continue
		}
		if diff := cmp.Diff(want, *got, cmp.AllowUnexported(mintRequest{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", body, diff)
		}
	}
}

// The default dates of a token are one hour ahead and one hour ago. No token is for the
// past, for more than a day, or for ever.
func TestDatesOfMintedTokens(t *testing.T) {
	t.Parallel()
	unix := func(d time.Duration) int64 { return testTime.Add(d).Unix() }
	const day = 24 * time.Hour
	for _, tc := range []struct {
		name             string
		exp, nbf         int64 // 0: not set
		wantExp, wantNbf int64
	}{
		{"no dates", 0, 0, unix(time.Hour), unix(-time.Hour)},
		{"exp in a second", unix(time.Second), 0, unix(time.Second), unix(-time.Hour)},
		{"exp in a day", unix(day), 0, unix(day), unix(-time.Hour)},
		{"nbf in 1970", 0, 1, unix(time.Hour), 1},
		{"nbf in the future", 0, unix(30 * time.Minute), unix(time.Hour), unix(30 * time.Minute)},
		{"nbf a second before exp", unix(day), unix(day - time.Second), unix(day), unix(day - time.Second)},
	} {
		claims := token.Claims{ExpiresAt: dateOf(tc.exp), NotBefore: dateOf(tc.nbf)}
		err := setDates(&claims, testTime)
		want := token.Claims{ExpiresAt: time.Unix(tc.wantExp, 0), NotBefore: time.Unix(tc.wantNbf, 0)}
		if diff := cmp.Diff(want, claims); err != nil || diff != "" {
			t.Errorf("%s: %v; claims (-want +got):\n%s", tc.name, err, diff)
		}
	}
	for why, dates := range map[string][][2]int64{ // exp and nbf
		"past":           {{unix(0), 0}, {unix(-time.Second), 0}, {1, 0}},
		"24 hours":       {{unix(day + time.Second), 0}, {253402300800, 0}, {1<<63 - 1, 0}}, // also beyond the year 9999
		"Unix seconds":   {{unix(time.Hour) * 1000, 0}},
		"not before exp": {{unix(day), unix(day)}, {unix(time.Hour), unix(2 * time.Hour)}, {0, unix(2 * time.Hour)}, {0, unix(0) * 1000}},
	} {
		for _, d := range dates {
			err := setDates(&token.Claims{ExpiresAt: dateOf(d[0]), NotBefore: dateOf(d[1])}, testTime)
			wantBadRequest(t, fmt.Sprintf("exp %d, nbf %d", d[0], d[1]), err, why)
		}
	}
}

// dateOf returns the date of a mint request, which is not set for 0.
func dateOf(unix int64) time.Time {
	if unix == 0 {
		return time.Time{}
	}
	return time.Unix(unix, 0)
}

// A number that overflows a date must not become a valid date. Rules that fit into a call
// but not into a token are the client's mistake.
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

// The gateway's own key or the client's key signs a token. The token has the claims of the
// body, in the form of Cloudflare's endpoint. The answer has the warnings about the rules,
// and a warning if the gate allows no such lifetime.
func TestMintedTokens(t *testing.T) {
	t.Parallel()
	c := control(t, func(config *Config) {
		config.Policy.MaxLifetime = 2 * time.Hour
		config.Policy.ViewerClaim = must(token.NewViewerClaim("email"))
		config.CheckRules = func(rules json.RawMessage) ([]string, error) { return []string{"100 % sure?"}, nil }
	})
	for _, tc := range []struct {
		body, header, payload string
		warnings              int
	}{
		{"", `{"alg":"RS256","kid":"own"}`, `{"sub":"demo","kid":"own","exp":"1800003600","nbf":"1799996400","jti":"J","iat":"1800000000"}`, 0},
		{`{"exp":1800007200}`, `{"alg":"RS256","kid":"own"}`, `{"sub":"demo","kid":"own","exp":"1800007200","nbf":"1799996400","jti":"J","iat":"1800000000"}`, 0},
		{`{"flags":{"original":true}}`, `{"alg":"RS256","kid":"own"}`, `{"sub":"demo","kid":"own","exp":"1800003600","nbf":"1799996400","flags":{"original":true},"jti":"J","iat":"1800000000"}`, 0},
		{`{"exp":1800007201}`, `{"alg":"RS256","kid":"own"}`, `{"sub":"demo","kid":"own","exp":"1800007201","nbf":"1799996400","jti":"J","iat":"1800000000"}`, 1},
		{
			`{"downloadable":true,"accessRules":[ {"type":"any"} ],"id":"k1","pem":"` + testKey().PEM() + `","exp":1800007201}`, `{"alg":"RS256","kid":"k1"}`,
			`{"sub":"demo","kid":"k1","exp":"1800007201","nbf":"1799996400","downloadable":true,"accessRules":[{"type":"any"}],"jti":"J","iat":"1800000000"}`, 2,
		},
		{
			`{"uid":"ann","climit":2,"startBy":1800000600}`, `{"alg":"RS256","kid":"own"}`,
			`{"sub":"demo","kid":"own","exp":"1800003600","nbf":"1799996400","jti":"J","iat":"1800000000","climit":2,"startBy":"1800000600","email":"ann"}`, 0,
		},
	} {
		a := c.call(t, "POST", "demo/token", tc.body)
		if len(a.messages) != tc.warnings || tc.warnings == 2 && a.messages[0] != (message{codeWarning, "100 % sure?"}) {
			t.Errorf("%s: the messages are %v, want %d", tc.body, a.messages, tc.warnings)
		}
		header, payload := must(token.Parse(resultOf[map[string]string](t, tc.body, a)["token"])).Documents()
		payload = regexp.MustCompile(`"jti":"[0-9a-f]{32}"`).ReplaceAllLiteralString(payload, `"jti":"J"`)
		if header != tc.header || payload != tc.payload {
			t.Errorf("%s: the token is %s %s, want %s %s", tc.body, header, payload, tc.header, tc.payload)
		}
	}
	// The answer to a refused body has no warnings.
	if a := c.call(t, "POST", "demo/token", `{"accessRules":[],"exp":1}`); a.status != 400 || len(a.messages) != 0 {
		t.Errorf("the answer to a refused body is %s", a.raw)
	}
	c.store.plant(store.Signing, "current", "")
	c.State.Sync(t.Context())
	a := c.call(t, "POST", "demo/token", "")
	if wantReply(t, "a damaged signing key", a, 503, codeUnavailable); !strings.Contains(fmt.Sprint(c.logs.All()), "rotate") {
		t.Errorf("the log does not say what to do: %v", c.logs.All())
	}
}

// A6: the client's key signs only if the gateway knows it and it is the right one: a token
// of any other key would not play. No error contains the key.
func TestMintingWithAClientsKey(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	minting := func(id, pem string) (*token.SigningKey, error) {
		return (&call{Server: c.Server, request: request("POST", "/", "")}).mintingKey(&mintRequest{keyID: id, pem: pem})
	}
	good := testKey().PEM()
	block, _ := pem.Decode(must(base64.StdEncoding.DecodeString(good)))
	for _, text := range []string{good, string(pem.EncodeToMemory(block))} { // in base64, and as PEM
		if key, err := minting("k1", text); err != nil || key.ID() != "k1" {
			t.Errorf("%.40q = %v, %v", text, key, err)
		}
	}
	public := string(must(testKey().Public().JWK()))
	for _, tc := range []struct{ id, pem, why string }{
		{"nobody", good, "no key"},
		{"gone", good, "revoked"},
		{"k1", otherKey().PEM(), "not the private half"},
		{"k1", public, "pem"},
		{"k1", `{"keys":[` + public + `]}`, "pem"},
		{"k1", "/etc/ssl/private/key.pem", "pem"},
		{"../signing/current", good, "no key"},
		{"a b", good, "pem"}, // no key has this id
		{strings.Repeat("x", 255), good, "no key"},
	} {
		key, err := minting(tc.id, tc.pem)
		wantBadRequest(t, tc.id, err, tc.why)
		if key != nil || strings.Contains(err.Error(), tc.pem[:min(len(tc.pem), 60)]) {
			t.Errorf("%s: %v and an error, or the key is in the error %v", tc.id, key, err)
		}
	}
	c.LookupKey = func(string) (*token.PublicKey, bool) { return nil, false }
	body := `{"id":"k1","pem":"` + good + `"}`
	wantReply(t, "a key that may exist where it cannot be read", c.call(t, "POST", "demo/token", body), 503, codeUnavailable)
}
