package token

import "time"

// Keys finds public keys by their `kid`. Lookup returns nil for a key that is
// not there. It must be safe for concurrent use.
type Keys interface {
	Lookup(keyID string) *PublicKey
}

// Policy is what a verifier demands of a token's dates.
type Policy struct {
	// Leeway is how far in the future `nbf` may lie, for signers whose clocks
	// are ahead. `exp` is exact. Default: none.
	Leeway time.Duration

	// MaxLifetime is how far in the future `exp` may lie. Default: no limit but
	// the year 9999, which a date in milliseconds exceeds.
	MaxLifetime time.Duration
}

// Verify parses a compact token, finds its key, checks the signature and then
// the dates against now. Access rules are returned, not enforced. It is a pure
// function of the token's bytes, the keys and the time.
//
// The errors wrap ErrMalformed, ErrAlgorithm, ErrKeyUnknown, ErrSignature,
// ErrExpired, ErrNotYetValid or ErrLifetime; with an error the claims are zero.
func Verify(compact string, keys Keys, now time.Time, policy Policy) (Claims, error) {
	p, err := Parse(compact)
	if err != nil {
		return Claims{}, err
	}
	key, err := p.Key(keys)
	if err != nil {
		return Claims{}, err
	}
	claims, err := p.Verify(key)
	if err != nil {
		return Claims{}, err
	}
	if err := claims.CheckTime(now, policy); err != nil {
		return Claims{}, err
	}
	return claims, nil
}

// Key finds the key that the token names. Its errors wrap ErrKeyUnknown.
func (p Parsed) Key(keys Keys) (*PublicKey, error) {
	if p.claims.KeyID == "" {
		return nil, errNoKeyID
	}
	if key := keys.Lookup(p.claims.KeyID); key != nil {
		return key, nil
	}
	return nil, ErrKeyUnknown
}

// Verify checks the signature with that one key, and returns the claims, whose
// dates are still to be checked. Its errors wrap ErrSignature.
func (p Parsed) Verify(key *PublicKey) (Claims, error) {
	if err := key.verify(p.signed, p.signature); err != nil {
		return Claims{}, err
	}
	return p.claims, nil
}

// CheckTime checks the dates of verified claims against now. Its errors wrap
// ErrExpired, ErrNotYetValid or ErrLifetime.
func (c *Claims) CheckTime(now time.Time, policy Policy) error {
	switch {
	case !now.Before(c.ExpiresAt):
		return ErrExpired
	case c.NotBefore.After(now.Add(policy.Leeway)):
		return ErrNotYetValid
	case c.ExpiresAt.Unix() > maxExpiry,
		policy.MaxLifetime > 0 && c.ExpiresAt.After(now.Add(policy.MaxLifetime)):
		return ErrLifetime
	}
	return nil
}
