package token_test

import (
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"iter"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// The token that the tests change. It is signed by the key "k1" and opens "demo"
// for an hour from now.
const (
	goodHeader  = `{"alg":"RS256","kid":"k1"}`
	goodPayload = `{"sub":"demo","exp":1800003600}`
)

var (
	now  = time.Unix(1_800_000_000, 0)
	hour = now.Add(time.Hour)
)

// keys are the RSA keys of all tests. Verifiers trust "k1" and "k2".
type keys struct {
	k1, k2, stranger *rsa.PrivateKey
	set              *token.KeySet
}

var testKeys = sync.OnceValue(func() keys {
	k := keys{k1: newRSA(2048), k2: newRSA(2048), stranger: newRSA(2048)}
	k.set = must(token.NewKeySet(
		must(token.NewPublicKey("k1", &k.k1.PublicKey)),
		must(token.NewPublicKey("k2", &k.k2.PublicKey)),
	))
	return k
})

func newRSA(bits int) *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, bits)) }

func signingKey() *token.SigningKey { return must(token.NewSigningKey("k1", testKeys().k1)) }

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func b64[T string | []byte](data T) string {
	return base64.RawURLEncoding.EncodeToString([]byte(data))
}

// forge makes a token of any header and payload with a genuine signature of k1.
func forge[T string | []byte](header string, payload T) string {
	return seal(b64(header) + "." + b64(payload))
}

// seal appends a genuine signature of k1 to any signing input.
func seal(input string) string { return input + "." + b64(signature(testKeys().k1, input)) }

func signature(key *rsa.PrivateKey, input string) []byte {
	digest := sha256.Sum256([]byte(input))
	return must(rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:]))
}

