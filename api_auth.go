package signedplayback

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"

	"github.com/maypok86/otter/v2"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

const (
	// An address may fail this often at once, and then once a second.
	failureBurst = 60
	failureRate  = 1

	// maxFailingAddresses bounds the memory for addresses that have failed.
	maxFailingAddresses = 10_000

	bearerScheme = "Bearer "
)

// credentials are digests of what authorizes a call. They are immutable.
type credentials struct {
	bearer [][sha256.Size]byte
	pairs  [][sha256.Size]byte
}

var errNoCredential = errors.New("no credential: set bearer_token or auth_key, or anybody could make keys")

func (a *API) provisionCredentials() (credentials, error) {
	var c credentials
	for i, text := range a.BearerTokens {
		secret, err := resolveSecret(text)
		if err != nil {
			return credentials{}, fmt.Errorf("bearer_token %d: %w", i+1, err)
		}
		a.warnOfShort(secret)
		c.bearer = append(c.bearer, sha256.Sum256([]byte(secret)))
	}
	for i, pair := range a.AuthKeys {
		email, err := resolveSecret(pair.Email)
		if err != nil {
			return credentials{}, fmt.Errorf("auth_key %d, email: %w", i+1, err)
		}
		key, err := resolveSecret(pair.Key)
		if err != nil {
			return credentials{}, fmt.Errorf("auth_key %d, key: %w", i+1, err)
		}
		a.warnOfShort(key)
		c.pairs = append(c.pairs, pairDigest(email, key))
	}
	if len(c.bearer)+len(c.pairs) == 0 {
		return credentials{}, errNoCredential
	}
	return c, nil
}

var errSecret = errors.New("it is empty or contains a space or a control character, which no header can carry as it is")

func (a *API) warnOfShort(secret string) {
	const least = 16
	if len(secret) < least {
		a.logger.Warn("a secret of the control API is short enough to be guessed; make one with `openssl rand -hex 32`", zap.Int("characters", len(secret)))
	}
}

// placeholderName matches a text that is one placeholder and nothing else.
var placeholderName = regexp.MustCompile(`^\{(env|file)\.[^{}]*\}$`)

// resolveSecret is resolve for what no error may show.
func resolveSecret(text string) (string, error) {
	secret, err := resolve(text)
	if name := placeholderName.FindString(text); err != nil && name != "" {
		return "", fmt.Errorf("the placeholder %s stands for nothing; it is looked up by the server, which has the environment of its start", name)
	}
	if err != nil {
		return "", errors.New("a placeholder in it stands for nothing")
	}
	secret = strings.TrimRight(secret, "\r\n") // as files end
	for i := range len(secret) {
		if secret[i] <= ' ' || secret[i] > '~' {
			return "", errSecret
		}
	}
	if secret == "" {
		return "", errSecret
	}
	return secret, nil
}

func pairDigest(email, key string) [sha256.Size]byte {
	return sha256.Sum256([]byte(email + "\x00" + key))
}

// allow reports whether a request carries one of the credentials. It compares
// digests with all of them, so that its time tells nothing about any.
func (c *credentials) allow(h http.Header) bool {
	matches := 0
	if secret, ok := bearer(h); ok {
		matches |= match(c.bearer, sha256.Sum256([]byte(secret)))
	}
	if email, key := h["X-Auth-Email"], h["X-Auth-Key"]; len(email) == 1 && len(key) == 1 {
		matches |= match(c.pairs, pairDigest(email[0], key[0]))
	}
	return matches == 1
}

// bearer returns the credential of the one Authorization header.
func bearer(h http.Header) (secret string, ok bool) {
	lines := h["Authorization"]
	if len(lines) != 1 {
		return "", false
	}
	return strings.CutPrefix(lines[0], bearerScheme)
}

func match(known [][sha256.Size]byte, presented [sha256.Size]byte) int {
	matches := 0
	for i := range known {
		matches |= subtle.ConstantTimeCompare(known[i][:], presented[:])
	}
	return matches
}

// authorize checks the credential of a request. Wrong ones are limited by
// address, right ones are not: whoever shares an address with an attacker must
// still be able to revoke a key.
func (a *API) authorize(r *http.Request) error {
	if a.credentials.allow(r.Header) {
		return nil
	}
	address, _ := clientAddress(r)
	switch a.failures.note(address) {
	case failedOnce:
		return failure(http.StatusUnauthorized, codeCredentials, "authentication error")
	case failedTooOften:
		a.logger.Warn("an address sends wrong credentials to the control API again and again", zap.Stringer("client_ip", address))
	case failedStill:
	}
	return failure(http.StatusTooManyRequests, codeLimited, "too many calls with wrong credentials from this address; try again later")
}

// failureLimit counts wrong credentials by address. It is safe for concurrent
// use.
type failureLimit struct {
	mu        sync.Mutex
	addresses *otter.Cache[netip.Prefix, *failingAddress]
}

type failingAddress struct {
	limit *rate.Limiter
	told  bool // the log has it
}

func newFailureLimit() *failureLimit {
	return &failureLimit{addresses: otter.Must(&otter.Options[netip.Prefix, *failingAddress]{MaximumSize: maxFailingAddresses})}
}

type failed int

const (
	failedOnce     failed = iota // within the limit
	failedTooOften               // for the first time since it was within
	failedStill
)

// note counts a failure.
func (f *failureLimit) note(address netip.Addr) failed {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := network(address)
	failing, ok := f.addresses.GetIfPresent(key)
	if !ok {
		failing = &failingAddress{limit: rate.NewLimiter(failureRate, failureBurst)}
		f.addresses.Set(key, failing)
	}
	switch {
	case failing.limit.Allow():
		return failedOnce
	case failing.told:
		return failedStill
	}
	failing.told = true
	return failedTooOften
}

// network is what one caller has of addresses: one in IPv4, a /64 in IPv6.
func network(address netip.Addr) netip.Prefix {
	bits := 64
	if address.Is4() {
		bits = 32
	}
	prefix, _ := address.Prefix(bits) // the zero Prefix for an unknown address
	return prefix
}
