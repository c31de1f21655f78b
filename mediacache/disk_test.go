package mediacache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// addDisk gives the scene a disk tier. It returns what the disk warns of.
func (s *scene) addDisk(t *testing.T, path string) *warnings {
	t.Helper()
	warned := new(warnings)
	d := NewDisk(path, warned.add)
	d.now = s.now
	d.Use(MinDisk)
	if err := d.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	s.config.Disk, s.config.Site = d, "site"
	return warned
}

type warnings struct {
	mu   sync.Mutex
	text []string
}

func (w *warnings) add(message string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, fmt.Sprintf("%s: %v", message, err))
}

func (w *warnings) take() (text []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text, w.text = w.text, nil
	return text
}

// settle waits until the disk has nothing to do. It may have files that cannot be removed.
func (d *Disk) settle(t *testing.T) {
	t.Helper()
	for round := 0; ; round++ {
		d.mu.Lock()
		idle := d.scanned && !d.purging && len(d.jobs) == 0 && d.current == nil && (len(d.doomed) == 0 || round > 200)
		d.mu.Unlock()
		if idle {
			return
		}
		<-time.After(time.Millisecond)
	}
}

// emptyMemory has the next requests go to the disk.
func (s *scene) emptyMemory(t *testing.T) {
	t.Helper()
	s.untilIdle()
	s.config.Disk.settle(t)
	now := s.now
	s.Cache = New(s.config.Memory)
	s.now = now
}

// restart closes the disk as a process does that ends, and opens its folder again.
func (s *scene) restart(t *testing.T) *warnings {
	t.Helper()
	s.emptyMemory(t)
	s.config.Disk.Close()
	return s.addDisk(t, s.config.Disk.path)
}

