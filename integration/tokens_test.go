package integration

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// keyID is the `kid` of the key that every gateway here knows.
const keyID = "main"

// signingKey is the pair behind it.
var signingKey = sync.OnceValue(func() *token.SigningKey { return newSigningKey(keyID, privateKey()) })

// privateKey is the same pair, for tokens that package token would not sign.
var privateKey = sync.OnceValue(newPrivateKey)

func newPrivateKey() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}

func newSigningKey(id string, key *rsa.PrivateKey) *token.SigningKey {
	signing, err := token.NewSigningKey(id, key)
	if err != nil {
		panic(err)
	}
	return signing
}

func publicJWKS(t testing.TB, keys ...*token.SigningKey) []byte {
	t.Helper()
	set := struct {
		Keys []json.RawMessage `json:"keys"`
	}{}
	for _, key := range keys {
		jwk := must(key.Public().JWK())(t)
		set.Keys = append(set.Keys, jwk)
	}
	return must(json.Marshal(set))(t)
}

func publicPEM(t testing.TB, key *rsa.PublicKey) []byte {
	t.Helper()
	der := must(x509.MarshalPKIXPublicKey(key))(t)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// mint signs a token for a video that is good for an hour, changed by edit.
func mint(t testing.TB, video string, edit func(*token.Claims)) string {
	t.Helper()
	claims := token.Claims{VideoID: video, ExpiresAt: time.Now().Add(time.Hour)}
	if edit != nil {
		edit(&claims)
	}
	return must(token.Sign(claims, signingKey()))(t)
}

// withRules returns an edit for mint.
func withRules(rules string) func(*token.Claims) {
	return func(c *token.Claims) { c.AccessRules = json.RawMessage(rules) }
}

// goodHeader and goodPayload are the documents of a token of mint.
func goodHeader() string { return `{"alg":"RS256","kid":"` + keyID + `"}` }

func goodPayload(video string) string {
	return fmt.Sprintf(`{"sub":%q,"kid":%q,"exp":%d}`, video, keyID, time.Now().Add(time.Hour).Unix())
}

// signRaw signs any two documents as they are, with RS256.
func signRaw(key *rsa.PrivateKey, header, payload string) string {
	signed := b64(header) + "." + b64(payload)
	return signed + "." + b64(string(signature(key, signed)))
}

func signature(key *rsa.PrivateKey, signed string) []byte {
	digest := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
	if err != nil {
		panic(err)
	}
	return sig
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
