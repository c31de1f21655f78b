package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"

	"github.com/signed-playback/caddy-signed-playback/internal/accessrules"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
)

// VideoDocument is the stored settings of a video, as the control API has set
// them.
type VideoDocument struct {
	UID      string    `json:"uid"`
	Created  time.Time `json:"created"` // zero if the video has been purged and has no settings
	Modified time.Time `json:"modified"`

	// nil if it was never set.
	RequireSignedURLs *bool `json:"requireSignedURLs,omitempty"`

	// nil if it was never set; empty for any origin.
	AllowedOrigins *[]string `json:"allowedOrigins,omitempty"`

	// The access rules in JSON. nil if they were never set; an empty list for none.
	AccessRules json.RawMessage `json:"accessRules,omitempty"`

	// When the video may be played. nil for no bound.
	AvailableFrom  *time.Time `json:"availableFrom,omitempty"`
	AvailableUntil *time.Time `json:"availableUntil,omitempty"`

	// Purged is when the video was last purged, in Unix milliseconds, and greater than at the
	// purge before. 0 means never.
	Purged int64 `json:"purged,omitempty"`

	// Members that describe the video and decide nothing, as they were sent.
	Descriptive map[string]json.RawMessage `json:"descriptive,omitempty"`
}

// Video is the part of a VideoDocument that a gate needs, compiled. It is
// immutable.
type Video struct {
	RequireSignedURLs *bool // nil if it is not set

	// AllowedOrigins counts if OriginsSet is true.
	AllowedOrigins *weborigin.List
	OriginsSet     bool

	AccessRules accessrules.List // nil if they are not set; empty for none

	// When the video may be played, the zero time for no bound.
	AvailableFrom, AvailableUntil time.Time

	Purged     int64 // see VideoDocument
	OnlyPurged bool  // there are no settings
}

// HasSettings reports whether the store has settings of the video.
func (v *Video) HasSettings() bool { return v != nil && !v.OnlyPurged }

// hasSettings reports whether the document is more than the date of a purge.
func (d *VideoDocument) hasSettings() bool {
	return d != nil && (d.Purged == 0 || !d.Created.IsZero())
}

// videoMemory bounds the memory for settings of videos, all in bytes: an eighth
// of the memory limit of the process, and at most enough for 100,000 videos with
// a few allowed origins each. The settings of other videos are read from the
// store when somebody asks for them.
func videoMemory(limit int64) uint64 {
	const share, least = 8, 1 << 20
	return min(maxVideoMemory, max(least, uint64(limit)/share))
}

const maxVideoMemory = 64 << 20

// videos are the settings of the videos that have been asked for. A video is
// read from the store when it is first asked for, once however many viewers ask
// at the same time.
type videos struct {
	state *State
	cache *otter.Cache[string, *videoRecord]
	reads singleflight.Group

	// A record is current if it is of the generation of its video. All videos
	// with the same hash have one generation.
	generations [256]atomic.Uint32
	seed        maphash.Seed

	// A record of an earlier refresh serves until it has been read again.
	refreshes atomic.Uint32
}

// videoRecord is what the store says about one video. It is immutable.
type videoRecord struct {
	video      *Video // nil if the store has no settings
	damage     error  // then video is nil
	generation uint32 // at the time when the reading began
	refresh    uint32 // the same
	weight     uint32 // estimated memory in bytes
}

func newVideos(s *State) *videos {
	v := &videos{state: s, seed: maphash.MakeSeed()}
	v.cache = otter.Must(&otter.Options[string, *videoRecord]{
		MaximumWeight: videoMemory(debug.SetMemoryLimit(-1)),
		Weigher:       func(_ string, record *videoRecord) uint32 { return record.weight },
	})
	return v
}

func (v *videos) generation(videoID string) *atomic.Uint32 {
	return &v.generations[maphash.String(v.seed, videoID)%uint64(len(v.generations))]
}

// Video returns the settings of a video, nil if the store has none, for a request
// with a valid token. It waits only for a video that is not known or has changed,
// and never while the store is unavailable. An error wraps ErrDamaged,
// ErrUnavailable or the error of the context.
func (s *State) Video(ctx context.Context, videoID string) (*Video, error) {
	return s.videos.get(ctx, videoID, nil)
}

// VideoForStranger is Video for a request without a valid token. Anybody can send
// those, for any id. So before the store is asked about an unknown video, admit may
// refuse that, and no viewer waits for the answer. An error is the one of admit,
// wraps ErrLimited, or is one of Video.
func (s *State) VideoForStranger(ctx context.Context, videoID string, admit func() error) (*Video, error) {
	return s.videos.get(ctx, videoID, admit)
}

