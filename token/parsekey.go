package token

import (
	"bytes"
	"cmp"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/lestrrat-go/jwx/v3/jwk"
	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"
)

// keyMaterial is a key from a file. private is nil for a public key. id is empty
// if the form has no id.
type keyMaterial struct {
	id      string
	public  *rsa.PublicKey
	private *rsa.PrivateKey
}

// ParsePublicKeys reads verification keys. It accepts:
//
//   - a JWK Set or a JWK (RFC 7517)
//   - PEM: PKIX, PKCS#1, PKCS#8 or a certificate, one or several blocks; with `\n`
//     for line breaks, too
//   - a value `jwk` or `pem` of the keys API, which is base64 of the forms above
//   - the JSON object in which the keys API and the keygen command return them,
//     with or without the envelope of the API
//
// A byte order mark, and blanks and quotes around the text, do not matter. It drops
// private keys and keeps their public keys. A key without a `kid` gets
// the given id. Errors wrap ErrKey.
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

// ParseJWKS reads a JWK Set (RFC 7517 section 5) that another party publishes.
// Such a set may contain keys for other purposes, so ParseJWKS leaves out each
// key that cannot verify tokens and adds the reason to skipped. If the document
// is not a JWK Set, or if two usable keys have the same id, err wraps ErrKey.
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

// ParseSigningKey reads a private key in any form of ParsePublicKeys that can
// contain one. There must be exactly one private key. A key without a `kid` gets
// the given id. Errors wrap ErrKey.
func ParseSigningKey(data []byte, id string) (*SigningKey, error) {
	materials, err := parseKeyMaterials(data)
	if err != nil {
		return nil, err
	}
	materials = slices.DeleteFunc(materials, func(m keyMaterial) bool { return m.private == nil })
	switch {
	case len(materials) == 0:
		return nil, fmt.Errorf("%w: it contains public keys only, and signing needs a private key", ErrKey)
	case len(materials) > 1:
		return nil, fmt.Errorf("%w: %d private keys: want one", ErrKey, len(materials))
	}
	m := materials[0]
	return NewSigningKey(cmp.Or(m.id, id), m.private)
}

// ContainsPrivateKey reports whether data has a private key, in any form of
// ParsePublicKeys.
func ContainsPrivateKey(data []byte) bool {
	materials, err := parseKeyMaterials(data)
	return err == nil && slices.ContainsFunc(materials, func(m keyMaterial) bool { return m.private != nil })
}

func (m keyMaterial) verifier(id string) (*PublicKey, error) {
	return NewPublicKey(cmp.Or(m.id, id), m.public)
}

func newKeyMaterial(id string, parsed any) (keyMaterial, error) {
	switch key := parsed.(type) {
	case *rsa.PublicKey:
		return keyMaterial{id: id, public: key}, nil
	case *rsa.PrivateKey:
		return keyMaterial{id: id, public: &key.PublicKey, private: key}, nil
	}
	return keyMaterial{}, fmt.Errorf("it is %s: want RSA with %d to %d bits", keyType(parsed), minModulusBits, maxModulusBits)
}

// keyType names the type of a key as users know it.
func keyType(parsed any) string {
	switch key := parsed.(type) {
	case *ecdsa.PublicKey:
		return fmt.Sprintf("an EC key (%s)", key.Params().Name)
	case *ecdsa.PrivateKey:
		return fmt.Sprintf("an EC key (%s)", key.Params().Name)
	case ed25519.PublicKey, ed25519.PrivateKey:
		return "an Ed25519 key"
	case *ecdh.PublicKey, *ecdh.PrivateKey:
		return "a key for key agreement"
	case []byte:
		return "a symmetric key"
	default:
		return fmt.Sprintf("a key of type %T", parsed)
	}
}

func parseKeyMaterials(data []byte) ([]keyMaterial, error) {
	data = keyText(data)
	if !isJSON(data) && !isPEM(data) {
		unwrapped, err := base64.StdEncoding.DecodeString(string(keyFiller.ReplaceAll(data, nil)))
		if err != nil {
			return nil, errKeyForm
		}
		data = keyText(unwrapped)
	}
	switch {
	case isJSON(data):
		return parseJSONKeys(data, true)
	case isPEM(data):
		return parsePEM(data)
	}
	return nil, errKeyForm
}

// keyText returns the text of a key in UTF-8 without what editors, shells and
// configuration files put around it: a byte order mark, blanks and quotes.
func keyText(data []byte) []byte {
	// A redirection in PowerShell writes UTF-16.
	if text, _, err := transform.Bytes(unicode.BOMOverride(transform.Nop), data); err == nil {
		data = text
	}
	var quoted string
	if json.Unmarshal(data, &quoted) == nil {
		data = []byte(quoted) // some libraries write + as \u002B
	}
	return bytes.Trim(data, " \t\r\n\"'`")
}