// accepted are tokens that verify, and their claims. Fields that a row leaves
// out are those of the claims that goodHeader and goodPayload have.
var accepted = []struct {
	name, header, payload string
	want                  token.Claims
}{
	{"kid in the header alone", goodHeader, goodPayload, token.Claims{}},
	{"kid in the payload alone", `{"alg":"RS256"}`, `{"sub":"demo","kid":"k1","exp":1800003600}`, token.Claims{}},
	{"kid in both", goodHeader, `{"sub":"demo","kid":"k1","exp":1800003600}`, token.Claims{}},
	{"kid in both, escaped in one", `{"alg":"RS256","kid":"\u006b\u0031"}`, `{"sub":"demo","kid":"k1","exp":1800003600}`, token.Claims{}},
	{"escaped kid in the payload alone", `{"alg":"RS256"}`, `{"sub":"demo","kid":"k\u0031","exp":1800003600}`, token.Claims{}},
	{"another key of the set", `{"alg":"RS256","kid":"k2"}`, goodPayload, token.Claims{KeyID: "k2"}},
	{"typ JWT", `{"typ":"JWT","alg":"RS256","kid":"k1"}`, goodPayload, token.Claims{}},
	{"dates as strings", goodHeader, `{"sub":"demo","exp":"1800003600","nbf":"1799996400"}`, token.Claims{NotBefore: now.Add(-time.Hour)}},
	{"a string date with leading zeros", goodHeader, `{"sub":"demo","exp":"0001800003600"}`, token.Claims{}},
	{
		"the last second of the year 9999", goodHeader, `{"sub":"demo","exp":253402300799,"nbf":0}`,
		token.Claims{ExpiresAt: time.Unix(253402300799, 0), NotBefore: time.Unix(0, 0)},
	},
	{
		"every claim", goodHeader,
		`{"sub":"demo","exp":1800003600,"nbf":1800000000,"downloadable":true,"accessRules":[{"type":"any","action":"block"}],"flags":{"original":true,"hd":1}}`,
		token.Claims{NotBefore: now, Downloadable: true, Original: true, AccessRules: json.RawMessage(`[{"type":"any","action":"block"}]`)},
	},
	{
		"claims of revocations and sessions", goodHeader,
		`{"sub":"demo","exp":1800003600,"jti":"é\ud83d\ude00","iat":"1800000000","uid":"\u0061 b","climit":2147483647,"startBy":0}`,
		token.Claims{ID: "é😀", IssuedAt: now, Viewer: "a b", SessionLimit: 1<<31 - 1, StartBy: time.Unix(0, 0)},
	},
	{
		"the longest jti and uid, and an iat in the future", goodHeader,
		`{"sub":"demo","exp":1800003600,"jti":"` + strings.Repeat("é", 128) + `","uid":"` + strings.Repeat("x", 256) + `","iat":1800003601,"climit":1}`,
		token.Claims{ID: strings.Repeat("é", 128), Viewer: strings.Repeat("x", 256), IssuedAt: hour.Add(time.Second), SessionLimit: 1},
	},
	{
		"access rules keep their bytes", goodHeader, `{"accessRules": [ { "type" : "\u0061ny" } ] ,"sub":"demo","exp":1800003600}`,
		token.Claims{AccessRules: json.RawMessage(`[ { "type" : "\u0061ny" } ]`)},
	},
	{
		"access rules are not checked", goodHeader, `{"sub":"demo","exp":1800003600,"accessRules":null}`,
		token.Claims{AccessRules: json.RawMessage(`null`)},
	},
	{
		"audience and issuer", goodHeader, `{"sub":"demo","exp":1800003600,"aud":"\u0061","iss":"https:\/\/id.example"}`,
		token.Claims{Audience: []string{"a"}, Issuer: "https://id.example"},
	},
	{
		"audiences, and an issuer that is no string", goodHeader, `{"sub":"demo","exp":1800003600,"aud":["a","","b"],"iss":1}`,
		token.Claims{Audience: []string{"a", "", "b"}},
	},
	{"audiences of which one is no string", goodHeader, `{"sub":"demo","exp":1800003600,"aud":["a",1]}`, token.Claims{}},
	{"flags.original false", goodHeader, `{"sub":"demo","exp":1800003600,"flags":{"original":false}}`, token.Claims{}},
	{"flags of another kind", goodHeader, `{"sub":"demo","exp":1800003600,"flags":["original"]}`, token.Claims{}},
	{"downloadable false", goodHeader, `{"sub":"demo","exp":1800003600,"downloadable":false}`, token.Claims{}},
	{
		"other claims", goodHeader,
		`{"iss":["https://example.com"],"aud":{"a":"b"},"email":1,"sub":"demo","exp":1800003600,"x":{"sub":"y"}}`,
		token.Claims{},
	},
	{
		"white space inside, and after the payload", "{ \"alg\" : \"RS256\",\r\n\t\"kid\":\"k1\" }",
		"{\n\t\"sub\": \"demo\",\n\t\"exp\": 1800003600\n} \t\r\n",
		token.Claims{},
	},
	{
		"maximum nesting", goodHeader,
		`{"sub":"demo","exp":1800003600,"x":` + strings.Repeat("[", 15) + strings.Repeat("]", 15) + `}`,
		token.Claims{},
	},
	{"every kind of character in a video id", goodHeader, `{"sub":"AZ_az-09","exp":1800003600}`, token.Claims{VideoID: "AZ_az-09"}},
}

func TestVerify(t *testing.T) {
	t.Parallel()
	for _, tc := range accepted {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.want.VideoID, tc.want.KeyID = cmp.Or(tc.want.VideoID, "demo"), cmp.Or(tc.want.KeyID, "k1")
			if tc.want.ExpiresAt.IsZero() {
				tc.want.ExpiresAt = hour
			}
			input := b64(tc.header) + "." + b64(tc.payload)
			key := testKeys().k1
			if tc.want.KeyID == "k2" {
				key = testKeys().k2
			}
			compact := input + "." + b64(signature(key, input))
			got, err := token.Verify(compact, testKeys().set, now, token.Policy{})
			if err != nil {
				t.Fatalf("Verify(%s) = %v", tc.payload, err)
			}
			if diff := gocmp.Diff(tc.want, got); diff != "" {
				t.Errorf("claims (-want +got):\n%s", diff)
			}
			parsed, err := token.Parse(compact)
			if err != nil {
				t.Fatalf("Parse(%s) = %v", tc.payload, err)
			}
			if diff := gocmp.Diff(tc.want, parsed.Unverified()); diff != "" {
				t.Errorf("unverified claims (-want +got):\n%s", diff)
			}
			if header, payload := parsed.Documents(); header != tc.header || payload != tc.payload {
				t.Errorf("Documents() = %q, %q, want %q, %q", header, payload, tc.header, tc.payload)
			}
		})
	}
}

