package token_test

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// The rows J1, J2, … are the classes of attacks on JSON Web Tokens. A row's
// signature is genuine unless its name says otherwise, so only its form can be the
// reason why it is refused.

var sentinels = []error{
	token.ErrMalformed, token.ErrAlgorithm, token.ErrKeyUnknown, token.ErrSignature,
	token.ErrAudience, token.ErrExpired, token.ErrNotYetValid, token.ErrLifetime, token.ErrKey,
}

// lookups records the ids that a verifier looks up.
type lookups struct {
	token.Keys
	ids []string
}

func (l *lookups) Lookup(keyID string) *token.PublicKey {
	l.ids = append(l.ids, keyID)
	return l.Keys.Lookup(keyID)
}

// refuse checks that a token is refused for exactly one reason, that Verify
// returns nothing of it and that the error contains nothing of it. A key id is
// looked up once, exactly as it is, and only for a token that has the right form.
func refuse(t *testing.T, compact string, want error) {
	t.Helper()
	refuseWith(t, compact, testKeys().set, token.Policy{}, want)
}

func refuseWith(t *testing.T, compact string, keys token.Keys, policy token.Policy, want error) {
	t.Helper()
	spy := &lookups{Keys: keys}
	claims, err := token.Verify(compact, spy, now, policy)
	for _, sentinel := range sentinels {
		if errors.Is(err, sentinel) != errors.Is(want, sentinel) {
			t.Fatalf("Verify(%.400q) = %v, want %v", compact, err, want)
		}
	}
	if diff := cmp.Diff(token.Claims{}, claims); diff != "" {
		t.Errorf("Verify(%.400q) returned claims with an error (-want +got):\n%s", compact, diff)
	}
	parsed, parseErr := token.Parse(compact)
	if ofForm := errors.Is(want, token.ErrMalformed) || errors.Is(want, token.ErrAlgorithm); ofForm != (parseErr != nil) {
		t.Errorf("Parse(%.400q) = %v, Verify = %v", compact, parseErr, err)
	}
	if parseErr != nil {
		if !errors.Is(parseErr, want) {
			t.Errorf("Parse(%.400q) = %v, want %v", compact, parseErr, want)
		}
		if diff := cmp.Diff(token.Claims{}, parsed.Unverified()); diff != "" {
			t.Errorf("Parse(%.400q) returned claims with an error (-want +got):\n%s", compact, diff)
		}
	}
	var ids []string
	if id := parsed.Unverified().KeyID; id != "" {
		ids = []string{id}
	}
	if diff := cmp.Diff(ids, spy.ids); diff != "" {
		t.Errorf("Verify(%.400q) looked up (-want +got):\n%s", compact, diff)
	}
	if errors.Is(want, token.ErrSignature) {
		claims, err := parsed.Verify(keys.Lookup(parsed.Unverified().KeyID))
		if diff := cmp.Diff(token.Claims{}, claims); diff != "" || !errors.Is(err, want) {
			t.Errorf("Parsed.Verify(%.400q) = %v and claims (-want +got):\n%s", compact, err, diff)
		}
	}
	for segment := range strings.SplitSeq(compact, ".") {
		decoded, _ := base64.RawURLEncoding.DecodeString(segment)
		for run := range windows(err.Error()) {
			if strings.Contains(segment, run) || bytes.Contains(decoded, []byte(run)) {
				t.Fatalf("the error of Verify(%.400q) contains %q of the token: %v", compact, run, err)
			}
		}
	}
}

func accept(t *testing.T, compact string) {
	t.Helper()
	if _, err := token.Verify(compact, testKeys().set, now, token.Policy{}); err != nil {
		t.Fatalf("Verify(%.400q) = %v, want it accepted", compact, err)
	}
}

type hostile struct {
	name, compact string
	want          error
}

// table collects tokens to refuse.
type table []hostile

func (r *table) add(want error, name, compact string) { *r = append(*r, hostile{name, compact, want}) }

func refuseAll(t *testing.T, rows table) {
	t.Helper()
	accept(t, forge(goodHeader, goodPayload)) // from which all rows differ
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			refuse(t, row.compact, row.want)
		})
	}
}

// The attack: the token itself tells the verifier to check no signature, or
// another kind of signature than the key is for.
func TestTheTokenDoesNotChooseTheAlgorithm(t *testing.T) {
	t.Parallel()
	var rows table
	for _, alg := range []string{"none", "None", "nOnE", "NONE", ""} {
		header := fmt.Sprintf(`{"alg":%q,"kid":"k1"}`, alg)
		rows.add(token.ErrAlgorithm, fmt.Sprintf("J1 unsigned, alg %q", alg), b64(header)+"."+b64(goodPayload)+".")
	}
	rows.add(token.ErrSignature, "J1 unsigned, alg RS256", b64(goodHeader)+"."+b64(goodPayload)+".")
	rows.add(token.ErrAlgorithm, "J1 unsigned, no alg", b64(`{}`)+"."+b64(goodPayload)+".")
	for alg, want := range map[string]error{"HS256": token.ErrAlgorithm, "RS256": token.ErrSignature} {
		input := b64(fmt.Sprintf(`{"alg":%q,"kid":"k1"}`, alg)) + "." + b64(goodPayload)
		mac := hmac.New(sha256.New, []byte(pemsOf(testKeys().k1).pkix))
		mac.Write([]byte(input))
		rows.add(want, "J2 HMAC with the public key as secret, alg "+alg, input+"."+b64(mac.Sum(nil)))
	}
	for _, member := range []string{
		`"alg":"none",`, `"alg":"HS256",`, ``, `"alg":["RS256"],`, `"alg":null,`, `"alg":256,`, `"alg":{"RS256":1},`, `"alg":"",`,
		`"alg":"RS256 ",`, `"alg":"RS256\u0000",`, `"alg":"\u0052S256",`, `"ALG":"RS256",`, `"Alg":"RS256",`,
	} {
		rows.add(token.ErrAlgorithm, "J3 RS256 signature, header says "+member, forge(`{`+member+`"kid":"k1"}`, goodPayload))
	}
	for _, alg := range []string{"rs256", "Rs256", "rS256"} {
		rows.add(token.ErrAlgorithm, "J4 alg "+alg, forge(fmt.Sprintf(`{"alg":%q,"kid":"k1"}`, alg), goodPayload))
	}
	refuseAll(t, append(rows, otherAlgorithms()...))
}

