package token_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// publicJWK returns the JWK of a key without checking it.
func publicJWK(id string, key *rsa.PublicKey) []byte {
	return must(json.Marshal(map[string]any{
		"kty": "RSA", "kid": id, "n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes()),
	}))
}

// privateMembers are the secret members of a JWK.
func privateMembers(key *rsa.PrivateKey) map[string]any {
	return map[string]any{
		"d": b64(key.D.Bytes()), "p": b64(key.Primes[0].Bytes()), "q": b64(key.Primes[1].Bytes()),
		"dp": b64(key.Precomputed.Dp.Bytes()), "dq": b64(key.Precomputed.Dq.Bytes()), "qi": b64(key.Precomputed.Qinv.Bytes()),
	}
}

// jwk returns the JWK of k1 with other members. A nil value removes a member.
func jwk(private bool, change map[string]any) string {
	var members map[string]any
	key := testKeys().k1
	if err := json.Unmarshal(publicJWK("k1", &key.PublicKey), &members); err != nil {
		panic(err)
	}
	if private {
		maps.Copy(members, privateMembers(key))
	}
	maps.Copy(members, change)
	maps.DeleteFunc(members, func(_ string, value any) bool { return value == nil })
	return string(must(json.Marshal(members)))
}

func pemText(blockType string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der})
}

func wrap[T string | []byte](data T) string {
	return base64.StdEncoding.EncodeToString([]byte(data))
}

func certificate(key *rsa.PrivateKey) []byte {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "signer.example"},
		NotBefore: now, NotAfter: now.Add(time.Hour),
	}
	return must(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))
}

// pems are all PEM forms of a key pair. None of them has a key id.
type pems struct{ pkix, pkcs1, pkcs8, pkcs1Private, certificate string }

