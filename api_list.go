package signedplayback

import (
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/signed-playback/caddy-signed-playback/internal/store"
	"github.com/signed-playback/caddy-signed-playback/internal/strictjson"
)

const maxListed = 1000

// listCounts are the members that a list has with include_counts.
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
	none               bool // the query asks for what no video here is
}

// parseVideoFilter reads the query. A parameter that it does not know is an
// error: a list that is not filtered looks like one that is.
func parseVideoFilter(query string) (*videoFilter, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, badRequest("the query cannot be read")
	}
	f := &videoFilter{limit: maxListed}
	readers := map[string]func(string) error{
		"id":             func(s string) error { f.ids = strings.Split(s, ","); return nil },
		"name":           func(s string) error { f.names = strings.Split(s, ","); return nil },
		"video_name":     func(s string) error { f.titles = []string{s}; return nil },
		"search":         func(s string) error { f.search = strings.ToLower(s); return nil },
		"creator":        func(s string) error { f.creator = &s; return nil },
		"start":          dateParameter("start", &f.start),
		"after":          dateParameter("after", &f.start),
		"end":            dateParameter("end", &f.end),
		"before":         dateParameter("before", &f.end),
		"asc":            boolParameter("asc", &f.ascending),
		"include_counts": boolParameter("include_counts", &f.counts),
		"per_page":       limitParameter("per_page", &f.limit),
		"limit":          limitParameter("limit", &f.limit),
		"status":         func(s string) error { f.none = f.none || s != "ready"; return nil },
		"type":           func(s string) error { f.none = f.none || s != "vod"; return nil },
		"live_input_id":  func(string) error { f.none = true; return nil },
	}
	for name, given := range values {
		read, known := readers[name]
		if !known || len(given) != 1 {
			return nil, badRequest("query parameter %.40q is unknown or repeated; known are %s", name, sortedNames(readers))
		}
		if err := read(given[0]); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func dateParameter(name string, into *time.Time) func(string) error {
	return func(s string) (err error) {
		if *into, err = time.Parse(time.RFC3339, s); err != nil {
			return badRequest("%s is %.40q: want a date like 2026-01-02T15:04:05Z", name, s)
		}
		return nil
	}
}

func boolParameter(name string, into *bool) func(string) error {
	return func(s string) (err error) {
		if *into, err = strconv.ParseBool(s); err != nil {
			return badRequest("%s is %.40q: want true or false", name, s)
		}
		return nil
	}
}

func limitParameter(name string, into *int) func(string) error {
	return func(s string) (err error) {
		*into, err = strconv.Atoi(s)
		if err != nil || *into < 1 || *into > maxListed {
			return badRequest("%s is %.40q: want 1 to %d", name, s, maxListed)
		}
		return nil
	}
}

// matches reports whether a video belongs into the list.
func (f *videoFilter) matches(videoID string, doc *videoDocument) bool {
	var meta struct {
		Name string `json:"name"`
	}
	_ = json.Unmarshal(doc.Descriptive["meta"], &meta) // another type of name is no name
	var creator string
	_ = json.Unmarshal(doc.Descriptive["creator"], &creator)
	switch {
	case f.none,
		f.ids != nil && !slices.Contains(f.ids, videoID),
		f.names != nil && !slices.Contains(f.names, videoID) && !slices.Contains(f.names, meta.Name),
		f.titles != nil && !slices.Contains(f.titles, meta.Name),
		!strings.Contains(strings.ToLower(meta.Name), f.search),
		f.creator != nil && *f.creator != creator,
		!f.start.IsZero() && !doc.Created.After(f.start),
		!f.end.IsZero() && !doc.Created.Before(f.end):
		return false
	}
	return true
}

// listedVideo is a video on its way into the list.
type listedVideo struct {
	id  string
	doc *videoDocument
}

// listVideos lists the videos that have settings, newest first: those of the
// store and those of the config file, which have no date and come last.
func (c *call) listVideos(strictjson.Value) (any, error) {
	filter, err := parseVideoFilter(c.request.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	ctx := c.request.Context()
	select {
	case c.api.listing <- struct{}{}:
		defer func() { <-c.api.listing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	top := newestVideos{filter: filter}
	app := c.api.app
	for object, err := range app.state.all(ctx, store.Videos) {
		if err != nil {
			return nil, err
		}
		id := object.Name.ID()
		_, configured := app.Videos[id]
		doc, damage := app.state.decodeVideo(object)
		if damage != nil {
			c.warn("the settings of the video %q in the store are damaged, so it is refused to viewers; DELETE forgets them", id)
		}
		if doc != nil && !configured {
			top.add(listedVideo{id, doc})
		}
	}
	for id := range app.Videos {
		top.add(listedVideo{id, new(videoDocument)})
	}
	list := []*video{}
	for _, v := range top.best() {
		if own, configured := app.Videos[v.id]; configured {
			list = append(list, app.configuredVideo(v.id, own))
			continue
		}
		list = append(list, app.describe(v.id, v.doc))
	}
	if filter.counts {
		c.counts = &listCounts{strconv.Itoa(top.total), strconv.Itoa(len(list))}
	}
	return list, nil
}

// newestVideos keeps the first videos of a list without keeping all: there may
// be a million.
type newestVideos struct {
	filter *videoFilter
	kept   []listedVideo
	total  int
}

func (n *newestVideos) add(v listedVideo) {
	if !n.filter.matches(v.id, v.doc) {
		return
	}
	n.total++
	if n.kept = append(n.kept, v); len(n.kept) >= 2*maxListed {
		n.kept = n.best()
	}
}

// best returns the first videos of those that were added, in the list's order.
func (n *newestVideos) best() []listedVideo {
	slices.SortFunc(n.kept, func(a, b listedVideo) int {
		order := b.doc.Created.Compare(a.doc.Created)
		if n.filter.ascending {
			order = -order
		}
		if order != 0 {
			return order
		}
		return strings.Compare(a.id, b.id)
	})
	return n.kept[:min(len(n.kept), n.filter.limit)]
}
