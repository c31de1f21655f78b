package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// A token is minted of what the gate understands and nothing else: who asks for
// something else is told what is wrong and why, and gets no token that means
// less than he thinks.
func TestHostileAPIMint(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	now := time.Now()
	unix := func(d time.Duration) string { return fmt.Sprint(now.Add(d).Unix()) }
	rules := func(list string) string { return `{"accessRules":` + list + `}` }
	var prefixes []string
	for i := range 600 {
		prefixes = append(prefixes, fmt.Sprintf(`"2001:db8:%x::/48"`, i))
	}
	for _, row := range []bodyRow{
		{"exp in the past", `{"exp":` + unix(-time.Second) + `}`, "exp is " + now.Add(-time.Second).UTC().Format(time.RFC3339) + ", which is in the past"},
		{"exp long ago", `{"exp":1}`, "exp is 1970-01-01T00:00:01Z, which is in the past"},
		{"exp too far", `{"exp":` + unix(24*time.Hour+time.Minute) + `}`, "more than 24 hours ahead"},
		{"exp in milliseconds", `{"exp":` + fmt.Sprint(now.Add(time.Hour).UnixMilli()) + `}`, "it is in Unix seconds"},
		{"exp beyond all numbers", `{"exp":99999999999999999999}`, "exp is 99999999999999999999: want Unix seconds"},
		{"exp at the end of numbers", `{"exp":9223372036854775807}`, "exp is 9223372036854775807"},
		{"nbf at the end of numbers", `{"nbf":9223372036854775807}`, "nbf is "},
		{"exp before 1970", `{"exp":-1}`, "exp is -1: want Unix seconds"},
		{"exp as a string", `{"exp":"` + unix(time.Hour) + `"}`, `exp is "` + unix(time.Hour) + `": want Unix seconds`},
		{"exp as a date", `{"exp":"2090-01-01T00:00:00Z"}`, "exp is"},
		{"exp as a fraction", `{"exp":` + unix(time.Hour) + `.5}`, "want Unix seconds, a whole number"},
		{"exp with an exponent", `{"exp":4e9}`, "exp is 4e9"},
		{"exp as true", `{"exp":true}`, "exp is true"},
		{"exp as an object", `{"exp":{}}`, "exp is {}"},
		{"nbf behind exp", `{"exp":` + unix(time.Hour) + `,"nbf":` + unix(2*time.Hour) + `}`, "nbf is " + unix(2*time.Hour) + ", which is not before exp (" + unix(time.Hour) + ")"},
		{"nbf at exp", `{"exp":` + unix(time.Hour) + `,"nbf":` + unix(time.Hour) + `}`, "not before exp"},
		{"nbf behind the default of exp", `{"nbf":` + unix(2*time.Hour) + `}`, "not before exp"},
		{"nbf as a string", `{"nbf":"` + unix(0) + `"}`, "nbf is"},
		{"nbf before 1970", `{"nbf":-1}`, "nbf is -1"},
		{"downloadable as a string", `{"downloadable":"false"}`, `downloadable is "false": want true or false`},
		{"downloadable as a number", `{"downloadable":1}`, "downloadable is 1"},
		{"downloadable as null", `{"downloadable":null}`, "downloadable is null"},
		{"the original", `{"flags":{"original":true}}`, "flags.original is not supported"},
		{"any flag", `{"flags":{"x":"y"}}`, "flags.x is not supported"},
		{"flags as an array", `{"flags":[]}`, "flags is not an object"},

		{"the claim sub", `{"sub":"other"}`, `unknown member "sub"`},
		{"the claim kid", `{"kid":"main"}`, `unknown member "kid"`},
		{"the claim iat", `{"iat":` + unix(0) + `}`, `unknown member "iat"`},
		{"the claim aud", `{"aud":"x"}`, `unknown member "aud"`},
		{"the header's alg", `{"alg":"none"}`, `unknown member "alg"`},
		{"a claim of one's own", `{"viewerId":"x"}`, `unknown member "viewerId"`},
		{"exp in capitals", `{"EXP":4102444800}`, `unknown member "EXP"`},
		{"exp with a space", `{"exp ":4102444800}`, `unknown member "exp "`},
		{"rules in another case", `{"accessrules":[{"type":"any","action":"block"}]}`, `unknown member "accessrules"`},
		{"rules as in the config file", `{"access_rules":[{"type":"any","action":"block"}]}`, `unknown member "access_rules"`},
		{"a name that ends the claim", `{"x\",\"sub\":\"other":1}`, "unknown member"},
		{"a name that ends the payload", `{"x\":1}.{\"sub\":\"other\"":1}`, "unknown member"},
		{"a name with NUL", `{"exp\u0000":1}`, "unknown member"},
		{"exp twice", `{"exp":` + unix(time.Hour) + `,"exp":0}`, "duplicate member"},

		{"rules as an object", rules(`{"type":"any","action":"block"}`), "accessRules is not an array"},
		{"rules as a string", rules(`"[{\"type\":\"any\",\"action\":\"block\"}]"`), "accessRules is not an array"},
		{"a rule that is a string", rules(`["any"]`), "rule 1: it is not an object"},
		{"a rule without an action", rules(`[{"type":"any"}]`), "rule 1: action is missing"},
		{"a rule without a type", rules(`[{"action":"block"}]`), "rule 1: type is missing"},
		{"the second rule", rules(`[{"type":"any","action":"block"},{"type":"any","action":"deny"}]`), `rule 2: action is "deny": want "allow" or "block"`},
		{"an action in another case", rules(`[{"type":"any","action":"Block"}]`), `rule 1: action is "Block"`},
		{"a type in another case", rules(`[{"type":"IP.SRC","action":"block","ip":["10.0.0.0/8"]}]`), `rule 1: type is "IP.SRC"`},
		{"an unknown type", rules(`[{"type":"ip.geoip.continent","action":"block"}]`), `rule 1: type is "ip.geoip.continent": want`},
		{"addresses missing", rules(`[{"type":"ip.src","action":"block"}]`), "rule 1: ip is missing"},
		{"no addresses", rules(`[{"type":"ip.src","action":"block","ip":[]}]`), "rule 1: ip is []"},
		{"an address that is no list", rules(`[{"type":"ip.src","action":"block","ip":"10.0.0.1"}]`), `rule 1: ip is "10.0.0.1": want an array`},
		{"an address that is none", rules(`[{"type":"ip.src","action":"block","ip":["10.0.0.256"]}]`), `"10.0.0.256" is neither an IP address nor a CIDR`},
		{"a range of addresses", rules(`[{"type":"ip.src","action":"block","ip":["10.0.0.1-10.0.0.9"]}]`), "neither an IP address nor a CIDR"},
		{"a prefix too long", rules(`[{"type":"ip.src","action":"block","ip":["10.0.0.0/33"]}]`), "neither an IP address nor a CIDR"},
		{"an octal address", rules(`[{"type":"ip.src","action":"block","ip":["010.0.0.1"]}]`), "neither an IP address nor a CIDR"},
		{"an address with a zone", rules(`[{"type":"ip.src","action":"block","ip":["fe80::1%eth0"]}]`), "neither an IP address nor a CIDR"},
		{"countries missing", rules(`[{"type":"ip.geoip.country","action":"block"}]`), "rule 1: country is missing"},
		{"no countries", rules(`[{"type":"ip.geoip.country","action":"block","country":[]}]`), "rule 1: country is []"},
		{"a country that is no list", rules(`[{"type":"ip.geoip.country","action":"block","country":"US"}]`), `rule 1: country is "US": want an array`},
		{"a country of three letters", rules(`[{"type":"ip.geoip.country","action":"block","country":["USA"]}]`), `"USA" is not an ISO 3166-1 alpha-2 code`},
		{"a country's name", rules(`[{"type":"ip.geoip.country","action":"block","country":["Germany"]}]`), "alpha-2"},
		{"a rule's member twice", rules(`[{"type":"any","action":"allow","action":"block"}]`), "duplicate member"},
		{"too many rules", rules(`[` + strings.Repeat(`{"type":"any","action":"block"},`, 64) + `{"type":"any","action":"block"}]`), "more than 64 rules"},
		{"rules that no token holds", rules(`[{"type":"ip.src","action":"block","ip":[` + strings.Join(prefixes, ",") + `]}]`), "8192"},
	} {
		t.Run("A6 "+row.name, func(t *testing.T) {
			wantAPIError(t, g.call(t, http.MethodPost, "stream/demo/token", row.body), http.StatusBadRequest, row.message)
		})
	}
}

