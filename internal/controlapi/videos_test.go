package controlapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
)

// The API refuses a member that it does not understand, and changes nothing: the caller
// may have meant to make a video private.
func TestVideoEditsThatAreRefused(t *testing.T) {
	t.Parallel()
	c := control(t, func(config *Config) {
		config.CheckRules = func(json.RawMessage) ([]string, error) { return nil, errors.New("refused by the gate") }
	})
	long := make([]string, 150)
	for i := range long {
		long[i] = fmt.Sprintf("%03d.%s.example", i, strings.Repeat("a", 50))
	}
	many := `["` + strings.Repeat(`a.example","`, weborigin.MaxPatterns) + `a.example"]`
	for why, bodies := range map[string][]string{
		"requireSignedURLs is": {
			`{"requireSignedURLs":"true"}`, `{"requireSignedURLs":1}`, `{"requireSignedURLs":null}`, `{"requireSignedURLs":[true]}`,
		},
		"refused by the gate": {
			`{"accessRules":{}}`, `{"accessRules":[{"type":"refused by the gate"}]}`, `{"requireSignedURLs":true,"accessRules":"block"}`, `{"accessRules":[null]}`,
		},
		"allowedOrigins is not": {`{"allowedOrigins":null}`, `{"allowedOrigins":"example.com"}`, `{"allowedOrigins":{}}`},
		"want strings":          {`{"allowedOrigins":[1]}`, `{"allowedOrigins":[null]}`, `{"allowedOrigins":[["example.com"]]}`},
		"allowed origin": { // more in internal/weborigin
			`{"allowedOrigins":["https://example.com"]}`, `{"allowedOrigins":["example.com","//example.com"]}`, `{"allowedOrigins":[""]}`,
			`{"allowedOrigins":["example.com; script-src *"]}`, `{"allowedOrigins":["example.com\r\nX-Evil: 1"]}`,
		},
		"more than 200": {`{"allowedOrigins":` + many + `}`},
		"longer than":   {`{"allowedOrigins":` + string(must(json.Marshal(long))) + `}`},
		"uid is":        {`{"uid":"w"}`, `{"uid":"V"}`, `{"uid":null}`, `{"uid":1}`},
		"meta is":       {`{"meta":null}`, `{"meta":[]}`, `{"meta":"{}"}`},
		"creator is":    {`{"creator":1}`, `{"creator":{}}`},

		"maxDurationSeconds is":    {`{"maxDurationSeconds":"1"}`, `{"maxDurationSeconds":true}`},
		"thumbnailTimestampPct is": {`{"thumbnailTimestampPct":null}`, `{"thumbnailTimestampPct":"0.5"}`},
		"publicDetails is":         {`{"publicDetails":[]}`},
		"scheduledDeletion is":     {`{"scheduledDeletion":"tomorrow"}`, `{"scheduledDeletion":""}`, `{"scheduledDeletion":1800000000}`},
		"availableFrom is":         {`{"availableFrom":"2030-01-02"}`, `{"availableFrom":1893553445}`, `{"availableFrom":""}`, `{"availableFrom":"2030-02-30T00:00:00Z"}`, `{"availableFrom":"0001-01-01T00:00:00Z"}`},
		"availableUntil is":        {`{"availableUntil":"2030-01-02 03:04:05Z"}`, `{"availableUntil":["2030-01-02T03:04:05Z"]}`, `{"availableUntil":"2030-01-02T03:04:05"}`},
		"uploadExpiry is":          {`{"uploadExpiry":"2026-01-02"}`},
		"unknown member": {
			`{"requiresignedurls":true}`, `{"requireSignedUrls":true}`, `{"allowed_origins":[]}`, `{"access_rules":[]}`, `{"available_from":null}`, `{"availableTo":null}`, `{"AccessRules":[]}`, `{"missingOrigin":"allow"}`, `{"require\u017fignedURLs":false}`,
			`{"":false}`, `{"__proto__":{"requireSignedURLs":false}}`, `{"\"},\"success\":true,\"x\":\"":1}`, `{"` + strings.Repeat("x", 60_000) + `":1}`,
			`{"requireSignedURLs":false,"unknown":1}`,
		},
	} {
		for _, body := range bodies {
			a := c.call(t, "POST", "v", body)
			wantReply(t, body, a, 400, codeBadRequest)
			if checked := c.call(t, "POST", "v/check", body); !cmp.Equal(checked.errors, a.errors) {
				t.Errorf("a check of %s says %v, and the call says %v", body, checked.errors, a.errors)
			}
			if len(a.errors) > 0 && (!strings.Contains(a.errors[0].Message, why) || len(a.errors[0].Message) > 1000) {
				t.Errorf("%s is refused with %q, want %q in it", body, a.errors[0].Message, why)
			}
		}
	}
	if got := c.store.Count("update"); got != 0 {
		t.Errorf("%d changes, want none", got)
	}
}

