package signedplayback

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// videoDocument is what the control API has been told of a video.
type videoDocument struct {
	UID               string    `json:"uid"`
	Created           time.Time `json:"created"`
	Modified          time.Time `json:"modified"`
	RequireSignedURLs *bool     `json:"requireSignedURLs,omitempty"`

	// nil where it was never set; empty for any origin.
	AllowedOrigins *[]string `json:"allowedOrigins,omitempty"`

	// What describes the video and decides nothing, as it was sent.
	Descriptive map[string]json.RawMessage `json:"descriptive,omitempty"`
}

// storedVideo is what the gate needs of a videoDocument. It is immutable; nil
// stands for a video of which the store knows nothing.
type storedVideo struct {
	requireSignedURLs *bool
	originsSet        bool
	allowed           *allowedOrigins
}

// over lays the video's settings over those for all.
func (v *storedVideo) over(defaults settings) settings {
	if v == nil {
		return defaults
	}
	if v.requireSignedURLs != nil {
		defaults.requireSignedURLs = *v.requireSignedURLs
	}
	if v.originsSet {
		defaults.origins.allowed = v.allowed
	}
	return defaults
}

func (s *state) decodeVideo(object store.Object) (*videoDocument, error) {
	if object.Data == nil && object.Damage == nil {
		return nil, nil
	}
	var doc videoDocument
	if err := s.decode(object, &doc); err != nil {
		return nil, err
	}
	if doc.UID != object.Name.ID() {
		object.Damage = fmt.Errorf("%w: %s: it is of the video %q", store.ErrDamaged, object.Name, doc.UID)
		return nil, s.decode(object, nil)
	}
	return &doc, nil
}

func (s *state) compileVideo(object store.Object) (*storedVideo, error) {
	doc, err := s.decodeVideo(object)
	if doc == nil || err != nil {
		return nil, err
	}
	video := &storedVideo{requireSignedURLs: doc.RequireSignedURLs}
	if doc.AllowedOrigins != nil {
		video.originsSet = true
		if video.allowed, err = compileOrigins(*doc.AllowedOrigins); err != nil {
			object.Damage = fmt.Errorf("%w: %s: %w", store.ErrDamaged, object.Name, err)
			return nil, s.decode(object, nil)
		}
	}
	return video, nil
}

const (
	// maxVideoBytes bounds the memory for settings of videos on a node: enough
	// for a million videos that have the same. Beyond it, those that are asked
	// for least are read from the store again.
	maxVideoBytes = 144 << 20
	minVideoBytes = 1 << 20
)

// videoBytesWithin returns the bound for a process with a memory limit in bytes.
func videoBytesWithin(limit int64) uint64 {
	const share = 8
	return memoryWithin(limit, share, minVideoBytes, maxVideoBytes)
}

// storedVideos are the settings of the videos that have been asked for. A
// video is read from the store when it is first asked for, once however many
// viewers ask at the same time.
type storedVideos struct {
	state      *state
	cache      *otter.Cache[string, videoEntry]
	shared     sharedReadings
	generation atomic.Uint32 // entries of an earlier one may be out of date
	refreshed  atomic.Uint32 // those of an earlier one are to be read again, but serve meanwhile

	mu    sync.Mutex
	loads map[string]*videoLoad // those under way
}

// videoEntry is what the cache has of one video. At this size it takes no
// memory but what the cache has for each entry anyway.
type videoEntry struct {
	*videoReading
	generation uint32
	refreshed  uint32
}

// videoLoad is the reading of one video. entry and err are set when done is
// closed.
type videoLoad struct {
	done  chan struct{}
	stale bool // changed since the reading began; guarded by storedVideos.mu
	entry videoEntry
	err   error
}

func newStoredVideos(s *state) *storedVideos {
	v := &storedVideos{
		state:  s,
		shared: sharedReadings{of: make(map[videoContent]*videoReading)},
		loads:  make(map[string]*videoLoad),
	}
	v.cache = otter.Must(&otter.Options[string, videoEntry]{
		MaximumWeight:    videoBytesWithin(debug.SetMemoryLimit(-1)),
		Weigher:          weighVideo,
		OnAtomicDeletion: func(e otter.DeletionEvent[string, videoEntry]) { v.shared.release(e.Value.videoReading) },
	})
	return v
}

