package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/certmagic"
	"github.com/redis/rueidis"
	"go.uber.org/zap"
)

const (
	hashTag    = "{signed_playback}:"
	stateKey   = hashTag + "state"
	changesKey = hashTag + "changes"

	// epochField is the field of the epoch in the hashes of objects. It cannot
	// be an id.
	epochField = "#epoch"
)

func hashOf(c Collection) string {
	return hashTag + string(c)
}

var (
	allKeys   = []string{stateKey, hashOf(Keys), hashOf(Videos), hashOf(Signing), changesKey}
	allHashes = allKeys[:4:4] // those with an epoch
)

// The scripts are sent whole each time. They are short, and their digest would
// be SHA-1, which FIPS mode forbids.
var (
	// luaEpochs collects the epochs of the first four keys.
	luaEpochs = `
local answer = {redis.call('HGET', KEYS[1], 'epoch')}
for i = 2, 4 do answer[i] = redis.call('HGET', KEYS[i], '#epoch') end
`

	// adoptScript takes the state, the hashes, the changes; an epoch for the
	// data if there is none at all.
	adoptScript = rueidis.NewLuaScriptNoSha(`
if redis.call('EXISTS', unpack(KEYS)) == 0 then
	for i = 2, 4 do redis.call('HSET', KEYS[i], '#epoch', ARGV[1]) end
	redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'version', 0)
end` + luaEpochs + `
return answer`)

	// swapScript takes the state, a hash, the changes; the epoch, an id, its
	// present and its next value, an entry for the changes, and how many of
	// them to keep.
	//
	// What can fail comes before the change itself: no change may be made that
	// is not announced. One entry more is kept, for those who have missed all
	// others to see that it is the last one they know.
	swapScript = rueidis.NewLuaScriptNoSha(`
local state = redis.call('HGET', KEYS[1], 'epoch')
local found = redis.call('HMGET', KEYS[2], '#epoch', ARGV[2])
local present = found[2] and '=' .. found[2] or ''
if state ~= ARGV[1] or found[1] ~= ARGV[1] or present ~= ARGV[3] then
	return {state, found[1], '', found[2]}
end
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('LPUSH', KEYS[3], version .. ' ' .. ARGV[5])
redis.call('LTRIM', KEYS[3], 0, ARGV[6])
if ARGV[4] == '' then
	redis.call('HDEL', KEYS[2], ARGV[2])
else
	redis.call('HSET', KEYS[2], ARGV[2], string.sub(ARGV[4], 2))
end
return {state, found[1], '` + swappedAnswer + `', false}`)

	// changesScript takes the state, the hashes, the changes; the version that
	// is known, and how many changes there are at most.
	changesScript = rueidis.NewLuaScriptNoSha(luaEpochs + `
answer[5] = redis.call('HGET', KEYS[1], 'version')
local news = (tonumber(answer[5] or 0) or 0) - tonumber(ARGV[1])
if news < 0 or news > tonumber(ARGV[2]) then news = 0 end
answer[6] = redis.call('LRANGE', KEYS[5], 0, news)
return answer`)

	// scanScript takes a hash; a cursor and about how many fields to return.
	// Asked for by itself, the epoch could be that of before a FLUSHALL, and
	// the fields those of after.
	scanScript = rueidis.NewLuaScriptNoSha(`
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
return {redis.call('HGET', KEYS[1], '#epoch'), page[1], page[2]}`)
)

const swappedAnswer = "swapped"

// memory is where a node keeps the epoch that it has seen, so that it is not
// fooled after a restart either.
type memory struct {
	storage certmagic.Storage
	key     string
	redis   string // which one it is of
}

type remembered struct {
	Epoch string `json:"epoch"`
	Redis string `json:"redis"`
	Hint  string `json:"hint"`
}

// load returns the epoch, "" if there is none.
func (m memory) load(ctx context.Context) (string, error) {
	raw, err := m.storage.Load(ctx, m.key)
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
		Hint:  "The data that this node has seen in this Redis. It serves no other, as it may have lost its keys and settings. To have it accept what is in Redis now, delete this file and restart it.",
	}, "", "\t")
	if err != nil {
		return err
	}
	return m.storage.Store(ctx, m.key, raw)
}

