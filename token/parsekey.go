package token

import (
	"bytes"
	"cmp"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"unicode"

	"github.com/lestrrat-go/jwx/v3/jwk"
)

// keyMaterial is a key as a file gives it. private is nil for a public key; id
// is empty where the form has none.
type keyMaterial struct {
	id      string
	public  *rsa.PublicKey
	private *rsa.PrivateKey
}

// ParsePublicKeys reads verification keys in any of the forms that operators
// have them in: a JWKS, a JWK, PEM (PKIX, PKCS#1, PKCS#8 or a certificate), the
// base64-wrapped `jwk` and `pem` values of the keys API, or the whole JSON
// object in which that API (and the keygen command) returns them. Private
// halves are dropped. A key without a `kid` of its own takes the given id.
// Errors wrap ErrKey.
func ParsePublicKeys(data []byte, id string) ([]*PublicKey, error) {
	materials, err := parseKeyMaterials(data)
	if err != nil {
		return nil, err
	}
	keys := make([]*PublicKey, 0, len(materials))
	for _, m := range materials {
		key, err := m.verifier(id)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	// Two keys without a `kid` in one file would share the given id.
	if _, err := NewKeySet(keys...); err != nil {
		return nil, err
	}
	return keys, nil
}

// ParseJWKS reads a JWK Set (RFC 7517 section 5) that somebody else publishes.
// Such sets also hold keys for other purposes, so a key that cannot verify
// tokens is left out, with the reason in skipped. A document that is not a JWK
// Set, or in which two usable keys share an id, is an error that wraps ErrKey.
func ParseJWKS(data []byte) (set *KeySet, skipped []error, err error) {
	var doc struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, nil, fmt.Errorf("%w: not a JWK Set: %w", ErrKey, err)
	}
	if doc.Keys == nil {
		return nil, nil, fmt.Errorf("%w: not a JWK Set: no member `keys`", ErrKey)
	}
	var keys []*PublicKey
	for i, raw := range *doc.Keys {
		m, err := parseJWK(raw)
		if err == nil {
			var key *PublicKey
			if key, err = m.verifier(""); err == nil {
				keys = append(keys, key)
				continue
			}
		}
		skipped = append(skipped, fmt.Errorf("key %d: %w", i+1, err))
	}
	set, err = NewKeySet(keys...)
	return set, skipped, err
}

// ParseSigningKey reads one key pair in any of the forms of ParsePublicKeys
// that hold a private half. A key without a `kid` of its own takes the given
// id. Errors wrap ErrKey.
func ParseSigningKey(data []byte, id string) (*SigningKey, error) {
	materials, err := parseKeyMaterials(data)
	if err != nil {
		return nil, err
	}
	materials = slices.DeleteFunc(materials, func(m keyMaterial) bool { return m.private == nil })
	switch {
	case len(materials) == 0:
		return nil, fmt.Errorf("%w: no private half, which signing needs", ErrKey)
	case len(materials) > 1:
		return nil, fmt.Errorf("%w: %d private keys where one is wanted", ErrKey, len(materials))
	}
	m := materials[0]
	return NewSigningKey(cmp.Or(m.id, id), m.private)
}

func (m keyMaterial) verifier(id string) (*PublicKey, error) {
	return NewPublicKey(cmp.Or(m.id, id), m.public)
}

func parseKeyMaterials(data []byte) ([]keyMaterial, error) {
	data = bytes.TrimSpace(data)
	switch {
	case len(data) == 0:
		return nil, fmt.Errorf("%w: it is empty", ErrKey)
	case data[0] == '{':
		return parseJSONKeys(data, true)
	case bytes.HasPrefix(data, []byte("-----BEGIN ")):
		return parsePEM(data)
	}
	unwrapped, err := base64.StdEncoding.DecodeString(string(withoutSpace(data)))
	if err != nil || len(unwrapped) == 0 {
		return nil, fmt.Errorf("%w: neither JSON, nor PEM that starts with -----BEGIN, nor base64 of one of them", ErrKey)
	}
	unwrapped = bytes.TrimSpace(unwrapped)
	switch {
	case bytes.HasPrefix(unwrapped, []byte("{")):
		return parseJSONKeys(unwrapped, true)
	case bytes.HasPrefix(unwrapped, []byte("-----BEGIN ")):
		return parsePEM(unwrapped)
	}
	return nil, fmt.Errorf("%w: the base64 holds neither JSON nor PEM", ErrKey)
}

func withoutSpace(data []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, data)
}

