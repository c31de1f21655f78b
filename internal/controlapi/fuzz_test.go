package controlapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// FuzzBodies holds of the bodies of calls that what is accepted is done, to the
// letter: a token says what was asked for, as any other reader of JSON sees it, and
// settings are kept and returned as they were sent. A video that is sent back as it
// was returned changes nothing.
func FuzzBodies(f *testing.F) {
	for _, body := range []string{
		`{}`, `null`, ``, `{"exp":1800003600,"nbf":1799996400,"downloadable":true}`, `{"exp":0,"nbf":0,"accessRules":[],"flags":{}}`,
		`{"exp":1800086400,"accessRules":[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]}`,
		`{"accessRules":null}`, `{"accessRules":[{"type":"ip.src","ip":["203.0.113.0/24","::1"],"action":"block"}]}`, `{"flags":{"original":false}}`,
		`{"exp":1800086401}`, `{"exp":1.8e9}`, `{"exp":-0}`, `{"exp":1800003600,"exp":0}`, `{"Exp":1800003600}`, `{"downloadable":"true"}`,
		`{"requireSignedURLs":false,"allowedOrigins":["example.com","*.example.com:8443"]}`, `{"allowedOrigins":[]}`, `{"allowedOrigins":["*"]}`,
		`{"meta":{"name":"<\u2028>","x":[1e400,{"a":null}]},"creator":"me","thumbnailTimestampPct":0.50}`, `{"creator":null,"maxDurationSeconds":null}`,
		`{"uid":"demo","scheduledDeletion":"2030-01-02T03:04:05.678+01:00","publicDetails":{"title":"t"},"size":1,"status":{"state":"ready"}}`,
		`{"uid":"other"}`, `{"requireSignedURLs":null}`, `{"meta":[]}`, `{"allowedOrigins":["https://example.com"]}`, `[]`, `{`, "\fnull", "\u00a0",
	} {
		f.Add(body)
	}
	c := &call{subject: "demo", Server: control(f, func(config *Config) { config.PublicURL = "https://media.example.com" }).Server}
	f.Fuzz(func(t *testing.T, text string) {
		c := *c
		c.request = &http.Request{Body: io.NopCloser(strings.NewReader(text))}
		body, err := c.body(nil)
		if err != nil {
			return
		}
		checkMint(t, &c, text, body)
		checkEdit(t, &c, body)
	})
}

// checkMint holds that a body which mints a token mints the one that it asks for.
func checkMint(t *testing.T, c *call, text string, body strictjson.Value) {
	t.Helper()
	mint, err := c.parseMintRequest(body)
	if err != nil {
		return
	}
	claims, err := mint.claims("demo", testTime)
	if err != nil {
		return
	}
	compact, err := token.SignWithTextDates(claims, testKey())
	if err != nil {
		// It may be too long. What else there may be is refused before.
		if len(text) < token.MaxLength/10 {
			t.Fatalf("%q is accepted, and then: %v", text, err)
		}
		return
	}
	got, err := token.Verify(compact, must(token.NewKeySet(testKey().Public())), testTime, token.Policy{})
	if err != nil {
		t.Fatalf("the token for %q does not play: %v", text, err)
	}
	var asked struct {
		Expires      int64           `json:"exp"`
		NotBefore    int64           `json:"nbf"`
		Downloadable bool            `json:"downloadable"`
		AccessRules  json.RawMessage `json:"accessRules"`
	}
	if err := json.Unmarshal([]byte(text), &asked); err != nil && strings.TrimSpace(text) != "" {
		t.Fatalf("another reader refuses %q: %v", text, err)
	}
	want := token.Claims{
		VideoID: "demo", KeyID: testKey().ID(), Downloadable: asked.Downloadable,
		ExpiresAt: testTime.Add(time.Hour), NotBefore: testTime.Add(-time.Hour),
	}
	if asked.Expires != 0 {
		want.ExpiresAt = time.Unix(asked.Expires, 0)
	}
	if asked.NotBefore != 0 {
		want.NotBefore = time.Unix(asked.NotBefore, 0)
	}
	got.AccessRules = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("the token for %q (-want +got):\n%s", text, diff)
	}
	var one, other any
	if json.Unmarshal(asked.AccessRules, &one) == nil && json.Unmarshal(claims.AccessRules, &other) == nil && !reflect.DeepEqual(one, other) {
		t.Fatalf("another reader sees other rules in %q than the token has: %s", text, claims.AccessRules)
	}
}