// otherAlgorithms are genuine signatures by the right key with algorithms that it
// is not for, each under its own name and under RS256.
func otherAlgorithms() (rows table) {
	key := testKeys().k1
	pkcs1 := func(hash, digest crypto.Hash) func([]byte) []byte {
		return func(input []byte) []byte {
			h := digest.New()
			h.Write(input)
			return must(rsa.SignPKCS1v15(nil, key, hash, h.Sum(nil)))
		}
	}
	for name, sign := range map[string]func(input []byte) []byte{
		"RS384": pkcs1(crypto.SHA384, crypto.SHA384), "RS512": pkcs1(crypto.SHA512, crypto.SHA512), "unprefixed SHA-256": pkcs1(0, crypto.SHA256),
		"PS256": func(input []byte) []byte {
			digest := sha256.Sum256(input)
			return must(rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))
		},
	} {
		named := b64(fmt.Sprintf(`{"alg":%q,"kid":"k1"}`, name)) + "." + b64(goodPayload)
		posing := b64(goodHeader) + "." + b64(goodPayload)
		rows.add(token.ErrAlgorithm, "J5 "+name, named+"."+b64(sign([]byte(named))))
		rows.add(token.ErrSignature, "J5 "+name+" posing as RS256", posing+"."+b64(sign([]byte(posing))))
	}
	return rows
}

// The attack: the token brings its own key, or an address from which to fetch one,
// and so may a key file. Fetching it would also let them reach internal servers.
func TestTheTokenBringsNoKey(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a request was made to an address in a token or in a key: %s", r.URL)
	}))
	t.Cleanup(server.Close)
	spy, stranger := server.URL, testKeys().stranger
	by := func(header, payload string) string {
		input := b64(header) + "." + b64(payload)
		return input + "." + b64(signature(stranger, input))
	}
	own := string(must(must(token.NewPublicKey("k1", &stranger.PublicKey)).JWK()))
	var rows table
	for name, member := range map[string]string{
		"J6 embedded jwk":       `"jwk":` + own,
		"J7 jku":                fmt.Sprintf(`"jku":%q`, spy+"/k.json"),
		"J7 x5u":                fmt.Sprintf(`"x5u":%q`, spy+"/k.pem"),
		"J7 x5c":                fmt.Sprintf(`"x5c":[%q]`, base64.StdEncoding.EncodeToString(certificate(stranger))),
		"J7 x5t":                `"x5t":"AAAA","x5t#S256":"AAAA"`,
		"J7 iss, for discovery": fmt.Sprintf(`"iss":%q`, spy),
		"J7 an address in typ":  fmt.Sprintf(`"typ":%q`, spy+"/k.json"),
	} {
		header := `{"alg":"RS256","kid":"k1",` + member + `}`
		rows.add(token.ErrMalformed, name+", signed by a stranger", by(header, goodPayload))
		rows.add(token.ErrMalformed, name+", genuine signature", forge(header, goodPayload))
	}
	rows.add(token.ErrMalformed, "J6 embedded jwk instead of a kid", by(`{"alg":"RS256","jwk":`+own+`}`, goodPayload))
	rows.add(token.ErrKeyUnknown, "J7 kid is an address", by(fmt.Sprintf(`{"alg":"RS256","kid":%q}`, spy), goodPayload))
	issuer := fmt.Sprintf(`{"sub":"demo","exp":1800003600,"iss":%q}`, spy)
	rows.add(token.ErrKeyUnknown, "J7 the claim iss is an address", by(`{"alg":"RS256","kid":"other"}`, issuer))
	refuseAll(t, rows)
	set := `{"keys":[` + jwk(false, map[string]any{"x5u": spy + "/k.pem", "jku": spy + "/k.json"}) + `]}`
	if _, skipped, err := token.ParseJWKS([]byte(set)); err != nil || skipped != nil {
		t.Errorf("ParseJWKS of a key with addresses = %v, %v", skipped, err)
	}
}

