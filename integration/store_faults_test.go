package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// damagedObject is what the log says of an object that cannot be trusted.
const damagedObject = "an object in the store is damaged"

// storage returns a place in the storage of a gateway.
func (g *gateway) storage(elements ...string) string {
	return filepath.Join(append([]string{g.dir, "caddy"}, elements...)...)
}

// objectFile returns the path of an object whose id has neither capitals nor
// dots, below the folder signed_playback.
func objectFile(collection, id string) string {
	file := "x-" + id + ".json"
	if collection != "videos" {
		return filepath.Join(collection, file)
	}
	sum := sha256.Sum256([]byte(id))
	return filepath.Join(collection, hex.EncodeToString(sum[:1]), file)
}

// fileKeys are keys of a key file. They are one pair under many ids, which are
// quickly made.
func fileKeys(count int) []*token.SigningKey {
	keys := make([]*token.SigningKey, count)
	for i := range keys {
		keys[i] = newSigningKey(fmt.Sprintf("file-%d", i), privateKey())
	}
	return keys
}

func tokenOf(t testing.TB, key *token.SigningKey, video string) string {
	t.Helper()
	return must(token.Sign(token.Claims{VideoID: video, ExpiresAt: time.Now().Add(time.Hour)}, key))(t)
}

// stormWriter makes numbered writes, one after the other, until the server dies.
type stormWriter struct {
	write        func(n int) apiWrite
	sent         int            // what is not acknowledged of these may have been written or not
	acknowledged map[int]string // results
	unexpected   error          // an answer that no caller should get
}

// run writes, and calls begun after each acknowledgement.
func (w *stormWriter) run(g *gateway, begun func()) {
	for ; w.unexpected == nil; w.sent++ {
		write := w.write(w.sent)
		res, err := g.tryCall(write.method, write.resource, write.body)
		if err != nil {
			w.sent++
			return
		}
		answer, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		var envelope struct {
			Result json.RawMessage `json:"result"`
		}
		switch {
		case res.StatusCode == http.StatusOK && json.Unmarshal(answer, &envelope) == nil:
			w.acknowledged[w.sent] = string(envelope.Result)
			begun()
		case res.StatusCode != http.StatusOK && res.StatusCode != http.StatusServiceUnavailable: // 503 until the lock of a killed process ends
			w.unexpected = fmt.Errorf("%s: %d %s", write.name, res.StatusCode, answer)
		}
	}
}

// A process that is killed while it writes loses nothing that it has acknowledged, leaves
// nothing that cannot be read, and leaves no lock that somebody has to remove.
func TestHostileKillInMidWrite(t *testing.T) {
	t.Parallel()
	killInMidWrite(t, 5)
}

func TestLongHostileKillInMidWrite(t *testing.T) { killInMidWrite(t, 100) }