// weighVideo estimates the memory that an entry takes, in bytes, less what it
// shares with others. TestWeightOfVideos holds it to what entries take.
func weighVideo(videoID string, entry videoEntry) uint32 {
	const ofEntry = 108 // in the cache; 16 of it are taken only once the entry has been replaced
	weight := ofEntry + len(videoID)
	if !entry.shared {
		weight += entry.weight()
	}
	return uint32(weight)
}

// get returns the settings of a video, nil if it has none in the store. It
// waits only for a video that is not known yet, and not if the store is away.
func (v *storedVideos) get(ctx context.Context, videoID string) (*storedVideo, error) {
	known, ok := v.cache.GetIfPresent(videoID)
	away := v.state.away.Load()
	switch {
	case ok && (away || known.generation == v.generation.Load()):
		if !away && known.refreshed != v.refreshed.Load() {
			v.join(videoID)
		}
		return known.video, known.damage
	case away:
		return nil, errStoreAway
	}
	load := v.join(videoID)
	select {
	case <-load.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	switch {
	case load.err == nil:
		return load.entry.video, load.entry.damage
	case ok:
		return known.video, known.damage
	}
	return nil, load.err
}

// join returns the reading of a video that is under way, or that has ended
// since the caller looked, or begins one.
func (v *storedVideos) join(videoID string) *videoLoad {
	v.mu.Lock()
	defer v.mu.Unlock()
	if load := v.loads[videoID]; load != nil {
		return load
	}
	load := &videoLoad{done: make(chan struct{})}
	videoID = strings.Clone(videoID) // it outlives the path that it may be a part of
	known, ok := v.cache.GetIfPresent(videoID)
	if ok && known.generation == v.generation.Load() && known.refreshed == v.refreshed.Load() {
		load.entry = known
		close(load.done)
		return load
	}
	v.loads[videoID] = load
	go v.load(videoID, load)
	return load
}

func (v *storedVideos) load(videoID string, load *videoLoad) {
	defer close(load.done)
	for {
		generation, refreshed := v.generation.Load(), v.refreshed.Load()
		var reading *videoReading
		reading, load.err = v.read(v.state.ctx, videoID)
		load.entry = videoEntry{reading, generation, refreshed}
		if v.finish(videoID, load) {
			return
		}
	}
}

// finish publishes what was read, unless the video has changed meanwhile.
func (v *storedVideos) finish(videoID string, load *videoLoad) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if load.stale && load.err == nil {
		load.stale = false
		return false
	}
	delete(v.loads, videoID)
	if load.err == nil {
		load.entry.videoReading = v.shared.use(load.entry.videoReading)
		v.cache.Set(videoID, load.entry)
	}
	return true
}

func (v *storedVideos) read(ctx context.Context, videoID string) (*videoReading, error) {
	name, err := store.NewName(store.Videos, videoID)
	if err != nil {
		return nil, err
	}
	object, err := v.state.get(ctx, name)
	if err != nil {
		return nil, err
	}
	video, damage := v.state.compileVideo(object)
	return &videoReading{video: video, damage: damage}, nil
}

// drop has a video that has changed read anew.
func (v *storedVideos) drop(videoID string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if load := v.loads[videoID]; load != nil {
		load.stale = true
	}
	v.cache.Invalidate(videoID)
}

// suspectAll has every video read anew when it is next asked for. What was
// known of it serves if that fails.
func (v *storedVideos) suspectAll() { v.generation.Add(1) }

// refreshAll has every video read anew when it is next asked for, without
// letting anybody wait for it.
func (v *storedVideos) refreshAll() { v.refreshed.Add(1) }

// forget gives up all that is known.
func (v *storedVideos) forget() {
	v.suspectAll()
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, load := range v.loads {
		load.stale = true
	}
	v.cache.InvalidateAll()
}