// The attack: header members that change what is signed, or that other readers
// of the same header understand differently.
func TestHeaderMembers(t *testing.T) {
	t.Parallel()
	var rows table
	for _, members := range []string{
		`"crit":["x"],"x":1`, `"crit":[]`, `"crit":["alg"]`, `"crit":"x"`, // J8
		`"b64":false,"crit":["b64"]`, `"b64":false`, `"b64":true`, // J9
		`"alg":"none"`, `"alg":"RS256"`, `"kid":"evil"`, `"kid":"k1"`, `"k\u0069d":"evil"`, // J10: a member twice
		`"typ":"secevent+jwt"`, `"typ":"jwt"`, `"typ":"J\u0057T"`, `"typ":""`, `"typ":1`, `"typ":null`, `"cty":"JWT"`, `"zip":"DEF"`, // J12
	} {
		rows.add(token.ErrMalformed, "J8 to J12 with "+members, forge(`{"alg":"RS256","kid":"k1",`+members+`}`, goodPayload))
		rows.add(token.ErrMalformed, "J8 to J12 first "+members, forge(`{`+members+`,"alg":"RS256","kid":"k1"}`, goodPayload))
	}
	for _, members := range []string{`"b64":false`, `"b64":false,"crit":["b64"]`} {
		input := b64(`{"alg":"RS256","kid":"k1",`+members+`}`) + `.{"sub":"demo","exp":1800003600,"x":"a/b.c"}`
		rows.add(token.ErrMalformed, "J9 raw payload, "+members, seal(input))
	}
	for _, header := range []string{
		"", " " + goodHeader, goodHeader + "\n", "\ufeff" + goodHeader, `[` + goodHeader + `]`, `"RS256"`, `null`, goodHeader + goodHeader,
		goodHeader[:len(goodHeader)-1], goodHeader + "\x00", `{"alg":"RS256","kid":"k1",}`, `{"alg":"RS256","kid":"k` + "\xff" + `"}`,
		`{"alg":"RS256","kid":"\ud800"}`, `{"alg":"RS256","KID":"k1"}`,
	} {
		rows.add(token.ErrMalformed, fmt.Sprintf("header that is not one strict object %q", header), forge(header, goodPayload))
	}
	refuseAll(t, rows)
}

// The attack: a key id that somebody reads as a path, as a pattern or as SQL, or
// that resembles the id of another key.
func TestKeyIDs(t *testing.T) {
	t.Parallel()
	input := b64(`{"alg":"RS256","kid":"revoked"}`) + "." + b64(goodPayload)
	rows := table{
		{"J11 no kid at all", forge(`{"alg":"RS256"}`, goodPayload), token.ErrKeyUnknown},
		{"J11 signed by the revoked key itself", input + "." + b64(signature(testKeys().stranger, input)), token.ErrKeyUnknown},
		{"J11 kids differ, the header's is right", forge(goodHeader, `{"sub":"demo","exp":1800003600,"kid":"k2"}`), token.ErrMalformed},
		{"J11 kids differ, the payload's is right", forge(`{"alg":"RS256","kid":"k2"}`, `{"sub":"demo","exp":1800003600,"kid":"k1"}`), token.ErrMalformed},
		{"J11 kid in the payload empty", forge(goodHeader, `{"sub":"demo","exp":1800003600,"kid":""}`), token.ErrMalformed},
		{"J11 kid in the header empty", forge(`{"alg":"RS256","kid":""}`, `{"sub":"demo","exp":1800003600,"kid":"k1"}`), token.ErrMalformed},
	}
	for want, kids := range map[error][]string{ // as they are in the JSON
		token.ErrMalformed: {`""`, `1`, `null`, `["k1"]`, `{"k1":1}`, `true`, `"` + strings.Repeat("k", 1<<20) + `"`},
		token.ErrKeyUnknown: {
			`"../../etc/passwd"`, `"./k1"`, `"k1.jwks.json"`, `"*"`, `"k1 OR 1=1"`, `"k1' OR '1'='1"`, // read by something else than a look-up
			`"k"`, `"K1"`, `" k1"`, `"k1 "`, `"k1\n"`, `"k1\u0000"`, `"k` + "\u200b" + `1"`, `"ｋ１"`, `"ké"`, `"ke` + "\u0301" + `"`, // almost that of a key
			`"revoked"`, `"` + strings.Repeat("k", 2<<10) + `"`,
		},
		token.ErrSignature: {`"k2"`},
	} {
		for _, kid := range kids {
			header, payload := `{"alg":"RS256","kid":`+kid+`}`, `{"sub":"demo","exp":1800003600,"kid":`+kid+`}`
			rows.add(want, fmt.Sprintf("J11 kid %.30s in the header", kid), forge(header, goodPayload))
			rows.add(want, fmt.Sprintf("J11 kid %.30s in the payload", kid), forge(`{"alg":"RS256"}`, payload))
			rows.add(want, fmt.Sprintf("J11 kid %.30s in both", kid), forge(header, payload))
		}
	}
	refuseAll(t, rows)
}

