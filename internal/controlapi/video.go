package controlapi

import (
	"encoding/json"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
)

// video is a video as the API returns it, with the members and the order of
// Cloudflare's. Members that only an encoding service knows are those of a video
// that is ready.
type video struct {
	UID                   string          `json:"uid"`
	Creator               json.RawMessage `json:"creator"`
	Thumbnail             string          `json:"thumbnail"`
	ThumbnailTimestampPct json.RawMessage `json:"thumbnailTimestampPct"`
	ReadyToStream         bool            `json:"readyToStream"`
	ReadyToStreamAt       *string         `json:"readyToStreamAt"`
	Status                struct {
		State           string `json:"state"`
		PctComplete     string `json:"pctComplete"`
		ErrorReasonCode string `json:"errorReasonCode"`
		ErrorReasonText string `json:"errorReasonText"`
	} `json:"status"`
	Meta              json.RawMessage `json:"meta"`
	Created           *string         `json:"created"`
	Modified          *string         `json:"modified"`
	ScheduledDeletion json.RawMessage `json:"scheduledDeletion"`
	Size              int             `json:"size"`
	Preview           string          `json:"preview"`
	AllowedOrigins    []string        `json:"allowedOrigins"`
	RequireSignedURLs bool            `json:"requireSignedURLs"`
	Uploaded          *string         `json:"uploaded"`
	UploadExpiry      json.RawMessage `json:"uploadExpiry"`
	MaxSizeBytes      *int            `json:"maxSizeBytes"`

	MaxDurationSeconds json.RawMessage `json:"maxDurationSeconds"`
	Duration           int             `json:"duration"` // -1: unknown
	Input              struct {
		Width  int `json:"width"` // -1: unknown
		Height int `json:"height"`
	} `json:"input"`
	Playback struct {
		HLS  string `json:"hls"`
		DASH string `json:"dash"`
	} `json:"playback"`
	Watermark     *struct{}       `json:"watermark"`
	LiveInput     *string         `json:"liveInput,omitempty"`
	ClippedFrom   *string         `json:"clippedFrom"`
	PublicDetails json.RawMessage `json:"publicDetails"`
}

// describe returns a video with the settings of its document, or with others
// where the document sets none.
func (s *Server) describe(doc *state.VideoDocument, others VideoSettings) *video {
	v := s.describeReady(doc.UID)
	v.RequireSignedURLs = others.RequireSignedURLs
	if doc.RequireSignedURLs != nil {
		v.RequireSignedURLs = *doc.RequireSignedURLs
	}
	v.AllowedOrigins = append([]string{}, others.AllowedOrigins...)
	if doc.AllowedOrigins != nil {
		v.AllowedOrigins = *doc.AllowedOrigins
	}
	for name, member := range describingMembers {
		*member.of(v) = json.RawMessage(member.unset)
		if value, set := doc.Descriptive[name]; set {
			*member.of(v) = value
		}
	}
	if !doc.Created.IsZero() {
		v.Created, v.Modified = new(formatTime(doc.Created)), new(formatTime(doc.Modified))
		v.Uploaded, v.ReadyToStreamAt = v.Created, v.Created
	}
	return v
}

// describeReady returns the members that all videos have in common, and the
// addresses.
func (s *Server) describeReady(videoID string) *video {
	base := s.PublicURL + "/" + videoID
	v := &video{
		UID: videoID, ReadyToStream: true, Duration: -1,
		Thumbnail: base + "/thumbnails/thumbnail.jpg",
		Preview:   base + "/iframe",
	}
	v.Status.State, v.Status.PctComplete = "ready", "100.000000"
	v.Input.Width, v.Input.Height = -1, -1
	v.Playback.HLS, v.Playback.DASH = base+"/manifest/video.m3u8", base+"/manifest/video.mpd"
	return v
}
