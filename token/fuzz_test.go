package token_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jws"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// FuzzParse checks that an accepted token has one spelling, that nothing of a
// refused token is returned, and that a general JWS library accepts all tokens that
// this package accepts.
func FuzzParse(f *testing.F) {
	for _, tc := range accepted {
		f.Add(forge(tc.header, tc.payload))
	}
	good := forge(goodHeader, goodPayload)
	for _, seed := range []string{
		"", "..", good + "=", good + ".", good[:len(good)-1] + "_", " " + good, cloudflareSample,
		b64(`{"alg":"none"}`) + "." + b64(goodPayload) + ".",
		b64(goodHeader) + "." + b64(goodPayload) + ".",
		b64(goodHeader) + "." + b64(goodPayload) + ".AAAA",
		forge(goodHeader, good),
	} {
		f.Add(seed)
	}
	f.Fuzz(checkParse)
}

// FuzzForge checks the same for a header and a payload, which a fuzzer does not
// reach through base64, and that a general JSON reader sees the same claims.
func FuzzForge(f *testing.F) {
	for _, tc := range accepted {
		f.Add(tc.header, tc.payload)
	}
	for _, payload := range []string{
		goodPayload + `{"sub":"vid2"}`, `{"sub":"demo","exp":1800003600,"sub":"vid2"}`, `{"sub":"demo","exp":1800003600,"SUB":"vid2"}`,
		`{"sub":"../vid2","exp":1}`, `{"sub":"demo","exp":1e400}`, `{"sub":"demo","exp":1,"x":"\ud800"}`, `{"sub":"demo","exp":"1"}`,
		"{\"sub\":\"demo\",\"exp\":1,\"x\":\"\xff\"}", `{"\u0073ub":"demo","exp":1,"kid":"\u006b1"}`, `[]`, ``,
	} {
		f.Add(goodHeader, payload)
	}
	for _, header := range []string{
		`{"alg":"none"}`, `{"alg":"RS256","kid":"a","kid":"k1"}`, `{"alg":"RS256","kid":"k1","crit":["x"],"x":1}`,
		`{"alg":"RS256","kid":"k1","typ":"jwt"}`, `{"alg":"RS256","b64":false}`, `{"\u0061lg":"RS256","kid":"k1"}`,
	} {
		f.Add(header, goodPayload)
	}
	f.Fuzz(func(t *testing.T, header, payload string) {
		compact := b64(header) + "." + b64(payload) + "."
		checkParse(t, compact)
		parsed, err := token.Parse(compact)
		if err != nil {
			return
		}
		var members, claims map[string]any
		if err := json.Unmarshal([]byte(header), &members); err != nil {
			t.Fatalf("Parse accepted the header %q, encoding/json says %v", header, err)
		}
		if err := json.Unmarshal([]byte(payload), &claims); err != nil && !strings.Contains(err.Error(), "cannot unmarshal number") {
			t.Fatalf("Parse accepted the payload %q, encoding/json says %v", payload, err)
		}
		got := parsed.Unverified()
		if members["alg"] != "RS256" || claims["sub"] != got.VideoID {
			t.Fatalf("Parse(%q, %q) = %+v, encoding/json reads %v, %v", header, payload, got, members, claims)
		}
		for name := range claims {
			for _, claim := range restricting {
				if name != claim && strings.EqualFold(strings.NewReplacer("_", "", "-", "").Replace(name), claim) {
					t.Fatalf("Parse(%q) ignored the claim %q", payload, name)
				}
			}
		}
		for _, id := range []any{members["kid"], claims["kid"]} {
			if id != nil && id != got.KeyID {
				t.Fatalf("Parse(%q, %q) has the key id %q, encoding/json reads %q", header, payload, got.KeyID, id)
			}
		}
	})
}

