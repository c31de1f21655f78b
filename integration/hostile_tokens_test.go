package integration

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // for RS384 and RS512
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// hostileToken is a first segment of a path that must open nothing.
type hostileToken struct {
	name   string
	token  string
	reason string // tooLong if it does not even get as far as the gate
}

// tooLong is for what is longer than the server reads.
const tooLong = "too long"

// refuse sends every row to the gateway, as it is, and checks the refusal.
func (g *gateway) refuse(t *testing.T, o *origin, rows []hostileToken) {
	t.Helper()
	if len(rows) == 0 {
		t.Fatal("no rows")
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if row.reason == tooLong {
				o.wantRejected(t, g.addr, rawGet("/"+row.token+"/seg.ts"), http.StatusRequestHeaderFieldsTooLarge)
				return
			}
			res := g.raw(t, rawGet("/"+row.token+"/seg.ts"))
			status := http.StatusUnauthorized
			if row.reason == "path_invalid" {
				status = http.StatusBadRequest
			}
			o.wantRefused(t, res, status, row.reason)
			wantNotEchoed(t, res, row.token)
		})
	}
}

// wantRejected checks that the server itself refuses a request, before the gate
// could. It may stop reading before the request has ended.
func (o *origin) wantRejected(t testing.TB, addr, request string, status int) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(startTimeout))
	_, _ = io.WriteString(conn, request)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("reading the response to %.200q: %v", request, err)
	}
	defer res.Body.Close()
	if res.StatusCode != status {
		t.Errorf("got %d, want %d", res.StatusCode, status)
	}
	if seen := o.take(); len(seen) != 0 {
		t.Errorf("the origin was asked for %q", seen[0].uri)
	}
}

// wantNotEchoed checks that no part of a token that could be of use stands in a
// response.
func wantNotEchoed(t testing.TB, res *response, compact string) {
	t.Helper()
	var dump bytes.Buffer
	_ = res.Header.Write(&dump)
	dump.Write(res.body)
	for part := range strings.SplitSeq(compact, ".") {
		if len(part) > 16 && strings.Contains(dump.String(), part[:16]) {
			t.Errorf("the response repeats part of the token: %.100q", part)
		}
	}
}

// assemble makes a compact token of any two documents and a signature of the
// caller's choosing.
func assemble(header, payload string, sign func(signed []byte) []byte) string {
	signed := b64(header) + "." + b64(payload)
	return signed + "." + b64(string(sign([]byte(signed))))
}

// genuine signs with the key of every gateway here, whatever the header says.
func genuine(header, payload string) string { return signRaw(privateKey(), header, payload) }

// headerWith makes a JOSE header that starts as that of a good token.
func headerWith(members string) string {
	return `{"alg":"RS256","kid":"` + keyID + `",` + members + `}`
}

// payloadWith makes claims that are those of a good token but for `exp`.
func payloadWith(members string) string {
	return `{"sub":"vidA","kid":"` + keyID + `",` + members + `}`
}

// in returns a date as a NumericDate.
func in(d time.Duration) string { return fmt.Sprint(time.Now().Add(d).Unix()) }

// goodExp is the claim `exp` of a token that is good for an hour.
func goodExp() string { return `"exp":` + in(time.Hour) }

// find calls make with 0, 1, 2… until what it makes is what is wanted.
func find(t testing.TB, what string, candidate func(i int) (found string, ok bool)) string {
	t.Helper()
	for i := range 50_000 {
		if found, ok := candidate(i); ok {
			return found
		}
	}
	t.Fatalf("no %s found", what)
	return ""
}

// goodWith is a payload that differs from call to call, and so does its
// signature.
func goodWith(i int) string {
	return fmt.Sprintf(`{"sub":"vidA","exp":%d,"n":%d}`, time.Now().Add(time.Hour).Unix(), i)
}

// Whoever can have a token verified as unsigned, or with the public key as the
// secret of an HMAC, or under an algorithm that nobody has agreed to, makes
// tokens of his own (RFC 8725 section 2.1).
func TestHostileAlgorithmRefused(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	var rows []hostileToken
	add := func(name, compact, reason string) { rows = append(rows, hostileToken{name, compact, reason}) }
	unsigned := func([]byte) []byte { return nil }

	for _, alg := range []string{"none", "None", "nOnE", "NONE"} {
		header := `{"alg":"` + alg + `","kid":"main"}`
		add("J1 "+alg+" without a signature", assemble(header, goodPayload("vidA"), unsigned), "algorithm_not_allowed")
		add("J3 "+alg+" over a genuine signature", genuine(header, goodPayload("vidA")), "algorithm_not_allowed")
	}
	add("J1 RS256 without a signature", assemble(goodHeader(), goodPayload("vidA"), unsigned), "signature_invalid")
	for name, secret := range publicKeyBytes(t) {
		for _, alg := range []string{"HS256", "RS256"} {
			reason := map[string]string{"HS256": "algorithm_not_allowed", "RS256": "signature_invalid"}[alg]
			add("J2 "+alg+" with the HMAC of "+name, assemble(`{"alg":"`+alg+`","kid":"main"}`, goodPayload("vidA"), func(signed []byte) []byte {
				mac := hmac.New(sha256.New, secret)
				mac.Write(signed)
				return mac.Sum(nil)
			}), reason)
		}
	}
	for name, header := range map[string]string{
		"HS256":             `{"alg":"HS256","kid":"main"}`,
		"no algorithm":      `{"kid":"main"}`,
		"an array":          `{"alg":["RS256"],"kid":"main"}`,
		"an object":         `{"alg":{"0":"RS256"},"kid":"main"}`,
		"null":              `{"alg":null,"kid":"main"}`,
		"an empty string":   `{"alg":"","kid":"main"}`,
		"ALG in capitals":   `{"ALG":"RS256","kid":"main"}`,
		"an escaped letter": `{"alg":"\u0052S256","kid":"main"}`,
		"a space behind":    `{"alg":"RS256 ","kid":"main"}`,
		"RS256 and NUL":     `{"alg":"RS256\u0000","kid":"main"}`,
		"Ed25519":           `{"alg":"EdDSA","kid":"main"}`,
	} {
		add("J3 genuine signature under "+name, genuine(header, goodPayload("vidA")), "algorithm_not_allowed")
	}
	for _, alg := range []string{"rs256", "Rs256", "RS-256"} {
		add("J4 "+alg, genuine(`{"alg":"`+alg+`","kid":"main"}`, goodPayload("vidA")), "algorithm_not_allowed")
	}
	for alg, sign := range map[string]func([]byte) []byte{
		"RS384": signPKCS1v15(crypto.SHA384),
		"RS512": signPKCS1v15(crypto.SHA512),
		"PS256": signPSS,
	} {
		add("J5 genuine "+alg, assemble(`{"alg":"`+alg+`","kid":"main"}`, goodPayload("vidA"), sign), "algorithm_not_allowed")
		add("J5 genuine "+alg+" called RS256", assemble(goodHeader(), goodPayload("vidA"), sign), "signature_invalid")
	}
	g.refuse(t, o, rows)
}

