package token

import (
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
)

const (
	// Shorter moduli are weak. Longer ones make verification slow enough for an
	// attack.
	minModulusBits = 2048
	maxModulusBits = 4096

	publicExponent = 65537

	maxKeyID = 255
)

// PublicKey is an RSA key that verifies tokens, with its id. It is immutable and
// safe for concurrent use.
type PublicKey struct {
	id     string
	rsa    *rsa.PublicKey
	digest [sha256.Size]byte // of id and rsa, for Equal
}

// NewPublicKey returns a key after checking that it is an RSA key of 2048 to 4096
// bits with the exponent 65537. The id is the `kid`: 1 to 255 printable ASCII
// characters except the space. Errors wrap ErrKey.
func NewPublicKey(id string, key *rsa.PublicKey) (*PublicKey, error) {
	if !validKeyID(id) {
		return nil, fmt.Errorf("%w: key id %q: want 1 to %d printable ASCII characters without spaces", ErrKey, id, maxKeyID)
	}
	if key == nil || key.N == nil {
		return nil, fmt.Errorf("%w: %q is nil", ErrKey, id)
	}
	switch bits := key.N.BitLen(); {
	case bits < minModulusBits || bits > maxModulusBits:
		return nil, fmt.Errorf("%w: %q has %d bits: want RSA with %d to %d", ErrKey, id, bits, minModulusBits, maxModulusBits)
	case key.E != publicExponent:
		return nil, fmt.Errorf("%w: %q has the public exponent %d: want %d", ErrKey, id, key.E, publicExponent)
	case key.N.Bit(0) == 0:
		return nil, fmt.Errorf("%w: %q has an even modulus", ErrKey, id)
	}
	digest := sha256.Sum256(append([]byte(id+" "), key.N.Bytes()...)) // an id has no space, and all keys have the same exponent
	return &PublicKey{id, &rsa.PublicKey{N: new(big.Int).Set(key.N), E: key.E}, digest}, nil
}

// ID returns the key's `kid`.
func (k *PublicKey) ID() string { return k.id }

// Equal reports whether two keys have the same id, modulus and exponent. It is
// fast and does not allocate.
func (k *PublicKey) Equal(other *PublicKey) bool { return k.digest == other.digest }

// JWK returns the key as a JSON Web Key (RFC 7517).
func (k *PublicKey) JWK() (json.RawMessage, error) { return marshalJWK(k.id, k.rsa) }

func validKeyID(id string) bool {
	return id != "" && len(id) <= maxKeyID && !strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' })
}

// SigningKey is an RSA key pair that signs tokens, with its id. It is immutable
// and safe for concurrent use.
type SigningKey struct {
	id     string
	rsa    *rsa.PrivateKey
	public *PublicKey
}

// NewSigningKey returns a key pair after the checks of NewPublicKey and after
// checking that the private key has two primes and fits the public key. Errors
// wrap ErrKey.
func NewSigningKey(id string, key *rsa.PrivateKey) (*SigningKey, error) {
	if key == nil {
		return nil, fmt.Errorf("%w: %q is nil", ErrKey, id)
	}
	public, err := NewPublicKey(id, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	if len(key.Primes) != 2 {
		return nil, fmt.Errorf("%w: %q has %d primes: want 2", ErrKey, id, len(key.Primes))
	}
	if err := key.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrKey, id, err)
	}
	return &SigningKey{id, key, public}, nil
}

// GenerateSigningKey makes an RSA-2048 key pair. If the id is empty, the key gets
// a random id of 32 hexadecimal digits. For an invalid id, the error wraps ErrKey.
func GenerateSigningKey(id string) (*SigningKey, error) {
	key, err := rsa.GenerateKey(rand.Reader, minModulusBits)
	if err != nil {
		return nil, fmt.Errorf("token: generating key: %w", err)
	}
	return NewSigningKey(cmp.Or(id, randomID()), key)
}

// randomID returns 32 hexadecimal digits.
func randomID() string {
	random := make([]byte, 16)
	_, _ = rand.Read(random) // never fails
	return hex.EncodeToString(random)
}

// ID returns the key's `kid`.
func (k *SigningKey) ID() string { return k.id }

// Public returns the public key of the pair.
func (k *SigningKey) Public() *PublicKey { return k.public }

// PEM returns the private key as `pem` of the keys API does: a PKCS#1 PEM text in
// standard base64.
func (k *SigningKey) PEM() string {
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{
		Type:  "RSA PRIVATE KEY",
		Bytes: x509.MarshalPKCS1PrivateKey(k.rsa),
	}))
}

// JWK returns the private key as `jwk` of the keys API does: a JSON Web Key (RFC
// 7517) in standard base64.
func (k *SigningKey) JWK() (string, error) {
	doc, err := marshalJWK(k.id, k.rsa)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(doc), nil
}

func marshalJWK(id string, raw any) (json.RawMessage, error) {
	key, err := jwk.Import(raw)
	if err != nil {
		return nil, fmt.Errorf("token: encoding key %q: %w", id, err)
	}
	for name, value := range map[string]any{
		jwk.KeyIDKey:     id,
		jwk.AlgorithmKey: jwa.RS256(),
		jwk.KeyUsageKey:  jwk.ForSignature,
	} {
		if err := key.Set(name, value); err != nil {
			return nil, fmt.Errorf("token: encoding key %q: %w", id, err)
		}
	}
	return json.Marshal(key)
}

// KeySet is an immutable set of public keys in which each id has one key. It
// implements Keys and is safe for concurrent use. The nil *KeySet is empty.
type KeySet struct {
	byID map[string]*PublicKey
}

// NewKeySet returns a set of keys. It may get the same key twice. Two different
// keys with the same id are an error that wraps ErrKey, because only one of them
// could ever verify.
func NewKeySet(keys ...*PublicKey) (*KeySet, error) {
	set := &KeySet{byID: make(map[string]*PublicKey, len(keys))}
	for _, key := range keys {
		if known := set.byID[key.id]; known != nil && !known.Equal(key) {
			return nil, fmt.Errorf("%w: two different keys have the id %q", ErrKey, key.id)
		}
		set.byID[key.id] = key
	}
	return set, nil
}

// Lookup implements Keys.
func (s *KeySet) Lookup(keyID string) *PublicKey {
	if s == nil {
		return nil
	}
	return s.byID[keyID]
}

// IDs returns the ids of the set in alphabetical order.
func (s *KeySet) IDs() []string {
	if s == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(s.byID))
}
