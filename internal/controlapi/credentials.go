package controlapi

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/worklimit"
)

const (
	// The failures of an address that are answered: a burst, and a rate for each second.
	failureBurst = 60
	failureRate  = 1

	// warningInterval is the least time between two warnings of such addresses.
	warningInterval = time.Minute

	bearerScheme = "Bearer "

	minSecretLength = 16
)

// AuthKey is an email address and the key that belongs to it.
type AuthKey struct{ Email, Key string }

// credentials are the secrets that authorize a call, as digests under a random key.
// A client cannot compute such a digest, so the time of a comparison tells nothing
// about a secret.
type credentials struct {
	key     []byte
	digests map[[sha256.Size]byte]struct{}
}

// digest returns the digest of a secret, or of an email address and a key.
func (c *credentials) digest(parts ...string) (digest [sha256.Size]byte) {
	mac := hmac.New(sha256.New, c.key)
	fmt.Fprintf(mac, "%q", parts)
	mac.Sum(digest[:0])
	return digest
}

func (c *credentials) has(parts ...string) bool {
	_, ok := c.digests[c.digest(parts...)]
	return ok
}

// ErrNoCredential is the error of New for a Config without credentials.
var ErrNoCredential = errors.New("no credential: set bearer_token or auth_key, or anybody could make keys")

var errSecret = errors.New("it is empty or contains a space or a control character, which no header can carry as it is")

func newCredentials(config Config) (c credentials, err error) {
	secret := func(option, text string) string {
		secret, failed := checkSecret(config.Resolve(text))
		if failed != nil && err == nil {
			err = fmt.Errorf("%s: %w", option, failed)
		}
		return secret
	}
	c = credentials{[]byte(rand.Text()), make(map[[sha256.Size]byte]struct{})}
	lengths := make([]int, 0, len(config.BearerTokens)+len(config.AuthKeys))
	for i, text := range config.BearerTokens {
		token := secret(fmt.Sprintf("bearer_token %d", i+1), text)
		lengths = append(lengths, len(token))
		c.digests[c.digest(token)] = struct{}{}
	}
	for i, pair := range config.AuthKeys {
		option := fmt.Sprintf("auth_key %d", i+1)
		email, key := secret(option+", email", pair.Email), secret(option+", key", pair.Key)
		lengths = append(lengths, len(key))
		c.digests[c.digest(email, key)] = struct{}{}
	}
	if len(lengths) == 0 {
		err = ErrNoCredential
	}
	if err != nil {
		return credentials{}, err
	}
	for _, length := range lengths {
		if length < minSecretLength {
			config.Logger.Warn("a secret of the control API is short enough to be guessed; make one with `openssl rand -hex 32`", zap.Int("characters", length))
		}
	}
	return c, nil
}

// checkSecret returns a secret without the line break at the end of its file.
func checkSecret(secret string, err error) (string, error) {
	secret = strings.TrimRight(secret, "\r\n")
	outside := func(r rune) bool { return r <= ' ' || r > '~' }
	if err == nil && (secret == "" || strings.ContainsFunc(secret, outside)) {
		err = errSecret
	}
	return secret, err
}

// allow reports whether a request has one of the credentials.
func (c *credentials) allow(h http.Header) bool {
	if lines := h["Authorization"]; len(lines) == 1 {
		if secret, ok := strings.CutPrefix(lines[0], bearerScheme); ok && c.has(secret) {
			return true
		}
	}
	email, key := h["X-Auth-Email"], h["X-Auth-Key"]
	return len(email) == 1 && len(key) == 1 && c.has(email[0], key[0])
}

// authorize checks the credential of a request. Wrong credentials are limited by
// address, right ones are not: an operator who shares an address with an attacker
// must still be able to revoke a key.
func (s *Server) authorize(r *http.Request) error {
	if s.credentials.allow(r.Header) {
		return nil
	}
	address := s.ClientAddress(r)
	if s.failures.Spend(worklimit.ClientNetworks{Own: clientNetwork(address)}) {
		return refuse(http.StatusUnauthorized, codeCredentials, "authentication error")
	}
	s.warnings.Do(func() {
		s.Logger.Warn("an address sends many wrong credentials to the control API", zap.Stringer("client_ip", address))
	})
	return refuse(http.StatusTooManyRequests, codeLimited, "too many calls with wrong credentials from this address; try again later")
}

// clientNetwork returns the addresses that one client usually has: one in IPv4,
// a /64 in IPv6. Clients without an address share the zero Prefix.
func clientNetwork(address netip.Addr) netip.Prefix {
	bits := 64
	if address.Is4() {
		bits = 32
	}
	prefix, _ := address.Prefix(bits)
	return prefix
}
