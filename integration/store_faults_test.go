package integration

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
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

// withoutRaceDetector has a test drive the binary that users run, for what is
// about time and memory.
func withoutRaceDetector(t *testing.T) {
	t.Helper()
	if os.Getenv("SIGNED_PLAYBACK_BINARY") == "" {
		t.Setenv("SIGNED_PLAYBACK_BINARY", "../bin/caddy")
	}
}

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

// storm is writes from all sides, and what of them has been acknowledged.
type storm struct {
	g     *gateway
	round int
	files []*token.SigningKey
	next  *atomic.Int64 // of files

	mu      sync.Mutex
	made    map[string]bool // keys made and not asked to be revoked
	revoked map[string]bool // keys made and revoked
	retired map[int]bool    // of files, revoked
	minted  []string
	videos  map[string]*counter
	strange []string // answers that nobody should get
}

// counter is a number in the settings of a video. What is sent and not
// acknowledged may have been written or not.
type counter struct{ sent, acknowledged int }

func (s *storm) note(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// write makes a call and reports whether it is acknowledged, and whether the
// server is still there.
func (s *storm) write(method, resource, body string, result any) (acknowledged, alive bool) {
	res, err := s.g.tryCall(method, resource, body)
	if err != nil {
		return false, false
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return false, false
	}
	var envelope struct {
		Result json.RawMessage `json:"result"`
	}
	if res.StatusCode == http.StatusOK && json.Unmarshal(answer, &envelope) == nil &&
		(result == nil || json.Unmarshal(envelope.Result, result) == nil) {
		return true, true
	}
	// A lock of a process that was killed is in the way for some seconds.
	if res.StatusCode != http.StatusServiceUnavailable {
		s.note(func() {
			s.strange = append(s.strange, fmt.Sprintf("%s %s: %d %s", method, resource, res.StatusCode, answer))
		})
	}
	return false, true
}

// makeKeys revokes a key of an earlier round, and then makes keys.
func (s *storm) makeKeys() {
	var earlier string
	s.note(func() {
		for earlier = range s.made {
			delete(s.made, earlier)
			break
		}
	})
	if earlier != "" {
		acknowledged, alive := s.write(http.MethodDelete, "stream/keys/"+earlier, "", nil)
		if acknowledged {
			s.note(func() { s.revoked[earlier] = true })
		}
		if !alive {
			return
		}
	}
	for alive := true; alive; {
		var key apiKey
		var acknowledged bool
		if acknowledged, alive = s.write(http.MethodPost, "stream/keys", "", &key); acknowledged {
			s.note(func() { s.made[key.ID] = true })
		}
	}
}

// revokeFileKeys revokes keys of the key file.
func (s *storm) revokeFileKeys() {
	for {
		i := int(s.next.Add(1))
		if i >= len(s.files) {
			return
		}
		acknowledged, alive := s.write(http.MethodDelete, "stream/keys/"+s.files[i].ID(), "", nil)
		if acknowledged {
			s.note(func() { s.retired[i] = true })
		}
		if !alive {
			return
		}
	}
}

// countIn counts in the settings of a video.
func (s *storm) countIn(video string) {
	s.mu.Lock()
	c := s.videos[video]
	if c == nil {
		c = new(counter)
		s.videos[video] = c
	}
	s.mu.Unlock()
	for alive := true; alive; {
		var n int
		s.note(func() { c.sent++; n = c.sent })
		var acknowledged bool
		acknowledged, alive = s.write(http.MethodPost, "stream/"+video, fmt.Sprintf(`{"requireSignedURLs":false,"meta":{"n":%d}}`, n), nil)
		if acknowledged {
			s.note(func() { c.acknowledged = n })
		}
	}
}

// mintAndRotate mints with the own key, and goes on with new ones.
func (s *storm) mintAndRotate() {
	for alive := true; alive; {
		var minted struct {
			Token string `json:"token"`
		}
		if acknowledged, _ := s.write(http.MethodPost, "stream/minted/token", "", &minted); acknowledged {
			s.note(func() { s.minted = append(s.minted, minted.Token) })
		}
		_, alive = s.write(http.MethodPost, "stream/keys/rotate", "", nil)
	}
}

// rage has all writers write until the server is killed, which is after a while.
func (s *storm) rage(t testing.TB, while time.Duration) {
	t.Helper()
	var writers sync.WaitGroup
	generator := s.makeKeys // there is time for one key or two
	if s.round%3 == 0 {
		generator = s.mintAndRotate
	}
	for _, writer := range []func(){
		generator, s.revokeFileKeys, s.revokeFileKeys,
		func() { s.countIn("steady") },
		func() { s.countIn(fmt.Sprintf("video-%d-a", s.round)) },
		func() { s.countIn(fmt.Sprintf("video-%d-b", s.round)) },
	} {
		writers.Go(writer)
	}
	<-time.After(while)
	s.g.kill(t)
	writers.Wait()
}

// wantKept checks that all that was acknowledged is there.
func (s *storm) wantKept(t *testing.T) {
	t.Helper()
	listed := make(map[string]bool)
	for _, id := range s.g.keyIDs(t) {
		listed[id] = true
	}
	for id := range s.made {
		if !listed[id] {
			t.Errorf("round %d: the key %s is lost", s.round, id)
		}
	}
	for id := range s.revoked {
		if listed[id] {
			t.Errorf("round %d: the revocation of the key %s is lost", s.round, id)
		}
	}
	for i := range s.retired {
		if got := s.g.get(t, segment(tokenOf(t, s.files[i], "demo"))).verdict(); got != keyUnknown {
			t.Errorf("round %d: a token of the revoked key %s gets %v", s.round, s.files[i].ID(), got)
		}
	}
	for _, minted := range s.minted {
		if got := s.g.get(t, segment(minted)).verdict(); got != plays {
			t.Errorf("round %d: a token of the own key gets %v", s.round, got)
		}
	}
	for video, c := range s.videos {
		var meta struct {
			N int `json:"n"`
		}
		if err := json.Unmarshal(s.g.video(t, video).Meta, &meta); err != nil {
			t.Fatal(err)
		}
		if meta.N < c.acknowledged || meta.N > c.sent {
			t.Errorf("round %d: the counter of %s is %d; %d was acknowledged and %d sent", s.round, video, meta.N, c.acknowledged, c.sent)
		}
		c.sent, c.acknowledged = meta.N, meta.N
	}
	log := s.g.log.String()
	for _, bad := range []string{damagedObject, "panic", storeAway} {
		if strings.Contains(log, bad) {
			t.Errorf("round %d: %q in the log:\n%s", s.round, bad, log)
		}
	}
	for _, answer := range s.strange {
		t.Errorf("round %d: %s", s.round, answer)
	}
	s.strange = nil
}

// A process that is killed while it writes, at any moment, loses nothing that it
// has acknowledged, leaves nothing unreadable, and serves again within a second.
func TestHostileKillInMidWrite(t *testing.T) {
	const rounds = 50
	withoutRaceDetector(t)
	s := &storm{
		files: fileKeys(4000), next: new(atomic.Int64),
		made: make(map[string]bool), revoked: make(map[string]bool), retired: make(map[int]bool), videos: make(map[string]*counter),
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "files.jwks.json"), publicJWKS(t, s.files...))
	c := config{keys: "main.jwks.json files.jwks.json", api: withAPI, dir: dir, addr: freeAddr(t), apiAddr: freeAddr(t)}
	signingKey()
	o := startOrigin(t, nil)

	var starts []time.Duration
	total := make(map[string]int)
	for s.round = range rounds + 1 {
		started := time.Now()
		s.g = start(t, o, c)
		s.g.keyIDs(t)
		starts = append(starts, time.Since(started))
		s.wantKept(t)
		if t.Failed() || s.round == rounds {
			break
		}
		total["file keys revoked"] += len(s.retired)
		total["tokens minted"] += len(s.minted)
		s.retired, s.minted = make(map[int]bool), nil
		s.rage(t, 20*time.Millisecond+rand.N(280*time.Millisecond))
	}
	for _, c := range s.videos {
		total["edits"] += c.acknowledged
	}
	total["keys made"], total["keys revoked"] = len(s.made)+len(s.revoked), len(s.revoked)
	slices.Sort(starts)
	usual := starts[len(starts)/2].Round(time.Millisecond)
	t.Logf("killed %d times, %v acknowledged, usually back after %s", rounds, total, usual)
	if usual >= writeBound {
		t.Errorf("it usually takes %s from the start of the process to an answer of the API, want less than %s", usual, writeBound)
	}
	for what, n := range total {
		if n == 0 {
			t.Errorf("no %s acknowledged in the whole storm", what)
		}
	}
}

