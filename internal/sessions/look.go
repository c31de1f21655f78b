package sessions

import (
	"time"
)

// Runs reports whether a session of a key runs on this node, and whether Client.Admit has permitted it.
func (t *Tracker) Runs(key Key) (runs, admitted bool) {
	s := t.session(key)
	if s == nil {
		return false, false
	}
	_, ended := t.ended(s)
	return !ended, s.admitted.Load()
}

// Follows reports whether a session of a key runs on this node and plays a live playlist.
func (t *Tracker) Follows(key Key, playlist uint32) bool {
	s := t.session(key)
	return s != nil && s.followed.Load() == playlist && !t.silent(s, t.policy.Load().Timeout)
}

// Until returns how long the session of a key may play beyond the end of its token, the
// zero time without an extension. What it knows of a running session is a second old at
// most.
func (t *Tracker) Until(key Key) time.Time {
	s := t.session(key)
	if s == nil {
		return t.config.Extended(key.ID())
	}
	if now := t.elapsed(); now-s.asked.Swap(now) >= int64(time.Second) {
		s.extend(t.config.Extended(s.id))
	}
	return s.Until()
}

// MayBegin returns ErrLimit if Visit would refuse this visit, as far as this node knows, and
// begins nothing.
func (t *Tracker) MayBegin(v Visit) error {
	if !v.Asks && (v.Limit == 0 || !t.policy.Load().RefuseNew) {
		return nil
	}
	s := t.newSession(v)
	t.mu.Lock()
	defer t.mu.Unlock()
	of := t.viewerOf(s, v.Viewer)
	if v.Asks && !t.hasRoom(of, s.origin) {
		return ErrLimit
	}
	_, err := t.replacedBy(s, of)
	return err
}
