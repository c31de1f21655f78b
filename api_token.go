package signedplayback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	maxMintedLifetime     = 24 * time.Hour
	defaultMintedLifetime = time.Hour
	defaultBackdating     = time.Hour // of nbf, for clocks that are behind
)

// mintRequest is the body of a call that mints a token.
type mintRequest struct {
	keyID, pem   string
	expires      time.Time // zero if it is not set
	notBefore    time.Time
	downloadable bool
	rawRules     json.RawMessage
	rules        accessRules
}

type createdToken struct {
	Token string `json:"token"`
}

// createToken mints a token for a video.
func (c *call) createToken(body strictjson.Value) (any, error) {
	if err := c.checkVideo(); err != nil {
		return nil, err
	}
	mint, err := parseMintRequest(body)
	if err != nil {
		return nil, err
	}
	claims, err := mint.claims(c.subject, c.api.app.now())
	if err != nil {
		return nil, err
	}
	key, err := c.api.app.mintingKey(c.request.Context(), mint)
	if err != nil {
		return nil, err
	}
	compact, err := token.SignWithTextDates(claims, key)
	if err != nil {
		return nil, badRequest("%v", err)
	}
	c.warnOfRules(mint.rules)
	c.warnOfLifetime(claims)
	return createdToken{compact}, nil
}

