package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/redis/rueidis"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"
)

const (
	// redisTimeout bounds a dial and a handshake. A connection without traffic
	// is pinged as often, and given up when the answer takes as long.
	redisTimeout = time.Second

	// callTimeout is how long a call may go on after its caller has gone.
	callTimeout = 5 * time.Second

	// maxCalls is how many calls may be under way at once. It is less than the
	// queue of a connection holds, where rueidis would let them wait without
	// looking at the context.
	maxCalls = 256

	// maxChanges is how many changes Redis remembers. A node that misses more
	// reads everything anew.
	maxChanges = 1000

	// maxAttempts is how often an Update starts again because another has
	// changed the object meanwhile.
	maxAttempts = 100

	scanCount = 500
)

// Redis keeps objects in one Redis or Valkey, which a fleet shares. All keys
// have one hash tag, so that they are on one node of a cluster:
//
//	{signed_playback}:state    epoch, version (the number of changes)
//	{signed_playback}:keys     #epoch, and the objects by id; videos and
//	                           signing are the same
//	{signed_playback}:changes  "<version> <collection>/<id> <nonce>", newest first
//
// A Redis can lose everything in an instant, or only what it evicts, and then
// answers as if nothing had ever been there. To a gate that would mean that no
// key has been revoked and no video has settings. So there is an epoch in every
// hash, each read asks for it, and a node remembers which one it has seen.
type Redis struct {
	options rueidis.ClientOption
	memory  memory
	logger  *zap.Logger
	wake    chan struct{}

	opening singleflight.Group
	session atomic.Pointer[session] // nil until the first use that succeeded
	calls   slots

	mu     sync.Mutex
	client rueidis.Client // nil before the first connection and after Close
	closed bool

	seen  *mark       // what Changes has told; for its caller only
	doubt atomic.Bool // the data was not that of the epoch; what came back may be older
}

// session is what each call needs.
type session struct {
	client rueidis.Client
	epoch  string
}

// NewRedis returns a Store on the Redis at an address, which may be down. In
// local, the storage of this node, it remembers which data it has seen there;
// so that must not be kept in the same Redis.
//
// The address is redis://, rediss:// (with TLS) or unix://, as rueidis.ParseURL
// takes it. It has a password in it, so errors do not quote it.
func NewRedis(address string, local certmagic.Storage, logger *zap.Logger) (*Redis, error) {
	options, err := parseAddress(address)
	if err != nil {
		return nil, err
	}
	r := &Redis{options: options, logger: logger, calls: make(slots, maxCalls)}
	place := fmt.Sprintf("%s/%d", strings.Join(options.InitAddress, ","), options.SelectDB)
	if set := options.Sentinel.MasterSet; set != "" {
		place = set + "@" + place
	}
	sum := sha256.Sum256([]byte(place))
	r.memory = memory{local, path.Join(root, "redis", hex.EncodeToString(sum[:8])+".json"), place}
	if !options.DisableCache {
		r.wake = make(chan struct{}, 1)
		r.options.ClientTrackingOptions = []string{"BCAST", "PREFIX", hashTag}
		r.options.OnInvalidations = r.invalidated
	}
	return r, nil
}

var (
	addressParameters = []string{
		"addr", "client_cache", "client_name", "db", "dial_timeout", "master_set", "max_retries", "protocol", "skip_verify", "write_timeout",
	}

	errAddress = errors.New("store: invalid Redis address: want redis://, rediss:// or unix://, the password percent-encoded, and no parameters but " +
		strings.Join(addressParameters, ", "))
)

// parseAddress refuses what rueidis.ParseURL would pass over in silence: that may
// be the rest of a password with a ?, # or / in it, whose first part is taken
// for a host then, and hosts are quoted in errors.
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
	o.DisableRetry = true    // a server that is away is to be noticed at once
	o.DisableCache = o.DisableCache || o.AlwaysRESP2
	return o, nil
}

// Wake implements Store. With client_cache=0 or protocol=2 in the address, for
// servers that do not offer client-side caching, there is nothing to wait for.
func (r *Redis) Wake() <-chan struct{} { return r.wake }