// publicKeyBytes are the forms of the public key that an attacker can have.
func publicKeyBytes(t testing.TB) map[string][]byte {
	public := &privateKey().PublicKey
	pkix, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := signingKey().Public().JWK()
	if err != nil {
		t.Fatal(err)
	}
	text := publicPEM(t, public)
	return map[string][]byte{
		"PEM":                          text,
		"PEM without its last newline": bytes.TrimSpace(text),
		"PKIX DER":                     pkix,
		"PKCS1 DER":                    x509.MarshalPKCS1PublicKey(public),
		"the modulus":                  public.N.Bytes(),
		"the JWK":                      jwk,
		"the JWKS":                     publicJWKS(t, signingKey()),
		"nothing":                      nil,
	}
}

func signPKCS1v15(hash crypto.Hash) func([]byte) []byte {
	return func(signed []byte) []byte {
		h := hash.New()
		h.Write(signed)
		sig, err := rsa.SignPKCS1v15(nil, privateKey(), hash, h.Sum(nil))
		if err != nil {
			panic(err)
		}
		return sig
	}
}

func signPSS(signed []byte) []byte {
	digest := sha256.Sum256(signed)
	sig, err := rsa.SignPSS(rand.Reader, privateKey(), crypto.SHA256, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	if err != nil {
		panic(err)
	}
	return sig
}

// A header that brings its own key, or says where to fetch one, must never be
// believed, and nothing must be fetched: the address is the attacker's choice,
// and may be one inside the operator's network.
func TestHostileEmbeddedKeyRefused(t *testing.T) {
	spy := listenSpy(t)
	o := startOrigin(t, nil)
	g := start(t, o, config{})

	attacker, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := newSigningKey(keyID, attacker).Public().JWK()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&attacker.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	chain := `"` + base64.StdEncoding.EncodeToString(der) + `"`
	members := map[string]string{
		"J6 jwk of the attacker":     `"jwk":` + string(jwk),
		"J7 jku":                     `"jku":"http://` + spy.addr + `/k.json"`,
		"J7 jku over https":          `"jku":"https://` + spy.addr + `/k.json"`,
		"J7 x5u":                     `"x5u":"http://` + spy.addr + `/k.pem"`,
		"J7 x5c chain":               `"x5c":[` + chain + `,` + chain + `]`,
		"J7 x5t":                     `"x5t":"AAAAAAAAAAAAAAAAAAAAAAAAAAA"`,
		"J7 everything at once":      `"jwk":` + string(jwk) + `,"jku":"http://` + spy.addr + `/","x5u":"http://` + spy.addr + `/"`,
		"J7 the issuer's discovery":  `"iss":"http://` + spy.addr + `"`,
		"J7 jku in the place of typ": `"typ":"http://` + spy.addr + `/k.json"`,
	}
	var rows []hostileToken
	for name, member := range members {
		rows = append(rows,
			hostileToken{name + ", signed by the attacker", signRaw(attacker, headerWith(member), goodPayload("vidA")), "token_malformed"},
			hostileToken{name + ", genuinely signed", genuine(headerWith(member), goodPayload("vidA")), "token_malformed"})
	}
	rows = append(rows,
		hostileToken{"J6 jwk instead of kid", signRaw(attacker, `{"alg":"RS256","jwk":`+string(jwk)+`}`, payloadWith(goodExp())), "token_malformed"},
		hostileToken{"J6 the attacker's signature under the real kid", signRaw(attacker, goodHeader(), goodPayload("vidA")), "signature_invalid"},
		hostileToken{
			"J7 kid that is an address", signRaw(attacker, `{"alg":"RS256","kid":"http://`+spy.addr+`/k.json"}`,
				`{"sub":"vidA",`+goodExp()+`}`), "key_unknown",
		},
		hostileToken{
			"J7 claim iss that is an address", signRaw(attacker, `{"alg":"RS256","kid":"other"}`,
				`{"sub":"vidA",`+goodExp()+`,"iss":"http://`+spy.addr+`"}`), "key_unknown",
		})
	g.refuse(t, o, rows)
	spy.wantSilent(t)
}

// spy is a listener that nobody must connect to.
type spy struct {
	addr     string
	listener net.Listener
}

func listenSpy(t testing.TB) *spy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return &spy{listener.Addr().String(), listener}
}

// wantSilent connects, and checks that this connection is the first one.
func (s *spy) wantSilent(t testing.TB) {
	t.Helper()
	own, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	first, err := s.listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if first.RemoteAddr().String() != own.LocalAddr().String() {
		t.Errorf("the server has connected to %s, which a token named", s.addr)
	}
}

