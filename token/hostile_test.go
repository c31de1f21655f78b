package token_test

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// The rows J1, J2, … are the classes of attacks on JSON Web Tokens. A row's
// signature is genuine unless its name says otherwise, so that it is the form
// alone that the token is refused for.

var sentinels = []error{
	token.ErrMalformed, token.ErrAlgorithm, token.ErrKeyUnknown, token.ErrSignature,
	token.ErrExpired, token.ErrNotYetValid, token.ErrLifetime, token.ErrKey,
}

// refuse holds that a token is refused for exactly one reason, that nothing of
// it is handed out and that nothing of it gets into the error.
func refuse(t *testing.T, compact string, want error) {
	t.Helper()
	refuseWith(t, compact, testKeys().set, token.Policy{}, want)
}

func refuseWith(t *testing.T, compact string, keys token.Keys, policy token.Policy, want error) {
	t.Helper()
	claims, err := token.Verify(compact, keys, now, policy)
	for _, sentinel := range sentinels {
		if errors.Is(err, sentinel) != errors.Is(want, sentinel) {
			t.Fatalf("Verify(%s) = %v, want %v", describeToken(compact), err, want)
		}
	}
	if diff := cmp.Diff(token.Claims{}, claims); diff != "" {
		t.Errorf("Verify(%s) returned claims with an error (-want +got):\n%s", describeToken(compact), diff)
	}
	parsed, parseErr := token.Parse(compact)
	if ofForm := errors.Is(want, token.ErrMalformed) || errors.Is(want, token.ErrAlgorithm); ofForm != (parseErr != nil) {
		t.Errorf("Parse(%s) = %v, Verify = %v", describeToken(compact), parseErr, err)
	}
	if parseErr != nil {
		if !errors.Is(parseErr, want) {
			t.Errorf("Parse(%s) = %v, want %v", describeToken(compact), parseErr, want)
		}
		if diff := cmp.Diff(token.Claims{}, parsed.Unverified()); diff != "" {
			t.Errorf("Parse(%s) returned claims with an error (-want +got):\n%s", describeToken(compact), diff)
		}
	}
	if errors.Is(want, token.ErrSignature) {
		claims, err := parsed.Verify(keys.Lookup(parsed.Unverified().KeyID))
		if diff := cmp.Diff(token.Claims{}, claims); diff != "" || !errors.Is(err, want) {
			t.Errorf("Parsed.Verify(%s) = %v and claims (-want +got):\n%s", describeToken(compact), err, diff)
		}
	}
	for segment := range strings.SplitSeq(compact, ".") {
		decoded, _ := base64.RawURLEncoding.DecodeString(segment)
		for run := range windows(err.Error()) {
			if strings.Contains(segment, run) || bytes.Contains(decoded, []byte(run)) {
				t.Fatalf("the error of Verify(%s) contains %q of the token: %v", describeToken(compact), run, err)
			}
		}
	}
}

func accept(t *testing.T, compact string) {
	t.Helper()
	if _, err := token.Verify(compact, testKeys().set, now, token.Policy{}); err != nil {
		t.Fatalf("Verify(%s) = %v, want it accepted", describeToken(compact), err)
	}
}

type hostile struct {
	name, compact string
	want          error
}

func refuseAll(t *testing.T, table []hostile) {
	t.Helper()
	accept(t, forge(goodHeader, goodPayload)) // what all rows differ from
	for _, tc := range table {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			refuse(t, tc.compact, tc.want)
		})
	}
}

// The attack: the token itself tells the verifier to check no signature, or to
// check another kind of it than the key is for.
func TestTheTokenDoesNotChooseTheAlgorithm(t *testing.T) {
	t.Parallel()
	var table []hostile
	for _, alg := range []string{"none", "None", "nOnE", "NONE", ""} {
		table = append(table, hostile{
			fmt.Sprintf("J1 unsigned, alg %q", alg),
			b64(fmt.Sprintf(`{"alg":%q,"kid":"k1"}`, alg)) + "." + b64(goodPayload) + ".", token.ErrAlgorithm,
		})
	}
	table = append(table,
		hostile{"J1 unsigned, alg RS256", b64(goodHeader) + "." + b64(goodPayload) + ".", token.ErrSignature},
		hostile{"J1 unsigned, no alg", b64(`{}`) + "." + b64(goodPayload) + ".", token.ErrAlgorithm},
	)
	for name, secret := range publicSecrets() {
		for _, alg := range []string{"HS256", "RS256"} {
			want := token.ErrAlgorithm
			if alg == "RS256" {
				want = token.ErrSignature
			}
			input := b64(fmt.Sprintf(`{"alg":%q,"kid":"k1"}`, alg)) + "." + b64(goodPayload)
			mac := hmac.New(sha256.New, secret)
			mac.Write([]byte(input))
			table = append(table, hostile{
				fmt.Sprintf("J2 HMAC with the public key as secret, %s, alg %s", name, alg),
				input + "." + b64(mac.Sum(nil)), want,
			})
		}
	}
	for _, member := range []string{
		`"alg":"none",`, `"alg":"HS256",`, ``, `"alg":["RS256"],`, `"alg":null,`, `"alg":256,`, `"alg":{"RS256":1},`, `"alg":"",`,
		`"alg":"RS256 ",`, `"alg":"RS256\u0000",`, `"alg":"\u0052S256",`, `"ALG":"RS256",`, `"Alg":"RS256",`, `"alg":"EdDSA",`,
	} {
		table = append(table, hostile{
			fmt.Sprintf("J3 RS256 signature, header says %s", strings.TrimSuffix(member, ",")),
			forge(`{`+member+`"kid":"k1"}`, goodPayload), token.ErrAlgorithm,
		})
	}
	for _, alg := range []string{"rs256", "Rs256", "rS256", "RS-256"} {
		table = append(table, hostile{
			"J4 alg " + alg, forge(fmt.Sprintf(`{"alg":%q,"kid":"k1"}`, alg), goodPayload), token.ErrAlgorithm,
		})
	}
	refuseAll(t, append(table, otherAlgorithms()...))
}