func killInMidWrite(t *testing.T, rounds int) {
	files := fileKeys(2000)
	c := config{keys: "main.jwks.json files.jwks.json", api: withAPI, dir: t.TempDir(), addr: freeAddr(t), apiAddr: freeAddr(t)}
	writeFile(t, filepath.Join(c.dir, "files.jwks.json"), publicJWKS(t, files...))
	o := startOrigin(t, nil)
	round := 0
	count := func(video func() string) func(int) apiWrite {
		return func(n int) apiWrite {
			return apiWrite{"count", http.MethodPost, "stream/" + video(), fmt.Sprintf(`{"requireSignedURLs":false,"meta":{"n":%d}}`, n)}
		}
	}
	writers := []*stormWriter{
		{write: func(int) apiWrite { return apiWrite{"make a key", http.MethodPost, "stream/keys", ""} }},
		{write: func(n int) apiWrite {
			return apiWrite{"revoke a key", http.MethodDelete, "stream/keys/" + files[n%len(files)].ID(), ""}
		}},
		{write: count(func() string { return "steady" })},
		{write: count(func() string { return fmt.Sprintf("video-%d", round) })}, // a new one in each round
	}
	made, revoked, steady, newest := writers[0], writers[1], writers[2], writers[3]
	for _, w := range writers {
		w.acknowledged = make(map[int]string)
	}
	for ; round <= rounds; round++ {
		g := start(t, o, c)
		listed := g.keyIDs(t)
		for _, result := range made.acknowledged {
			var key apiKey
			if err := json.Unmarshal([]byte(result), &key); err != nil || !slices.Contains(listed, key.ID) {
				t.Errorf("the key %q is lost: %v", key.ID, err)
			}
		}
		for n := range revoked.acknowledged {
			wantVerdict(t, g, segment(tokenOf(t, files[n%len(files)], "demo")), keyUnknown)
		}
		steady.wantCounted(t, g, "steady")
		newest.wantCounted(t, g, fmt.Sprintf("video-%d", round-1))
		for _, bad := range []string{damagedObject, storeAway} {
			if strings.Contains(g.log.String(), bad) {
				t.Errorf("%q in the log:\n%s", bad, g.log)
			}
		}
		if round == rounds {
			g.awaitWrites(t, "steady")
			return
		}
		clear(newest.acknowledged)
		rage(t, g, writers, steady)
		t.Logf("kill %d: acknowledged so far: %d keys, %d revocations, %d edits of one video; %d edits of the newest", round+1,
			len(made.acknowledged), len(revoked.acknowledged), len(steady.acknowledged), len(newest.acknowledged))
	}
}

// rage has all writers write, and kills the server at some moment after a write of each
// was acknowledged, except for those of the steady counter, which a lock of the process
// killed before may hold up.
func rage(t *testing.T, g *gateway, writers []*stormWriter, steady *stormWriter) {
	t.Helper()
	var writing, begun sync.WaitGroup
	for _, w := range writers {
		begin := func() {}
		if w != steady {
			begun.Add(1)
			begin = sync.OnceFunc(begun.Done)
		}
		writing.Go(func() {
			defer begin()
			w.run(g, begin)
		})
	}
	begun.Wait()
	<-time.After(rand.N(300 * time.Millisecond))
	g.kill(t)
	writing.Wait()
	for _, w := range writers {
		if w.unexpected != nil {
			t.Error(w.unexpected)
		}
	}
}

// wantCounted checks the number in the settings of a video.
func (w *stormWriter) wantCounted(t *testing.T, g *gateway, video string) {
	t.Helper()
	if len(w.acknowledged) == 0 {
		return
	}
	var meta struct {
		N int `json:"n"`
	}
	noError(t, json.Unmarshal(g.video(t, video).Meta, &meta))
	if last := slices.Max(slices.Collect(maps.Keys(w.acknowledged))); meta.N < last || meta.N >= w.sent {
		t.Errorf("the counter of %s is %d; %d was acknowledged, and all before %d were sent", video, meta.N, last, w.sent)
	}
}

// S7 An object that is damaged does not count as missing: a private video would be open,
// and a revoked key valid again. It is refused, alone, and the log names it. Packages
// store and state know many ways to damage an object.
func TestHostileDamagedObjects(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	c := config{api: withAPI, app: "require_signed_urls off"}
	g := start(t, o, c)
	made, healthy := g.createKey(t), g.createKey(t)
	for _, video := range []string{"damaged", "private"} {
		g.edit(t, video, `{"requireSignedURLs":true}`)
	}
	g.mustCall(t, http.MethodDelete, "stream/keys/"+keyID, "", nil) // the key of the file
	g.stop(t)
	damaged := map[string]string{"videos": "damaged", "keys": made.ID, "keys/": keyID}
	for collection, id := range damaged {
		path := g.storage("signed_playback", objectFile(strings.TrimSuffix(collection, "/"), id))
		writeFile(t, path, []byte(readText(t, path)[:100]))
	}
	g = startAgain(t, o, g, c)
	for path, want := range map[string]verdict{
		segment("damaged"):                       unavailable,
		segment(signWith(t, made, "demo")):       unavailable,
		segment(signWith(t, made, "damaged")):    unavailable,
		segment(mint(t, "demo", nil)):            unavailable,
		segment("private"):                       tokenNeeded,
		segment("demo"):                          plays,
		segment(signWith(t, healthy, "demo")):    plays,
		segment(signWith(t, healthy, "damaged")): unavailable,
	} {
		o.take()
		wantVerdict(t, g, path, want)
		if want != plays {
			o.wantUntouched(t)
		}
	}
	for collection, id := range damaged {
		object := strings.TrimSuffix(collection, "/") + "/" + id
		if log := g.log.String(); !regexp.MustCompile(damagedObject + `[^\n]*"object": ?"` + object + `"`).MatchString(log) {
			t.Errorf("the log does not name %s:\n%s", object, log)
		}
	}
	wantAPIError(t, g.call(t, http.MethodGet, "stream/damaged", ""), http.StatusServiceUnavailable, codeUnavailable)
	g.mustCall(t, http.MethodDelete, "stream/damaged", "", nil)
	wantVerdict(t, g, segment("damaged"), plays)
}