// A header that two readers could read differently, or that asks for a
// processing that is not done, is refused as a whole.
func TestHostileHeaderRefused(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	var rows []hostileToken
	header := func(name, header, reason string) {
		rows = append(rows, hostileToken{name, genuine(header, `{"sub":"vidA",`+goodExp()+`}`), reason})
	}
	header("J8 crit with an extension", headerWith(`"crit":["x"],"x":1`), "token_malformed")
	header("J8 empty crit", headerWith(`"crit":[]`), "token_malformed")
	header("J8 crit that names alg", headerWith(`"crit":["alg"]`), "token_malformed")
	header("J8 crit that is not an array", headerWith(`"crit":"exp"`), "token_malformed")
	header("J9 b64 with crit", headerWith(`"b64":false,"crit":["b64"]`), "token_malformed")
	header("J9 b64 without crit", headerWith(`"b64":false`), "token_malformed")
	header("J9 b64 true", headerWith(`"b64":true`), "token_malformed")
	header("J10 alg none, then RS256", `{"alg":"none","alg":"RS256","kid":"main"}`, "token_malformed")
	header("J10 alg RS256, then none", `{"alg":"RS256","alg":"none","kid":"main"}`, "token_malformed")
	header("J10 kid evil, then main", `{"alg":"RS256","kid":"evil","kid":"main"}`, "token_malformed")
	header("J10 kid main, then evil", `{"alg":"RS256","kid":"main","kid":"evil"}`, "token_malformed")
	header("J10 kid twice, once escaped", `{"alg":"RS256","kid":"main","\u006bid":"main"}`, "token_malformed")
	header("J12 typ of another protocol", headerWith(`"typ":"secevent+jwt"`), "token_malformed")
	header("J12 typ that is a number", headerWith(`"typ":1`), "token_malformed")
	header("J12 typ null", headerWith(`"typ":null`), "token_malformed")
	header("J12 typ in small letters", headerWith(`"typ":"jwt"`), "token_malformed")
	header("J12 empty typ", headerWith(`"typ":""`), "token_malformed")
	header("header cty", headerWith(`"cty":"JWT"`), "token_malformed")
	header("header zip", headerWith(`"zip":"DEF"`), "token_malformed")
	header("header array", `[{"alg":"RS256","kid":"main"}]`, "token_malformed")
	header("header with a byte order mark", "\ufeff"+goodHeader(), "token_malformed")
	header("header with a second value", goodHeader()+goodHeader(), "token_malformed")
	header("header empty", "", "token_malformed")
	header("header that is not UTF-8", "{\"alg\":\"RS256\",\"kid\":\"main\",\"typ\":\"\xff\"}", "token_malformed")
	g.refuse(t, o, rows)
}

// A key id is looked up in a map and is nothing else: no path, no pattern, no
// query, and no other key than the one of exactly this name.
func TestHostileKeyIDRefused(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	revoked, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	payload := `{"sub":"vidA",` + goodExp() + `}`
	rows := []hostileToken{
		{"J11 no kid at all", genuine(`{"alg":"RS256"}`, payload), "key_unknown"},
		{"J11 kid of a key that was revoked", signRaw(revoked, `{"alg":"RS256","kid":"revoked"}`, payload), "key_unknown"},
		{"J11 kid of 1 MiB", genuine(`{"alg":"RS256","kid":"`+strings.Repeat("k", 1<<20)+`"}`, payload), tooLong},
		{"J11 kid of 7 kB", genuine(`{"alg":"RS256","kid":"`+strings.Repeat("k", 7000)+`"}`, payload), "token_malformed"},
		{"J11 kid in header and payload differ", genuine(`{"alg":"RS256","kid":"main"}`, `{"sub":"vidA","kid":"evil",`+goodExp()+`}`), "token_malformed"},
		{"J11 kid in payload and header differ, the header's being unknown", genuine(`{"alg":"RS256","kid":"evil"}`, `{"sub":"vidA","kid":"main",`+goodExp()+`}`), "key_unknown"},
		{"J11 kid in the payload that is a number", genuine(`{"alg":"RS256","kid":"main"}`, `{"sub":"vidA","kid":1,`+goodExp()+`}`), "token_malformed"},
		{"J11 kid in the payload that is empty", genuine(`{"alg":"RS256","kid":"main"}`, `{"sub":"vidA","kid":"",`+goodExp()+`}`), "token_malformed"},
		{"J11 kid in the payload that is null", genuine(`{"alg":"RS256"}`, `{"sub":"vidA","kid":null,`+goodExp()+`}`), "token_malformed"},
	}
	for kid, reason := range map[string]string{
		`""`:                                  "token_malformed",
		`1`:                                   "token_malformed",
		`null`:                                "token_malformed",
		`["main"]`:                            "token_malformed",
		`{"main":1}`:                          "token_malformed",
		`true`:                                "token_malformed",
		"\"main\xff\"":                        "token_malformed",
		`"../../etc/passwd"`:                  "key_unknown",
		`"main.jwks"`:                         "key_unknown",
		`"main.jwks.json"`:                    "key_unknown",
		`"./main"`:                            "key_unknown",
		`"main\u0000"`:                        "key_unknown",
		`"main OR 1=1"`:                       "key_unknown",
		`"main' OR '1'='1"`:                   "key_unknown",
		`"*"`:                                 "key_unknown",
		`"MAIN"`:                              "key_unknown",
		`"Main"`:                              "key_unknown",
		`" main"`:                             "key_unknown",
		`"main "`:                             "key_unknown",
		`"mai"`:                               "key_unknown",
		`"ｍain"`:                              "key_unknown", // full width: NFKC would make it main
		`"ma\u0131n"`:                         "key_unknown",
		`"mai\u0301n"`:                        "key_unknown",
		`"` + strings.Repeat("k", 3000) + `"`: "key_unknown",
	} {
		rows = append(rows, hostileToken{fmt.Sprintf("J11 kid %.30q", kid), genuine(`{"alg":"RS256","kid":`+kid+`}`, payload), reason})
	}
	g.refuse(t, o, rows)
}

