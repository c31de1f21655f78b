package controlapi

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/queue"
	"github.com/signed-playback/caddy-signed-playback/internal/state"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
)

const maxListed = 1000

var errTooManyLists = errors.New("too many lists are being made at the same time; try again in a moment")

// listCounts are the members of a list with include_counts.
type listCounts struct {
	Total string `json:"total"`
	Range string `json:"range"`
}

// listPage is the part of a list that its query asks for.
type listPage struct {
	start, end time.Time // exclusive
	limit      int
	ascending  bool
	counts     bool
}

// parsePage reads a query, with further parameters. An unknown parameter is an error,
// because an unfiltered list looks like a filtered one.
func parsePage(query string, readers map[string]func(string) error) (listPage, error) {
	p := listPage{limit: maxListed}
	values, err := url.ParseQuery(query)
	if err != nil {
		return p, badRequest("the query cannot be read")
	}
	date := func(into *time.Time) func(string) error {
		return parameter(into, func(s string) (time.Time, error) { return time.Parse(time.RFC3339, s) }, "a date like 2026-01-02T15:04:05Z")
	}
	limit := parameter(&p.limit, func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if n < 1 || n > maxListed {
			err = strconv.ErrRange
		}
		return n, err
	}, fmt.Sprintf("1 to %d", maxListed))
	all := map[string]func(string) error{
		"start":          date(&p.start),
		"after":          date(&p.start),
		"end":            date(&p.end),
		"before":         date(&p.end),
		"asc":            parameter(&p.ascending, strconv.ParseBool, "true or false"),
		"include_counts": parameter(&p.counts, strconv.ParseBool, "true or false"),
		"per_page":       limit,
		"limit":          limit,
	}
	maps.Copy(all, readers)
	for name, given := range values {
		read, known := all[name]
		if !known || len(given) != 1 {
			return p, badRequest("query parameter %.40q is unknown or repeated; known are %s",
				name, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
		}
		if err := read(given[0]); err != nil {
			return p, badRequest("%s is %.40q: %v", name, given[0], err)
		}
	}
	return p, nil
}

// covers reports whether an element of a date belongs to the list.
func (p listPage) covers(date time.Time) bool {
	return (p.start.IsZero() || date.After(p.start)) && (p.end.IsZero() || date.Before(p.end))
}

// order compares two elements by their dates, the newest first, and then by their ids.
func (p listPage) order(a, b time.Time, idOfA, idOfB string) int {
	order := b.Compare(a)
	if p.ascending {
		order = -order
	}
	return cmp.Or(order, strings.Compare(idOfA, idOfB))
}

// enterList waits until no other list is made. The caller must call leave.
func (c *call) enterList() (leave func(), err error) {
	if err := c.lists.Enter(c.ctx(), 1); errors.Is(err, queue.ErrFull) || errors.Is(err, queue.ErrTimeout) {
		return nil, errTooManyLists
	} else if err != nil {
		return nil, err
	}
	return func() { c.lists.Leave(1) }, nil
}

// listInPages answers with the first page of a list, newest first. read makes the list, which
// the call then owns; place returns the date and the id by which an element is sorted.
// readers are for parameters besides those of all lists.
func listInPages[T, L any](c *call, readers map[string]func(string) error, read func() ([]T, error), place func(T) (time.Time, string), describe func(T) L) (any, error) {
	page, err := parsePage(c.request.URL.RawQuery, readers)
	if err != nil {
		return nil, err
	}
	leave, err := c.enterList()
	if err != nil {
		return nil, err
	}
	defer leave()
	all, err := read()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(one T) bool {
		created, _ := place(one)
		return !page.covers(created)
	})
	slices.SortFunc(all, func(a, b T) int {
		createdA, idA := place(a)
		createdB, idB := place(b)
		return page.order(createdA, createdB, idA, idB)
	})
	list := []L{}
	for _, one := range all[:min(len(all), page.limit)] {
		list = append(list, describe(one))
	}
	if page.counts {
		c.counts = &listCounts{strconv.Itoa(len(all)), strconv.Itoa(len(list))}
	}
	return list, nil
}

