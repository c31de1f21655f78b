package controlapi

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
	"github.com/signed-playback/caddy-signed-playback/internal/weborigin"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// FuzzBodies checks that a call does exactly what an accepted body asks for: a token has
// the claims that any other JSON parser reads in the body, and settings are stored and
// returned as they were sent. Sending a video back as it was returned changes nothing.
func FuzzBodies(f *testing.F) {
	for _, body := range []string{
		`{}`, `null`, ``, `{"exp":1800003600,"nbf":1799996400,"downloadable":true}`, `{"exp":0,"nbf":0,"accessRules":[],"flags":{}}`,
		`{"exp":1800086400,"accessRules":[{"type":"ip.geoip.country","country":["GB"],"action":"allow"},{"type":"any","action":"block"}]}`,
		`{"accessRules":null}`, `{"accessRules":[{"type":"ip.src","ip":["203.0.113.0/24","::1"],"action":"block"}]}`, `{"flags":{"original":false}}`,
		`{"exp":1800086401}`, `{"exp":1.8e9}`, `{"exp":-0}`, `{"exp":1800003600,"exp":0}`, `{"Exp":1800003600}`, `{"downloadable":"true"}`,
		`{"requireSignedURLs":false,"allowedOrigins":["example.com","*.example.com:8443"]}`, `{"allowedOrigins":[]}`, `{"allowedOrigins":["*"]}`,
		`{"meta":{"name":"<\u2028>","x":[1e400,{"a":null}]},"creator":"me","thumbnailTimestampPct":0.50}`, `{"creator":null,"maxDurationSeconds":null}`,
		`{"uid":"demo","scheduledDeletion":"2030-01-02T03:04:05.678+01:00","publicDetails":{"title":"t"},"size":1,"status":{"state":"ready"}}`,
		`{"uid":"other"}`, `{"uid":"ann","climit":2,"startBy":1800003600}`, `{"requireSignedURLs":null}`, `{"meta":[]}`, `{"allowedOrigins":["https://example.com"]}`, `[]`, `{`, "\fnull", "\u00a0",
	} {
		f.Add(body)
	}
	c := &call{subject: "demo", Server: control(f, nil).Server}
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

// checkMint checks that an accepted body mints the token that it asks for.
func checkMint(t *testing.T, c *call, text string, body strictjson.Value) {
	t.Helper()
	mint, err := c.parseMintRequest(body)
	if err != nil {
		return
	}
	claims := mint.claims
	claims.VideoID, claims.IssuedAt = "demo", testTime
	if setDates(&claims, testTime) != nil {
		return
	}
	compact, err := token.SignWithTextDates(claims, testKey())
	if err != nil {
		// The token may be too long. Every other fault is refused earlier.
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
		Viewer       string          `json:"uid"`
		Limit        int             `json:"climit"`
		StartBy      int64           `json:"startBy"`
		AccessRules  json.RawMessage `json:"accessRules"`
	}
	if err := json.Unmarshal([]byte(text), &asked); err != nil && strings.TrimSpace(text) != "" {
		t.Fatalf("encoding/json refuses %q: %v", text, err)
	}
	want := token.Claims{
		VideoID: "demo", KeyID: testKey().ID(), Downloadable: asked.Downloadable,
		ExpiresAt: testTime.Add(time.Hour), NotBefore: testTime.Add(-time.Hour),
		ID: got.ID, IssuedAt: testTime, Viewer: asked.Viewer, SessionLimit: asked.Limit, StartBy: dateOf(asked.StartBy),
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
		t.Fatalf("encoding/json reads other rules in %q than the token has: %s", text, claims.AccessRules)
	}
}

// checkEdit checks that settings survive being stored, returned and sent back.
func checkEdit(t *testing.T, c *call, body strictjson.Value) {
	t.Helper()
	edit, err := c.parseEdit(body)
	if err != nil {
		return
	}
	doc := state.VideoDocument{UID: "demo", Created: testTime, Modified: testTime}
	_ = edit.apply(&doc) // a schedule that never lets the video play is refused
	if doc.AllowedOrigins != nil {
		if _, err := weborigin.Compile(*doc.AllowedOrigins); err != nil {
			t.Fatalf("viewers are refused after %s: %v", body.Raw(), err)
		}
	}
	stored, err := json.Marshal(&doc)
	if err != nil {
		t.Fatalf("%s cannot be stored: %v", body.Raw(), err)
	}
	read := new(state.VideoDocument)
	if err := json.Unmarshal(stored, read); err != nil {
		t.Fatalf("%s is stored as %s: %v", body.Raw(), stored, err)
	}
	returned := must(json.Marshal(c.describe(read)))
	back, err := strictjson.Parse(returned, maxBodyDepth)
	if err != nil {
		t.Fatalf("the returned video %s is no JSON object that can be sent back: %v", returned, err)
	}
	again, err := c.parseEdit(back)
	if err != nil {
		t.Fatalf("the returned video %s is refused: %v", returned, err)
	}
	_ = again.apply(read)
	if now := must(json.Marshal(c.describe(read))); !bytes.Equal(now, returned) {
		t.Fatalf("sending back %s makes it %s", returned, now)
	}
}