// A token has one spelling. A second one would be a second name for the same
// permission: it would miss caches and revocation lists, and pass checks that
// compare strings.
func TestHostileSpellingRefused(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	good := mint(t, "vidA", nil)
	o.wantPassed(t, g.raw(t, rawGet("/"+good+"/seg.ts")), "/vidA/seg.ts")
	segments := strings.Split(good, ".")
	header, payload, sig := segments[0], segments[1], segments[2]
	const bad = "token_malformed"

	var rows []hostileToken
	add := func(name, compact, reason string) { rows = append(rows, hostileToken{name, compact, reason}) }
	for i, last := range otherLast(sig, 4) {
		add(fmt.Sprintf("J13 unused bits of the signature, %d", i+1), header+"."+payload+"."+last, bad)
	}
	spare := find(t, "header with unused bits", func(i int) (string, bool) {
		h := b64(`{"alg":"RS256","kid":"main"` + strings.Repeat(" ", i) + `}`)
		return h, len(h)%4 == 2
	})
	for i, last := range otherLast(spare, 4) {
		signed := last + "." + payload
		add(fmt.Sprintf("J13 unused bits of the header, %d", i+1), signed+"."+b64(string(signature(privateKey(), signed))), bad)
	}
	for name, pad := range map[string]string{"=": "=", "==": "==", "%3D": "%3D", "%3D%3D": "%3D%3D"} {
		add("J14 "+name+" behind the signature", good+pad, bad)
		add("J14 "+name+" behind the payload", header+"."+payload+pad+"."+sig, bad)
		add("J14 "+name+" behind the header", header+pad+"."+payload+"."+sig, bad)
	}
	add("J14 one more character", good+"A", "signature_invalid")
	both := find(t, "signature with - and _", func(i int) (string, bool) {
		compact := genuine(goodHeader(), goodWith(i))
		s := compact[strings.LastIndexByte(compact, '.'):]
		cut := strings.IndexByte(s, '_') // where a / would end the segment
		apart := !strings.Contains(s, "__") && !strings.HasSuffix(s, "_")
		return compact, strings.Contains(s, "-") && cut > 1 && (cut-1)%4 == 0 && apart
	})
	o.wantPassed(t, g.raw(t, rawGet("/"+both+"/seg.ts")), "/vidA/seg.ts")
	add("J15 + for -", strings.ReplaceAll(both, "-", "+"), bad)
	add("J15 %2B for -", strings.ReplaceAll(both, "-", "%2B"), bad)
	add("J15 %2F for _", strings.ReplaceAll(both, "_", "%2F"), bad)
	add("J15 / for _", strings.ReplaceAll(both, "_", "/"), "signature_invalid")
	add("J15 %2D for -", strings.ReplaceAll(both, "-", "%2D"), bad)
	add("J15 %5F for _", strings.ReplaceAll(both, "_", "%5F"), bad)
	add("J15 %2E for the first dot", strings.Replace(good, ".", "%2E", 1), "path_invalid")
	add("J15 %65 for the first letter", "%65"+good[1:], bad)
	for _, space := range []string{"%0A", "%0D", "%0D%0A", "%09", "%20", "%00", "%E2%80%8B", "%C2%A0"} {
		add("J16 "+space+" in front", space+good, bad)
		add("J16 "+space+" behind", good+space, bad)
		add("J16 "+space+" in the header", header[:4]+space+header[4:]+"."+payload+"."+sig, bad)
		add("J16 "+space+" in the payload", header+"."+payload[:8]+space+payload[8:]+"."+sig, bad)
		add("J16 "+space+" in the signature", header+"."+payload+"."+sig[:20]+space+sig[20:], bad)
	}
	add("J17 dot behind", good+".", "path_invalid")
	add("J17 dot in front", "."+good, "path_invalid")
	add("J17 four segments", good+"."+sig, "path_invalid")
	add("J17 five segments, as an encrypted token has", good+"."+sig+"."+sig, "path_invalid")
	add("J17 two segments", header+"."+payload, "path_invalid")
	add("J17 empty header", "."+payload+"."+sig, bad)
	add("J17 empty payload", header+".."+sig, bad)
	add("J17 empty everything", "..", "path_invalid")
	add("J18 flattened JSON", urlEncode(`{"payload":"`+payload+`","protected":"`+header+`","signature":"`+sig+`"}`), "path_invalid")
	add("J18 general JSON, the second signature good", urlEncode(`{"payload":"`+payload+`","signatures":[`+
		`{"protected":"`+header+`","signature":"AAAA"},{"protected":"`+header+`","signature":"`+sig+`"}]}`), "path_invalid")
	add("J18 flattened JSON with two dots", urlEncode(`{"payload":"`+payload+`","protected":"`+header+`","signature":"`+sig+`","x":".."}`), bad)
	add("length of a base64 segment that cannot be", header+"."+payload+"."+sig[:len(sig)-1], bad)
	add("a token of one byte too many", overlong(t), bad)
	g.refuse(t, o, rows)
}

// Bytes that end a request line must not get a token through either: the
// server itself refuses such requests.
func TestHostileRawSpaceInToken(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	good := mint(t, "vidA", nil)
	for name, space := range map[string]string{
		"LF": "\n", "CR": "\r", "CRLF": "\r\n", "TAB": "\t", "space": " ", "NUL": "\x00", "DEL": "\x7f",
	} {
		t.Run("J16 raw "+name, func(t *testing.T) {
			for _, compact := range []string{good + space, good[:30] + space + good[30:], space + good} {
				o.wantRejected(t, g.addr, rawGet("/"+compact+"/seg.ts"), http.StatusBadRequest)
			}
		})
	}
}

// otherLast returns the strings that differ in the bits of their last character
// that no byte is made of.
func otherLast(s string, bits uint) (variants []string) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, s[len(s)-1])
	for i := 1; i < 1<<bits; i++ {
		variants = append(variants, s[:len(s)-1]+string(alphabet[last|i]))
	}
	return variants
}

