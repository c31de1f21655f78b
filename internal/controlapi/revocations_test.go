package controlapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/store/storetest"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// soon is an hour after testTime.
const soon = `"expires":1800003600`

func signedUntil(expires time.Time) string {
	return must(token.Sign(token.Claims{VideoID: "demo", ExpiresAt: expires, Viewer: "ann"}, testKey()))
}

// The attack, most often a mistake: a revocation that the API takes for another one leaves a
// token in force. No answer and no log has a token.
func TestRevocationsThatAreRefused(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	compact := signedUntil(testTime.Add(time.Hour))
	old := signedUntil(testTime)
	for why, bodies := range map[string][]string{
		"want an object":        {"", "null", `[[]]`, `["a"]`, `[null]`},
		"0 of token":            {`{}`, `[{}]`, `{` + soon + `,"reason":"r"}`},
		"2 of token":            {`{"uid":"a","jti":"b",` + soon + `}`, `{"video":"demo","token":"` + compact + `"}`},
		"did you mean":          {`{"UID":"a",` + soon + `}`, `{"uid":"a","Expires":1800003600}`, `{"jti":"a","issuedbefore":1,` + soon + `}`},
		"unknown member":        {`{"id":"a",` + soon + `}`, `{"viewer":"a",` + soon + `}`, `{"uid":"a","x":1,` + soon + `}`, `{"uid":"a","revocations":[]}`},
		"is not a string":       {`{"uid":"",` + soon + `}`, `{"jti":1,` + soon + `}`, `{"video":null,` + soon + `}`, `{"session":["a"],` + soon + `}`, `{"token":{}}`},
		"want at most 256":      {`{"uid":"` + strings.Repeat("é", 129) + `",` + soon + `}`, `{"jti":"` + strings.Repeat("x", 257) + `",` + soon + `}`},
		"video is":              {`{"video":"a/b",` + soon + `}`, `{"video":"` + strings.Repeat("x", 65) + `",` + soon + `}`},
		"session is":            {`{"session":"s",` + soon + `}`, `{"session":"` + strings.Repeat("A", 32) + `",` + soon + `}`},
		"token: ":               {`{"token":"a.b.c"}`, `{"token":"` + compact + `=",` + soon + `}`, `{"token":"https://media.example.com/` + compact + `/iframe"}`},
		"in the past":           {`{"uid":"a","expires":1800000000}`, `{"token":"` + old + `"}`, `{"token":"` + compact + `","expires":1}`},
		"expires is missing":    {`{"uid":"a"}`, `{"jti":"a"}`, `{"video":"demo","issuedBefore":1800000000}`},
		"expires is ":           {`{"uid":"a","expires":0}`, `{"uid":"a","expires":-1}`, `{"uid":"a","expires":1.5}`, `{"uid":"a","expires":"1800003600"}`, `{"uid":"a","expires":null}`, `{"uid":"a","expires":1800003600000}`},
		"issuedBefore is ":      {`{"uid":"a","issuedBefore":0,` + soon + `}`, `{"uid":"a","issuedBefore":null,` + soon + `}`, `{"uid":"a","issuedBefore":"1",` + soon + `}`, `{"uid":"a","issuedBefore":1800000000000,` + soon + `}`},
		"a session has none":    {`{"session":"` + strings.Repeat("a", 32) + `","issuedBefore":1,` + soon + `}`},
		"reason is ":            {`{"uid":"a","reason":1,` + soon + `}`, `{"uid":"a","reason":"` + strings.Repeat("x", 257) + `",` + soon + `}`},
		"duplicate member":      {`{"uid":"a","uid":"b",` + soon + `}`},
		"revocation 2 of the a": {`[{"uid":"a",` + soon + `},{"uid":"b"}]`, `[{"uid":"a",` + soon + `},{"token":"` + compact + `="}]`},
		"at most 1000":          {`[` + strings.Repeat(`{"uid":"a",`+soon+`},`, 1000) + `{"uid":"a",` + soon + `}]`},
	} {
		for _, body := range bodies {
			a := c.call(t, "POST", "revocations", body)
			if wantReply(t, body, a, 400, codeBadRequest); a.status == 400 && !strings.Contains(a.errors[0].Message, why) {
				t.Errorf("%.100s: %q, want %q in it", body, a.errors[0].Message, why)
			}
			if signature := compact[len(compact)-40:]; strings.Contains(a.raw+fmt.Sprint(c.logs.TakeAll()), signature) {
				t.Errorf("%.60s: the answer or the log has the token", body)
			}
		}
	}
	wantReply(t, "2 MiB", c.call(t, "POST", "revocations", `{"uid":"`+strings.Repeat("x", 2<<20)+`"}`), 413, codeTooLarge)
	if n := c.State.RevocationCount(); n != 0 {
		t.Errorf("there are %d revocations", n)
	}
}