// longToken returns a genuine token of exactly n bytes. An encoded segment
// cannot have every length, so both header and payload are filled up.
func longToken(t *testing.T, n int) string {
	t.Helper()
	const fixed = "." + "." // and 342 characters of signature
	for space := range 3 {
		header := b64(strings.Replace(goodHeader, "{", "{"+strings.Repeat(" ", space), 1))
		free := n - len(header) - len(fixed) - base64.RawURLEncoding.EncodedLen(256)
		payload := goodPayload + strings.Repeat(" ", base64.RawURLEncoding.DecodedLen(free)-len(goodPayload))
		if compact := seal(header + "." + b64(payload)); len(compact) == n {
			return compact
		}
	}
	t.Fatalf("no token has %d bytes", n)
	return ""
}

func TestLength(t *testing.T) {
	t.Parallel()
	compact := longToken(t, token.MaxLength)
	if _, err := token.Verify(compact, testKeys().set, now, token.Policy{}); err != nil {
		t.Errorf("Verify(%d bytes) = %v", len(compact), err)
	}
	refuse(t, longToken(t, token.MaxLength+1), token.ErrMalformed)
}

func TestSign(t *testing.T) {
	t.Parallel()
	rules := must(json.Marshal([]token.AccessRule{
		{Type: "ip.geoip.country", Action: "allow", Country: []string{"GB", "IE"}},
		{Type: "ip.src", Action: "allow", IP: []string{"192.0.2.0/24", "2001:db8::1"}},
		{Type: "any", Action: "block"},
	}))
	for _, tc := range []struct {
		name   string
		claims token.Claims // VideoID and ExpiresAt are the usual ones unless set
		rest   string       // of the payload after the usual claims
	}{
		{"required claims", token.Claims{}, ""},
		{
			"every claim",
			token.Claims{NotBefore: now, Downloadable: true, Original: true, AccessRules: rules},
			`,"nbf":1800000000,"downloadable":true,"accessRules":` + string(rules) + `,"flags":{"original":true}`,
		},
		{
			"claims of revocations and sessions",
			token.Claims{Viewer: `a"<é`, SessionLimit: 2, StartBy: now.Add(1)},
			`,"climit":2,"startBy":1800000000,"uid":"a\"\u003cé"`,
		},
		{"dates are cut to seconds", token.Claims{ExpiresAt: hour.Add(999 * time.Millisecond), NotBefore: now.Add(1)}, `,"nbf":1800000000`},
		{"the start of 1970 is a date", token.Claims{NotBefore: time.Unix(0, 0)}, `,"nbf":0`},
		{"the key id is the key's", token.Claims{KeyID: "k2"}, ""},
		{"an audience", token.Claims{Audience: []string{"a"}, Issuer: "i"}, `,"aud":"a","iss":"i"`},
		{"audiences", token.Claims{Audience: []string{"a", "b"}}, `,"aud":["a","b"]`},
		{"no rules is not an empty list of rules", token.Claims{AccessRules: json.RawMessage("[]")}, `,"accessRules":[]`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.claims.VideoID, tc.claims.ID, tc.claims.IssuedAt = "demo", "j", now.Add(2)
			if tc.claims.ExpiresAt.IsZero() {
				tc.claims.ExpiresAt = hour
			}
			want := tc.claims
			want.KeyID, want.ExpiresAt, want.NotBefore = "k1", hour, tc.claims.NotBefore.Truncate(time.Second)
			want.IssuedAt, want.StartBy = now, tc.claims.StartBy.Truncate(time.Second)
			compact, err := token.Sign(tc.claims, signingKey())
			if err != nil {
				t.Fatalf("Sign(%+v) = %v", tc.claims, err)
			}
			before, after := tc.rest, ""
			if at := strings.Index(tc.rest, `,"climit"`); at >= 0 {
				before, after = tc.rest[:at], tc.rest[at:]
			}
			payload := `{"sub":"demo","kid":"k1","exp":1800003600` + before + `,"jti":"j","iat":1800000000` + after + `}`
			if compact != forge(goodHeader, payload) {
				t.Errorf("Sign(%+v) signed %q, want the payload %s", tc.claims, compact, payload)
			}
			// Cloudflare's endpoint writes dates as text. They mean the same.
			text := must(token.SignWithTextDates(tc.claims, signingKey()))
			payload = regexp.MustCompile(`"(exp|nbf|iat|startBy)":(\d+)`).ReplaceAllString(payload, `"$1":"$2"`)
			if text != forge(goodHeader, payload) {
				t.Errorf("SignWithTextDates(%+v) signed %q, want the payload %s", tc.claims, text, payload)
			}
			for _, compact := range []string{compact, text} {
				got, err := token.Verify(compact, testKeys().set, now, token.Policy{})
				if diff := gocmp.Diff(want, got); err != nil || diff != "" {
					t.Errorf("Verify = %v, claims (-want +got):\n%s", err, diff)
				}
			}
		})
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	rules := func(text string) token.Claims {
		return token.Claims{VideoID: "demo", ExpiresAt: hour, AccessRules: json.RawMessage(text)}
	}
	for _, tc := range []struct {
		name   string
		claims token.Claims
	}{
		{"no claims", token.Claims{}},
		{"no video id", token.Claims{ExpiresAt: hour}},
		{"video id with a slash", token.Claims{VideoID: "a/b", ExpiresAt: hour}},
		{"video id too long", token.Claims{VideoID: strings.Repeat("a", 65), ExpiresAt: hour}},
		{"video id that is not UTF-8", token.Claims{VideoID: "vid\xff", ExpiresAt: hour}},
		{"no exp", token.Claims{VideoID: "demo"}},
		{"exp before 1970", token.Claims{VideoID: "demo", ExpiresAt: time.Unix(-1, 0)}},
		{"exp after 9999", token.Claims{VideoID: "demo", ExpiresAt: time.Unix(253402300800, 0)}},
		{"exp in milliseconds", token.Claims{VideoID: "demo", ExpiresAt: time.Unix(hour.UnixMilli(), 0)}},
		{"nbf before 1970", token.Claims{VideoID: "demo", ExpiresAt: hour, NotBefore: time.Unix(-1, 0)}},
		{"nbf after 9999", token.Claims{VideoID: "demo", ExpiresAt: hour, NotBefore: time.Unix(253402300800, 0)}},
		{"rules with a member twice", rules(`[{"type":"any","action":"allow","action":"block"}]`)},
		{"rules that are not UTF-8", rules("[\"\xff\"]")},
		{"rules nested too deeply", rules(strings.Repeat("[", 16) + strings.Repeat("]", 16))},
		{"rules that are open", rules("[")},
		{"rules with a bracket too many", rules("[]]")},
		{"two lists of rules", rules("[] []")},
		{"rules in single quotes", rules("{'type':'any'}")},
		{"rules that are not JSON", rules("x")},
		{"an issuer that is not UTF-8", token.Claims{VideoID: "demo", ExpiresAt: hour, Issuer: "\xff"}},
		{"a jti that is not UTF-8", token.Claims{VideoID: "demo", ExpiresAt: hour, ID: "\xff"}},
		{"a viewer that is not UTF-8", token.Claims{VideoID: "demo", ExpiresAt: hour, Viewer: "\xff"}},
		{"a viewer whose name is too long", token.Claims{VideoID: "demo", ExpiresAt: hour, Viewer: strings.Repeat("x", 257)}},
		{"a viewer in a claim with another meaning", token.Claims{VideoID: "demo", ExpiresAt: hour, Viewer: "a", ViewerClaim: "sub"}},
		{"a negative limit of sessions", token.Claims{VideoID: "demo", ExpiresAt: hour, SessionLimit: -1}},
		{"a limit of sessions that overflows", token.Claims{VideoID: "demo", ExpiresAt: hour, SessionLimit: 1 << 31}},
		{"iat before 1970", token.Claims{VideoID: "demo", ExpiresAt: hour, IssuedAt: time.Unix(-1, 0)}},
		{"startBy after 9999", token.Claims{VideoID: "demo", ExpiresAt: hour, StartBy: time.Unix(253402300800, 0)}},
		{"an audience that is not UTF-8", token.Claims{VideoID: "demo", ExpiresAt: hour, Audience: []string{"a", "\xff"}}},
		{"too long", rules(`["` + strings.Repeat("x", token.MaxLength) + `"]`)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			for _, sign := range []func(token.Claims, *token.SigningKey) (string, error){token.Sign, token.SignWithTextDates} {
				if compact, err := sign(tc.claims, signingKey()); !errors.Is(err, token.ErrMalformed) || compact != "" {
					t.Errorf("Sign = %q, %v, want ErrMalformed", compact, err)
				}
			}
		})
	}
	// Signers see the value that is wrong.
	if _, err := token.Sign(token.Claims{VideoID: "a/b", ExpiresAt: hour}, signingKey()); !strings.Contains(err.Error(), `"a/b"`) {
		t.Errorf("Sign = %v, want an error that contains the video id", err)
	}
}

