package controlapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	maxLifetime       = state.MaxTokenLifetime
	defaultLifetime   = time.Hour
	defaultBackdating = time.Hour // of nbf, for clocks that are slow
)

// mintRequest is the body of a call that mints a token.
type mintRequest struct {
	keyID, pem string
	claims     token.Claims // a zero date is not set
	warnings   []string     // about the rules
}

// Complete adds the claims that a gate with this policy requires, which refuses other
// tokens, and the time of signing.
func Complete(claims *token.Claims, policy token.Policy, now time.Time) {
	claims.IssuedAt, claims.ViewerClaim = now, policy.ViewerClaim.Name()
	if len(policy.Audience) > 0 {
		claims.Audience = policy.Audience[:1]
	}
	if len(policy.Issuer) > 0 {
		claims.Issuer = policy.Issuer[0]
	}
}

// createToken mints a token for a video.
func (c *call) createToken(body strictjson.Value) (any, error) {
	mint, err := c.parseMintRequest(body)
	if err != nil {
		return nil, err
	}
	now, claims := c.Now(), mint.claims
	claims.VideoID = c.subject
	if err := setDates(&claims, now); err != nil {
		return nil, err
	}
	Complete(&claims, c.Policy, now)
	key, err := c.mintingKey(mint)
	if err != nil {
		return nil, err
	}
	compact, err := token.SignWithTextDates(claims, key)
	if err != nil {
		return nil, badRequest("%v", err)
	}
	for _, warning := range mint.warnings {
		c.warn("%s", warning)
	}
	if longest := c.Policy.MaxLifetime; longest > 0 && claims.ExpiresAt.Sub(now) > longest {
		c.warn("exp is further away than the gateway's max_token_lifetime of %s, so the gate refuses the token until no more than that is left", longest)
	}
	return map[string]string{"token": compact}, nil
}

func (c *call) parseMintRequest(body strictjson.Value) (*mintRequest, error) {
	m := new(mintRequest)
	err := members{
		"id":           secretMember("id", &m.keyID),
		"pem":          secretMember("pem", &m.pem),
		"exp":          dateMember("exp", &m.claims.ExpiresAt),
		"nbf":          dateMember("nbf", &m.claims.NotBefore),
		"downloadable": boolMember("downloadable", &m.claims.Downloadable),
		"flags": func(v strictjson.Value) error {
			if !v.IsObject() {
				return badRequest("flags is not an object")
			}
			return members{"original": boolMember("flags.original", &m.claims.Original)}.read(v)
		},
		"uid": func(v strictjson.Value) error {
			text, ok := v.Text()
			if m.claims.Viewer = text; !ok || text == "" || len(text) > token.MaxIdentifier {
				return badRequest("uid is %.40s: want a string of 1 to %d bytes that names the viewer", v.Raw(), token.MaxIdentifier)
			}
			return nil
		},
		"climit": member("climit", &m.claims.SessionLimit, func(v strictjson.Value) (int, bool) {
			limit, err := strconv.ParseUint(string(v.Raw()), 10, 31)
			return int(limit), err == nil && limit > 0
		}, "a whole number from 1 on"),
		"startBy": func(v strictjson.Value) error {
			err := dateMember("startBy", &m.claims.StartBy)(v)
			switch {
			case err != nil:
				return err
			case !m.claims.StartBy.After(c.Now()):
				return badRequest("startBy is %.40s, which is in the past, so the token would not play", v.Raw())
			case m.claims.StartBy.Unix() > maxDate:
				return badRequest("startBy is %.40s, which is after the year 9999; it is in Unix seconds", v.Raw())
			}
			return nil
		},
		"accessRules": func(v strictjson.Value) (err error) {
			m.claims.AccessRules, m.warnings, err = c.parseRules(v)
			return err
		},
	}.read(body)
	if err != nil {
		return nil, err
	}
	if (m.keyID == "") != (m.pem == "") {
		return nil, badRequest("`id` and `pem` go together: give both, or neither to have the gateway's own key sign")
	}
	if m.keyID != "" && !state.ValidKeyID(m.keyID) {
		// Not quoted: it may be the private key.
		return nil, badRequest("there is no key with the `id` beside `pem`: an id is 1 to %d of A-Z a-z 0-9 _ - . ~", state.MaxKeyID)
	}
	return m, nil
}

// parseRules reads access rules, nil for null.
func (c *call) parseRules(v strictjson.Value) (rules json.RawMessage, warnings []string, err error) {
	if isNull(v) {
		return nil, nil, nil
	}
	if warnings, err = c.CheckRules(v.Raw()); err != nil {
		err = badRequest("%v", err)
	}
	return v.Raw(), warnings, err
}

// secretMember reads a string that no error quotes: it may be a private key.
func secretMember(name string, into *string) func(strictjson.Value) error {
	return func(v strictjson.Value) error {
		text, ok := v.Text()
		if *into = text; !ok {
			return badRequest("%s is not a string", name)
		}
		return nil
	}
}

// setDates adds the default dates and checks all dates.
func setDates(claims *token.Claims, now time.Time) error {
	if claims.ExpiresAt.IsZero() {
		claims.ExpiresAt = now.Add(defaultLifetime)
	}
	if claims.NotBefore.IsZero() {
		claims.NotBefore = now.Add(-defaultBackdating)
	}
	// In seconds, because durations between distant times overflow.
	switch expires, notBefore := claims.ExpiresAt.Unix(), claims.NotBefore.Unix(); {
	case expires <= now.Unix():
		return badRequest("exp is %s, which is in the past", claims.ExpiresAt.UTC().Format(time.RFC3339))
	case expires > now.Add(maxLifetime).Unix():
		return badRequest("exp is %d, which is more than %.0f hours ahead; it is in Unix seconds", expires, maxLifetime.Hours())
	case notBefore >= expires:
		return badRequest("nbf is %d, which is not before exp (%d)", notBefore, expires)
	}
	return nil
}

// mintingKey returns the key that signs: the client's, which the gateway must know, or
// the gateway's own.
func (c *call) mintingKey(m *mintRequest) (*token.SigningKey, error) {
	if m.keyID == "" {
		key, err := c.State.SigningKey(c.ctx())
		if errors.Is(err, state.ErrDamaged) {
			return nil, fmt.Errorf("%w: the gateway's own signing key: POST stream/keys/rotate replaces it: %w", state.ErrUnavailable, err)
		}
		return key, err
	}
	key, err := token.ParseSigningKey([]byte(m.pem), m.keyID)
	if err != nil {
		return nil, badRequest("pem: %v", err)
	}
	switch known, authoritative := c.LookupKey(m.keyID); {
	case known == nil && !authoritative:
		return nil, state.ErrUnavailable
	case known == nil:
		return nil, badRequest("there is no key %.80q, or it is revoked, so its tokens would not play", m.keyID)
	case !known.Equal(key.Public()):
		return nil, badRequest("pem is not the private half of the key %q", m.keyID)
	}
	return key, nil
}