// Each selector with its default dates, as the list shows it. Of a token, only the digest
// is kept.
func TestRevocationsAreMade(t *testing.T) {
	t.Parallel()
	compact := signedUntil(testTime.Add(90 * time.Minute))
	for _, tc := range []struct {
		body                 string
		lifetime, maxSession time.Duration
		want                 listedRevocation
	}{
		{`{"token":"` + compact + `"}`, 0, 0, listedRevocation{Token: state.DigestOfToken(compact), Expires: 1800005400}},
		{`{"token":"` + compact + `"}`, time.Minute, time.Hour, listedRevocation{Token: state.DigestOfToken(compact), Expires: 1800009000}},
		{`{"token":"` + compact + `",` + soon + `}`, 0, time.Hour, listedRevocation{Token: state.DigestOfToken(compact), Expires: 1800003600}},
		{`{"jti":"j\u00e9","reason":"why"}`, time.Hour, 0, listedRevocation{JTI: "jé", Expires: 1800003601, Reason: "why"}},
		{`{"jti":"j","issuedBefore":1,` + soon + `}`, 0, 0, listedRevocation{JTI: "j", IssuedBefore: 1, Expires: 1800003600}},
		{`{"uid":"ann",` + soon + `}`, 0, 0, listedRevocation{UID: "ann", IssuedBefore: 1800000000, Expires: 1800003600}},
		{`{"uid":"ann","issuedBefore":1800000600}`, time.Hour, time.Minute, listedRevocation{UID: "ann", IssuedBefore: 1800000600, Expires: 1800004261}},
		{`{"video":"demo"}`, time.Hour, 0, listedRevocation{Video: "demo", IssuedBefore: 1800000000, Expires: 1800003601}},
		{`{"session":"` + strings.Repeat("a", 32) + `",` + soon + `}`, 0, 0, listedRevocation{Session: strings.Repeat("a", 32), Expires: 1800003600}},
	} {
		c := control(t, func(config *Config) { config.Policy.MaxLifetime, config.MaxSession = tc.lifetime, tc.maxSession })
		tc.want.ID = resultOf[createdRevocation](t, tc.body, c.call(t, "POST", "revocations", tc.body)).ID
		list := resultOf[[]listedRevocation](t, "the list", c.call(t, "GET", "revocations", ""))
		if diff := cmp.Diff([]listedRevocation{tc.want}, list, cmpopts.IgnoreFields(listedRevocation{}, "Created")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.body, diff)
		}
		for name, object := range c.store.fleet.Backup() {
			if text := name.String() + string(object.Data); strings.Contains(text, compact[:40]) || strings.Contains(text, compact[len(compact)-40:]) {
				t.Errorf("the store has a part of the token in %s", name)
			}
		}
	}
}