// Sign makes a token that can be revoked: it has a jti of its own, and says when it was
// signed.
func TestSignAddsIdentity(t *testing.T) {
	t.Parallel()
	ids := make(map[string]bool)
	for range 3 {
		before := time.Now().Truncate(time.Second)
		claims := must(token.Parse(must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: hour}, signingKey())))).Unverified()
		ids[claims.ID] = true
		if claims.ID == "" || claims.IssuedAt.Before(before) || claims.IssuedAt.After(time.Now()) {
			t.Errorf("Sign made a token with the jti %q and the iat %s", claims.ID, claims.IssuedAt)
		}
	}
	if len(ids) != 3 {
		t.Errorf("three tokens have the jtis %v", ids)
	}
}

// `viewer_claim` can name the claim in which an identity provider puts the viewer. The
// attack: a misspelt claim makes a token without a viewer, whom nobody could revoke.
func TestViewerClaim(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"email", "https://example.com/viewer", "cognito:username", "имя", "user_id", "uid", "---", strings.Repeat("x", 128)} {
		viewer, err := token.NewViewerClaim(name)
		if err != nil || viewer.Name() != name {
			t.Errorf("%q: %v, and the name %q", name, err, viewer.Name())
			continue
		}
		compact := must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: hour, Viewer: "ann", ViewerClaim: name}, signingKey()))
		claims, err := token.Verify(compact, testKeys().set, now, token.Policy{ViewerClaim: viewer})
		if err != nil || claims.Viewer != "ann" {
			t.Errorf("%q: %v, and the viewer %q", name, err, claims.Viewer)
		}
		policy := token.Policy{ViewerClaim: viewer}
		for _, value := range []string{`1`, `""`, `null`, `["ann"]`} {
			if _, err := policy.Parse(forge(goodHeader, `{"sub":"demo","exp":1800003600,"`+name+`":`+value+`}`)); !errors.Is(err, token.ErrMalformed) {
				t.Errorf("%q with the value %s: %v", name, value, err)
			}
		}
		if parsed, err := policy.Parse(forge(goodHeader, `{"sub":"demo","exp":1800003600,"uid":"bob"}`)); err != nil || name != "uid" && parsed.Unverified().Viewer != "" {
			t.Errorf("%q: %v, and the viewer of uid is %q", name, err, parsed.Unverified().Viewer)
		}
	}
	email := token.Policy{ViewerClaim: must(token.NewViewerClaim("email"))}
	for _, name := range []string{"Email", "e-mail", "emial", "emails", "NBF"} {
		if _, err := email.Parse(forge(goodHeader, `{"sub":"demo","exp":1800003600,"`+name+`":"ann"}`)); !errors.Is(err, token.ErrMalformed) {
			t.Errorf("a token with %q: %v", name, err)
		}
	}
	for _, name := range []string{"", "sub", "jti", "flags", "Sub", "accessRule", "start_by", "notBefore", "\xff", strings.Repeat("x", 129)} {
		if _, err := token.NewViewerClaim(name); err == nil || !strings.Contains(err.Error(), strconv.Quote(name)) {
			t.Errorf("NewViewerClaim(%q) = %v, want an error with the name", name, err)
		}
	}
}