// epoch returns the epoch that the data must have. A node that has never seen
// any takes that which is there, or starts it.
func (r *Redis) epoch(ctx context.Context, client rueidis.Client) (string, error) {
	epoch, err := r.memory.load(ctx)
	if err != nil || epoch != "" {
		return epoch, err
	}
	if epoch, err = r.adopt(ctx, client); err != nil {
		return "", err
	}
	if err := r.memory.store(ctx, epoch); err != nil {
		r.logger.Warn("could not write down which data is in redis; after a restart, its loss will not be noticed",
			zap.String("key", r.memory.key), zap.Error(err))
	}
	return epoch, nil
}

// adopt returns the epoch of what is in Redis, which gets one if there is
// nothing.
func (r *Redis) adopt(ctx context.Context, client rueidis.Client) (string, error) {
	random := make([]byte, 16)
	_, _ = rand.Read(random) // never fails
	epoch := hex.EncodeToString(random)
	found, err := adoptScript.Exec(ctx, client, allKeys, []string{epoch}).AsStrSlice()
	if err != nil {
		return "", r.unavailable(err)
	}
	if len(found) != len(allHashes) {
		return "", fmt.Errorf("%w: redis: an answer of %d values: want %d", ErrUnavailable, len(found), len(allHashes))
	}
	if known := slices.IndexFunc(found, func(s string) bool { return s != "" }); known >= 0 {
		epoch = found[known]
	}
	for i, key := range allHashes {
		if found[i] != epoch {
			return "", r.incomplete(key, found[i], epoch)
		}
	}
	return epoch, nil
}

// lost says that what is in Redis is not what this node has seen there.
func (r *Redis) lost(key string, found []byte, want string) error {
	r.doubt.Store(true)
	return fmt.Errorf("%w: redis: data has been lost or replaced (FLUSHALL, eviction, another database): %q has epoch %.40q: want %q; "+
		"restoring it heals this; to accept what is there now, delete %q from Caddy's storage and restart",
		ErrUnavailable, key, found, want, r.memory.key)
}

// incomplete says that there is a part of some data in Redis. A node that has
// just come must not make that look whole to those that know better.
func (r *Redis) incomplete(key, found, want string) error {
	field := epochField
	if key == stateKey {
		field = "epoch"
	}
	return fmt.Errorf("%w: redis: data has been lost in part: %q has epoch %.40q: want %.40q; "+
		"restoring it heals this; to go on without what is lost, run HSET '%s' '%s' %.40q",
		ErrUnavailable, key, found, want, key, field, want)
}

// mark is a place in the history of the data.
type mark struct {
	version int64
	entry   string // the last change
}

// since returns what the entries, newest first, tell of the changes after a
// mark. They must lead back to it: a backup that has been restored may have
// seen as many changes since, though others.
func since(last mark, version int64, entries []string) (changed []Name, complete bool) {
	n := version - last.version
	if n < 0 || entryAt(entries, n) != last.entry {
		return nil, false
	}
	met := make(map[Name]bool)
	for i := range n {
		name, ok := parseEntry(entryAt(entries, i), version-i)
		if !ok {
			return nil, false
		}
		if !met[name] {
			met[name] = true
			changed = append(changed, name)
		}
	}
	return changed, true
}

func entryAt(entries []string, i int64) string {
	if i >= int64(len(entries)) {
		return ""
	}
	return entries[i]
}

func parseEntry(entry string, version int64) (name Name, ok bool) {
	rest, ok := strings.CutPrefix(entry, strconv.FormatInt(version, 10)+" ")
	if !ok {
		return Name{}, false
	}
	object, _, _ := strings.Cut(rest, " ")
	collection, id, _ := strings.Cut(object, "/")
	name, err := NewName(Collection(collection), id)
	return name, err == nil
}