// What a token claims is what was asked for, in fixed names, and the gate reads
// it the same way.
func TestAPIMintedClaims(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	mintOf := func(t *testing.T, body string) (compact string, payload map[string]any) {
		t.Helper()
		compact = g.mintToken(t, "nobody-has-set-it", body)
		parsed, err := token.Parse(compact)
		if err != nil {
			t.Fatal(err)
		}
		header, claims := parsed.Documents()
		if want := fmt.Sprintf(`{"alg":"RS256","kid":%q}`, keyIDOf(t, compact)); header != want {
			t.Errorf("the header is %s, want %s", header, want)
		}
		if err := json.Unmarshal([]byte(claims), &payload); err != nil {
			t.Fatal(err)
		}
		return compact, payload
	}
	names := func(payload map[string]any) []string { return slices.Sorted(maps.Keys(payload)) }

	for _, body := range []string{"", "{}", "null", `{"exp":0,"nbf":0}`, `{"accessRules":null,"downloadable":false,"flags":{},"id":"","pem":""}`} {
		before := time.Now().Truncate(time.Second)
		compact, payload := mintOf(t, body)
		after := time.Now()
		if diff := cmp.Diff([]string{"exp", "kid", "nbf", "sub"}, names(payload)); diff != "" {
			t.Errorf("%s: claims (-want +got):\n%s", body, diff)
		}
		for name, offset := range map[string]time.Duration{"exp": time.Hour, "nbf": -time.Hour} {
			var seconds int64
			text, _ := payload[name].(string)
			_, err := fmt.Sscan(text, &seconds)
			if date := time.Unix(seconds, 0).Add(-offset); err != nil || date.Before(before) || date.After(after) {
				t.Errorf("%s: %s is %v, want %s from now as a string", body, name, payload[name], offset)
			}
		}
		o.wantPassed(t, g.get(t, "/"+compact+"/video/1.ts"), "/nobody-has-set-it/video/1.ts")
		o.wantRefused(t, g.get(t, "/"+compact+"/downloads/x.mp4"), http.StatusForbidden, "download_not_allowed")
	}

	exp := time.Now().Add(24*time.Hour - 10*time.Second).Unix()
	blocks := `[{"type":"any","action":"block"}]`
	compact, payload := mintOf(t, fmt.Sprintf(`{"exp":%d,"nbf":1,"downloadable":true,"accessRules":%s,"flags":{"original":false}}`, exp, blocks))
	got, _ := json.Marshal(payload)
	want := fmt.Sprintf(`{"accessRules":%s,"downloadable":true,"exp":"%d","kid":%q,"nbf":"1","sub":"nobody-has-set-it"}`,
		`[{"action":"block","type":"any"}]`, exp, keyIDOf(t, compact))
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	o.wantRefused(t, g.get(t, "/"+compact+"/video/1.ts"), http.StatusForbidden, "rule_blocked")
	late, _ := mintOf(t, fmt.Sprintf(`{"nbf":%d}`, time.Now().Add(30*time.Minute).Unix()))
	o.wantRefused(t, g.get(t, "/"+late+"/video/1.ts"), http.StatusUnauthorized, "token_not_yet_valid")
	download, _ := mintOf(t, `{"downloadable":true}`)
	o.wantPassed(t, g.get(t, "/"+download+"/downloads/x.mp4"), "/nobody-has-set-it/downloads/x.mp4")
}