func TestValidVideoID(t *testing.T) {
	t.Parallel()
	pattern := regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	ids := []string{
		"", "demo", "-", "_", strings.Repeat("a", 64), strings.Repeat("a", 65), "../vid2", "vid2/../vid1", "vid%2f", "a.b",
		"a b", "a\n", "\x00", "dеmo", "\u202edemo", "é",
	}
	for c := range 256 {
		ids = append(ids, string([]byte{byte(c)}), string([]byte{'a', byte(c), 'z'}))
	}
	for _, id := range ids {
		if got, want := token.ValidVideoID(id), pattern.MatchString(id); got != want {
			t.Errorf("ValidVideoID(%q) = %v, want %v", id, got, want)
		}
	}
}

// A verifier looks up the key of a header before it decodes the payload. So the
// header of a token must be readable without its payload, and the alphabet of
// the whole token must have been checked with it.
func TestParseHeader(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, compact, keyID string
		header, payload      error
	}{
		{"kid", forge(goodHeader, goodPayload), "k1", nil, nil},
		{"no kid", forge(`{"alg":"RS256"}`, goodPayload), "", nil, nil},
		{"payload that is no JSON", forge(goodHeader, "x"), "k1", nil, token.ErrMalformed},
		{"payload of an impossible length", seal(b64(goodHeader) + ".AAAAA"), "k1", nil, token.ErrMalformed},
		{"signature with a second spelling", b64(goodHeader) + "." + b64(goodPayload) + ".AB", "k1", nil, token.ErrMalformed},
		{"other algorithm", forge(`{"alg":"none","kid":"k1"}`, goodPayload), "", token.ErrAlgorithm, nil},
		{"line break in the payload", seal(b64(goodHeader) + "." + b64(goodPayload) + "\n"), "", token.ErrMalformed, nil},
		{"two segments", b64(goodHeader) + "." + b64(goodPayload), "", token.ErrMalformed, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			header, err := token.ParseHeader(tc.compact)
			if !errors.Is(err, tc.header) || header.KeyID() != tc.keyID {
				t.Fatalf("ParseHeader = key id %q, %v, want %q, %v", header.KeyID(), err, tc.keyID, tc.header)
			}
			if err != nil {
				return
			}
			if _, err := header.ParsePayload(token.ViewerClaim{}); !errors.Is(err, tc.payload) {
				t.Errorf("ParsePayload = %v, want %v", err, tc.payload)
			}
		})
	}
}