// videoFilter is the query of a list of videos.
type videoFilter struct {
	listPage
	ids, names, titles []string // nil for any
	search             string
	creator            *string
	none               bool // the query asks for videos that cannot exist here
}

// parseVideoFilter reads the query of a list of videos.
func parseVideoFilter(query string) (*videoFilter, error) {
	f := new(videoFilter)
	var err error
	f.listPage, err = parsePage(query, map[string]func(string) error{
		"id":            func(s string) error { f.ids = strings.Split(s, ","); return nil },
		"name":          func(s string) error { f.names = strings.Split(s, ","); return nil },
		"video_name":    func(s string) error { f.titles = []string{s}; return nil },
		"search":        func(s string) error { f.search = strings.ToLower(s); return nil },
		"creator":       func(s string) error { f.creator = &s; return nil },
		"status":        func(s string) error { f.none = f.none || s != "ready"; return nil },
		"type":          func(s string) error { f.none = f.none || s != "vod"; return nil },
		"live_input_id": func(string) error { f.none = true; return nil },
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// parameter returns a function that reads one parameter into a variable. want
// describes the values that parse accepts.
func parameter[T any](into *T, parse func(string) (T, error), want string) func(string) error {
	return func(s string) (err error) {
		if *into, err = parse(s); err != nil {
			return fmt.Errorf("want %s", want)
		}
		return nil
	}
}

// matches reports whether a video belongs to the list.
func (f *videoFilter) matches(doc *state.VideoDocument) bool {
	var meta struct {
		Name string `json:"name"`
	}
	_ = json.Unmarshal(doc.Descriptive["meta"], &meta) // a name of another type is no name
	var creator string
	_ = json.Unmarshal(doc.Descriptive["creator"], &creator)
	switch {
	case f.none,
		f.ids != nil && !slices.Contains(f.ids, doc.UID),
		f.names != nil && !slices.Contains(f.names, doc.UID) && !slices.Contains(f.names, meta.Name),
		f.titles != nil && !slices.Contains(f.titles, meta.Name),
		!strings.Contains(strings.ToLower(meta.Name), f.search),
		f.creator != nil && *f.creator != creator,
		!f.covers(doc.Created):
		return false
	}
	return true
}

// listVideos lists the videos that have settings. The videos of the store come first, newest
// first. The videos of the config file have no date, so they are last.
func (c *call) listVideos(strictjson.Value) (any, error) {
	filter, err := parseVideoFilter(c.request.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	leave, err := c.enterList()
	if err != nil {
		return nil, err
	}
	defer leave()
	newest := newestVideos{filter: filter}
	for doc, err := range c.State.VideoDocuments(c.ctx()) {
		if errors.Is(err, state.ErrDamaged) {
			c.warn(damagedVideo, doc.UID)
			continue
		}
		if err != nil {
			return nil, err
		}
		if _, configured := c.Videos[doc.UID]; !configured {
			newest.add(doc)
		}
	}
	for id := range c.Videos {
		newest.add(&state.VideoDocument{UID: id})
	}
	list := []map[string]any{}
	for _, doc := range newest.first() {
		settings, configured := c.Videos[doc.UID]
		if !configured {
			settings = c.Defaults
		}
		list = append(list, c.describe(doc, settings))
	}
	if filter.counts {
		c.counts = &listCounts{strconv.Itoa(newest.total), strconv.Itoa(len(list))}
	}
	return list, nil
}

// newestVideos keeps the first videos of a list without keeping all of them.
type newestVideos struct {
	filter *videoFilter
	kept   []*state.VideoDocument
	total  int
}

func (n *newestVideos) add(doc *state.VideoDocument) {
	if !n.filter.matches(doc) {
		return
	}
	n.total++
	if n.kept = append(n.kept, doc); len(n.kept) >= 2*maxListed {
		n.kept = n.first()
	}
}

// first returns the first of the added videos, in the order of the list.
func (n *newestVideos) first() []*state.VideoDocument {
	slices.SortFunc(n.kept, func(a, b *state.VideoDocument) int {
		return n.filter.order(a.Created, b.Created, a.UID, b.UID)
	})
	return n.kept[:min(len(n.kept), n.filter.limit)]
}