func pemsOf(key *rsa.PrivateKey) pems {
	return pems{
		pkix:         string(pemText("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(&key.PublicKey)))),
		pkcs1:        string(pemText("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&key.PublicKey))),
		pkcs8:        string(pemText("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key)))),
		pkcs1Private: string(pemText("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))),
		certificate:  string(pemText("CERTIFICATE", certificate(key))),
	}
}

// apiKey is the object in which the keys API returns k1, with these members only.
func apiKey(members ...string) string {
	key := signingKey()
	all := map[string]string{"id": "k1", "pem": key.PEM(), "jwk": must(key.JWK()), "created": "2027-01-15T08:00:00Z"}
	maps.DeleteFunc(all, func(name, _ string) bool { return !slices.Contains(members, name) })
	return string(must(json.Marshal(all)))
}

func envelope(result string) string {
	return `{"result":` + result + `,"success":true,"errors":[],"messages":[]}`
}

// secretRuns are all runs of 16 bytes in the forms of the tests' private keys: as
// bytes, as numbers, and in base64 once or twice, at every offset.
var secretRuns = sync.OnceValue(func() map[string]bool {
	var forms []string
	for _, key := range []*rsa.PrivateKey{testKeys().k1, testKeys().k2} {
		for _, n := range []*big.Int{
			key.D, key.Primes[0], key.Primes[1], key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv,
		} {
			forms = append(forms, string(n.Bytes()), n.String(), n.Text(16))
			for i := range 3 {
				url, std := base64.RawURLEncoding.EncodeToString(n.Bytes()[i:]), base64.RawStdEncoding.EncodeToString(n.Bytes()[i:])
				forms = append(forms, url, std)
				for j := range 3 {
					forms = append(forms, wrap(url[j:]), wrap(std[j:]))
				}
			}
		}
	}
	runs := make(map[string]bool)
	for _, form := range forms {
		for run := range windows(form) {
			runs[run] = true
		}
	}
	return runs
})

func hasSecret(text string) bool {
	for run := range windows(text) {
		if secretRuns()[run] {
			return true
		}
	}
	return false
}

func checkNoSecret(t *testing.T, text string) {
	t.Helper()
	if hasSecret(text) {
		t.Errorf("a private key is in %q", text)
	}
}

// hasSecret must find a private key in every form that contains one.
func TestSecretsAreFound(t *testing.T) {
	t.Parallel()
	forms := pemsOf(testKeys().k1)
	for _, text := range []string{
		jwk(true, nil), must(signingKey().JWK()), signingKey().PEM(), apiKey("pem"), forms.pkcs8, forms.pkcs1Private, wrap(forms.pkcs8),
	} {
		if !hasSecret(text) {
			t.Errorf("no private key is found in %.60q…", text)
		}
	}
}

// keyForms are the forms in which keys are accepted. Each is that of k1 under the
// ids in public, except for the id "k2", which is that of k2. signing is the id
// under which the form also contains the private key of k1; "" if it does not.
func keyForms() []keyForm {
	forms := pemsOf(testKeys().k1)
	k2 := string(publicJWK("k2", &testKeys().k2.PublicKey))
	without := func(private bool, name string) string { return jwk(private, map[string]any{name: nil}) }
	public := func(private bool, ops ...string) string {
		return jwk(private, map[string]any{"key_ops": ops, "use": "sig", "alg": "RS256"})
	}
	return []keyForm{
		{"JWK", jwk(false, nil), "", "k1", ""},
		{"JWK with a purpose", public(false, "verify"), "", "k1", ""},
		{"JWK without kid", without(false, "kid"), "given", "given", ""},
		{"JWK keeps its kid", jwk(false, nil), "given", "k1", ""},
		{"JWK with several operations", jwk(false, map[string]any{"key_ops": []string{"encrypt", "verify"}}), "", "k1", ""},
		{"private JWK", jwk(true, nil), "", "k1", "k1"},
		{"private JWK keeps its kid", jwk(true, nil), "given", "k1", "k1"},
		{"private JWK without kid", without(true, "kid"), "given", "given", "given"},
		{"private JWK that signs", jwk(true, map[string]any{"key_ops": []string{"sign"}}), "", "k1", "k1"},
		{"private JWK that signs and verifies", public(true, "sign", "verify"), "", "k1", "k1"},
		{"JWKS", `{"keys":[` + jwk(false, nil) + `]}`, "", "k1", ""},
		{"JWKS of two", `{"keys":[` + jwk(false, nil) + `,` + k2 + `]}`, "", "k1,k2", ""},
		{"JWKS of two of which one has no kid", `{"keys":[` + without(false, "kid") + `,` + k2 + `]}`, "given", "given,k2", ""},
		{"JWKS with one private key of two", `{"keys":[` + k2 + `,` + jwk(true, nil) + `]}`, "", "k2,k1", "k1"},
		{"JWKS with the same key twice", `{"keys":[` + jwk(false, nil) + `,` + jwk(true, nil) + `]}`, "", "k1,k1", "k1"},
		{"JWKS with white space", "\n\t{ \"keys\" : [\n" + jwk(false, nil) + "\n] }\r\n", "", "k1", ""},
		{"PKIX PEM", forms.pkix, "given", "given", ""},
		{"PKCS#1 PEM", forms.pkcs1, "given", "given", ""},
		{"PKCS#8 PEM", forms.pkcs8, "given", "given", "given"},
		{"PKCS#1 private PEM", forms.pkcs1Private, "given", "given", "given"},
		{"certificate", forms.certificate, "given", "given", ""},
		{"PEM with white space", "\r\n" + strings.ReplaceAll(forms.pkix, "\n", "\r\n") + "\r\n", "given", "given", ""},
		{"PEM with literal \\n", strings.ReplaceAll(forms.pkcs8, "\n", `\n`), "given", "given", "given"},
		{"PEM with literal \\r\\n, twice escaped", strings.ReplaceAll(forms.pkcs8, "\n", `\\r\\n`), "given", "given", "given"},
		{"PEM in quotes", `"` + strings.ReplaceAll(forms.pkcs8, "\n", `\n`) + `"` + "\n", "given", "given", "given"},
		{"PEM in a JSON string of .NET", `"` + strings.NewReplacer("+", `\u002B`, "\n", `\u000a`).Replace(forms.pkcs8) + `"`, "given", "given", "given"},
		{"JWK in a JSON string", strconv.Quote(jwk(true, nil)), "given", "k1", "k1"},
		{"PEM in single quotes", "'" + forms.pkix + "'", "given", "given", ""},
		{"PEM of an environment file", "# the key\nexport STREAM_PEM=\"" + strings.ReplaceAll(forms.pkcs8, "\n", `\n`) + "\"\n", "given", "given", "given"},
		{"PEM in one line with blanks", strings.ReplaceAll(forms.pkcs8, "\n", " "), "given", "given", "given"},
		{"PEM that is indented, in YAML", "key: |\n" + regexp.MustCompile("(?m)^").ReplaceAllString(forms.pkcs8, "  \t"), "given", "given", "given"},
		{"PEM in lines of source code", regexp.MustCompile("(?m)^(.+)$").ReplaceAllString(forms.pkix, "\t\"$1\\n\"\\"), "given", "given", ""},
		{"PEM after the attributes of a PKCS#12 file", "Bag Attributes\n    localKeyID: 01 \nKey Attributes: <No Attributes>\n" + forms.pkcs8, "given", "given", "given"},
		{"PEM with a byte order mark", "\ufeff" + forms.pkix, "given", "given", ""},
		{"PEM with a byte order mark within quotes", "\"\ufeff" + forms.pkix + "\"", "given", "given", ""},
		{"PEM in UTF-16, of PowerShell", utf16Text("\ufeff"+strings.ReplaceAll(forms.pkix, "\n", "\r\n"), binary.LittleEndian), "given", "given", ""},
		{"PEM in UTF-16, big endian", utf16Text("\ufeff"+forms.pkix, binary.BigEndian), "given", "given", ""},
		{"PEM with old line ends", strings.ReplaceAll(forms.pkix, "\n", "\r"), "given", "given", ""},
		{"PEM with blanks at the ends of lines", strings.ReplaceAll(forms.pkix, "\n", " \u00a0\t\n\n"), "given", "given", ""},
		{"JSON with a byte order mark", "\ufeff" + jwk(true, nil), "given", "k1", "k1"},
		{"JSON in quotes", "'" + jwk(false, nil) + "'\n", "given", "k1", ""},
		{"base64 in quotes, with literal \\n", `"` + strings.ReplaceAll(inLines(signingKey().PEM()), "\n", `\n`) + `"`, "given", "given", "given"},
		{"API object with a pem that has literal \\n", `{"id":"k1","pem":` + string(must(json.Marshal(strings.ReplaceAll(forms.pkcs8, "\n", `\n`)))) + `}`, "given", "k1", "k1"},
		{"PEM with the pair in two blocks", forms.pkcs1Private + "\n" + forms.pkix, "given", "given,given", "given"},
		{"PEM of a certificate and its key", forms.certificate + forms.pkcs8, "given", "given,given", "given"},
		{"base64 of a JWK, as the API's jwk", must(signingKey().JWK()), "", "k1", "k1"},
		{"base64 of a PEM, as the API's pem", signingKey().PEM(), "given", "given", "given"},
		{"base64 of a public PEM", wrap(forms.pkix), "given", "given", ""},
		{"base64 of a JWKS", wrap(`{"keys":[` + jwk(false, nil) + `]}`), "", "k1", ""},
		{"base64 in lines", inLines(signingKey().PEM()), "given", "given", "given"},
		{"API object", apiKey("id", "pem", "jwk", "created"), "", "k1", "k1"},
		{"API object with pem alone takes its id", apiKey("id", "pem"), "given", "k1", "k1"},
		{"API object with jwk alone", apiKey("jwk"), "", "k1", "k1"},
		{"API object with pem alone and no id", apiKey("pem"), "given", "given", "given"},
		{"API object with a jwk that has no kid", `{"id":"k1","jwk":"` + wrap(without(true, "kid")) + `"}`, "given", "k1", "k1"},
		{"API envelope", envelope(apiKey("id", "pem", "jwk", "created")), "", "k1", "k1"},
		{"API envelope with pem alone", envelope(apiKey("id", "pem")), "", "k1", "k1"},
		{"API envelope with white space", "{\n \"result\" : " + apiKey("id", "pem", "jwk") + "\n}", "", "k1", "k1"},
		{"keygen output with the public JWKS", strings.TrimSuffix(apiKey("id", "pem", "jwk"), "}") + `,"keys":[` + jwk(false, nil) + `]}`, "", "k1", "k1"},
		{"keygen output in base64", wrap(apiKey("id", "pem", "jwk")), "", "k1", "k1"},
	}
}

func utf16Text(text string, order binary.AppendByteOrder) string {
	var encoded []byte
	for _, c := range text {
		encoded = order.AppendUint16(encoded, uint16(c))
	}
	return string(encoded)
}

type keyForm struct{ name, data, id, public, signing string }

func TestParseKeys(t *testing.T) {
	t.Parallel()
	for _, tc := range keyForms() {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := token.ParsePublicKeys([]byte(tc.data), tc.id)
			if err != nil || strings.Join(ids(got), ",") != tc.public {
				t.Fatalf("ParsePublicKeys = %q, %v, want %q", ids(got), err, tc.public)
			}
			for _, key := range got {
				pair := testKeys().k1
				if key.ID() == "k2" {
					pair = testKeys().k2
				}
				if !key.Equal(must(token.NewPublicKey(key.ID(), &pair.PublicKey))) {
					t.Errorf("%q is another key", key.ID())
				}
				checkNoPrivateHalf(t, key)
			}
			signing, err := token.ParseSigningKey([]byte(tc.data), tc.id)
			if tc.signing == "" {
				if !errors.Is(err, token.ErrKey) || signing != nil {
					t.Errorf("ParseSigningKey = %v, %v, want ErrKey", signing, err)
				}
				return
			}
			if err != nil || signing.ID() != tc.signing || !signing.Public().Equal(must(token.NewPublicKey(tc.signing, &testKeys().k1.PublicKey))) {
				t.Fatalf("ParseSigningKey = %v, %v, want k1 as %q", signing, err, tc.signing)
			}
			checkSigns(t, signing)
		})
	}
}

func ids(keys []*token.PublicKey) (ids []string) {
	for _, key := range keys {
		ids = append(ids, key.ID())
	}
	return ids
}

func inLines(text string) string {
	var lines []string
	for line := range slices.Chunk([]byte(text), 76) {
		lines = append(lines, string(line))
	}
	return " " + strings.Join(lines, "\r\n\t") + "\n"
}

// checkNoPrivateHalf checks that a public key contains no part of a private key,
// whatever it was read from.
func checkNoPrivateHalf(t *testing.T, key *token.PublicKey) {
	t.Helper()
	doc, err := key.JWK()
	if err != nil {
		t.Fatal(err)
	}
	var members map[string]string
	if err := json.Unmarshal(doc, &members); err != nil {
		t.Fatal(err)
	}
	want := []string{"alg", "e", "kid", "kty", "n", "use"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(members))); diff != "" {
		t.Errorf("members of the public JWK (-want +got):\n%s", diff)
	}
	checkNoSecret(t, string(doc))
	if again, err := token.ParsePublicKeys(doc, ""); err != nil || len(again) != 1 || !again[0].Equal(key) {
		t.Errorf("ParsePublicKeys(JWK()) = %v, %v, want the same key", ids(again), err)
	}
}

// The attack: key material that is for another purpose, weak or broken. Each form
// must be refused, and no error may contain a private key.
func TestParseKeysRefuses(t *testing.T) {
	t.Parallel()
	k1, k2 := testKeys().k1, testKeys().k2
	forms := pemsOf(k1)
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	edwards, _, _ := ed25519.GenerateKey(rand.Reader)
	small := newRSA(1024)
	encrypted := string(pem.EncodeToMemory(&pem.Block{
		Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"},
		Bytes: x509.MarshalPKCS1PrivateKey(k1),
	}))
	pkix := func(key any) string { return string(pemText("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(key)))) }
	ecPrivate := string(pemText("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ec))))
	with := func(name string, value any) string { return jwk(false, map[string]any{name: value}) }
	rows := map[string][]string{
		"text":  {"", " \r\n\t", "garbage", "\x00\xff\xfe", string(x509.MarshalPKCS1PrivateKey(k1)), "/etc/ssl/private/key.pem"},
		"array": {`[` + jwk(true, nil) + `]`, `{}`},
		"base64": {
			wrap(x509.MarshalPKCS1PrivateKey(k1)), wrap(must(signingKey().JWK())), "====", strings.TrimRight(wrap(forms.pkix), "="),
			signingKey().PEM()[:501], "-" + signingKey().PEM()[1:],
		},
		"JSON that is cut, or has something around it": {jwk(true, nil)[:700], jwk(true, nil) + jwk(true, nil), `KEY=` + jwk(true, nil)},
		"JWKS of no keys, or of something else": {
			`{"keys":[]}`, `{"keys":[null]}`, `{"keys":["` + must(signingKey().JWK()) + `"]}`, `{"keys":[{"keys":[` + jwk(true, nil) + `]}]}`,
			`{"keys":` + jwk(true, nil) + `}`, `{"keys":[` + jwk(true, nil) + `,` + with("use", "enc") + `]}`,
		},
		"JWKS of two keys of one id": {
			`{"keys":[` + jwk(false, nil) + `,` + string(publicJWK("k1", &k2.PublicKey)) + `]}`,
			`{"keys":[` + with("kid", nil) + `,` + strings.Replace(string(publicJWK("x", &k2.PublicKey)), `"kid":"x",`, ``, 1) + `]}`,
		},
		"JWK of another kind": {
			fmt.Sprintf(`{"kty":"EC","kid":"k1","crv":"P-256","x":%q,"y":%q}`, b64(must(ec.PublicKey.Bytes())[1:33]), b64(must(ec.PublicKey.Bytes())[33:])),
			fmt.Sprintf(`{"kty":"OKP","kid":"k1","crv":"Ed25519","x":%q}`, b64([]byte(edwards))),
			`{"kty":"oct","kid":"k1","k":"` + b64(k1.D.Bytes()) + `"}`, `{"kty":"oct","kid":"k1","alg":"RS256","k":"` + b64(k1.D.Bytes()) + `"}`,
		},
		"API object": {
			`{"id":"k1","created":"2027-01-15T08:00:00Z"}`, `{"id":"k1","jwk":"{}"}`, `{"id":"k1","jwk":` + jwk(true, nil) + `}`,
			`{"id":"k1","jwk":"` + wrap("garbage") + `"}`, `{"id":"k2","jwk":"` + must(signingKey().JWK()) + `"}`,
		},
		"API envelope": { // a thousand in each other would take seconds
			envelope(envelope(apiKey("id", "pem", "jwk"))), envelope(`[` + apiKey("id", "pem") + `]`), envelope(`"Revoked"`), envelope(`null`),
		},
		"PEM of a weak key or of another kind": {
			pemsOf(small).certificate, pemsOf(small).pkcs8, pkix(&ec.PublicKey), pkix(edwards), ecPrivate, forms.pkix + ecPrivate,
			string(pemText("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(ec)))),
		},
		"encrypted PEM": {encrypted, string(pemText("ENCRYPTED PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(k1))))},
		"PEM with another label": {
			string(pemText("OPENSSH PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k1))), string(pemText("PUBLIC KEY", x509.MarshalPKCS1PrivateKey(k1))),
			string(pemText("PUBLIC KEY", []byte("garbage"))),
		},
		"PEM that is damaged": {
			strings.Replace(forms.pkix, "MIIB", "!!!!", 1) + forms.pkcs1Private, forms.pkix[:200] + "\n" + forms.pkcs1Private,
			forms.pkcs1Private[:900], strings.Replace(forms.pkcs1Private, "\n", "\n!", 3), forms.pkix + forms.pkcs1Private[:900],
			forms.pkcs1Private + jwk(true, nil), forms.pkcs1Private + "-----BEGIN RSA PRIVATE KEY-----\n", forms.pkix[5:] + forms.pkcs1Private,
			forms.pkix + strings.Replace(forms.pkcs1Private, "-----B", "----B", 1), strings.Replace(forms.pkix, "END PUBLIC", "END RSA PUBLIC", 1),
			strings.ReplaceAll(forms.pkix, "\n", `\x`), strings.ReplaceAll(forms.pkix, "\n", "|"),
		},
		"PEM of two keys and one id": {forms.pkix + pemsOf(k2).pkix},
		"no id":                      {forms.pkix, forms.certificate, forms.pkcs8, signingKey().PEM(), apiKey("pem"), with("kid", nil), with("kid", "")},
	}
	add := func(private bool, name string, values ...any) {
		for _, value := range values {
			row := fmt.Sprintf("JWK, private %t, with %s", private, name)
			rows[row] = append(rows[row], jwk(private, map[string]any{name: value}))
		}
	}
	add(false, "n", nil, "", "!!!", 5)
	add(false, "e", nil, "AA")
	add(false, "kty", "XYZ", "rsa")
	add(false, "kid", "k 1", strings.Repeat("k", 256))
	add(false, "use", "enc")
	add(false, "alg", "RS384", "PS256", "RSA-OAEP", "HS256", "none")
	add(false, "key_ops", []string{"encrypt"}, []string{"sign"}, []string{})
	add(true, "key_ops", []string{"decrypt"})
	add(true, "use", "enc")
	add(true, "alg", "RS512")
	add(true, "d", "!"+b64(k1.D.Bytes()), []string{b64(k1.D.Bytes())}, 12345)
	add(true, "kid", 1)
	for name, documents := range rows {
		for _, data := range documents {
			id := "given"
			if name == "no id" {
				id = ""
			}
			keys, err := token.ParsePublicKeys([]byte(data), id)
			if !errors.Is(err, token.ErrKey) || keys != nil {
				t.Errorf("%s: ParsePublicKeys(%q) = %v, %v, want ErrKey", name, data, ids(keys), err)
			}
			signing, signingErr := token.ParseSigningKey([]byte(data), id)
			if !errors.Is(signingErr, token.ErrKey) || signing != nil {
				t.Errorf("%s: ParseSigningKey(%q) = %v, %v, want ErrKey", name, data, signing, signingErr)
			}
			checkNoSecret(t, fmt.Sprint(err, signingErr))
		}
	}
}

// The attack: a key that verifies and must not sign, because it has no private
// key, has several, or has one that belongs to another public key.
func TestParseSigningKeyRefuses(t *testing.T) {
	t.Parallel()
	k1, k2 := testKeys().k1, testKeys().k2
	with := func(name string, value any) string { return jwk(true, map[string]any{name: value}) }
	for name, data := range map[string]string{
		"two private keys":                   pemsOf(k1).pkcs8 + pemsOf(k2).pkcs8,
		"halves that do not belong together": with("n", b64(k2.N.Bytes())),
		"another d":                          with("d", b64(k2.D.Bytes())),
		"other primes":                       jwk(true, map[string]any{"p": b64(k2.Primes[0].Bytes()), "q": b64(k2.Primes[1].Bytes())}),
		"a prime that is none":               with("p", "AQAB"),
		"only verifies":                      with("key_ops", []string{"verify"}),
		"8192 bits": string(pemText("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(&rsa.PrivateKey{
			PublicKey: rsa.PublicKey{N: oddModulus(8192), E: 65537}, D: k1.D, Primes: k1.Primes,
		}))),
		"e=3": with("e", "Aw"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, err := token.ParseSigningKey([]byte(data), "k1")
			if !errors.Is(err, token.ErrKey) || key != nil {
				t.Fatalf("ParseSigningKey = %v, %v, want ErrKey", key, err)
			}
			checkNoSecret(t, err.Error())
		})
	}
}

func TestParseJWKS(t *testing.T) {
	t.Parallel()
	k2 := string(publicJWK("k2", &testKeys().k2.PublicKey))
	skip := []string{
		jwk(false, map[string]any{"use": "enc"}), jwk(false, map[string]any{"alg": "PS256"}), jwk(false, map[string]any{"kid": nil}),
		jwk(false, map[string]any{"e": "Aw"}), jwk(false, map[string]any{"n": "AQAB"}), jwk(false, map[string]any{"key_ops": []string{"encrypt"}}),
		`{"kty":"oct","kid":"k1","k":"AAAA"}`, `{"kty":"OKP","kid":"k1","crv":"Ed25519","x":"` + strings.Repeat("A", 43) + `"}`,
		`{"kty":"new","kid":"k1"}`, `{}`, `null`, `1`, `"k1"`, `[]`, `{"keys":[` + jwk(false, nil) + `]}`,
		jwk(true, map[string]any{"kid": "k 1"}), jwk(true, map[string]any{"d": 1}),
	}
	for _, tc := range []struct {
		name, data string
		ids        []string
		skipped    int
	}{
		{"one key", `{"keys":[` + jwk(false, nil) + `]}`, []string{"k1"}, 0},
		{"two keys", `{"keys":[` + k2 + `,` + jwk(false, nil) + `]}`, []string{"k1", "k2"}, 0},
		{"a private key", `{"keys":[` + jwk(true, nil) + `]}`, []string{"k1"}, 0},
		{"the same key twice", `{"keys":[` + jwk(false, nil) + `,` + jwk(true, nil) + `]}`, []string{"k1"}, 0},
		{"no keys", `{"keys":[]}`, nil, 0},
		{"other members", `{"issuer":"x","keys":[` + k2 + `],"next":null}`, []string{"k2"}, 0},
		{"nothing but unusable keys", `{"keys":[` + strings.Join(skip, ",") + `]}`, nil, len(skip)},
		{"unusable keys around", `{"keys":[` + strings.Join(append(append([]string{k2}, skip...), jwk(false, nil)), ",") + `]}`, []string{"k1", "k2"}, len(skip)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			set, skipped, err := token.ParseJWKS([]byte(tc.data))
			if err != nil {
				t.Fatalf("ParseJWKS = %v", err)
			}
			if diff := cmp.Diff(tc.ids, set.IDs()); diff != "" {
				t.Errorf("ids (-want +got):\n%s", diff)
			}
			if len(skipped) != tc.skipped {
				t.Errorf("%d keys skipped, want %d: %v", len(skipped), tc.skipped, skipped)
			}
			for _, reason := range skipped {
				if !errors.Is(reason, token.ErrKey) {
					t.Errorf("skipped for %v, want ErrKey", reason)
				}
				checkNoSecret(t, reason.Error())
			}
			for _, id := range set.IDs() {
				if key := set.Lookup(id); key.ID() != id || !key.Equal(testKeys().set.Lookup(id)) {
					t.Errorf("Lookup(%q) is another key", id)
				}
				checkNoPrivateHalf(t, set.Lookup(id))
			}
		})
	}
}

// The attack: a published set whose second key takes over the id of the first,
// and documents that look like an empty set, which would drop all keys.
func TestParseJWKSRefuses(t *testing.T) {
	t.Parallel()
	for _, data := range []string{
		`{"keys":[` + jwk(false, nil) + `,` + string(publicJWK("k1", &testKeys().k2.PublicKey)) + `]}`,
		``, `garbage`, `<!doctype html>`, `{}`, jwk(false, nil), `null`, `[` + jwk(false, nil) + `]`, `{"error":"not found"}`,
		`{"keys":null}`, `{"keys":` + jwk(true, nil) + `}`, `{"keys":"` + must(signingKey().JWK()) + `"}`,
		`{"keys":[` + jwk(true, nil), `{"keys":[]}{"keys":[]}`,
	} {
		set, _, err := token.ParseJWKS([]byte(data))
		if !errors.Is(err, token.ErrKey) || set != nil {
			t.Errorf("ParseJWKS(%.40q…) = %v, %v, want ErrKey", data, set.IDs(), err)
		} else {
			checkNoSecret(t, err.Error())
		}
	}
}

func TestGenerateSigningKey(t *testing.T) {
	t.Parallel()
	key, err := token.GenerateSigningKey("")
	if err != nil {
		t.Fatal(err)
	}
	checkSigns(t, key)
	if id := key.ID(); len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		t.Errorf("ID() = %q, want 32 hexadecimal digits", id)
	}
	if text := must(base64.StdEncoding.DecodeString(key.PEM())); !strings.HasPrefix(string(text), "-----BEGIN RSA PRIVATE KEY-----\n") {
		t.Errorf("PEM() wraps %.40q", text)
	}
	var members map[string]string
	if err := json.Unmarshal(must(base64.StdEncoding.DecodeString(must(key.JWK()))), &members); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": key.ID(), "e": "AQAB"} {
		if members[name] != value {
			t.Errorf("JWK() has %s %q, want %q", name, members[name], value)
		}
	}
	if _, err := token.GenerateSigningKey("k 1"); !errors.Is(err, token.ErrKey) {
		t.Errorf("GenerateSigningKey with a space = %v, want ErrKey", err)
	}
}

func TestKeyIDsOfKeys(t *testing.T) {
	t.Parallel()
	public := &testKeys().k1.PublicKey
	for _, id := range []string{"k", strings.Repeat("k", 255), "!", "~", "../k", `"\<>&`} {
		if key, err := token.NewPublicKey(id, public); err != nil || key.ID() != id {
			t.Errorf("NewPublicKey(%q) = %v", id, err)
		}
	}
	for _, id := range []string{"", strings.Repeat("k", 256), " ", "k 1", "k1\n", "\x00", "k\x7f", "ké", "k\u0301", "\xff"} {
		if _, err := token.NewPublicKey(id, public); !errors.Is(err, token.ErrKey) {
			t.Errorf("NewPublicKey(%q) = %v, want ErrKey", id, err)
		}
		if _, err := token.NewSigningKey(id, testKeys().k1); !errors.Is(err, token.ErrKey) {
			t.Errorf("NewSigningKey(%q) = %v, want ErrKey", id, err)
		}
	}
}

func TestKeySet(t *testing.T) {
	t.Parallel()
	k1, k2 := testKeys().set.Lookup("k1"), testKeys().set.Lookup("k2")
	same := must(token.NewPublicKey("k1", &testKeys().k1.PublicKey))
	set, err := token.NewKeySet(k2, k1, same)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"k1", "k2"}, set.IDs()); diff != "" {
		t.Errorf("ids (-want +got):\n%s", diff)
	}
	if got := set.Lookup("k1"); got == nil || !got.Equal(k1) || got.Equal(k2) {
		t.Errorf("Lookup(k1) = %v", got)
	}
	for _, id := range []string{"", "K1", "k3"} {
		if got := set.Lookup(id); got != nil {
			t.Errorf("Lookup(%q) = %v, want nil", id, got.ID())
		}
	}
	other := must(token.NewPublicKey("k1", &testKeys().k2.PublicKey))
	if _, err := token.NewKeySet(k1, other); !errors.Is(err, token.ErrKey) {
		t.Errorf("NewKeySet of two keys with one id = %v, want ErrKey", err)
	}
	if other.Equal(k2) || other.Equal(k1) {
		t.Error("keys of different ids or halves are equal")
	}
	for name, empty := range map[string]*token.KeySet{"nil": nil, "empty": must(token.NewKeySet()), "zero": new(token.KeySet)} {
		if empty.Lookup("k1") != nil || empty.Lookup("") != nil || len(empty.IDs()) != 0 {
			t.Errorf("the %s set has keys", name)
		}
	}
}

// The attack: a private key gets into a log because it is printed, or into a
// response because it is encoded.
func TestSigningKeysDoNotPrint(t *testing.T) {
	t.Parallel()
	key := signingKey()
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		checkNoSecret(t, fmt.Sprintf(format, key))
	}
	checkNoSecret(t, string(must(json.Marshal(key))))
}