// limitFiles has a server fail to write files beyond a size, as on a full disk;
// "unlimited" has it succeed again.
func (g *gateway) limitFiles(t testing.TB, size string) {
	t.Helper()
	if got := execute(t, "", "", tool(t, "prlimit"), "--pid", strconv.Itoa(g.cmd.Process.Pid), "--fsize="+size+":unlimited"); got.code != 0 {
		t.Fatalf("prlimit: %s", got.stderr)
	}
}

// storeState is what the API and viewers see of a store.
type storeState struct {
	Keys          []string
	Edited, Other videoView
	Verdicts      map[string]verdict
}

// On a full disk, the API says that it cannot write, and nothing has changed, neither
// in an answer nor for a node that starts now. Viewers do not notice. With room
// again, all is as before.
func TestHostileFullDisk(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	key := g.createKey(t)
	g.edit(t, "edited", `{"requireSignedURLs":false}`)
	paths := map[string]string{
		"a token of a key made":    segment(signWith(t, key, "demo")),
		"a token of the key file":  segment(mint(t, "demo", nil)),
		"a token of the own key":   segment(g.mintToken(t, "demo", "")),
		"a video that is set open": segment("edited"),
	}
	look := func(g *gateway) storeState {
		s := storeState{g.keyIDs(t), g.video(t, "edited"), g.video(t, "edited-2"), make(map[string]verdict)}
		for what, path := range paths {
			s.Verdicts[what] = g.get(t, path).verdict()
		}
		return s
	}
	before := look(g)
	audience := seat(t, []*gateway{g}, paths)
	writes := apiWrites(key.ID, "edited")

	g.limitFiles(t, "0")
	for _, w := range append(slices.Clone(writes), apiWrite{"revoke a key of the file", http.MethodDelete, "stream/keys/main", ""}) {
		if res := g.call(t, w.method, w.resource, w.body); res.StatusCode < http.StatusInternalServerError {
			t.Errorf("%s on a full disk: status %d, want 5xx: %s", w.name, res.StatusCode, res.body)
		}
	}
	for what, node := range map[string]*gateway{"the node": g, "a new node": start(t, o, config{api: withAPI, global: sharedFolder(g.storage())})} {
		if diff := cmp.Diff(before, look(node)); diff != "" {
			t.Errorf("%s on the full disk (-before +after):\n%s", what, diff)
		}
	}
	audience.leave(t)

	g.limitFiles(t, "unlimited")
	for _, w := range writes {
		eventually(t, w.name+" when there is room again", func() bool {
			return g.call(t, w.method, w.resource, w.body).StatusCode == http.StatusOK
		})
	}
	wantVerdict(t, g, paths["a token of a key made"], keyUnknown)
	if strings.Contains(g.log.String(), damagedObject) {
		t.Errorf("a damaged object:\n%s", g.log)
	}
}

