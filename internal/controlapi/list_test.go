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
)

// A list that is not filtered looks like one that is, so a query that is not
// understood is refused.
func TestListQueriesThatAreRefused(t *testing.T) {
	t.Parallel()
	for query, why := range map[string]string{
		"per_page=0":                    "per_page",
		"per_page=1001":                 "per_page",
		"per_page=-1":                   "per_page",
		"per_page=ten":                  "per_page",
		"per_page=":                     "per_page",
		"limit=0":                       "limit",
		"limit=1e2":                     "limit",
		"limit=99999999999999999999":    "limit",
		"start=yesterday":               "start",
		"start=":                        "start",
		"end=2026-01-02":                "end",
		"after=1800000000":              "after",
		"before=2026-01-02T25:00:00Z":   "before",
		"asc=yes":                       "asc",
		"asc=":                          "asc",
		"include_counts=2":              "include_counts",
		"page=2":                        `"page"`,
		"Status=ready":                  `"Status"`,
		"status=ready&status=error":     `"status"`,
		"id=a&id=b":                     `"id"`,
		"q=x":                           `"q"`,
		"=x":                            `""`,
		"%zz=1":                         "query",
		"a;b=1":                         "query",
		"search=%zz":                    "query",
		"requireSignedURLs=true":        `"requireSignedURLs"`,
		strings.Repeat("x", 300) + "=1": "unknown",
	} {
		filter, err := parseVideoFilter(query)
		wantBadRequest(t, query, err, why)
		if filter != nil {
			t.Errorf("%s: a filter beside the error", query)
		}
	}
}

