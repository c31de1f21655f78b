package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	keyID  = "bench"
	issuer = "bench"

	video      = "demo"
	otherVideo = "other"

	// Rules that a client in the US passes, and rules that it does not pass.
	usRules = `[{"type":"ip.geoip.country","country":["GB","US"],"action":"allow"},{"type":"any","action":"block"}]`
	gbRules = `[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]`
)

// signer is a key pair in two forms.
type signer struct {
	rsa *rsa.PrivateKey
	key *token.SigningKey
}

func newSigner() (*signer, error) {
	const bits = 2048
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, err
	}
	signing, err := token.NewSigningKey(keyID, key)
	return &signer{key, signing}, err
}

// publicKey is the public half, in the forms that servers need.
type publicKey struct {
	SPKI string // base64
	PEM  string
	JWK  string
}

func (s *signer) public() (publicKey, error) {
	der, err := x509.MarshalPKIXPublicKey(&s.rsa.PublicKey)
	if err != nil {
		return publicKey{}, err
	}
	jwk, err := s.key.Public().JWK()
	return publicKey{
		SPKI: base64.StdEncoding.EncodeToString(der),
		PEM:  string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
		JWK:  string(jwk),
	}, err
}

// newCertificate makes a certificate for 127.0.0.1 with its key, in PEM.
func newCertificate() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...), err
}

// grant is the content of a token.
type grant struct {
	video   string
	expires time.Time
	rules   string
}

// scheme is a form of tokens and of URLs.
type scheme struct {
	sign func(s *signer, g grant) (string, error)
	path func(compact, video, file string) string
}

// ours is the form of the gate, which HAProxy and njs can read too.
var ours = &scheme{
	sign: func(s *signer, g grant) (string, error) {
		claims := token.Claims{VideoID: g.video, ExpiresAt: g.expires}
		if g.rules != "" {
			claims.AccessRules = json.RawMessage(g.rules)
		}
		return token.Sign(claims, s.key)
	},
	path: func(compact, _, file string) string { return "/" + compact + "/" + file },
}

// cdni is the URI signing of RFC 9246 in Traffic Server: the token has an issuer,
// and a pattern for the URL without the token.
var cdni = &scheme{
	sign: func(s *signer, g grant) (string, error) {
		return s.signJSON(fmt.Sprintf(`{"alg":"RS256","kid":%q}`, keyID), fmt.Sprintf(
			`{"iss":%q,"sub":%q,"exp":%d,"cdniuc":"regex:https?://[^/]+/%s/.*"}`, issuer, g.video, g.expires.Unix(), g.video))
	},
	path: func(compact, video, file string) string {
		return "/URISigningPackage=" + compact + "/" + video + "/" + file
	},
}

func (s *signer) signJSON(header, payload string) (string, error) {
	signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, s.rsa, crypto.SHA256, digest[:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), err
}

// unsigned makes a token claim that it needs no signature.
func unsigned(compact string) string {
	payload := strings.Split(compact, ".")[1]
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"alg":"none","kid":%q}`, keyID)) + "." + payload + "."
}

// transplanted has the payload of one token and the rest of the other.
func transplanted(payloadOf, restOf string) string {
	parts := strings.Split(restOf, ".")
	return parts[0] + "." + strings.Split(payloadOf, ".")[1] + "." + parts[2]
}

// mint signs n different tokens on all processors. The first expires at the given
// time, each of the others a second after the one before.
func mint(s *signer, form *scheme, rules string, expires time.Time, n int) ([]string, error) {
	tokens := make([]string, n)
	errs := make([]error, runtime.NumCPU())
	var wg sync.WaitGroup
	for worker := range errs {
		wg.Go(func() {
			for i := worker; i < n && errs[worker] == nil; i += len(errs) {
				g := grant{video, expires.Add(time.Duration(i) * time.Second), rules}
				tokens[i], errs[worker] = form.sign(s, g)
			}
		})
	}
	wg.Wait()
	return tokens, errors.Join(errs...)
}