// urlEncode escapes everything that does not belong into a path segment.
func urlEncode(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c == '.' || c == '-' || c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// overlong is a genuine token of one byte more than a token may have.
func overlong(t testing.TB) string {
	return find(t, "overlong token", func(i int) (string, bool) {
		compact := genuine(goodHeader(), payloadWith(goodExp()+`,"x":"`+strings.Repeat("x", 5500+i)+`"`))
		return compact, len(compact) > token.MaxLength
	})
}

// Claims that are signed are not yet claims that mean one thing: a second
// object, a repeated member or a `sub` that is a path would each be read
// differently by somebody.
func TestHostileClaimsRefused(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	exp := goodExp()
	const bad = "token_malformed"
	rows := []hostileToken{
		{"J19 a token within a token", genuine(goodHeader(), mint(t, "vidA", nil)), bad},
		{"J19 a token within a token, with cty", genuine(headerWith(`"cty":"JWT"`), mint(t, "vidA", nil)), bad},
		{"J20 a second object behind", genuine(goodHeader(), payloadWith(exp)+`{"sub":"vidB"}`), bad},
		{"J20 garbage behind", genuine(goodHeader(), payloadWith(exp)+`x`), bad},
		{"J20 NUL behind", genuine(goodHeader(), payloadWith(exp)+"\x00"), bad},
		{"J20 a space in front", genuine(goodHeader(), " "+payloadWith(exp)), bad},
		{"J20 a byte order mark in front", genuine(goodHeader(), "\ufeff"+payloadWith(exp)), bad},
		{"J20 an array", genuine(goodHeader(), `[`+payloadWith(exp)+`]`), bad},
		{"J20 a string", genuine(goodHeader(), `"sub"`), bad},
		{"J20 a comment", genuine(goodHeader(), payloadWith(exp+`/*x*/`)), bad},
		{"J20 a comma at the end", genuine(goodHeader(), payloadWith(exp+`,`)), bad},
		{"J21 sub twice", genuine(goodHeader(), payloadWith(exp+`,"sub":"vidB"`)), bad},
		{"J21 sub twice, once escaped", genuine(goodHeader(), payloadWith(exp+`,"s\u0075b":"vidB"`)), bad},
		{"J21 exp twice", genuine(goodHeader(), payloadWith(exp+`,`+exp)), bad},
		{"J21 accessRules twice", genuine(goodHeader(), payloadWith(exp+`,"accessRules":[],"accessRules":[{"type":"any","action":"block"}]`)), bad},
		{"J21 members twice in an ignored claim", genuine(goodHeader(), payloadWith(exp+`,"x":{"a":1,"a":2}`)), bad},
		{"J22 SUB in capitals only", genuine(goodHeader(), `{"SUB":"vidA",`+exp+`}`), bad},
		{"J22 Exp in another case only", genuine(goodHeader(), `{"sub":"vidA","Exp":`+in(time.Hour)+`}`), bad},
		{"J23 sub missing", genuine(goodHeader(), `{`+exp+`}`), bad},
		{"J24 nested 9990 deep", genuine(goodHeader(), nestedPayload(9990)), tooLong},
		{"J24 nested 20000 deep", genuine(goodHeader(), nestedPayload(20000)), tooLong},
		{"J24 nested 2500 deep, which still fits a token", genuine(goodHeader(), nestedPayload(2500)), bad},
		{"J24 nested 5000 deep, which the server still reads", genuine(goodHeader(), nestedPayload(5000)), bad},
		{"J24 nested objects", genuine(goodHeader(), payloadWith(exp+`,"x":`+strings.Repeat(`{"a":`, 100)+`1`+strings.Repeat(`}`, 100))), bad},
		{"downloadable that is a string", genuine(goodHeader(), payloadWith(exp+`,"downloadable":"true"`)), bad},
		{"downloadable that is 1", genuine(goodHeader(), payloadWith(exp+`,"downloadable":1`)), bad},
		{"payload that is not UTF-8", genuine(goodHeader(), payloadWith(exp+",\"x\":\"\xff\"")), bad},
		{"the sample of Cloudflare's page, which has no sub, but a key that nobody has here", sampleToken, "key_unknown"},
	}
	for name, sub := range map[string]string{
		"null":                      `null`,
		"a number":                  `1`,
		"empty":                     `""`,
		"an array":                  `["vidA"]`,
		"a path to another video":   `"../vidB"`,
		"a detour":                  `"vidB/../vidA"`,
		"a slash":                   `"vidA/x"`,
		"an escaped slash":          `"vidA\u002fx"`,
		"an encoded slash":          `"vidA%2f"`,
		"a backslash":               `"vidA\\x"`,
		"a dot":                     `"vid.A"`,
		"two dots":                  `".."`,
		"a space":                   `"vidA "`,
		"NUL":                       `"vidA\u0000"`,
		"a line break":              `"vidA\n"`,
		"a question mark":           `"vidA?x"`,
		"a placeholder":             `"{video}"`,
		"a Caddy placeholder":       `"{env.HOME}"`,
		"an escaped letter":         `"vid\u0041"`,
		"bytes that are not UTF-8":  "\"vid\xff\"",
		"other bytes that are not":  "\"vid\xfe\"",
		"a lone surrogate":          `"vid\ud800"`,
		"text that runs backwards":  `"vid\u202eA"`,
		"the same, unescaped":       "\"vid\u202eA\"",
		"a letter that looks alike": "\"v\u0456dA\"",
		"65 characters":             `"` + strings.Repeat("a", 65) + `"`,
		"4 kB":                      `"` + strings.Repeat("a", 4000) + `"`,
		"10 kB":                     `"` + strings.Repeat("a", 10_000) + `"`,
	} {
		rows = append(rows, hostileToken{"J23 sub that is " + name, genuine(goodHeader(), `{"sub":`+sub+`,`+exp+`}`), bad})
	}
	g.refuse(t, o, rows)
}

// sampleToken is the one printed in Cloudflare's "Secure your stream".
const sampleToken = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImNkYzkzNTk4MmY4MDc1ZjJlZjk2MTA2ZDg1ZmNkODM4In0." +
	"eyJraWQiOiJjZGM5MzU5ODJmODA3NWYyZWY5NjEwNmQ4NWZjZDgzOCIsImV4cCI6IjE2MjE4ODk2NTciLCJuYmYiOiIxNjIxODgyNDU3In0." +
	"iHGMvwOh2-SuqUG7kp2GeLXyKvMavP-I2rYCni9odNwms7imW429bM2tKs3G9INms8gSc7fzm8hNEYWOhGHWRBaaCs3U9H4DRWaFOvn0sJWLBitGuF_YaZM5O6fqJPTAwhgFKdikyk9zVzHrIJ0PfBL0NsTgwDxLkJjEAEULQJpiQU1DNm0w5ctasdbw77YtDwdZ01g924Dm6jIsWolW0Ic0AevCLyVdg501Ki9hSF7kYST0egcll47jmoMMni7ujQCJI1XEAOas32DdjnMvU8vXrYbaHk1m1oXlm319rDYghOHed9kr293KM7ivtZNlhYceSzOpyAmqNFS7mearyQ"

func nestedPayload(depth int) string {
	return payloadWith(goodExp() + `,"x":` + strings.Repeat("[", depth) + strings.Repeat("]", depth))
}

// A date that is not a plain number of seconds is one that readers disagree
// about, and the reader who takes it for "no date" has a token that lasts for
// ever.
func TestHostileDatesRefused(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	future := in(time.Hour)
	const bad, expired = "token_malformed", "token_expired"

	var rows []hostileToken
	add := func(name, members, reason string) {
		rows = append(rows, hostileToken{name, genuine(goodHeader(), payloadWith(members)), reason})
	}
	add("J25 no exp", `"nbf":0`, bad)
	for value, reason := range map[string]string{
		`0`:                          expired,
		`0.5`:                        bad,
		`"0"`:                        expired,
		`"0001-01-01T00:00:00Z"`:     bad,
		`"1621889657"`:               expired,
		`1`:                          expired,
		`"000000000000000000000001"`: expired,
	} {
		add("J26 exp "+value, `"exp":`+value, reason)
	}
	for name, value := range map[string]string{
		"RFC 3339 in the future": `"2999-01-01T00:00:00Z"`,
		"a fraction":             future + `.9`,
		"a fraction of nothing":  future + `.0`,
		"an exponent":            future + `e0`,
		"an exponent, in full":   `9E12`,
		"hexadecimal":            `"0x7fffffff"`,
		"a plus sign":            `"+` + future + `"`,
		"a space in the string":  `" ` + future + `"`,
		"digits of another sort": `"٢٧٩٥٤٤٣١٣١"`,
		"an escaped digit":       `"\u0039` + future[1:] + `"`,
	} {
		add("J27 exp with "+name, `"exp":`+value, bad)
	}
	for _, value := range []string{`1795443131000`, `"1795443131000"`, `253402300800`, `"253402300800"`, `9007199254740992`} {
		add("J28 exp "+value, `"exp":`+value, "token_lifetime_exceeded")
	}
	for _, value := range []string{`9.2e18`, `9200000000000000000`, `9007199254740993`, `"99999999999999999999999999999999999999999"`} {
		add("J28 exp "+value, `"exp":`+value, bad)
	}
	for _, value := range []string{
		`-1`, `-0`, `1e19`, `1e400`, `9223372036854775807`, `9223372036854775808`, `18446744073709551616`, `null`, `true`,
		`[]`, `{}`, `""`, `"-1"`, `"abc"`, `[` + future + `]`,
	} {
		add("J29 exp "+value, `"exp":`+value, bad)
	}
	for _, value := range []string{`null`, `-1`, `0.5`, `""`, `"tomorrow"`, `9007199254740993`, `[]`} {
		add("J29 nbf "+value, `"exp":`+future+`,"nbf":`+value, bad)
	}
	add("J30 exp is now", `"exp":`+in(0), expired)
	add("J30 exp was a second ago", `"exp":`+in(-time.Second), expired)
	add("J30 exp was an hour ago", `"exp":`+in(-time.Hour), expired)
	add("J30 exp was an hour ago, as a string", `"exp":"`+in(-time.Hour)+`"`, expired)
	add("J30 nbf in a minute, beyond the leeway", `"exp":`+future+`,"nbf":`+in(time.Minute), "token_not_yet_valid")
	add("J30 nbf in an hour, as a string", `"exp":`+in(2*time.Hour)+`,"nbf":"`+in(time.Hour)+`"`, "token_not_yet_valid")
	add("J30 nbf behind exp", `"exp":`+future+`,"nbf":`+in(2*time.Hour), "token_not_yet_valid")
	add("J30 nbf behind an exp that has passed", `"exp":`+in(-time.Hour)+`,"nbf":`+in(time.Hour), expired)
	g.refuse(t, o, rows)
}

// An operator who caps lifetimes must not be outwitted by a signer who has
// minted for ever.
func TestHostileLifetimeRefused(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{app: "max_token_lifetime 24h"})
	o.wantPassed(t, g.raw(t, rawGet("/"+genuine(goodHeader(), payloadWith(`"exp":`+in(23*time.Hour)))+"/seg.ts")), "/vidA/seg.ts")
	g.refuse(t, o, []hostileToken{
		{"J28 an hour more than allowed", genuine(goodHeader(), payloadWith(`"exp":`+in(25*time.Hour))), "token_lifetime_exceeded"},
		{"J28 the last second of the year 9999", genuine(goodHeader(), payloadWith(`"exp":253402300799`)), "token_lifetime_exceeded"},
		{"J28 as a string", genuine(goodHeader(), payloadWith(`"exp":"253402300799"`)), "token_lifetime_exceeded"},
	})
}

