package signedplayback

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
)

// A list that is not filtered looks like one that is, so a query that is not
// understood is refused.
func TestListQueriesThatAreRefused(t *testing.T) {
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
		wantRefusedBody(t, query, err, why)
		if filter != nil {
			t.Errorf("%s: a filter beside the error", query)
		}
	}
	c := control(t, new(App), new(API))
	wantReply(t, "an unknown parameter", c.call(t, "GET", "/client/v4/accounts/acc/stream?page=2", ""), 400, codeBadRequest)
}

func TestListFilters(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 1, n, 12, 0, 0, 0, time.UTC) }
	doc := func(created int, meta, creator string) *videoDocument {
		d := &videoDocument{Created: day(created), Descriptive: map[string]json.RawMessage{}}
		if meta != "" {
			d.Descriptive["meta"] = json.RawMessage(meta)
		}
		if creator != "" {
			d.Descriptive["creator"] = json.RawMessage(creator)
		}
		return d
	}
	videos := map[string]*videoDocument{
		"a":      doc(1, `{"name":"First Film"}`, `"me"`),
		"b":      doc(2, `{"name":"second"}`, `"you"`),
		"c":      doc(3, `{"name":7}`, ``),
		"d":      doc(4, ``, `""`),
		"config": new(videoDocument),
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
				if filter.matches(id, doc) {
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
// which the store tells of them, and it does not keep them all.
func TestListOfManyVideos(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	var videos []listedVideo
	for i := range 5 * maxListed {
		// Some are of the same moment.
		videos = append(videos, listedVideo{fmt.Sprintf("v%05d", i), &videoDocument{Created: testTime.Add(time.Duration(random.IntN(2000)) * time.Second)}})
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
				slices.SortFunc(given, func(a, b listedVideo) int { return strings.Compare(a.id, b.id) })
				slices.SortStableFunc(given, func(a, b listedVideo) int {
					if ascending {
						return int(a.doc.Created.Sub(b.doc.Created))
					}
					return int(b.doc.Created.Sub(a.doc.Created))
				})
				want := given[:min(len(given), limit)]
				got := top.best()
				if !slices.EqualFunc(want, got, func(a, b listedVideo) bool { return a.id == b.id }) {
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
func (c controlled) listed(t *testing.T, query string) ([]string, apiReply) {
	t.Helper()
	a := c.call(t, "GET", "/client/v4/accounts/acc/stream?"+query, "")
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
	c := control(t, &App{Videos: map[string]VideoSettings{"config": {RequireSignedURLs: new(false)}, "both": {RequireSignedURLs: new(false)}}}, new(API))
	if ids, a := c.listed(t, "include_counts=true"); cmp.Diff([]string{"both", "config"}, ids) != "" || a.total != "2" {
		t.Errorf("at first, the list has %q, %s in all", ids, a.total)
	}
	for i, id := range []string{"old", "both", "new", "Zebra"} {
		created := must(json.Marshal(time.Date(2026, 1, 1+i, 0, 0, 0, 0, time.UTC)))
		c.node.fleet.plant(videoNamed(id), fmt.Sprintf(`{"uid":%q,"created":%s,"modified":%s,"requireSignedURLs":true}`, id, created, created))
	}
	c.node.fleet.plant(keyNamed("a"), liveKey("a")) // is none
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

// A damaged object does not end the list and is not left out without a word.
func TestListWithDamagedVideos(t *testing.T) {
	c := control(t, new(App), new(API))
	c.node.fleet.plant(videoNamed("good"), `{"uid":"good"}`)
	c.node.fleet.damage(videoNamed("bad"))
	c.node.fleet.plant(videoNamed("worse"), `{"uid":"other"}`)
	ids, a := c.listed(t, "include_counts=true")
	if diff := cmp.Diff([]string{"good"}, ids); diff != "" || a.total != "1" {
		t.Errorf("the list (-want +got):\n%s%s", diff, a.raw)
	}
	var named []string
	for _, message := range a.messages {
		for _, id := range []string{"bad", "worse"} {
			if strings.Contains(message.Message, strconv.Quote(id)) && message.Code == codeWarning {
				named = append(named, id)
			}
		}
	}
	if diff := cmp.Diff([]string{"bad", "worse"}, named); diff != "" || len(a.messages) != 2 {
		t.Errorf("warnings (-want +got):\n%s%v", diff, a.messages)
	}
}

// A list that could not be read to its end is no list.
func TestListThatBreaksOff(t *testing.T) {
	c := control(t, new(App), new(API))
	for i := range 3 {
		c.node.fleet.plant(videoNamed(fmt.Sprint("v", i)), fmt.Sprintf(`{"uid":"v%d"}`, i))
	}
	before := storeErrors(t, "list")
	c.node.intercept(nil, on("list", "v1", down))
	wantReply(t, "a list that breaks off", c.call(t, "GET", "/client/v4/accounts/acc/stream", ""), 503, codeUnavailable)
	if storeErrors(t, "list") != before+1 {
		t.Error("the failure is not counted")
	}
	c.node.intercept(nil, nil)
	if ids, _ := c.listed(t, ""); len(ids) != 3 {
		t.Errorf("the list has %q afterwards", ids)
	}
}

// A list reads the whole store, so one is made at a time, and whoever waits for
// it may leave.
func TestListsAreMadeOneAtATime(t *testing.T) {
	c := control(t, new(App), new(API))
	synctest.Test(t, func(t *testing.T) {
		c.api.listing = make(chan struct{}, 1)
		proceed := make(chan struct{})
		c.node.intercept(on("list", "", func(context.Context, string, store.Name) error { <-proceed; return nil }), nil)
		done := make(chan apiReply, 2)
		list := func(ctx context.Context) {
			done <- c.call(t, "GET", "/client/v4/accounts/acc/stream", "", func(r *http.Request) { *r = *r.WithContext(until{r.Context(), ctx}) })
		}
		before := c.node.count("list")
		go list(t.Context())
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		go list(ctx)
		synctest.Wait()
		if got := c.node.count("list") - before; got != 1 {
			t.Errorf("%d lists are made at once, want 1", got)
		}
		cancel()
		wantReply(t, "the list of a caller who has left", <-done, 503, 0)
		close(proceed)
		wantReply(t, "the other list", <-done, 200, 0)
		wantReply(t, "the next list", c.call(t, "GET", "/client/v4/accounts/acc/stream", ""), 200, 0)
	})
}

// until is the context of a request that ends with another one.
type until struct {
	context.Context
	end context.Context
}

func (u until) Done() <-chan struct{} { return u.end.Done() }

func (u until) Err() error { return u.end.Err() }
