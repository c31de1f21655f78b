package mediacache

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"testing/synctest"
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
	synctest.Test(t, func(t *testing.T) {
		version, file, rest := 1, randomBytes(1, 5<<20), make(chan struct{})
		s := newScene(func(w http.ResponseWriter, r *http.Request) error {
			h := w.Header()
			h["Content-Type"], h["Etag"] = []string{"video/mp4"}, []string{strconv.Quote(fmt.Sprint(version))}
			switch r.URL.Path {
			case "/large":
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file))
			case "/slow":
				fmt.Fprint(w, version)
				if version == 1 {
					<-rest
				}
				io.WriteString(w, ".")
			default:
				fmt.Fprint(w, version)
			}
			return nil
		}, byGroup)
		ask := func(path, group string, generation int) string {
			w, r := httptest.NewRecorder(), httptest.NewRequest("GET", fmt.Sprintf("%s?group=%s&g=%d", path, group, generation), nil)
			r.Header.Set("Range", "bytes=0-1")
			if err := s.visit(w, r); err != nil {
				t.Error(path, err)
			}
			synctest.Wait()
			return fmt.Sprintf("%.2q %s", w.Body, status(w))
		}
		slow := httptest.NewRecorder()
		go s.visit(slow, httptest.NewRequest("GET", "/slow?group=a&g=0", nil))
		synctest.Wait()
		for path, group := range map[string]string{"/1": "a", "/2": "a", "/3": "b", "/large": "a"} {
			ask(path, group, 0)
		}
		version = 2
		const miss = `"2" ` + fromOrigin
		for _, tc := range []struct {
			path, group string
			generation  int
			want        string
		}{
			{"/1", "a", 7, miss},
			{"/2", "a", 3, miss},
			{"/2", "a", 0, `"2" ` + memoryHit},
			{"/1", "a", 7, `"2" ` + memoryHit},
			{"/3", "b", 0, `"1" ` + memoryHit},
			{"/slow", "a", 7, `"2." ` + fromOrigin},
		} {
			if got := ask(tc.path, tc.group, tc.generation); got != tc.want {
				t.Errorf("%+v: %s", tc, got)
			}
		}
		close(rest)
		synctest.Wait()
		if slow.Body.String() != "1." {
			t.Errorf("a viewer from before got %q", slow.Body)
		}
		if got := ask("/slow", "a", 0); got != `"2." `+memoryHit {
			t.Errorf("after a fill from before: %s", got)
		}
		for k := range s.index.entries {
			if k.Group == "a" && k.Generation != 7 {
				t.Errorf("the cache still has %+v", k)
			}
		}
		s.checkMemory(t)
	})
}

// A cache tells the one in the next tier the generation, so what was purged before is not
// used there either. No value that a stranger invents shows another generation or drops one.
func TestGenerationsInTheNextTier(t *testing.T) {
	t.Parallel()
	var next *scene
	next = newScene(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Content-Type", "video/mp2t")
		_, err := fmt.Fprintf(w, "%d%q", len(next.asked), r.Header[GenerationHeader])
		return err
	})
	first := newScene(func(w http.ResponseWriter, r *http.Request) error {
		var fields []string
		if r.Header[GenerationHeader] != nil {
			fields = []string{GenerationHeader, r.Header.Get(GenerationHeader)}
		}
		answer, err := next.ask("GET", r.URL.Path, fields...)
		w.Header().Set("Content-Type", "video/mp2t")
		w.Write(answer.Body.Bytes())
		return err
	}, func(c *Config) { byGroup(c); c.SegmentTTL = 0 })
	var got []string
	for _, generation := range []int{0, 7, 7, 3, 9, 9} {
		w, err := first.ask("GET", fmt.Sprintf("/1?group=a&g=%d", generation))
		if err != nil {
			t.Error(err)
		}
		got = append(got, w.Body.String())
	}
	for _, value := range []string{"", "-1", "9, 7", "1e3", "9223372036854775808", "unknown", "0", "9", "7", "70"} {
		w, _ := next.ask("GET", "/1", GenerationHeader, value)
		got = append(got, fmt.Sprintf("%s: %s %s", value, w.Body, status(w)))
	}
	want := []string{
		`1[]`, `2["7"]`, `2["7"]`, `2["7"]`, `3["9"]`, `3["9"]`,
		`: 4[""] `, `-1: 5["-1"] `, `9, 7: 6["9, 7"] `, `1e3: 7["1e3"] `, `9223372036854775808: 8["9223372036854775808"] `, `unknown: 9["unknown"] `,
		`0: 1[] ` + memoryHit, `9: 3["9"] ` + memoryHit, `7: 2["7"] ` + memoryHit, `70: 10["70"] ` + fromOrigin,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
