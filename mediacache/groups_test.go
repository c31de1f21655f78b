package mediacache

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// byGroup reads the group and its generation from the query.
func byGroup(c *Config) {
	c.Query = []string{"none"}
	c.Variant = func(r *http.Request) Variant {
		generation, _ := strconv.ParseInt(r.URL.Query().Get("g"), 10, 64)
		return Variant{Group: r.URL.Query().Get("group"), Generation: generation}
	}
}

// A new generation drops the objects of its group, those that still arrive and slices too, gives
// their memory back, and leaves other groups alone. No request with an earlier one brings
// them back.
func TestGenerations(t *testing.T) {
	t.Parallel()
	var version atomic.Int64
	version.Store(1)
	large := randomBytes(1, 5<<20)
	arriving, rest := make(chan struct{}), make(chan struct{})
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["Content-Type"], h["Etag"] = []string{"video/mp4"}, []string{strconv.Quote(fmt.Sprint(version.Load()))}
		switch r.URL.Path {
		case "/large":
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(large))
		case "/slow":
			fmt.Fprint(w, version.Load())
			w.(http.Flusher).Flush()
			if version.Load() == 1 {
				close(arriving)
				<-rest
			}
			io.WriteString(w, ".")
		default:
			fmt.Fprint(w, version.Load())
		}
	}, byGroup)
	ask := func(path, group string, generation int) string {
		a := s.get(t, fmt.Sprintf("%s?group=%s&g=%d", path, group, generation), "Range", "bytes=0-1")
		return fmt.Sprintf("%.2q %s", a.body, status(a))
	}
	slow := make(chan answer)
	go func() { slow <- s.get(t, "/slow?group=a&g=0") }()
	<-arriving
	for _, path := range []string{"/1?group=a", "/2?group=a", "/3?group=b", "/large?group=a"} {
		s.get(t, path)
	}
	version.Store(2)
	const hit, miss = "signed-playback; hit", "signed-playback; fwd=uri-miss"
	var got []string
	for _, of := range []struct {
		path, group string
		generation  int
	}{{"/1", "a", 7}, {"/2", "a", 3}, {"/2", "a", 0}, {"/1", "a", 7}, {"/3", "b", 0}, {"/slow", "a", 7}} {
		got = append(got, ask(of.path, of.group, of.generation))
	}
	want := []string{`"2" ` + miss, `"2" ` + miss, `"2" ` + hit, `"2" ` + hit, `"1" ` + hit, `"2." ` + miss}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	close(rest)
	if a := <-slow; string(a.body) != "1." {
		t.Errorf("a viewer from before got %q, %v", a.body, a.err)
	}
	s.idle(t)
	if got := ask("/slow", "a", 0); got != `"2." `+hit {
		t.Errorf("after a fill from before: %s", got)
	}
	for k := range s.cache.index.entries {
		if k.Group == "a" && k.Generation != 7 {
			t.Errorf("the cache still has %+v", k)
		}
	}
	s.checkMemory(t)
}

// A cache tells the one in the next tier the generation, so what was purged before is not
// used there either. No value that a stranger invents shows another generation or drops one.
func TestGenerationsInTheNextTier(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	next := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "video/mp2t")
		fmt.Fprintf(w, "%d%q", asked.Add(1), r.Header[GenerationHeader])
	})
	first := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		var fields []string
		if r.Header[GenerationHeader] != nil {
			fields = []string{GenerationHeader, r.Header.Get(GenerationHeader)}
		}
		w.Header().Set("Content-Type", "video/mp2t")
		w.Write(next.get(t, r.URL.Path, fields...).body)
	}, func(c *Config) { byGroup(c); c.SegmentTTL = 0 })
	const hit = "signed-playback; hit"
	var got []string
	for _, generation := range []int{0, 7, 7, 3, 9, 9} {
		got = append(got, string(first.get(t, fmt.Sprintf("/1?group=a&g=%d", generation)).body))
		first.idle(t)
	}
	for _, value := range []string{"", "-1", "9, 7", "1e3", "9223372036854775808", "unknown", "0", "9", "7", "70"} {
		a := next.get(t, "/1", GenerationHeader, value)
		got = append(got, fmt.Sprintf("%s: %s %s", value, a.body, status(a)))
	}
	want := []string{
		`1[]`, `2["7"]`, `2["7"]`, `2["7"]`, `3["9"]`, `3["9"]`,
		`: 4[""] `, `-1: 5["-1"] `, `9, 7: 6["9, 7"] `, `1e3: 7["1e3"] `, `9223372036854775808: 8["9223372036854775808"] `, `unknown: 9["unknown"] `,
		`0: 1[] ` + hit, `9: 3["9"] ` + hit, `7: 2["7"] ` + hit, `70: 10["70"] signed-playback; fwd=uri-miss`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
