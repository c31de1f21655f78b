package controlapi

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// maxAncestorsBytes limits the allowed origins, so that their frame-ancestors fit into a
// header.
const maxAncestorsBytes = 8 << 10

// reservedVideos are names of other resources in the place of a video id, in this API
// or in Cloudflare's. A call of such a resource must not become settings of a video with
// that name.
var reservedVideos = []string{
	"audio", "clip", "copy", "direct_upload", "keys", "live_inputs", "sessions", "storage-usage", "videos", "watermarks", "webhook",
}

// checkVideo checks the video id in the path.
func (c *call) checkVideo() error {
	id := c.subject
	switch {
	case !token.ValidVideoID(id):
		return badRequest("video id %.80q: a video id is 1 to 64 of A-Z a-z 0-9 _ -", id)
	case slices.Contains(reservedVideos, id):
		return badRequest("video id %q is reserved: it names another resource of the API; rename the video's folder, or sign its tokens with a key of your own", id)
	}
	return nil
}

// describingMembers are the members that describe a video and decide nothing, with
// their unset values and the values that fit.
var describingMembers = map[string]struct {
	unset string
	fits  func(strictjson.Value) bool
	want  string
}{
	"creator":               {"null", orNull(strictjson.Value.IsString), "a string"},
	"maxDurationSeconds":    {"null", orNull(strictjson.Value.IsNumber), "a number"},
	"meta":                  {"{}", strictjson.Value.IsObject, "an object"},
	"publicDetails":         {"null", orNull(strictjson.Value.IsObject), "an object"},
	"scheduledDeletion":     {"null", orNull(isDate), wantDate},
	"thumbnailTimestampPct": {"0", strictjson.Value.IsNumber, "a number"},
	"uploadExpiry":          {"null", orNull(isDate), wantDate},
}

const wantDate = "a date like 2026-01-02T15:04:05Z, or null"

func orNull(fits func(strictjson.Value) bool) func(strictjson.Value) bool {
	return func(v strictjson.Value) bool { return isNull(v) || fits(v) }
}

func isDate(v strictjson.Value) bool {
	text, _ := v.Text()
	_, err := time.Parse(time.RFC3339, text)
	return err == nil
}

// describe returns a video with the members of Cloudflare's, which contains the
// settings of its document, or those of the config that the document does not set. The
// members that only an encoding service knows have the values of a video that is
// ready.
func (s *Server) describe(doc *state.VideoDocument) map[string]any {
	others, configured := s.Videos[doc.UID]
	if !configured {
		others = s.Defaults
	}
	base := s.PublicURL + "/" + doc.UID
	v := map[string]any{
		"uid": doc.UID, "thumbnail": base + "/thumbnails/thumbnail.jpg", "preview": base + "/iframe",
		"playback":          map[string]string{"hls": base + "/manifest/video.m3u8", "dash": base + "/manifest/video.mpd"},
		"requireSignedURLs": others.RequireSignedURLs,
		"allowedOrigins":    append([]string{}, others.AllowedOrigins...),
		"accessRules":       others.AccessRules,
		"availableFrom":     cmp.Or(doc.AvailableFrom, others.AvailableFrom),
		"availableUntil":    cmp.Or(doc.AvailableUntil, others.AvailableUntil),

		"readyToStream": true, "readyToStreamAt": nil, "created": nil, "modified": nil, "uploaded": nil,
		"status": map[string]string{"state": "ready", "pctComplete": "100.000000", "errorReasonCode": "", "errorReasonText": ""},
		"size":   0, "maxSizeBytes": nil, "watermark": nil, "clippedFrom": nil,
		"duration": -1, "input": map[string]int{"width": -1, "height": -1}, // unknown
	}
	if doc.RequireSignedURLs != nil {
		v["requireSignedURLs"] = *doc.RequireSignedURLs
	}
	if doc.AllowedOrigins != nil {
		v["allowedOrigins"] = *doc.AllowedOrigins
	}
	if doc.AccessRules != nil {
		v["accessRules"] = doc.AccessRules
	}
	for name, member := range describingMembers {
		v[name] = json.RawMessage(member.unset)
		if value, set := doc.Descriptive[name]; set {
			v[name] = value
		}
	}
	if !doc.Created.IsZero() {
		v["created"], v["modified"] = formatTime(doc.Created), formatTime(doc.Modified)
		v["uploaded"], v["readyToStreamAt"] = v["created"], v["created"]
	}
	return v
}

