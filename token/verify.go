package token

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"slices"
	"time"
)

// Keys finds public keys by their `kid`.
type Keys interface {
	// Lookup returns the key with this id, or nil if there is none. It must be
	// safe for concurrent use.
	Lookup(keyID string) *PublicKey
}

// Policy says which tokens with a valid signature are accepted.
type Policy struct {
	// Leeway is how far in the future `nbf` may be, for signers whose clock is
	// fast. It does not apply to `exp`. Default: 0.
	Leeway time.Duration

	// MaxLifetime is how far in the future `exp` may be. Default: 0, no limit
	// except the end of the year 9999, which a date in milliseconds exceeds.
	MaxLifetime time.Duration

	// ViewerClaim is the claim that names the viewer. Default: `uid`.
	ViewerClaim ViewerClaim

	// Audience lists values of `aud`, of which a token must have one. Default:
	// none, and the claim is ignored.
	Audience []string

	// Issuer lists values of `iss`, of which a token must have one. Default:
	// none, and the claim is ignored.
	Issuer []string
}

// Verify parses a compact token, finds its key, checks the signature and then
// checks the claims against now and the policy. It returns access rules but does not evaluate
// them. The result depends on the arguments only.
//
// Errors wrap ErrMalformed, ErrAlgorithm, ErrKeyUnknown, ErrSignature,
// ErrAudience, ErrExpired, ErrNotYetValid or ErrLifetime. With an error the claims are zero.
func Verify(compact string, keys Keys, now time.Time, policy Policy) (Claims, error) {
	p, err := policy.Parse(compact)
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
	if err := claims.Check(now, policy); err != nil {
		return Claims{}, err
	}
	return claims, nil
}

// Key finds the key that the token names. Errors wrap ErrKeyUnknown.
func (p Parsed) Key(keys Keys) (*PublicKey, error) {
	if p.claims.KeyID == "" {
		return nil, errNoKeyID
	}
	if key := keys.Lookup(p.claims.KeyID); key != nil {
		return key, nil
	}
	return nil, ErrKeyUnknown
}

// Verify checks the signature with a key (RSASSA-PKCS1-v1_5 with SHA-256, RFC
// 8017 section 8.2.2) and returns the claims. The caller must check them with
// Check. Errors wrap ErrSignature.
func (p Parsed) Verify(key *PublicKey) (Claims, error) {
	if len(p.signature) != key.rsa.Size() {
		return Claims{}, errSignatureLength
	}
	digest := sha256.Sum256([]byte(p.signed))
	if rsa.VerifyPKCS1v15(key.rsa, crypto.SHA256, digest[:], p.signature) != nil {
		return Claims{}, ErrSignature
	}
	return p.claims, nil
}

// Check checks the audience, the issuer and the dates of verified claims. Errors
// wrap ErrAudience, ErrExpired, ErrNotYetValid or ErrLifetime.
func (c *Claims) Check(now time.Time, policy Policy) error {
	allowed := func(value string) bool { return slices.Contains(policy.Audience, value) }
	switch {
	case len(policy.Audience) > 0 && !slices.ContainsFunc(c.Audience, allowed):
		return errAudience
	case len(policy.Issuer) > 0 && !slices.Contains(policy.Issuer, c.Issuer):
		return errIssuer
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