// files returns the paths of the files on the disk.
func (d *Disk) list(t *testing.T) (paths []string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(d.path, "??", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

var oddTexts = []string{"", "a", "ab", "/", "..", "../../etc/passwd", "\x00", "\xff", "\xfe", "\ufffd", `"`, `","Host":"`, "%2e%2e", strings.Repeat("x", 5000)}

// The attacks of path traversal and of confused keys: no text in a key leads out of the
// folder, and text that moves from one part of a key to another names another file.
func TestFileNames(t *testing.T) {
	t.Parallel()
	path := regexp.MustCompile("^([0-9a-f]{2})/([0-9a-f]{64})$")
	names := map[fileName]string{}
	for _, a := range oddTexts {
		for _, b := range oddTexts {
			for i, k := range []key{
				{Variant: Variant{Text: a, Group: b}},
				{host: a, path: b},
				{host: a, Variant: Variant{Text: b}},
				{path: a, query: b},
				{path: a, query: b, overTLS: true},
				{path: a, slice: 1, host: b},
				{query: a, slice: 2, Variant: Variant{Group: b}},
				{query: a, Variant: Variant{Group: b, Generation: 2}},
			} {
				for _, site := range []string{"", "a"} {
					n, text := fileNameOf(k, encodeKey(site, k)), fmt.Sprintf("%q %+v", site, k)
					if other, found := names[n]; found && other != text {
						t.Errorf("one file for %s and %s", other, text)
					}
					names[n] = text
					parts := path.FindStringSubmatch(n.path())
					if parts == nil {
						t.Fatalf("%d: path %q", i, n.path())
					}
					if back, ok := parseFileName(parts[1], parts[2]); !ok || back != n {
						t.Errorf("%q is not recognized", n.path())
					}
				}
			}
		}
	}
}

func FuzzFileNames(f *testing.F) {
	f.Add("site", "v", "host", "/p", "q", "site", "v", "host", "/p", "q", int64(0))
	f.Fuzz(func(t *testing.T, s1, v1, h1, p1, q1, s2, v2, h2, p2, q2 string, slice int64) {
		a, b := key{Variant{Text: v1}, false, h1, p1, q1, 0}, key{Variant{Text: v2}, slice%2 != 0, h2, p2, q2, slice}
		if same := s1 == s2 && a == b; same != (fileNameOf(a, encodeKey(s1, a)) == fileNameOf(b, encodeKey(s2, b))) {
			t.Errorf("%q %+v and %q %+v: same file is %t", s1, a, s2, b, !same)
		}
	})
}

// memoryFile is a file without a disk.
type memoryFile []byte

func (m *memoryFile) WriteAt(p []byte, offset int64) (int, error) {
	if missing := int(offset) + len(p) - len(*m); missing > 0 {
		*m = append(*m, make([]byte, missing)...)
	}
	return copy((*m)[offset:], p), nil
}

type readable struct{ *bytes.Reader }

func (readable) Close() error { return nil }

// newFile returns the file of an object.
func newFile(t testing.TB, content []byte) memoryFile {
	t.Helper()
	b := newBody(&memory{max: 1 << 30}, nil)
	if err := b.write(context.Background(), content, int64(len(content)), 1<<30); err != nil {
		t.Fatal(err)
	}
	b.end(nil)
	o := newObject(http.StatusOK, http.Header{"Etag": {`"v1"`}, "X-A": {"1", "\xff2"}}, "/s.ts", b)
	o.length = int64(len(content))
	header, size := newFileHeader(o, []byte("key"), time.Unix(9, 0))
	var file memoryFile
	if err := header.write(&file, b.read(), size); err != nil || int64(len(file)) != size {
		t.Fatalf("%d bytes, want %d, error %v", len(file), size, err)
	}
	return file
}

// readFile returns the headers and the body of a file, or an error.
func readFile(file []byte) (http.Header, []byte, error) {
	s, err := openStored(readable{bytes.NewReader(file)}, int64(len(file)), []byte("key"))
	if err != nil {
		return nil, nil, err
	}
	body := []byte{}
	for int64(len(body)) < s.header.Stored {
		block, err := s.block(make([]byte, fileBlock), int64(len(body)))
		if err != nil {
			return nil, nil, err
		}
		body = append(body, block...)
	}
	return s.object("/s.ts", nil, time.Unix(9, 0)).fields.header(), body, nil
}

// A file with any bit changed, any length missing or anything added is not used.
func TestDamagedFilesAreDetected(t *testing.T) {
	t.Parallel()
	for _, length := range []int{0, 1, 100, fileBlock, 2*fileBlock + 7} {
		content := randomBytes(1, length)
		file := newFile(t, content)
		header, body, err := readFile(file)
		if diff := cmp.Diff(http.Header{"Etag": {`"v1"`}, "X-A": {"1", "\xff2"}}, header); diff != "" || err != nil || !bytes.Equal(body, content) {
			t.Fatalf("%d: %v, %d bytes, headers:\n%s", length, err, len(body), diff)
		}
		isLong := length > 100 // only some places of it: a short file has all places of a header
		for at := range file {
			if isLong && at < len(file)-20 && at%9973 != 0 {
				continue
			}
			for bit := range 8 {
				if isLong && bit != at%8 {
					continue
				}
				file[at] ^= 1 << bit
				if _, _, err := readFile(file); !errors.Is(err, errDamaged) {
					t.Errorf("%d bytes: bit %d of byte %d: %v", length, bit, at, err)
				}
				file[at] ^= 1 << bit
			}
			if _, _, err := readFile(file[:at]); !errors.Is(err, errDamaged) {
				t.Errorf("%d bytes: cut at %d: %v", length, at, err)
			}
		}
		if _, _, err := readFile(append(file, 0)); !errors.Is(err, errDamaged) {
			t.Errorf("%d bytes: one more byte: %v", length, err)
		}
	}
}

func FuzzReadFile(f *testing.F) {
	file := newFile(f, []byte("body"))
	f.Add([]byte(file))
	f.Add([]byte(fileMagic + "\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, other []byte) {
		_, body, err := readFile(other)
		if err == nil && !bytes.Equal(other[len(other)-len(body):], body) {
			t.Errorf("%d bytes that are not in the file", len(body))
		}
		// The same header with a right digest must not be trusted with sizes either.
		if len(other) > filePrefix {
			header := other[filePrefix:]
			readFile(append(encodePrefix(header), header...))
		}
	})
}

// segments answers with a body for each path, and counts.
type segments struct {
	version atomic.Int64
	size    int
	control string // Cache-Control
	down    atomic.Bool
}

func (o *segments) body(path string) []byte {
	return randomBytes(uint64(crc(path))+uint64(o.version.Load()), o.size)
}

func (o *segments) answer(w http.ResponseWriter, r *http.Request) error {
	if o.down.Load() {
		return errors.New("the origin is down")
	}
	w.Header().Set("Cache-Control", o.control)
	w.Header().Set("ETag", fmt.Sprintf(`"%d"`, o.version.Load()))
	http.ServeContent(w, r, "s.ts", time.Time{}, bytes.NewReader(o.body(r.URL.Path)))
	return nil
}

// get makes a request and compares the answer.
func (s *scene) want(t *testing.T, path, cacheStatus string, body []byte, fields ...string) http.Header {
	t.Helper()
	w, err := s.ask("GET", path, fields...)
	if got := w.Header().Get("Cache-Status"); err != nil || got != cacheStatus || !bytes.Equal(w.Body.Bytes(), body) {
		t.Errorf("%s: %q, want %q, %d bytes of %d, error %v", path, got, cacheStatus, w.Body.Len(), len(body), err)
	}
	return w.Header()
}

const (
	fromOrigin = "signed-playback; fwd=uri-miss"
	diskHit    = "signed-playback; hit; detail=disk"
	memoryHit  = "signed-playback; hit"
	confirmed3 = "signed-playback; fwd=stale; fwd-status=304"
	staleHit   = "signed-playback; hit; detail=stale"
)

func TestDiskOverRestarts(t *testing.T) {
	t.Parallel()
	origin := &segments{size: 600 << 10, control: "max-age=100, stale-if-error=1000"}
	s := newScene(origin.answer)
	s.addDisk(t, filepath.Join(t.TempDir(), "new", "folder"))
	body := origin.body("/a.ts")
	s.want(t, "/a.ts", fromOrigin, body)
	s.advance(50 * time.Second)
	warned := s.restart(t)
	if age := s.want(t, "/a.ts", diskHit, body).Get("Age"); age != "50" {
		t.Errorf("Age %s after 50 seconds", age)
	}
	s.want(t, "/a.ts", memoryHit, body)
	s.restart(t)
	s.want(t, "/a.ts", diskHit, body[300<<10:300<<10+5], "Range", fmt.Sprintf("bytes=%d-%d", 300<<10, 300<<10+4))
	s.advance(60 * time.Second)
	s.restart(t)
	s.want(t, "/a.ts", confirmed3, body)
	s.want(t, "/a.ts", memoryHit, body)
	origin.down.Store(true)
	s.restart(t)
	s.want(t, "/a.ts", staleHit, body)
	origin.down.Store(false)
	origin.version.Add(1)
	s.emptyMemory(t)
	s.want(t, "/a.ts", fromOrigin, origin.body("/a.ts"))
	s.restart(t)
	s.want(t, "/a.ts", diskHit, origin.body("/a.ts"))
	s.clock.Store(-int64(time.Hour)) // set back: the age is unknown
	s.restart(t)
	s.want(t, "/a.ts", confirmed3, origin.body("/a.ts"))
	if text := warned.take(); text != nil {
		t.Errorf("warnings: %q", text)
	}
	for _, path := range s.config.Disk.list(t) {
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
	if info, err := os.Stat(s.config.Disk.path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v of the folder, %v", info.Mode(), err)
	}
}

// What the origin has taken back is not on the disk either, over restarts too.
func TestDiskForgetsWhatTheOriginTakesBack(t *testing.T) {
	t.Parallel()
	for name, takeBack := range map[string]func(s *scene, change func(string, int)){
		"POST":                 func(s *scene, _ func(string, int)) { s.ask("POST", "/a.ts") },
		"404":                  func(s *scene, change func(string, int)) { change("max-age=5", 404) },
		"no-store":             func(s *scene, change func(string, int)) { change("no-store", 200) },
		"304 must-revalidate":  func(s *scene, change func(string, int)) { change("max-age=1, must-revalidate", 304) },
		"304 no-store":         func(s *scene, change func(string, int)) { change("no-store", 304) },
		"Vary":                 func(s *scene, change func(string, int)) { change("max-age=5, private", 200) },
		"another, short-lived": func(s *scene, change func(string, int)) { change("max-age=1", 200) },
	} {
		control, status, down := "max-age=60, stale-if-error=10000", 200, false
		s := newScene(func(w http.ResponseWriter, r *http.Request) error {
			if down {
				return errors.New("the origin is down")
			}
			w.Header().Set("Cache-Control", control)
			w.Header().Set("ETag", `"v1"`)
			w.WriteHeader(status)
			if status == 200 && r.Method == http.MethodGet {
				io.WriteString(w, "old")
			}
			return nil
		})
		s.addDisk(t, t.TempDir())
		s.ask("GET", "/a.ts")
		s.advance(61 * time.Second)
		takeBack(s, func(c string, code int) {
			control, status = c, code
			s.ask("GET", "/a.ts")
		})
		s.advance(20 * time.Second)
		s.restart(t)
		down = true
		if w, err := s.ask("GET", "/a.ts"); err == nil || w.Body.Len() > 0 {
			t.Errorf("%s: %q from the disk, %s", name, w.Body, w.Header())
		}
		if files := s.config.Disk.list(t); len(files) > 0 {
			t.Errorf("%s: there are still %q", name, files)
		}
	}
}

func TestWhatGoesToTheDisk(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		path, control string
		status, files int
	}{
		{"/a.ts", "max-age=60", 200, 1},
		{"/a.ts", "", 200, 1},                // segment_ttl
		{"/a.m3u8", "", 200, 0},              // manifest_ttl
		{"/a.m3u8", "max-age=3600", 200, 1},  // on demand
		{"/a.ts", "max-age=5", 200, 0},       // worthDisk
		{"/a.ts", "no-cache", 200, 0},        // is revalidated each time
		{"/a.ts", "no-store", 200, 0},        //
		{"/a.ts", "max-age=60", 404, 0},      // invented names
		{"/a.ts", "max-age=60", 301, 0},      //
		{"/a.ts", "max-age=60", 500, 0},      //
		{"/empty.ts", "max-age=60", 200, 1},  //
		{"/bound.ts", "max-age=60", 200, 0},  // MemoryOnly
		{"/broken.ts", "max-age=60", 200, 0}, // breaks off
	} {
		s := newScene(func(w http.ResponseWriter, r *http.Request) error {
			w.Header().Set("Cache-Control", tc.control)
			w.Header().Set("ETag", `"v1"`)
			if r.URL.Path == "/bound.ts" {
				w.Header().Set("X-Process", "1")
			}
			if r.URL.Path == "/broken.ts" {
				w.Header().Set("Content-Length", "100")
			}
			w.WriteHeader(tc.status)
			if r.URL.Path != "/empty.ts" {
				io.WriteString(w, "body")
			}
			return nil
		})
		s.addDisk(t, t.TempDir())
		s.config.MemoryOnly = "X-Process"
		s.ask("GET", tc.path)
		s.restart(t)
		if got := len(s.config.Disk.list(t)); got != tc.files {
			t.Errorf("%+v: %d files", tc, got)
		}
		s.config.Disk.settle(t)
		if objects, _ := s.config.Disk.Usage(); objects != tc.files {
			t.Errorf("%+v: %d files in the index", tc, objects)
		}
		if w, _ := s.ask("GET", tc.path); tc.files == 1 && w.Header().Get("Cache-Status") != diskHit {
			t.Errorf("%+v: %s", tc, w.Header())
		}
	}
}

// A purge removes the files of its video from before, slices, files that nobody has asked for
// since a restart, and those that are written later too. It leaves newer files and those of other videos.
func TestPurgeOfFiles(t *testing.T) {
	t.Parallel()
	origin := &segments{size: 100 << 10, control: "max-age=1000"}
	s := newScene(origin.answer)
	byGroup(&s.config)
	s.config.MaxObject = 50 << 10
	s.addDisk(t, t.TempDir())
	ask := func(group string, generation, files int) {
		t.Helper()
		for i := range files {
			s.ask("GET", fmt.Sprintf("/%d.mp4?group=%s&g=%d", i, group, generation))
		}
		s.untilIdle()
		s.config.Disk.settle(t)
	}
	want := func(what string, files int) {
		t.Helper()
		if objects, _ := s.config.Disk.Usage(); objects != files || len(s.config.Disk.list(t)) != files {
			t.Errorf("%s: %d files in the index, %d in the folder, want %d", what, objects, len(s.config.Disk.list(t)), files)
		}
	}
	ask("a", 0, 5)
	ask("b", 0, 3)
	ask("", 0, 2)
	want("before", 20) // each object and its slice
	ask("a", 7, 1)
	want("after a purge", 12)
	s.restart(t)
	ask("a", 7, 1)
	want("nothing newer after a restart", 12)
	s.restart(t)
	ask("a", 9, 1)
	ask("b", 8, 0)
	want("a purge while the disk was closed", 12)
	ask("b", 8, 3)
	want("another video", 12)
	k := key{Variant: Variant{Group: "b", Generation: 7}, path: "/late.mp4"}
	late := &object{status: 200, fields: encodeFields(nil), body: newBody(&s.memory, nil), made: s.now(), freshness: freshness{lifetime: time.Hour}}
	late.body.end(nil)
	s.config.Disk.put("site", k, late, 1<<20)
	s.config.Disk.settle(t)
	want("a file that was written late", 12)
}

// A large object has a file for each slice.
func TestSlicesOnDisk(t *testing.T) {
	t.Parallel()
	origin := &segments{size: 5<<20 + 100, control: "max-age=100"}
	s := newScene(origin.answer)
	s.config.Memory = 64 << 20 // an eighth of it may wait for the disk, which is all slices
	s.addDisk(t, t.TempDir())
	body := origin.body("/v.mp4")
	s.want(t, "/v.mp4", fromOrigin, body)
	s.restart(t)
	asked := len(s.asked)
	s.want(t, "/v.mp4", diskHit, body)
	s.emptyMemory(t)
	s.want(t, "/v.mp4", diskHit, body[1<<20-5:2<<20+5], "Range", fmt.Sprintf("bytes=%d-%d", 1<<20-5, 2<<20+4))
	if len(s.asked) != asked {
		t.Errorf("the origin was asked %d times", len(s.asked)-asked)
	}
	// The attack of a mixed object: the file is another one now, and slices of the old one are on the disk.
	origin.version.Add(1)
	s.advance(101 * time.Second)
	s.restart(t)
	s.want(t, "/v.mp4", fromOrigin, origin.body("/v.mp4"))
}

// Viewers get right bytes whatever has become of a file, and whatever the origin has
// meanwhile: where a block is damaged, the rest is from the origin if that is the same
// object. If it is another one, the response breaks off.
func TestDamageWhileReading(t *testing.T) {
	t.Parallel()
	damages := map[string]func(string) error{
		"header":     func(path string) error { return flip(path, 60) },
		"beginning":  func(path string) error { return flip(path, -600<<10) },
		"middle":     func(path string) error { return flip(path, -300<<10) },
		"end":        func(path string) error { return flip(path, -1) },
		"cut":        func(path string) error { return os.Truncate(path, 400<<10) },
		"empty":      func(path string) error { return os.Truncate(path, 0) },
		"removed":    os.Remove,
		"folder":     func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		"link out":   func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path)) },
		"link loop":  func(path string) error { return errors.Join(os.Remove(path), os.Symlink(path, path)) },
		"folder out": func(path string) error { return moveOut(filepath.Dir(path)) },
	}
	for name, damage := range damages {
		for _, changed := range []bool{false, true} {
			origin := &segments{size: 600 << 10, control: "max-age=100"}
			s := newScene(origin.answer)
			s.addDisk(t, filepath.Join(t.TempDir(), "cache"))
			old := origin.body("/a.ts")
			s.ask("GET", "/a.ts")
			s.emptyMemory(t)
			files := s.config.Disk.list(t)
			if err := damage(files[0]); err != nil {
				t.Fatal(err)
			}
			if changed {
				origin.version.Add(1)
			}
			w, err := s.ask("GET", "/a.ts")
			breaks := changed && (name == "middle" || name == "end")
			switch got := w.Body.Bytes(); {
			case breaks && (err == nil || !bytes.HasPrefix(old, got)):
				t.Errorf("%s: %d bytes of two objects, error %v", name, len(got), err)
			case !breaks && (err != nil || !bytes.Equal(got, origin.body("/a.ts"))):
				t.Errorf("%s, changed %t: %d wrong bytes, error %v", name, changed, len(got), err)
			}
			s.want(t, "/a.ts", map[bool]string{true: fromOrigin, false: memoryHit}[breaks], origin.body("/a.ts"))
			s.restart(t)
			s.ask("GET", "/a.ts")
			s.want(t, "/a.ts", memoryHit, origin.body("/a.ts"))
		}
	}
}

