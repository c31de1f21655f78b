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
	for _, same := range [][2]string{{"start", "after"}, {"end", "before"}, {"limit", "per_page"}} {
		if values.Has(same[0]) && values.Has(same[1]) {
			return p, badRequest("%s and %s are the same query parameter; give one of them", same[0], same[1])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		given := values[name]
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

// firstOf collects the elements of a page without keeping all that it is given.
type firstOf[T any] struct {
	listPage
	place func(T) (created time.Time, id string)
	kept  []T
	total int
}

func (f *firstOf[T]) add(one T) {
	created, _ := f.place(one)
	if !f.start.IsZero() && !created.After(f.start) || !f.end.IsZero() && !created.Before(f.end) {
		return
	}
	f.total++
	if f.kept = append(f.kept, one); len(f.kept) >= 2*maxListed {
		f.kept = f.sorted()
	}
}

// sorted returns the elements of the page: the newest first, and those of one moment by their ids.
func (f *firstOf[T]) sorted() []T {
	slices.SortFunc(f.kept, func(a, b T) int {
		createdA, idA := f.place(a)
		createdB, idB := f.place(b)
		order := createdB.Compare(createdA)
		if f.ascending {
			order = -order
		}
		return cmp.Or(order, strings.Compare(idA, idB))
	})
	return f.kept[:min(len(f.kept), f.limit)]
}

// listInPages answers with the first page of a list. read makes the list, one at a time, and gives
// each element to add; place returns the date and the id by which an element is sorted.
// readers are for parameters besides those of all lists.
func listInPages[T, L any](c *call, readers map[string]func(string) error, read func(add func(T)) error, place func(T) (time.Time, string), describe func(T) L) (any, error) {
	page, err := parsePage(c.request.URL.RawQuery, readers)
	if err != nil {
		return nil, err
	}
	if err := c.lists.Enter(c.ctx(), 1); errors.Is(err, queue.ErrFull) || errors.Is(err, queue.ErrTimeout) {
		return nil, errTooManyLists
	} else if err != nil {
		return nil, err
	}
	defer c.lists.Leave(1)
	first := firstOf[T]{listPage: page, place: place}
	if err := read(first.add); err != nil {
		return nil, err
	}
	list := []L{}
	for _, one := range first.sorted() {
		list = append(list, describe(one))
	}
	if page.counts {
		c.counts = &listCounts{strconv.Itoa(first.total), strconv.Itoa(len(list))}
	}
	return list, nil
}

// videoFilter is the part of a query that only a list of videos has.
type videoFilter struct {
	ids, names, titles []string // nil for any
	search             string
	creator            *string
	none               bool // the query asks for videos that cannot exist here
}

// readers read the parameters of the filter.
func (f *videoFilter) readers() map[string]func(string) error {
	return map[string]func(string) error{
		"id":            func(s string) error { f.ids = strings.Split(s, ","); return nil },
		"name":          func(s string) error { f.names = strings.Split(s, ","); return nil },
		"video_name":    func(s string) error { f.titles = []string{s}; return nil },
		"search":        func(s string) error { f.search = strings.ToLower(s); return nil },
		"creator":       func(s string) error { f.creator = &s; return nil },
		"status":        func(s string) error { f.none = f.none || s != "ready"; return nil },
		"type":          func(s string) error { f.none = f.none || s != "vod"; return nil },
		"live_input_id": func(string) error { f.none = true; return nil },
	}
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

// matches reports whether the filter lets a video into the list.
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
		f.creator != nil && *f.creator != creator:
		return false
	}
	return true
}

// listVideos lists the videos that have settings. The videos of the store come first, newest
// first. The videos of the config file have no date, so they are last.
func (c *call) listVideos(strictjson.Value) (any, error) {
	var filter videoFilter
	read := func(add func(*state.VideoDocument)) error {
		match := func(doc *state.VideoDocument) {
			if filter.matches(doc) {
				add(doc)
			}
		}
		for doc, err := range c.State.VideoDocuments(c.ctx()) {
			if errors.Is(err, state.ErrDamaged) {
				c.warn(damagedVideo, doc.UID)
			} else if err != nil {
				return err
			} else if _, configured := c.Videos[doc.UID]; !configured {
				match(doc)
			}
		}
		for id := range c.Videos {
			match(&state.VideoDocument{UID: id})
		}
		return nil
	}
	return listInPages(c, filter.readers(), read, placeOfVideo, c.describe)
}

func placeOfVideo(doc *state.VideoDocument) (time.Time, string) { return doc.Created, doc.UID }