// publicSecrets are the byte strings that a public key is commonly kept as, all
// of which an attacker knows.
func publicSecrets() map[string][]byte {
	key := &testKeys().k1.PublicKey
	pkix := must(x509.MarshalPKIXPublicKey(key))
	pkcs1 := x509.MarshalPKCS1PublicKey(key)
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix})
	return map[string][]byte{
		"PKIX PEM":                     text,
		"PKIX PEM, no final line feed": []byte(strings.TrimSpace(string(text))),
		"PKIX DER":                     pkix,
		"PKCS1 PEM":                    pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: pkcs1}),
		"PKCS1 DER":                    pkcs1,
		"modulus":                      key.N.Bytes(),
		"JWK":                          must(testKeys().set.Lookup("k1").JWK()),
		"JWKS":                         []byte(`{"keys":[` + string(must(testKeys().set.Lookup("k1").JWK())) + `]}`),
		"empty":                        nil,
	}
}

// otherAlgorithms are genuine signatures of the right key of the kinds that it
// is not for, each under its own name and under that of RS256.
func otherAlgorithms() (table []hostile) {
	key := testKeys().k1
	for _, alg := range []struct {
		name string
		sign func(input string) []byte
	}{
		{"RS384", func(input string) []byte {
			digest := sha512.Sum384([]byte(input))
			return must(rsa.SignPKCS1v15(nil, key, crypto.SHA384, digest[:]))
		}},
		{"RS512", func(input string) []byte {
			digest := sha512.Sum512([]byte(input))
			return must(rsa.SignPKCS1v15(nil, key, crypto.SHA512, digest[:]))
		}},
		{"PS256", func(input string) []byte {
			digest := sha256.Sum256([]byte(input))
			return must(rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))
		}},
		{"unprefixed SHA-256", func(input string) []byte {
			digest := sha256.Sum256([]byte(input))
			return must(rsa.SignPKCS1v15(nil, key, 0, digest[:]))
		}},
	} {
		named := b64(fmt.Sprintf(`{"alg":%q,"kid":"k1"}`, alg.name)) + "." + b64(goodPayload)
		posing := b64(goodHeader) + "." + b64(goodPayload)
		table = append(table,
			hostile{"J5 " + alg.name, named + "." + b64(alg.sign(named)), token.ErrAlgorithm},
			hostile{"J5 " + alg.name + " posing as RS256", posing + "." + b64(alg.sign(posing)), token.ErrSignature},
		)
	}
	return table
}

// The attack: the token brings its own key, or an address to fetch one from,
// which also turns the verifier into a means to reach internal servers.
func TestTheTokenBringsNoKey(t *testing.T) {
	t.Parallel()
	var requests atomic.Int64
	spy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) }))
	t.Cleanup(func() {
		spy.Close()
		if n := requests.Load(); n != 0 {
			t.Errorf("the verifier made %d requests to an address in a token", n)
		}
	})
	stranger := testKeys().stranger
	jwk := must(must(token.NewPublicKey("k1", &stranger.PublicKey)).JWK())
	chain := base64.StdEncoding.EncodeToString(certificate(stranger))
	var table []hostile
	for _, tc := range []struct{ name, member string }{
		{"J6 embedded jwk", `"jwk":` + string(jwk)},
		{"J7 jku", fmt.Sprintf(`"jku":%q`, spy.URL+"/k.json")},
		{"J7 x5u", fmt.Sprintf(`"x5u":%q`, spy.URL+"/k.pem")},
		{"J7 x5c", fmt.Sprintf(`"x5c":[%q]`, chain)},
		{"J7 x5t", `"x5t":"AAAA","x5t#S256":"AAAA"`},
		{"J7 iss, for discovery", fmt.Sprintf(`"iss":%q`, spy.URL)},
		{"J7 an address in typ", fmt.Sprintf(`"typ":%q`, spy.URL+"/k.json")},
	} {
		header := `{"alg":"RS256","kid":"k1",` + tc.member + `}`
		input := b64(header) + "." + b64(goodPayload)
		table = append(table,
			hostile{tc.name + ", signed by a stranger", input + "." + b64(signature(stranger, input)), token.ErrMalformed},
			hostile{tc.name + ", genuine signature", forge(header, goodPayload), token.ErrMalformed},
		)
	}
	by := func(header, payload string) string {
		input := b64(header) + "." + b64(payload)
		return input + "." + b64(signature(stranger, input))
	}
	table = append(table,
		hostile{"J6 embedded jwk instead of a kid", by(`{"alg":"RS256","jwk":`+string(jwk)+`}`, goodPayload), token.ErrMalformed},
		hostile{"J7 kid is an address", by(fmt.Sprintf(`{"alg":"RS256","kid":%q}`, spy.URL), goodPayload), token.ErrKeyUnknown},
		hostile{
			"J7 the claim iss is an address",
			by(`{"alg":"RS256","kid":"other"}`, fmt.Sprintf(`{"sub":"demo","exp":1800003600,"iss":%q}`, spy.URL)), token.ErrKeyUnknown,
		},
	)
	refuseAll(t, table)
}

