package signedplayback

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
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
	allowed           *weborigin.List
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

func (s *state) compileVideo(object store.Object) *videoRecord {
	doc, err := s.decodeVideo(object)
	record := &videoRecord{damage: err, weight: weigh(object, nil)}
	if doc == nil || err != nil {
		return record
	}
	video := &storedVideo{requireSignedURLs: doc.RequireSignedURLs}
	if doc.AllowedOrigins != nil {
		video.originsSet = true
		if video.allowed, err = weborigin.Compile(*doc.AllowedOrigins); err != nil {
			object.Damage = fmt.Errorf("%w: %s: %w", store.ErrDamaged, object.Name, err)
			record.damage = s.decode(object, nil)
			return record
		}
		record.weight = weigh(object, *doc.AllowedOrigins)
	}
	record.video = video
	return record
}

const (
	// maxVideoBytes bounds the memory for settings of videos on a node: enough
	// for 100,000 videos with a few allowed origins each. Others are read from
	// the store when somebody asks for them.
	maxVideoBytes = 64 << 20
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
	state *state
	cache *otter.Cache[string, *videoRecord]
	reads singleflight.Group

	// A record is current if it is of the generation of its video. There is one
	// generation for all videos with the same hash.
	generations [256]atomic.Uint32
	seed        maphash.Seed

	// A record of an earlier refresh serves until it has been read again.
	refresh atomic.Uint32
}

// videoRecord is what the store says of one video. It is immutable.
type videoRecord struct {
	video      *storedVideo // nil if the store knows nothing
	damage     error        // then video is nil
	generation uint32       // at the time when the reading began
	refresh    uint32       // the same
	weight     uint32       // of the memory that it takes, in bytes, estimated
}

func newStoredVideos(s *state) *storedVideos {
	v := &storedVideos{state: s, seed: maphash.MakeSeed()}
	v.cache = otter.Must(&otter.Options[string, *videoRecord]{
		MaximumWeight: videoBytesWithin(debug.SetMemoryLimit(-1)),
		Weigher:       func(_ string, record *videoRecord) uint32 { return record.weight },
	})
	return v
}

func (v *storedVideos) generation(videoID string) *atomic.Uint32 {
	return &v.generations[maphash.String(v.seed, videoID)%uint64(len(v.generations))]
}

// weigh estimates the memory for a record in the cache.
func weigh(object store.Object, patterns []string) uint32 {
	const ofRecord, ofPattern = 300, 96
	weight := ofRecord + len(object.Name.ID())
	for _, pattern := range patterns {
		weight += ofPattern + len(pattern)
	}
	return uint32(weight)
}

// get returns the settings of a video, nil if it has none in the store. It
// waits only for a video that is not known or has changed, and never for a store
// that is unavailable.
func (v *storedVideos) get(ctx context.Context, videoID string) (*storedVideo, error) {
	known, ok := v.cache.GetIfPresent(videoID)
	away := v.state.away.Load()
	switch generation := v.generation(videoID).Load(); {
	case away && ok, ok && known.generation == generation:
		if !away && known.refresh != v.refresh.Load() {
			v.read(videoID, generation)
		}
		return known.video, known.damage
	case away:
		return nil, errStoreAway
	default:
		select {
		case result := <-v.read(videoID, generation):
			if record, ok := result.Val.(*videoRecord); ok {
				return record.video, record.damage
			}
			if ok {
				return known.video, known.damage
			}
			return nil, result.Err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// read reads a video, or joins a reading of it that began in the same
// generation. It goes on when its callers have gone.
func (v *storedVideos) read(videoID string, generation uint32) <-chan singleflight.Result {
	return v.reads.DoChan(videoID+"#"+strconv.FormatUint(uint64(generation), 10), func() (any, error) {
		id := strings.Clone(videoID) // it outlives the path that it may be a part of
		known, ok := v.cache.GetIfPresent(id)
		refresh := v.refresh.Load()
		if ok && known.generation == generation && known.refresh == refresh {
			return known, nil // read since the caller looked
		}
		name, err := store.NewName(store.Videos, id)
		if err != nil {
			return nil, err
		}
		object, err := v.state.get(v.state.ctx, name)
		if err != nil {
			return nil, err
		}
		record := v.state.compileVideo(object)
		record.generation, record.refresh = generation, refresh
		v.publish(id, record)
		return record, nil
	})
}

// publish keeps what was read, unless the video has changed meanwhile.
func (v *storedVideos) publish(videoID string, record *videoRecord) {
	v.cache.Compute(videoID, func(*videoRecord, bool) (*videoRecord, otter.ComputeOp) {
		if record.generation != v.generation(videoID).Load() {
			return nil, otter.CancelOp
		}
		return record, otter.WriteOp
	})
}

// drop has a video that has changed read anew. Nobody is answered with what it
// was, even if the reading fails.
func (v *storedVideos) drop(videoID string) {
	v.generation(videoID).Add(1)
	v.cache.Invalidate(videoID)
}

// suspectAll has every video read anew when it is next asked for. What was
// known of it serves if that fails.
func (v *storedVideos) suspectAll() {
	for i := range v.generations {
		v.generations[i].Add(1)
	}
}

// refreshAll has every video read anew when it is next asked for, without
// letting anybody wait for it.
func (v *storedVideos) refreshAll() { v.refresh.Add(1) }

// forget gives up all that is known.
func (v *storedVideos) forget() {
	v.suspectAll()
	v.cache.InvalidateAll()
}
