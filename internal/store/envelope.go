package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// format is the version of the envelope. An object of another version is
// damaged for this one, so a downgrade fails closed.
const format = 1

// envelope is the stored form of an object: its data with all that it takes to
// notice that something else, or only a part, is under this name.
type envelope struct {
	Format int             `json:"signed_playback"`
	Name   string          `json:"name"`
	SHA256 string          `json:"sha256"`
	Data   json.RawMessage `json:"data"`
}

// encode puts an object's data into an envelope. data must be JSON.
func encode(name Name, data []byte) ([]byte, error) {
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return nil, fmt.Errorf("store: encoding %s: %w", name, err)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // escaping would change the bytes that the digest is of
	err := enc.Encode(envelope{format, name.String(), digest(compact.Bytes()), compact.Bytes()})
	return out.Bytes(), err
}

// decode opens an envelope. nil means that there is no object. Anything that
// encode has not made is the object's damage.
func decode(name Name, raw []byte) Object {
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
	case e.Format != format:
		return damaged("format %d: want %d", e.Format, format)
	case e.Name != name.String():
		return damaged("it is the object %.80q", e.Name)
	case len(e.Data) == 0:
		return damaged("it has no content")
	case e.SHA256 != digest(e.Data):
		return damaged("its content has been changed")
	}
	return Object{Name: name, Data: e.Data}
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
