package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

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

// compileVideo makes a record from a stored object.
func (s *State) compileVideo(object store.Object) record[Video] {
	// A record with its entry in the cache, and a pattern, take less than this.
	const ofRecord, ofPattern = 300, 96
	doc, err := s.decodeVideo(object)
	compiled := record[Video]{damage: err, weight: ofRecord + uint32(len(object.Name.ID()))}
	if doc == nil {
		return compiled
	}
	video := &Video{RequireSignedURLs: doc.RequireSignedURLs, OriginsSet: doc.AllowedOrigins != nil, Purged: doc.Purged, OnlyPurged: !doc.hasSettings()}
	if video.OriginsSet {
		if video.AllowedOrigins, err = weborigin.Compile(*doc.AllowedOrigins); err != nil {
			compiled.damage = s.damaged(object.Name, err)
			return compiled
		}
		for _, pattern := range *doc.AllowedOrigins {
			compiled.weight += ofPattern + uint32(len(pattern))
		}
	}
	if video.AccessRules, err = accessrules.Compile(doc.AccessRules); err != nil {
		compiled.damage = s.damaged(object.Name, err)
		return compiled
	}
	compiled.weight += uint32(video.AccessRules.Weight())
	if doc.AvailableFrom != nil {
		video.AvailableFrom = *doc.AvailableFrom
	}
	if doc.AvailableUntil != nil {
		video.AvailableUntil = *doc.AvailableUntil
	}
	compiled.value = video
	return compiled
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
	object, err := s.get(ctx, name, store.Server)
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
		for object, err := range store.All(ctx, s.store, store.Videos) {
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
	err := s.changeDocument(ctx, videoID, func(doc *VideoDocument) error {
		edited = doc
		if doc.Modified = s.date(); doc.Created.IsZero() {
			doc.Created = doc.Modified
		}
		return edit(doc)
	})
	if err != nil {
		return nil, err
	}
	return edited, nil
}

// changeDocument changes the document of a video, which is new if there is none.
func (s *State) changeDocument(ctx context.Context, videoID string, change func(*VideoDocument) error) error {
	return s.videos.update(ctx, videoID, func(present store.Object) ([]byte, error) {
		doc, err := s.decodeVideo(present)
		if err != nil {
			return nil, err
		}
		if doc == nil {
			doc = &VideoDocument{UID: videoID}
		}
		if err := change(doc); err != nil {
			return nil, err
		}
		return json.Marshal(doc)
	})
}

// DeleteVideo forgets the settings of a video, damaged or not. It returns them;
// nil if there were none. damaged reports whether they could not be read.
func (s *State) DeleteVideo(ctx context.Context, videoID string) (deleted *VideoDocument, damaged bool, err error) {
	err = s.videos.update(ctx, videoID, func(present store.Object) ([]byte, error) {
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
	err = s.changeDocument(ctx, videoID, func(doc *VideoDocument) error {
		doc.Purged = max(doc.Purged+1, s.now().UnixMilli())
		at = time.UnixMilli(doc.Purged)
		return nil
	})
	return at, err
}
