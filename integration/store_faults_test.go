package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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
	"sync/atomic"
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

// sealedObject is an object as the gateway writes it.
func sealedObject(collection, id, data string) string {
	sum := sha256.Sum256([]byte(data))
	return `{"signed_playback":1,"name":"` + collection + "/" + id + `","sha256":"` + hex.EncodeToString(sum[:]) + `","data":` + data + "}\n"
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
	compact, err := token.Sign(token.Claims{VideoID: video, ExpiresAt: time.Now().Add(time.Hour)}, key)
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

// storm is writes from all sides, and what of them has been acknowledged. What is
// sent and not acknowledged may have been written or not.
type storm struct {
	g       *gateway
	files   []*token.SigningKey
	revoked atomic.Int64 // of files, from the first

	mu      sync.Mutex
	made    []string // keys
	counted map[string]*counter
	strange []string // answers that nobody should get
}

// counter is a number in the settings of a video.
type counter struct{ sent, acknowledged atomic.Int64 }

// write makes a call and reports whether it is acknowledged, and whether the
// server is still there.
func (s *storm) write(method, resource, body string, result any) (acknowledged, alive bool) {
	res, err := s.g.tryCall(method, resource, body)
	if err != nil {
		return false, false
	}
	defer res.Body.Close()
	var envelope struct {
		Result json.RawMessage `json:"result"`
	}
	answer, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return false, false
	case res.StatusCode == http.StatusOK && json.Unmarshal(answer, &envelope) == nil && json.Unmarshal(envelope.Result, result) == nil:
		return true, true
	case res.StatusCode != http.StatusServiceUnavailable: // a lock of a killed process is in the way for some seconds
		s.mu.Lock()
		defer s.mu.Unlock()
		s.strange = append(s.strange, fmt.Sprintf("%s %s: %d %s", method, resource, res.StatusCode, answer))
	}
	return false, true
}

func (s *storm) makeKeys() {
	for alive := true; alive; {
		var key apiKey
		var acknowledged bool
		if acknowledged, alive = s.write(http.MethodPost, "stream/keys", "", &key); acknowledged {
			s.mu.Lock()
			s.made = append(s.made, key.ID)
			s.mu.Unlock()
		}
	}
}

// revokeFileKeys revokes keys of the key file, one after the other.
func (s *storm) revokeFileKeys() {
	for alive := true; alive && int(s.revoked.Load()) < len(s.files); {
		var result string
		var acknowledged bool
		if acknowledged, alive = s.write(http.MethodDelete, "stream/keys/"+s.files[s.revoked.Load()].ID(), "", &result); acknowledged {
			s.revoked.Add(1)
		}
	}
}

// count counts in the settings of a video.
func (s *storm) count(video string) {
	s.mu.Lock()
	c := s.counted[video]
	if c == nil {
		c = new(counter)
		s.counted[video] = c
	}
	s.mu.Unlock()
	for alive := true; alive; {
		var result json.RawMessage
		var acknowledged bool
		n := c.sent.Add(1)
		acknowledged, alive = s.write(http.MethodPost, "stream/"+video, fmt.Sprintf(`{"requireSignedURLs":false,"meta":{"n":%d}}`, n), &result)
		if acknowledged {
			c.acknowledged.Store(n)
		}
	}
}

// rage has all writers write until the server is killed, some time after something
// of each kind has been acknowledged.
func (s *storm) rage(t testing.TB, round int) {
	t.Helper()
	video, revoked := fmt.Sprintf("video-%d", round), s.revoked.Load()
	var writers sync.WaitGroup
	for _, writer := range []func(){s.makeKeys, s.revokeFileKeys, func() { s.count("steady") }, func() { s.count(video) }} {
		writers.Go(writer)
	}
	eventually(t, "writes are acknowledged", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		c := s.counted[video]
		return c != nil && c.acknowledged.Load() > 0 && s.revoked.Load() > min(revoked, int64(len(s.files)-1)) && len(s.made) > 0
	})
	<-time.After(rand.N(300 * time.Millisecond))
	s.g.kill(t)
	writers.Wait()
}