func parseMintRequest(body strictjson.Value) (*mintRequest, error) {
	m := new(mintRequest)
	err := members(body, map[string]func(strictjson.Value) error{
		"id":    textMember("id", &m.keyID),
		"pem":   textMember("pem", &m.pem),
		"exp":   dateMember("exp", &m.expires),
		"nbf":   dateMember("nbf", &m.notBefore),
		"flags": checkFlags,
		"accessRules": func(v strictjson.Value) (err error) {
			if string(v.Raw()) == "null" {
				return nil
			}
			m.rawRules = v.Raw()
			if m.rules, err = compileRules(m.rawRules); err != nil {
				return badRequest("%v", err)
			}
			return nil
		},
		"downloadable": func(v strictjson.Value) (err error) {
			m.downloadable, err = boolOf("downloadable", v)
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	if (m.keyID == "") != (m.pem == "") {
		return nil, badRequest("`id` and `pem` go together: give both, or neither to have the gateway's own key sign")
	}
	if _, err := store.NewName(store.Keys, m.keyID); m.keyID != "" && err != nil {
		// Not quoted: it may be the private key.
		return nil, badRequest("there is no key with the `id` that stands beside `pem`: an id is 1 to %d of A-Z a-z 0-9 _ - . ~", store.MaxID)
	}
	return m, nil
}

func textMember(name string, into *string) func(strictjson.Value) error {
	return func(v strictjson.Value) error {
		text, ok := v.Text()
		if !ok {
			return badRequest("%s is not a string", name)
		}
		*into = text
		return nil
	}
}

// dateMember reads Unix seconds, of which 0 means that the date is not set.
func dateMember(name string, into *time.Time) func(strictjson.Value) error {
	return func(v strictjson.Value) error {
		seconds, err := strconv.ParseInt(string(v.Raw()), 10, 64)
		if err != nil || seconds < 0 {
			return badRequest("%s is %.40s: want Unix seconds, a whole number", name, v.Raw())
		}
		if seconds != 0 {
			*into = time.Unix(seconds, 0)
		}
		return nil
	}
}

func boolOf(name string, v strictjson.Value) (bool, error) {
	value, ok := v.Bool()
	if !ok {
		return false, badRequest("%s is %.40s: want true or false", name, v.Raw())
	}
	return value, nil
}

// checkFlags takes flags that ask for nothing: the gateway transforms no media,
// so there is no other version of them than the origin's.
func checkFlags(v strictjson.Value) error {
	if !v.IsObject() {
		return badRequest("flags is not an object")
	}
	for name, value := range v.Members() {
		if set, ok := value.Bool(); !ok || set {
			return badRequest("flags.%.40s is not supported", name)
		}
	}
	return nil
}

// claims checks the dates against the present and fills in what is not set.
func (m *mintRequest) claims(videoID string, now time.Time) (token.Claims, error) {
	expires, notBefore := m.expires, m.notBefore
	if expires.IsZero() {
		expires = now.Add(defaultMintedLifetime)
	}
	if notBefore.IsZero() {
		notBefore = now.Add(-defaultBackdating)
	}
	switch { // in seconds, for times far from now cannot be compared
	case expires.Unix() <= now.Unix():
		return token.Claims{}, badRequest("exp is %s, which is in the past", expires.UTC().Format(time.RFC3339))
	case expires.Unix() > now.Add(maxMintedLifetime).Unix():
		return token.Claims{}, badRequest("exp is %d, which is more than %.0f hours ahead; it is in Unix seconds", expires.Unix(), maxMintedLifetime.Hours())
	case notBefore.Unix() >= expires.Unix():
		return token.Claims{}, badRequest("nbf is %d, which is not before exp (%d)", notBefore.Unix(), expires.Unix())
	}
	return token.Claims{
		VideoID:      videoID,
		ExpiresAt:    expires,
		NotBefore:    notBefore,
		Downloadable: m.downloadable,
		AccessRules:  m.rawRules,
	}, nil
}

// mintingKey returns the key that signs: the caller's, if it is one that the
// gateway knows, else the gateway's own.
func (a *App) mintingKey(ctx context.Context, m *mintRequest) (*token.SigningKey, error) {
	if m.keyID == "" {
		key, err := a.state.signer.get(ctx)
		if isDamaged(err) {
			return nil, fmt.Errorf("%w: the gateway's own signing key: POST stream/keys/rotate replaces it: %w", store.ErrUnavailable, err)
		}
		return key, err
	}
	key, err := token.ParseSigningKey([]byte(m.pem), m.keyID)
	if err != nil {
		return nil, badRequest("pem: %v", err)
	}
	known := a.keys.Lookup(m.keyID)
	switch {
	case known == nil && !a.keys.lookupAuthoritative(m.keyID):
		return nil, errStoreAway
	case known == nil:
		return nil, badRequest("there is no key %.80q, or it is revoked, so its tokens would not play", m.keyID)
	case !known.Equal(key.Public()):
		return nil, badRequest("pem is not the private half of the key %q", m.keyID)
	}
	return key, nil
}

// warnOfRules says what is valid and most likely not meant.
func (c *call) warnOfRules(rules accessRules) {
	if len(rules) == 0 {
		return
	}
	last := rules[len(rules)-1]
	blocks := slices.ContainsFunc(rules, func(rule accessRule) bool { return rule.block })
	if !last.block && (last.kind != anyViewer || !blocks) {
		c.warn(`the last of the accessRules allows, and a viewer whom no rule matches is allowed as well, so it restricts nothing; end the list with {"type":"any","action":"block"}`)
	}
	var v4, v6, countries bool
	for _, rule := range rules {
		countries = countries || len(rule.countries) > 0
		for _, prefix := range rule.prefixes {
			v4 = v4 || prefix.Addr().Is4()
			v6 = v6 || prefix.Addr().Is6()
		}
	}
	if countries && c.api.app.countries == nil {
		c.warn("there is a rule of type ip.geoip.country and the gateway has no geoip_database, so viewers whom it concerns are refused")
	}
	if v4 && !v6 {
		c.warn("there are rules for IPv4 addresses and none for IPv6, and viewers who have both may come by IPv6")
	}
}

// warnOfLifetime tells of a token that this gateway refuses.
func (c *call) warnOfLifetime(claims token.Claims) {
	longest := c.api.app.policy.MaxLifetime
	if longest > 0 && claims.ExpiresAt.Sub(c.api.app.now()) > longest {
		c.warn("exp is further away than the gateway's max_token_lifetime of %s, so the token is refused until it is closer", longest)
	}
}

func isDamaged(err error) bool { return errors.Is(err, store.ErrDamaged) }
