package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
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