// flip changes a bit of a file; a negative place counts from its end.
func flip(path string, at int) error {
	file, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if at < 0 {
		at += len(file)
	}
	file[at] ^= 4
	return os.WriteFile(path, file, 0o600)
}

// moveOut puts a folder of the cache elsewhere, with a link to it in its place.
func moveOut(folder string) error {
	outside := filepath.Join(filepath.Dir(filepath.Dir(folder)), "outside")
	return errors.Join(os.Rename(folder, outside), os.Symlink(outside, folder))
}

// failing is a file whose operations fail after so many bytes.
type failing struct {
	diskReader
	diskWriter
	left int
	err  error
}

func (f *failing) ReadAt(p []byte, offset int64) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, f.err
	}
	return f.diskReader.ReadAt(p, offset)
}

func (f *failing) WriteAt(p []byte, offset int64) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, f.err
	}
	return f.diskWriter.WriteAt(p, offset)
}

func (f *failing) Close() error {
	if f.diskReader != nil {
		return f.diskReader.Close()
	}
	return f.diskWriter.Close()
}

// A disk that is full, broken or read-only costs requests to the origin, one warning a
// minute, and nothing else.
func TestFailingDisk(t *testing.T) {
	t.Parallel()
	for _, failure := range []error{syscall.ENOSPC, syscall.EIO, syscall.EACCES, syscall.EROFS, syscall.EFBIG, fs.ErrClosed} {
		where := []int{-1, 0, 100, 300 << 10, 600 << 10}
		if !errors.Is(failure, syscall.ENOSPC) {
			where = []int{-1, 300 << 10}
		}
		for _, after := range where {
			origin := &segments{size: 600 << 10, control: "max-age=100"}
			s := newScene(origin.answer)
			warned := s.addDisk(t, t.TempDir())
			d := s.config.Disk
			d.create = func(root *os.Root, path string) (diskWriter, error) {
				if after < 0 {
					return nil, failure
				}
				f, err := createFile(root, path)
				return &failing{diskWriter: f, left: after, err: failure}, err
			}
			for range 3 {
				s.want(t, "/a.ts", fromOrigin, origin.body("/a.ts"))
				s.emptyMemory(t)
			}
			if files := d.list(t); len(files) > 0 {
				t.Errorf("%v after %d bytes: there are still %q", failure, after, files)
			}
			s.advance(-time.Second) // the clock is set back
			s.want(t, "/a.ts", fromOrigin, origin.body("/a.ts"))
			s.emptyMemory(t)
			if text := warned.take(); len(text) != 2 {
				t.Errorf("%v after %d bytes: warnings %q", failure, after, text)
			}
			d.create = createFile
			s.advance(warnEvery)
			s.ask("GET", "/b.ts")
			s.emptyMemory(t)
			d.open = func(root *os.Root, path string) (diskReader, int64, error) {
				if after < 0 {
					return nil, 0, failure
				}
				f, size, err := openRegular(root, path)
				return &failing{diskReader: f, left: after, err: failure}, size, err
			}
			w, err := s.ask("GET", "/b.ts")
			if err != nil || !bytes.Equal(w.Body.Bytes(), origin.body("/b.ts")) {
				t.Errorf("%v after %d bytes: %d wrong bytes, error %v", failure, after, w.Body.Len(), err)
			}
			if text := warned.take(); len(text) != 1 {
				t.Errorf("%v after %d bytes: warnings %q", failure, after, text)
			}
		}
	}
}