// A folder that goes away at run time, as a network folder does, interrupts no viewer and
// opens nothing, and writers learn of it. When it is back, all is as before.
func TestHostileStorageReplaced(t *testing.T) {
	t.Parallel()
	g := start(t, startOrigin(t, nil), config{api: withAPI, app: "require_signed_urls off"})
	key := g.createKey(t)
	g.edit(t, "private", `{"requireSignedURLs":true}`)
	g.edit(t, "known", `{"creator":"somebody"}`)
	audience := seat(t, []*gateway{g}, map[string]string{
		"a token of a key made":   segment(signWith(t, key, "demo")),
		"a token of the key file": segment(mint(t, "private", nil)),
		"a video that is known":   segment("known"),
		"a video that is not set": segment("demo"),
	})
	folder, aside := g.storage("signed_playback"), g.storage("aside")
	noError(t, os.Rename(folder, aside))
	writeFile(t, folder, nil)
	wantVerdict(t, g, segment("met-too-early"), unavailable)
	g.wantWritesRefused(t, apiWrites(key.ID, "known"))
	g.log.await(t, storeAway)
	g.wantWritesRefused(t, apiWrites(key.ID, "known"))
	wantVerdict(t, g, segment("unseen"), unavailable)
	wantVerdict(t, g, segment("private"), tokenNeeded)

	noError(t, errors.Join(os.Remove(folder), os.Rename(aside, folder)))
	g.log.await(t, storeBack)
	g.awaitWrites(t, "recovered")
	wantVerdict(t, g, segment("private"), tokenNeeded)
	wantVerdict(t, g, segment("unseen"), plays)
	wantVerdict(t, g, segment("met-too-early"), plays)
	if got := g.keyIDs(t); !slices.Equal(got, []string{key.ID}) {
		t.Errorf("the keys are %q, want %q", got, key.ID)
	}
	audience.leave(t)
}

// quiet keeps the log of a test short that makes very many requests.
const quiet = "level INFO"

// The attack: somebody can write into Redis, and adds a key, opens a private video, and
// reads the key with which the gateway mints tokens. With store_secret, all of that is
// damage. Without it, the attack succeeds, which shows that it is one.
func TestStoreSecret(t *testing.T) {
	t.Parallel()
	const secret = "store_secret {env.STORE_SECRET}"
	env := []string{"STORE_SECRET=0123456789abcdef0123456789abcdef"}
	for _, tc := range []struct {
		name, option string
		want         verdict
		readable     bool // the signing key
	}{
		{"without a secret", "", plays, true},
		{"with a secret", secret, unavailable, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			redis := startRedis(t)
			c := config{app: redis.option() + "\n" + tc.option, api: withAPI, env: env}
			g := start(t, startOrigin(t, nil), c)
			g.edit(t, "private", `{"requireSignedURLs":true}`)
			own := g.mintToken(t, "private", "")
			attacker := newSigningKey("attacker", privateKey())
			jwk := must(attacker.Public().JWK())(t)
			const dates = `"created":"2026-01-02T15:04:05Z"`
			redis.do(t, "HSET", "{signed_playback}:keys", "attacker", sealedObject("keys", "attacker", `{"id":"attacker",`+dates+`,"jwk":`+string(jwk)+`}`))
			redis.do(t, "HSET", "{signed_playback}:videos", "opened", sealedObject("videos", "opened", `{"uid":"opened",`+dates+`,"modified":"2026-01-02T15:04:05Z","requireSignedURLs":false}`))
			signing := redis.do(t, "HGET", "{signed_playback}:signing", "current")
			if got := strings.Contains(signing, `"pem"`); got != tc.readable {
				t.Errorf("the signing key can be read in Redis: %t, want %t", got, tc.readable)
			}
			g.stop(t)
			g = startAgain(t, startOrigin(t, nil), g, c) // which reads everything
			for path, want := range map[string]verdict{
				segment(tokenOf(t, attacker, "private")): tc.want,
				segment("opened"):                        tc.want,
				segment("private"):                       tokenNeeded,
				segment(own):                             plays,
			} {
				wantVerdict(t, g, path, want)
			}
		})
	}
}

// sealedObject is an object as the gateway writes it without a secret.
func sealedObject(collection, id, data string) string {
	return fmt.Sprintf(`{"signed_playback":1,"name":"%s/%s","sha256":"%x","data":%s}`, collection, id, sha256.Sum256([]byte(data)), data)
}