// invalidated is called when a key has changed, and without keys when all may
// have: after FLUSHALL, and when the connection ends.
func (r *Redis) invalidated([]rueidis.RedisMessage) {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Close implements Store.
func (r *Redis) Close() {
	r.mu.Lock()
	client := r.client
	r.client, r.closed = nil, true
	r.mu.Unlock()
	if client == nil {
		return
	}
	go func() {
		// A call that dials while the client is being closed would leave its
		// connection open for good.
		for range cap(r.calls) {
			r.calls <- struct{}{}
		}
		client.Close()
		for range cap(r.calls) {
			r.calls.give()
		}
	}()
}

// connected returns the session, opening it if there is none. That goes on
// when the caller has no more time, for the callers to come.
func (r *Redis) connected(ctx context.Context) (*session, error) {
	if s := r.session.Load(); s != nil {
		return s, nil
	}
	select {
	case result := <-r.opening.DoChan("", r.open):
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
	if err := r.calls.take(ctx); err != nil {
		return nil, err
	}
	defer r.calls.give()
	client, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	epoch, err := r.epoch(ctx, client)
	if err != nil {
		return nil, err
	}
	s := &session{client, epoch}
	r.session.Store(s)
	return s, nil
}

// connect makes the client. From then on, it connects again by itself, when it
// is used.
func (r *Redis) connect(ctx context.Context) (rueidis.Client, error) {
	r.mu.Lock()
	client := r.client
	r.mu.Unlock()
	if client != nil {
		return client, nil
	}
	client, err := rueidis.NewClient(r.options)
	if err != nil {
		return nil, r.unavailable(err)
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		client.Close()
		return nil, r.unavailable(rueidis.ErrClosing)
	}
	r.client = client
	r.mu.Unlock()
	r.warnOfEviction(ctx, client)
	return client, nil
}

func (r *Redis) warnOfEviction(ctx context.Context, client rueidis.Client) {
	const parameter = "maxmemory-policy"
	// Many do not permit the question.
	config, err := client.Do(ctx, client.B().ConfigGet().Parameter(parameter).Build()).AsStrMap()
	// The volatile policies spare keys without an expiry, as ours are.
	if policy := config[parameter]; err == nil && strings.HasPrefix(policy, "allkeys") {
		r.logger.Warn("redis may throw away keys and settings when its memory is full; want maxmemory-policy noeviction",
			zap.String("maxmemory_policy", policy))
	}
}

// unavailable says what went wrong. The text of an error may be the server's,
// and servers send the arguments of a command that they do not know back, even
// those of AUTH.
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

// question is one exchange with Redis.
type question struct {
	keys    []string // the reply begins with their epochs
	answers int      // how many values follow
	put     func(context.Context, *session) rueidis.RedisResult
}

// ask puts a question and returns the answers, if they are from the data that
// this node knows.
func (r *Redis) ask(ctx context.Context, q question) ([]rueidis.RedisMessage, error) {
	s, err := r.connected(ctx)
	if err != nil {
		return nil, err
	}
	// rueidis waits for a connection that another call makes without looking
	// at the context, and ends it with the context of that other call.
	reply, err := await(ctx, r.calls, func() ([]rueidis.RedisMessage, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		reply, err := q.put(ctx, s).ToArray()
		if err != nil {
			return nil, r.unavailable(err)
		}
		return reply, nil
	})
	if err != nil {
		return nil, err
	}
	if len(reply) != len(q.keys)+q.answers {
		return nil, fmt.Errorf("%w: redis: an answer of %d values: want %d", ErrUnavailable, len(reply), len(q.keys)+q.answers)
	}
	for i, key := range q.keys {
		if found := value(reply[i]); string(found) != s.epoch {
			return nil, r.lost(key, found, s.epoch)
		}
	}
	return reply[len(q.keys):], nil
}

// value returns a string as Redis has it, nil if there is none.
func value(m rueidis.RedisMessage) []byte {
	text, err := m.ToString()
	if err != nil {
		return nil
	}
	return []byte(text)
}

// Get implements Store.
func (r *Redis) Get(ctx context.Context, name Name) (Object, error) {
	raw, err := r.read(ctx, name)
	if err != nil {
		return Object{}, err
	}
	return objectOf(name, raw), nil
}

// read returns what is kept under a name, nil if there is nothing. What is
// empty is damaged, but there.
func (r *Redis) read(ctx context.Context, name Name) ([]byte, error) {
	key := hashOf(name.collection)
	answers, err := r.ask(ctx, question{[]string{key}, 1, func(ctx context.Context, s *session) rueidis.RedisResult {
		return s.client.Do(ctx, s.client.B().Hmget().Key(key).Field(epochField, name.id).Build())
	}})
	if err != nil {
		return nil, err
	}
	return value(answers[0]), nil
}

func objectOf(name Name, raw []byte) Object {
	if raw == nil {
		return Object{Name: name}
	}
	return unseal(name, raw)
}

// Update implements Store.
func (r *Redis) Update(ctx context.Context, name Name, change Change) error {
	raw, err := r.read(ctx, name)
	if err != nil {
		return err
	}
	for range maxAttempts {
		present := objectOf(name, raw)
		data, err := change(present)
		if err != nil || unchanged(present, data) {
			return err
		}
		var next []byte
		if data != nil {
			if next, err = seal(name, data); err != nil {
				return err
			}
		}
		swapped, found, err := r.swap(ctx, name, raw, next)
		if err != nil || swapped {
			return err
		}
		raw = found
	}
	return fmt.Errorf("%w: %w: %s has been changed %d times meanwhile", ErrUnavailable, ErrBusy, name, maxAttempts)
}

// swap makes next what is kept under a name, nil for nothing, unless something
// else than present is found there.
func (r *Redis) swap(ctx context.Context, name Name, present, next []byte) (swapped bool, found []byte, err error) {
	key := hashOf(name.collection)
	nonce := make([]byte, 8)
	_, _ = rand.Read(nonce) // never fails
	entry := name.String() + " " + hex.EncodeToString(nonce)
	answers, err := r.ask(ctx, question{[]string{stateKey, key}, 2, func(ctx context.Context, s *session) rueidis.RedisResult {
		return swapScript.Exec(ctx, s.client, []string{stateKey, key, changesKey},
			[]string{s.epoch, name.id, optional(present), optional(next), entry, strconv.Itoa(maxChanges)})
	}})
	if err != nil {
		return false, nil, err
	}
	return string(value(answers[0])) == swappedAnswer, value(answers[1]), nil
}

// optional tells a script what is empty from what is not there.
func optional(raw []byte) string {
	if raw == nil {
		return ""
	}
	return "=" + string(raw)
}

// All implements Store.
func (r *Redis) All(ctx context.Context, collection Collection) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		met := map[string]bool{epochField: true} // a scan may meet a field twice
		var foreign []string
		defer func() { r.warnOfForeign(collection, foreign) }()
		for cursor := "0"; ; {
			fields, next, err := r.scan(ctx, collection, cursor)
			if err != nil {
				yield(Object{}, err)
				return
			}
			for field := range slices.Chunk(fields, 2) {
				id, raw := field[0], field[1]
				if met[id] {
					continue
				}
				met[id] = true
				name, err := NewName(collection, id)
				if err != nil {
					foreign = append(foreign, id)
				} else if !yield(unseal(name, []byte(raw)), nil) {
					return
				}
			}
			if cursor = next; cursor == "0" {
				return
			}
		}
	}
}