// The folder has whatever a killed process and strangers have left there.
func TestScanOfAFolder(t *testing.T) {
	t.Parallel()
	origin := &segments{size: 1000, control: "max-age=100"}
	s := newScene(origin.answer)
	s.addDisk(t, t.TempDir())
	s.ask("GET", "/a.ts")
	s.emptyMemory(t)
	file := s.config.Disk.list(t)[0]
	folder, root := filepath.Dir(file), s.config.Disk.path
	name := filepath.Base(file)
	other := strings.Repeat("0", 63) + "1"
	foreign := []string{
		filepath.Join(folder, "note.txt"),
		filepath.Join(folder, strings.ToUpper(name)+"X"),
		filepath.Join(folder, name[:63]),
		filepath.Join(folder, name+".tmp.tmp"),
		filepath.Join(root, "README"),
		filepath.Join(root, "zz"),
	}
	for _, path := range append(foreign, file+".tmp") {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "00"), 0o700), os.Symlink(file, filepath.Join(root, "00", other))); err != nil {
		t.Fatal(err)
	}
	warned := s.restart(t)
	s.config.Disk.settle(t)
	if text := warned.take(); len(text) != 1 || !strings.Contains(text[0], fmt.Sprintf("%d, for example", len(foreign)+1)) {
		t.Errorf("warnings: %q", text)
	}
	for _, path := range append(foreign, filepath.Join(root, "00", other)) {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("a foreign file is gone: %v", err)
		}
	}
	if _, err := os.Lstat(file + ".tmp"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the temporary file is still there: %v", err)
	}
	s.want(t, "/a.ts", diskHit, origin.body("/a.ts"))
}