// unsetVideo is a video without settings. It has all members of Cloudflare's: an SDK that
// decodes it finds what it needs, and null where Cloudflare documents null.
const unsetVideo = `{"accessRules":null,"allowedOrigins":[],"availableFrom":null,"availableUntil":null,"clippedFrom":null,"created":null,"creator":null,"duration":-1,"input":{"height":-1,"width":-1},
	"maxDurationSeconds":null,"maxSizeBytes":null,"meta":{},"modified":null,
	"playback":{"dash":"https://media.example.com/v/ID/manifest/video.mpd","hls":"https://media.example.com/v/ID/manifest/video.m3u8"},
	"preview":"https://media.example.com/v/ID/iframe","publicDetails":null,"readyToStream":true,"readyToStreamAt":null,"requireSignedURLs":true,
	"scheduledDeletion":null,"size":0,"status":{"errorReasonCode":"","errorReasonText":"","pctComplete":"100.000000","state":"ready"},
	"thumbnail":"https://media.example.com/v/ID/thumbnails/thumbnail.jpg","thumbnailTimestampPct":0,"uid":"ID","uploadExpiry":null,"uploaded":null,
	"watermark":null}`

// wantVideo checks all members of a video: those of unsetVideo, changed by objects in JSON.
func (c controlled) wantVideo(t *testing.T, a reply, id string, changes ...string) {
	t.Helper()
	want, got := make(map[string]json.RawMessage), resultOf[map[string]json.RawMessage](t, "a call of "+id, a)
	for _, object := range append([]string{strings.ReplaceAll(unsetVideo, "ID", id)}, changes...) {
		if err := json.Unmarshal([]byte(object), &want); err != nil {
			t.Fatalf("%s: %v", object, err)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the video (-want +got):\n%s", diff)
	}
}

// creationDates are the dates of a video that is made at testTime.
const creationDates = `{"created":"2027-01-15T08:00:00.000000Z","modified":"2027-01-15T08:00:00.000000Z","uploaded":"2027-01-15T08:00:00.000000Z",
	"readyToStreamAt":"2027-01-15T08:00:00.000000Z"}`

// An edit changes the members that it contains and no other; null removes a describing
// member; a client can send back the video that it got; DELETE removes all settings.
func TestPartialUpdates(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	c.wantVideo(t, c.call(t, "GET", "v", ""), "v")
	for _, body := range []string{"", "{}", `{"uid":"v"}`, `{"size":7,"created":"never","playback":{},"status":"x","liveInput":null}`} { // nothing to change
		c.wantVideo(t, c.call(t, "POST", "v", body), "v")
	}
	if c.store.Count("update") != 0 {
		t.Error("an edit that changes nothing writes to the store")
	}
	wanted := []string{creationDates}
	for i, body := range []string{
		`{"requireSignedURLs":false}`, `{"allowedOrigins":["Example.COM","*.example.org:8443"]}`, `{"uid":"v","meta":{"name":"A \"b\"","n":[1,2.50,{"x":null}]}}`,
		`{"creator":"c","maxDurationSeconds":1.5,"publicDetails":{"title":"t"},"scheduledDeletion":"2030-01-02T03:04:05Z"}`,
		`{"thumbnailTimestampPct":0.5,"uploadExpiry":"2030-01-02T03:04:05.123+01:00"}`, `{"meta":{}}`, `{"creator":null,"scheduledDeletion":null}`,
		`{"publicDetails":null,"maxDurationSeconds":null,"uploadExpiry":null}`, `{"allowedOrigins":[]}`, `{"requireSignedURLs":true}`,
		`{"accessRules":[{"type":"any","action":"block"}]}`, `{"accessRules":[]}`, `{"accessRules":null}`,
		`{"availableFrom":"2030-01-02T03:04:05.25+01:00"}`, `{"availableUntil":"2030-01-02T03:04:06Z"}`, `{"availableFrom":null}`,
		`{"availableFrom":"2020-01-01T00:00:00Z","availableUntil":"2020-01-01T00:00:01Z"}`, `{"availableUntil":null,"availableFrom":null}`,
	} {
		unchanged := wanted[:len(wanted)*min(i, 1)] // no dates before the first edit
		c.wantVideo(t, c.call(t, "POST", "v/check", body), "v", append(slices.Clone(unchanged), body)...)
		c.wantVideo(t, c.call(t, "GET", "v", ""), "v", unchanged...)
		wanted = append(wanted, body, fmt.Sprintf(`{"modified":%q}`, formatTime(*c.clock)))
		c.wantVideo(t, c.call(t, "POST", "v", body), "v", wanted...)
		got := c.call(t, "GET", "v", "")
		c.wantVideo(t, got, "v", wanted...)
		c.wantVideo(t, c.call(t, "POST", "v", string(got.result)), "v", wanted...)
		*c.clock = c.clock.Add(time.Second)
	}
	a := c.call(t, "DELETE", "v", "")
	if wantReply(t, "DELETE", a, 200, 0); string(a.result) != "null" {
		t.Errorf("DELETE = %s", a.raw)
	}
	c.wantVideo(t, c.call(t, "GET", "v", ""), "v")
	wantReply(t, "DELETE again", c.call(t, "DELETE", "v", ""), 200, 0)
	if data := c.store.data(store.Videos, "v"); data != "" {
		t.Errorf("the store has %s", data)
	}
}

// A schedule in which the video never plays is refused, also if only one of its ends is sent.
func TestScheduleThatNeverPlays(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	const until = `{"availableUntil":"2030-01-02T03:04:05Z"}`
	c.wantVideo(t, c.call(t, "POST", "v", until), "v", creationDates, until)
	for _, body := range []string{
		`{"availableFrom":"2030-01-02T03:04:05Z"}`, `{"availableFrom":"2030-01-02T03:04:05.001Z","creator":"x"}`,
		`{"availableFrom":"2030-01-02T03:04:06Z","availableUntil":"2030-01-02T04:04:06+01:00"}`,
	} {
		a := c.call(t, "POST", "v", body)
		checked := c.call(t, "POST", "v/check", body)
		if wantReply(t, body, a, 400, codeBadRequest); !strings.Contains(a.raw, "not before") || checked.raw != a.raw {
			t.Errorf("%s: %s", body, a.raw)
		}
		c.wantVideo(t, c.call(t, "GET", "v", ""), "v", creationDates, until)
	}
}

// A member that nobody has set has the default, also if the default changes later. A member
// that is set to the value of the default keeps it. An edit is in force at the gate when
// the client gets the answer.
func TestDefaultsAndEditsInForce(t *testing.T) {
	t.Parallel()
	defaults := VideoSettings{RequireSignedURLs: false, AllowedOrigins: []string{"default.example"}}
	c := control(t, func(config *Config) { config.Defaults = defaults })
	inForce := func(want string) {
		t.Helper()
		got, err := c.State.Video(t.Context(), "v")
		if text := string(must(json.Marshal(got))); err != nil || text != want {
			t.Errorf("the gate has the settings %s, %v, want %s", text, err, want)
		}
	}
	const defaulted = `{"requireSignedURLs":false,"allowedOrigins":["default.example"]}`
	c.wantVideo(t, c.call(t, "GET", "v", ""), "v", defaulted)
	c.wantVideo(t, c.call(t, "POST", "v", `{"creator":"x"}`), "v", creationDates, defaulted, `{"creator":"x"}`)
	inForce(`{"RequireSignedURLs":null,"AllowedOrigins":null,"OriginsSet":false,"AccessRules":null,"AvailableFrom":"0001-01-01T00:00:00Z","AvailableUntil":"0001-01-01T00:00:00Z","Purged":0,"OnlyPurged":false}`)
	if data := c.store.data(store.Videos, "v"); strings.Contains(data, "requireSignedURLs") || strings.Contains(data, "allowedOrigins") {
		t.Errorf("the store has the defaults: %s", data)
	}
	const edit = `{"requireSignedURLs":true,"allowedOrigins":[]}`
	c.wantVideo(t, c.call(t, "POST", "v", edit), "v", creationDates, edit, `{"creator":"x"}`)
	inForce(`{"RequireSignedURLs":true,"AllowedOrigins":null,"OriginsSet":true,"AccessRules":null,"AvailableFrom":"0001-01-01T00:00:00Z","AvailableUntil":"0001-01-01T00:00:00Z","Purged":0,"OnlyPurged":false}`)
	wantReply(t, "POST", c.call(t, "POST", "v", `{"requireSignedURLs":false}`), 200, 0)
	inForce(`{"RequireSignedURLs":false,"AllowedOrigins":null,"OriginsSet":true,"AccessRules":null,"AvailableFrom":"0001-01-01T00:00:00Z","AvailableUntil":"0001-01-01T00:00:00Z","Purged":0,"OnlyPurged":false}`)
	wantReply(t, "DELETE", c.call(t, "DELETE", "v", ""), 200, 0)
	inForce("null")
	// An answer has a copy of the defaults.
	if c.describe(&state.VideoDocument{})["allowedOrigins"].([]string)[0] = "changed"; defaults.AllowedOrigins[0] != "default.example" {
		t.Error("a described video shares the list of the defaults")
	}
}

// An answer warns that the API deletes no video on a date, and that a video becomes public
// with its settings deleted.
func TestWarningsAboutVideos(t *testing.T) {
	t.Parallel()
	const private, public, unset, broken = `{"uid":"v","requireSignedURLs":true}`, `{"uid":"v","requireSignedURLs":false}`, `{"uid":"v"}`, "broken"
	for _, tc := range []struct {
		before          string // in the store
		publicByDefault bool
		method, body    string
		want            string // in the warning; "" for none
	}{
		{"", false, "POST", `{"scheduledDeletion":"2030-01-02T03:04:05Z"}`, "deletes nothing"},
		{"", false, "POST", `{"creator":"x"}`, ""},
		{private, true, "DELETE", "", "without a token"},
		{broken, true, "DELETE", "", "without a token"},
		{private, false, "DELETE", "", ""},
		{broken, false, "DELETE", "", ""},
		{public, true, "DELETE", "", ""},
		{unset, true, "DELETE", "", ""},
		{"", true, "DELETE", "", ""},
	} {
		c := control(t, func(config *Config) { config.Defaults.RequireSignedURLs = !tc.publicByDefault })
		if tc.before != "" {
			c.store.plant(store.Videos, "v", tc.before)
		}
		a := c.call(t, tc.method, "v", tc.body)
		wantReply(t, tc.method, a, 200, 0)
		warned := len(a.messages) == 1 && a.messages[0].Code == codeWarning && strings.Contains(a.messages[0].Message, tc.want)
		if tc.want == "" && len(a.messages) != 0 || tc.want != "" && !warned {
			t.Errorf("%s of %q, public by default: %t: the messages are %v, want %q", tc.method, tc.before, tc.publicByDefault, a.messages, tc.want)
		}
	}
}

// Settings of the config file take precedence. The API returns them and refuses to change
// them: a change that the API accepts must have an effect.
func TestVideosOfTheConfigFile(t *testing.T) {
	t.Parallel()
	c := control(t, func(config *Config) {
		config.Videos = map[string]VideoSettings{"open": {AllowedOrigins: []string{"default.example"}}, "site": {true, []string{"site.example"}, json.RawMessage(`[]`), nil, &testTime}}
	})
	c.store.plant(store.Videos, "open", `{"uid":"open","requireSignedURLs":true,"created":"2020-01-01T00:00:00Z","descriptive":{"creator":"x"}}`)
	c.store.plant(store.Videos, "site", "")
	c.wantVideo(t, c.call(t, "GET", "open", ""), "open", `{"requireSignedURLs":false,"allowedOrigins":["default.example"]}`)
	c.wantVideo(t, c.call(t, "GET", "site", ""), "site", `{"allowedOrigins":["site.example"],"accessRules":[],"availableUntil":"2027-01-15T08:00:00Z"}`)
	for _, id := range []string{"open", "site"} {
		wantReply(t, "POST", c.call(t, "POST", id, `{"requireSignedURLs":true}`), 403, codeForbidden)
		wantReply(t, "POST of nothing", c.call(t, "POST", id, ""), 403, codeForbidden)
		wantReply(t, "DELETE", c.call(t, "DELETE", id, ""), 403, codeForbidden)
		wantReply(t, "POST of nonsense", c.call(t, "POST", id, `{"x":1}`), 400, codeBadRequest)
	}
	if c.store.Count("update", "get") != 0 {
		t.Error("a call for a video of the config file asks the store")
	}
}

// S4: damaged settings are an error and not the defaults. An edit does not overwrite them;
// DELETE removes them.
func TestDamagedVideos(t *testing.T) {
	t.Parallel()
	for what, data := range map[string]string{"damaged": "", "of another video": `{"uid":"w"}`} {
		c := control(t, nil)
		c.store.plant(store.Videos, "v", data)
		wantReply(t, what+": GET", c.call(t, "GET", "v", ""), 503, codeUnavailable)
		wantReply(t, what+": POST", c.call(t, "POST", "v", `{"requireSignedURLs":false}`), 503, codeUnavailable)
		if after := c.store.data(store.Videos, "v"); after != data {
			t.Errorf("%s: the object is %q now", what, after)
		}
		wantReply(t, what+": DELETE", c.call(t, "DELETE", "v", ""), 200, 0)
		c.wantVideo(t, c.call(t, "GET", "v", ""), "v")
	}
}

// A purge needs no settings, changes none and makes none, also for a video of the config file.
func TestPurgeVideo(t *testing.T) {
	t.Parallel()
	c := control(t, func(config *Config) { config.Videos = map[string]VideoSettings{"configured": {}} })
	c.call(t, "POST", "v", `{"requireSignedURLs":false}`)
	before := c.call(t, "GET", "v", "").raw
	for _, id := range []string{"v", "unknown", "configured"} {
		a := c.call(t, "POST", id+"/purge", "")
		wantReply(t, id, a, 200, 0)
		if want := fmt.Sprintf(`{"purged":%q,"uid":%q}`, formatTime(testTime), id); string(a.result) != want {
			t.Errorf("%s: %s, want %s", id, a.result, want)
		}
	}
	if after := c.call(t, "GET", "v", "").raw; after != before {
		t.Errorf("the settings were %s and are %s", before, after)
	}
	if a := c.call(t, "GET", "", ""); strings.Contains(a.raw, "unknown") {
		t.Errorf("the list has a video without settings: %s", a.raw)
	}
	for path, status := range map[string]int{"not.an.id/purge": 400, "videos/purge": 400, "keys/purge": 404, "v/purge/": 404, "v/Purge": 404} {
		wantReply(t, path, c.call(t, "POST", path, ""), status, 0)
	}
	wantReply(t, "a method", c.call(t, "GET", "v/purge", ""), 404, codeRoute)
	wantReply(t, "a member", c.call(t, "POST", "v/purge", `{"files":["a"]}`), 400, codeBadRequest)
	c.store.plant(store.Videos, "broken", "broken")
	wantReply(t, "damage", c.call(t, "POST", "broken/purge", ""), 503, codeUnavailable)
}
