package controlapi

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/store/storetest"
)

// An unfiltered list looks like a filtered one, so a query that the API does not
// understand is refused.
func TestListQueriesThatAreRefused(t *testing.T) {
	t.Parallel()
	for why, queries := range map[string][]string{
		"per_page":       {"per_page=0", "per_page=1001", "per_page=-1", "per_page=ten", "per_page="},
		"limit":          {"limit=0", "limit=1e2", "limit=99999999999999999999"},
		"start":          {"start=yesterday", "start="},
		"end":            {"end=2026-01-02"},
		"after":          {"after=1800000000"},
		"before":         {"before=2026-01-02T25:00:00Z"},
		"asc":            {"asc=yes", "asc="},
		"include_counts": {"include_counts=2"},
		"same":           {"limit=2&per_page=3", "per_page=2&limit=2", "start=2026-01-02T03:04:05Z&after=2026-01-02T03:04:05Z", "before=x&end=y"},
		"query":          {"%zz=1", "a;b=1", "search=%zz"},
		"unknown": {
			"page=2", "Status=ready", "status=ready&status=error", "id=a&id=b", "q=x", "=x", "requireSignedURLs=true", strings.Repeat("x", 300) + "=1",
		},
	} {
		for _, query := range queries {
			_, err := parsePage(query, new(videoFilter).readers())
			wantBadRequest(t, query, err, why)
		}
	}
}

func TestListFilters(t *testing.T) {
	t.Parallel()
	var videos []*state.VideoDocument
	for i, described := range []map[string]string{
		{"meta": `{"name":"First Film"}`, "creator": `"me"`}, {"meta": `{"name":"second"}`, "creator": `"you"`}, {"meta": `{"name":7}`}, {"creator": `""`},
	} {
		doc := &state.VideoDocument{UID: string(rune('a' + i)), Created: time.Date(2026, 1, 1+i, 12, 0, 0, 0, time.UTC), Descriptive: map[string]json.RawMessage{}}
		for name, value := range described {
			doc.Descriptive[name] = json.RawMessage(value)
		}
		videos = append(videos, doc)
	}
	videos = append(videos, &state.VideoDocument{UID: "config"})
	const all = "a b c d config"
	for query, want := range map[string]string{
		"": all, "id=a": "a", "id=a,c,none": "a c", "id=": "", "id=A": "",
		"name=second": "b", "name=First+Film,d": "a d", "name=first+film": "",
		"video_name=second": "b", "video_name=d": "", "video_name=First+Film,second": "",
		"search=film": "a", "search=S": "a b", "search=": all, "search=7": "",
		"creator=me": "a", "creator=ME": "", "creator=": "c d config",
		"start=2026-01-02T12:00:00Z": "c d", "after=2026-01-02T11:59:59Z": "b c d", "after=2026-01-02T13:00:00%2B02:00": "b c d", // 11:00 UTC
		"end=2026-01-02T12:00:00Z": "a config", "before=2026-01-02T12:00:01Z": "a b config",
		"start=2026-01-01T12:00:00Z&end=2026-01-03T12:00:00Z": "b",
		"status=ready": all, "status=error": "", "type=vod": all, "type=live": "", "live_input_id=x": "",
		"creator=me&id=b": "", "creator=you&id=a,b&search=sec": "b",
		"per_page=1&asc=true&include_counts=true": all, // those of the page come later
	} {
		var filter videoFilter
		first := firstOf[*state.VideoDocument]{listPage: must(parsePage(query, filter.readers())), place: placeOfVideo}
		for _, doc := range videos {
			if filter.matches(doc) {
				first.add(doc)
			}
		}
		var got []string
		for _, doc := range first.kept {
			got = append(got, doc.UID)
		}
		if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%q (-want +got):\n%s", query, diff)
		}
	}
	for _, query := range []string{"status=error&type=vod", "status=ready&type=live"} {
		for range 20 { // the parameters are read in any order
			var filter videoFilter
			if _ = must(parsePage(query, filter.readers())); filter.matches(videos[0]) {
				t.Fatalf("%q lists a video", query)
			}
		}
	}
	for query, want := range map[string]listPage{
		"": {limit: 1000}, "per_page=1": {limit: 1}, "limit=1000": {limit: 1000},
		"asc=true&include_counts=true": {limit: 1000, ascending: true, counts: true}, "asc=false&include_counts=0": {limit: 1000},
	} {
		if page, err := parsePage(query, nil); err != nil || page != want {
			t.Errorf("%q = %+v, %v", query, page, err)
		}
	}
}

// If there are many more videos than a list may have, the list has the first of them,
// in whatever order the store returns them, and only a bounded number is in memory.
func TestListOfManyVideos(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	for _, page := range []listPage{{limit: 1}, {limit: 7, ascending: true}, {limit: maxListed}, {limit: maxListed, ascending: true}} {
		for _, n := range []int{0, 5, 2*maxListed - 1, 2 * maxListed, 5 * maxListed} {
			given := make([]*state.VideoDocument, n)
			for i := range given { // some are of the same moment
				given[i] = &state.VideoDocument{UID: fmt.Sprintf("v%05d", i), Created: testTime.Add(time.Duration(random.IntN(2000)) * time.Second)}
			}
			want := slices.Clone(given) // by id
			slices.SortStableFunc(want, func(a, b *state.VideoDocument) int {
				if page.ascending {
					return a.Created.Compare(b.Created)
				}
				return b.Created.Compare(a.Created)
			})
			random.Shuffle(n, func(i, j int) { given[i], given[j] = given[j], given[i] })
			first, most := firstOf[*state.VideoDocument]{listPage: page, place: placeOfVideo}, 0
			for _, v := range given {
				first.add(v)
				most = max(most, len(first.kept))
			}
			if !slices.Equal(want[:min(n, page.limit)], first.sorted()) {
				t.Errorf("ascending %t, limit %d: some of %d videos are wrong", page.ascending, page.limit, n)
			}
			if first.total != n || most > 2*maxListed {
				t.Errorf("%d videos are counted and up to %d are in memory, want %d and at most %d", first.total, most, n, 2*maxListed)
			}
		}
	}
}

