package mediacache

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

// said is what the origin of the model says about an answer. Its fields are numbers of
// seconds, or -1 if the origin does not mention them.
type said struct {
	status, version                    int
	maxAge, sMaxAge, expires, age      int
	staleWhileRevalidate, staleIfError int
	noStore, private, noCache, must    bool
	vary                               string
	etag                               bool
	given                              int  // when, in seconds
	confirmed                          bool // by a 304
}

func (a said) write(h http.Header) {
	var directives []string
	for _, d := range []struct {
		name string
		on   bool
	}{{"no-store", a.noStore}, {"private", a.private}, {"no-cache", a.noCache}, {"must-revalidate", a.must}} {
		if d.on {
			directives = append(directives, d.name)
		}
	}
	for _, d := range []struct {
		name    string
		seconds int
	}{
		{"max-age", a.maxAge},
		{"s-maxage", a.sMaxAge},
		{"stale-while-revalidate", a.staleWhileRevalidate},
		{"stale-if-error", a.staleIfError},
	} {
		if d.seconds >= 0 {
			directives = append(directives, fmt.Sprintf("%s=%d", d.name, d.seconds))
		}
	}
	if len(directives) > 0 {
		h.Set("Cache-Control", strings.Join(directives, ", "))
	}
	if a.expires >= 0 {
		h.Set("Date", modelStart.Add(time.Duration(a.given)*time.Second).Format(http.TimeFormat))
		h.Set("Expires", modelStart.Add(time.Duration(a.given+a.expires)*time.Second).Format(http.TimeFormat))
	}
	if a.age >= 0 {
		h.Set("Age", strconv.Itoa(a.age))
	}
	if a.vary != "" {
		h.Set("Vary", a.vary)
	}
	if a.etag {
		h.Set("ETag", fmt.Sprintf(`"%d"`, a.version))
	}
	h.Set("X-Version", strconv.Itoa(a.version))
}

// lifetime is RFC 9111 section 4.2.1, with the TTLs of the configuration. There is none
// for 302.
func (a said) lifetime() int {
	switch {
	case a.sMaxAge >= 0:
		return a.sMaxAge
	case a.maxAge >= 0:
		return a.maxAge
	case a.expires >= 0:
		return a.expires
	case a.status == 200 || a.status == 301:
		return 20
	case a.status == 404:
		return 5
	}
	return 0
}

func (a said) mayBeStored() bool {
	return !a.noStore && !a.private && (a.vary == "" || a.vary == "Accept-Encoding") && (a.status == 200 || a.status == 301 || a.status == 302 || a.status == 404)
}

// mayAnswer is what a shared cache may answer from memory at a time (RFC 9111 section
// 4), without asking the origin. failed: the origin has been asked, and has failed.
func (a said) mayAnswer(now int, isManifest, failed bool) bool {
	age := max(a.age, 0) + now - a.given
	allowed := a.lifetime()
	if !a.must && a.sMaxAge < 0 && !isManifest && a.status == 200 {
		if failed {
			allowed += max(a.staleIfError, 0)
		} else {
			allowed += max(a.staleWhileRevalidate, 0)
		}
	}
	return a.mayBeStored() && !a.noCache && age < allowed
}

var modelStart = time.Unix(1_800_000_000, 0).UTC()

// model is an origin that knows what the cache may know of it.
type model struct {
	*scene
	random  *rand.Rand
	now     int
	current map[string]said // by path, the last that a cache may use
	version int
	failed  bool
	lost    map[string]bool // by path: memory has been emptied since the origin's last answer, and the disk may have it
}

func (m *model) say() said {
	number := func(atMost int) int {
		if m.random.IntN(3) > 0 {
			return -1
		}
		return m.random.IntN(atMost)
	}
	rarely := func() bool { return m.random.IntN(12) == 0 }
	m.version++
	return said{
		status: []int{200, 200, 200, 200, 404, 301, 302, 203}[m.random.IntN(8)], version: m.version, given: m.now,
		maxAge: number(12), sMaxAge: number(12), expires: number(12), age: number(6),
		staleWhileRevalidate: number(10), staleIfError: number(20),
		noStore: rarely(), private: rarely(), noCache: rarely(), must: rarely(), etag: m.random.IntN(2) == 0,
		vary: []string{"", "", "", "", "Accept-Encoding", "Cookie", "*"}[m.random.IntN(7)],
	}
}

