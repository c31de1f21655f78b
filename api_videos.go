package signedplayback

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// maxAncestorsBytes bounds the frame-ancestors of a video, which must fit into a
// response header.
const maxAncestorsBytes = 8 << 10

// reservedVideos are resources of the API, and of Cloudflare's that this one
// does not have, in the place of a video id. A call of one of those must not
// become settings of a video of that name.
var reservedVideos = []string{
	"audio", "clip", "copy", "direct_upload", "keys", "live_inputs", "storage-usage", "videos", "watermarks", "webhook",
}

// checkVideo checks the id that a call is about.
func (c *call) checkVideo() error {
	id := c.subject
	switch {
	case !token.ValidVideoID(id):
		return badRequest("video id %.80q: %v", id, errVideoID)
	case slices.Contains(reservedVideos, id):
		return badRequest("video id %q is reserved: it names another resource of the API", id)
	}
	return nil
}

func (c *call) videoName() (store.Name, error) {
	if err := c.checkVideo(); err != nil {
		return store.Name{}, err
	}
	return store.NewName(store.Videos, c.subject)
}

// video is a video as the API returns it, with members and order as Cloudflare's.
// What only a service that encodes videos knows is as for a video that is ready.
type video struct {
	UID                   string          `json:"uid"`
	Creator               json.RawMessage `json:"creator"`
	Thumbnail             string          `json:"thumbnail"`
	ThumbnailTimestampPct json.RawMessage `json:"thumbnailTimestampPct"`
	ReadyToStream         bool            `json:"readyToStream"`
	ReadyToStreamAt       *string         `json:"readyToStreamAt"`
	Status                videoStatus     `json:"status"`
	Meta                  json.RawMessage `json:"meta"`
	Created               *string         `json:"created"`
	Modified              *string         `json:"modified"`
	ScheduledDeletion     json.RawMessage `json:"scheduledDeletion"`
	Size                  int             `json:"size"`
	Preview               string          `json:"preview"`
	AllowedOrigins        []string        `json:"allowedOrigins"`
	RequireSignedURLs     bool            `json:"requireSignedURLs"`
	Uploaded              *string         `json:"uploaded"`
	UploadExpiry          json.RawMessage `json:"uploadExpiry"`
	MaxSizeBytes          *int            `json:"maxSizeBytes"`
	MaxDurationSeconds    json.RawMessage `json:"maxDurationSeconds"`
	Duration              int             `json:"duration"` // -1: unknown
	Input                 videoInput      `json:"input"`
	Playback              videoPlayback   `json:"playback"`
	Watermark             *struct{}       `json:"watermark"`
	LiveInput             *string         `json:"liveInput,omitempty"`
	ClippedFrom           *string         `json:"clippedFrom"`
	PublicDetails         json.RawMessage `json:"publicDetails"`
}

type videoStatus struct {
	State           string `json:"state"`
	PctComplete     string `json:"pctComplete"`
	ErrorReasonCode string `json:"errorReasonCode"`
	ErrorReasonText string `json:"errorReasonText"`
}

type videoInput struct {
	Width  int `json:"width"` // -1: unknown
	Height int `json:"height"`
}

type videoPlayback struct {
	HLS  string `json:"hls"`
	DASH string `json:"dash"`
}

// describing are the members that describe a video and decide nothing, with
// what they are while nobody has set them, and what they may be set to.
var describing = map[string]struct {
	unset string
	fits  func(strictjson.Value) bool
	want  string
}{
	"creator":               {"null", orNull(strictjson.Value.IsString), "a string"},
	"maxDurationSeconds":    {"null", orNull(strictjson.Value.IsNumber), "a number"},
	"meta":                  {"{}", strictjson.Value.IsObject, "an object"},
	"publicDetails":         {"null", orNull(strictjson.Value.IsObject), "an object"},
	"scheduledDeletion":     {"null", orNull(isDate), "a date like 2026-01-02T15:04:05Z, or null"},
	"thumbnailTimestampPct": {"0", strictjson.Value.IsNumber, "a number"},
	"uploadExpiry":          {"null", orNull(isDate), "a date like 2026-01-02T15:04:05Z, or null"},
}

func orNull(fits func(strictjson.Value) bool) func(strictjson.Value) bool {
	return func(v strictjson.Value) bool { return string(v.Raw()) == "null" || fits(v) }
}

func isDate(v strictjson.Value) bool {
	text, _ := v.Text()
	_, err := time.Parse(time.RFC3339, text)
	return err == nil
}

// computed are the members of a video that nobody sets. Clients that send back
// the whole video that they got send them too.
var computed = []string{
	"clippedFrom", "created", "duration", "input", "liveInput", "maxSizeBytes", "modified", "playback", "preview",
	"readyToStream", "readyToStreamAt", "size", "status", "thumbnail", "uploaded", "watermark",
}