// checkParse checks the relations of FuzzParse for one token.
func checkParse(t *testing.T, compact string) {
	t.Helper()
	parsed, err := token.Parse(compact)
	if err != nil {
		if diff := cmp.Diff(token.Parsed{}, parsed, cmp.AllowUnexported(token.Parsed{})); diff != "" {
			t.Fatalf("Parse(%q) = %v and (-want +got):\n%s", compact, err, diff)
		}
		return
	}
	var decoded, again []string
	for segment := range strings.SplitSeq(compact, ".") {
		data, err := base64.RawURLEncoding.DecodeString(segment)
		if err != nil {
			t.Fatalf("Parse accepted %q, base64 says %v", compact, err)
		}
		decoded, again = append(decoded, string(data)), append(again, b64(data))
	}
	if strings.Join(again, ".") != compact || len(again) != 3 {
		t.Fatalf("Parse accepted %q, whose own encoding is %q", compact, strings.Join(again, "."))
	}
	header, err := token.ParseHeader(compact)
	if id := header.KeyID(); err != nil || id != "" && id != parsed.Unverified().KeyID {
		t.Fatalf("ParseHeader(%q) = key id %q, %v; Parse has %q", compact, id, err, parsed.Unverified().KeyID)
	}
	if claims := parsed.Unverified(); !token.ValidVideoID(claims.VideoID) || claims.ExpiresAt.IsZero() {
		t.Fatalf("Parse(%q) = %+v", compact, claims)
	}
	if header, payload := parsed.Documents(); header != decoded[0] || payload != decoded[1] {
		t.Fatalf("Documents of %q = %q, %q", compact, header, payload)
	}
	signed := seal(again[0] + "." + again[1])
	if parsed, err = token.Parse(signed); err != nil {
		if len(signed) <= token.MaxLength {
			t.Fatalf("Parse(%q) = %v with a signature", compact, err)
		}
		return
	}
	if _, err := parsed.Verify(testKeys().set.Lookup("k1")); err != nil {
		t.Fatalf("Verify(%q) = %v", signed, err)
	}
	payload, err := jws.Verify([]byte(signed), jws.WithKey(jwa.RS256(), &testKeys().k1.PublicKey))
	if err != nil || string(payload) != decoded[1] {
		t.Fatalf("jws.Verify(%q) = %q, %v", signed, payload, err)
	}
}

// FuzzOneByteChange checks that no change of one byte in a token is accepted.
func FuzzOneByteChange(f *testing.F) {
	claims := token.Claims{VideoID: "demo", ExpiresAt: hour, NotBefore: now, Downloadable: true}
	genuine := must(token.Sign(claims, signingKey()))
	accept := func(compact string) bool {
		_, err := token.Verify(compact, testKeys().set, now, token.Policy{})
		return err == nil
	}
	if !accept(genuine) {
		f.Fatalf("Verify refuses %q", genuine)
	}
	for i := range genuine {
		f.Add(i, genuine[i]^1)
	}
	for _, value := range []byte("\x00\n\r =+/.%A_\xff") {
		f.Add(0, value)
		f.Add(strings.IndexByte(genuine, '.'), value)
		f.Add(strings.LastIndexByte(genuine, '.'), value)
		f.Add(len(genuine)-1, value)
	}
	f.Fuzz(func(t *testing.T, position int, value byte) {
		at := int(uint(position) % uint(len(genuine)))
		if genuine[at] == value {
			return
		}
		changed := genuine[:at] + string([]byte{value}) + genuine[at+1:]
		if accept(changed) {
			t.Fatalf("Verify accepts %q with byte %d changed to %q", genuine, at, value)
		}
	})
}