// damages are what a disk, a backup or an intruder makes of an object's file.
var damages = []struct {
	name string
	do   func(t testing.TB, path, other string) // other is the file of another object, which opens or plays
}{
	{"empty", rewrite(func([]byte) []byte { return nil })},
	{"cut off", rewrite(func(raw []byte) []byte { return raw[:len(raw)/2] })},
	{"a bit flipped", rewrite(func(raw []byte) []byte { raw[len(raw)*3/4] ^= 1; return raw })},
	{"edited by hand", rewrite(func(raw []byte) []byte { return bytes.Replace(raw, []byte(`":"20`), []byte(`":"19`), 1) })},
	{"another version", rewrite(func(raw []byte) []byte {
		return bytes.Replace(raw, []byte(`"signed_playback":1`), []byte(`"signed_playback":2`), 1)
	})},
	{"foreign JSON", rewrite(func([]byte) []byte { return []byte(`{"requireSignedURLs":false}`) })},
	{"null", rewrite(func([]byte) []byte { return []byte("null") })},
	{"another object", func(t testing.TB, path, other string) {
		raw, err := os.ReadFile(other)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, path, raw)
	}},
	{"a folder", func(t testing.TB, path, _ string) { replace(t, path, func() error { return os.Mkdir(path, 0o700) }) }},
	{"a link to another object", func(t testing.TB, path, other string) {
		replace(t, path, func() error { return os.Symlink(other, path) })
	}},
	{"a link to itself", func(t testing.TB, path, _ string) {
		replace(t, path, func() error { return os.Symlink(filepath.Base(path), path) })
	}},
}