// Rules that are valid and most likely not meant are minted with a warning, and
// those that are meant without one, or nobody would read them.
func TestAPIMintWarnings(t *testing.T) {
	const restrictsNothing, noDatabase, noIPv6, tooLongLived = "restricts nothing", "geoip_database", "IPv6", "max_token_lifetime"
	const blockAll = `{"type":"any","action":"block"}`
	rule := func(action, typ, member string, values ...string) string {
		list, _ := json.Marshal(values)
		return fmt.Sprintf(`{"type":%q,"action":%q,%q:%s}`, typ, action, member, list)
	}
	addresses := func(action string, list ...string) string { return rule(action, "ip.src", "ip", list...) }
	countries := func(action string, list ...string) string {
		return rule(action, "ip.geoip.country", "country", list...)
	}
	o := startOrigin(t, nil)
	without := start(t, o, config{api: withAPI})
	with := start(t, o, config{api: withAPI, app: withCountries(t) + "\nmax_token_lifetime 2h"})
	for _, row := range []struct {
		name  string
		g     *gateway
		rules []string
		want  []string
	}{
		{"no rules", without, nil, nil},
		{"only allow", without, []string{addresses("allow", "192.0.2.0/24", "2001:db8::/32")}, []string{restrictsNothing}},
		{"only allow, twice", without, []string{addresses("allow", "192.0.2.1"), addresses("allow", "2001:db8::1")}, []string{restrictsNothing}},
		{"allow anybody", without, []string{`{"type":"any","action":"allow"}`}, []string{restrictsNothing}},
		{"allow at the end of some blocks", without, []string{addresses("block", "192.0.2.0/24", "2001:db8::/32"), addresses("allow", "198.51.100.1", "2001:db8:1::1")}, []string{restrictsNothing}},
		{"allow and block the others", without, []string{addresses("allow", "192.0.2.0/24", "2001:db8::/32"), blockAll}, nil},
		{"block some", without, []string{addresses("block", "192.0.2.0/24", "2001:db8::/32")}, nil},
		{"block some, allow the others", without, []string{addresses("block", "192.0.2.0/24", "2001:db8::/32"), `{"type":"any","action":"allow"}`}, nil},
		{"block all", without, []string{blockAll}, nil},
		{"IPv4 alone", without, []string{addresses("allow", "192.0.2.0/24"), blockAll}, []string{noIPv6}},
		{"IPv4 alone, blocked", without, []string{addresses("block", "192.0.2.1")}, []string{noIPv6}},
		{"IPv4 written as IPv6", without, []string{addresses("allow", "::ffff:192.0.2.1", "192.0.2.2"), blockAll}, []string{noIPv6}},
		{"IPv4 and IPv6 in two rules", without, []string{addresses("allow", "192.0.2.0/24"), addresses("allow", "2001:db8::/32"), blockAll}, nil},
		{"IPv6 alone", without, []string{addresses("allow", "2001:db8::/32"), blockAll}, nil},
		{"countries without a database", without, []string{countries("allow", "DE"), blockAll}, []string{noDatabase}},
		{"countries with a database", with, []string{countries("allow", "DE", "at"), blockAll}, nil},
		{"countries blocked", with, []string{countries("block", "DE")}, nil},
		{"everything at once", without, []string{countries("allow", "DE"), addresses("allow", "192.0.2.1")}, []string{restrictsNothing, noDatabase, noIPv6}},
		{"members that the type does not need", without, []string{`{"type":"any","action":"block","country":["DE"],"ip":["192.0.2.1"]}`}, nil},
	} {
		t.Run("A6 "+row.name, func(t *testing.T) {
			body := `{"accessRules":[` + strings.Join(row.rules, ",") + `]}`
			wantWarnings(t, row.g.mustCall(t, http.MethodPost, "stream/demo/token", body, nil), row.want)
		})
	}
	for lifetime, want := range map[time.Duration][]string{3 * time.Hour: {tooLongLived}, 90 * time.Minute: nil} {
		t.Run("A6 the life of "+lifetime.String(), func(t *testing.T) {
			body := fmt.Sprintf(`{"exp":%d}`, time.Now().Add(lifetime).Unix())
			wantWarnings(t, with.mustCall(t, http.MethodPost, "stream/demo/token", body, nil), want)
		})
	}
}

