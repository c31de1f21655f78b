package controlapi

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
)

// Sessions are the playback sessions of the fleet. Errors wrap sessions.ErrUnavailable.
type Sessions interface {
	ListVideo(ctx context.Context, video string) ([]sessions.Info, error)
	ListViewer(ctx context.Context, uid string) ([]sessions.Info, error)
	Find(ctx context.Context, id sessions.ID) (info sessions.Info, found bool, err error)
	End(ctx context.Context, id sessions.ID) error
}

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
func (c *call) listSessions(readers map[string]func(string) error, read func() ([]sessions.Info, error)) (any, error) {
	if c.Sessions == nil {
		return nil, errSessionsOff
	}
	page, err := parsePage(c.request.URL.RawQuery, readers)
	if err != nil {
		return nil, err
	}
	leave, err := c.enterList()
	if err != nil {
		return nil, err
	}
	defer leave()
	all, err := read()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(info sessions.Info) bool { return !page.covers(info.Started) })
	slices.SortFunc(all, func(a, b sessions.Info) int {
		return page.order(a.Started, b.Started, a.ID.String(), b.ID.String())
	})
	list := []listedSession{}
	for _, info := range all[:min(len(all), page.limit)] {
		list = append(list, listed(info))
	}
	if page.counts {
		c.counts = &listCounts{strconv.Itoa(len(all)), strconv.Itoa(len(list))}
	}
	return list, nil
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

// endSession ends a session for good.
func (c *call) endSession(strictjson.Value) (any, error) {
	info, err := c.findSession()
	if err != nil {
		return nil, err
	}
	return nil, c.Sessions.End(c.ctx(), info.ID)
}

var errSessionsOff = refuse(http.StatusForbidden, codeForbidden, "playback sessions are off; the global option `sessions on` counts them")
