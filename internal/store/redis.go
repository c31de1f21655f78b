package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/certmagic"
	"github.com/redis/rueidis"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"
)

const (
	// maxAttempts is how often an Update starts again because another has
	// changed the object meanwhile.
	maxAttempts = 100

	// valuesAtOnce is how many objects GetAll reads with one command.
	valuesAtOnce = 500
)

// Redis keeps objects in one Redis or Valkey, which a fleet shares. All keys
// have one hash tag, so that they are on one node of a cluster:
//
//	{signed_playback}:state  epoch, and the stamps of the collections
//	{signed_playback}:keys   #epoch, and the objects by id; videos, signing,
//	                         revocations and extensions are the same
//
// A Redis can lose all its data in an instant, or some keys by eviction, and then answers
// as if they had never existed. For a gate, no key would be revoked and no video would
// have settings. So each hash contains an epoch, each read asks for it, and a node
// remembers the epoch that it has seen.
type Redis struct {
	*start
	options rueidis.ClientOption
	memory  memory
	logger  func() *zap.Logger
	secrets *Secrets
	wake    chan struct{}

	opening singleflight.Group
	session atomic.Pointer[session] // nil until the first use that succeeded
	calls   calls

	mu     sync.Mutex
	client rueidis.Client // nil before the first connection and after Close
	closed bool

	losses atomic.Uint64 // how often data was missing: what has come back may be older
}

// NewRedis returns a Store on the Redis at an address, which may be down. In
// local, the storage of this node, it remembers which data it has seen there;
// so that storage must not be in the same Redis. It asks for the storage and the
// logger each time that it needs them.
//
// The address is redis://, rediss:// (with TLS) or unix://, as rueidis.ParseURL
// takes it. It may contain a password, so errors do not quote it.
func NewRedis(address string, local func() certmagic.Storage, logger func() *zap.Logger, secrets *Secrets) (*Redis, error) {
	options, err := parseAddress(address)
	if err != nil {
		return nil, err
	}
	r := &Redis{start: newStart(), options: options, logger: logger, secrets: secrets, calls: newCalls(maxCalls)}
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

// Wake implements Store. With client_cache=0 or protocol=2 in the address, for
// servers that do not offer client-side caching, nothing wakes a node.
func (r *Redis) Wake() <-chan struct{} { return r.wake }

// invalidated is called when a key has changed. After FLUSHALL, and when the connection
// ends, it is called without keys: any key may have changed.
func (r *Redis) invalidated([]rueidis.RedisMessage) {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// question is a request to Redis.
type question struct {
	keys    []string // the reply begins with their epochs
	answers int      // how many values follow
	ask     func(context.Context, *session) rueidis.RedisResult
}

// ask returns the answers to a question, or an error if they are not from the data that
// this node knows.
func (r *Redis) ask(ctx context.Context, caller Caller, q question) ([]rueidis.RedisMessage, error) {
	s, err := r.connected(ctx)
	if err != nil {
		return nil, err
	}
	// rueidis waits for a connection that another call makes without looking
	// at the context, and ends it with the context of that other call.
	reply, err := await(ctx, r.calls, caller, func() ([]rueidis.RedisMessage, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		reply, err := q.ask(ctx, s).ToArray()
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
			return nil, r.dataLost(key, found, s.epoch)
		}
	}
	return reply[len(q.keys):], nil
}

// value returns a string of Redis, or nil.
func value(m rueidis.RedisMessage) []byte {
	text, err := m.ToString()
	if err != nil {
		return nil
	}
	return []byte(text)
}

// Get implements Store.
func (r *Redis) Get(ctx context.Context, name Name, caller Caller) (Object, error) {
	raw, err := r.read(ctx, caller, name)
	if err != nil {
		return Object{}, err
	}
	return r.secrets.decode(name, raw[0]), nil
}

// GetAll implements Store.
func (r *Redis) GetAll(ctx context.Context, names []Name) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		for some := range slices.Chunk(names, valuesAtOnce) {
			raw, err := r.read(ctx, Server, some...)
			if err != nil {
				yield(Object{}, err)
				return
			}
			for i, name := range some {
				if !yield(r.secrets.decode(name, raw[i]), nil) {
					return
				}
			}
		}
	}
}

