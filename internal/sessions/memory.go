package sessions

import (
	"crypto/subtle"
	"net/netip"
	"strings"
	"sync/atomic"
)

// Source finds the Authority of the secret that is in force. It is safe for concurrent use.
type Source struct {
	Fixed  *Authority       // of a secret in the config, nil for none
	Stored func() *[32]byte // otherwise the secret in the store, nil while it is unknown

	last atomic.Pointer[storedAuthority]
}

type storedAuthority struct {
	*Authority
	secret *[32]byte
}

// Authority returns nil while the secret of the store is unknown.
func (s *Source) Authority() *Authority {
	if s.Fixed != nil {
		return s.Fixed
	}
	secret := s.Stored()
	if secret == nil {
		return nil
	}
	last := s.last.Load()
	if last == nil || last.secret != secret {
		last = &storedAuthority{NewAuthority(secret[:]), secret}
		s.last.Store(last)
	}
	return last.Authority
}

// Memory remembers the sessions of the last requests of an owner, so that each is verified
// or computed once for the requests of one player. A nil Memory remembers nothing. It is
// safe for concurrent use.
type Memory struct {
	inPath  atomic.Pointer[verifiedText]
	outside atomic.Pointer[computedKey]
}

type verifiedText struct {
	authority *Authority
	text      string
	key       Key
}

// Verify is Authority.Verify.
func (m *Memory) Verify(a *Authority, text string, owner Owner) (Key, error) {
	if m == nil {
		return a.Verify(text, owner)
	}
	last := m.inPath.Load()
	if last != nil && last.authority == a && subtle.ConstantTimeCompare([]byte(last.text), []byte(text)) == 1 {
		return last.key, nil
	}
	key, err := a.Verify(text, owner)
	if err == nil {
		m.inPath.Store(&verifiedText{a, strings.Clone(text), key})
	}
	return key, err
}

// Player distinguishes players without a session in their path.
type Player struct {
	Address netip.Addr
	Named   bool   // Text is what the player calls its session, and not its user agent
	Text    string // may be a part of the request
}

type computedKey struct {
	authority *Authority
	player    Player
	key       Key
}

// KeyOf returns the key of the session of a player without one in its path.
func (m *Memory) KeyOf(a *Authority, player Player, owner Owner) (key Key) {
	if m != nil {
		if last := m.outside.Load(); last != nil && last.authority == a && last.player == player {
			return last.key
		}
	}
	if player.Named {
		key = a.KeyOfPlayer(owner, player.Text)
	} else {
		key = a.KeyOfClient(owner, player.Address, player.Text)
	}
	if m != nil {
		player.Text = strings.Clone(player.Text)
		m.outside.Store(&computedKey{a, player, key})
	}
	return key
}