// parseJSONKeys reads a JWKS, a JWK, or what the keys API returns for a new
// key, with or without its envelope. There is one at the most: each is read to its
// end, so a thousand in one another would take seconds.
func parseJSONKeys(data []byte, envelope bool) ([]keyMaterial, error) {
	var doc struct {
		Keys   []json.RawMessage `json:"keys"`
		Kty    string            `json:"kty"`
		ID     string            `json:"id"`
		PEM    string            `json:"pem"`
		JWK    string            `json:"jwk"`
		Result json.RawMessage   `json:"result"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	switch {
	case doc.Kty != "":
		m, err := parseJWK(data)
		return []keyMaterial{m}, err
	case doc.JWK != "":
		return parseAPIKey(doc.ID, doc.JWK)
	case doc.PEM != "":
		return parseAPIKey(doc.ID, doc.PEM)
	case envelope && len(doc.Result) > 0 && doc.Result[0] == '{':
		return parseJSONKeys(doc.Result, false)
	case len(doc.Keys) == 0:
		return nil, fmt.Errorf("%w: JSON without a key: no `kty`, no `keys`, no `pem` or `jwk`", ErrKey)
	}
	materials := make([]keyMaterial, 0, len(doc.Keys))
	for i, raw := range doc.Keys {
		m, err := parseJWK(raw)
		if err != nil {
			return nil, fmt.Errorf("key %d of %d: %w", i+1, len(doc.Keys), err)
		}
		materials = append(materials, m)
	}
	return materials, nil
}

func parseAPIKey(id, wrapped string) ([]keyMaterial, error) {
	materials, err := parseKeyMaterials([]byte(wrapped))
	for i := range materials {
		m := &materials[i]
		if m.id = cmp.Or(m.id, id); id != "" && m.id != id {
			return nil, fmt.Errorf("%w: `id` is %q and the key's `kid` is %q", ErrKey, id, m.id)
		}
	}
	return materials, err
}

// parseJWK reads one key and refuses what it is not meant for: RFC 7517 gives
// `alg`, `use` and `key_ops` for just that.
func parseJWK(data []byte) (keyMaterial, error) {
	key, err := jwk.ParseKey(data)
	if err != nil {
		return keyMaterial{}, fmt.Errorf("%w: %w", ErrKey, err)
	}
	id, _ := key.KeyID()
	if alg, ok := key.Algorithm(); ok && alg.String() != "RS256" {
		return keyMaterial{}, fmt.Errorf("%w: %q has `alg` %q: want RS256", ErrKey, id, alg)
	}
	if use, ok := key.KeyUsage(); ok && use != string(jwk.ForSignature) {
		return keyMaterial{}, fmt.Errorf("%w: %q has `use` %q: want sig", ErrKey, id, use)
	}
	switch key := key.(type) {
	// A private key is an RSAPublicKey too, as far as the types go.
	case jwk.RSAPrivateKey:
		m := keyMaterial{id: id, private: new(rsa.PrivateKey)}
		if err := checkKeyOps(key, id, jwk.KeyOpSign); err != nil {
			return keyMaterial{}, err
		}
		err := exportJWK(key, m.private)
		m.public = &m.private.PublicKey
		return m, err
	case jwk.RSAPublicKey:
		m := keyMaterial{id: id, public: new(rsa.PublicKey)}
		if err := checkKeyOps(key, id, jwk.KeyOpVerify); err != nil {
			return keyMaterial{}, err
		}
		return m, exportJWK(key, m.public)
	}
	return keyMaterial{}, fmt.Errorf("%w: %q is of type %q: want RSA", ErrKey, id, key.KeyType())
}

func checkKeyOps(key jwk.Key, id string, want jwk.KeyOperation) error {
	ops, ok := key.KeyOps()
	if !ok || slices.Contains(ops, want) {
		return nil
	}
	return fmt.Errorf("%w: %q has `key_ops` %q: want %q", ErrKey, id, ops, want)
}

func exportJWK(key jwk.Key, raw any) error {
	if err := jwk.Export(key, raw); err != nil {
		return fmt.Errorf("%w: %w", ErrKey, err)
	}
	return nil
}

// parsePEM reads every block of a PEM text. Each must be a key that verifies,
// for a block that is passed over in silence is a key that somebody misses.
func parsePEM(data []byte) ([]keyMaterial, error) {
	blocks := bytes.Count(data, []byte("-----BEGIN "))
	var materials []keyMaterial
	for len(bytes.TrimSpace(data)) > 0 {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, fmt.Errorf("%w: broken PEM", ErrKey)
		}
		m, err := parsePEMBlock(block)
		if err != nil {
			return nil, fmt.Errorf("%w: PEM block %q: %w", ErrKey, block.Type, err)
		}
		materials = append(materials, m)
		data = rest
	}
	if len(materials) != blocks {
		// pem.Decode passes over a damaged block in front of a good one.
		return nil, fmt.Errorf("%w: broken PEM: %d blocks begin, %d can be read", ErrKey, blocks, len(materials))
	}
	return materials, nil
}

func parsePEMBlock(block *pem.Block) (keyMaterial, error) {
	if block.Headers["DEK-Info"] != "" || block.Type == "ENCRYPTED PRIVATE KEY" {
		return keyMaterial{}, errors.New("it is encrypted; decrypt it, or give the public key")
	}
	var parsed any
	var err error
	switch block.Type {
	case "PUBLIC KEY":
		parsed, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		parsed, err = x509.ParsePKCS1PublicKey(block.Bytes)
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "CERTIFICATE":
		var certificate *x509.Certificate
		if certificate, err = x509.ParseCertificate(block.Bytes); err == nil {
			parsed = certificate.PublicKey
		}
	default:
		return keyMaterial{}, errors.New("want a public key, a private key or a certificate")
	}
	if err != nil {
		return keyMaterial{}, err
	}
	switch key := parsed.(type) {
	case *rsa.PublicKey:
		return keyMaterial{public: key}, nil
	case *rsa.PrivateKey:
		return keyMaterial{public: &key.PublicKey, private: key}, nil
	}
	return keyMaterial{}, fmt.Errorf("it holds a %T: want RSA", parsed)
}