// The attack: one signature under many spellings, each of which is another token
// to a cache or a revocation list.
func TestOneSpelling(t *testing.T) {
	t.Parallel()
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	good := forge(goodHeader, goodPayload)
	var rows table
	add := func(name, compact string) { rows.add(token.ErrMalformed, name, compact) }
	// 2048 bits take 342 characters and leave 4 bits unused.
	last := strings.IndexByte(alphabet, good[len(good)-1])
	for bits := 1; bits < 16; bits++ {
		add(fmt.Sprintf("J13 last signature character with other unused bits %04b", bits), good[:len(good)-1]+alphabet[last^bits:last^bits+1])
	}
	// The header leaves two bits unused and the payload four. Both are signed.
	header, payload := b64(goodHeader), b64(goodPayload)
	add("J13 last header character with other unused bits", seal(nextCharacter(alphabet, header)+"."+payload))
	add("J13 last payload character with other unused bits", seal(header+"."+nextCharacter(alphabet, payload)))
	add("J13 a last group of one character", good[:len(good)-1])
	for _, padding := range []string{"=", "==", "%3D", "%3D%3D"} {
		add("J14 header padded with "+padding, seal(header+padding+"."+payload))
		add("J14 payload padded with "+padding, seal(header+"."+payload+padding))
		add("J14 signature padded with "+padding, good+padding)
	}
	// "~~~" and "???" encode to characters in which the two alphabets differ.
	fancy := b64(`{"sub":"demo","exp":1800003600,"x":"~~~???~~?>>>"}`)
	dashedPayload, dashedSignature := dashed(header)
	for name, replace := range map[string]*strings.Replacer{
		"bytes": strings.NewReplacer("-", "+", "_", "/"), "percent-encoded": strings.NewReplacer("-", "%2B", "_", "%2F"),
		"its own percent-encoded": strings.NewReplacer("-", "%2D", "_", "%5F"),
	} {
		add("J15 payload in the other alphabet, "+name, seal(header+"."+replace.Replace(fancy)))
		add("J15 signature in the other alphabet, "+name, header+"."+dashedPayload+"."+replace.Replace(dashedSignature))
	}
	for name, space := range map[string]string{
		"CR": "\r", "LF": "\n", "CRLF": "\r\n", "TAB": "\t", "space": " ", "%0A": "%0A", "%20": "%20", "%0D%0A": "%0D%0A", "NUL": "\x00",
		"no-break space": "\u00a0", "byte order mark": "\ufeff", "vertical tab": "\v",
	} {
		for _, at := range []int{0, 4, len(header), len(header) + 1, len(header) + 5, len(good) - 4, len(good)} {
			add(fmt.Sprintf("J16 %s at %d", name, at), good[:at]+space+good[at:])
		}
		add("J16 signed "+name+" in the header", seal(header[:4]+space+header[4:]+"."+payload))
		add("J16 signed "+name+" in the payload", seal(header+"."+payload[:4]+space+payload[4:]))
	}
	refuseAll(t, rows)
}

// nextCharacter changes an unused bit in the last character of a segment.
func nextCharacter(alphabet, segment string) string {
	if len(segment)%4 == 0 {
		panic("a segment without unused bits")
	}
	last := strings.IndexByte(alphabet, segment[len(segment)-1])
	return segment[:len(segment)-1] + alphabet[last^1:last^1+1]
}

// dashed returns a payload whose signature, like almost all, has a character in
// which the two alphabets differ.
func dashed(header string) (payload, sig string) {
	for i := 0; !strings.ContainsAny(sig, "-_"); i++ {
		payload = b64(fmt.Sprintf(`{"sub":"demo","exp":1800003600,"i":%d}`, i))
		sig = b64(signature(testKeys().k1, header+"."+payload))
	}
	return payload, sig
}

// The attack: another serialization, or other than three segments, so that two
// readers take different parts.
func TestSegments(t *testing.T) {
	t.Parallel()
	good := forge(goodHeader, goodPayload)
	header, payload, sig := b64(goodHeader), b64(goodPayload), good[strings.LastIndexByte(good, '.')+1:]
	flattened := fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, header, payload, sig)
	general := fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":"AAAA"},{"protected":%q,"signature":%q}]}`, payload, header, header, sig)
	rows := table{{"J18 flattened, as a segment", b64(flattened) + "." + payload + "." + sig, token.ErrAlgorithm}}
	for i, compact := range []string{
		"", header, header + "." + payload, "..", "...", strings.Repeat(".", token.MaxLength), "." + payload + "." + sig, seal(header + "."),
		good + "." + sig, header + ".." + payload + "." + sig, good + ".", "." + good, good + "." + payload + "." + sig,
		b64(`{"alg":"RSA-OAEP","enc":"A256GCM"}`) + ".a2V5.aXY.dGV4dA.dGFn", // a JWE
		strings.ReplaceAll(good, ".", "%2E"), "Bearer " + good,
		flattened, general, strings.TrimSuffix(flattened, "}") + `,"x":".."}`,
		strings.NewReplacer("{", "%7B", "}", "%7D", `"`, "%22").Replace(flattened),
	} {
		rows.add(token.ErrMalformed, fmt.Sprintf("J17, J18 row %d", i), compact)
	}
	refuseAll(t, rows)
}

