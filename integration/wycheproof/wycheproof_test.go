// Package wycheproof runs test vectors of Project Wycheproof against package
// token. It is a package of its own because the vectors, which the module
// embeds, add 100 MB to a test binary.
//
// A vector's message is never a playback token: it is some text, not a set of
// claims. So each vector runs twice. As it is, it must be refused. Then its
// signature is moved to a token: the padded digest that the signature contains
// keeps every flaw, its digest becomes that of the token, and the private key,
// which Wycheproof publishes, signs the result.
package wycheproof

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/c2sp/wycheproof"

	"github.com/signed-playback/caddy-signed-playback/token"
)

const claims = `{"sub":"demo","exp":1800003600}`

var now = time.Unix(1_800_000_000, 0)

// rsaKey is an RSA key pair from a private JWK.
type rsaKey struct {
	jwk     json.RawMessage
	n, e, d *big.Int
}

func (k *rsaKey) UnmarshalJSON(data []byte) error {
	var members struct{ N, E, D string }
	if err := json.Unmarshal(data, &members); err != nil {
		return err
	}
	k.jwk = bytes.Clone(data)
	for text, number := range map[string]**big.Int{members.N: &k.n, members.E: &k.e, members.D: &k.d} {
		decoded, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			return err
		}
		*number = new(big.Int).SetBytes(decoded)
	}
	return nil
}

// move returns a signature of input that has the flaw of a signature of signed.
// A signature that does not contain the digest of signed stays as it is.
func (k *rsaKey) move(signature, signed []byte, input string) []byte {
	was, is := sha256.Sum256(signed), sha256.Sum256([]byte(input))
	s := new(big.Int).SetBytes(signature)
	encoded := new(big.Int).Exp(s, k.e, k.n).FillBytes(make([]byte, len(k.n.Bytes())))
	if s.Cmp(k.n) >= 0 || !bytes.Contains(encoded, was[:]) {
		return signature
	}
	moved := new(big.Int).SetBytes(bytes.Replace(encoded, was[:], is[:], 1))
	return moved.Exp(moved, k.d, k.n).FillBytes(make([]byte, len(signature)))
}

// moveJWS returns a token with the header and the flaw of a JSON Web Signature.
func (k *rsaKey) moveJWS(t *testing.T, jws string) string {
	t.Helper()
	dot := strings.LastIndexByte(jws, '.')
	signature, err := base64.RawURLEncoding.DecodeString(jws[dot+1:])
	if err != nil {
		t.Fatal(err)
	}
	header, _, _ := strings.Cut(jws, ".")
	input := header + "." + b64(claims)
	return input + "." + b64(k.move(signature, []byte(jws[:dot]), input))
}

type vector struct {
	ID        int    `json:"tcId"`
	Comment   string `json:"comment"`
	Message   string `json:"msg"` // hexadecimal
	Signature string `json:"sig"` // hexadecimal
	JWS       string `json:"jws"`
	Result    string `json:"result"` // valid, acceptable (by lenient verifiers) or invalid
}