func wantWarnings(t testing.TB, res *apiResponse, want []string) {
	t.Helper()
	missing := slices.Clone(want)
	for _, message := range res.Messages {
		missing = slices.DeleteFunc(missing, func(word string) bool { return strings.Contains(message.Message, word) })
	}
	if len(missing) != 0 || len(res.Messages) != len(want) {
		t.Errorf("the warnings are %v, want %q", res.Messages, want)
	}
}

// privateText returns what must not get about of a key that the API has made,
// without what any key or its public half has in common with it.
func (k apiKey) privateText(t testing.TB) map[string]string {
	t.Helper()
	secrets := secretsOf(t, k)
	delete(secrets, "the PEM in it")
	secrets["pem"] = k.PEM[len(k.PEM)/2 : len(k.PEM)-80]
	secrets["jwk"] = k.JWK[len(k.JWK)/2:]
	return secrets
}

// text returns the PEM as a key file holds it.
func (k apiKey) text(t testing.TB) string {
	t.Helper()
	text, _ := decodedPEM(t, k.PEM)
	return text
}

// wantNoPartOf checks that a text holds no piece of a secret, even of one that
// is cut off.
func wantNoPartOf(t testing.TB, where, text string, secrets map[string]string) {
	t.Helper()
	const piece = 20
	for name, secret := range secrets {
		for at := 0; at < len(secret); at += piece / 2 {
			part := secret[at:min(at+piece, len(secret))]
			if len(part) >= min(piece, len(secret)) && strings.Contains(text, part) {
				t.Errorf("%s holds a part of %s, at %d", where, name, at)
				return
			}
		}
	}
}

