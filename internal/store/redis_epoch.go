package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/caddyserver/certmagic"
	"github.com/redis/rueidis"
	"go.uber.org/zap"
)

const (
	hashTag  = "{signed_playback}:"
	stateKey = hashTag + "state"

	// epochField is the field of the epoch in the hashes of objects. It cannot
	// be an id.
	epochField = "#epoch"
)

func hashOf(c Collection) string { return hashTag + string(c) }

var (
	// allKeys are the keys with an epoch, which are all keys.
	allKeys = []string{stateKey}
	// stampFields are the fields of the state with the stamps of the keys after it.
	stampFields []string
)

func init() {
	for _, collection := range collections {
		allKeys, stampFields = append(allKeys, hashOf(collection)), append(stampFields, string(collection))
	}
}

// The scripts are sent whole each time. They are short, and their digest would
// be SHA-1, which FIPS mode forbids.
var (
	// luaEpochs collects the epochs of all keys.
	luaEpochs = `
local answer = {redis.call('HGET', KEYS[1], 'epoch')}
for i = 2, #KEYS do answer[i] = redis.call('HGET', KEYS[i], '#epoch') end
`

	// adoptScript takes all keys; an epoch for data without one, '' for none, and the
	// fields of the stamps. A collection that nobody has written to may be missing: it
	// is newer than the data.
	//
	//nolint:dupword // Lua
	adoptScript = rueidis.NewLuaScriptNoSha(`
if ARGV[1] ~= '' and redis.call('EXISTS', unpack(KEYS)) == 0 then
	redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
end
local epoch = redis.call('HGET', KEYS[1], 'epoch')
for i = 2, #KEYS do
	if epoch and redis.call('EXISTS', KEYS[i]) + redis.call('HEXISTS', KEYS[1], ARGV[i]) == 0 then
		redis.call('HSET', KEYS[i], '#epoch', epoch)
	end
end` + luaEpochs + `
return answer`)

	// epochsScript takes all keys, and changes none.
	epochsScript = rueidis.NewLuaScriptNoSha(luaEpochs + `
return answer`)

	// swapScript takes the state and a hash; the epoch, an id, its present and
	// its next value, the collection and its new stamp. The stamp comes first,
	// because a write can fail: no change may be made that is not announced.
	swapScript = rueidis.NewLuaScriptNoSha(`
local state = redis.call('HGET', KEYS[1], 'epoch')
local found = redis.call('HMGET', KEYS[2], '#epoch', ARGV[2])
local present = found[2] and '=' .. found[2] or ''
if state ~= ARGV[1] or found[1] ~= ARGV[1] or present ~= ARGV[3] then
	return {state, found[1], '', found[2]}
end
redis.call('HSET', KEYS[1], ARGV[5], ARGV[6])
if ARGV[4] == '' then
	redis.call('HDEL', KEYS[2], ARGV[2])
else
	redis.call('HSET', KEYS[2], ARGV[2], string.sub(ARGV[4], 2))
end
return {state, found[1], '` + swappedAnswer + `', false}`)

	// stampsScript takes all keys and the fields of the stamps.
	stampsScript = rueidis.NewLuaScriptNoSha(luaEpochs + `
for i = 1, #ARGV do answer[#KEYS + i] = redis.call('HGET', KEYS[1], ARGV[i]) end
return answer`)

	// namesScript takes a hash, and the cursor of a scan or "" for all names at once, which reads
	// no values. With a call of its own, the epoch could be older than a FLUSHALL and the names newer.
	namesScript = rueidis.NewLuaScriptNoSha(`
local epoch = redis.call('HGET', KEYS[1], '#epoch')
if ARGV[1] == '' then return {epoch, '0', redis.call('HKEYS', KEYS[1])} end
local page, names = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', 500), {}
for i = 1, #page[2], 2 do names[#names + 1] = page[2][i] end
return {epoch, page[1], names}`)
)

const swappedAnswer = "swapped"

// memory is a file with the epoch that a node has seen. With it, the node also notices
// lost data after a restart.
type memory struct {
	storage func() certmagic.Storage
	key     string
	redis   string // the address, without credentials
}