// FuzzKeys checks that an accepted key may verify, that all its forms are the same
// key, that a public key contains nothing of a private key, and that all three
// parsers find the same keys in the same bytes.
func FuzzKeys(f *testing.F) {
	k1, k2 := testKeys().k1, testKeys().k2
	forms := pemsOf(k1)
	for _, data := range []string{
		jwk(false, nil), jwk(true, nil), jwk(false, map[string]any{"kid": nil, "alg": "RS256", "use": "sig", "key_ops": []string{"verify"}}),
		jwk(false, map[string]any{"e": "Aw"}), jwk(false, map[string]any{"n": "AQAB"}), jwk(true, map[string]any{"d": "AQAB"}),
		`{"keys":[` + jwk(true, nil) + `,` + string(publicJWK("k2", &k2.PublicKey)) + `]}`, `{"keys":[{"kty":"EC"},` + jwk(false, nil) + `]}`,
		`{"keys":[` + jwk(false, nil) + `,` + string(publicJWK("k1", &k2.PublicKey)) + `]}`,
		forms.pkix, forms.pkcs1, forms.pkcs8, forms.pkcs1Private, forms.certificate + forms.pkcs8, wrap(forms.pkix),
		must(signingKey().JWK()), signingKey().PEM(), apiKey("id", "pem", "jwk", "created"), envelope(apiKey("id", "pem")),
		`{"result":{"result":{"jwk":""}}}`, `{"kty":"RSA"}`, "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----", "====", "",
	} {
		f.Add([]byte(data), "given")
	}
	f.Fuzz(func(t *testing.T, data []byte, id string) {
		keys, err := token.ParsePublicKeys(data, id)
		if err != nil && (keys != nil || !errors.Is(err, token.ErrKey)) {
			t.Fatalf("ParsePublicKeys = %v, %v", ids(keys), err)
		}
		for _, key := range keys {
			checkVerifies(t, key)
		}
		set, skipped, err := token.ParseJWKS(data)
		switch {
		case err != nil && !errors.Is(err, token.ErrKey):
			t.Fatalf("ParseJWKS = %v", err)
		case err == nil:
			for _, id := range set.IDs() {
				checkVerifies(t, set.Lookup(id))
			}
		}
		for _, key := range keys {
			// A remote set has no file name that its keys could take as their id.
			if err == nil && len(skipped) == 0 && (set.Lookup(key.ID()) == nil || !set.Lookup(key.ID()).Equal(key)) {
				t.Fatalf("ParseJWKS has no %q, and ParsePublicKeys has", key.ID())
			}
		}
		signing, err := token.ParseSigningKey(data, id)
		if err != nil {
			if signing != nil || !errors.Is(err, token.ErrKey) {
				t.Fatalf("ParseSigningKey = %v, %v", signing, err)
			}
			return
		}
		checkSigns(t, signing)
		if keys != nil && !slices.ContainsFunc(keys, signing.Public().Equal) {
			t.Fatalf("ParsePublicKeys has not the key %q that signs", signing.ID())
		}
	})
}

// checkVerifies checks what is true of every public key.
func checkVerifies(t *testing.T, key *token.PublicKey) {
	t.Helper()
	checkNoPrivateHalf(t, key)
	var doc struct{ N, E, Kid string }
	if err := json.Unmarshal(must(key.JWK()), &doc); err != nil {
		t.Fatal(err)
	}
	n, err := base64.RawURLEncoding.Strict().DecodeString(doc.N)
	if bits := new(big.Int).SetBytes(n).BitLen(); err != nil || bits < 2048 || bits > 4096 || doc.E != "AQAB" || doc.Kid != key.ID() {
		t.Fatalf("a key of %d bits with the exponent %s, as %q: %v", bits, doc.E, doc.Kid, err)
	}
}

// checkSigns checks that both forms of a signing key are the same key, and that its
// public key verifies its signatures.
func checkSigns(t *testing.T, key *token.SigningKey) {
	t.Helper()
	checkVerifies(t, key.Public())
	for _, form := range []string{key.PEM(), must(key.JWK())} {
		again, err := token.ParseSigningKey([]byte(form), key.ID())
		if err != nil || !again.Public().Equal(key.Public()) {
			t.Fatalf("the key %q does not survive being written: %v", key.ID(), err)
		}
	}
	compact, err := token.Sign(token.Claims{VideoID: "demo", ExpiresAt: hour}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := token.Verify(compact, must(token.NewKeySet(key.Public())), now, token.Policy{}); err != nil {
		t.Fatal(err)
	}
}