// videoEdit is the body of a call that changes settings. What is nil stays.
type videoEdit struct {
	requireSignedURLs *bool
	allowedOrigins    *[]string
	descriptive       map[string]json.RawMessage
}

func (c *call) parseVideoEdit(body strictjson.Value) (*videoEdit, error) {
	edit := &videoEdit{descriptive: make(map[string]json.RawMessage)}
	readers := map[string]func(strictjson.Value) error{
		"uid": func(v strictjson.Value) error {
			if uid, _ := v.Text(); uid != c.subject {
				return badRequest("uid is %.80s, and the path says %q", v.Raw(), c.subject)
			}
			return nil
		},
		"requireSignedURLs": func(v strictjson.Value) error {
			value, err := boolOf("requireSignedURLs", v)
			edit.requireSignedURLs = &value
			return err
		},
		"allowedOrigins": func(v strictjson.Value) error {
			patterns, err := parseAllowedOrigins(v)
			edit.allowedOrigins = &patterns
			return err
		},
	}
	for _, name := range computed {
		readers[name] = nil
	}
	for name, member := range describing {
		readers[name] = func(v strictjson.Value) error {
			if !member.fits(v) {
				return badRequest("%s is %.80s: want %s", name, v.Raw(), member.want)
			}
			edit.descriptive[name] = v.Raw()
			return nil
		}
	}
	return edit, members(body, readers)
}

func parseAllowedOrigins(v strictjson.Value) ([]string, error) {
	if !v.IsArray() {
		return nil, badRequest("allowedOrigins is not an array")
	}
	patterns := []string{}
	length := 0 // of the stored texts, duplicates included
	for element := range v.Elements() {
		text, ok := element.Text()
		if !ok {
			return nil, badRequest("allowedOrigins holds %.80s: want strings", element.Raw())
		}
		length += len(text)
		patterns = append(patterns, text)
	}
	compiled, err := weborigin.Compile(patterns)
	if err != nil {
		return nil, badRequest("%v", err)
	}
	if length > maxAncestorsBytes || len(compiled.FrameAncestors()) > maxAncestorsBytes {
		return nil, badRequest("allowedOrigins is longer than %d bytes in all", maxAncestorsBytes)
	}
	return patterns, nil
}

// empty reports whether there is nothing to change.
func (e *videoEdit) empty() bool {
	return e.requireSignedURLs == nil && e.allowedOrigins == nil && len(e.descriptive) == 0
}

// apply makes the change.
func (e *videoEdit) apply(doc *videoDocument) {
	if e.requireSignedURLs != nil {
		doc.RequireSignedURLs = e.requireSignedURLs
	}
	if e.allowedOrigins != nil {
		doc.AllowedOrigins = e.allowedOrigins
	}
	for name, value := range e.descriptive {
		if string(value) == "null" {
			delete(doc.Descriptive, name)
			continue
		}
		if doc.Descriptive == nil {
			doc.Descriptive = make(map[string]json.RawMessage)
		}
		doc.Descriptive[name] = value
	}
}

// getVideo returns the settings of a video: the defaults if nobody has set any.
func (c *call) getVideo(strictjson.Value) (any, error) {
	name, err := c.videoName()
	if err != nil {
		return nil, err
	}
	app := c.api.app
	if own, ok := app.Videos[c.subject]; ok {
		return app.configuredVideo(c.subject, own), nil
	}
	object, err := app.state.get(c.request.Context(), name)
	if err != nil {
		return nil, err
	}
	doc, err := app.state.decodeVideo(object)
	if err != nil {
		return nil, damagedVideo(c.subject)
	}
	return app.describe(c.subject, doc), nil
}

func damagedVideo(videoID string) error {
	return failure(http.StatusServiceUnavailable, codeUnavailable,
		"the settings of the video %q in the store are damaged, so it is refused to viewers; DELETE forgets them", videoID)
}

// errConfigured refuses to change what the config file decides.
func errConfigured(videoID string) error {
	return failure(http.StatusForbidden, codeForbidden, "the config file has settings for the video %q, which win over the API's", videoID)
}