// The attack: a payload that the signer and the verifier read differently, so that
// a back end that lets users choose a claim signs more than it has checked. The
// tests of strictjson have the form of JSON in full.
func TestPayloadForm(t *testing.T) {
	t.Parallel()
	nested := func(depth int) string { return `"x":` + strings.Repeat("[", depth) + strings.Repeat("]", depth) }
	var rows table
	for _, members := range []string{
		`"sub":"vid2"`, `"\u0073ub":"vid2"`, `"exp":1`, `"accessRules":[{"type":"any","action":"block"}],"accessRules":[]`, // J21
		`"kid":"k1","kid":"k1"`, `"x":{"a":1,"a":2}`, `"x":1,"x":1`, `"accessRules":[{"type":"any","action":"block","action":"allow"}]`,
		nested(16), nested(2800), nested(9990), nested(20000), `"x":` + strings.Repeat(`{"a":`, 16) + `1` + strings.Repeat(`}`, 16), // J24
		`"x":"` + "\xff" + `"`, `"x":"` + "\xc0\xaf" + `"`, `"x":"\udc00"`, `"x":01`, ``,
		`"downloadable":"true"`, `"downloadable":1`, `"downloadable":0`, `"downloadable":null`, `"downloadable":[]`, `"downloadable":{}`, `"downloadable":""`,
		`"flags":{"original":"true"}`, `"flags":{"original":1}`, `"flags":{"original":null}`, `"flags":{"hd":true,"original":[]}`,
	} {
		rows.add(token.ErrMalformed, fmt.Sprintf("J21, J24 with %.60q", members), forge(goodHeader, `{"sub":"demo","exp":1800003600,`+members+`}`))
	}
	for _, payload := range []string{
		forge(goodHeader, goodPayload), `"` + forge(goodHeader, goodPayload) + `"`, // J19: the payload is a token
		goodPayload + `{"sub":"vid2"}`, goodPayload + "\n" + `{"sub":"vid2"}`, goodPayload + "x", goodPayload + "\x00", goodPayload + "}", // J20
		`{"sub":"demo","Exp":1800003600}`, `{"sub":"demo","EXP":1800003600}`, `{"SUB":"demo","exp":1800003600}`, `{"ſub":"demo","exp":1800003600}`, // J22
		"", " " + goodPayload, "\ufeff" + goodPayload, `[` + goodPayload + `]`, `null`, `1`, `{}`, goodPayload[:len(goodPayload)-1],
		`{"sub":"demo","exp":1800003600/**/}`, `{'sub':'demo','exp':1800003600}`, "{\x00\"\x00s\x00u\x00b\x00\"\x00:\x001\x00}\x00",
		`{"x":` + strings.Repeat("[", 5000),
	} {
		rows.add(token.ErrMalformed, fmt.Sprintf("J19 to J24 payload %.60q", payload), forge(goodHeader, payload))
	}
	refuseAll(t, rows)
}

// The attack: a subject that is a path to another video, or that a reader
// normalizes to the id of another video. The signed bytes themselves must be an id.
func TestSubjects(t *testing.T) {
	t.Parallel()
	rows := table{
		{"J23 no sub", forge(goodHeader, `{"exp":1800003600}`), token.ErrMalformed},
		{"J23 the token printed in Cloudflare's guide has no sub", cloudflareSample, token.ErrMalformed},
	}
	for _, sub := range []string{
		`null`, `1`, `true`, `["demo"]`, `{"demo":1}`, `""`,
		`"../vid2"`, `"vid2/../vid1"`, `"/etc/passwd"`, `"vid%2f"`, `"."`, `".."`, `"a\\b"`, `"a\/b"`, `"demo?x"`, `"demo#x"`, `"demo;x"`, `"de.mo"`,
		`"demo "`, `"demo\n"`, "\"demo\n\"", `"demo\u0000"`, `"\u0064emo"`, `"vid` + "\xff" + `"`, `"vid` + "\xfe" + `"`, `"vid` + "\ufffd" + `"`,
		`"vid\ud800"`, `"` + strings.Repeat("a", 65) + `"`, `"` + strings.Repeat("a", 4000) + `"`, `"` + strings.Repeat("a", 10000) + `"`,
		`"` + "\u202e" + `demo"`, `"dеmo"`, `"ｄemo"`, // a right-to-left override, a Cyrillic letter, a full-width letter
		`"{video}"`, `"{env.HOME}"`, `"` + forge(goodHeader, goodPayload) + `"`,
	} {
		rows.add(token.ErrMalformed, fmt.Sprintf("J23 sub %.60q", sub), forge(goodHeader, `{"sub":`+sub+`,"exp":1800003600}`))
	}
	refuseAll(t, rows)
}

// The token in Cloudflare's guide "Secure your stream" is for an endpoint that has
// the video id in its own path. It opens nothing here.
const cloudflareSample = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImNkYzkzNTk4MmY4MDc1ZjJlZjk2MTA2ZDg1ZmNkODM4In0." +
	"eyJraWQiOiJjZGM5MzU5ODJmODA3NWYyZWY5NjEwNmQ4NWZjZDgzOCIsImV4cCI6IjE2MjE4ODk2NTciLCJuYmYiOiIxNjIxODgyNDU3In0." +
	"iHGMvwOh2-SuqUG7kp2GeLXyKvMavP-I2rYCni9odNwms7imW429bM2tKs3G9INms8gSc7fzm8hNEYWOhGHWRBaaCs3U9H4DRWaFOvn0sJWLBitGuF_YaZM5" +
	"O6fqJPTAwhgFKdikyk9zVzHrIJ0PfBL0NsTgwDxLkJjEAEULQJpiQU1DNm0w5ctasdbw77YtDwdZ01g924Dm6jIsWolW0Ic0AevCLyVdg501Ki9hSF7kYST0" +
	"egcll47jmoMMni7ujQCJI1XEAOas32DdjnMvU8vXrYbaHk1m1oXlm319rDYghOHed9kr293KM7ivtZNlhYceSzOpyAmqNFS7mearyQ"

