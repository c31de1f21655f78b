package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
	"go.uber.org/zap"
)

const (
	// redisTimeout bounds a dial and a handshake. A connection without traffic
	// is pinged after this time, and closed if the answer takes as long.
	redisTimeout = time.Second

	// callTimeout is how long a call may continue without its caller.
	callTimeout = 5 * time.Second

	// maxCalls is how many calls may be under way at once, for the callers of each kind. The queue of a
	// connection in rueidis has more places than this; where it has none left,
	// rueidis lets calls wait without looking at the context.
	maxCalls = 256
)

// session is the connection and the epoch that each call needs.
type session struct {
	client rueidis.Client
	epoch  string
}

var (
	addressParameters = []string{
		"addr", "client_cache", "client_name", "db", "dial_timeout", "master_set", "max_retries", "protocol", "skip_verify", "write_timeout",
	}

	errAddress = errors.New("store: invalid Redis address: want redis://, rediss:// or unix://, the password percent-encoded, and no parameters but " +
		strings.Join(addressParameters, ", "))
)

// parseAddress refuses the parts that rueidis.ParseURL would ignore: they may be
// the rest of a password with a ?, # or / in it. Then its first part looks like
// a host, and errors quote hosts.
func parseAddress(address string) (rueidis.ClientOption, error) {
	u, err := url.Parse(address)
	if err != nil || u.Fragment != "" || u.Opaque != "" || u.Scheme == "unix" && (u.Host != "" || u.Path == "") {
		return rueidis.ClientOption{}, errAddress
	}
	for parameter := range u.Query() {
		if !slices.Contains(addressParameters, parameter) {
			return rueidis.ClientOption{}, errAddress
		}
	}
	o, err := rueidis.ParseURL(address)
	if err != nil {
		return rueidis.ClientOption{}, errAddress
	}
	if o.Dialer.Timeout == 0 {
		o.Dialer.Timeout = redisTimeout
	}
	if o.ConnWriteTimeout == 0 {
		o.ConnWriteTimeout = redisTimeout
	}
	o.Dialer.KeepAlive = redisTimeout
	o.PipelineMultiplex = -1 // one connection
	o.DisableRetry = true    // report an unavailable server at once
	o.DisableCache = o.DisableCache || o.AlwaysRESP2
	return o, nil
}

// Close implements Store.
func (r *Redis) Close() {
	go func() { // connect may have the lock
		r.mu.Lock()
		client := r.client
		r.client, r.closed = nil, true
		r.mu.Unlock()
		if client == nil {
			return
		}
		// A call that dials while the client is being closed would leave its
		// connection open for ever. So wait until no call is under way; none
		// takes longer than callTimeout.
		for _, turns := range r.calls {
			if turns.Enter(context.Background(), turns.atOnce) == nil {
				defer turns.Leave(turns.atOnce)
			}
		}
		client.Close()
	}()
}

// connected returns the session, opening it if there is none. The opening goes
// on when the caller has no more time, for the next callers. A session from before
// the start serves one call only: its epoch is not written down.
func (r *Redis) connected(ctx context.Context) (*session, error) {
	if s := r.session.Load(); s != nil {
		return s, nil
	}
	select {
	case result := <-r.opening.DoChan(strconv.FormatBool(r.started()), r.open):
		if result.Err != nil {
			return nil, result.Err
		}
		return result.Val.(*session), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: redis: no connection: %w", ErrUnavailable, ctx.Err())
	}
}

func (r *Redis) open() (any, error) {
	if s := r.session.Load(); s != nil {
		return s, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if err := r.calls.enter(ctx, Server); err != nil {
		return nil, err
	}
	defer r.calls[Server].Leave(1)
	client, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	started := r.started()
	epoch, err := r.epoch(ctx, client, started)
	if err != nil {
		return nil, err
	}
	s := &session{client, epoch}
	if started {
		r.session.Store(s)
	}
	return s, nil
}

// connect makes the client, once. From then on, the client connects again by itself,
// when it is used.
func (r *Redis) connect(ctx context.Context) (rueidis.Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, r.unavailable(rueidis.ErrClosing)
	}
	if r.client == nil {
		client, err := rueidis.NewClient(r.options)
		if err != nil {
			return nil, r.unavailable(err)
		}
		r.client = client
		r.warnOfEviction(ctx, client)
	}
	return r.client, nil
}

func (r *Redis) warnOfEviction(ctx context.Context, client rueidis.Client) {
	const parameter = "maxmemory-policy"
	// Many servers do not permit the question.
	config, err := client.Do(ctx, client.B().ConfigGet().Parameter(parameter).Build()).AsStrMap()
	// The volatile policies spare keys without an expiry, like these.
	if policy := config[parameter]; err == nil && strings.HasPrefix(policy, "allkeys") {
		r.logger().Warn("redis may evict keys and settings when its memory is full; want maxmemory-policy noeviction",
			zap.String("maxmemory_policy", policy))
	}
}

// unavailable makes ErrUnavailable of an error of rueidis. The text of an error
// may be the server's, and servers send the arguments of a command that they do
// not know back, even those of AUTH.
func (r *Redis) unavailable(err error) error {
	text, _, _ := strings.Cut(err.Error(), ", with args")
	if errors.Is(err, rueidis.ErrNoCache) {
		text = "the server does not tell of changes (CLIENT TRACKING): want Redis 6 or later, or client_cache=0 in its address"
	}
	if r.options.Password != "" {
		text = strings.ReplaceAll(text, r.options.Password, "***")
	}
	return fmt.Errorf("%w: redis: %s", ErrUnavailable, text)
}

// RedisExposure says why others on the network can read and change what goes to the
// Redis of an address, and names its host. The reason is "" if they cannot, and for an
// invalid address.
func RedisExposure(address string, isLoopback func(host string) bool) (host, why string) {
	options, err := rueidis.ParseURL(address)
	if err != nil || options.DialCtxFn != nil { // a Unix socket
		return "", ""
	}
	for _, server := range options.InitAddress {
		host, _, _ := net.SplitHostPort(server)
		switch {
		case isLoopback(host):
		case options.TLSConfig == nil:
			return server, "the connection is not encrypted"
		case options.TLSConfig.InsecureSkipVerify:
			return server, "skip_verify accepts the certificate of any server"
		}
	}
	return "", ""
}