// An array is all or nothing, answered in its order, and listed in pages without a gap. A
// revocation is taken back once.
func TestListOfRevocations(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	bodies := make([]string, 1000)
	for i := range bodies {
		bodies[i] = fmt.Sprintf(`{"uid":"u%d",%s}`, i, soon)
	}
	made := resultOf[[]createdRevocation](t, "1000 revocations", c.call(t, "POST", "revocations", "["+strings.Join(bodies, ",")+"]"))
	if a := c.call(t, "POST", "revocations", "[]"); string(a.result) != "[]" {
		t.Errorf("no revocations = %s", a.raw)
	}
	var all []listedRevocation
	for before := ""; ; before = "&before=" + all[len(all)-1].Created {
		a := c.call(t, "GET", "revocations?per_page=300&include_counts=true"+before, "")
		page := resultOf[[]listedRevocation](t, "a page", a)
		if before == "" && (a.total != "1000" || len(made) != 1000) {
			t.Fatalf("%d are made, %s listed", len(made), a.total)
		}
		if all = append(all, page...); len(page) == 0 {
			break
		}
	}
	for i, one := range all {
		if at := len(all) - 1 - i; len(all) != 1000 || one.ID != made[at].ID || one.UID != fmt.Sprint("u", at) {
			t.Fatalf("element %d of %d is %+v, want that of %s", i, len(all), one, made[at].ID)
		}
	}
	wantReply(t, "a filter that does not exist", c.call(t, "GET", "revocations?uid=u1", ""), 400, codeBadRequest)
	wantReply(t, "one taken back", c.call(t, "DELETE", "revocations/"+made[0].ID, ""), 200, 0)
	for _, id := range []string{made[0].ID, "x", "", "../keys", strings.Repeat("a", 500)} {
		wantReply(t, id, c.call(t, "DELETE", "revocations/"+id, ""), 404, 0)
	}
	if n := c.State.RevocationCount(); n != 999 {
		t.Errorf("%d revocations are left", n)
	}
	*c.clock = c.clock.Add(time.Hour)
	if a := c.call(t, "GET", "revocations", ""); string(a.result) != "[]" {
		t.Errorf("after all have expired: %.100s", a.raw)
	}
	c.store.Intercept(storetest.Down, nil)
	c.State.Sync(t.Context())
	wantReply(t, "without the store", c.call(t, "POST", "revocations", `{"uid":"a","expires":1900000000}`), http.StatusServiceUnavailable, codeUnavailable)
}

// FuzzRevocations checks that encoding/json reads the same revocation in an accepted body, and
// that an error has nothing of a token.
func FuzzRevocations(f *testing.F) {
	compact := signedUntil(testTime.Add(time.Hour))
	for _, body := range []string{
		`{"token":"` + compact + `"}`, `{"jti":"a",` + soon + `}`, `{"uid":"\u0061","issuedBefore":1800000000,` + soon + `,"reason":""}`, `{"video":"demo",` + soon + `}`,
		`{"session":"` + strings.Repeat("0", 32) + `",` + soon + `}`, `{"uid":"a","UID":"b",` + soon + `}`, `{"uid":"a","expires":1e10}`, `{"uid":"a","uid":"b"}`, `{}`, `null`,
		`[{"uid":"a",` + soon + `},{"jti":"b",` + soon + `}]`,
	} {
		f.Add(body)
	}
	c := &call{Server: control(f, nil).Server, route: createRevocationsRoute}
	f.Fuzz(func(t *testing.T, text string) {
		c := *c
		c.request = request("POST", "/", text)
		body, err := c.body(nil)
		if err != nil || body.IsArray() {
			return
		}
		got, err := c.parseRevocation(body)
		if err != nil {
			if refusalOf(err).status != http.StatusBadRequest || strings.Contains(err.Error(), compact[len(compact)-40:]) {
				t.Fatalf("%q is refused with %v", text, err)
			}
			return
		}
		var asked listedRevocation
		if err := json.Unmarshal([]byte(text), &asked); err != nil {
			t.Fatalf("encoding/json refuses %q: %v", text, err)
		}
		want := listedRevocation{JTI: asked.JTI, UID: asked.UID, Video: asked.Video, Session: asked.Session, IssuedBefore: asked.IssuedBefore, Expires: asked.Expires, Reason: asked.Reason}
		if asked.Token != "" {
			want.Token = state.DigestOfToken(asked.Token)
		}
		described := describeRevocation(got)
		described.Created = ""
		if asked.Expires == 0 {
			described.Expires = 0
		}
		if asked.IssuedBefore == 0 {
			described.IssuedBefore = 0
		}
		if diff := cmp.Diff(want, described); diff != "" || got.Expires <= testTime.Unix() || len(got.Value) > token.MaxIdentifier {
			t.Fatalf("%q (-want +got):\n%s", text, diff)
		}
	})
}