// The attack: a token that lasts for ever, because its date is missing, is no
// date, overflows or is in another unit than the reader's.
func TestDates(t *testing.T) {
	t.Parallel()
	rows := table{{"J25 no exp", forge(goodHeader, `{"sub":"demo"}`), token.ErrMalformed}}
	add := func(row string, want error, values ...string) {
		for _, value := range values {
			rows.add(want, fmt.Sprintf("%s exp %.40s", row, value), forge(goodHeader, `{"sub":"demo","exp":`+value+`}`))
			if errors.Is(want, token.ErrMalformed) {
				for _, date := range []string{"nbf", "iat", "startBy"} {
					rows.add(want, fmt.Sprintf("%s %s %.40s", row, date, value), forge(goodHeader, `{"sub":"demo","exp":1800003600,"`+date+`":`+value+`}`))
				}
			}
		}
	}
	add("J26", token.ErrExpired, `0`, `"0"`, `1`, `"000000000000000000000001"`)
	add("J26", token.ErrMalformed, `0.5`, `"0001-01-01T00:00:00Z"`)
	add("J27", token.ErrMalformed,
		`"2999-01-01T00:00:00Z"`, `1800003600.9`, `1800003600.0`, `1800003600e0`, `18000036E2`, `"1800003600.9"`, `"1800003600e0"`,
		`"+1800003600"`, `" 1800003600"`, `"1800003600 "`, `"0x6b49d200"`, `"1_800_003_600"`, `"180000360\u0030"`, `"１８０００"`,
		`01800003600`, `+1800003600`)
	add("J28", token.ErrLifetime, `1800003600000`, `"1800003600000"`, `253402300800`, `"253402300800"`, `9007199254740992`)
	add("J28", token.ErrMalformed, `9.2e18`, `9200000000000000000`, `9007199254740993`)
	add("J29", token.ErrMalformed,
		`-1`, `-0`, `"-1"`, `1e19`, `1e400`, `9223372036854775807`, `9223372036854775808`, `18446744073709551616`,
		`18446744075509555216`, `"18446744075509555216"`, // 2^64 more than a good date
		strings.Repeat("9", 1000), `null`, `true`, `[]`, `[1800003600]`, `{}`, `""`, `"`+strings.Repeat("9", 41)+`"`, `"tomorrow"`, `NaN`, `Infinity`)
	refuseAll(t, rows)
}

// The attack: a token that nobody can revoke or limit, because one reader takes a claim for
// an id or a number, and another for none.
func TestIdentifiersAndLimits(t *testing.T) {
	t.Parallel()
	var rows table
	add := func(claim string, values ...string) {
		for _, value := range values {
			rows.add(token.ErrMalformed, fmt.Sprintf("%s %.40s", claim, value), forge(goodHeader, `{"sub":"demo","exp":1800003600,"`+claim+`":`+value+`}`))
		}
	}
	for _, claim := range []string{"jti", "uid"} {
		add(claim, `""`, `1`, `null`, `true`, `["a"]`, `{"a":"b"}`, `"`+strings.Repeat("x", 257)+`"`, `"`+strings.Repeat("é", 128)+`x"`)
	}
	add("climit", `0`, `-1`, `-0`, `1.0`, `1.5`, `1e0`, `"1"`, `""`, `null`, `true`, `[1]`, `{}`, `2147483648`, `18446744073709551617`, `Infinity`)
	refuseAll(t, rows)
}

// The attack: a token that is used a moment before or after its time. The rows
// are the moments at which the result changes, and the moments next to them.
func TestDatesAtTheirBoundaries(t *testing.T) {
	t.Parallel()
	const s, hour = time.Second, time.Hour
	never := -1000 * hour // no nbf
	for _, tc := range []struct {
		exp, nbf, leeway, lifetime time.Duration // dates are from now
		want                       error
	}{
		{0, never, 0, 0, token.ErrExpired},
		{-s, never, 0, 0, token.ErrExpired},
		{s, never, 0, 0, nil},
		{1, never, 0, 0, nil},
		{0, never, time.Minute, 0, token.ErrExpired}, // the leeway does not prolong exp
		{10 * s, 0, 0, 0, nil},
		{10 * s, -s, 0, 0, nil},
		{10 * s, s, 0, 0, token.ErrNotYetValid},
		{10 * s, 1, 0, 0, token.ErrNotYetValid},
		{10 * s, 5 * s, 5 * s, 0, nil},
		{10 * s, 5*s + 1, 5 * s, 0, token.ErrNotYetValid},
		{10 * s, 6 * s, 5 * s, 0, token.ErrNotYetValid},
		{10 * s, 20 * s, 0, 0, token.ErrNotYetValid},
		{0, 20 * s, 0, 0, token.ErrExpired},
		{10 * s, 20 * s, time.Minute, 0, nil},
		{hour, never, 0, hour, nil},
		{hour + 1, never, 0, hour, token.ErrLifetime},
		{hour + s, never, 0, hour, token.ErrLifetime},
		{hour + s, never, time.Minute, hour, token.ErrLifetime}, // nor the maximum lifetime
		{hour + s, s, 0, hour, token.ErrNotYetValid},
		{10 * s, s, 1<<63 - 1, 1<<63 - 1, nil}, // limits that no date reaches
	} {
		policy := token.Policy{Leeway: tc.leeway, MaxLifetime: tc.lifetime}
		claims := token.Claims{ExpiresAt: now.Add(tc.exp).In(time.FixedZone("", 14*3600))}
		if tc.nbf != never {
			claims.NotBefore = now.Add(tc.nbf).In(time.FixedZone("", -14*3600))
		}
		if err := claims.Check(now, policy); !errors.Is(err, tc.want) {
			t.Errorf("J30 exp %s nbf %s leeway %s lifetime %s: Check = %v, want %v", tc.exp, tc.nbf, tc.leeway, tc.lifetime, err, tc.want)
		}
	}
	refuse(t, forge(goodHeader, `{"sub":"demo","exp":1800003600,"nbf":"1800000001"}`), token.ErrNotYetValid)
	// J28 A date that overflows a duration.
	refuseWith(t, forge(goodHeader, `{"sub":"demo","exp":253402300799}`), testKeys().set, token.Policy{MaxLifetime: 24 * hour}, token.ErrLifetime)
	// `iat` says nothing about when a token may be used.
	accept(t, forge(goodHeader, `{"sub":"demo","exp":1800003600,"iat":1800000600}`))
}