// The attack: header members that change what is signed, or that other readers
// of the same header understand in another way.
func TestHeaderMembers(t *testing.T) {
	t.Parallel()
	raw := `{"sub":"demo","exp":1800003600,"x":"a/b.c"}`
	table := []hostile{
		{"J8 crit with an unknown extension", forge(`{"alg":"RS256","kid":"k1","crit":["x"],"x":1}`, goodPayload), token.ErrMalformed},
		{"J8 empty crit", forge(`{"alg":"RS256","kid":"k1","crit":[]}`, goodPayload), token.ErrMalformed},
		{"J8 crit names alg", forge(`{"alg":"RS256","kid":"k1","crit":["alg"]}`, goodPayload), token.ErrMalformed},
		{"J8 crit is not an array", forge(`{"alg":"RS256","kid":"k1","crit":"x"}`, goodPayload), token.ErrMalformed},
		{"J9 b64 false, raw payload", seal(b64(`{"alg":"RS256","kid":"k1","b64":false}`) + "." + raw), token.ErrMalformed},
		{"J9 b64 false and crit, raw payload", seal(b64(`{"alg":"RS256","kid":"k1","b64":false,"crit":["b64"]}`) + "." + raw), token.ErrMalformed},
		{"J9 b64 false, encoded payload", forge(`{"alg":"RS256","kid":"k1","b64":false,"crit":["b64"]}`, goodPayload), token.ErrMalformed},
		{"J9 b64 true", forge(`{"alg":"RS256","kid":"k1","b64":true}`, goodPayload), token.ErrMalformed},
		{"J10 alg twice", forge(`{"alg":"none","alg":"RS256","kid":"k1"}`, goodPayload), token.ErrMalformed},
		{"J10 alg twice, the other order", forge(`{"alg":"RS256","alg":"none","kid":"k1"}`, goodPayload), token.ErrMalformed},
		{"J10 kid twice", forge(`{"alg":"RS256","kid":"evil","kid":"k1"}`, goodPayload), token.ErrMalformed},
		{"J10 kid twice, the same", forge(`{"alg":"RS256","kid":"k1","kid":"k1"}`, goodPayload), token.ErrMalformed},
		{"J10 kid twice, one behind an escape", forge(`{"alg":"RS256","k\u0069d":"evil","kid":"k1"}`, goodPayload), token.ErrMalformed},
		{"J12 another typ", forge(`{"alg":"RS256","kid":"k1","typ":"secevent+jwt"}`, goodPayload), token.ErrMalformed},
		{"J12 typ in lower case", forge(`{"alg":"RS256","kid":"k1","typ":"jwt"}`, goodPayload), token.ErrMalformed},
		{"J12 escaped typ", forge(`{"alg":"RS256","kid":"k1","typ":"J\u0057T"}`, goodPayload), token.ErrMalformed},
		{"J12 empty typ", forge(`{"alg":"RS256","kid":"k1","typ":""}`, goodPayload), token.ErrMalformed},
		{"J12 typ is a number", forge(`{"alg":"RS256","kid":"k1","typ":1}`, goodPayload), token.ErrMalformed},
		{"J12 typ is null", forge(`{"alg":"RS256","kid":"k1","typ":null}`, goodPayload), token.ErrMalformed},
		{"J12 cty", forge(`{"alg":"RS256","kid":"k1","cty":"JWT"}`, goodPayload), token.ErrMalformed},
		{"J12 zip", forge(`{"alg":"RS256","kid":"k1","zip":"DEF"}`, goodPayload), token.ErrMalformed},
	}
	for name, header := range map[string]string{
		"empty": "", "white space first": " " + goodHeader, "white space behind": goodHeader + "\n", "byte order mark": "\ufeff" + goodHeader, "array": `[` + goodHeader + `]`,
		"string": `"RS256"`, "null": `null`, "two objects": goodHeader + goodHeader, "open": goodHeader[:len(goodHeader)-1],
		"NUL behind": goodHeader + "\x00", "trailing comma": `{"alg":"RS256","kid":"k1",}`, "not UTF-8": `{"alg":"RS256","kid":"k` + "\xff" + `"}`,
		"lone surrogate": `{"alg":"RS256","kid":"\ud800"}`, "member in other case": `{"alg":"RS256","KID":"k1"}`,
	} {
		table = append(table, hostile{"header is not one strict object: " + name, forge(header, goodPayload), token.ErrMalformed})
	}
	refuseAll(t, table)
}

// lookups records what a verifier looks for.
type lookups struct {
	token.Keys
	ids []string
}

func (l *lookups) Lookup(keyID string) *token.PublicKey {
	l.ids = append(l.ids, keyID)
	return l.Keys.Lookup(keyID)
}

// The attack: a key id that somebody reads as a path, as a pattern or as SQL,
// or that is almost that of another key. It is looked up as it is, once.
func TestKeyIDs(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, kid string // as it stands in the JSON
		want      error
	}{
		{"J11 kid empty", `""`, token.ErrMalformed},
		{"J11 kid number", `1`, token.ErrMalformed},
		{"J11 kid null", `null`, token.ErrMalformed},
		{"J11 kid array", `["k1"]`, token.ErrMalformed},
		{"J11 kid object", `{"k1":1}`, token.ErrMalformed},
		{"J11 kid true", `true`, token.ErrMalformed},
		{"J11 kid of 1 MiB", `"` + strings.Repeat("k", 1<<20) + `"`, token.ErrMalformed},
		{"J11 kid of 4 KiB", `"` + strings.Repeat("k", 4<<10) + `"`, token.ErrKeyUnknown},
		{"J11 kid is a path", `"../../etc/passwd"`, token.ErrKeyUnknown},
		{"J11 kid is a path to the key", `"./k1"`, token.ErrKeyUnknown},
		{"J11 kid is the name of the key's file", `"k1.jwks.json"`, token.ErrKeyUnknown},
		{"J11 kid is the beginning of the key's", `"k"`, token.ErrKeyUnknown},
		{"J11 kid with an escaped NUL", `"k1\u0000"`, token.ErrKeyUnknown},
		{"J11 kid is SQL", `"k1 OR 1=1"`, token.ErrKeyUnknown},
		{"J11 kid is SQL in quotes", `"k1' OR '1'='1"`, token.ErrKeyUnknown},
		{"J11 kid is a pattern", `"*"`, token.ErrKeyUnknown},
		{"J11 kid with a space in front", `" k1"`, token.ErrKeyUnknown},
		{"J11 kid in other case", `"K1"`, token.ErrKeyUnknown},
		{"J11 kid with a space behind", `"k1 "`, token.ErrKeyUnknown},
		{"J11 kid with a line feed behind", `"k1\n"`, token.ErrKeyUnknown},
		{"J11 kid with a zero-width space", `"k` + "\u200b" + `1"`, token.ErrKeyUnknown},
		{"J11 kid in full-width characters", `"ｋ１"`, token.ErrKeyUnknown},
		{"J11 kid composed", `"ké"`, token.ErrKeyUnknown},
		{"J11 kid decomposed", `"ke` + "\u0301" + `"`, token.ErrKeyUnknown},
		{"J11 kid of a revoked key", `"revoked"`, token.ErrKeyUnknown},
		{"J11 kid of another trusted key", `"k2"`, token.ErrSignature},
	} {
		for where, compact := range map[string]string{
			"header":  forge(`{"alg":"RS256","kid":`+tc.kid+`}`, goodPayload),
			"payload": forge(`{"alg":"RS256"}`, `{"sub":"demo","exp":1800003600,"kid":`+tc.kid+`}`),
			"both":    forge(`{"alg":"RS256","kid":`+tc.kid+`}`, `{"sub":"demo","exp":1800003600,"kid":`+tc.kid+`}`),
		} {
			want := tc.want
			if len(compact) > token.MaxLength {
				want = token.ErrMalformed
			}
			t.Run(tc.name+", in "+where, func(t *testing.T) {
				t.Parallel()
				refuse(t, compact, want)
				spy := &lookups{Keys: testKeys().set}
				_, _ = token.Verify(compact, spy, now, token.Policy{})
				var id string
				if !errors.Is(want, token.ErrMalformed) {
					_ = json.Unmarshal([]byte(tc.kid), &id)
					if diff := cmp.Diff([]string{id}, spy.ids); diff != "" {
						t.Errorf("looked up (-want +got):\n%s", diff)
					}
				} else if len(spy.ids) != 0 {
					t.Errorf("looked up %.80q for a malformed token", spy.ids)
				}
			})
		}
	}
	// A store that has something under the empty name is not even asked.
	nameless := &lookups{Keys: testKeys().set}
	refuseWith(t, forge(`{"alg":"RS256"}`, goodPayload), nameless, token.Policy{}, token.ErrKeyUnknown)
	if len(nameless.ids) != 0 {
		t.Errorf("looked up %q for a token without kid", nameless.ids)
	}
	input := b64(`{"alg":"RS256","kid":"revoked"}`) + "." + b64(goodPayload)
	refuseAll(t, []hostile{
		{"J11 no kid at all", forge(`{"alg":"RS256"}`, goodPayload), token.ErrKeyUnknown},
		{"J11 signed by the revoked key itself", input + "." + b64(signature(testKeys().stranger, input)), token.ErrKeyUnknown},
		{"J11 kids differ, the header's is right", forge(goodHeader, `{"sub":"demo","exp":1800003600,"kid":"k2"}`), token.ErrMalformed},
		{"J11 kids differ, the payload's is right", forge(`{"alg":"RS256","kid":"k2"}`, `{"sub":"demo","exp":1800003600,"kid":"k1"}`), token.ErrMalformed},
		{"J11 kid in the payload empty", forge(goodHeader, `{"sub":"demo","exp":1800003600,"kid":""}`), token.ErrMalformed},
		{"J11 kid in the header empty", forge(`{"alg":"RS256","kid":""}`, `{"sub":"demo","exp":1800003600,"kid":"k1"}`), token.ErrMalformed},
	})
}