// editVideo changes some of the settings of a video.
func (c *call) editVideo(body strictjson.Value) (any, error) {
	name, err := c.videoName()
	if err != nil {
		return nil, err
	}
	app, ctx := c.api.app, c.request.Context()
	edit, err := c.parseVideoEdit(body)
	if err != nil {
		return nil, err
	}
	if _, ok := app.Videos[c.subject]; ok {
		return nil, errConfigured(c.subject)
	}
	if edit.empty() {
		return c.getVideo(body)
	}
	var edited videoDocument
	err = app.state.update(ctx, name, func(present store.Object) ([]byte, error) {
		doc, err := app.state.decodeVideo(present)
		if err != nil {
			return nil, damagedVideo(c.subject)
		}
		now := app.now().UTC().Truncate(time.Microsecond)
		if doc == nil {
			doc = &videoDocument{UID: c.subject, Created: now}
		}
		doc.Modified = now
		edit.apply(doc)
		edited = *doc
		return json.Marshal(doc)
	})
	if err != nil {
		return nil, err
	}
	app.state.settled(ctx, c.subject)
	if _, set := edit.descriptive["scheduledDeletion"]; set {
		c.warn("scheduledDeletion is kept, and nothing is deleted by it")
	}
	described := app.describe(c.subject, &edited)
	c.changed = []zap.Field{
		zap.Bool("require_signed_urls", described.RequireSignedURLs),
		zap.Strings("allowed_origins", described.AllowedOrigins),
	}
	return described, nil
}

// deleteVideo forgets the settings of a video.
func (c *call) deleteVideo(strictjson.Value) (any, error) {
	name, err := c.videoName()
	if err != nil {
		return nil, err
	}
	app, ctx := c.api.app, c.request.Context()
	if _, ok := app.Videos[c.subject]; ok {
		return nil, errConfigured(c.subject)
	}
	var opened bool
	err = app.state.update(ctx, name, func(present store.Object) ([]byte, error) {
		doc, err := app.state.decodeVideo(present)
		opened = !app.defaults.requireSignedURLs && (err != nil || doc != nil && doc.RequireSignedURLs != nil && *doc.RequireSignedURLs)
		return nil, nil
	})
	if err != nil {
		return nil, err
	}
	app.state.settled(ctx, c.subject)
	if opened {
		c.warn("the video %q plays without a token from now on, for require_signed_urls is off in the config", c.subject)
	}
	c.changed = []zap.Field{zap.Bool("require_signed_urls", app.defaults.requireSignedURLs)}
	return nil, nil
}

// settled puts a change in force that this node has made. Reading it now means
// that the first viewer need not, and that it is known if the store goes away.
func (s *state) settled(ctx context.Context, videoID string) {
	s.videos.drop(videoID)
	_, _ = s.videos.get(ctx, videoID)
}

// describe makes the API's view of a video from its document, nil if it has
// none.
func (a *App) describe(videoID string, doc *videoDocument) *video {
	if doc == nil {
		doc = new(videoDocument)
	}
	v := a.blankVideo(videoID)
	v.RequireSignedURLs = a.defaults.requireSignedURLs
	if doc.RequireSignedURLs != nil {
		v.RequireSignedURLs = *doc.RequireSignedURLs
	}
	v.AllowedOrigins = append([]string{}, a.AllowedOrigins...)
	if doc.AllowedOrigins != nil {
		v.AllowedOrigins = *doc.AllowedOrigins
	}
	for name, into := range v.describing() {
		*into = json.RawMessage(describing[name].unset)
		if value, set := doc.Descriptive[name]; set {
			*into = value
		}
	}
	if !doc.Created.IsZero() {
		v.Created, v.Modified = new(apiTime(doc.Created)), new(apiTime(doc.Modified))
		v.Uploaded, v.ReadyToStreamAt = v.Created, v.Created
	}
	return v
}

// configuredVideo is the API's view of a video of the config file.
func (a *App) configuredVideo(videoID string, own VideoSettings) *video {
	v := a.describe(videoID, nil)
	v.RequireSignedURLs = a.videos[videoID].requireSignedURLs
	if len(own.AllowedOrigins) > 0 {
		v.AllowedOrigins = own.AllowedOrigins
	}
	return v
}

func (a *App) blankVideo(videoID string) *video {
	base := a.publicURL + "/" + videoID
	return &video{
		UID:           videoID,
		Thumbnail:     base + "/thumbnails/thumbnail.jpg",
		ReadyToStream: true,
		Status:        videoStatus{State: "ready", PctComplete: "100.000000"},
		Preview:       base + "/iframe",
		Duration:      -1,
		Input:         videoInput{-1, -1},
		Playback:      videoPlayback{base + "/manifest/video.m3u8", base + "/manifest/video.mpd"},
	}
}

func (v *video) describing() map[string]*json.RawMessage {
	return map[string]*json.RawMessage{
		"creator":               &v.Creator,
		"maxDurationSeconds":    &v.MaxDurationSeconds,
		"meta":                  &v.Meta,
		"publicDetails":         &v.PublicDetails,
		"scheduledDeletion":     &v.ScheduledDeletion,
		"thumbnailTimestampPct": &v.ThumbnailTimestampPct,
		"uploadExpiry":          &v.UploadExpiry,
	}
}

func sortedNames[T any](m map[string]T) string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