// The attack: a token that the same identity provider has signed for another
// program. Only the claim itself counts, and only its whole value.
func TestAudience(t *testing.T) {
	t.Parallel()
	values := []string{"media", "https://media.example"}
	check := func(members string, policy token.Policy, allowed bool) {
		t.Helper()
		compact := forge(goodHeader, `{"sub":"demo","exp":1800003600`+members+`}`)
		accept(t, compact) // without a policy
		if !allowed {
			refuseWith(t, compact, testKeys().set, policy, token.ErrAudience)
		} else if _, err := token.Verify(compact, testKeys().set, now, policy); err != nil {
			t.Errorf("Verify of %s = %v, want it accepted", members, err)
		}
	}
	for value, allowed := range map[string][2]bool{ // as aud, as iss
		`"media"`: {true, true}, `"https:\/\/media.example"`: {true, true},
		`["media"]`: {true, false}, `["shop","https://media.example"]`: {true, false},
		`"shop"`: {}, `""`: {}, `"Media"`: {}, `"media "`: {}, `"medi"`: {}, `"mediamedia"`: {}, `"https://media.example/"`: {}, `"media,shop"`: {},
		`null`: {}, `1`: {}, `true`: {}, `{"media":"media"}`: {}, `[]`: {}, `["shop"]`: {}, `["media",1]`: {}, `["media",null]`: {},
		`[["media"]]`: {}, `"ｍedia"`: {}, `"media\u0000"`: {},
	} {
		check(`,"aud":`+value, token.Policy{Audience: values}, allowed[0])
		check(`,"iss":`+value, token.Policy{Issuer: values}, allowed[1])
	}
	for members, allowed := range map[string]bool{
		`,"aud":"media","iss":"https://media.example"`: true,
		``: false, `,"aud":"media"`: false, `,"iss":"https://media.example"`: false, `,"aud":"media","iss":"shop"`: false,
		`,"aud":"shop","iss":"https://media.example"`: false, `,"x":{"aud":"media","iss":"https://media.example"}`: false,
	} {
		check(members, token.Policy{Audience: values[:1], Issuer: values[1:]}, allowed)
	}
}

// The attack: a stranger learns the verifier's clock and policy from the answers
// to forged tokens. So the signature is checked before the dates.
func TestASignatureComesBeforeTheDates(t *testing.T) {
	t.Parallel()
	input := b64(goodHeader) + "." + b64(`{"sub":"demo","exp":1}`)
	refuse(t, input+"."+b64(signature(testKeys().stranger, input)), token.ErrSignature)
	refuse(t, seal(input), token.ErrExpired)
}

// The attack: a key that can be factored or has a degenerate exponent, or one so
// large that each verification is a denial of service.
func TestWeakKeys(t *testing.T) {
	t.Parallel()
	k1 := testKeys().k1.PublicKey
	weak := map[string]*rsa.PublicKey{
		"J31 even modulus": {N: new(big.Int).Add(k1.N, big.NewInt(1)), E: 65537},
		"J31 modulus 0":    {N: new(big.Int), E: 65537},
	}
	for _, bits := range []int{512, 1024, 2047, 4097, 8192, 16384} {
		weak[fmt.Sprintf("J31 %d bits", bits)] = &rsa.PublicKey{N: oddModulus(bits), E: 65537}
	}
	for _, e := range []int{1, 2, 3, 65539, 1<<31 - 1} {
		weak[fmt.Sprintf("J31 e=%d", e)] = &rsa.PublicKey{N: k1.N, E: e}
	}
	for name, key := range weak {
		if got, err := token.NewPublicKey("k1", key); !errors.Is(err, token.ErrKey) || got != nil {
			t.Errorf("%s: NewPublicKey = %v, %v, want ErrKey", name, got, err)
		}
		if keys, err := token.ParsePublicKeys(publicJWK("k1", key), ""); !errors.Is(err, token.ErrKey) || keys != nil {
			t.Errorf("%s: ParsePublicKeys = %v, %v, want ErrKey", name, keys, err)
		}
	}
	for _, bits := range []int{2048, 4096} {
		if _, err := token.NewPublicKey("k1", &rsa.PublicKey{N: oddModulus(bits), E: 65537}); err != nil {
			t.Errorf("NewPublicKey(%d bits) = %v", bits, err)
		}
	}
	// 2^64 + 65537 is 65537 in 64 bits.
	wrapped := fmt.Sprintf(`{"kty":"RSA","kid":"k1","n":%q,"e":%q}`, b64(k1.N.Bytes()), b64("\x01\x00\x00\x00\x00\x00\x01\x00\x01"))
	if keys, err := token.ParsePublicKeys([]byte(wrapped), ""); !errors.Is(err, token.ErrKey) {
		t.Errorf("ParsePublicKeys(e=2^64+65537) = %v, %v, want ErrKey", keys, err)
	}
}