// checkEdit holds that settings survive being kept, returned and sent back.
func checkEdit(t *testing.T, c *call, body strictjson.Value) {
	t.Helper()
	edit, err := c.parseEdit(body)
	if err != nil {
		return
	}
	if edit.AllowedOrigins != nil {
		if _, err := weborigin.Compile(*edit.AllowedOrigins); err != nil {
			t.Fatalf("viewers are refused after %s: %v", body.Raw(), err)
		}
	}
	doc := state.VideoDocument{UID: "demo", Created: testTime, Modified: testTime}
	applyEdit(edit, &doc)
	kept, err := json.Marshal(&doc)
	if err != nil {
		t.Fatalf("%s cannot be kept: %v", body.Raw(), err)
	}
	read := new(state.VideoDocument)
	if err := json.Unmarshal(kept, read); err != nil {
		t.Fatalf("%s is kept as %s: %v", body.Raw(), kept, err)
	}
	returned := must(json.Marshal(c.describe(read, c.Defaults)))
	back, err := strictjson.Parse(returned, maxBodyDepth)
	if err != nil {
		t.Fatalf("what is returned, %s, cannot be sent: %v", returned, err)
	}
	again, err := c.parseEdit(back)
	if err != nil {
		t.Fatalf("what is returned, %s, is refused: %v", returned, err)
	}
	applyEdit(again, read)
	if now := must(json.Marshal(c.describe(read, c.Defaults))); !bytes.Equal(now, returned) {
		t.Fatalf("sending back %s makes it %s", returned, now)
	}
}

// FuzzListQuery holds that a list has the videos that its query asks for, the
// first of them in their order, that asking again for what was listed lists the
// same, and that the order of parameters decides nothing.
func FuzzListQuery(f *testing.F) {
	for _, query := range []string{
		"", "id=a,b", "name=One&asc=true", "search=ONE", "search=%C4%B0", "creator=", "creator=me&limit=1", "per_page=2&asc=1", "include_counts=true",
		"start=2027-01-15T08:00:01Z", "after=2027-01-15T08:00:01Z&before=2027-01-15T08:00:04Z", "end=0000-01-01T00:00:00Z", "status=ready&type=vod",
		"status=error", "live_input_id=", "limit=0", "limit=1001", "id=a&id=b", "ID=a", "video_name=One;", "a=%zz", "limit=2&per_page=3", "start=&end=",
	} {
		f.Add(query)
	}
	videos := listableVideos()
	f.Fuzz(func(t *testing.T, query string) {
		filter, err := parseVideoFilter(query)
		if err != nil {
			if filter != nil {
				t.Fatalf("parseVideoFilter(%q) = %+v, %v", query, filter, err)
			}
			return
		}
		listed := idsListed(filter, videos, slices.Collect(maps.Keys(videos)))
		if diff := cmp.Diff(listed, idsListed(filter, videos, slices.Sorted(maps.Keys(videos)))); diff != "" {
			t.Fatalf("the list for %q, of the videos in another order: %s", query, diff)
		}
		if len(listed) > filter.limit || filter.limit < 1 || filter.limit > maxListed {
			t.Fatalf("%q lists %d videos, and %d at most", query, len(listed), filter.limit)
		}
		if diff := cmp.Diff(listed, idsListed(filter, videos, listed)); diff != "" {
			t.Fatalf("%q asked of what it lists: %s", query, diff)
		}
		values := must(url.ParseQuery(query))
		if both := values.Has("start") && values.Has("after") || values.Has("end") && values.Has("before") || values.Has("limit") && values.Has("per_page"); both {
			return // two names of one thing
		}
		sorted, err := parseVideoFilter(values.Encode())
		if err != nil || !reflect.DeepEqual(sorted, filter) {
			t.Fatalf("%q is read as %+v, and as %q as %+v: %v", query, filter, values.Encode(), sorted, err)
		}
		for id, doc := range videos {
			if want := asksFor(t, values, id, doc); filter.matches(doc) != want {
				t.Fatalf("%q asks for %q: %t", query, id, want)
			}
		}
	})
}

