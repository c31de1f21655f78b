package token

import (
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// signedHeader and signedPayload have their members in the order of Cloudflare's
// examples, and the `kid` in both, as those do.
type signedHeader struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"`
}

type signedPayload struct {
	Subject      string          `json:"sub"`
	KeyID        string          `json:"kid"`
	ExpiresAt    any             `json:"exp"`           // Unix time in seconds, a number or a string of digits
	NotBefore    any             `json:"nbf,omitempty"` // as ExpiresAt
	Downloadable bool            `json:"downloadable,omitempty"`
	AccessRules  json.RawMessage `json:"accessRules,omitempty"`
	Flags        map[string]bool `json:"flags,omitempty"`
	Audience     any             `json:"aud,omitempty"` // a string or an array of strings
	Issuer       string          `json:"iss,omitempty"`
	ID           string          `json:"jti"`
	IssuedAt     any             `json:"iat"` // as ExpiresAt
	SessionLimit int             `json:"climit,omitempty"`
	StartBy      any             `json:"startBy,omitempty"` // as ExpiresAt
}

// Sign returns a compact token with these claims. VideoID and ExpiresAt are
// required. Sign cuts dates to whole seconds and ignores KeyID: the token gets
// that of the key. AccessRules must be strict JSON; Sign does not check that they
// are rules. Without an ID, the token gets a random one, and without IssuedAt, the
// present time.
//
// Parse accepts every token that Sign returns. For claims that Parse would not
// accept, and for tokens longer than MaxLength, the error wraps ErrMalformed.
func Sign(claims Claims, key *SigningKey) (string, error) { return sign(claims, key, false) }

// SignWithTextDates is Sign, but writes the dates as strings of digits, as
// Cloudflare's API does.
func SignWithTextDates(claims Claims, key *SigningKey) (string, error) {
	return sign(claims, key, true)
}

func sign(claims Claims, key *SigningKey, textDates bool) (string, error) {
	claims.ID = cmp.Or(claims.ID, randomID())
	if claims.IssuedAt.IsZero() {
		claims.IssuedAt = time.Now()
	}
	viewer, err := NewViewerClaim(cmp.Or(claims.ViewerClaim, defaultViewerClaim.name))
	if err != nil {
		return "", fmt.Errorf("%w: ViewerClaim %w", ErrMalformed, err)
	}
	if err := checkEncodable(claims); err != nil {
		return "", err
	}
	payload, err := encodePayload(claims, key.id, viewer.name, textDates)
	if err != nil {
		return "", err
	}
	header, err := json.Marshal(signedHeader{"RS256", key.id})
	if err != nil {
		return "", err
	}
	signed := strict.EncodeToString(header) + "." + strict.EncodeToString(payload)
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key.rsa, crypto.SHA256, digest[:])
	if err != nil {
		return "", fmt.Errorf("token: signing: %w", err)
	}
	compact := signed + "." + strict.EncodeToString(signature)
	if _, err := (Policy{ViewerClaim: viewer}).Parse(compact); err != nil {
		return "", describe(claims, err)
	}
	return compact, nil
}

// checkEncodable checks what the encoding of the claims would hide: dates without meaning,
// and bytes that encoding/json replaces.
func checkEncodable(claims Claims) error {
	for name, date := range map[string]time.Time{
		"exp": claims.ExpiresAt, "nbf": claims.NotBefore, "iat": claims.IssuedAt, "startBy": claims.StartBy,
	} {
		if date.Unix() > maxExpiry {
			return fmt.Errorf("%w: %s is %s, after the year 9999", ErrMalformed, name, date.UTC().Format(time.DateTime))
		}
	}
	for _, text := range append(slices.Clone(claims.Audience), claims.Issuer, claims.ID, claims.Viewer) {
		if !utf8.ValidString(text) {
			return fmt.Errorf("%w: aud, iss, jti or the viewer %q is not UTF-8", ErrMalformed, text)
		}
	}
	return nil
}

// encodePayload returns the payload as JSON. The name of the last member, the viewer's,
// is not fixed.
func encodePayload(claims Claims, keyID, viewerClaim string, textDates bool) ([]byte, error) {
	unix := func(date time.Time) any {
		switch {
		case date.IsZero():
			return nil
		case textDates:
			return strconv.FormatInt(date.Unix(), 10)
		}
		return date.Unix()
	}
	payload := signedPayload{
		Subject:      claims.VideoID,
		KeyID:        keyID,
		ExpiresAt:    unix(claims.ExpiresAt),
		NotBefore:    unix(claims.NotBefore),
		Downloadable: claims.Downloadable,
		AccessRules:  claims.AccessRules,
		Issuer:       claims.Issuer,
		ID:           claims.ID,
		IssuedAt:     unix(claims.IssuedAt),
		SessionLimit: claims.SessionLimit,
		StartBy:      unix(claims.StartBy),
	}
	switch len(claims.Audience) {
	case 0:
	case 1:
		payload.Audience = claims.Audience[0]
	default:
		payload.Audience = claims.Audience
	}
	if claims.Original {
		payload.Flags = map[string]bool{"original": true}
	}
	encoded, err := json.Marshal(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: encoding claims: %w", ErrMalformed, err)
	}
	if claims.Viewer != "" {
		viewer, _ := json.Marshal(map[string]string{viewerClaim: claims.Viewer}) // both are UTF-8
		encoded = append(append(encoded[:len(encoded)-1], ','), viewer[1:]...)
	}
	return encoded, nil
}

// describe adds the invalid value to an error of Parse. A signer may see it; the
// sender of a token to verify may not.
func describe(claims Claims, err error) error {
	switch {
	case !ValidVideoID(claims.VideoID):
		return fmt.Errorf("%w: %q: want 1 to %d characters of A-Z, a-z, 0-9, _ and -", errSubject, claims.VideoID, maxVideoID)
	case claims.ExpiresAt.IsZero():
		return errNoExpiry
	case claims.ExpiresAt.Unix() < 0:
		return fmt.Errorf("%w: exp is %s", errDate, claims.ExpiresAt.Format(time.RFC3339))
	}
	return err
}