// Before the scan is done, objects are found by their names.
func TestHitsDuringTheScan(t *testing.T) {
	t.Parallel()
	origin := &segments{size: 1000, control: "max-age=100"}
	s := newScene(origin.answer)
	s.addDisk(t, t.TempDir())
	for _, path := range []string{"/a.ts", "/b.ts"} {
		s.ask("GET", path)
	}
	s.restart(t)
	d := s.config.Disk
	d.settle(t)
	d.mu.Lock()
	for _, f := range d.files {
		d.forget(f)
	}
	d.scanned = false
	d.mu.Unlock()
	s.want(t, "/a.ts", diskHit, origin.body("/a.ts"))
	s.ask("POST", "/b.ts")
	s.want(t, "/b.ts", fromOrigin, origin.body("/b.ts"))
}

// The disk takes no more than its size, and few files are not removed by a scan of
// many others.
func TestDiskIsBounded(t *testing.T) {
	t.Parallel()
	origin := &segments{size: 200 << 10, control: "max-age=100"}
	s := newScene(origin.answer)
	path := t.TempDir()
	s.addDisk(t, path)
	watch := func() {
		for i := range 20 {
			s.ask("GET", fmt.Sprintf("/hot%d.ts", i))
			s.config.Disk.settle(t)
		}
		s.emptyMemory(t)
	}
	watch()
	watch()
	for i := range 200 {
		s.ask("GET", fmt.Sprintf("/cold%d.ts", i))
		s.config.Disk.settle(t)
		if i%20 == 0 {
			s.checkDisk(t)
		}
	}
	s.emptyMemory(t)
	asked := len(s.asked)
	watch()
	if n := len(s.asked) - asked; n > 0 {
		t.Errorf("%d of 20 objects that are watched are gone after a scan", n)
	}
	s.config.Disk.Close()
	for i := range 300 { // other files than those that the cache has counted
		n := fileName{byte(i % 256), byte(i / 256)}
		if err := errors.Join(os.MkdirAll(filepath.Join(path, n.folder()), 0o700), os.WriteFile(filepath.Join(path, n.path()), make([]byte, 100<<10), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	s.addDisk(t, path)
	s.config.Disk.settle(t)
	s.checkDisk(t)
	origin.size = 100
	for i := range MinDisk/bytesPerFile + 50 {
		s.ask("GET", fmt.Sprintf("/small%d.ts", i))
	}
	s.checkDisk(t)
}

// checkDisk compares the files with the index and its bounds.
func (s *scene) checkDisk(t *testing.T) {
	t.Helper()
	d := s.config.Disk
	d.settle(t)
	d.makeRoom(d.root, 0)
	objects, used := d.Usage()
	var onDisk int64
	err := filepath.WalkDir(d.path, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			onDisk += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if files := d.list(t); err != nil || len(files) != objects || onDisk > used || used > MinDisk || objects > MinDisk/bytesPerFile {
		t.Errorf("%d files with %d bytes, the index has %d and %d of at most %d, error %v", len(files), onDisk, objects, used, MinDisk, err)
	}
}

// A process that stops in order, or a reload to a config without the disk, takes all uses back
// before it closes the disk. The files are there for the next start.
func TestUnusedDiskKeepsItsFiles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		origin := &segments{size: 1000, control: "max-age=100"}
		s := newScene(origin.answer)
		s.addDisk(t, t.TempDir())
		s.want(t, "/1.ts", fromOrigin, origin.body("/1.ts"))
		s.emptyMemory(t)
		s.config.Disk.Release(MinDisk)
		synctest.Wait()
		s.restart(t)
		s.want(t, "/1.ts", diskHit, origin.body("/1.ts"))
	})
}

// A folder that is removed, renamed or mounted again while Caddy runs is used again within a minute,
// and one that cannot be used is reported.
func TestFolderThatVanishes(t *testing.T) {
	t.Parallel()
	for name, vanish := range map[string]func(path string) error{
		"removed":   os.RemoveAll,
		"renamed":   func(path string) error { return os.Rename(path, path+".old") },
		"remounted": func(path string) error { return errors.Join(os.Rename(path, path+".old"), os.Mkdir(path, 0o700)) },
		"blocked":   func(path string) error { return errors.Join(os.RemoveAll(path), os.WriteFile(path, nil, 0o600)) },
	} {
		synctest.Test(t, func(t *testing.T) {
			origin := &segments{size: 1000, control: "max-age=3600"}
			s := newScene(origin.answer)
			warned := s.addDisk(t, filepath.Join(t.TempDir(), "cache"))
			d := s.config.Disk
			s.want(t, "/a.ts", fromOrigin, origin.body("/a.ts"))
			s.emptyMemory(t)
			if err := vanish(d.path); err != nil {
				t.Fatal(err)
			}
			<-time.After(lookEvery + time.Second)
			synctest.Wait()
			if name == "blocked" {
				if text := warned.take(); len(text) != 1 || os.Remove(d.path) != nil {
					t.Errorf("warnings: %q", text)
				}
				<-time.After(lookEvery)
			}
			synctest.Wait()
			for _, want := range []string{fromOrigin, diskHit} {
				s.want(t, "/a.ts", want, origin.body("/a.ts"))
				s.emptyMemory(t)
			}
			s.checkDisk(t)
			if text := warned.take(); text != nil {
				t.Errorf("%s: warnings: %q", name, text)
			}
			d.Close()
		})
	}
}

// Two processes would evict each other's files.
func TestOneProcessForAFolder(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	first, second := NewDisk(path, nil), NewDisk(path, nil)
	if err := first.Open(); err != nil {
		t.Fatal(err)
	}
	if err := second.Open(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a second one opens it: %v", err)
	}
	first.Close()
	if err := second.Open(); err != nil {
		t.Error(err)
	}
	second.Close()
	file := filepath.Join(path, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{file, filepath.Join(file, "x"), "/proc/none"} {
		if err := NewDisk(bad, nil).Open(); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s opens: %v", bad, err)
		}
	}
}

// The attack of another user of the machine who puts files there.
func TestFoldersThatOthersMayWrite(t *testing.T) {
	t.Parallel()
	for mode, open := range map[os.FileMode]bool{0o700: true, 0o755: true, 0o750: true, 0o770: false, 0o702: false, 0o777 | os.ModeSticky: false} {
		path := t.TempDir()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		d := NewDisk(path, nil)
		if err := d.Open(); (err == nil) != open {
			t.Errorf("mode %v: %v", mode, err)
		}
		d.Close()
		root, err := os.OpenRoot(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkFolder(root, os.Geteuid()+1); err == nil {
			t.Errorf("mode %v: root uses the folder of another user", mode)
		}
		root.Close()
		below := NewDisk(filepath.Join(path, "cache"), nil)
		if err := below.Open(); err != nil {
			t.Errorf("mode %v: a new folder in it: %v", mode, err)
		}
		below.Close()
	}
}

// A disk that hangs keeps neither viewers nor a reload waiting, nor takes more threads than a few.
func TestHungDisk(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		reads, objects, size int // reads before the one that hangs; -1: opening the file does
		want                 string
	}{
		"opening":                 {-1, 200, 1000, fromOrigin},
		"reading the header":      {0, 200, 1000, fromOrigin},
		"reading the first block": {2, 200, 1000, fromOrigin},
		"reading a later block":   {3, 30, 300 << 10, diskHit},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				origin := &segments{size: tc.size, control: "max-age=100"}
				s := newScene(origin.answer)
				s.addDisk(t, t.TempDir())
				d := s.config.Disk
				for i := range tc.objects {
					s.ask("GET", fmt.Sprintf("/%d.ts", i))
					d.settle(t)
				}
				s.emptyMemory(t)
				released := make(chan struct{})
				var reading atomic.Int64
				d.open = func(root *os.Root, path string) (diskReader, int64, error) {
					reading.Add(1)
					f, size, err := openRegular(root, path)
					if tc.reads < 0 {
						<-released
					}
					return &hung{diskReader: f, after: tc.reads, released: released}, size, err
				}
				d.create = func(root *os.Root, path string) (diskWriter, error) {
					<-released
					return createFile(root, path)
				}
				for i := range tc.objects {
					path := fmt.Sprintf("/%d.ts", i)
					s.want(t, path, tc.want, origin.body(path))
				}
				if want := min(tc.objects, maxReads); int(reading.Load()) != want {
					t.Errorf("%d reads hang, want %d", reading.Load(), want)
				}
				d.Close()
				close(released)
			})
		})
	}
}

