package store

import (
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
