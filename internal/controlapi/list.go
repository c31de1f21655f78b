package controlapi

import (
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

// videoFilter is the query of a list of videos.
type videoFilter struct {
	ids, names, titles []string // nil for any
	search             string
	creator            *string
	start, end         time.Time
	limit              int
	ascending          bool
	counts             bool
	none               bool // the query asks for videos that cannot exist here
}

// parseVideoFilter reads the query. An unknown parameter is an error, because an
// unfiltered list looks like a filtered one.
func parseVideoFilter(query string) (*videoFilter, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, badRequest("the query cannot be read")
	}
	f := &videoFilter{limit: maxListed}
	date := func(into *time.Time) func(string) error {
		return parameter(into, func(s string) (time.Time, error) { return time.Parse(time.RFC3339, s) }, "a date like 2026-01-02T15:04:05Z")
	}
	limit := parameter(&f.limit, func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if n < 1 || n > maxListed {
			err = strconv.ErrRange
		}
		return n, err
	}, fmt.Sprintf("1 to %d", maxListed))
	readers := map[string]func(string) error{
		"id":             func(s string) error { f.ids = strings.Split(s, ","); return nil },
		"name":           func(s string) error { f.names = strings.Split(s, ","); return nil },
		"video_name":     func(s string) error { f.titles = []string{s}; return nil },
		"search":         func(s string) error { f.search = strings.ToLower(s); return nil },
		"creator":        func(s string) error { f.creator = &s; return nil },
		"status":         func(s string) error { f.none = f.none || s != "ready"; return nil },
		"type":           func(s string) error { f.none = f.none || s != "vod"; return nil },
		"live_input_id":  func(string) error { f.none = true; return nil },
		"start":          date(&f.start),
		"after":          date(&f.start),
		"end":            date(&f.end),
		"before":         date(&f.end),
		"asc":            parameter(&f.ascending, strconv.ParseBool, "true or false"),
		"include_counts": parameter(&f.counts, strconv.ParseBool, "true or false"),
		"per_page":       limit,
		"limit":          limit,
	}
	for name, given := range values {
		read, known := readers[name]
		if !known || len(given) != 1 {
			return nil, badRequest("query parameter %.40q is unknown or repeated; known are %s",
				name, strings.Join(slices.Sorted(maps.Keys(readers)), ", "))
		}
		if err := read(given[0]); err != nil {
			return nil, badRequest("%s is %.40q: %v", name, given[0], err)
		}
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
		!f.start.IsZero() && !doc.Created.After(f.start),
		!f.end.IsZero() && !doc.Created.Before(f.end):
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
	if err := c.lists.Enter(c.ctx(), 1); errors.Is(err, queue.ErrFull) || errors.Is(err, queue.ErrTimeout) {
		return nil, errTooManyLists
	} else if err != nil {
		return nil, err
	}
	defer c.lists.Leave(1)
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
		order := b.Created.Compare(a.Created)
		if n.filter.ascending {
			order = -order
		}
		if order != 0 {
			return order
		}
		return strings.Compare(a.UID, b.UID)
	})
	return n.kept[:min(len(n.kept), n.filter.limit)]
}
