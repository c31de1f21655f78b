package controlapi

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/sessions"
)

// television is a sessions.Client.
type television struct{}

func (television) Country() string   { return "CH" }
func (television) UserAgent() string { return "TV/1" }

func (television) Admit(context.Context, sessions.ID) (sessions.Terms, error) {
	return sessions.Terms{}, nil
}

// watched makes a control API of which three sessions run: 1 and 2 of anna, 2 and 3 of a film.
func watched(t *testing.T) controlled {
	t.Helper()
	var tracker *sessions.Tracker
	c := control(t, func(config *Config) {
		tracker = sessions.New(sessions.Config{
			Policy: sessions.Policy{Timeout: time.Minute}, Now: config.Now, Ended: func(sessions.Event) {}, Dropped: func(string) {}, Extended: func(sessions.ID) time.Time { return time.Time{} }, Shared: func([]sessions.Sharing) {}, Revoked: func() func(sessions.ID) bool { return nil },
		})
		config.Sessions = tracker
	})
	for i, v := range []sessions.Visit{{Video: "clip", Viewer: "anna"}, {Video: "film", Viewer: "anna"}, {Video: "film", Viewer: sessions.Unnamed + "a token"}} {
		v.Key, v.Begins, v.Client, v.Address, v.Expires = sessions.Key{byte(i + 1)}, true, television{}, netip.MustParseAddr("192.0.2.7"), testTime.Add(time.Hour)
		if _, err := tracker.Visit(context.Background(), v); err != nil {
			t.Fatal(err)
		}
		*c.clock = c.clock.Add(time.Second)
	}
	return c
}

func sessionID(n byte) string { return sessions.Key{n}.ID().String() }