// The attack: one signature under many spellings, each of which a cache or a
// revocation list takes for another token.
func TestOneSpelling(t *testing.T) {
	t.Parallel()
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	good := forge(goodHeader, goodPayload)
	var table []hostile
	// 2048 bits take 342 characters with 4 bits to spare.
	last := strings.IndexByte(alphabet, good[len(good)-1])
	for bits := 1; bits < 16; bits++ {
		table = append(table, hostile{
			fmt.Sprintf("J13 last signature character with other unused bits %04b", bits),
			good[:len(good)-1] + alphabet[last^bits:last^bits+1], token.ErrMalformed,
		})
	}
	// Two bits to spare in the header and four in the payload, and both signed.
	header, payload := b64(goodHeader), b64(goodPayload)
	table = append(table,
		hostile{"J13 last header character with other unused bits", seal(nextCharacter(alphabet, header) + "." + payload), token.ErrMalformed},
		hostile{"J13 last payload character with other unused bits", seal(header + "." + nextCharacter(alphabet, payload)), token.ErrMalformed},
		hostile{"J13 a last group of one character", good[:len(good)-1], token.ErrMalformed},
	)
	for _, padding := range []string{"=", "==", "%3D", "%3D%3D"} {
		table = append(table,
			hostile{"J14 header padded with " + padding, seal(header + padding + "." + payload), token.ErrMalformed},
			hostile{"J14 payload padded with " + padding, seal(header + "." + payload + padding), token.ErrMalformed},
			hostile{"J14 signature padded with " + padding, good + padding, token.ErrMalformed},
		)
	}
	// "~~~" and "???" encode to characters in which the two alphabets differ.
	fancy := b64(`{"sub":"demo","exp":1800003600,"x":"~~~???~~?>>>"}`)
	dashedPayload, dashedSignature := dashed(header)
	for name, replace := range map[string]*strings.Replacer{
		"bytes": strings.NewReplacer("-", "+", "_", "/"), "percent-encoded": strings.NewReplacer("-", "%2B", "_", "%2F"),
		"its own percent-encoded": strings.NewReplacer("-", "%2D", "_", "%5F"),
	} {
		table = append(table,
			hostile{"J15 payload in the other alphabet, " + name, seal(header + "." + replace.Replace(fancy)), token.ErrMalformed},
			hostile{"J15 signature in the other alphabet, " + name, header + "." + dashedPayload + "." + replace.Replace(dashedSignature), token.ErrMalformed},
		)
	}
	for name, space := range map[string]string{
		"CR": "\r", "LF": "\n", "CRLF": "\r\n", "TAB": "\t", "space": " ", "%0A": "%0A", "%20": "%20", "%0D%0A": "%0D%0A", "NUL": "\x00",
		"no-break space": "\u00a0", "byte order mark": "\ufeff", "vertical tab": "\v",
	} {
		for at, i := range map[string]int{
			"front": 0, "header": 4, "end of header": len(header), "start of payload": len(header) + 1, "payload": len(header) + 5,
			"signature": len(good) - 4, "end": len(good),
		} {
			table = append(table, hostile{"J16 " + name + " in " + at, good[:i] + space + good[i:], token.ErrMalformed})
		}
		table = append(table,
			hostile{"J16 signed " + name + " in the header", seal(header[:4] + space + header[4:] + "." + payload), token.ErrMalformed},
			hostile{"J16 signed " + name + " in the payload", seal(header + "." + payload[:4] + space + payload[4:]), token.ErrMalformed},
		)
	}
	refuseAll(t, table)
}

// nextCharacter changes an unused bit of a segment's last character.
func nextCharacter(alphabet, segment string) string {
	if len(segment)%4 == 0 {
		panic("a segment without unused bits")
	}
	last := strings.IndexByte(alphabet, segment[len(segment)-1])
	return segment[:len(segment)-1] + alphabet[last^1:last^1+1]
}

// dashed returns a payload whose signature has a character in which the two
// alphabets differ, as almost all have.
func dashed(header string) (payload, sig string) {
	for i := 0; !strings.ContainsAny(sig, "-_"); i++ {
		payload = b64(fmt.Sprintf(`{"sub":"demo","exp":1800003600,"i":%d}`, i))
		sig = b64(signature(testKeys().k1, header+"."+payload))
	}
	return payload, sig
}

