package store

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
)

// The versions of the envelope. An object of another version is damaged, so a
// downgrade fails closed.
const (
	digested      = 1
	authenticated = 2 // by Secrets
)

// envelope is the stored form of an object: its data with all that it takes to
// notice that something else, or only a part, is under this name.
type envelope struct {
	Format int             `json:"signed_playback"`
	Name   string          `json:"name"`
	SHA256 string          `json:"sha256,omitempty"` // of a digested object
	HMAC   string          `json:"hmac,omitempty"`   // of an authenticated object
	Data   json.RawMessage `json:"data"`
}

// encode puts an object's data into an envelope. data must be JSON.
func (s *Secrets) encode(name Name, data []byte) ([]byte, error) {
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return nil, fmt.Errorf("store: encoding %s: %w", name, err)
	}
	e := envelope{Format: digested, Name: name.String(), SHA256: digest(compact.Bytes()), Data: compact.Bytes()}
	if s != nil {
		var err error
		if e, err = s.present.protect(name, compact.Bytes()); err != nil {
			return nil, fmt.Errorf("store: encoding %s: %w", name, err)
		}
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // escaping would change the bytes that the digest is of
	err := enc.Encode(e)
	return out.Bytes(), err
}

// decode opens an envelope. nil means that there is no object. Anything that
// encode has not made is the object's damage.
func (s *Secrets) decode(name Name, raw []byte) Object {
	if raw == nil {
		return Object{Name: name}
	}
	damaged := func(why string, args ...any) Object {
		return Object{Name: name, Damage: fmt.Errorf("%w: %s: %s", ErrDamaged, name, fmt.Sprintf(why, args...))}
	}
	var e envelope
	if err := json.Unmarshal(raw, &e); err != nil {
		return damaged("%d bytes that are not an object of ours: %v", len(raw), err)
	}
	switch {
	case e.Format == authenticated && s == nil:
		return damaged("a store_secret authenticates it, and the config has none")
	case e.Format == digested && s != nil && !s.plain:
		return damaged("no store_secret authenticates it; if it is from before the config had one, put `plain` after the secret until it has been rewritten")
	case e.Format != digested && e.Format != authenticated:
		return damaged("format %d: want %d or %d", e.Format, digested, authenticated)
	case e.Name != name.String():
		return damaged("it is the object %.80q", e.Name)
	case len(e.Data) == 0:
		return damaged("it has no content")
	case e.Format == digested && e.SHA256 != digest(e.Data):
		return damaged("its content has been changed")
	case e.Format == digested:
		return Object{Name: name, Data: e.Data, Outdated: s != nil}
	}
	if data, ok := s.present.open(name, e); ok {
		return Object{Name: name, Data: data}
	}
	for _, keys := range s.earlier {
		if data, ok := keys.open(name, e); ok {
			return Object{Name: name, Data: data, Outdated: true}
		}
	}
	return damaged("the store_secret does not authenticate it: it was changed, moved, or written with another secret")
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

const (
	// MinSecret is the minimum length of a secret, in bytes. A secret of 64
	// hexadecimal digits has 256 bits.
	MinSecret = 16

	// Plain, in the place of an earlier secret, accepts objects that no secret
	// authenticates.
	Plain = "plain"
)

// Secrets authenticate the objects of a store and encrypt the signing key, so that
// write access to the store alone neither makes a key nor changes a setting. They
// do not keep anybody from removing an object or from bringing an earlier form of it
// back. They are immutable. With nil Secrets, objects have a digest only, which
// detects accidents.
type Secrets struct {
	present objectKeys
	earlier []objectKeys
	plain   bool // objects without authentication are accepted
}

// NewSecrets returns Secrets that write with the first secret and also accept what
// earlier ones, or Plain, have written. Without a secret it returns nil. Errors
// contain no secret.
func NewSecrets(secrets ...string) (*Secrets, error) {
	if len(secrets) == 0 {
		return nil, nil
	}
	s := new(Secrets)
	for i, secret := range secrets {
		switch {
		case i > 0 && secret == Plain:
			s.plain = true
			continue
		case len(secret) < MinSecret:
			return nil, fmt.Errorf("secret %d has %d characters: want at least %d; `openssl rand -hex 32` makes one", i+1, len(secret), MinSecret)
		case slices.Index(secrets, secret) < i:
			return nil, fmt.Errorf("secret %d is repeated", i+1)
		}
		keys, err := deriveKeys(secret)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			s.present = keys
		} else {
			s.earlier = append(s.earlier, keys)
		}
	}
	return s, nil
}

// objectKeys are derived from one secret.
type objectKeys struct {
	authentication []byte
	encryption     cipher.AEAD // of the signing key
}

func deriveKeys(secret string) (keys objectKeys, err error) {
	derive := func(purpose string) []byte {
		key, failed := hkdf.Key(sha256.New, []byte(secret), nil, "signed_playback store: "+purpose, sha256.Size)
		if failed != nil {
			err = failed
		}
		return key
	}
	keys.authentication = derive("authentication of objects")
	encryption := derive("encryption of the signing key")
	if err != nil {
		return keys, err
	}
	block, err := aes.NewCipher(encryption)
	if err != nil {
		return keys, err
	}
	keys.encryption, err = cipher.NewGCMWithRandomNonce(block)
	return keys, err
}

// protect returns the envelope of an object's data.
func (k objectKeys) protect(name Name, data []byte) (envelope, error) {
	if name.collection == Signing {
		var err error
		encrypted := k.encryption.Seal(nil, nil, data, []byte(name.String())) //nolint:gosec // it makes the nonce itself
		if data, err = json.Marshal(encrypted); err != nil {
			return envelope{}, err
		}
	}
	return envelope{Format: authenticated, Name: name.String(), HMAC: hex.EncodeToString(k.sum(name, data)), Data: data}, nil
}

// open returns the data of an envelope; ok is false if other keys have made it, or
// for another name.
func (k objectKeys) open(name Name, e envelope) (data []byte, ok bool) {
	presented, err := hex.DecodeString(e.HMAC)
	if err != nil || !hmac.Equal(presented, k.sum(name, e.Data)) {
		return nil, false
	}
	if name.collection != Signing {
		return e.Data, true
	}
	var encrypted []byte
	if json.Unmarshal(e.Data, &encrypted) != nil {
		return nil, false
	}
	data, err = k.encryption.Open(nil, nil, encrypted, []byte(name.String()))
	return data, err == nil
}

// sum is over the name too, so that no object passes for another.
func (k objectKeys) sum(name Name, data []byte) []byte {
	sum := hmac.New(sha256.New, k.authentication)
	fmt.Fprintf(sum, "%d\x00%s\x00%s", authenticated, name, data)
	return sum.Sum(nil)
}