// read returns the values under some names of one collection, nil for none.
func (r *Redis) read(ctx context.Context, caller Caller, names ...Name) ([][]byte, error) {
	key, ids, values := hashOf(names[0].collection), make([]string, len(names)), make([][]byte, len(names))
	for i, name := range names {
		ids[i] = name.id
	}
	answers, err := r.ask(ctx, caller, question{[]string{key}, len(ids), func(ctx context.Context, s *session) rueidis.RedisResult {
		return s.client.Do(ctx, s.client.B().Hmget().Key(key).Field(epochField).Field(ids...).Build())
	}})
	if err != nil {
		return nil, err
	}
	for i, answer := range answers {
		values[i] = value(answer)
	}
	return values, nil
}

// Update implements Store.
func (r *Redis) Update(ctx context.Context, name Name, change Change) error {
	if err := r.start.await(ctx); err != nil {
		return err
	}
	read, err := r.read(ctx, Server, name)
	if err != nil {
		return err
	}
	raw := read[0]
	for range maxAttempts {
		present := r.secrets.decode(name, raw)
		data, err := change(present)
		if err != nil {
			return err
		}
		var next []byte
		if data != nil {
			if next, err = r.secrets.encode(name, data); err != nil {
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

// swap makes next the value under a name, nil for none, and replaces the stamp
// of the collection, unless it finds another value than present.
func (r *Redis) swap(ctx context.Context, name Name, present, next []byte) (swapped bool, found []byte, err error) {
	key := hashOf(name.collection)
	answers, err := r.ask(ctx, Server, question{[]string{stateKey, key}, 2, func(ctx context.Context, s *session) rueidis.RedisResult {
		return swapScript.Exec(ctx, s.client, []string{stateKey, key},
			[]string{s.epoch, name.id, optional(present), optional(next), string(name.collection), rand.Text()})
	}})
	if err != nil {
		return false, nil, err
	}
	return string(value(answers[0])) == swappedAnswer, value(answers[1]), nil
}

// optional encodes a value, so that a script can distinguish an empty from a missing one.
func optional(raw []byte) string {
	if raw == nil {
		return ""
	}
	return "=" + string(raw)
}

// Names implements Store.
func (r *Redis) Names(ctx context.Context, collection Collection) (names []Name, err error) {
	cursor := ""
	if collection == Videos || collection == Extensions {
		cursor = "0" // there may be so many that one command would keep Redis from everything else
	}
	known := make(map[string]bool) // a scan may meet a field twice
	for {
		ids, next, err := r.names(ctx, collection, cursor)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			if name, err := NewName(collection, id); err == nil && !known[id] {
				known[id] = true
				names = append(names, name)
			}
		}
		if cursor = next; cursor == "0" {
			return names, nil
		}
	}
}

// names returns the fields of a hash from a cursor on, and the cursor of the next.
func (r *Redis) names(ctx context.Context, collection Collection, cursor string) (ids []string, next string, err error) {
	key := hashOf(collection)
	answers, err := r.ask(ctx, Server, question{[]string{key}, 2, func(ctx context.Context, s *session) rueidis.RedisResult {
		return namesScript.Exec(ctx, s.client, []string{key}, []string{cursor})
	}})
	if err != nil {
		return nil, "", err
	}
	if ids, err = answers[1].AsStrSlice(); err != nil {
		return nil, "", fmt.Errorf("%w: redis: not a list of names", ErrUnavailable)
	}
	return ids, string(value(answers[0])), nil
}

// Stamps implements Store.
func (r *Redis) Stamps(ctx context.Context) (map[Collection]string, error) {
	answers, err := r.ask(ctx, Server, question{allKeys, len(collections), func(ctx context.Context, s *session) rueidis.RedisResult {
		return stampsScript.Exec(ctx, s.client, allKeys, stampFields)
	}})
	if err != nil {
		return nil, err
	}
	stamps := make(map[Collection]string)
	for i, collection := range collections {
		stamps[collection] = fmt.Sprint(string(value(answers[i])), "#", r.losses.Load())
	}
	return stamps, nil
}

// Interface guards
var _ Store = (*Redis)(nil)