// wantKept checks that everything that was acknowledged is there.
func (s *storm) wantKept(t *testing.T) {
	t.Helper()
	listed := s.g.keyIDs(t)
	for _, id := range s.made {
		if !slices.Contains(listed, id) {
			t.Errorf("the key %s is lost", id)
		}
	}
	for _, key := range s.files[:s.revoked.Load()] {
		if got := s.g.get(t, segment(tokenOf(t, key, "demo"))).verdict(); got != keyUnknown {
			t.Errorf("a token of the revoked key %s gets %v", key.ID(), got)
		}
	}
	for video, c := range s.counted {
		var meta struct {
			N int64 `json:"n"`
		}
		if err := json.Unmarshal(s.g.video(t, video).Meta, &meta); err != nil {
			t.Fatal(err)
		}
		if acknowledged, sent := c.acknowledged.Load(), c.sent.Load(); meta.N < acknowledged || meta.N > sent {
			t.Errorf("the counter of %s is %d; %d was acknowledged and %d sent", video, meta.N, acknowledged, sent)
		}
		c.sent.Store(meta.N)
		c.acknowledged.Store(meta.N)
	}
	for _, bad := range []string{damagedObject, storeAway} {
		if strings.Contains(s.g.log.String(), bad) {
			t.Errorf("%q in the log:\n%s", bad, s.g.log)
		}
	}
	for _, answer := range s.strange {
		t.Error(answer)
	}
}

// A process that is killed while it writes, at any moment, loses nothing that it
// has acknowledged and leaves nothing that cannot be read.
func TestHostileKillInMidWrite(t *testing.T) {
	t.Parallel()
	killInMidWrite(t, 5)
}

func TestLongHostileKillInMidWrite(t *testing.T) { killInMidWrite(t, 100) }

func killInMidWrite(t *testing.T, rounds int) {
	s := &storm{files: fileKeys(2000), counted: make(map[string]*counter)}
	c := config{keys: "main.jwks.json files.jwks.json", api: withAPI, dir: t.TempDir(), addr: freeAddr(t), apiAddr: freeAddr(t)}
	writeFile(t, filepath.Join(c.dir, "files.jwks.json"), publicJWKS(t, s.files...))
	o := startOrigin(t, nil)
	for round := range rounds {
		s.g = start(t, o, c)
		s.wantKept(t)
		s.rage(t, round)
	}
	s.g = start(t, o, c)
	s.wantKept(t)
}

// damages are what a disk, a backup or an intruder makes of the file of an object.
// Other is the file of another object, which opens or plays. Package store knows
// many more.
var damages = map[string]func(t testing.TB, path, other string){
	"empty":   func(t testing.TB, path, _ string) { writeFile(t, path, nil) },
	"cut off": func(t testing.TB, path, _ string) { writeFile(t, path, []byte(readText(t, path)[:100])) },
	"another object": func(t testing.TB, path, other string) {
		writeFile(t, path, []byte(readText(t, other)))
	},
}