// Zero values must not open anything: claims without dates are expired, and a
// zero Parsed has neither a key nor a signature.
func TestZeroValuesAreRefused(t *testing.T) {
	t.Parallel()
	if err := new(token.Claims).Check(now, token.Policy{}); !errors.Is(err, token.ErrExpired) {
		t.Errorf("Check of zero claims = %v, want ErrExpired", err)
	}
	var parsed token.Parsed
	if _, err := parsed.Key(testKeys().set); !errors.Is(err, token.ErrKeyUnknown) {
		t.Errorf("Key of the zero Parsed = %v, want ErrKeyUnknown", err)
	}
	if _, err := parsed.Verify(testKeys().set.Lookup("k1")); !errors.Is(err, token.ErrSignature) {
		t.Errorf("Verify of the zero Parsed = %v, want ErrSignature", err)
	}
	if header, payload := parsed.Documents(); header != "" || payload != "" {
		t.Errorf("Documents of the zero Parsed = %q, %q", header, payload)
	}
	var header token.Header
	if _, err := header.ParsePayload(token.ViewerClaim{}); !errors.Is(err, token.ErrMalformed) || header.KeyID() != "" {
		t.Errorf("ParsePayload of the zero Header = %v, want ErrMalformed; its key id is %q", err, header.KeyID())
	}
	var none *token.KeySet
	if _, err := token.Verify(forge(goodHeader, goodPayload), none, now, token.Policy{}); !errors.Is(err, token.ErrKeyUnknown) {
		t.Errorf("Verify with the nil *KeySet = %v, want ErrKeyUnknown", err)
	}
}

// windows yields every run of 16 bytes of a text.
func windows(text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range max(0, len(text)-15) {
			if !yield(text[i : i+16]) {
				return
			}
		}
	}
}