// videoEdit changes settings of a video.
type videoEdit []func(*state.VideoDocument)

// parseEdit reads the body of a call that changes settings, which must not be those of the config
// file. Access rules, a time or a describing member that are null are removed. Other members
// of a video are ignored: clients send back the whole video that they got.
func (c *call) parseEdit(body strictjson.Value) (edit videoEdit, err error) {
	change := func(one func(*state.VideoDocument)) { edit = append(edit, one) }
	readers := members{"liveInput": nil}
	for name := range c.describe(&state.VideoDocument{}) {
		readers[name] = nil
	}
	readers["uid"] = func(v strictjson.Value) error {
		if uid, _ := v.Text(); uid != c.subject {
			return badRequest("uid is %.80s, and the path has %q", v.Raw(), c.subject)
		}
		return nil
	}
	readers["requireSignedURLs"] = func(v strictjson.Value) error {
		var required bool
		change(func(doc *state.VideoDocument) { doc.RequireSignedURLs = &required })
		return boolMember("requireSignedURLs", &required)(v)
	}
	readers["allowedOrigins"] = func(v strictjson.Value) error {
		patterns, err := parseAllowedOrigins(v)
		change(func(doc *state.VideoDocument) { doc.AllowedOrigins = &patterns })
		return err
	}
	readers["accessRules"] = func(v strictjson.Value) error {
		rules, warnings, err := c.parseRules(v)
		for _, warning := range warnings {
			c.warn("accessRules: %s", warning)
		}
		change(func(doc *state.VideoDocument) { doc.AccessRules = rules })
		return err
	}
	for name, set := range map[string]func(*state.VideoDocument, *time.Time){
		"availableFrom":  func(doc *state.VideoDocument, at *time.Time) { doc.AvailableFrom = at },
		"availableUntil": func(doc *state.VideoDocument, at *time.Time) { doc.AvailableUntil = at },
	} {
		readers[name] = func(v strictjson.Value) error {
			at, err := parseTime(name, v)
			change(func(doc *state.VideoDocument) { set(doc, at) })
			return err
		}
	}
	for name, member := range describingMembers {
		readers[name] = func(v strictjson.Value) error {
			if !member.fits(v) {
				return badRequest("%s is %.80s: want %s", name, v.Raw(), member.want)
			}
			change(func(doc *state.VideoDocument) { setDescribing(doc, name, v) })
			return nil
		}
	}
	if err := readers.read(body); err != nil {
		return nil, err
	}
	return edit, c.checkNotConfigured()
}

// setDescribing sets a describing member, or removes it if it is null.
func setDescribing(doc *state.VideoDocument, name string, v strictjson.Value) {
	if isNull(v) {
		delete(doc.Descriptive, name)
		return
	}
	if doc.Descriptive == nil {
		doc.Descriptive = make(map[string]json.RawMessage)
	}
	doc.Descriptive[name] = v.Raw()
}

// parseTime reads a time, nil for null.
func parseTime(name string, v strictjson.Value) (*time.Time, error) {
	if isNull(v) {
		return nil, nil
	}
	at := new(time.Time)
	text, _ := v.Text()
	if at.UnmarshalText([]byte(text)) != nil || at.IsZero() {
		return nil, badRequest("%s is %.80s: want %s", name, v.Raw(), wantDate)
	}
	return at, nil
}

func parseAllowedOrigins(v strictjson.Value) ([]string, error) {
	if !v.IsArray() {
		return nil, badRequest("allowedOrigins is not an array")
	}
	patterns := []string{}
	length := 0 // of the stored patterns, repeated ones included
	for element := range v.Elements() {
		text, ok := element.Text()
		if !ok {
			return nil, badRequest("allowedOrigins contains %.80s: want strings", element.Raw())
		}
		length += len(text)
		if patterns = append(patterns, text); len(patterns) > weborigin.MaxPatterns {
			return nil, badRequest("allowedOrigins has more than %d origins", weborigin.MaxPatterns)
		}
	}
	compiled, err := weborigin.Compile(patterns)
	if err != nil {
		return nil, badRequest("%v", err)
	}
	if max(length, len(compiled.FrameAncestors())) > maxAncestorsBytes {
		return nil, badRequest("allowedOrigins is longer than %d bytes in all", maxAncestorsBytes)
	}
	return patterns, nil
}

