package token

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
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
}

// Sign returns a compact token with these claims. VideoID and ExpiresAt are
// required. Sign cuts dates to whole seconds and ignores KeyID: the token gets
// that of the key. AccessRules must be strict JSON; Sign does not check that they
// are rules.
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
	for name, date := range map[string]time.Time{"exp": claims.ExpiresAt, "nbf": claims.NotBefore} {
		if date.Unix() > maxExpiry {
			return "", fmt.Errorf("%w: %s is %s, after the year 9999", ErrMalformed, name, date.UTC().Format(time.DateTime))
		}
	}
	for _, text := range append(slices.Clone(claims.Audience), claims.Issuer) {
		if !utf8.ValidString(text) {
			return "", fmt.Errorf("%w: aud or iss %q is not UTF-8", ErrMalformed, text)
		}
	}
	unix := func(date time.Time) any {
		if textDates {
			return strconv.FormatInt(date.Unix(), 10)
		}
		return date.Unix()
	}
	payload := signedPayload{
		Subject:      claims.VideoID,
		KeyID:        key.id,
		ExpiresAt:    unix(claims.ExpiresAt),
		Downloadable: claims.Downloadable,
		AccessRules:  claims.AccessRules,
		Issuer:       claims.Issuer,
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
	if !claims.NotBefore.IsZero() {
		payload.NotBefore = unix(claims.NotBefore)
	}
	signed, err := encode(signedHeader{"RS256", key.id}, payload)
	if err != nil {
		return "", err
	}
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key.rsa, crypto.SHA256, digest[:])
	if err != nil {
		return "", fmt.Errorf("token: signing: %w", err)
	}
	compact := signed + "." + base64.RawURLEncoding.EncodeToString(signature)
	if _, err := Parse(compact); err != nil {
		return "", describe(claims, err)
	}
	return compact, nil
}

func encode(documents ...any) (string, error) {
	segments := make([]string, len(documents))
	for i, document := range documents {
		encoded, err := json.Marshal(document)
		if err != nil {
			return "", fmt.Errorf("%w: encoding claims: %w", ErrMalformed, err)
		}
		segments[i] = base64.RawURLEncoding.EncodeToString(encoded)
	}
	return strings.Join(segments, "."), nil
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
