// Package jwks keeps a JWK Set (RFC 7517 section 5) that another server
// publishes.
package jwks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	maxBytes       = 1 << 20
	fetchTimeout   = 10 * time.Second
	firstRetryWait = time.Second
	maxRedirects   = 5
)

// Set is the last good version of a published key set. A set that was never
// loaded has no keys. It implements token.Keys, and all methods are safe for
// concurrent use.
type Set struct {
	address  string
	interval time.Duration
	client   *http.Client
	logger   func() *zap.Logger

	current atomic.Pointer[version]
	started sync.Once
	ctx     context.Context
	cancel  context.CancelFunc
}

// version is the key set at the time of one success, or before the first one.
type version struct {
	keys     *token.KeySet // nil before the first success
	loadedAt time.Time     // the Unix epoch before the first success
}

// errURL does not contain the URL, which may contain a credential.
var errURL = errors.New("want an absolute http or https URL")

// New returns the key set at an absolute http or https URL. It sends no request
// before Start or Load. Start refreshes the set at the interval. The logger is
// asked for whenever something is logged, because a set can outlive the config
// whose logger it uses. Call Stop when the set is no longer needed.
func New(address string, interval time.Duration, logger func() *zap.Logger) (*Set, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errURL
	}
	ctx, cancel := context.WithCancel(context.Background())
	set := &Set{
		address:  address,
		interval: interval,
		client:   &http.Client{Timeout: fetchTimeout, CheckRedirect: refuseDowngrade},
		logger: func() *zap.Logger {
			return logger().With(zap.String("jwks_host", u.Host), zap.String("jwks_path", u.Path))
		},
		ctx:    ctx,
		cancel: cancel,
	}
	set.current.Store(&version{loadedAt: time.Unix(0, 0)})
	return set, nil
}

// refuseDowngrade refuses redirects from https to another scheme. Everybody
// between here and such a target could choose the keys.
func refuseDowngrade(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirect from https to %s", req.URL.Scheme)
	}
	return nil
}

// Inherit takes over the keys of another Set for the same URL, unless this one
// has been loaded. With it, a new interval does not lose the keys.
func (s *Set) Inherit(other *Set) {
	if empty := s.current.Load(); empty.keys == nil && other.address == s.address {
		s.current.CompareAndSwap(empty, other.current.Load())
	}
}

// Lookup implements token.Keys.
func (s *Set) Lookup(keyID string) *token.PublicKey { return s.current.Load().keys.Lookup(keyID) }

// IDs returns the ids of the keys.
func (s *Set) IDs() []string { return s.current.Load().keys.IDs() }

// LoadedAt returns the time of the last success, the Unix epoch before the first.
func (s *Set) LoadedAt() time.Time { return s.current.Load().loadedAt }

// Loaded reports whether the set was ever loaded. Before, a key that is not
// found may be one of its keys.
func (s *Set) Loaded() bool { return s.current.Load().keys != nil }

// Start loads the set now and refreshes it until Stop. Only the first call has
// an effect.
func (s *Set) Start() { s.started.Do(func() { go s.refresh() }) }

// Stop ends refreshing and a request that is under way. The keys stay.
func (s *Set) Stop() { s.cancel() }

// refresh loads the set at the interval. After a failure it waits a second, and
// after each further failure twice as long, at most the interval.
func (s *Set) refresh() {
	retryWait := firstRetryWait
	for {
		wait := s.interval
		if err := s.Load(); err == nil {
			retryWait = firstRetryWait
		} else if s.ctx.Err() == nil {
			wait = min(retryWait, s.interval)
			retryWait = 2 * wait
			s.logger().Error("loading keys failed; the last good set stays in force, and without one, tokens with its keys are refused",
				zap.Error(err), zap.Duration("retry_in", wait))
		}
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return
		}
	}
}

// Load fetches the set once. If it fails, the last good version stays in force.
// Errors do not contain the URL.
func (s *Set) Load() error {
	data, err := s.fetch()
	if err != nil {
		return err
	}
	keys, skipped, err := token.ParseJWKS(data)
	if err != nil {
		return err
	}
	for _, why := range skipped {
		s.logger().Warn("leaving out a key of the set", zap.Error(why))
	}
	s.current.Store(&version{keys, time.Now()})
	return nil
}

func (s *Set) fetch() ([]byte, error) {
	req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, s.address, nil)
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", errors.Unwrap(err)) // a *url.Error, which contains the URL
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	res, err := s.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetching keys: %w", errors.Unwrap(err)) // the same
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetching keys: status %d", res.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading keys: %w", err)
	}
	if len(data) > maxBytes {
		return nil, fmt.Errorf("reading keys: more than %d bytes", maxBytes)
	}
	return data, nil
}