// answer is the handler of the origin.
func (m *model) answer(w http.ResponseWriter, r *http.Request) error {
	m.failed = m.random.IntN(5) == 0
	if m.failed && m.random.IntN(2) == 0 {
		return fmt.Errorf("the origin is down")
	}
	if m.failed {
		w.WriteHeader(http.StatusBadGateway)
		return nil
	}
	old, known := m.current[r.URL.Path]
	a := m.say()
	if m.random.IntN(2) == 0 && known && old.etag && r.Header.Get("If-None-Match") == fmt.Sprintf(`"%d"`, old.version) {
		a.status, a.version, a.etag, a.confirmed = old.status, old.version, true, true
		if m.lost[r.URL.Path] && old.confirmed {
			a.maxAge = 5 // the disk has the fields of the answer before the last 304
		}
		// Fields that a 304 leaves out keep their values.
		if a.vary == "" {
			a.vary = old.vary
		}
		if a.expires < 0 && old.expires >= 0 {
			a.expires = max(old.given+old.expires-a.given, 0)
		}
		a.write(w.Header())
		if w.Header().Get("Cache-Control") == "" {
			a.maxAge, a.sMaxAge, a.noStore, a.private, a.noCache, a.must = old.maxAge, old.sMaxAge, old.noStore, old.private, old.noCache, old.must
			a.staleWhileRevalidate, a.staleIfError = old.staleWhileRevalidate, old.staleIfError
		}
		m.current[r.URL.Path], m.lost[r.URL.Path] = a, false
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	m.current[r.URL.Path], m.lost[r.URL.Path] = a, false
	a.write(w.Header())
	w.WriteHeader(a.status)
	_, err := fmt.Fprintf(w, "%s version %d", r.URL.Path, a.version)
	return err
}

// TestAgainstAModel compares the cache with a model of what RFC 9111 permits, over random
// sequences of requests, answers of the origin and steps of the clock: an answer
// without the origin must be permitted, must be the last version that the origin gave, and
// must be given if the object is fresh. In some sequences, there is a disk too, and
// memory is emptied now and then.
func TestAgainstAModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		m := &model{random: rand.New(rand.NewPCG(seed, 9)), current: map[string]said{}, lost: map[string]bool{}}
		m.scene = newScene(m.answer)
		withDisk := seed%5 == 1
		if withDisk {
			m.addDisk(t, t.TempDir())
			m.config.Disk.worth = 1
		}
		m.config.SegmentTTL, m.config.ManifestTTL, m.config.ErrorTTL = 20*time.Second, 20*time.Second, 5*time.Second
		for step := range 60 {
			m.now += m.random.IntN(5) * m.random.IntN(3)
			m.clock.Store(int64(m.now) * int64(time.Second))
			if withDisk && m.random.IntN(4) == 0 {
				m.emptyMemory(t)
				for path := range m.current {
					m.lost[path] = true
				}
			}
			path := fmt.Sprintf("/%d.%s", m.random.IntN(3), []string{"ts", "m3u8"}[m.random.IntN(2)])
			if err := m.check(path); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
		}
	}
}

func (m *model) check(path string) error {
	before, known := m.current[path]
	isManifest := strings.HasSuffix(path, ".m3u8")
	asked := len(m.asked)
	mayBeLost := m.lost[path] && (before.status != http.StatusOK || before.confirmed || before.lifetime() <= max(before.age, 0))
	m.failed = false
	w := httptest.NewRecorder()
	err := m.serve(w, httptest.NewRequest(http.MethodGet, path, nil))
	wasAsked, got := len(m.asked) > asked, w.Header().Get("X-Version")
	result := fmt.Sprintf("%s at %d: status %d, version %s, %q, error %v, before %+v, after %+v", path, m.now, w.Code, got, w.Header().Get("Cache-Status"), err, before, m.current[path])
	switch background := wasAsked && strings.Contains(w.Header().Get("Cache-Status"), "hit") && !m.failed; {
	case !wasAsked || background:
		if !known || got != strconv.Itoa(before.version) || w.Code != before.status || !before.mayAnswer(m.now, isManifest, false) {
			return fmt.Errorf("answered without the origin: %s", result)
		}
	case m.failed && got != "":
		if !known || got != strconv.Itoa(before.version) || !before.mayAnswer(m.now, isManifest, true) && !before.mayAnswer(m.now, isManifest, false) {
			return fmt.Errorf("used although it is too stale: %s", result)
		}
	case m.failed:
		if known && before.mayAnswer(m.now, isManifest, true) && !mayBeLost {
			return fmt.Errorf("failed although the old object may be used: %s", result)
		}
	case got != strconv.Itoa(m.current[path].version) || w.Code != m.current[path].status:
		return fmt.Errorf("not what the origin said: %s", result)
	}
	fresh := before
	fresh.staleWhileRevalidate = -1
	if wasAsked && known && !mayBeLost && fresh.mayAnswer(m.now, isManifest, false) {
		return fmt.Errorf("the origin was asked although the object is fresh: %s", result)
	}
	if age, err := strconv.Atoi(w.Header().Get("Age")); !wasAsked && (err != nil || age != max(before.age, 0)+m.now-before.given) {
		return fmt.Errorf("a wrong Age %q: %s", w.Header().Get("Age"), result)
	}
	return nil
}