// The attack: a key pair whose modulus is the square of a prime, so that a square
// root factors it.
func TestSquareModulus(t *testing.T) {
	t.Parallel()
	one, p := big.NewInt(1), testKeys().k1.Primes[0]
	n := new(big.Int).Mul(p, p)
	order := new(big.Int).Mul(p, new(big.Int).Sub(p, one))
	pair := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: n, E: 65537},
		D:         new(big.Int).ModInverse(big.NewInt(65537), order), Primes: []*big.Int{p, p},
	}
	if key, err := token.NewSigningKey("k1", pair); !errors.Is(err, token.ErrKey) || key != nil {
		t.Errorf("J31 NewSigningKey(n=p^2) = %v, %v, want ErrKey", key, err)
	}
}

// oddModulus returns a number that could be a modulus with this many bits.
func oddModulus(bits int) *big.Int {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	return n.Or(n, big.NewInt(0x10001))
}

// The attack: numbers that equal the signature modulo n, that are a signature of
// every message, or that are the signature of another token.
func TestSignatures(t *testing.T) {
	t.Parallel()
	key := testKeys().k1
	input := b64(goodHeader) + "." + b64(goodPayload)
	genuine := signature(key, input)
	one := big.NewInt(1)
	reversed := slices.Clone(genuine)
	slices.Reverse(reversed)
	var rows table
	for i, sig := range [][]byte{
		nil,
		{0},
		append([]byte{0}, genuine...), append(genuine[:256:256], 0), genuine[1:], genuine[:255], append(genuine[:256:256], genuine...),
		make([]byte, 512), append([]byte{1}, genuine...), []byte(strings.Repeat("\xff", 256)), reversed,
		signature(testKeys().stranger, input), signature(testKeys().k2, input),
		signature(key, b64(goodPayload)), signature(key, goodHeader+"."+goodPayload), signature(key, b64(goodHeader)+"."+b64(`{"sub":"free","exp":1800003600}`)),
	} {
		rows.add(token.ErrSignature, fmt.Sprintf("J32 row %d", i), input+"."+b64(sig))
	}
	for name, n := range map[string]*big.Int{
		"0": new(big.Int), "1": one, "n-1": new(big.Int).Sub(key.N, one), "n": key.N, "n+1": new(big.Int).Add(key.N, one),
		"n-s": new(big.Int).Sub(key.N, new(big.Int).SetBytes(genuine)),
	} {
		rows.add(token.ErrSignature, "J32 "+name, input+"."+b64(n.FillBytes(make([]byte, 256))))
	}
	refuseAll(t, rows)
}

// The attack: a second spelling of a signature. s+n equals s modulo n and can have
// as many bytes. A signature that starts with a zero byte is the same integer
// without it.
func TestSignaturesHaveOneEncoding(t *testing.T) {
	t.Parallel()
	key := testKeys().k1
	var sum, zero bool
	for i := 0; !sum || !zero; i++ {
		input := b64(goodHeader) + "." + b64(fmt.Sprintf(`{"sub":"demo","exp":1800003600,"i":%d}`, i))
		genuine := signature(key, input)
		more := new(big.Int).Add(new(big.Int).SetBytes(genuine), key.N)
		if !sum && more.BitLen() <= 2048 {
			sum = true
			accept(t, input+"."+b64(genuine))
			refuse(t, input+"."+b64(more.FillBytes(make([]byte, 256))), token.ErrSignature)
		}
		if !zero && genuine[0] == 0 {
			zero = true
			accept(t, input+"."+b64(genuine))
			refuse(t, input+"."+b64(genuine[1:]), token.ErrSignature)
		}
	}
}

// The attack: a flood of garbage. Refusing a token for its form must not cost an
// allocation.
func TestGarbageAllocatesNothing(t *testing.T) {
	good := forge(goodHeader, goodPayload)
	for name, compact := range map[string]string{
		"empty": "", "no dots": strings.Repeat("A", 4096), "dots": strings.Repeat(".", 4096), "too long": strings.Repeat("A.", 1<<19),
		"outside of the alphabet": good + "=", "four segments": good + ".AAAA",
	} {
		if n := testing.AllocsPerRun(100, func() { _, _ = token.Parse(compact) }); n != 0 {
			t.Errorf("Parse(%s) allocates %v times", name, n)
		}
	}
}