// S7 An object that is not exactly what was written does not mean that there is none:
// a private video would be open, and a revoked key valid again. It is refused, alone,
// and the log names it to those who can mend it.
func TestHostileDamagedObjects(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	c := config{dir: t.TempDir(), keys: "main.jwks.json files.jwks.json", api: withAPI, app: "require_signed_urls off"}
	files := fileKeys(len(damages) + 1)
	writeFile(t, filepath.Join(c.dir, "files.jwks.json"), publicJWKS(t, files...))
	g := start(t, o, c)
	names := append(slices.Sorted(maps.Keys(damages)), "healthy") // the last one is left alone
	id := func(i int) string { return fmt.Sprintf("video-%d", i) }
	keys := make([]apiKey, len(names))
	for i := range names {
		keys[i] = g.createKey(t)
		g.edit(t, id(i), `{"requireSignedURLs":true}`)
		g.mustCall(t, http.MethodDelete, "stream/keys/"+files[i].ID(), "", nil)
	}
	g.edit(t, "open", `{"requireSignedURLs":false}`)
	g.stop(t)

	object := func(collection, id string) string { return g.storage("signed_playback", objectFile(collection, id)) }
	healthy := len(damages)
	for i, name := range names[:healthy] {
		damages[name](t, object("videos", id(i)), object("videos", "open"))
		damages[name](t, object("keys", keys[i].ID), object("keys", keys[healthy].ID))
		damages[name](t, object("keys", files[i].ID()), object("keys", keys[healthy].ID))
	}
	g = startAgain(t, o, g, c)
	o.take()
	for i, name := range names[:healthy] {
		for what, path := range map[string]string{
			"the private video":         segment(id(i)),
			"a token for it":            segment(mint(t, id(i), nil)),
			"a token of the key":        segment(signWith(t, keys[i], "demo")),
			"a token of the key it had": segment(tokenOf(t, files[i], "demo")),
		} {
			if got := g.get(t, path).verdict(); got != unavailable {
				t.Errorf("%s, %s: got %v, want %v", name, what, got, unavailable)
			}
		}
		for _, object := range []string{"videos/" + id(i), "keys/" + keys[i].ID, "keys/" + files[i].ID()} {
			if log := g.log.String(); !regexp.MustCompile(damagedObject + `[^\n]*"object": ?"` + object + `"`).MatchString(log) {
				t.Errorf("%s: the log does not name %s:\n%s", name, object, log)
			}
		}
		if res := g.call(t, http.MethodGet, "stream/"+id(i), ""); res.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s: the settings: status %d, want 503: %s", name, res.StatusCode, res.body)
		}
	}
	o.wantUntouched(t)
	for path, want := range map[string]verdict{
		segment("open"):                             plays,
		segment("demo"):                             plays,
		segment(id(healthy)):                        tokenNeeded,
		segment(mint(t, id(healthy), nil)):          plays,
		segment(signWith(t, keys[healthy], "demo")): plays,
		segment(tokenOf(t, files[healthy], "demo")): keyUnknown,
	} {
		if got := g.get(t, path).verdict(); got != want {
			t.Errorf("an object that is not damaged, %.20s: got %v, want %v", path, got, want)
		}
	}
	g.mustCall(t, http.MethodDelete, "stream/"+id(0), "", nil)
	if got := g.get(t, segment(id(0))).verdict(); got != plays {
		t.Errorf("the video whose settings are deleted gets %v, want %v", got, plays)
	}
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
	wantUnchanged := func(g *gateway, what string) {
		t.Helper()
		if diff := cmp.Diff(before, look(g)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	audience := seat(t, []*gateway{g}, paths)
	writes := apiWrites(key.ID, "edited")

	g.limitFiles(t, "0")
	for _, w := range append(slices.Clone(writes), apiWrite{"revoke a key of the file", http.MethodDelete, "stream/keys/main", ""}) {
		if res := g.call(t, w.method, w.resource, w.body); res.StatusCode < http.StatusInternalServerError {
			t.Errorf("%s on a full disk: status %d, want 5xx: %s", w.name, res.StatusCode, res.body)
		}
		wantUnchanged(g, w.name+" on a full disk")
	}
	wantUnchanged(start(t, o, config{api: withAPI, global: sharedFolder(g.storage())}), "a node that starts on the full disk")
	audience.leave(t)

	g.limitFiles(t, "unlimited")
	for _, w := range writes {
		eventually(t, w.name+" when there is room again", func() bool {
			return g.call(t, w.method, w.resource, w.body).StatusCode == http.StatusOK
		})
	}
	if got := g.get(t, paths["a token of a key made"]).verdict(); got != keyUnknown {
		t.Errorf("a token of a key that is revoked when there is room again: got %v, want %v", got, keyUnknown)
	}
	if strings.Contains(g.log.String(), damagedObject) {
		t.Errorf("a damaged object:\n%s", g.log)
	}
}

// A store that goes away at run time, as a network folder does, takes no viewer
// along, opens nothing and is noticed by those who write. When it is back, all
// is as before.
func TestHostileStorageReplaced(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI, app: "require_signed_urls off"})
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
	if err := os.Rename(folder, aside); err != nil {
		t.Fatal(err)
	}
	writeFile(t, folder, nil)
	if got := g.get(t, segment("met-too-early")).verdict(); got != unavailable {
		t.Errorf("an unknown video without a store: got %v, want %v", got, unavailable)
	}
	g.wantWritesRefused(t, apiWrites(key.ID, "known"))
	if !g.log.await(storeAway, startTimeout) {
		t.Fatal("nobody has noticed that the store is away")
	}
	g.wantWritesRefused(t, apiWrites(key.ID, "known"))
	for path, want := range map[string]verdict{segment("unseen"): unavailable, segment("private"): tokenNeeded} {
		if got := g.get(t, path).verdict(); got != want {
			t.Errorf("%s without a store: got %v, want %v", path, got, want)
		}
	}

	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, folder); err != nil {
		t.Fatal(err)
	}
	if !g.log.await(storeBack, startTimeout) {
		t.Fatal("the store is not noticed to be back")
	}
	g.awaitWrites(t)
	if got := g.get(t, segment("private")).verdict(); got != tokenNeeded {
		t.Errorf("the private video: got %v when the store is back, want %v", got, tokenNeeded)
	}
	for _, video := range []string{"unseen", "met-too-early"} {
		if got := g.get(t, segment(video)).verdict(); got != plays {
			t.Errorf("%s, which nobody set: got %v when the store is back, want %v", video, got, plays)
		}
	}
	if got := g.keyIDs(t); !slices.Equal(got, []string{key.ID}) {
		t.Errorf("the keys are %q, want %q", got, key.ID)
	}
	audience.leave(t)
	g.mustCall(t, http.MethodDelete, "stream/keys/"+key.ID, "", nil)
	if got := g.get(t, segment(signWith(t, key, "demo"))).verdict(); got != keyUnknown {
		t.Errorf("a token of a revoked key: got %v, want %v", got, keyUnknown)
	}
}

