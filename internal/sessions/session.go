package sessions

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Key tells sessions apart in requests: the bytes of the session id in the URL, or a
// digest of what else distinguishes the client. It is as secret as the URL.
type Key [24]byte

// ID names a session in lists, logs, events and stores. It is a digest of the key, so
// nobody can play with it.
type ID [16]byte

// ID returns the id of the session with this key.
func (k Key) ID() ID {
	sum := sha256.Sum256(append([]byte("signed-playback session "), k[:]...))
	return ID(sum[:16])
}

// String returns 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID is the inverse of String.
func ParseID(text string) (id ID, err error) {
	if n, err := hex.Decode(id[:], []byte(text[:min(len(text), 2*len(id))])); err != nil || n != len(id) || id.String() != text {
		return ID{}, errors.New("sessions: a session id has 32 lower case hexadecimal digits")
	}
	return id, nil
}

// Client describes the player of a session. The tracker asks it at the start of a session
// and when the network changes, so other requests do not pay for the answer.
type Client interface {
	Country() string // ISO 3166-1 alpha-2, "" if it is unknown
	UserAgent() string

	// Admit decides whether a session of this client may begin, and on which terms. It is
	// called where Visit.Asks is true, once at a time for each session. It may take its
	// time.
	Admit(context.Context, ID) (Terms, error)
}

// Session is a running session. It is safe for concurrent use.
type Session struct {
	tracker   *Tracker // nil if the session is not counted
	viewer    *viewer
	key       Key
	id        ID
	video     string
	userAgent string
	begun     int64   // Unix milliseconds; the order in which sessions are ended
	limit     int     // that it began with
	granted   int     // the part of it that Terms say
	origin    network // where it began

	seen    atomic.Int64 // of the last request: nanoseconds on the tracker's clock
	bytes   atomic.Int64
	until   atomic.Int64     // Unix seconds of the extension, 0 without one
	asked   atomic.Int64     // when that was last looked up, on the tracker's clock; 0 for never
	ends    atomic.Int64     // Unix seconds of Terms.Until, 0 for never
	expires atomic.Int64     // Unix seconds of the newest token
	places  [2]atomic.Uint64 // the networks from which it was last used: IPv4, IPv6

	admitted atomic.Bool   // Client.Admit has permitted it
	followed atomic.Uint32 // a digest of the live playlist that it plays without a session in its path

	// What the fleet knows: seen and bytes at the last beat. Of the goroutine of Run, and
	// of the start.
	told, toldBytes int64

	// Under the tracker's mutex.
	position int              // in the viewer's running sessions
	past     [maxPast]network // networks that it has left
	country  countryCode
	shared   bool
}

// maxPast is how many networks a session remembers that it was used from before.
const maxPast = 4

// ID returns the id of the session for lists, logs and revocations.
func (s *Session) ID() ID { return s.id }

// Video returns the video that the session plays.
func (s *Session) Video() string { return s.video }

// Until returns how long the session may play beyond the end of its token, the zero
// time without an extension.
func (s *Session) Until() time.Time { return unixTime(s.until.Load()) }

// Ends returns when the session ends for good, the zero time for never.
func (s *Session) Ends() time.Time { return unixTime(s.ends.Load()) }

func (t *Tracker) isOver(s *Session) bool {
	ends := s.ends.Load()
	return ends > 0 && t.config.Now().Unix() >= ends
}

// accept stores the terms of a session. admitted says that Client.Admit has returned them. The
// caller holds the tracker's mutex, or is the only one that knows the session.
func (s *Session) accept(terms Terms, admitted bool) {
	s.granted = terms.Limit
	s.limit = SmallerLimit(s.limit, terms.Limit)
	s.ends.Store(max(0, terms.Until.Unix()))
	s.admitted.Store(admitted)
}

// AddBytes counts n bytes of a response. A session that receives is not silent.
func (s *Session) AddBytes(n int64) {
	if s.tracker == nil {
		return
	}
	s.bytes.Add(n)
	s.seen.Store(s.tracker.elapsed())
}