// A signature is a number below the modulus, in as many bytes as the modulus
// has. Every other spelling of it would be a second token.
func TestHostileSignatureRefused(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	n := privateKey().N
	size := privateKey().Size()
	limit := new(big.Int).Lsh(big.NewInt(1), uint(8*size))
	with := func(sig []byte) string {
		return assemble(goodHeader(), goodPayload("vidA"), func([]byte) []byte { return sig })
	}
	fixed := func(s *big.Int) []byte { return s.FillBytes(make([]byte, size)) }
	one := big.NewInt(1)

	short := find(t, "signature that starts with a zero byte", func(i int) (string, bool) {
		signed := b64(goodHeader()) + "." + b64(goodWith(i))
		sig := signature(privateKey(), signed)
		return signed + "." + b64(string(sig[1:])), sig[0] == 0
	})
	wrapped := find(t, "signature that has room for another modulus", func(i int) (string, bool) {
		signed := b64(goodHeader()) + "." + b64(goodWith(i))
		sum := new(big.Int).SetBytes(signature(privateKey(), signed))
		if sum.Add(sum, n).Cmp(limit) >= 0 {
			return "", false
		}
		return signed + "." + b64(string(fixed(sum))), true
	})
	good := mint(t, "vidA", nil)
	signed := good[:strings.LastIndexByte(good, '.')]
	sig := signature(privateKey(), signed)
	reversed := append([]byte(nil), sig...)
	for i := range len(reversed) / 2 {
		reversed[i], reversed[size-1-i] = reversed[size-1-i], reversed[i]
	}
	flipped := append([]byte(nil), sig...)
	flipped[size-1] ^= 1

	const bad = "signature_invalid"
	g.refuse(t, o, []hostileToken{
		{"J32 a zero byte in front", signed + "." + b64("\x00"+string(sig)), bad},
		{"J32 a zero byte behind", signed + "." + b64(string(sig)+"\x00"), bad},
		{"J32 the leading zero byte left out", short, bad},
		{"J32 the last byte left out", signed + "." + b64(string(sig[:size-1])), bad},
		{"J32 s+n in as many bytes", wrapped, bad},
		{"J32 s+n in one byte more", signed + "." + b64(string(new(big.Int).Add(new(big.Int).SetBytes(sig), limit).Bytes())), bad},
		{"J32 s=0", with(fixed(new(big.Int))), bad},
		{"J32 s=1", with(fixed(one)), bad},
		{"J32 s=n-1", with(fixed(new(big.Int).Sub(n, one))), bad},
		{"J32 s=n", with(fixed(n)), bad},
		{"J32 all bits set", with(fixed(new(big.Int).Sub(limit, one))), bad},
		{"J32 one bit of the signature changed", signed + "." + b64(string(flipped)), bad},
		{"J32 bytes reversed", signed + "." + b64(string(reversed)), bad},
		{"J32 n-s", signed + "." + b64(string(fixed(new(big.Int).Sub(n, new(big.Int).SetBytes(sig))))), bad},
		{"J32 the signature of another token", signed[:strings.IndexByte(signed, '.')] + "." + b64(goodPayload("vidB")) + "." + b64(string(sig)), bad},
		{"J32 no bytes", signed + ".", bad},
	})
}