func rewrite(change func([]byte) []byte) func(t testing.TB, path, other string) {
	return func(t testing.TB, path, _ string) {
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		after := change(bytes.Clone(before))
		if bytes.Equal(before, after) {
			t.Fatalf("%s is as it was: %s", path, before)
		}
		writeFile(t, path, after)
	}
}

func replace(t testing.TB, path string, create func() error) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := create(); err != nil {
		t.Fatal(err)
	}
}

// An object that is not, or not whole, what was written does not mean that there
// is none: a private video would be open, and a revoked key good again. It is
// refused, by itself, and named to those who can mend it.
func TestHostileDamagedObjects(t *testing.T) {
	o := startOrigin(t, nil)
	metrics := freeAddr(t)
	c := config{
		dir: t.TempDir(), keys: "main.jwks.json files.jwks.json", api: withAPI, app: "require_signed_urls off",
		sites: "http://" + metrics + " {\n\tmetrics\n}",
	}
	files := fileKeys(len(damages) + 1)
	writeFile(t, filepath.Join(c.dir, "files.jwks.json"), publicJWKS(t, files...))
	g := start(t, o, c)
	id := func(i int) string { return fmt.Sprintf("video-%d", i) }
	keys := make([]apiKey, len(damages)+1)
	for i := range keys { // the last of each is left alone
		keys[i] = g.createKey(t)
		g.edit(t, id(i), `{"requireSignedURLs":true}`)
		g.mustCall(t, http.MethodDelete, "stream/keys/"+files[i].ID(), "", nil)
	}
	g.edit(t, "open", `{"requireSignedURLs":false}`)
	healthy := keys[len(damages)]
	g.stop(t)

	object := func(collection, id string) string { return g.storage("signed_playback", objectFile(collection, id)) }
	for i, damage := range damages {
		damage.do(t, object("videos", id(i)), object("videos", "open"))
		damage.do(t, object("keys", keys[i].ID), object("keys", healthy.ID))
		damage.do(t, object("keys", files[i].ID()), object("keys", healthy.ID))
	}
	g = startAgain(t, o, g, c)
	o.take()
	for i, damage := range damages {
		t.Run(damage.name, func(t *testing.T) {
			for what, path := range map[string]string{
				"the private video":         segment(id(i)),
				"a token for it":            segment(mint(t, id(i), nil)),
				"a token of the key":        segment(signWith(t, keys[i], "demo")),
				"a token of the key it had": segment(tokenOf(t, files[i], "demo")),
			} {
				if got := g.get(t, path).verdict(); got != unavailable {
					t.Errorf("%s: got %v, want %v", what, got, unavailable)
				}
			}
			for _, name := range []string{"videos/" + id(i), "keys/" + keys[i].ID, "keys/" + files[i].ID()} {
				if log := g.log.String(); !regexp.MustCompile(damagedObject + `[^\n]*"object": ?"` + name + `"`).MatchString(log) {
					t.Errorf("the log does not name %s:\n%s", name, log)
				}
			}
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				if res := g.call(t, method, "stream/"+id(i), ""); res.StatusCode != http.StatusServiceUnavailable {
					t.Errorf("%s of the video's settings: status %d, want 503: %s", method, res.StatusCode, res.body)
				}
			}
		})
	}
	o.wantUntouched(t)

	for what, row := range map[string]struct {
		path string
		want verdict
	}{
		"the open video":             {segment("open"), plays},
		"a video that nobody set":    {segment("demo"), plays},
		"another private video":      {segment(id(len(damages))), tokenNeeded},
		"a token for it":             {segment(mint(t, id(len(damages)), nil)), plays},
		"a token of another key":     {segment(signWith(t, healthy, "demo")), plays},
		"a token of the key file":    {segment(mint(t, "demo", nil)), plays},
		"a token of another revoked": {segment(tokenOf(t, files[len(damages)], "demo")), keyUnknown},
	} {
		if got := g.get(t, row.path).verdict(); got != row.want {
			t.Errorf("%s: got %v, want %v", what, got, row.want)
		}
	}
	if got := g.keyIDs(t); !slices.Equal(got, []string{healthy.ID}) {
		t.Errorf("the keys are %q, want %q alone", got, healthy.ID)
	}
	if n := decodeErrors(t, metrics); n < 3*len(damages) {
		t.Errorf("%d damaged objects are counted, want at least %d", n, 3*len(damages))
	}
	for i, damage := range damages {
		g.mustCall(t, http.MethodDelete, "stream/"+id(i), "", nil)
		if got := g.get(t, segment(id(i))).verdict(); got != plays {
			t.Errorf("%s: the video whose settings are forgotten gets %v, want %v", damage.name, got, plays)
		}
		g.edit(t, id(i), `{"requireSignedURLs":true}`)
		if got := g.get(t, segment(id(i))).verdict(); got != tokenNeeded {
			t.Errorf("%s: the video that is set anew gets %v, want %v", damage.name, got, tokenNeeded)
		}
	}
	if got := g.get(t, segment("open")).verdict(); got != plays {
		t.Errorf("the open video: got %v after others were forgotten, want %v", got, plays)
	}
}