// scan returns some fields of a hash, each followed by its value, and where to
// go on.
func (r *Redis) scan(ctx context.Context, collection Collection, cursor string) (fields []string, next string, err error) {
	key := hashOf(collection)
	answers, err := r.ask(ctx, question{[]string{key}, 2, func(ctx context.Context, s *session) rueidis.RedisResult {
		return scanScript.Exec(ctx, s.client, []string{key}, []string{cursor, strconv.Itoa(scanCount)})
	}})
	if err != nil {
		return nil, "", err
	}
	fields, err = answers[1].AsStrSlice()
	if err != nil || len(fields)%2 != 0 {
		return nil, "", fmt.Errorf("%w: redis: not an answer to HSCAN", ErrUnavailable)
	}
	return fields, string(value(answers[0])), nil
}

// warnOfForeign tells of what is nobody's, because no name leads to it.
func (r *Redis) warnOfForeign(collection Collection, ids []string) {
	if len(ids) > 0 {
		r.logger.Warn("there are fields in redis that are not ids",
			zap.String("key", hashOf(collection)), zap.Int("count", len(ids)), zap.String("first", fmt.Sprintf("%.80q", ids[0])))
	}
}

// Changes implements Store.
func (r *Redis) Changes(ctx context.Context) (changed []Name, complete bool, err error) {
	var last mark
	if r.seen != nil {
		last = *r.seen
	}
	anew := r.doubt.Swap(false) || r.seen == nil
	defer func() {
		if err != nil && anew {
			r.doubt.Store(true)
		}
	}()
	answers, err := r.ask(ctx, question{allHashes, 2, func(ctx context.Context, s *session) rueidis.RedisResult {
		return changesScript.Exec(ctx, s.client, allKeys,
			[]string{strconv.FormatInt(last.version, 10), strconv.Itoa(maxChanges)})
	}})
	if err != nil {
		return nil, false, err
	}
	version, err := strconv.ParseInt(string(value(answers[0])), 10, 64)
	if err != nil {
		return nil, false, fmt.Errorf("%w: redis: %q has version %.40q: want a number", ErrUnavailable, stateKey, value(answers[0]))
	}
	entries, err := answers[1].AsStrSlice()
	if err != nil {
		return nil, false, r.unavailable(err)
	}
	r.seen = &mark{version, entryAt(entries, 0)}
	if anew {
		return nil, false, nil
	}
	changed, complete = since(last, version, entries)
	return changed, complete, nil
}

// Interface guards
var _ Store = (*Redis)(nil)
