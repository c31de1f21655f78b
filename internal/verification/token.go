package verification

import (
	"crypto/sha256"
	"encoding/hex"
	"sync/atomic"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/refusal"
	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// Token is all that stays true of a token: its signature is valid and its rules can be
// evaluated. The policy, keys, revocations, settings, address and origin are checked on
// each request. It is immutable, except for what it remembers.
type Token struct {
	Video              string
	expires, notBefore int64 // Unix seconds
	Downloadable       bool
	audience           []string
	issuer             string
	ID, Viewer         string // "" if the token has no such claim
	issued             int64  // Unix seconds, negative if the token has no such claim
	StartBy            int64  // the same
	SessionLimit       int    // 0 if the token has no such claim
	SessionViewer      string // whose sessions count together
	Rules              accessrules.List
	Key                *token.PublicKey  // nil if `explain` assumes that the token is valid
	Digest             [sha256.Size]byte // of the token; zero if Key is nil

	Sessions sessions.Memory                   // of the last requests
	Clean    atomic.Pointer[state.Revocations] // the last revocations that did not contain the token
}

// NewToken returns what claims say. key is nil if nobody has verified them. Its error is a
// refusal: the access rules are not valid.
func NewToken(claims token.Claims, key *token.PublicKey) (*Token, error) {
	rules, err := accessrules.CompileClaim(claims.AccessRules)
	if err != nil {
		return nil, refusal.RulesInvalid.Because(err)
	}
	return &Token{
		Video:   claims.VideoID,
		expires: claims.ExpiresAt.Unix(), notBefore: claims.NotBefore.Unix(),
		Downloadable: claims.Downloadable,
		audience:     claims.Audience, issuer: claims.Issuer,
		ID: claims.ID, Viewer: claims.Viewer,
		issued: claims.IssuedAt.Unix(), StartBy: claims.StartBy.Unix(),
		SessionLimit: claims.SessionLimit,
		Rules:        rules,
		Key:          key,
	}, nil
}

// identify takes the digest of a token down, and whose sessions count together.
func (t *Token) identify(compact string) {
	t.Digest = sha256.Sum256([]byte(compact))
	switch {
	case t.Viewer != "":
		t.SessionViewer = t.Viewer
	case t.ID != "":
		t.SessionViewer = sessions.Unnamed + t.ID
	default:
		t.SessionViewer = sessions.Unnamed + hex.EncodeToString(t.Digest[:])
	}
}

// ExpiresAt returns the time of the claim `exp`.
func (t *Token) ExpiresAt() time.Time { return time.Unix(t.expires, 0) }

// Subject returns what revocations may name. compact is the token itself.
func (t *Token) Subject(compact string) state.Subject {
	return state.Subject{Token: compact, ID: t.ID, Viewer: t.Viewer, Video: t.Video, IssuedAt: t.issued}
}

// Check compares the audience, the issuer and the dates with a policy. Its errors are those of
// package token.
func (t *Token) Check(now time.Time, policy token.Policy) error {
	claims := token.Claims{
		ExpiresAt: t.ExpiresAt(), NotBefore: time.Unix(t.notBefore, 0), Audience: t.audience, Issuer: t.issuer,
	}
	return claims.Check(now, policy)
}