func (v *videos) get(ctx context.Context, videoID string, admit func() error) (*Video, error) {
	known, ok := v.cache.GetIfPresent(videoID)
	unavailable := v.state.Unavailable()
	stranger := admit != nil && (!ok || known.video == nil)
	generation := v.generation(videoID).Load()
	switch {
	case ok && (unavailable || known.generation == generation):
		if !unavailable && known.refresh != v.refreshes.Load() {
			v.read(videoID, generation, stranger)
		}
		return known.video, known.damage
	case unavailable:
		return nil, errNoAnswer
	}
	if stranger && !ok {
		if err := admit(); err != nil {
			return nil, err
		}
	}
	select {
	case result := <-v.read(videoID, generation, stranger):
		if record, read := result.Val.(*videoRecord); read {
			return record.video, record.damage
		}
		if ok && !errors.Is(result.Err, ErrLimited) {
			return known.video, known.damage
		}
		return nil, result.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// read reads a video, or joins a reading of it that began in the same
// generation, but no viewer joins a stranger's. The reading goes on when its
// callers have gone.
func (v *videos) read(videoID string, generation uint32, stranger bool) <-chan singleflight.Result {
	return v.reads.DoChan(fmt.Sprint(videoID, "#", generation, stranger), func() (any, error) {
		id := strings.Clone(videoID) // it outlives the path that it may be a part of
		known, ok := v.cache.GetIfPresent(id)
		refresh := v.refreshes.Load()
		if ok && known.generation == generation && known.refresh == refresh {
			return known, nil // read since the caller looked
		}
		name, err := store.NewName(store.Videos, id)
		if err != nil {
			return nil, err
		}
		ctx, done := v.state.oneCall(v.state.ctx)
		object, err := v.state.store.Lookup(ctx, name, stranger)
		if done(err); errors.Is(err, ErrLimited) {
			return nil, err
		}
		if err != nil {
			return nil, v.state.failed("get", err)
		}
		record := v.state.compileVideo(object)
		record.generation, record.refresh = generation, refresh
		v.publish(id, record)
		return record, nil
	})
}

// publish keeps what was read, unless the video has changed meanwhile.
func (v *videos) publish(videoID string, record *videoRecord) {
	v.cache.Compute(videoID, func(*videoRecord, bool) (*videoRecord, otter.ComputeOp) {
		if record.generation != v.generation(videoID).Load() {
			return nil, otter.CancelOp
		}
		return record, otter.WriteOp
	})
}

// drop has a video that has changed read again. Nobody gets the old settings,
// even if the reading fails.
func (v *videos) drop(videoID string) {
	v.generation(videoID).Add(1)
	v.cache.Invalidate(videoID)
}

// markStale has every video read again when it is next asked for. Its old
// settings serve if that fails.
func (v *videos) markStale() {
	for i := range v.generations {
		v.generations[i].Add(1)
	}
}

// refresh has every video read again when it is next asked for, without letting
// anybody wait for it.
func (v *videos) refresh() { v.refreshes.Add(1) }

func (v *videos) forget() {
	v.markStale()
	v.cache.InvalidateAll()
}

// compileVideo makes a record without a generation from a stored object.
func (s *State) compileVideo(object store.Object) *videoRecord {
	// A record with its entry in the cache, and a pattern, take less than this.
	const ofRecord, ofPattern = 300, 96
	doc, err := s.decodeVideo(object)
	record := &videoRecord{damage: err, weight: ofRecord + uint32(len(object.Name.ID()))}
	if doc == nil {
		return record
	}
	video := &Video{RequireSignedURLs: doc.RequireSignedURLs, OriginsSet: doc.AllowedOrigins != nil, Purged: doc.Purged, OnlyPurged: !doc.hasSettings()}
	if video.OriginsSet {
		if video.AllowedOrigins, err = weborigin.Compile(*doc.AllowedOrigins); err != nil {
			record.damage = s.damaged(object.Name, err)
			return record
		}
		for _, pattern := range *doc.AllowedOrigins {
			record.weight += ofPattern + uint32(len(pattern))
		}
	}
	if video.AccessRules, err = accessrules.Compile(doc.AccessRules); err != nil {
		record.damage = s.damaged(object.Name, err)
		return record
	}
	record.weight += uint32(video.AccessRules.Weight())
	if doc.AvailableFrom != nil {
		video.AvailableFrom = *doc.AvailableFrom
	}
	if doc.AvailableUntil != nil {
		video.AvailableUntil = *doc.AvailableUntil
	}
	record.video = video
	return record
}

// decodeVideo returns nil for an object that does not exist.
func (s *State) decodeVideo(object store.Object) (*VideoDocument, error) {
	if !object.Exists() {
		return nil, nil
	}
	doc := new(VideoDocument)
	if err := s.decode(object, doc); err != nil {
		return nil, err
	}
	if doc.UID != object.Name.ID() {
		return nil, s.damaged(object.Name, fmt.Errorf("it is of the video %q", doc.UID))
	}
	return doc, nil
}

// VideoDocument reads the stored settings of a video, nil if there are none.
// Errors wrap ErrDamaged or ErrUnavailable.
func (s *State) VideoDocument(ctx context.Context, videoID string) (*VideoDocument, error) {
	name, err := store.NewName(store.Videos, videoID)
	if err != nil {
		return nil, err
	}
	object, err := s.get(ctx, name)
	if err != nil {
		return nil, err
	}
	doc, err := s.decodeVideo(object)
	if !doc.hasSettings() {
		return nil, err
	}
	return doc, err
}

// VideoDocuments reads the stored settings of all videos, in no order. An error
// that wraps ErrDamaged comes with a document that contains the UID only. Any
// other error is the last value.
func (s *State) VideoDocuments(ctx context.Context) iter.Seq2[*VideoDocument, error] {
	return func(yield func(*VideoDocument, error) bool) {
		for object, err := range s.store.All(ctx, store.Videos) {
			if err != nil {
				yield(nil, s.failed("list", err))
				return
			}
			doc, err := s.decodeVideo(object)
			if err != nil {
				doc = &VideoDocument{UID: object.Name.ID()}
			}
			if !doc.hasSettings() {
				continue
			}
			if !yield(doc, err) {
				return
			}
		}
	}
}

// EditVideo changes the settings of a video, and then the change is in force on
// this node. edit may be called more than once, and its error ends the edit. The error
// wraps ErrDamaged if the present settings are damaged; they are left alone.
func (s *State) EditVideo(ctx context.Context, videoID string, edit func(*VideoDocument) error) (*VideoDocument, error) {
	var edited *VideoDocument
	err := s.updateVideo(ctx, videoID, func(present store.Object) ([]byte, error) {
		doc, err := s.decodeVideo(present)
		if err != nil {
			return nil, err
		}
		now := s.date()
		if doc == nil {
			doc = &VideoDocument{UID: videoID}
		}
		if doc.Created.IsZero() {
			doc.Created = now
		}
		doc.Modified = now
		if err := edit(doc); err != nil {
			return nil, err
		}
		edited = doc
		return json.Marshal(doc)
	})
	if err != nil {
		return nil, err
	}
	return edited, nil
}

// DeleteVideo forgets the settings of a video, damaged or not. It returns them;
// nil if there were none. damaged reports whether they could not be read.
func (s *State) DeleteVideo(ctx context.Context, videoID string) (deleted *VideoDocument, damaged bool, err error) {
	err = s.updateVideo(ctx, videoID, func(present store.Object) ([]byte, error) {
		doc, err := s.decodeVideo(present)
		deleted, damaged = nil, errors.Is(err, ErrDamaged)
		if doc.hasSettings() {
			deleted = doc
		}
		switch {
		case damaged: // it may have been purged
			return purged(videoID, s.date())
		case doc == nil || doc.Purged == 0:
			return nil, nil
		}
		return purged(videoID, time.UnixMilli(doc.Purged))
	})
	return deleted, damaged, err
}

// purged returns the document of a video without settings.
func purged(videoID string, at time.Time) ([]byte, error) {
	return json.Marshal(VideoDocument{UID: videoID, Purged: at.UnixMilli()})
}

// PurgeVideo drops the objects of a video from all media caches. The video needs no
// settings. It returns the date of the purge. The error wraps ErrDamaged if the present settings are
// damaged.
func (s *State) PurgeVideo(ctx context.Context, videoID string) (at time.Time, err error) {
	err = s.updateVideo(ctx, videoID, func(present store.Object) ([]byte, error) {
		doc, err := s.decodeVideo(present)
		if err != nil {
			return nil, err
		}
		if doc == nil {
			doc = &VideoDocument{UID: videoID}
		}
		doc.Purged = max(doc.Purged+1, s.now().UnixMilli())
		at = time.UnixMilli(doc.Purged)
		return json.Marshal(doc)
	})
	return at, err
}

// updateVideo changes the object of a video and publishes the change. Reading it
// now means that the first viewer need not, and that it is known if the store
// becomes unavailable.
func (s *State) updateVideo(ctx context.Context, videoID string, change store.Change) error {
	name, err := store.NewName(store.Videos, videoID)
	if err != nil {
		return err
	}
	if err := s.update(ctx, name, change); err != nil {
		return err
	}
	s.videos.drop(videoID)
	_, _ = s.Video(ctx, videoID)
	return nil
}