// The attack: another serialization, or more parts than three, of which two
// readers take different ones.
func TestSegments(t *testing.T) {
	t.Parallel()
	good := forge(goodHeader, goodPayload)
	header, payload, sig := b64(goodHeader), b64(goodPayload), good[strings.LastIndexByte(good, '.')+1:]
	for name, compact := range map[string]string{
		"J17 empty":                      "",
		"J17 one segment":                header,
		"J17 two segments":               header + "." + payload,
		"J17 dots alone":                 "..",
		"J17 three dots":                 "...",
		"J17 many dots":                  strings.Repeat(".", token.MaxLength),
		"J17 no header":                  "." + payload + "." + sig,
		"J17 no payload":                 seal(header + "."),
		"J17 four segments":              good + "." + sig,
		"J17 four segments, one empty":   header + ".." + payload + "." + sig,
		"J17 trailing dot":               good + ".",
		"J17 leading dot":                "." + good,
		"J17 five segments":              b64(`{"alg":"RSA-OAEP","enc":"A256GCM"}`) + ".a2V5.aXY.dGV4dA.dGFn",
		"J17 five segments, signed":      good + "." + payload + "." + sig,
		"J17 encoded dots":               strings.ReplaceAll(good, ".", "%2E"),
		"J17 scheme in front":            "Bearer " + good,
		"J18 flattened":                  fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, header, payload, sig),
		"J18 general, the second signed": fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":"AAAA"},{"protected":%q,"signature":%q}]}`, payload, header, header, sig),
		"J18 flattened, with two dots":   fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q,"x":".."}`, header, payload, sig),
		"J18 flattened, percent-encoded": fmt.Sprintf(`%%7B%%22protected%%22:%%22%s%%22,%%22payload%%22:%%22%s%%22,%%22signature%%22:%%22%s%%22%%7D`, header, payload, sig),
		"J18 flattened, as a segment":    b64(fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, header, payload, sig)) + "." + payload + "." + sig,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := token.ErrMalformed
			if name == "J18 flattened, as a segment" {
				want = token.ErrAlgorithm
			}
			refuse(t, compact, want)
		})
	}
}

// The attack: a payload that the signer's library and the verifier's read in
// two ways, so that a back end that lets users choose a claim signs more than it
// has checked.
func TestPayloadForm(t *testing.T) {
	t.Parallel()
	nested := func(depth int) string {
		return `{"sub":"demo","exp":1800003600,"x":` + strings.Repeat("[", depth) + strings.Repeat("]", depth) + `}`
	}
	table := []hostile{
		{"J19 the payload is a token", forge(goodHeader, forge(goodHeader, goodPayload)), token.ErrMalformed},
		{"J19 the payload is a token in quotes", forge(goodHeader, `"`+forge(goodHeader, goodPayload)+`"`), token.ErrMalformed},
		{"J20 a second object", forge(goodHeader, goodPayload+`{"sub":"vid2"}`), token.ErrMalformed},
		{"J20 a second object on another line", forge(goodHeader, goodPayload+"\n"+`{"sub":"vid2"}`), token.ErrMalformed},
		{"J20 garbage behind", forge(goodHeader, goodPayload+"x"), token.ErrMalformed},
		{"J20 NUL behind", forge(goodHeader, goodPayload+"\x00"), token.ErrMalformed},
		{"J20 a closing brace behind", forge(goodHeader, goodPayload+"}"), token.ErrMalformed},
		{"J21 sub twice", forge(goodHeader, `{"sub":"demo","exp":1800003600,"sub":"vid2"}`), token.ErrMalformed},
		{"J21 sub twice, one behind an escape", forge(goodHeader, `{"sub":"demo","exp":1800003600,"\u0073ub":"vid2"}`), token.ErrMalformed},
		{"J21 exp twice", forge(goodHeader, `{"sub":"demo","exp":1,"exp":1800003600}`), token.ErrMalformed},
		{"J21 accessRules twice", forge(goodHeader, `{"sub":"demo","exp":1800003600,"accessRules":[{"type":"any","action":"block"}],"accessRules":[]}`), token.ErrMalformed},
		{"J21 kid twice", forge(goodHeader, `{"sub":"demo","exp":1800003600,"kid":"k1","kid":"k1"}`), token.ErrMalformed},
		{"J21 a member of another claim twice", forge(goodHeader, `{"sub":"demo","exp":1800003600,"x":{"a":1,"a":2}}`), token.ErrMalformed},
		{"J21 other claim twice", forge(goodHeader, `{"sub":"demo","exp":1800003600,"x":1,"x":1}`), token.ErrMalformed},
		{"J21 a rule's action twice", forge(goodHeader, `{"sub":"demo","exp":1800003600,"accessRules":[{"type":"any","action":"block","action":"allow"}]}`), token.ErrMalformed},
		{"J22 Exp", forge(goodHeader, `{"sub":"demo","Exp":1800003600}`), token.ErrMalformed},
		{"J22 EXP", forge(goodHeader, `{"sub":"demo","EXP":1800003600}`), token.ErrMalformed},
		{"J22 SUB", forge(goodHeader, `{"SUB":"demo","exp":1800003600}`), token.ErrMalformed},
		{"J22 sub with a long s", forge(goodHeader, `{"ſub":"demo","exp":1800003600}`), token.ErrMalformed},
		{"J24 one level too deep", forge(goodHeader, nested(16)), token.ErrMalformed},
		{"J24 as deep as the length allows", forge(goodHeader, nested(2800)), token.ErrMalformed},
		{"J24 9990 levels", forge(goodHeader, nested(9990)), token.ErrMalformed},
		{"J24 20000 levels", forge(goodHeader, nested(20000)), token.ErrMalformed},
		{"J24 objects", forge(goodHeader, `{"sub":"demo","exp":1800003600,"x":`+strings.Repeat(`{"a":`, 16)+`1`+strings.Repeat(`}`, 16)+`}`), token.ErrMalformed},
		{"J24 open levels", forge(goodHeader, `{"x":`+strings.Repeat("[", 5000)), token.ErrMalformed},
	}
	for name, payload := range map[string]string{
		"empty": "", "white space first": " " + goodPayload, "byte order mark": "\ufeff" + goodPayload, "array": `[` + goodPayload + `]`,
		"null": `null`, "number": `1`, "open": goodPayload[:len(goodPayload)-1], "trailing comma": `{"sub":"demo","exp":1800003600,}`,
		"comment": `{"sub":"demo","exp":1800003600/**/}`, "single quotes": `{'sub':'demo','exp':1800003600}`,
		"invalid UTF-8 in another claim": `{"sub":"demo","exp":1800003600,"x":"` + "\xff" + `"}`,
		"overlong UTF-8":                 `{"sub":"demo","exp":1800003600,"x":"` + "\xc0\xaf" + `"}`,
		"UTF-16":                         "{\x00\"\x00s\x00u\x00b\x00\"\x00:\x001\x00}\x00",
		"lone surrogate":                 `{"sub":"demo","exp":1800003600,"x":"\udc00"}`,
		"leading zero in another claim":  `{"sub":"demo","exp":1800003600,"x":01}`,
		"empty object":                   `{}`,
	} {
		table = append(table, hostile{"payload is not one strict object: " + name, forge(goodHeader, payload), token.ErrMalformed})
	}
	for _, value := range []string{`"true"`, `1`, `0`, `null`, `[]`, `{}`, `""`} {
		table = append(table, hostile{
			"downloadable is " + value, forge(goodHeader, `{"sub":"demo","exp":1800003600,"downloadable":`+value+`}`), token.ErrMalformed,
		})
	}
	refuseAll(t, table)
}

// The attack: a subject that is a path to another video, or that two readers
// normalise to the id of another one. The signed bytes themselves must be an id.
func TestSubjects(t *testing.T) {
	t.Parallel()
	table := []hostile{
		{"J23 no sub", forge(goodHeader, `{"exp":1800003600}`), token.ErrMalformed},
		{"J23 the token printed in Cloudflare's guide has no sub", cloudflareSample, token.ErrMalformed},
	}
	for name, sub := range map[string]string{
		"null": `null`, "number": `1`, "true": `true`, "array": `["demo"]`, "object": `{"demo":1}`, "empty": `""`,
		"parent folder": `"../vid2"`, "path": `"vid2/../vid1"`, "absolute path": `"/etc/passwd"`, "encoded slash": `"vid%2f"`, "dot": `"."`,
		"dots": `".."`, "backslash": `"a\\b"`, "escaped slash": `"a\/b"`, "query": `"demo?x"`, "fragment": `"demo#x"`, "semicolon": `"demo;x"`,
		"space behind": `"demo "`, "line feed behind": `"demo\n"`, "NUL behind": `"demo\u0000"`, "escaped letter": `"\u0064emo"`,
		"invalid UTF-8": `"vid` + "\xff" + `"`, "other invalid UTF-8": `"vid` + "\xfe" + `"`, "replacement character": `"vid` + "\ufffd" + `"`,
		"lone surrogate": `"vid\ud800"`, "65 characters": `"` + strings.Repeat("a", 65) + `"`, "4 kB": `"` + strings.Repeat("a", 4000) + `"`,
		"10 kB": `"` + strings.Repeat("a", 10000) + `"`, "right-to-left override": `"` + "\u202e" + `demo"`, "homoglyph": `"dеmo"`,
		"dot within": `"de.mo"`, "line feed, raw": "\"demo\n\"", "placeholder": `"{video}"`, "placeholder of Caddy": `"{env.HOME}"`,
		"full-width": `"ｄemo"`, "a token": `"` + forge(goodHeader, goodPayload) + `"`,
	} {
		table = append(table, hostile{"J23 sub " + name, forge(goodHeader, `{"sub":`+sub+`,"exp":1800003600}`), token.ErrMalformed})
	}
	refuseAll(t, table)
}

// The token that the guide "Secure your stream" shows is one of an endpoint that
// takes the video id from its own path: it opens nothing here.
const cloudflareSample = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImNkYzkzNTk4MmY4MDc1ZjJlZjk2MTA2ZDg1ZmNkODM4In0." +
	"eyJraWQiOiJjZGM5MzU5ODJmODA3NWYyZWY5NjEwNmQ4NWZjZDgzOCIsImV4cCI6IjE2MjE4ODk2NTciLCJuYmYiOiIxNjIxODgyNDU3In0." +
	"iHGMvwOh2-SuqUG7kp2GeLXyKvMavP-I2rYCni9odNwms7imW429bM2tKs3G9INms8gSc7fzm8hNEYWOhGHWRBaaCs3U9H4DRWaFOvn0sJWLBitGuF_YaZM5" +
	"O6fqJPTAwhgFKdikyk9zVzHrIJ0PfBL0NsTgwDxLkJjEAEULQJpiQU1DNm0w5ctasdbw77YtDwdZ01g924Dm6jIsWolW0Ic0AevCLyVdg501Ki9hSF7kYST0" +
	"egcll47jmoMMni7ujQCJI1XEAOas32DdjnMvU8vXrYbaHk1m1oXlm319rDYghOHed9kr293KM7ivtZNlhYceSzOpyAmqNFS7mearyQ"

// The attack: a token that lasts for ever, because its date is not there, is not
// a date, wraps around or is in another unit than the reader's.
func TestDates(t *testing.T) {
	t.Parallel()
	table := []hostile{{"J25 no exp", forge(goodHeader, `{"sub":"demo"}`), token.ErrMalformed}}
	for _, tc := range []struct {
		row, value string
		want       error
	}{
		{"J26", `0`, token.ErrExpired},
		{"J26", `"0"`, token.ErrExpired},
		{"J26", `1`, token.ErrExpired},
		{"J26", `"000000000000000000000001"`, token.ErrExpired},
		{"J26", `0.5`, token.ErrMalformed},
		{"J26", `"0001-01-01T00:00:00Z"`, token.ErrMalformed},
		{"J27", `"2999-01-01T00:00:00Z"`, token.ErrMalformed},
		{"J27", `1800003600.9`, token.ErrMalformed},
		{"J27", `1800003600.0`, token.ErrMalformed},
		{"J27", `1800003600e0`, token.ErrMalformed},
		{"J27", `18000036E2`, token.ErrMalformed},
		{"J27", `"1800003600.9"`, token.ErrMalformed},
		{"J27", `"1800003600e0"`, token.ErrMalformed},
		{"J27", `"+1800003600"`, token.ErrMalformed},
		{"J27", `" 1800003600"`, token.ErrMalformed},
		{"J27", `"1800003600 "`, token.ErrMalformed},
		{"J27", `"0x6b49d200"`, token.ErrMalformed},
		{"J27", `"1_800_003_600"`, token.ErrMalformed},
		{"J27", `"180000360\u0030"`, token.ErrMalformed},
		{"J27", `"１８０００"`, token.ErrMalformed},
		{"J27", `01800003600`, token.ErrMalformed},
		{"J27", `+1800003600`, token.ErrMalformed},
		{"J28", `1800003600000`, token.ErrLifetime},
		{"J28", `"1800003600000"`, token.ErrLifetime},
		{"J28", `9.2e18`, token.ErrMalformed},
		{"J28", `9200000000000000000`, token.ErrMalformed},
		{"J28", `253402300800`, token.ErrLifetime},
		{"J28", `"253402300800"`, token.ErrLifetime},
		{"J28", `9007199254740992`, token.ErrLifetime},
		{"J28", `9007199254740993`, token.ErrMalformed},
		{"J29", `-1`, token.ErrMalformed},
		{"J29", `-0`, token.ErrMalformed},
		{"J29", `"-1"`, token.ErrMalformed},
		{"J29", `1e19`, token.ErrMalformed},
		{"J29", `1e400`, token.ErrMalformed},
		{"J29", `9223372036854775807`, token.ErrMalformed},
		{"J29", `9223372036854775808`, token.ErrMalformed},
		{"J29", `18446744073709551616`, token.ErrMalformed},
		{"J29", `18446744075509555216`, token.ErrMalformed}, // 2^64 more than a good date
		{"J29", `"18446744075509555216"`, token.ErrMalformed},
		{"J29", strings.Repeat("9", 1000), token.ErrMalformed},
		{"J29", `null`, token.ErrMalformed},
		{"J29", `true`, token.ErrMalformed},
		{"J29", `[]`, token.ErrMalformed},
		{"J29", `[1800003600]`, token.ErrMalformed},
		{"J29", `{}`, token.ErrMalformed},
		{"J29", `""`, token.ErrMalformed},
		{"J29", `"` + strings.Repeat("9", 41) + `"`, token.ErrMalformed},
		{"J29", `"tomorrow"`, token.ErrMalformed},
		{"J29", `NaN`, token.ErrMalformed},
		{"J29", `Infinity`, token.ErrMalformed},
	} {
		name := fmt.Sprintf("%s exp %.40s", tc.row, tc.value)
		table = append(table, hostile{name, forge(goodHeader, `{"sub":"demo","exp":`+tc.value+`}`), tc.want})
		if errors.Is(tc.want, token.ErrMalformed) {
			name = fmt.Sprintf("%s nbf %.40s", tc.row, tc.value)
			table = append(table, hostile{name, forge(goodHeader, `{"sub":"demo","exp":1800003600,"nbf":`+tc.value+`}`), tc.want})
		}
	}
	refuseAll(t, table)
}

// The attack: a token used a moment before or after its time. Each date is
// tried at the second at which the answer changes, and around it.
func TestDatesAtTheirBoundaries(t *testing.T) {
	t.Parallel()
	const none = -1 << 40
	for _, tc := range []struct {
		name     string
		exp, nbf int64 // seconds from now
		policy   token.Policy
		want     error
	}{
		{"J30 exp is now", 0, none, token.Policy{}, token.ErrExpired},
		{"J30 exp was a second ago", -1, none, token.Policy{}, token.ErrExpired},
		{"J30 exp is in a second", 1, none, token.Policy{}, nil},
		{"J30 leeway does not prolong exp", 0, none, token.Policy{Leeway: time.Minute}, token.ErrExpired},
		{"J30 nbf is now", 10, 0, token.Policy{}, nil},
		{"J30 nbf was a second ago", 10, -1, token.Policy{}, nil},
		{"J30 nbf is in a second", 10, 1, token.Policy{}, token.ErrNotYetValid},
		{"J30 nbf is at the leeway", 10, 5, token.Policy{Leeway: 5 * time.Second}, nil},
		{"J30 nbf is a second behind the leeway", 10, 6, token.Policy{Leeway: 5 * time.Second}, token.ErrNotYetValid},
		{"J30 nbf after exp", 10, 20, token.Policy{}, token.ErrNotYetValid},
		{"J30 nbf after exp, which is over", 0, 20, token.Policy{}, token.ErrExpired},
		{"J30 nbf after exp within the leeway", 10, 20, token.Policy{Leeway: time.Minute}, nil},
		{"J30 exp is at the maximum lifetime", 3600, none, token.Policy{MaxLifetime: time.Hour}, nil},
		{"J30 exp is a second behind the maximum lifetime", 3601, none, token.Policy{MaxLifetime: time.Hour}, token.ErrLifetime},
		{"J30 leeway does not prolong the maximum lifetime", 3601, none, token.Policy{MaxLifetime: time.Hour, Leeway: time.Minute}, token.ErrLifetime},
		{"J30 not yet valid and too long", 3601, 1, token.Policy{MaxLifetime: time.Hour}, token.ErrNotYetValid},
		{"J30 exp in the year 9999", 253402300799 - 1800000000, none, token.Policy{}, nil},
		{"J28 exp in the year 9999 against a day", 253402300799 - 1800000000, none, token.Policy{MaxLifetime: 24 * time.Hour}, token.ErrLifetime},
	} {
		for kind, format := range map[string]string{"number": `"%s":%d`, "string": `"%s":"%d"`} {
			t.Run(tc.name+", "+kind, func(t *testing.T) {
				t.Parallel()
				payload := `{"sub":"demo",` + fmt.Sprintf(format, "exp", now.Unix()+tc.exp)
				if tc.nbf != none {
					payload += "," + fmt.Sprintf(format, "nbf", now.Unix()+tc.nbf)
				}
				compact := forge(goodHeader, payload+`}`)
				if tc.want != nil {
					refuseWith(t, compact, testKeys().set, tc.policy, tc.want)
					return
				}
				claims, err := token.Verify(compact, testKeys().set, now, tc.policy)
				if err != nil || claims.VideoID != "demo" {
					t.Errorf("Verify(%s}, %+v) = %+v, %v, want it accepted", payload, tc.policy, claims, err)
				}
			})
		}
	}
	// `iat` says nothing about when a token may be used.
	accept(t, forge(goodHeader, `{"sub":"demo","exp":1800003600,"iat":1800000600}`))
}

// The attack: a stranger's tokens, with which he learns from the answers what
// time it is for the verifier and which policy it has. The signature comes first.
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
	for _, tc := range []struct {
		name string
		key  *rsa.PublicKey
	}{
		{"J31 512 bits", &rsa.PublicKey{N: oddModulus(512), E: 65537}},
		{"J31 1024 bits", &rsa.PublicKey{N: oddModulus(1024), E: 65537}},
		{"J31 2047 bits", &rsa.PublicKey{N: oddModulus(2047), E: 65537}},
		{"J31 4097 bits", &rsa.PublicKey{N: oddModulus(4097), E: 65537}},
		{"J31 8192 bits", &rsa.PublicKey{N: oddModulus(8192), E: 65537}},
		{"J31 16384 bits", &rsa.PublicKey{N: oddModulus(16384), E: 65537}},
		{"J31 e=1", &rsa.PublicKey{N: k1.N, E: 1}},
		{"J31 e=2", &rsa.PublicKey{N: k1.N, E: 2}},
		{"J31 e=3", &rsa.PublicKey{N: k1.N, E: 3}},
		{"J31 e=65539", &rsa.PublicKey{N: k1.N, E: 65539}},
		{"J31 e=2^31-1", &rsa.PublicKey{N: k1.N, E: 1<<31 - 1}},
		{"J31 even modulus", &rsa.PublicKey{N: new(big.Int).Add(k1.N, big.NewInt(1)), E: 65537}},
		{"J31 modulus 0", &rsa.PublicKey{N: new(big.Int), E: 65537}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if key, err := token.NewPublicKey("k1", tc.key); !errors.Is(err, token.ErrKey) || key != nil {
				t.Errorf("NewPublicKey = %v, %v, want ErrKey", key, err)
			}
			jwk := publicJWK("k1", tc.key)
			if keys, err := token.ParsePublicKeys(jwk, ""); !errors.Is(err, token.ErrKey) || keys != nil {
				t.Errorf("ParsePublicKeys(jwk) = %v, %v, want ErrKey", keys, err)
			}
			der := pemText("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(tc.key))
			if keys, err := token.ParsePublicKeys(der, "k1"); !errors.Is(err, token.ErrKey) || keys != nil {
				t.Errorf("ParsePublicKeys(pem) = %v, %v, want ErrKey", keys, err)
			}
			set, skipped, err := token.ParseJWKS([]byte(`{"keys":[` + string(jwk) + `]}`))
			if err != nil || len(set.IDs()) != 0 || len(skipped) != 1 {
				t.Errorf("ParseJWKS = %v, %v, %v, want the key skipped", set.IDs(), skipped, err)
			}
		})
	}
	for name, key := range map[string]*rsa.PublicKey{
		"2048 bits": {N: oddModulus(2048), E: 65537}, "4096 bits": {N: oddModulus(4096), E: 65537},
	} {
		if _, err := token.NewPublicKey("k1", key); err != nil {
			t.Errorf("NewPublicKey(%s) = %v", name, err)
		}
	}
	// 2^64 + 65537 is 65537 to whoever reads it into 64 bits.
	wrapped := fmt.Sprintf(`{"kty":"RSA","kid":"k1","n":%q,"e":%q}`, b64(k1.N.Bytes()), b64("\x01\x00\x00\x00\x00\x00\x01\x00\x01"))
	if keys, err := token.ParsePublicKeys([]byte(wrapped), ""); !errors.Is(err, token.ErrKey) {
		t.Errorf("ParsePublicKeys(e=2^64+65537) = %v, %v, want ErrKey", keys, err)
	}
}

// The attack: a key pair whose modulus is the square of a prime, which a square
// root factors.
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

// oddModulus is a number that looks like a modulus of so many bits.
func oddModulus(bits int) *big.Int {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	return n.Or(n, big.NewInt(0x10001))
}

// The attack: numbers that are the same signature modulo n, or that are one for
// every message, or another token's.
func TestSignatures(t *testing.T) {
	t.Parallel()
	key := testKeys().k1
	input := b64(goodHeader) + "." + b64(goodPayload)
	genuine := signature(key, input)
	with := func(sig []byte) string { return input + "." + b64(sig) }
	number := func(n *big.Int) string { return with(n.FillBytes(make([]byte, 256))) }
	one := big.NewInt(1)
	reversed := slices.Clone(genuine)
	slices.Reverse(reversed)
	table := []hostile{
		{"J32 empty", with(nil), token.ErrSignature},
		{"J32 one byte", with([]byte{0}), token.ErrSignature},
		{"J32 zero byte in front", with(append([]byte{0}, genuine...)), token.ErrSignature},
		{"J32 zero byte behind", with(append(genuine[:256:256], 0)), token.ErrSignature},
		{"J32 255 bytes, the first missing", with(genuine[1:]), token.ErrSignature},
		{"J32 255 bytes, the last missing", with(genuine[:255]), token.ErrSignature},
		{"J32 twice", with(append(genuine[:256:256], genuine...)), token.ErrSignature},
		{"J32 512 bytes", with(make([]byte, 512)), token.ErrSignature},
		{"J32 s=0", number(new(big.Int)), token.ErrSignature},
		{"J32 s=1", number(one), token.ErrSignature},
		{"J32 s=n-1", number(new(big.Int).Sub(key.N, one)), token.ErrSignature},
		{"J32 s=n", number(key.N), token.ErrSignature},
		{"J32 s=n+1", number(new(big.Int).Add(key.N, one)), token.ErrSignature},
		{"J32 s+2^2048", with(append([]byte{1}, genuine...)), token.ErrSignature},
		{"J32 n-s", number(new(big.Int).Sub(key.N, new(big.Int).SetBytes(genuine))), token.ErrSignature},
		{"J32 all bits set", with([]byte(strings.Repeat("\xff", 256))), token.ErrSignature},
		{"J32 bytes reversed", with(reversed), token.ErrSignature},
		{"J32 a stranger's", with(signature(testKeys().stranger, input)), token.ErrSignature},
		{"J32 another trusted key's", with(signature(testKeys().k2, input)), token.ErrSignature},
		{"J32 of the payload alone", with(signature(key, b64(goodPayload))), token.ErrSignature},
		{"J32 of the decoded bytes", with(signature(key, goodHeader+"."+goodPayload)), token.ErrSignature},
		{"J32 another token's", with(signature(key, b64(goodHeader)+"."+b64(`{"sub":"free","exp":1800003600}`))), token.ErrSignature},
	}
	refuseAll(t, table)
}

// The attack: s+n, which has as many bytes as s and is s modulo n, as a second
// spelling of a signature; and a signature that starts with a zero byte without
// it, as it stands in an integer.
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

// The attack: a flood of garbage. What is refused for its outer form must not
// cost an allocation.
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