func listableVideos() map[string]*state.VideoDocument {
	videos := make(map[string]*state.VideoDocument)
	for i, id := range []string{"a", "b", "One", "two", "c-c", "d_d"} {
		doc := &state.VideoDocument{UID: id, Created: testTime.Add(time.Duration(i/2*i) * time.Second).UTC(), Descriptive: map[string]json.RawMessage{}}
		if i > 0 {
			doc.Descriptive["meta"] = json.RawMessage([]string{`{"name":"One"}`, `{"name":"two one"}`, `{"name":"Ä,ö"}`, `{"name":1}`, `{}`}[i-1])
			doc.Descriptive["creator"] = json.RawMessage([]string{`"me"`, `""`, `"you"`, `"me"`, `"a,b"`}[i-1])
		}
		videos[id] = doc
	}
	videos["configured"] = &state.VideoDocument{UID: "configured"}
	return videos
}

func idsListed(filter *videoFilter, videos map[string]*state.VideoDocument, from []string) (ids []string) {
	top := newestVideos{filter: filter}
	for _, id := range from {
		top.add(videos[id])
	}
	for _, v := range top.first() {
		ids = append(ids, v.UID)
	}
	return ids
}

// asksFor is the obvious reading of a query.
func asksFor(t *testing.T, query url.Values, id string, doc *state.VideoDocument) bool {
	t.Helper()
	var meta struct{ Name any }
	var creator string
	_ = json.Unmarshal(doc.Descriptive["meta"], &meta)
	_ = json.Unmarshal(doc.Descriptive["creator"], &creator)
	name, _ := meta.Name.(string)
	date := func(parameter string) time.Time { return must(time.Parse(time.RFC3339, query.Get(parameter))) }
	for parameter := range query {
		value := query.Get(parameter)
		one := func(of ...string) bool {
			return slices.ContainsFunc(strings.Split(value, ","), func(v string) bool { return slices.Contains(of, v) })
		}
		ok := true
		switch parameter {
		case "id":
			ok = one(id)
		case "name":
			ok = one(id, name)
		case "video_name":
			ok = value == name
		case "search":
			ok = strings.Contains(strings.ToLower(name), strings.ToLower(value))
		case "creator":
			ok = value == creator
		case "start", "after":
			ok = date(parameter).IsZero() || doc.Created.After(date(parameter))
		case "end", "before":
			ok = date(parameter).IsZero() || doc.Created.Before(date(parameter))
		case "status":
			ok = value == "ready"
		case "type":
			ok = value == "vod"
		case "live_input_id":
			ok = false
		}
		if !ok {
			return false
		}
	}
	return true
}

// FuzzCredentials holds that nobody gets in whose request does not have a
// credential that was configured, in the one place for it, byte by byte.
func FuzzCredentials(f *testing.F) {
	const secret, email, key = "s3cret-of-the-tests", "me@example.com", "k3y-of-the-tests"
	for _, header := range []string{
		"", "Authorization: Bearer " + secret, "Authorization: bearer " + secret, "Authorization:Bearer " + secret, "Authorization: Bearer  " + secret,
		"Authorization: Bearer " + secret + "\r\nAuthorization: Bearer " + secret, "Authorization: Bearer " + secret[:18], "Authorization: Bearer " + secret + "\x00",
		"X-Auth-Email: " + email + "\r\nX-Auth-Key: " + key, "x-auth-email: " + email + "\r\nx-auth-key: " + key, "X-Auth-Email: " + email, "X-Auth-Key: " + key,
		"X-Auth-Email: " + email + "\x00" + key + "\r\nX-Auth-Key: ", "X-Auth-Email: ME@example.com\r\nX-Auth-Key: " + key,
		"Authorization: Bearer " + secret + "\r\nX-Auth-Email: " + email + "\r\nX-Auth-Key: " + key, "Authorization: Basic " + secret, "Authorization: Bearer ",
	} {
		f.Add(header)
	}
	c := credentialsOf(func(config *Config) {
		config.BearerTokens, config.AuthKeys = []string{secret}, []AuthKey{{email, key}}
	})
	f.Fuzz(func(t *testing.T, header string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET / HTTP/1.1\r\nHost: x\r\n" + header + "\r\n\r\n")))
		if err != nil {
			return
		}
		lines := func(name string) []string { return r.Header.Values(name) }
		bearer := slices.Equal(lines("Authorization"), []string{"Bearer " + secret})
		pair := slices.Equal(lines("X-Auth-Email"), []string{email}) && slices.Equal(lines("X-Auth-Key"), []string{key})
		if got := c.allow(r.Header); got != (bearer || pair) {
			t.Fatalf("%q gets in: %t", header, got)
		}
		if got := c.allow(r.Header); got && !strings.Contains(header, secret) && !strings.Contains(header, key) {
			t.Fatalf("%q gets in, and has no secret", header)
		}
	})
}
