package sessions

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	// Prefix begins the path segment of a session.
	Prefix = "~"

	// TextLength is the length of a session id in a URL, in bytes of base64url.
	TextLength = 32

	// A session id has a random number, the time of its start and a truncated
	// HMAC-SHA-256. 96 bits of it leave nothing to guess (RFC 2104 section 5).
	randomLength = 8
	timeLength   = 4
	nameLength   = randomLength + timeLength
	macLength    = TextLength*3/4 - nameLength
)

// ErrSession is the error of Authority.Verify. It says no more, because a stranger gets it.
var ErrSession = errors.New("sessions: the session id does not belong to this token or video")

// Owner is the token or the open video that a session id is valid for. The zero Owner is not
// valid.
type Owner struct {
	Token [sha256.Size]byte // the SHA-256 of a token, zero without one
	Video string            // the id of an open video, which is asked for without a token
}

// HasForm reports whether a path segment is meant to be a session: a tilde and as many
// characters as a session id has, or more. No folder has such a name.
func HasForm(segment string) bool {
	return len(segment) > TextLength && strings.HasPrefix(segment, Prefix)
}

// Authority makes and verifies session ids as they are in URLs. It is safe for concurrent use.
type Authority struct {
	macs sync.Pool // of *mac
}

// mac computes HMACs. It has the memory for one, so that none is allocated.
type mac struct {
	hash.Hash
	buffer [64]byte
	sum    [sha256.Size]byte
}

// begin writes the use and the owner of a MAC. The kind keeps a MAC of one use from being
// valid for another. A length before each text keeps texts apart.
func (m *mac) begin(kind byte, owner Owner) {
	m.Reset()
	m.Write(append(append(m.buffer[:0], kind), owner.Token[:]...))
	m.text(owner.Video)
}

func (m *mac) text(s string) {
	m.Write(binary.BigEndian.AppendUint32(m.buffer[:0], uint32(len(s))))
	for s != "" {
		n := copy(m.buffer[:], s)
		m.Write(m.buffer[:n])
		s = s[n:]
	}
}

// NewAuthority returns an Authority with a secret. Only the nodes of one fleet know it.
func NewAuthority(secret []byte) *Authority {
	return &Authority{sync.Pool{New: func() any { return &mac{Hash: hmac.New(sha256.New, secret)} }}}
}

// New returns the text of a new session of an owner.
func (a *Authority) New(owner Owner, now time.Time) (text string) {
	var key Key
	_, _ = rand.Read(key[:randomLength]) // it never fails
	binary.BigEndian.PutUint32(key[randomLength:], uint32(now.Unix()))
	return a.Text(key, owner)
}

// Text returns the text that a session has for an owner: for a new token of the same
// viewer, another text means the same session.
func (a *Authority) Text(key Key, owner Owner) string {
	text := a.text(key, owner)
	return string(text[:])
}

func (a *Authority) text(key Key, owner Owner) (text [TextLength]byte) {
	m := a.macs.Get().(*mac)
	defer a.macs.Put(m)
	m.begin('s', owner)
	m.Write(append(m.buffer[:0], key[:nameLength]...))
	var id [nameLength + macLength]byte
	copy(id[copy(id[:], key[:nameLength]):], m.Sum(m.sum[:0]))
	base64.RawURLEncoding.Encode(text[:], id[:])
	return text
}

// Verify returns the key of the session that a text names, if it is a session of this owner.
func (a *Authority) Verify(text string, owner Owner) (Key, error) {
	key, ok := KeyIn(text)
	if !ok {
		return Key{}, ErrSession
	}
	if expected := a.text(key, owner); subtle.ConstantTimeCompare([]byte(text), expected[:]) != 1 {
		return Key{}, ErrSession
	}
	return key, nil
}

// KeyIn returns the key that the text of a session names, without a check of whose it is.
// The caller has to know the session of this key. There is one text for each 24 bytes, because 32
// characters leave no bits over.
func KeyIn(text string) (key Key, ok bool) {
	var encoded [TextLength]byte
	var id [nameLength + macLength]byte
	copy(encoded[:], text)
	// The decoder skips line breaks, and then finds fewer bytes.
	n, err := base64.RawURLEncoding.Decode(id[:], encoded[:])
	if len(text) != TextLength || err != nil || n != len(id) {
		return Key{}, false
	}
	copy(key[:], id[:nameLength])
	return key, true
}

// Begun returns when the session of a key from a URL has begun, in whole seconds.
func (k Key) Begun() time.Time {
	return time.Unix(int64(binary.BigEndian.Uint32(k[randomLength:])), 0)
}

// KeyOfPlayer returns the key of a session without a text in URLs, by what the player calls it.
// All nodes of a fleet find the same.
func (a *Authority) KeyOfPlayer(owner Owner, id string) Key { return a.keyOf('p', owner, 0, id) }

// KeyOfClient returns the key of a session of which only the client is known, for all addresses of a
// network.
func (a *Authority) KeyOfClient(owner Owner, address netip.Addr, userAgent string) Key {
	return a.keyOf('n', owner, networkOf(address), userAgent)
}

func (a *Authority) keyOf(kind byte, owner Owner, from network, text string) (key Key) {
	m := a.macs.Get().(*mac)
	defer a.macs.Put(m)
	m.begin(kind, owner)
	m.Write(binary.BigEndian.AppendUint64(m.buffer[:0], uint64(from)))
	m.text(text)
	copy(key[:], m.Sum(m.sum[:0]))
	return key
}