// listed returns the ids of a list in its order.
func (c controlled) listed(t *testing.T, query string) (string, reply) {
	t.Helper()
	a := c.call(t, "GET", streamPath+"?"+query, "")
	ids := []string{}
	for _, v := range resultOf[[]struct{ UID string }](t, query, a) {
		ids = append(ids, v.UID)
	}
	return strings.Join(ids, " "), a
}

// The list has the videos with settings, newest first, and each video of the config
// file once, with the settings in force.
func TestListOfVideos(t *testing.T) {
	t.Parallel()
	c := control(t, func(config *Config) { config.Videos = map[string]VideoSettings{"config": {}, "both": {}} })
	if ids, a := c.listed(t, "include_counts=true"); ids != "both config" || a.total != "2" {
		t.Errorf("an empty store: the list has %q, %s in all", ids, a.total)
	}
	for i, id := range []string{"old", "both", "new", "Zebra"} {
		c.store.plant(store.Videos, id, fmt.Sprintf(`{"uid":%q,"created":"2026-01-0%dT00:00:00Z","requireSignedURLs":true}`, id, 1+i))
	}
	for query, want := range map[string]string{
		"": "Zebra new old both config", "asc=true": "both config old new Zebra", "limit=2": "Zebra new", "per_page=2&asc=true": "both config",
		"id=new,both": "new both", "search=x": "", "status=queued": "", "start=2026-01-02T00:00:00Z": "Zebra new",
	} {
		if ids, a := c.listed(t, query); ids != want || a.total != "" {
			t.Errorf("%q lists %q, %s in all, want %q without a count", query, ids, a.total, want)
		}
	}
	list := func(id string) []map[string]any {
		return resultOf[[]map[string]any](t, id, c.call(t, "GET", streamPath+"?id="+id, ""))
	}
	old, both := list("old"), list("both")
	if old[0]["requireSignedURLs"] != true || old[0]["created"] != "2026-01-01T00:00:00.000000Z" || both[0]["requireSignedURLs"] != false || both[0]["created"] != nil {
		t.Errorf("the settings in the list are not in force: %v %v", old, both)
	}
	if ids, a := c.listed(t, "limit=2&include_counts=true"); ids != "Zebra new" || !strings.Contains(a.raw, `"total":"5","range":"2"`) {
		t.Errorf("with counts: %s", a.raw)
	}
}

// A damaged object does not end the list; a warning names it. If the store fails
// before the end of the list, the call fails.
func TestListWithDamagedVideos(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	c.store.plant(store.Videos, "good", `{"uid":"good"}`)
	c.store.plant(store.Videos, "bad", "")
	c.store.plant(store.Videos, "worse", `{"uid":"other"}`)
	ids, a := c.listed(t, "include_counts=true")
	if ids != "good" || a.total != "1" {
		t.Errorf("the list is %s", a.raw)
	}
	want := []message{{codeWarning, fmt.Sprintf(damagedVideo, "bad")}, {codeWarning, fmt.Sprintf(damagedVideo, "worse")}}
	if diff := cmp.Diff(want, a.messages); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
	c.store.Intercept(storetest.On("read", "good", storetest.Down), nil)
	wantReply(t, "a list that breaks off", c.call(t, "GET", streamPath, ""), 503, codeUnavailable)
	c.store.Intercept(nil, nil)
	wantReply(t, "the list after that", c.call(t, "GET", streamPath, ""), 200, 0)
}

// A list reads the whole store, so the API makes one list at a time. Few calls wait
// for their turn, none of them for long, and a waiting client can cancel.
func TestListsAreMadeOneAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := control(t, nil)
		proceed := make(chan struct{})
		c.store.Intercept(storetest.On("list", "", func(context.Context, string, store.Name) error { <-proceed; return nil }), nil)
		list := func(ctx context.Context) <-chan reply {
			done := make(chan reply, 1)
			go func() {
				done <- c.call(t, "GET", streamPath, "", func(r *http.Request) { *r = *r.WithContext(ctx) })
			}()
			synctest.Wait()
			return done
		}
		before := c.store.Count("list")
		first := list(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		cancelled := list(ctx)
		cancel()
		wantReply(t, "the list of a client that has cancelled", <-cancelled, 503, codeUnavailable)
		var waiting []<-chan reply
		for range maxWaitingLists {
			waiting = append(waiting, list(t.Context()))
		}
		wantReply(t, "one list too many", <-list(t.Context()), 503, codeUnavailable)
		for _, done := range waiting {
			wantReply(t, "a list that waited too long", <-done, 503, codeUnavailable)
		}
		if got := c.store.Count("list") - before; got != 1 {
			t.Errorf("%d lists are made at once, want 1", got)
		}
		close(proceed)
		wantReply(t, "the first list", <-first, 200, 0)
		wantReply(t, "the next list", c.call(t, "GET", streamPath, ""), 200, 0)
	})
}
