package sessions

import (
	"encoding/json"
	"time"

	"go.uber.org/zap/zapcore"
)

// MarshalJSON returns the form in which the end of a session is posted.
func (e Event) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Event   string `json:"event"`
		ID      string `json:"id"`
		UID     string `json:"uid"`
		Video   string `json:"video"`
		Started string `json:"started"`
		Ended   string `json:"ended"`
		Seconds int64  `json:"seconds"` // from the first request to the last
		Bytes   int64  `json:"bytes"`
		Country string `json:"country"`
		Reason  Reason `json:"reason"`
		Shared  bool   `json:"shared"`
	}{
		"session.ended", e.ID.String(), e.UID(), e.Video, e.Started.UTC().Format(time.RFC3339), e.Ended.UTC().Format(time.RFC3339),
		e.seconds(), e.Bytes, e.Country, e.Reason, e.Shared,
	})
}

// seconds is the time from the first request to the last.
func (e Event) seconds() int64 { return int64(e.LastSeen.Sub(e.Started) / time.Second) }

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (e Event) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("session", e.ID.String())
	enc.AddString("video", e.Video)
	enc.AddString("uid", e.UID())
	enc.AddString("started", e.Started.UTC().Format(time.RFC3339))
	enc.AddInt64("seconds", e.seconds())
	enc.AddInt64("bytes", e.Bytes)
	enc.AddString("country", e.Country)
	enc.AddString("reason", string(e.Reason))
	enc.AddBool("shared", e.Shared)
	return nil
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (s Sharing) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("uid", s.UID())
	enc.AddString("session", s.ID.String())
	enc.AddString("video", s.Video)
	enc.AddInt("score", s.Score)
	enc.AddInt("networks", s.Networks)
	enc.AddInt("countries", s.Countries)
	enc.AddInt("sessions", s.Active)
	return nil
}