// A key of the caller's signs only if it is the private half of one that the
// gateway verifies with, and whatever he sends, it is neither repeated nor kept.
func TestHostileAPIForeignPEM(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	key, other, revoked := g.createKey(t), g.createKey(t), g.createKey(t)
	g.mustCall(t, http.MethodDelete, "stream/keys/"+revoked.ID, "", nil)
	pair, err := token.ParseSigningKey([]byte(key.PEM), key.ID)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := base64.StdEncoding.DecodeString(key.JWK)
	if err != nil {
		t.Fatal(err)
	}
	// with returns the private JWK with some members changed.
	with := func(changes string) string {
		var members map[string]any
		for _, document := range []string{string(jwk), changes} {
			if err := json.Unmarshal([]byte(document), &members); err != nil {
				t.Fatal(err)
			}
		}
		changed, _ := json.Marshal(members)
		return string(changed)
	}
	block := func(kind string, der []byte, headers map[string]string) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Headers: headers, Bytes: der}))
	}
	der, _ := pem.Decode([]byte(key.text(t)))
	private, err := x509.ParsePKCS1PrivateKey(der.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, _ := x509.MarshalPKCS8PrivateKey(private)
	ellipticKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	sec1, _ := x509.MarshalECPrivateKey(ellipticKey)
	ellipticPKCS8, _ := x509.MarshalPKCS8PrivateKey(ellipticKey)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	files := g.storage("signed_playback")
	before := tree(t, files)
	secrets := make(map[string]string)
	for owner, made := range map[string]apiKey{"key": key, "other": other, "revoked": revoked} {
		for name, secret := range made.privateText(t) {
			secrets[name+" of "+owner] = secret
		}
	}

	for _, row := range []struct{ name, id, pem, message string }{
		{"the public half", key.ID, string(publicPEM(t, &private.PublicKey)), "no private half"},
		{"the public half, PKCS#1", key.ID, block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&private.PublicKey), nil), "no private half"},
		{"the public JWK", key.ID, string(publicJWKS(t, pair)), "no private half"},
		{"an encrypted key", key.ID, block("RSA PRIVATE KEY", der.Bytes, map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00112233445566778899AABBCCDDEEFF"}), "encrypted"},
		{"an encrypted key, PKCS#8", key.ID, block("ENCRYPTED PRIVATE KEY", pkcs8, nil), "encrypted"},
		{"an EC key", key.ID, block("EC PRIVATE KEY", sec1, nil), "EC PRIVATE KEY"},
		{"an EC key, PKCS#8", key.ID, block("PRIVATE KEY", ellipticPKCS8, nil), "want RSA"},
		{"a weak key", key.ID, block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(weak), nil), "1024 bits"},
		{"the key of somebody else", key.ID, other.PEM, "not the private half of the key"},
		{"the id of somebody else", other.ID, key.PEM, "not the private half of the key"},
		{"a jwk under another id", other.ID, key.JWK, "pem"},
		{"an unknown id", strings.Repeat("0", 32), key.PEM, "there is no key"},
		{"a revoked id", revoked.ID, revoked.PEM, "or it is revoked"},
		{"the id of a key whose file is not here", keyID, key.PEM, "not the private half of the key"},
		{"an id that is a path", "../signing/current", key.PEM, "there is no key"},
		{"an id with spaces", "a b", key.PEM, "pem"},
		{"an id without pem", key.ID, "", "`id` and `pem` go together"},
		{"pem without an id", "", key.PEM, "`id` and `pem` go together"},
		{"the pem as the id", key.PEM, key.PEM, "id"},
		{"the text of the pem as the id", key.text(t), key.text(t), "id"},
		{"id and pem swapped", key.PEM, key.ID, "pem"},
		{"oct", key.ID, `{"kty":"oct","kid":"` + key.ID + `","alg":"RS256","k":"c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}`, "want RSA"},
		{"for encryption", key.ID, with(`{"use":"enc"}`), "use"},
		{"for another algorithm", key.ID, with(`{"alg":"HS256"}`), "alg"},
		{"to verify only", key.ID, with(`{"key_ops":["verify"]}`), "key_ops"},
		{"a jwk with a broken prime", key.ID, with(`{"p":"AQAB"}`), "pem"},
		{"a jwk with d as a number", key.ID, with(`{"d":12345}`), "pem"},
		{"a jwk that is not base64", key.ID, with(`{"d":"****"}`), "pem"},
		{"two keys", key.ID, key.text(t) + other.text(t), "private keys where one is wanted"},
		{"a key and something behind", key.ID, key.text(t) + "-----BEGIN RSA PRIVATE KEY-----\n", "broken PEM"},
		{"half a key", key.ID, key.text(t)[:len(key.text(t))/2], "broken PEM"},
		{"half of the base64", key.ID, key.PEM[:len(key.PEM)/2], "pem"},
		{"a flipped byte", key.ID, strings.Replace(key.text(t), "\n", "\nAAAA", 1), "pem"},
		{"garbage", key.ID, "garbage", "neither JSON, nor PEM"},
		{"a path", key.ID, "/etc/ssl/private/key.pem", "neither JSON, nor PEM"},
	} {
		t.Run("A8 "+row.name, func(t *testing.T) {
			body, _ := json.Marshal(map[string]string{"id": row.id, "pem": row.pem})
			res := g.call(t, http.MethodPost, "stream/demo/token", string(body))
			wantAPIError(t, res, http.StatusBadRequest, row.message)
			wantNoPartOf(t, "the answer", string(res.body), secrets)
		})
	}
	t.Run("A8 a pem of 1 MB", func(t *testing.T) {
		body, _ := json.Marshal(map[string]string{"id": key.ID, "pem": strings.Repeat(key.text(t), 600)})
		res := g.call(t, http.MethodPost, "stream/demo/token", string(body))
		wantAPIError(t, res, http.StatusRequestEntityTooLarge, "longer")
		wantNoPartOf(t, "the answer", string(res.body), secrets)
	})
	for name, private := range map[string]string{"the pem": key.PEM, "its text": key.text(t), "PKCS#8": block("PRIVATE KEY", pkcs8, nil), "the jwk": key.JWK, "the text of the jwk": string(jwk)} {
		t.Run("A8 "+name+" signs", func(t *testing.T) {
			body, _ := json.Marshal(map[string]string{"id": key.ID, "pem": private})
			minted := g.mintToken(t, "demo", string(body))
			if got := keyIDOf(t, minted); got != key.ID {
				t.Errorf("the token has the kid %q, want %q", got, key.ID)
			}
			o.wantPassed(t, g.get(t, "/"+minted+"/video/1.ts"), "/demo/video/1.ts")
		})
	}
	list := g.mustCall(t, http.MethodGet, "stream/keys", "", nil)
	wantNoPartOf(t, "the list of keys", string(list.body), secrets)
	wantSameTree(t, files, before)
	for path, content := range before {
		wantNoPartOf(t, "the store, in "+filepath.Base(path)+",", content, secrets)
	}
	wantNoPartOf(t, "the log", g.log.String(), secrets)
}