func TestSessionLists(t *testing.T) {
	t.Parallel()
	c := watched(t)
	a := c.call(t, "GET", "film/sessions?limit=1&include_counts=true", "")
	want := fmt.Sprintf(`[{"id":%q,"uid":"","video":"film","started":"2027-01-15T08:00:02.000000Z","lastSeen":"2027-01-15T08:00:02.000000Z","country":"CH","network":"192.0.2.0/24","userAgent":"TV/1"}]`, sessionID(3))
	if string(a.result) != want || a.total != "2" {
		t.Errorf("the newest session: %s of %q, want %s", a.result, a.total, want)
	}
	for path, want := range map[string][]string{
		"film/sessions": {sessionID(3), sessionID(2)}, "film/sessions?asc=true": {sessionID(2), sessionID(3)}, "other/sessions": nil,
		"film/sessions?before=2027-01-15T08:00:02Z": {sessionID(2)}, "sessions?uid=anna": {sessionID(2), sessionID(1)},
		"sessions?uid=anna&after=2027-01-15T08:00:00.5Z": {sessionID(2)}, "sessions?uid=berta": nil,
	} {
		var got []string
		for _, session := range resultOf[[]listedSession](t, path, c.call(t, "GET", path, "")) {
			got = append(got, session.ID)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
	for _, path := range []string{"sessions", "sessions?uid=", "sessions?video=film", "film/sessions?uid=anna", "film/sessions?limit=0", "sessions?uid=a&uid=b", "sessions?uid=%00a%20token"} {
		wantReply(t, path, c.call(t, "GET", path, ""), 400, codeBadRequest)
	}
}

// The most watched videos come first. A video may have a name of this API.
func TestLiveVideos(t *testing.T) {
	t.Parallel()
	c := watched(t)
	if a := c.call(t, "GET", "sessions/live", ""); string(a.result) != `[{"video":"film","liveViewers":2},{"video":"clip","liveViewers":1}]` {
		t.Errorf("live = %s", a.raw)
	}
	*c.clock = c.clock.Add(time.Hour)
	if a := c.call(t, "GET", "sessions/live", ""); string(a.result) != `[]` {
		t.Errorf("live, after the sessions have timed out = %s", a.raw)
	}
	wantReply(t, "GET live/sessions", c.call(t, "GET", "live/sessions", ""), 200, 0)
	for _, path := range []string{"sessions/live/", "sessions/liv", "sessions/live/x"} {
		wantReply(t, path, c.call(t, "GET", path, ""), 404, codeRoute)
	}
}

func TestEndSession(t *testing.T) {
	t.Parallel()
	c := watched(t)
	wantReply(t, "a session that runs", c.call(t, "DELETE", "sessions/"+sessionID(2), ""), 200, 0)
	for id, status := range map[string]int{sessionID(2): 404, sessionID(9): 404, "": 400, "a/b": 400, sessionID(1)[1:]: 400, sessionID(1) + "/": 400, "%2e": 400} {
		wantReply(t, id, c.call(t, "DELETE", "sessions/"+id, ""), status, 0)
	}
	if a := c.call(t, "GET", "sessions?uid=anna&include_counts=true", ""); a.total != "1" {
		t.Errorf("%s sessions run", a.total)
	}
}

// A revocation of a session ends it at once, as DELETE does, and no other.
func TestRevokeSession(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{"session":%q,"expires":1900000000}`, `[{"jti":"x","expires":1900000000},{"session":%q,"expires":1900000000}]`} {
		c := watched(t)
		a := c.call(t, "POST", "revocations", fmt.Sprintf(body, sessionID(2)))
		wantReply(t, body, a, 200, 0)
		if a := c.call(t, "GET", "sessions?uid=anna&include_counts=true", ""); a.total != "1" {
			t.Errorf("%s: %s sessions of the viewer run, want 1", body, a.total)
		}
		if a := c.call(t, "GET", "film/sessions?include_counts=true", ""); a.total != "1" {
			t.Errorf("%s: %s sessions of the film run, want that of another viewer", body, a.total)
		}
	}
}

// A session plays on for as long as max_session permits, and no longer.
func TestExtendSession(t *testing.T) {
	t.Parallel()
	c := watched(t)
	path, exp := "sessions/"+sessionID(2), testTime.Add(time.Hour).Unix()
	extend := func(until any) reply { return c.call(t, "POST", path, fmt.Sprintf(`{"until":%v}`, until)) }
	wantReply(t, "without max_session", extend(exp+1), 403, codeForbidden)
	c.MaxSession = 2 * time.Hour
	for _, until := range []any{exp + 7201, testTime.Unix(), -1, 0, `"soon"`, 1.5, "null"} {
		wantReply(t, fmt.Sprint(until), extend(until), 400, codeBadRequest)
	}
	for body, status := range map[string]int{`{}`: 400, `{"until":1,"until":2}`: 400, `{"till":1900000000}`: 400} {
		wantReply(t, body, c.call(t, "POST", path, body), status, codeBadRequest)
	}
	wantReply(t, "an unknown session", c.call(t, "POST", "sessions/"+sessionID(9), fmt.Sprintf(`{"until":%d}`, exp)), 404, codeNotFound)
	if got := c.State.ExtendedUntil(t.Context(), sessionID(2)); !got.IsZero() {
		t.Errorf("refused calls have extended the session until %s", got)
	}
	for _, until := range []int64{exp + 7200, exp + 60} { // the last one counts
		if a := extend(until); a.status != 200 || string(a.result) != fmt.Sprintf(`{"id":%q,"until":%d}`, sessionID(2), until) {
			t.Errorf("extend until %d = %s", until, a.raw)
		}
		if got := c.State.ExtendedUntil(t.Context(), sessionID(2)).Unix(); got != until {
			t.Errorf("extended until %d, want %d", got, until)
		}
	}
	wantReply(t, "the end", c.call(t, "DELETE", path, ""), 200, 0)
	if err := c.State.Extend(t.Context(), sessionID(2), time.Unix(exp+7200, 0)); err != nil { // by a node that does not know of the end yet
		t.Fatal(err)
	}
	*c.clock = time.Unix(exp+7199, 0)
	if c.State.Revocations().Session(sessionID(2), *c.clock) == nil {
		t.Error("the session may come back while its extension lasts")
	}
}

func TestSessionCallsWithoutSessions(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	for path, method := range map[string]string{"film/sessions": "GET", "sessions?uid=anna": "GET", "sessions/live": "GET", "sessions/" + sessionID(1): "DELETE"} {
		wantReply(t, path, c.call(t, method, path, ""), 403, codeForbidden)
	}
}