func isJSON(data []byte) bool { return bytes.HasPrefix(data, []byte("{")) }
func isPEM(data []byte) bool  { return bytes.Contains(data, []byte("-----BEGIN ")) }

// parseJSONKeys reads a JWKS, a JWK or a response of the keys API. With envelope
// set, the response may have its envelope. More than one is refused: a thousand
// envelopes within each other would take seconds to read.
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
	case envelope && isJSON(doc.Result):
		return parseJSONKeys(doc.Result, false)
	case len(doc.Keys) == 0:
		return nil, fmt.Errorf("%w: JSON without a key: it has no `kty`, `keys`, `pem` or `jwk`", ErrKey)
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

// parseJWK reads one key and refuses it if its `alg`, `use` or `key_ops` (RFC 7517
// section 4) are for another purpose.
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
	var raw any
	if err := jwk.Export(key, &raw); err != nil {
		return keyMaterial{}, fmt.Errorf("%w: %q: %w", ErrKey, id, err)
	}
	m, err := newKeyMaterial(id, raw)
	if err != nil {
		return keyMaterial{}, fmt.Errorf("%w: %q: %w", ErrKey, id, err)
	}
	purpose := jwk.KeyOpVerify
	if m.private != nil {
		purpose = jwk.KeyOpSign
	}
	if ops, ok := key.KeyOps(); ok && !slices.Contains(ops, purpose) {
		return keyMaterial{}, fmt.Errorf("%w: %q has `key_ops` %q: want %q", ErrKey, id, ops, purpose)
	}
	return m, nil
}

// pemBlock matches a block of a PEM text (RFC 7468). Text around blocks explains them.
var pemBlock = regexp.MustCompile(`(?s)-----BEGIN ([^-]*)-----(.*?)-----END ([^-]*)-----`)

// keyFiller matches what may be between the digits of base64: environment variables
// and JSON have `\n` for a line break, and source code has quotes.
var keyFiller = regexp.MustCompile(`\\+[nrt]|[\s\x{a0}\\"']`)

// parsePEM reads all blocks of a PEM text. Each must be a usable key, because an
// operator would miss a key that is skipped silently.
func parsePEM(data []byte) (materials []keyMaterial, err error) {
	if around := pemBlock.ReplaceAll(data, nil); bytes.Contains(around, []byte("---")) || bytes.Contains(around, []byte("{")) {
		return nil, fmt.Errorf("%w: broken PEM: a -----BEGIN or -----END line is damaged or missing, or there is JSON beside it", ErrKey)
	}
	for _, match := range pemBlock.FindAllSubmatch(data, -1) {
		begin, body, end := string(match[1]), match[2], string(match[3])
		if begin != end {
			return nil, fmt.Errorf("%w: broken PEM: block %q ends as %q", ErrKey, begin, end)
		}
		m, err := parsePEMBlock(begin, body)
		if err != nil {
			return nil, fmt.Errorf("%w: PEM block %q: %w", ErrKey, begin, err)
		}
		materials = append(materials, m)
	}
	return materials, nil
}

// pemParsers has a parser for each type of PEM block that can contain a key.
var pemParsers = map[string]func(der []byte) (any, error){
	"PUBLIC KEY":      x509.ParsePKIXPublicKey,
	"RSA PUBLIC KEY":  func(der []byte) (any, error) { return x509.ParsePKCS1PublicKey(der) },
	"PRIVATE KEY":     x509.ParsePKCS8PrivateKey,
	"RSA PRIVATE KEY": func(der []byte) (any, error) { return x509.ParsePKCS1PrivateKey(der) },
	"EC PRIVATE KEY":  func(der []byte) (any, error) { return x509.ParseECPrivateKey(der) },
	"CERTIFICATE": func(der []byte) (any, error) {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		return certificate.PublicKey, nil
	},
}

func parsePEMBlock(blockType string, body []byte) (keyMaterial, error) {
	if blockType == "ENCRYPTED PRIVATE KEY" || bytes.Contains(body, []byte("ENCRYPTED")) {
		return keyMaterial{}, errors.New("the key is encrypted; decrypt it, or use the public key")
	}
	if blockType == "OPENSSH PRIVATE KEY" {
		return keyMaterial{}, errors.New("the key is in the format of OpenSSH; convert a copy of an RSA key with `ssh-keygen -p -m PEM -f <file>`")
	}
	parse, ok := pemParsers[blockType]
	if !ok {
		return keyMaterial{}, fmt.Errorf("want an RSA key of %d to %d bits, or its certificate", minModulusBits, maxModulusBits)
	}
	der, err := base64.StdEncoding.DecodeString(string(keyFiller.ReplaceAll(body, nil)))
	if err != nil {
		return keyMaterial{}, errors.New("it is not base64")
	}
	parsed, err := parse(der)
	if err != nil {
		return keyMaterial{}, err
	}
	return newKeyMaterial("", parsed)
}