// decodeErrors returns how many damaged objects the metrics have counted.
func decodeErrors(t testing.TB, addr string) int {
	t.Helper()
	res, err := client.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^caddy_signed_playback_store_errors_total\{operation="decode"\} (\d+)$`).FindSubmatch(readResponse(t, res).body)
	if match == nil {
		t.Fatal("no metric of damaged objects")
	}
	n, err := strconv.Atoi(string(match[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// limitFiles has a server fail to write files beyond a size, as on a full disk;
// "unlimited" has it succeed again.
func (g *gateway) limitFiles(t testing.TB, size string) {
	t.Helper()
	if got := execute(t, "", "", tool(t, "prlimit"), "--pid", strconv.Itoa(g.cmd.Process.Pid), "--fsize="+size+":unlimited"); got.code != 0 {
		t.Fatalf("prlimit: %s", got.stderr)
	}
}

// blockStamps has a server fail to tell other nodes of changes, until unblock is
// called: there is a folder in the place of each stamp.
func (g *gateway) blockStamps(t testing.TB) (unblock func()) {
	t.Helper()
	stamps, aside := g.storage("signed_playback", "stamps"), g.storage("aside")
	if err := os.Rename(stamps, aside); err != nil {
		t.Fatal(err)
	}
	for _, collection := range []string{"keys", "videos", "signing"} {
		if err := os.MkdirAll(filepath.Join(stamps, collection, "full"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := errors.Join(os.RemoveAll(stamps), os.Rename(aside, stamps)); err != nil {
			t.Fatal(err)
		}
	}
}

// storeState is what the API and viewers see of a store.
type storeState struct {
	Keys          []string
	Edited, Other videoView
	Verdicts      map[string]verdict
}

// On a full disk, the API says that it cannot write, and nothing has changed: in
// no answer, and not for a node that starts now either. That goes too for a disk
// that has room for the change and none for telling other nodes of it. Viewers
// do not notice. With room again, all is as before.
func TestHostileFullDisk(t *testing.T) {
	t.Run("for all files", func(t *testing.T) {
		fillDisk(t, func(g *gateway) (mend func()) {
			g.limitFiles(t, "0")
			return func() { g.limitFiles(t, "unlimited") }
		}, apiWrites)
	})
	t.Run("for stamps", func(t *testing.T) {
		fillDisk(t, func(g *gateway) (mend func()) { return g.blockStamps(t) }, func(keyID, video string) []apiWrite {
			// A change is taken back, but not the revocation of a key: by then,
			// another node may have acknowledged the same.
			return slices.DeleteFunc(apiWrites(keyID, video), func(w apiWrite) bool { return w.name == "revoke a key" })
		})
	})
}

func fillDisk(t *testing.T, fill func(*gateway) (mend func()), fails func(keyID, video string) []apiWrite) {
	o := startOrigin(t, nil)
	g := start(t, o, config{api: withAPI})
	key := g.createKey(t)
	g.edit(t, "edited", `{"requireSignedURLs":false}`)
	minted := g.mintToken(t, "demo", "")
	paths := map[string]string{
		"a token of a key made":    segment(signWith(t, key, "demo")),
		"a token of the key file":  segment(mint(t, "demo", nil)),
		"a token of the own key":   segment(minted),
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
	mend := fill(g)
	for _, w := range append(fails(key.ID, "edited"), apiWrite{"revoke a key of the file", http.MethodDelete, "stream/keys/main", ""}) {
		if res := g.call(t, w.method, w.resource, w.body); res.StatusCode < http.StatusInternalServerError {
			t.Errorf("%s on a full disk: status %d, want 5xx: %s", w.name, res.StatusCode, res.body)
		}
		wantUnchanged(g, w.name+" on a full disk")
	}
	wantUnchanged(start(t, o, config{api: withAPI, global: sharedFolder(g.storage())}), "a node that starts on the full disk")
	audience.leave(t)

	mend()
	for _, w := range apiWrites(key.ID, "edited") {
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

// A lock whose owner has died holds up one video's writers, who are told so
// within a second and need not mend anything by hand: nothing else waits for
// it, least of all viewers, and it ends by itself.
func TestHostileStaleLock(t *testing.T) { //nolint:tparallel // only these wait; the tests beside them measure
	for _, tc := range []struct {
		name           string
		empty, restart bool
	}{
		{name: "of the process before", restart: true},
		{name: "of another node, after an edit here"}, // CertMagic looks after a lock for 5 s, even if it was given up
		{name: "empty", empty: true, restart: true},   // killed, or out of space, between making the lock and writing to it
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			o := startOrigin(t, nil)
			c := config{api: withAPI}
			g := start(t, o, c)
			g.edit(t, "locked", `{"requireSignedURLs":false}`)
			if tc.restart {
				g.kill(t)
			}
			lock := fmt.Sprintf(`{"created":%[1]q,"updated":%[1]q}`, time.Now().Format(time.RFC3339Nano))
			if tc.empty {
				lock = ""
			}
			writeFile(t, g.storage("locks", "signed_playback_videos_locked.lock"), []byte(lock))
			if tc.restart {
				g = startAgain(t, o, g, c)
			}
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

// What a killed process has begun to write has no name yet. It is nobody's
// object, and it does not stay for ever.
func TestHostileUnfinishedFiles(t *testing.T) {
	o := startOrigin(t, nil)
	c := config{api: withAPI}
	g := start(t, o, c)
	key := g.createKey(t)
	g.edit(t, "video", `{"requireSignedURLs":false}`)
	g.mintToken(t, "demo", "")
	g.stop(t)
	videos := filepath.Dir(objectFile("videos", "video"))
	var old, fresh []string
	for i, folder := range []string{"keys", "changes", "signing", videos} {
		for j, content := range []string{"", "{", sealedObject("videos", "video", `{"uid":"video"}`)} {
			path := g.storage("signed_playback", folder, fmt.Sprintf("%d%d", 31415926+i, j))
			writeFile(t, path, []byte(content))
			if j > 0 {
				fresh = append(fresh, path)
				continue
			}
			if err := os.Chtimes(path, time.Time{}, time.Now().Add(-2*time.Hour)); err != nil {
				t.Fatal(err)
			}
			if folder != "signing" { // which nobody lists
				old = append(old, path)
			}
		}
	}
	g = startAgain(t, o, g, c)
	if got := g.keyIDs(t); !slices.Equal(got, []string{key.ID}) {
		t.Errorf("the keys are %q, want %q alone", got, key.ID)
	}
	var list []struct {
		UID string `json:"uid"`
	}
	g.mustCall(t, http.MethodGet, "stream", "", &list)
	if len(list) != 1 || list[0].UID != "video" {
		t.Errorf("the videos are %v, want one", list)
	}
	for what, path := range map[string]string{"a token": segment(signWith(t, key, "demo")), "an open video": segment("video")} {
		if got := g.get(t, path).verdict(); got != plays {
			t.Errorf("%s: got %v, want %v", what, got, plays)
		}
	}
	for _, path := range old {
		eventually(t, "an old file is gone", func() bool { _, err := os.Stat(path); return os.IsNotExist(err) })
	}
	for _, path := range fresh {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("a file that somebody may be writing is gone: %v", err)
		}
	}
	for _, bad := range []string{damagedObject, storeAway} {
		if strings.Contains(g.log.String(), bad) {
			t.Errorf("%q in the log:\n%s", bad, g.log)
		}
	}
}

// quiet keeps the log of a test short that makes very many requests.
const quiet = "level INFO"

// millionthVideo is the settings of one of many: private, for some sites.
func millionthVideo(i int) (id, object string) {
	const data = `{"uid":"video-NUMBER","created":"2026-01-02T15:04:05Z","modified":"2026-01-02T15:04:05Z","requireSignedURLs":true,` +
		`"allowedOrigins":["www-NUMBER.example.com","*.example-NUMBER.net","player-NUMBER.example.org:8443",` +
		`"tv-NUMBER.example.com","*.example-NUMBER.org"],"descriptive":{"meta":{"name":"NUMBER"}}}`
	number := strconv.Itoa(10_000_000 + i)
	id = "video-" + number
	return id, sealedObject("videos", id, strings.ReplaceAll(data, "NUMBER", number))
}

// A million videos with settings cost a node nothing until they are asked for,
// and then no more than its cache may hold. A video that everybody asks for at
// once is read from the store once.
func TestMillionVideos(t *testing.T) {
	const (
		videos    = 1_000_000
		asked     = 150_000
		viewers   = 200
		maxGrowth = 3 * 64 << 20 // three times the cache's bound, for garbage, buffers and what it does not weigh
	)
	withoutRaceDetector(t)
	redis := startRedis(t, "--appendonly", "no")
	o := startOrigin(t, nil)
	c := config{app: redis.option(), api: withAPI, log: quiet, env: []string{"GOGC=50"}}
	g := start(t, o, c)
	g.edit(t, "cold", `{"requireSignedURLs":false}`)
	g.stop(t)
	redis.fill(t, videos)
	redis.do(t, "CONFIG", "RESETSTAT")

	started := time.Now()
	g = startAgain(t, o, g, c)
	if got := g.get(t, segment("cold")).verdict(); got != plays {
		t.Fatalf("an open video: got %v, want %v", got, plays)
	}
	t.Logf("started with %d settings in %s", videos, time.Since(started).Round(time.Millisecond))
	if scans := redis.calls(t, "hscan"); scans > 10 {
		t.Errorf("%d calls of HSCAN at start: want only those that read the keys", scans)
	}

	t.Run("many viewers of one cold video", func(t *testing.T) {
		wantOneRead(t, redis, g, viewers)
	})
	t.Run("many videos", func(t *testing.T) {
		before := g.memory(t)["VmRSS"]
		started := time.Now()
		askForMany(t, g, asked)
		took := time.Since(started)
		after := g.memory(t)["VmHWM"]
		t.Logf("asked for %d videos in %s; resident memory was %d MiB, and then at most %d MiB", asked, took.Round(time.Second), before>>20, after>>20)
		if growth := after - before; growth > maxGrowth {
			t.Errorf("the node grew by %d MiB, want at most %d MiB", growth>>20, maxGrowth>>20)
		}
		if reads := redis.calls(t, "hmget"); reads < asked*99/100 {
			t.Errorf("%d settings were read for %d videos", reads, asked)
		}
	})
}

// wantOneRead has viewers ask for a video that the node does not know, all at
// the same time: Redis answers nobody until they have.
func wantOneRead(t *testing.T, redis *redisServer, g *gateway, viewers int) {
	video, _ := millionthVideo(0)
	conns := make([]*keepAlive, viewers)
	for i := range conns {
		conns[i] = &keepAlive{addr: g.addr}
		defer conns[i].close()
		conns[i].exchange(t, keepAliveGet(segment("cold")))
	}
	before := redis.calls(t, "hmget")
	redis.do(t, "CLIENT", "PAUSE", "300", "ALL")
	for _, conn := range conns {
		if _, err := io.WriteString(conn.conn, keepAliveGet(segment(video))); err != nil {
			t.Fatal(err)
		}
	}
	for i, conn := range conns {
		_ = conn.conn.SetDeadline(time.Now().Add(startTimeout))
		res, err := http.ReadResponse(conn.reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := readResponse(t, res).verdict(); got != tokenNeeded {
			t.Errorf("viewer %d: got %v, want %v", i, got, tokenNeeded)
		}
	}
	if reads := redis.calls(t, "hmget") - before; reads != 1 {
		t.Errorf("%d viewers of one video cost %d reads of the store, want 1", viewers, reads)
	}
}

func keepAliveGet(target string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: media.example.com\r\n\r\n"
}

// askForMany asks for videos by their ids, over some connections, several
// requests ahead of the answers. All are private.
func askForMany(t *testing.T, g *gateway, count int) {
	const conns, ahead = 8, 50
	var viewers sync.WaitGroup
	var late atomic.Int64
	for first := range conns {
		viewers.Go(func() {
			conn, err := net.Dial("tcp", g.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			answers := bufio.NewReader(conn)
			for i := first; i < count; {
				var requests strings.Builder
				sent := 0
				for ; sent < ahead && i < count; i += conns {
					id, _ := millionthVideo(i)
					requests.WriteString(keepAliveGet(segment(id)))
					sent++
				}
				_ = conn.SetDeadline(time.Now().Add(startTimeout))
				if _, err := io.WriteString(conn, requests.String()); err != nil {
					t.Error(err)
					return
				}
				unavailable, err := readRefusals(answers, sent)
				if err != nil {
					t.Errorf("before video %d: %v", i, err)
					return
				}
				late.Add(int64(unavailable))
			}
		})
	}
	viewers.Wait()
	// A busy machine may not get round to Redis in time.
	if late := late.Load(); late > int64(count/100) {
		t.Errorf("%d of %d videos were unavailable", late, count)
	}
}

// readRefusals reads answers, which have no body, and returns how many of them
// are that the settings could not be read in time. The others ask for a token.
func readRefusals(answers *bufio.Reader, count int) (late int, err error) {
	reason, head := "", ""
	for count > 0 {
		line, err := answers.ReadString('\n')
		if err != nil {
			return 0, err
		}
		head += line
		if value, ok := strings.CutPrefix(line, "Signed-Playback-Reason: "); ok {
			reason = strings.TrimSpace(value)
		}
		if line != "\r\n" {
			continue
		}
		switch reason {
		case tokenNeeded.Reason:
		case unavailable.Reason:
			late++
		default:
			return 0, fmt.Errorf("got %q, want %v", head, tokenNeeded)
		}
		reason, head = "", ""
		count--
	}
	return late, nil
}

// fill puts settings of videos into Redis, beside those that are there.
func (r *redisServer) fill(t testing.TB, videos int) {
	t.Helper()
	const together = 500
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * startTimeout))
	sent := make(chan error, 1)
	go func() {
		commands := bufio.NewWriterSize(conn, 1<<20)
		for i := 0; i < videos; {
			command := []string{"HSET", "{signed_playback}:videos"}
			for range together {
				id, object := millionthVideo(i)
				command = append(command, id, object)
				i++
			}
			_, _ = commands.WriteString(redisCommand(command...))
		}
		sent <- commands.Flush()
	}()
	replies := bufio.NewReader(conn)
	for range videos / together {
		if line, err := replies.ReadString('\n'); err != nil || line != fmt.Sprintf(":%d\r\n", together) {
			t.Fatalf("HSET: %q: %v", line, err)
		}
	}
	if err := await(t, sent, "the end of the commands"); err != nil {
		t.Fatal(err)
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

// Settings in files are not read at start either.
func TestManyVideosInFiles(t *testing.T) {
	const videos = 20_000
	withoutRaceDetector(t)
	o := startOrigin(t, nil)
	c := config{api: withAPI, log: quiet}
	g := start(t, o, c)
	g.stop(t)
	size := 0
	for i := range videos {
		id, object := millionthVideo(i)
		path := g.storage("signed_playback", objectFile("videos", id))
		if err := os.WriteFile(path, []byte(object), 0o600); os.IsNotExist(err) {
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			writeFile(t, path, []byte(object))
		} else if err != nil {
			t.Fatal(err)
		}
		size += len(object)
	}
	started := time.Now()
	g = startAgain(t, o, g, c)
	for _, i := range []int{0, videos / 2, videos - 1} {
		id, _ := millionthVideo(i)
		if v := g.video(t, id); len(v.AllowedOrigins) != 5 {
			t.Errorf("%s is %+v", id, v)
		}
	}
	t.Logf("started with %d settings in files, and read three, in %s", videos, time.Since(started).Round(time.Millisecond))
	if read := g.bytesRead(t); read > size/4 {
		t.Errorf("the server has read %d KiB, and the settings take %d KiB: they are read before anybody asks", read>>10, size>>10)
	} else {
		t.Logf("the server has read %d KiB; the settings take %d KiB", read>>10, size>>10)
	}
}

// bytesRead returns how much the server has read from files and connections.
func (g *gateway) bytesRead(t testing.TB) int {
	t.Helper()
	counters, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", g.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^rchar: (\d+)$`).FindSubmatch(counters)
	if match == nil {
		t.Fatalf("no rchar in %s", counters)
	}
	n, err := strconv.Atoi(string(match[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