// A lock whose owner has died holds up the writers of one video, who are told so and
// need not mend anything by hand. Nothing else waits for it, least of all viewers, and
// it ends by itself.
func TestHostileStaleLock(t *testing.T) {
	t.Parallel()
	for name, format := range map[string]string{
		"of a killed process": `{"created":%[1]q,"updated":%[1]q}`,
		"empty":               "%.0s", // killed, or out of space, between making the lock and writing to it
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			o := startOrigin(t, nil)
			c := config{api: withAPI}
			g := start(t, o, c)
			g.edit(t, "locked", `{"requireSignedURLs":false}`)
			g.kill(t)
			g = startAgain(t, o, g, c) // which has never had the lock
			lock := fmt.Sprintf(format, time.Now().Format(time.RFC3339Nano))
			writeFile(t, g.storage("locks", "signed_playback_videos_locked.lock"), []byte(lock))
			audience := seat(t, []*gateway{g}, map[string]string{"the video": segment("locked")})
			g.wantWritesRefused(t, []apiWrite{
				{"edit", http.MethodPost, "stream/locked", `{"requireSignedURLs":true}`},
				{"forget", http.MethodDelete, "stream/locked", ""},
			})
			g.edit(t, "another", `{"requireSignedURLs":false}`)
			if g.video(t, "locked").RequireSignedURLs {
				t.Error("a write that was refused has been made")
			}
			eventually(t, "the lock has ended", func() bool {
				return g.call(t, http.MethodPost, "stream/locked", `{"creator":"somebody"}`).StatusCode == http.StatusOK
			})
			audience.leave(t)
		})
	}
}

// quiet keeps the log of a test short that makes very many requests.
const quiet = "level INFO"

// The settings of videos are not read before somebody asks for one, however many
// there are, and then once for all who ask at the same time.
func TestSettingsAreReadWhenAskedFor(t *testing.T) {
	t.Parallel()
	const videos, viewers = 500, 50
	redis := startRedis(t, "--appendonly", "no")
	o := startOrigin(t, nil)
	c := config{app: redis.option(), api: withAPI}
	g := start(t, o, c)
	g.edit(t, "open", `{"requireSignedURLs":false}`)
	g.stop(t)
	command := []string{"HSET", "{signed_playback}:videos"}
	for i := range videos {
		id := fmt.Sprintf("video-%d", i)
		command = append(command, id, sealedObject("videos", id, `{"uid":"`+id+`","created":"2026-01-02T15:04:05Z","modified":"2026-01-02T15:04:05Z"}`))
	}
	redis.do(t, command...)
	redis.do(t, "CONFIG", "RESETSTAT")

	g = startAgain(t, o, g, c)
	if got := g.get(t, segment("open")).verdict(); got != plays {
		t.Fatalf("an open video: got %v, want %v", got, plays)
	}
	if scans, reads := redis.calls(t, "hscan"), redis.calls(t, "hmget"); scans > 10 || reads > 10 {
		t.Errorf("%d calls of HSCAN and %d of HMGET for one video: want the few that read the keys and the video", scans, reads)
	}
	before := redis.calls(t, "hmget")
	redis.do(t, "CLIENT", "PAUSE", "300", "ALL") // nobody is answered until all have asked
	answers := make([]<-chan *response, viewers)
	for i := range answers {
		answers[i] = ask(t.Context(), g.url(segment("video-0")))
	}
	for _, answer := range answers {
		if got := <-answer; got == nil || got.verdict() != tokenNeeded {
			t.Errorf("a viewer got %v, want %v", got, tokenNeeded)
		}
	}
	if reads := redis.calls(t, "hmget") - before; reads > 3 { // a late viewer may start a read of its own
		t.Errorf("%d viewers of one video cost %d reads of the store", viewers, reads)
	}
}

// calls returns how often a command has been carried out.
func (r *redisServer) calls(t testing.TB, command string) int {
	t.Helper()
	match := regexp.MustCompile(`(?m)^cmdstat_` + command + `:calls=(\d+)`).FindStringSubmatch(r.do(t, "INFO", "commandstats"))
	if match == nil {
		return 0
	}
	n, err := strconv.Atoi(match[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func keepAliveGet(target string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: media.example.com\r\n\r\n"
}
