package integration

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// createAtOnce makes so many calls for a key at the same time.
func (g *gateway) createAtOnce(t testing.TB, calls int, header ...string) (answers []*apiResponse) {
	t.Helper()
	type outcome struct {
		res *http.Response
		err error
	}
	outcomes := make(chan outcome, calls)
	for range calls {
		go func() {
			res, err := g.tryCall(http.MethodPost, "stream/keys", "{}", header...)
			outcomes <- outcome{res, err}
		}()
	}
	for range calls {
		got := <-outcomes
		if got.err != nil {
			t.Fatal(got.err)
		}
		answers = append(answers, readAPIResponse(t, readResponse(t, got.res)))
	}
	return answers
}

// Making many keys at once costs a core for long. It must neither stop playback
// nor pile up: who comes when too many wait is told to come again, and has made
// no key.
func TestHostileAPIManyKeysAtOnce(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	const calls, most = 80, 40
	viewers := seat(t, []*gateway{g}, map[string]string{"a viewer": segment(mint(t, "demo", nil))})
	made, sentAway := []string{}, 0
	for _, res := range g.createAtOnce(t, calls) {
		var key apiKey
		switch retry := res.Header.Get("Retry-After"); {
		case res.StatusCode == http.StatusOK && json.Unmarshal(res.Result, &key) == nil && retry == "":
			made = append(made, key.ID)
		case res.StatusCode == http.StatusServiceUnavailable && retry != "":
			wantAPIError(t, res, http.StatusServiceUnavailable, "too many keys")
			sentAway++
		default:
			t.Errorf("A7 got %d with Retry-After %q: %.200s", res.StatusCode, retry, res.body)
		}
	}
	viewers.leave(t)
	t.Logf("%d keys made, %d calls sent away", len(made), sentAway)
	if len(made) == 0 || len(made) > most || sentAway == 0 {
		t.Errorf("A7 of %d calls %d made a key and %d were sent away; want some of each", calls, len(made), sentAway)
	}
	slices.Sort(made)
	if diff := cmp.Diff(made, g.keyIDs(t)); diff != "" {
		t.Errorf("A7 keys (-made +listed):\n%s", diff)
	}
}