// apply makes the changes of an edit. It refuses a schedule that never lets the
// video play.
func (e videoEdit) apply(doc *state.VideoDocument) error {
	for _, change := range e {
		change(doc)
	}
	if from, until := doc.AvailableFrom, doc.AvailableUntil; from != nil && until != nil && !from.Before(*until) {
		return badRequest("availableFrom is %s, which is not before availableUntil (%s)", from.Format(time.RFC3339), until.Format(time.RFC3339))
	}
	return nil
}

// document returns the settings of the video in the store, none for a video of the config file.
func (c *call) document() (doc *state.VideoDocument, err error) {
	if _, configured := c.Videos[c.subject]; !configured {
		doc, err = c.State.VideoDocument(c.ctx(), c.subject)
	}
	return cmp.Or(doc, &state.VideoDocument{UID: c.subject}), c.videoError(err)
}

// getVideo returns the settings of a video, or the defaults.
func (c *call) getVideo(strictjson.Value) (any, error) {
	doc, err := c.document()
	if err != nil {
		return nil, err
	}
	return c.describe(doc), nil
}

const damagedVideo = "the settings of the video %q in the store are damaged, so it is refused to viewers; DELETE forgets them"

// videoError describes damage to the client, because DELETE repairs it.
func (c *call) videoError(err error) error {
	if errors.Is(err, state.ErrDamaged) {
		return refuse(http.StatusServiceUnavailable, codeUnavailable, damagedVideo, c.subject)
	}
	return err
}

// checkNotConfigured refuses to change the settings of the config file.
func (c *call) checkNotConfigured() error {
	if _, configured := c.Videos[c.subject]; configured {
		return refuse(http.StatusForbidden, codeForbidden, "the config file has settings for the video %q, which win over the API's", c.subject)
	}
	return nil
}

// editVideo changes some of the settings of a video.
func (c *call) editVideo(body strictjson.Value) (any, error) {
	edit, err := c.parseEdit(body)
	if err != nil {
		return nil, err
	}
	if len(edit) == 0 {
		return c.getVideo(body)
	}
	doc, err := c.State.EditVideo(c.ctx(), c.subject, edit.apply)
	if err != nil {
		return nil, c.videoError(err)
	}
	for name := range body.Members() {
		if string(name) == "scheduledDeletion" {
			c.warn("scheduledDeletion is stored, but deletes nothing")
		}
	}
	described := c.describe(doc)
	c.changed = []zap.Field{
		zap.Any("require_signed_urls", described["requireSignedURLs"]),
		zap.Any("allowed_origins", described["allowedOrigins"]),
		zap.Any("access_rules", described["accessRules"]),
		zap.Any("available_from", described["availableFrom"]),
		zap.Any("available_until", described["availableUntil"]),
	}
	return described, nil
}

// checkEdit answers as editVideo would, and changes nothing.
func (c *call) checkEdit(body strictjson.Value) (any, error) {
	edit, err := c.parseEdit(body)
	if err != nil {
		return nil, err
	}
	doc, err := c.document()
	if err != nil {
		return nil, err
	}
	if err := edit.apply(doc); err != nil {
		return nil, err
	}
	return c.describe(doc), nil
}

// deleteVideo forgets the settings of a video.
func (c *call) deleteVideo(strictjson.Value) (any, error) {
	if err := c.checkNotConfigured(); err != nil {
		return nil, err
	}
	doc, damaged, err := c.State.DeleteVideo(c.ctx(), c.subject)
	if err != nil {
		return nil, err
	}
	wasPrivate := damaged || doc != nil && doc.RequireSignedURLs != nil && *doc.RequireSignedURLs
	if wasPrivate && !c.Defaults.RequireSignedURLs {
		c.warn("the video %q plays without a token from now on, because require_signed_urls is off in the config", c.subject)
	}
	c.changed = []zap.Field{zap.Bool("require_signed_urls", c.Defaults.RequireSignedURLs)}
	return nil, nil
}

// purgeVideo drops the objects of a video from the media caches of all nodes. The video may
// be one of the config file.
func (c *call) purgeVideo(body strictjson.Value) (any, error) {
	if err := (members{}).read(body); err != nil {
		return nil, err
	}
	at, err := c.State.PurgeVideo(c.ctx(), c.subject)
	if err != nil {
		return nil, c.videoError(err)
	}
	return map[string]any{"uid": c.subject, "purged": formatTime(at)}, nil
}