// remembered is the content of the file.
type remembered struct {
	Epoch string `json:"epoch"`
	Redis string `json:"redis"`
	Hint  string `json:"hint"`
}

// load returns the epoch, or "" if the node has seen none.
func (m memory) load(ctx context.Context) (string, error) {
	raw, err := m.storage().Load(ctx, m.key)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	var content remembered
	if err == nil {
		err = json.Unmarshal(raw, &content)
	}
	if err == nil && content.Epoch == "" {
		err = errors.New("there is no epoch in it")
	}
	if err != nil {
		return "", fmt.Errorf("%w: which data in redis is ours, from %q in Caddy's storage: %w", ErrUnavailable, m.key, err)
	}
	return content.Epoch, nil
}

func (m memory) store(ctx context.Context, epoch string) error {
	raw, err := json.MarshalIndent(remembered{
		Epoch: epoch,
		Redis: m.redis,
		Hint:  "The data that this node has seen in this Redis. The node uses no other data, which may lack keys and settings. To have it accept what is in Redis now, delete this file and restart the node.",
	}, "", "\t")
	if err != nil {
		return err
	}
	return m.storage().Store(ctx, m.key, raw)
}

// epoch returns the epoch that the data must have. A node that has never seen
// any adopts the present one. Once it has started, it gives an empty Redis a new
// one, writes down which it has adopted, and adds collections that are newer than the data.
func (r *Redis) epoch(ctx context.Context, client rueidis.Client, started bool) (string, error) {
	epoch, err := r.memory.load(ctx)
	if err != nil || epoch != "" && !started {
		return epoch, err
	}
	if !started {
		return r.presentEpoch(epochsScript.Exec(ctx, client, allKeys, nil))
	}
	adopt := func(next string) rueidis.RedisResult {
		return adoptScript.Exec(ctx, client, allKeys, append([]string{next}, stampFields...))
	}
	if epoch != "" {
		if err := adopt("").Error(); err != nil {
			return "", r.unavailable(err)
		}
		return epoch, nil
	}
	if epoch, err = r.presentEpoch(adopt(rand.Text())); err != nil {
		return "", err
	}
	if err := r.memory.store(ctx, epoch); err != nil {
		r.logger().Warn("could not record which data redis has; after a restart, nobody will notice if redis loses it",
			zap.String("key", r.memory.key), zap.Error(err))
	}
	return epoch, nil
}

// presentEpoch returns the epoch of the data in Redis, "" if it is empty. reply
// contains the epochs of all keys.
func (r *Redis) presentEpoch(reply rueidis.RedisResult) (epoch string, err error) {
	found, err := reply.AsStrSlice()
	if err != nil {
		return "", r.unavailable(err)
	}
	if len(found) != len(allKeys) {
		return "", fmt.Errorf("%w: redis: an answer of %d values: want %d", ErrUnavailable, len(found), len(allKeys))
	}
	if known := slices.IndexFunc(found, func(s string) bool { return s != "" }); known >= 0 {
		epoch = found[known]
	}
	for i, key := range allKeys {
		if found[i] != epoch {
			return "", r.incomplete(key, found[i], epoch)
		}
	}
	return epoch, nil
}

// dataLost is the error for data that is not the data that this node has seen.
func (r *Redis) dataLost(key string, found []byte, want string) error {
	r.losses.Add(1)
	return fmt.Errorf("%w: redis: data has been lost or replaced (FLUSHALL, eviction, another database): %q has epoch %.40q: want %q; "+
		"restoring it heals this; to accept what is there now, delete %q from Caddy's storage and restart",
		ErrUnavailable, key, found, want, r.memory.key)
}

// incomplete is the error for data of which a part is missing. A new node must
// not make it look whole to the nodes that know better.
func (r *Redis) incomplete(key, found, want string) error {
	field := epochField
	if key == stateKey {
		field = "epoch"
	}
	return fmt.Errorf("%w: redis: data has been lost in part: %q has epoch %.40q: want %.40q; "+
		"restoring it heals this; to go on without what is lost, run HSET '%s' '%s' %.40q",
		ErrUnavailable, key, found, want, key, field, want)
}