// startWithKeys starts a gateway that has so many keys of the API already. They
// are copies of one, so that they need not all be made. It returns their ids.
func startWithKeys(t *testing.T, o *origin, count int) (g *gateway, ids []string) {
	t.Helper()
	g = start(t, o, config{api: withAPI})
	first := g.createKey(t)
	g.stop(t)
	stored, err := os.ReadFile(g.storage("signed_playback", objectFile("keys", first.ID)))
	if err != nil {
		t.Fatal(err)
	}
	var object struct {
		Data json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(stored, &object); err != nil {
		t.Fatal(err)
	}
	ids = append(ids, first.ID)
	for i := range count - 1 {
		id := fmt.Sprintf("%032x", i)
		copied := strings.ReplaceAll(string(object.Data), first.ID, id)
		writeFile(t, g.storage("signed_playback", objectFile("keys", id)), []byte(sealedObject("keys", id, copied)))
		ids = append(ids, id)
	}
	g = startAgain(t, o, g, config{api: withAPI})
	eventually(t, "the keys are read", func() bool {
		return g.call(t, http.MethodGet, "stream/keys", "").StatusCode == http.StatusOK
	})
	if got := len(g.keyIDs(t)); got != count {
		t.Fatalf("the gateway knows %d keys, want %d", got, count)
	}
	return g, ids
}

// There is room for 1,000 keys and no more, however many calls find room for
// one at the same time, and an end to it once a key is revoked.
func TestHostileAPIKeyLimit(t *testing.T) {
	const limit = 1000
	o := startOrigin(t, nil)
	g, ids := startWithKeys(t, o, limit-1)
	g.mintToken(t, "demo", "") // the gateway's own key does not count

	var last apiKey
	made := 0
	const calls = 4
	for _, res := range g.createAtOnce(t, calls) {
		if res.StatusCode == http.StatusOK {
			made++
			if err := json.Unmarshal(res.Result, &last); err != nil {
				t.Fatal(err)
			}
			continue
		}
		wantAPIError(t, res, http.StatusBadRequest, "1000")
	}
	if listed := len(g.keyIDs(t)); made != 1 || listed != limit {
		t.Errorf("A7 with room for one, %d of %d calls made a key, so there are %d", made, calls, listed)
	}
	o.wantPassed(t, g.get(t, segment(signWith(t, last, "demo"))), "/demo/video/1.ts")
	for range 2 {
		wantAPIError(t, g.call(t, http.MethodPost, "stream/keys", ""), http.StatusBadRequest, "limit")
	}
	for len(g.keyIDs(t)) >= limit { // more than one, if too many have been made
		g.mustCall(t, http.MethodDelete, "stream/keys/"+ids[0], "", nil)
		ids = ids[1:]
	}
	again := g.call(t, http.MethodPost, "stream/keys", "", "Idempotency-Key: at-the-limit")
	if again.StatusCode != http.StatusOK {
		t.Errorf("A7 with room again: got %d: %s", again.StatusCode, again.body)
	}
	wantAPIError(t, g.call(t, http.MethodPost, "stream/keys", ""), http.StatusBadRequest, "limit")
	// What repeats the call needs no room of its own.
	if res := g.call(t, http.MethodPost, "stream/keys", "", "Idempotency-Key: at-the-limit"); res.StatusCode != http.StatusOK {
		t.Errorf("A12 a repeated call at the limit: got %d: %s", res.StatusCode, res.body)
	}
	if listed := len(g.keyIDs(t)); listed != limit {
		t.Errorf("there are %d keys, want %d", listed, limit)
	}
}

// What is revoked stays so: on connections that are open, after a restart, for a
// key of a file as for one of the API, and for another key that comes under the
// same id.
func TestHostileAPIRevokedForGood(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	made, kept := g.createKey(t), g.createKey(t)
	own := g.mintToken(t, "demo", "")
	fromFile := mint(t, "demo", nil)
	revoked := map[string]string{ // the path of a segment by the key's id
		made.ID:         segment(signWith(t, made, "demo")),
		keyID:           segment(fromFile),
		keyIDOf(t, own): segment(own),
	}
	viewer := &keepAlive{addr: g.addr}
	defer viewer.close()
	ask := func(target string) *response {
		return viewer.exchange(t, "GET "+target+" HTTP/1.1\r\nHost: media.example.com\r\n\r\n")
	}
	for id, target := range revoked {
		o.wantPassed(t, ask(target), "/demo/video/1.ts")
		res := g.mustCall(t, http.MethodDelete, "stream/keys/"+id, "", nil)
		if string(res.Result) != `"Revoked"` {
			t.Errorf("A9 the result of DELETE is %s", res.Result)
		}
		o.wantRefused(t, ask(target), http.StatusUnauthorized, "key_unknown")
	}
	wantDead := func(t *testing.T, g *gateway) {
		t.Helper()
		for id, target := range revoked {
			o.wantRefused(t, g.get(t, target), http.StatusUnauthorized, "key_unknown")
			g.mustCall(t, http.MethodDelete, "stream/keys/"+id, "", nil) // and no error to say so again
			o.wantRefused(t, g.get(t, target), http.StatusUnauthorized, "key_unknown")
		}
		pem, _ := json.Marshal(map[string]string{"id": made.ID, "pem": made.PEM})
		wantAPIError(t, g.call(t, http.MethodPost, "stream/demo/token", string(pem)), http.StatusBadRequest, "revoked")
		pem, _ = json.Marshal(map[string]string{"id": keyID, "pem": signingKey().PEM()})
		wantAPIError(t, g.call(t, http.MethodPost, "stream/demo/token", string(pem)), http.StatusBadRequest, "revoked")
		if diff := cmp.Diff([]string{kept.ID}, g.keyIDs(t)); diff != "" {
			t.Errorf("keys (-want +got):\n%s", diff)
		}
		minted := g.mintToken(t, "demo", "")
		if _, dead := revoked[keyIDOf(t, minted)]; dead {
			t.Error("a token was minted with a revoked key")
		}
		o.wantPassed(t, g.get(t, segment(minted)), "/demo/video/1.ts")
		o.wantPassed(t, g.get(t, segment(signWith(t, kept, "demo"))), "/demo/video/1.ts")
	}
	t.Run("A9 at once", func(t *testing.T) { wantDead(t, g) })
	wantAPIError(t, g.call(t, http.MethodDelete, "stream/keys/"+strings.Repeat("0", 32), ""), http.StatusNotFound, "there is no key")

	g.kill(t)
	t.Run("A9 after a restart", func(t *testing.T) { wantDead(t, startAgain(t, o, g, config{api: withAPI})) })

	// The operator puts another key under the old id, and that of the API into a
	// file, with both halves.
	replaced, err := token.GenerateSigningKey(keyID)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(g.dir, "replaced.jwks.json"), publicJWKS(t, replaced))
	wrapped, _ := json.Marshal(made)
	writeFile(t, filepath.Join(g.dir, "made.json"), wrapped)
	t.Run("A9 made anew", func(t *testing.T) {
		g := startAgain(t, o, g, config{api: withAPI, keys: "replaced.jwks.json made.json"})
		o.wantRefused(t, g.get(t, segment(tokenOf(t, replaced, "demo"))), http.StatusUnauthorized, "key_unknown")
		wantDead(t, g)
	})
}

