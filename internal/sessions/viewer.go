package sessions

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
)

// viewer is a viewer as tokens name them, with the sessions that run and those that
// have ended for good.
type viewer struct {
	key     viewerKey
	name    string     // "" if only other nodes have seen the viewer
	running []*Session // in no order
	trace   *trace     // nil for a viewer with one session at one place

	// Ended sessions stay ended until their tokens have expired. Of these, the
	// maxEnded that began last are listed. Of a viewer with more, every
	// session that began up to endedThrough has ended, unless it runs. So a flood
	// of starts with one token fills no memory.
	ended        []endedSession
	endedThrough int64 // Unix milliseconds
	endedUntil   int64 // Unix seconds: when all of that may be forgotten
}

type endedSession struct {
	id    ID
	begun int64
}

// Unnamed begins the name of a viewer whose token has no claim that names them, before the
// id or the digest of the token. No claim contains it.
const Unnamed = "\x00"

const (
	maxEnded = 64

	// maxViewerName is the longest name of a viewer, in bytes, that is kept whole.
	// A digest takes the place of a longer one.
	maxViewerName = 256
)

// viewerKey names a viewer in maps and in Redis. Names may be addresses of people, which
// do not belong there.
type viewerKey [16]byte

func keyOfViewer(name string) viewerKey {
	sum := sha256.Sum256([]byte("signed-playback viewer " + name))
	return viewerKey(sum[:16])
}

// shortName returns the name of a viewer as lists show it.
func shortName(name string, key viewerKey) string {
	if len(name) > maxViewerName {
		return "sha256:" + key.String()
	}
	return strings.Clone(name)
}

// viewerKey returns the key of the session's viewer. One without a name has no other session.
func (s *Session) viewerKey(name string) viewerKey {
	if name == "" {
		return viewerKey(s.id)
	}
	return keyOfViewer(name)
}

func (k viewerKey) String() string { return hex.EncodeToString(k[:]) }

func (v *viewer) add(s *Session) {
	s.position = len(v.running)
	v.running = append(v.running, s)
}

func (v *viewer) remove(s *Session) {
	last := len(v.running) - 1
	v.running[s.position] = v.running[last]
	v.running[s.position].position = s.position
	v.running[last] = nil
	v.running = v.running[:last]
}

// olderFirst sorts sessions by their beginning.
func olderFirst(a, b *Session) int {
	return cmp.Or(cmp.Compare(a.begun, b.begun), slices.Compare(a.id[:], b.id[:]))
}

// hasEnded reports whether a session that does not run has ended for good.
func (v *viewer) hasEnded(id ID, begun int64) bool {
	return begun <= v.endedThrough || v.listsEnded(id)
}

func (v *viewer) listsEnded(id ID) bool {
	return slices.ContainsFunc(v.ended, func(e endedSession) bool { return e.id == id })
}

// end remembers until a time, in Unix seconds, that a session has ended for good.
func (v *viewer) end(id ID, begun, until int64) {
	v.endedUntil = max(v.endedUntil, until)
	if v.hasEnded(id, begun) {
		return
	}
	place, _ := slices.BinarySearchFunc(v.ended, begun, func(e endedSession, begun int64) int { return cmp.Compare(e.begun, begun) })
	v.ended = slices.Insert(v.ended, place, endedSession{id, begun})
	if len(v.ended) > maxEnded {
		v.endedThrough = max(v.endedThrough, v.ended[0].begun)
		v.ended = slices.Delete(v.ended, 0, 1)
	}
}