// Follow takes down which live playlist a session without a session in its path plays.
func (s *Session) Follow(playlist uint32) { s.followed.Store(playlist) }

// extend sets the extension, the zero time for none.
func (s *Session) extend(until time.Time) { s.until.Store(max(0, until.Unix())) }

// renew takes the end of a newer token down.
func (s *Session) renew(expires time.Time) {
	if at := expires.Unix(); at > s.expires.Load() {
		s.expires.Store(at)
	}
}

// memorable returns until when, in Unix seconds, it matters that a session has ended. It may
// have been extended on another node. Without a token it could come back for ever; a day is
// longer than players run.
func (t *Tracker) memorable(s *Session) int64 {
	if expires := s.expires.Load(); expires > 0 {
		return max(expires+int64(t.policy.Load().Extension/time.Second), s.until.Load())
	}
	return t.config.Now().Add(24 * time.Hour).Unix()
}

// at reports whether a network is the one from which the session was last used. A player
// with IPv4 and IPv6 alternates between them, so each family has its own.
func (s *Session) at(n network) bool {
	return n == 0 || s.places[n.family()].Load() == uint64(n)
}

// moveTo takes down from where the session is used now. The caller holds the tracker's
// mutex.
func (s *Session) moveTo(n network, country string) {
	copy(s.country[:], country)
	place := &s.places[n.family()]
	left := network(place.Swap(uint64(n)))
	if left == 0 || left == n {
		return
	}
	s.shared = s.shared || slices.Contains(s.past[:], n)
	if !slices.Contains(s.past[:], left) {
		copy(s.past[1:], s.past[:])
		s.past[0] = left
	}
}

// place returns the network from which the session was last used, IPv4 if it has both.
func (s *Session) place() network {
	return network(cmp.Or(s.places[0].Load(), s.places[1].Load()))
}

// maxUserAgent is how much of a User-Agent is kept, in bytes.
const maxUserAgent = 160

// ShortUserAgent returns a User-Agent as lists show it.
func ShortUserAgent(text string) string {
	return strings.Clone(strings.ToValidUTF8(text[:min(len(text), maxUserAgent)], ""))
}

func unixTime(seconds int64) time.Time {
	if seconds <= 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}

// network is the network of a client in eight bytes: of IPv4 the first three octets, of
// IPv6 the first six. The zero value is an unknown one.
type network uint64

const (
	v4Bits, v6Bits = 24, 48

	v4Mark, v6Mark network = 1 << 56, 2 << 56
)

// networkOf returns the network of an address.
func networkOf(address netip.Addr) network {
	address = address.Unmap()
	switch {
	case address.Is4():
		octets := address.As4()
		return v4Mark | network(binary.BigEndian.Uint32(octets[:])>>(32-v4Bits))
	case address.Is6():
		octets := address.As16()
		return v6Mark | network(binary.BigEndian.Uint64(octets[:])>>(64-v6Bits))
	}
	return 0
}

// NetworkOf returns the network of an address as lists show it, the zero value for an unknown one.
func NetworkOf(address netip.Addr) netip.Prefix { return networkOf(address).prefix() }

// family returns 0 for IPv4 and 1 for IPv6.
func (n network) family() int { return int(n>>57) & 1 }

// prefix returns the network as a /24 or a /48, the zero value for an unknown one.
func (n network) prefix() netip.Prefix {
	switch n &^ (1<<56 - 1) {
	case v4Mark:
		var octets [4]byte
		binary.BigEndian.PutUint32(octets[:], uint32(n)<<(32-v4Bits))
		return netip.PrefixFrom(netip.AddrFrom4(octets), v4Bits)
	case v6Mark:
		var octets [16]byte
		binary.BigEndian.PutUint64(octets[:], uint64(n)<<(64-v6Bits))
		return netip.PrefixFrom(netip.AddrFrom16(octets), v6Bits)
	}
	return netip.Prefix{}
}

// countryCode is an ISO 3166-1 alpha-2 code; the zero value is an unknown country.
type countryCode [2]byte

func (c countryCode) String() string {
	if c == (countryCode{}) {
		return ""
	}
	return string(c[:])
}