// hung is a file that hangs after so many reads.
type hung struct {
	diskReader
	after    int
	released chan struct{}
}

func (h *hung) ReadAt(p []byte, offset int64) (int, error) {
	if h.after--; h.after < 0 {
		<-h.released
	}
	return h.diskReader.ReadAt(p, offset)
}

// What waits to be written is bounded, and is never more than a part of the memory.
func TestSlowDisk(t *testing.T) {
	t.Parallel()
	origin := &segments{size: 300 << 10, control: "max-age=100"}
	s := newScene(origin.answer)
	s.addDisk(t, t.TempDir())
	s.config.Disk.settle(t)
	release := make(chan struct{})
	s.config.Disk.create = func(root *os.Root, path string) (diskWriter, error) {
		<-release
		return createFile(root, path)
	}
	for i := range 50 {
		path := fmt.Sprintf("/%d.ts", i)
		s.want(t, path, fromOrigin, origin.body(path))
	}
	s.config.Disk.mu.Lock()
	if pending := s.config.Disk.pending; pending > s.config.Memory/waitingPart {
		t.Errorf("%d bytes wait", pending)
	}
	s.config.Disk.mu.Unlock()
	close(release)
	s.checkDisk(t)
}

// TestNoWrongBytesFromDisk has viewers ask at random while the origin fails and changes, files
// are damaged, and the disk, which is too small, is closed and opened again.
func TestNoWrongBytesFromDisk(t *testing.T) {
	t.Parallel()
	var version atomic.Uint64
	path := t.TempDir()
	faulty := faultyOrigin(&version)
	s := newScene(func(w http.ResponseWriter, r *http.Request) error {
		return faulty(&longLived{ResponseWriter: w}, r)
	}, func(c *Config) { c.Memory, c.MaxObject = 3<<20, 1<<20 })
	var damaged atomic.Int64
	for round := range 3 {
		s.config.Disk = NewDisk(path, func(string, error) { damaged.Add(1) })
		s.config.Disk.Use(4 << 20)
		s.config.Disk.now = s.now
		if err := s.config.Disk.Open(); err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		for viewer := range 8 {
			group.Go(func() {
				random := rand.New(rand.NewPCG(uint64(viewer), uint64(round)))
				for range 30 {
					path := fmt.Sprintf("/v%d/s%d.m4s", random.IntN(3), random.IntN(12))
					if err := s.visitAtRandom(path, random); err != nil {
						t.Errorf("%s: %v", path, err)
					}
					switch random.IntN(20) {
					case 0:
						version.Add(1)
					case 1:
						if files := s.config.Disk.list(t); len(files) > 0 {
							file := files[random.IntN(len(files))]
							if info, err := os.Stat(file); err == nil && info.Size() > 0 {
								flip(file, random.IntN(int(info.Size())))
							}
						}
					case 2:
						s.advance(time.Duration(random.IntN(200)) * time.Second)
					}
				}
			})
		}
		group.Wait()
		s.untilIdle()
		s.config.Disk.Close()
	}
	s.checkMemory(t)
}

// longLived makes answers of the origin worth writing to the disk.
type longLived struct{ http.ResponseWriter }

func (w *longLived) WriteHeader(status int) {
	if strings.HasPrefix(w.Header().Get("Cache-Control"), "max-age=1") {
		w.Header().Set("Cache-Control", "max-age=300, stale-if-error=100")
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *longLived) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.ResponseWriter.Write(p)
}