// A client whose answer was lost asks again. If it says that this is the same
// call, the key of which nobody has the private half does not stay.
func TestAPIIdempotentCreation(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	create := func(t *testing.T, header ...string) (key apiKey) {
		t.Helper()
		res := g.call(t, http.MethodPost, "stream/keys", "", header...)
		if res.StatusCode != http.StatusOK || json.Unmarshal(res.Result, &key) != nil {
			t.Fatalf("got %d: %s", res.StatusCode, res.body)
		}
		return key
	}
	wantLive := func(t *testing.T, keys ...apiKey) {
		t.Helper()
		want := []string{}
		for _, key := range keys {
			want = append(want, key.ID)
			o.wantPassed(t, g.get(t, segment(signWith(t, key, "demo"))), "/demo/video/1.ts")
		}
		got := g.keyIDs(t)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("keys (-want +got):\n%s", diff)
		}
	}
	const header = "Idempotency-Key: stainless-node-retry-1f0c2f0e"
	first := create(t, header)
	wantLive(t, first)
	second := create(t, header)
	wantLive(t, second)
	o.wantRefused(t, g.get(t, segment(signWith(t, first, "demo"))), http.StatusUnauthorized, "key_unknown")

	another := create(t, header+"x")
	wantLive(t, second, another)
	unnamed, again := create(t), create(t)
	empty, emptyAgain := create(t, "Idempotency-Key: "), create(t, "Idempotency-Key: ")
	wantLive(t, second, another, unnamed, again, empty, emptyAgain)

	var made []string
	eventually(t, "one of them gets its turn", func() bool {
		for _, res := range g.createAtOnce(t, 4, header+"y") { // by impatient ones
			var key apiKey
			if res.StatusCode == http.StatusOK && json.Unmarshal(res.Result, &key) == nil {
				made = append(made, key.ID)
			} else {
				wantAPIError(t, res, http.StatusServiceUnavailable, "too many keys")
			}
		}
		return len(made) > 0
	})
	all := g.keyIDs(t)
	left := slices.DeleteFunc(slices.Clone(all), func(id string) bool { return !slices.Contains(made, id) })
	if len(left) != 1 || len(all) != 7 {
		t.Fatalf("A12 of one call, made four times at once, the keys %q are left, of %d in all; want one of seven", left, len(all))
	}
	g.mustCall(t, http.MethodDelete, "stream/keys/"+left[0], "", nil)

	g.kill(t)
	g = startAgain(t, o, g, config{api: withAPI})
	third := create(t, header)
	wantLive(t, third, another, unnamed, again, empty, emptyAgain)
	for path, content := range tree(t, g.storage("signed_playback")) {
		if strings.Contains(content, "stainless-node-retry") {
			t.Errorf("%s holds what a client has sent", filepath.Base(path))
		}
	}
}

// A caller who has left before the answer has no private half, so his key must
// not stay as one that nobody can use and that counts.
func TestAPICallerLeaves(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	conn, err := net.Dial("tcp", g.api)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, g.apiRequest(http.MethodPost, ofAccount("stream/keys"), "", authorized))
	_ = conn.Close()
	if !g.log.await(`"call":"keys.create"`, startTimeout) {
		t.Fatalf("the call has not ended:\n%s", g.log)
	}
	if left := g.keyIDs(t); len(left) != 0 {
		t.Errorf("A12 the keys %q are left", left)
	}
	if strings.Contains(g.log.String(), "PRIVATE KEY") {
		t.Error("the key that nobody got is in the log")
	}
}