// An access rule that is not understood may be the one that blocks, so a token
// with such a rule opens nothing.
func TestHostileRulesRefused(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	block := `{"type":"any","action":"block"}`
	rows := []hostileToken{
		{"J35 10,000 rules", genuine(goodHeader(), payloadWith(goodExp()+`,"accessRules":[`+strings.Repeat(block+",", 9_999)+block+`]`)), tooLong},
		{"J35 300 rules", genuine(goodHeader(), payloadWith(goodExp()+`,"accessRules":[`+strings.Repeat(block+",", 299)+block+`]`)), "token_malformed"},
		{"J35 an action twice", genuine(goodHeader(), payloadWith(goodExp()+`,"accessRules":[{"type":"any","action":"block","action":"allow"}]`)), "token_malformed"},
	}
	for name, rules := range map[string]string{
		"65 rules":                   `[` + strings.Repeat(`{"type":"any","action":"allow"},`, 64) + block + `]`,
		"not an array":               `{"type":"any","action":"allow"}`,
		"null":                       `null`,
		"a string":                   `"[]"`,
		"a rule that is null":        `[null]`,
		"a rule that is a string":    `["any"]`,
		"a rule that is an array":    `[[]]`,
		"a rule that is empty":       `[{}]`,
		"an unknown type":            `[{"type":"ip.geoip.continent","action":"allow"}]`,
		"a type in other case":       `[{"type":"ANY","action":"allow"}]`,
		"a type that is null":        `[{"type":null,"action":"allow"}]`,
		"an unknown action":          `[{"type":"any","action":"challenge"}]`,
		"an action in other case":    `[{"type":"any","action":"Allow"}]`,
		"no action":                  `[{"type":"any"}]`,
		"no type":                    `[{"action":"allow"}]`,
		"no countries":               `[{"type":"ip.geoip.country","action":"block","country":[]}]`,
		"country misspelt":           `[{"type":"ip.geoip.country","action":"block","coutry":["US"]}]`,
		"a country of three letters": `[{"type":"ip.geoip.country","action":"block","country":["USA"]}]`,
		"a country that is a string": `[{"type":"ip.geoip.country","action":"block","country":"US"}]`,
		"a country with a long s":    `[{"type":"ip.geoip.country","action":"block","country":["U\u017f"]}]`,
		"a country with a digit":     `[{"type":"ip.geoip.country","action":"block","country":["T1"]}]`,
		"one bad country of two":     `[{"type":"ip.geoip.country","action":"block","country":["US",""]}]`,
		"a country that is null":     `[{"type":"ip.geoip.country","action":"block","country":[null]}]`,
		"no addresses":               `[{"type":"ip.src","action":"block","ip":[]}]`,
		"addresses missing":          `[{"type":"ip.src","action":"block"}]`,
		"addresses in a string":      `[{"type":"ip.src","action":"block","ip":"1.2.3.4"}]`,
		"three parts":                `[{"type":"ip.src","action":"block","ip":["1.2.3"]}]`,
		"octal":                      `[{"type":"ip.src","action":"block","ip":["010.0.0.1"]}]`,
		"one bad address of two":     `[{"type":"ip.src","action":"block","ip":["::/0","bad"]}]`,
		"a good rule, then a bad":    `[{"type":"any","action":"allow"},{"type":"other","action":"block"}]`,
		"a bad rule, then a good":    `[{"type":"other","action":"block"},{"type":"any","action":"allow"}]`,
	} {
		rows = append(rows, hostileToken{"J35 " + name, genuine(goodHeader(), payloadWith(goodExp()+`,"accessRules":`+rules)), "rules_invalid"})
	}
	g.refuse(t, o, rows)
}

// A key that another installation trusts is a stranger here. Sites of one
// process share its keys, for they share the app that holds them.
func TestHostileForeignKey(t *testing.T) {
	foreign, err := token.GenerateSigningKey("foreign")
	if err != nil {
		t.Fatal(err)
	}
	claims := token.Claims{VideoID: "vidA", ExpiresAt: time.Now().Add(time.Hour)}
	compact, err := token.Sign(claims, foreign)
	if err != nil {
		t.Fatal(err)
	}
	o := startOrigin(t, nil)
	second := freeAddr(t)
	ours := start(t, o, config{sites: site(second, "signed_playback\nreverse_proxy "+o.addr())})
	foreignFile := filepath.Join(t.TempDir(), "foreign.jwks.json")
	writeFile(t, foreignFile, publicJWKS(t, foreign))
	theirs := start(t, o, config{keys: foreignFile})

	t.Run("J34 one process, two sites", func(t *testing.T) {
		good := mint(t, "vidA", nil)
		o.wantPassed(t, ours.raw(t, rawGet("/"+good+"/seg.ts")), "/vidA/seg.ts")
		o.wantPassed(t, rawTo(t, second, rawGet("/"+good+"/seg.ts")), "/vidA/seg.ts")
		for _, addr := range []string{ours.addr, second} {
			o.wantRefused(t, rawTo(t, addr, rawGet("/"+compact+"/seg.ts")), http.StatusUnauthorized, "key_unknown")
		}
	})
	t.Run("J34 two processes", func(t *testing.T) {
		o.wantPassed(t, theirs.raw(t, rawGet("/"+compact+"/seg.ts")), "/vidA/seg.ts")
		o.wantRefused(t, theirs.raw(t, rawGet("/"+mint(t, "vidA", nil)+"/seg.ts")), http.StatusUnauthorized, "key_unknown")
	})
}

// site is one more site block, for any host on an address.
func site(addr, directives string) string {
	_, port, _ := net.SplitHostPort(addr)
	return "http://:" + port + " {\n" + directives + "\n}\n"
}