// readGroups reads the test groups of a file of Wycheproof's.
func readGroups[Group any](t *testing.T, name string) []Group {
	t.Helper()
	data, err := fs.ReadFile(wycheproof.TestVectors, name)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []Group `json:"testGroups"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	return file.Groups
}

// checkCount fails if fewer vectors ran than the files had when this test was
// written, so that it cannot pass without testing anything.
func checkCount(t *testing.T, what string, got, atLeast int) {
	t.Helper()
	if got < atLeast {
		t.Errorf("%d %s ran, want at least %d", got, what, atLeast)
	}
}

// check verifies a token and compares the outcome with that of a vector.
func check(t *testing.T, v vector, compact string, keys token.Keys) {
	t.Helper()
	got, err := token.Verify(compact, keys, now, token.Policy{})
	if (err == nil) != (v.Result == "valid") || err == nil && got.VideoID != "demo" {
		t.Errorf("%d, %s (%s): Verify(%q) = %v", v.ID, v.Comment, v.Result, compact, err)
	}
}

func b64[T string | []byte](data T) string { return base64.RawURLEncoding.EncodeToString([]byte(data)) }

func publicKeys(t *testing.T, jwk []byte) *token.KeySet {
	t.Helper()
	set, _, err := token.ParseJWKS(fmt.Appendf(nil, `{"keys":[%s]}`, jwk))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// TestSignatures runs the signature vectors of RSASSA-PKCS1-v1_5 with SHA-256.
// Groups of keys with the exponent 3 are not applicable: no such key may verify.
func TestSignatures(t *testing.T) {
	t.Parallel()
	for _, bits := range []int{2048, 3072, 4096} {
		t.Run(fmt.Sprint(bits), func(t *testing.T) {
			t.Parallel()
			private := map[string]rsaKey{} // by modulus; the vectors to verify have no private keys
			for _, group := range readGroups[struct {
				Key rsaKey `json:"privateKeyJwk"`
			}](t, fmt.Sprintf("rsa_pkcs1_%d_sig_gen_test.json", bits)) {
				if group.Key.n != nil {
					private[group.Key.n.String()] = group.Key
				}
			}
			valid, invalid := 0, 0
			for _, group := range readGroups[struct {
				Key   rsaKey `json:"keyJwk"`
				Tests []vector
			}](t, fmt.Sprintf("rsa_signature_%d_sha256_test.json", bits)) {
				keys := publicKeys(t, group.Key.jwk)
				if group.Key.e.Int64() != 65537 {
					if ids := keys.IDs(); len(ids) != 0 {
						t.Errorf("a key with the exponent %s may verify", group.Key.e)
					}
					continue
				}
				key := private[group.Key.n.String()]
				input := b64(`{"alg":"RS256","kid":"none"}`) + "." + b64(claims) // the keys' own kid
				for _, v := range group.Tests {
					check(t, v, input+"."+b64(key.move(unhex(t, v.Signature), unhex(t, v.Message), input)), keys)
					if v.Result == "valid" {
						valid++
					} else {
						invalid++
					}
				}
			}
			checkCount(t, "valid vectors", valid, 7)
			checkCount(t, "invalid vectors", invalid, 250)
		})
	}
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestJWS runs the vectors of JSON Web Signatures. Those of other algorithms and
// of keys for other purposes must find no key that verifies.
func TestJWS(t *testing.T) {
	t.Parallel()
	moved, other := 0, 0
	for _, group := range readGroups[struct {
		Public  json.RawMessage
		Private json.RawMessage
		Tests   []vector
	}](t, "json_web_signature_test.json") {
		jwk := group.Public
		if jwk == nil {
			jwk = group.Private // symmetric
		}
		keys := publicKeys(t, jwk)
		for _, v := range group.Tests {
			if claims, err := token.Verify(v.JWS, keys, now, token.Policy{}); err == nil {
				t.Errorf("%d, %s: Verify(%q) = %+v", v.ID, v.Comment, v.JWS, claims)
			}
		}
		var purpose struct {
			Alg, Use string
			Ops      []string `json:"key_ops"`
		}
		if err := json.Unmarshal(jwk, &purpose); err != nil {
			t.Fatal(err)
		}
		if purpose.Alg != "RS256" {
			other += len(group.Tests)
			if ids := keys.IDs(); len(ids) != 0 {
				t.Errorf("keys %q may verify, for %+v", ids, purpose)
			}
			continue
		}
		var key rsaKey
		if err := json.Unmarshal(group.Private, &key); err != nil {
			t.Fatal(err)
		}
		for _, v := range group.Tests {
			if strings.Count(v.JWS, ".") == 2 { // or it has been checked above
				check(t, v, key.moveJWS(t, v.JWS), keys)
				moved++
			}
		}
	}
	checkCount(t, "vectors of RS256", moved, 225)
	checkCount(t, "vectors of other algorithms or purposes", other, 160)
}

// TestJWK runs the vectors of JSON Web Keys. One is not applicable, of a key with
// the ROCA flaw (CVE-2017-15361): package token does not look for it, because
// the operator chooses the keys and a token cannot bring one.
func TestJWK(t *testing.T) {
	t.Parallel()
	valid, invalid := 0, 0
	for _, group := range readGroups[struct {
		Comment string
		Public  json.RawMessage
		Private json.RawMessage
		Tests   []vector
	}](t, "json_web_key_test.json") {
		set := group.Public
		if set == nil {
			set = group.Private // symmetric
		}
		keys, _, err := token.ParseJWKS(set)
		if err != nil && !errors.Is(err, token.ErrKey) {
			t.Fatal(err)
		}
		for _, v := range group.Tests {
			switch {
			case group.Comment == "jws_rsa_roca_key":
			case group.Comment == "rs256" && v.Result == "valid":
				var private struct{ Keys []rsaKey }
				if err := json.Unmarshal(group.Private, &private); err != nil {
					t.Fatal(err)
				}
				check(t, v, private.Keys[0].moveJWS(t, v.JWS), keys)
				valid++
			default: // another algorithm or purpose, or a weak or broken key
				if ids := keys.IDs(); len(ids) != 0 {
					t.Errorf("%d, %s: keys %q may verify", v.ID, v.Comment, ids)
				}
				invalid++
			}
		}
	}
	checkCount(t, "valid vectors", valid, 1)
	checkCount(t, "vectors of keys that may not verify", invalid, 24)
}
