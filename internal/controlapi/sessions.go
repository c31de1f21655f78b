package controlapi

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
)

// listedSession is an element of a list of sessions.
type listedSession struct {
	ID        string `json:"id"`
	UID       string `json:"uid"`
	Video     string `json:"video"`
	Started   string `json:"started"`
	LastSeen  string `json:"lastSeen"`
	Country   string `json:"country"`
	Network   string `json:"network"`
	UserAgent string `json:"userAgent"`
}

func listed(info sessions.Info) listedSession {
	network := ""
	if info.Network.IsValid() {
		network = info.Network.String()
	}
	return listedSession{
		info.ID.String(), info.UID(), info.Video, formatTime(info.Started), formatTime(info.LastSeen), info.Country, network, info.UserAgent,
	}
}

// listVideoSessions lists the sessions of a video.
func (c *call) listVideoSessions(strictjson.Value) (any, error) {
	return c.listSessions(nil, func() ([]sessions.Info, error) { return c.Sessions.ListVideo(c.ctx(), c.subject) })
}

// listViewerSessions lists the sessions of a viewer.
func (c *call) listViewerSessions(strictjson.Value) (any, error) {
	var uid string
	readers := map[string]func(string) error{"uid": func(s string) error { uid = s; return nil }}
	return c.listSessions(readers, func() ([]sessions.Info, error) {
		if uid == "" || strings.HasPrefix(uid, sessions.Unnamed) {
			return nil, badRequest("the query has no uid; GET stream/{video}/sessions lists the sessions of a video")
		}
		return c.Sessions.ListViewer(c.ctx(), uid)
	})
}

// listSessions lists sessions in pages, newest first.
func (c *call) listSessions(readers map[string]func(string) error, list func() ([]sessions.Info, error)) (any, error) {
	if c.Sessions == nil {
		return nil, errSessionsOff
	}
	read := func(add func(sessions.Info)) error {
		running, err := list()
		for _, info := range running {
			add(info)
		}
		return err
	}
	place := func(info sessions.Info) (time.Time, string) { return info.Started, info.ID.String() }
	return listInPages(c, readers, read, place, listed)
}

// liveVideo is how many sessions of a video run.
type liveVideo struct {
	Video       string `json:"video"`
	LiveViewers int64  `json:"liveViewers"`
}

// listLive lists the videos with the most running sessions.
func (c *call) listLive(strictjson.Value) (any, error) {
	if c.Sessions == nil {
		return nil, errSessionsOff
	}
	counts, err := c.Sessions.CountVideos(c.ctx())
	if err != nil {
		return nil, err
	}
	list := make([]liveVideo, 0, len(counts))
	for video, n := range counts {
		list = append(list, liveVideo{video, n})
	}
	slices.SortFunc(list, func(a, b liveVideo) int {
		return cmp.Or(cmp.Compare(b.LiveViewers, a.LiveViewers), strings.Compare(a.Video, b.Video))
	})
	return list[:min(len(list), maxListed)], nil
}

// findSession returns the running session that the path names.
func (c *call) findSession() (sessions.Info, error) {
	if c.Sessions == nil {
		return sessions.Info{}, errSessionsOff
	}
	id, err := sessions.ParseID(c.subject)
	if err != nil {
		return sessions.Info{}, badRequest("session id %.80q: want the 32 hexadecimal digits that the lists have", c.subject)
	}
	info, found, err := c.Sessions.Find(c.ctx(), id)
	if err == nil && !found {
		err = refuse(http.StatusNotFound, codeNotFound, "no session %q runs", c.subject)
	}
	return info, err
}

// endSession ends a session for good. The revocation holds where the session is not known,
// or not any more.
func (c *call) endSession(strictjson.Value) (any, error) {
	info, err := c.findSession()
	if err != nil {
		return nil, err
	}
	until := info.Expires
	if until.IsZero() {
		until = c.Now().Add(endedWithoutToken)
	}
	// Another node may extend the session before it knows of its end.
	until = until.Add(c.MaxSession)
	if extended := c.State.ExtendedUntil(c.ctx(), c.subject); extended.After(until) {
		until = extended
	}
	ended := &state.Revocation{Selector: state.SelectSession, Value: c.subject, Expires: until.Unix(), Reason: "ended by the control API"}
	if until.After(c.Now()) {
		if err := c.State.Refuse(c.ctx(), []*state.Revocation{ended}); err != nil {
			return nil, err
		}
	}
	return nil, c.Sessions.End(c.ctx(), info.ID)
}

// endedWithoutToken is how long the end of a session without a token holds.
const endedWithoutToken = 24 * time.Hour

// extendSession lets a session play beyond its token.
func (c *call) extendSession(body strictjson.Value) (any, error) {
	if c.Sessions != nil && c.MaxSession == 0 {
		return nil, refuse(http.StatusForbidden, codeForbidden, "no session may be extended; the global option max_session says for how long")
	}
	var until time.Time
	if err := (members{"until": dateMember("until", &until)}).read(body); err != nil {
		return nil, err
	}
	info, err := c.findSession()
	switch {
	case err != nil:
		return nil, err
	case !until.After(c.Now()):
		return nil, badRequest("until: want Unix seconds in the future")
	case info.Expires.IsZero():
		return nil, badRequest("the session has no token, so it does not expire")
	case until.After(info.Expires.Add(c.MaxSession)):
		latest := info.Expires.Add(c.MaxSession)
		return nil, badRequest("until is later than %d (%s), which is max_session (%s) after the exp of the token", latest.Unix(), latest.UTC().Format(time.RFC3339), c.MaxSession)
	}
	if err := c.State.Extend(c.ctx(), c.subject, until); err != nil {
		return nil, err
	}
	c.Sessions.Extend(info.ID, until)
	c.changed = []zap.Field{zap.Time("until", until)}
	return map[string]any{"id": c.subject, "until": until.Unix()}, nil
}

var errSessionsOff = refuse(http.StatusForbidden, codeForbidden, "playback sessions are off; the global option `sessions on` counts them")