// Strictness must not keep the tokens out that Cloudflare's own endpoint and
// everybody's JWT library make.
func TestUsualTokensPlay(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{})
	exp := goodExp()
	for name, compact := range map[string]string{
		"J27 exp as a string":                 genuine(goodHeader(), payloadWith(`"exp":"`+in(time.Hour)+`"`)),
		"J27 exp and nbf as strings":          genuine(goodHeader(), payloadWith(`"exp":"`+in(time.Hour)+`","nbf":"`+in(-time.Hour)+`"`)),
		"J28 the last second of 9999":         genuine(goodHeader(), payloadWith(`"exp":253402300799`)),
		"J30 nbf is now":                      genuine(goodHeader(), payloadWith(exp+`,"nbf":`+in(0))),
		"J30 nbf within the leeway":           genuine(goodHeader(), payloadWith(exp+`,"nbf":`+in(2*time.Second))),
		"J30 iat in ten minutes":              genuine(goodHeader(), payloadWith(exp+`,"iat":`+in(10*time.Minute))),
		"J11 kid in the payload alone":        genuine(`{"alg":"RS256"}`, payloadWith(exp)),
		"J11 kid in the header alone":         genuine(goodHeader(), `{"sub":"vidA",`+exp+`}`),
		"J11 kid in both":                     genuine(goodHeader(), payloadWith(exp)),
		"J12 typ JWT":                         genuine(headerWith(`"typ":"JWT"`), payloadWith(exp)),
		"J12 typ first":                       genuine(`{"typ":"JWT","alg":"RS256","kid":"main"}`, payloadWith(exp)),
		"J24 extra claims":                    genuine(goodHeader(), payloadWith(exp+`,"iss":"x","aud":["a","b"],"jti":"1","user":{"id":7,"tags":["ü"]}`)),
		"J20 white space within both objects": genuine("{ \"alg\" : \"RS256\",\n\t\"kid\" : \"main\" }", "{ \"sub\": \"vidA\",\r\n "+exp+" }\n"),
		"J35 no rules":                        genuine(goodHeader(), payloadWith(exp+`,"accessRules":[]`)),
		"J35 64 rules":                        genuine(goodHeader(), payloadWith(exp+`,"accessRules":[`+strings.Repeat(`{"type":"any","action":"allow"},`, 63)+`{"type":"any","action":"allow"}]`)),
		"J35 members that have no business":   genuine(goodHeader(), payloadWith(exp+`,"accessRules":[{"type":"any","action":"allow","country":"US","note":1}]`)),
		"downloadable false":                  genuine(goodHeader(), payloadWith(exp+`,"downloadable":false`)),
		"a token of as many bytes as it may":  longest(t),
	} {
		t.Run(name, func(t *testing.T) {
			o.wantPassed(t, g.raw(t, rawGet("/"+compact+"/seg.ts")), "/vidA/seg.ts")
		})
	}
}

// longest is a genuine token of exactly as many bytes as a token may have.
func longest(t testing.TB) string {
	return find(t, "token of the greatest length", func(i int) (string, bool) {
		header := `{"alg":"RS256","kid":"main"` + strings.Repeat(" ", i/500) + `}`
		payload := payloadWith(goodExp() + `,"x":"` + strings.Repeat("x", 5600+i%500) + `"`)
		if len(b64(header)+b64(payload))+len("..")+len(b64(string(make([]byte, privateKey().Size())))) != token.MaxLength {
			return "", false
		}
		return genuine(header, payload), true
	})
}

// A key that can be factored, or that makes a verification slow, must not get
// into force: the configuration is refused, and the message says which file
// and why.
func TestHostileKeyFilesRefused(t *testing.T) {
	strong := privateKey().N
	even := new(big.Int).Sub(strong, big.NewInt(1))
	cases := []struct {
		name string
		n    *big.Int
		e    int64
		want string
	}{
		{"J31 512 bits", modulus(t, 512), 65537, "512 bits"},
		{"J31 1024 bits", modulus(t, 1024), 65537, "1024 bits"},
		{"J31 2047 bits", modulus(t, 2047), 65537, "2047 bits"},
		{"J31 4097 bits", modulus(t, 4097), 65537, "4097 bits"},
		{"J31 16384 bits", modulus(t, 16384), 65537, "16384 bits"},
		{"J31 e=1", strong, 1, "exponent"},
		{"J31 e=2", strong, 2, "exponent"},
		{"J31 e=3", strong, 3, "exponent 3"},
		{"J31 e=2147483647", strong, 1<<31 - 1, "exponent 2147483647"},
		{"J31 an even modulus", even, 65537, "even modulus"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for file, content := range map[string][]byte{
				"weak.jwk.json": jwkOf(t, c.n, c.e),
				"weak.pem":      publicPEM(t, &rsa.PublicKey{N: c.n, E: int(c.e)}),
			} {
				dir := t.TempDir()
				writeFile(t, filepath.Join(dir, file), content)
				writeFile(t, filepath.Join(dir, "Caddyfile"), []byte("{\nadmin off\nsigned_playback {\nkey_file "+file+"\n}\n}\n"))
				output, ok := caddyIn(t, dir, "validate", "--config", "Caddyfile")
				if ok {
					t.Errorf("%s was accepted", file)
				}
				if !strings.Contains(output, file) || !strings.Contains(output, c.want) {
					t.Errorf("%s: the message has not both the file's name and %q: %s", file, c.want, lastLine(output))
				}
			}
		})
	}
	t.Run("J31 2048 bits and e=65537", func(t *testing.T) {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "good.pem"), publicPEM(t, &privateKey().PublicKey))
		writeFile(t, filepath.Join(dir, "Caddyfile"), []byte("{\nadmin off\nsigned_playback {\nkey_file good.pem\n}\n}\n"))
		if output, ok := caddyIn(t, dir, "validate", "--config", "Caddyfile"); !ok {
			t.Errorf("a good key was refused: %s", output)
		}
	})
}

// modulus is an odd number of so many bits. It need not be a product of two
// primes, for nobody can tell.
func modulus(t testing.TB, bits int) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits)))
	if err != nil {
		t.Fatal(err)
	}
	return n.SetBit(n, bits-1, 1).SetBit(n, 0, 1)
}

func jwkOf(t testing.TB, n *big.Int, e int64) []byte {
	t.Helper()
	doc, err := json.Marshal(map[string]string{
		"kty": "RSA", "kid": "weak", "alg": "RS256",
		"n": b64(string(n.Bytes())), "e": b64(string(big.NewInt(e).Bytes())),
	})
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// caddyIn runs a command of the binary in a folder, to its end.
func caddyIn(t testing.TB, dir string, args ...string) (output string, ok bool) {
	t.Helper()
	got := execute(t, dir, "", binary(t), args...)
	output = got.stdout + got.stderr
	if strings.Contains(output, "panic") {
		t.Errorf("a panic in the output of %q:\n%s", args, output)
	}
	return output, got.code == 0
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