func TestListFilters(t *testing.T) {
	t.Parallel()
	day := func(n int) time.Time { return time.Date(2026, 1, n, 12, 0, 0, 0, time.UTC) }
	doc := func(created int, meta, creator string) *state.VideoDocument {
		d := &state.VideoDocument{Created: day(created), Descriptive: map[string]json.RawMessage{}}
		if meta != "" {
			d.Descriptive["meta"] = json.RawMessage(meta)
		}
		if creator != "" {
			d.Descriptive["creator"] = json.RawMessage(creator)
		}
		return d
	}
	videos := map[string]*state.VideoDocument{
		"a":      doc(1, `{"name":"First Film"}`, `"me"`),
		"b":      doc(2, `{"name":"second"}`, `"you"`),
		"c":      doc(3, `{"name":7}`, ``),
		"d":      doc(4, ``, `""`),
		"config": {},
	}
	for query, want := range map[string]string{
		"":                             "a b c config d",
		"id=a":                         "a",
		"id=a,c,none":                  "a c",
		"id=":                          "",
		"id=A":                         "",
		"name=second":                  "b",
		"name=First+Film,d":            "a d",
		"name=first+film":              "",
		"video_name=second":            "b",
		"video_name=d":                 "",
		"video_name=First+Film,second": "",
		"search=film":                  "a",
		"search=S":                     "a b",
		"search=":                      "a b c config d",
		"search=7":                     "",
		"creator=me":                   "a",
		"creator=ME":                   "",
		"creator=":                     "c config d",
		"start=2026-01-02T12:00:00Z":   "c d",
		"after=2026-01-02T11:59:59Z":   "b c d",
		"end=2026-01-02T12:00:00Z":     "a config",
		"before=2026-01-02T12:00:01Z":  "a b config",
		"start=2026-01-01T12:00:00Z&end=2026-01-03T12:00:00Z": "b",
		"after=2026-01-02T13:00:00%2B02:00":                   "b c d", // 11:00 UTC
		"status=ready":                                        "a b c config d",
		"status=error":                                        "",
		"type=vod":                                            "a b c config d",
		"type=live":                                           "",
		"status=error&type=vod":                               "",
		"status=ready&type=live":                              "",
		"live_input_id=x":                                     "",
		"creator=me&id=b":                                     "",
		"creator=you&id=a,b&search=sec":                       "b",
		"per_page=1&asc=true&include_counts=true":             "a b c config d", // bounds and order are not its affair
	} {
		for range 20 { // parameters are read in any order
			filter, err := parseVideoFilter(query)
			if err != nil {
				t.Errorf("%s: %v", query, err)
				break
			}
			var got []string
			for id, doc := range videos {
				if doc.UID = id; filter.matches(doc) {
					got = append(got, id)
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
				t.Errorf("%q (-want +got):\n%s", query, diff)
				break
			}
		}
	}
	for query, want := range map[string]videoFilter{
		"":                             {limit: 1000},
		"per_page=1":                   {limit: 1},
		"limit=1000":                   {limit: 1000},
		"asc=true&include_counts=true": {limit: 1000, ascending: true, counts: true},
		"asc=false&include_counts=0":   {limit: 1000},
	} {
		filter, err := parseVideoFilter(query)
		if err != nil || filter.limit != want.limit || filter.ascending != want.ascending || filter.counts != want.counts {
			t.Errorf("%q = %+v, %v", query, filter, err)
		}
	}
}

// Of many more videos than a list has, it has the first, whatever the order in
// which the store returns them, and it does not keep all of them.
func TestListOfManyVideos(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	var videos []*state.VideoDocument
	for i := range 5 * maxListed {
		// Some are of the same moment.
		videos = append(videos, &state.VideoDocument{UID: fmt.Sprintf("v%05d", i), Created: testTime.Add(time.Duration(random.IntN(2000)) * time.Second)})
	}
	for _, ascending := range []bool{false, true} {
		for _, limit := range []int{1, 7, maxListed} {
			for name, n := range map[string]int{"none": 0, "few": 5, "one less": 2*maxListed - 1, "as many as are kept": 2 * maxListed, "all": len(videos)} {
				given := slices.Clone(videos[:n])
				random.Shuffle(len(given), func(i, j int) { given[i], given[j] = given[j], given[i] })
				top := newestVideos{filter: &videoFilter{limit: limit, ascending: ascending}}
				most := 0
				for _, v := range given {
					top.add(v)
					most = max(most, len(top.kept))
				}
				slices.SortFunc(given, func(a, b *state.VideoDocument) int { return strings.Compare(a.UID, b.UID) })
				slices.SortStableFunc(given, func(a, b *state.VideoDocument) int {
					if ascending {
						return int(a.Created.Sub(b.Created))
					}
					return int(b.Created.Sub(a.Created))
				})
				want := given[:min(len(given), limit)]
				got := top.first()
				if !slices.EqualFunc(want, got, func(a, b *state.VideoDocument) bool { return a.UID == b.UID }) {
					t.Errorf("%s, ascending %t, limit %d: %d videos of which some are wrong, want %d", name, ascending, limit, len(got), len(want))
				}
				if top.total != n || most > 2*maxListed {
					t.Errorf("%s: %d videos are counted and up to %d kept, want %d and %d", name, top.total, most, n, 2*maxListed)
				}
			}
		}
	}
}

// listed returns the ids of a list in its order.
func (c controlled) listed(t *testing.T, query string) ([]string, reply) {
	t.Helper()
	a := c.call(t, "GET", streamPath+"?"+query, "")
	wantReply(t, query, a, 200, 0)
	var videos []decodedVideo
	if err := json.Unmarshal(a.result, &videos); err != nil || videos == nil {
		t.Fatalf("%s = %s: %v", query, a.raw, err)
	}
	ids := []string{}
	for _, v := range videos {
		ids = append(ids, v.UID)
	}
	return ids, a
}

// The list has the videos with settings, newest first, and those of the config
// file with the settings that count, each once.
func TestListOfVideos(t *testing.T) {
	t.Parallel()
	c := control(t, func(config *Config) { config.Videos = map[string]VideoSettings{"config": {}, "both": {}} })
	if ids, a := c.listed(t, "include_counts=true"); cmp.Diff([]string{"both", "config"}, ids) != "" || a.total != "2" {
		t.Errorf("at first, the list has %q, %s in all", ids, a.total)
	}
	for i, id := range []string{"old", "both", "new", "Zebra"} {
		created := must(json.Marshal(time.Date(2026, 1, 1+i, 0, 0, 0, 0, time.UTC)))
		c.store.plant(store.Videos, id, fmt.Sprintf(`{"uid":%q,"created":%s,"modified":%s,"requireSignedURLs":true}`, id, created, created))
	}
	ids, a := c.listed(t, "")
	if diff := cmp.Diff([]string{"Zebra", "new", "old", "both", "config"}, ids); diff != "" || strings.Contains(a.raw, `"total"`) {
		t.Errorf("the list (-want +got):\n%s%s", diff, a.raw)
	}
	var videos []decodedVideo
	if err := json.Unmarshal(a.result, &videos); err != nil {
		t.Fatal(err)
	}
	if videos[3].RequireSignedURLs || videos[3].Created != nil || !videos[2].RequireSignedURLs || *videos[2].Created != "2026-01-01T00:00:00.000000Z" {
		t.Errorf("the list has other settings than are in force: %s", a.raw)
	}
	for query, want := range map[string]string{
		"asc=true":                   "both config old new Zebra",
		"limit=2":                    "Zebra new",
		"per_page=2&asc=true":        "both config",
		"id=new,both":                "new both",
		"search=x":                   "",
		"status=queued":              "",
		"start=2026-01-02T00:00:00Z": "Zebra new",
	} {
		if ids, _ := c.listed(t, query); strings.Join(ids, " ") != want {
			t.Errorf("%q lists %q, want %q", query, ids, want)
		}
	}
	ids, a = c.listed(t, "limit=2&include_counts=true")
	if !strings.Contains(a.raw, `"total":"5","range":"2"`) || len(ids) != 2 {
		t.Errorf("with counts: %s", a.raw)
	}
}

// A damaged object does not end the list, and a warning tells of it. A list that
// could not be read to its end is no list.
func TestListWithDamagedVideos(t *testing.T) {
	t.Parallel()
	c := control(t, nil)
	c.store.plant(store.Videos, "good", `{"uid":"good"}`)
	c.store.plant(store.Videos, "bad", "")
	c.store.plant(store.Videos, "worse", `{"uid":"other"}`)
	for range 2 {
		ids, a := c.listed(t, "include_counts=true")
		if diff := cmp.Diff([]string{"good"}, ids); diff != "" || a.total != "1" {
			t.Errorf("the list (-want +got):\n%s%s", diff, a.raw)
		}
		want := []message{{codeWarning, fmt.Sprintf(damagedVideo, "bad")}, {codeWarning, fmt.Sprintf(damagedVideo, "worse")}}
		if diff := cmp.Diff(want, a.messages); diff != "" {
			t.Errorf("warnings (-want +got):\n%s", diff)
		}
		c.store.setHook(func(ctx context.Context, operation string, name store.Name) error {
			if operation == "read" && name.ID() == "good" {
				return down(ctx, operation, name)
			}
			return nil
		})
		wantReply(t, "a list that breaks off", c.call(t, "GET", streamPath, ""), 503, codeUnavailable)
		c.store.setHook(nil)
	}
}

// A list reads the whole store, so one is made at a time. Few calls wait for it,
// none of them for long, and a client that waits may leave.
func TestListsAreMadeOneAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := control(t, nil)
		proceed := make(chan struct{})
		c.store.setHook(func(_ context.Context, operation string, _ store.Name) error {
			if operation == "list" {
				<-proceed
			}
			return nil
		})
		list := func(ctx context.Context) <-chan reply {
			done := make(chan reply, 1)
			go func() {
				done <- c.call(t, "GET", streamPath, "", func(r *http.Request) { *r = *r.WithContext(ctx) })
			}()
			synctest.Wait()
			return done
		}
		before := c.store.count("list")
		first := list(t.Context())
		ctx, cancel := context.WithCancel(t.Context())
		left := list(ctx)
		cancel()
		wantReply(t, "the list of a client that has left", <-left, 503, codeUnavailable)
		var waiting []<-chan reply
		for range maxWaitingLists {
			waiting = append(waiting, list(t.Context()))
		}
		wantReply(t, "one list too many", <-list(t.Context()), 503, codeUnavailable)
		for _, done := range waiting {
			wantReply(t, "a list that has waited too long", <-done, 503, codeUnavailable)
		}
		if got := c.store.count("list") - before; got != 1 {
			t.Errorf("%d lists are made at once, want 1", got)
		}
		close(proceed)
		wantReply(t, "the first list", <-first, 200, 0)
		wantReply(t, "the next list", c.call(t, "GET", streamPath, ""), 200, 0)
	})
}
