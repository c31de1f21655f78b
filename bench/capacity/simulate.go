package main

import (
	"hash/maphash"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"time"

	"github.com/signed-playback/caddy-signed-playback/mediacache"
)

// result has shares of the requests of viewers.
type result struct {
	missRate, missRateOnDemand, originRate float64
}

// steps is how many segments each viewer watches. In the first half, the caches fill.
func (s scenario) steps(viewers, nodes int) int {
	const least, times = 100, 3
	capacity := s.cache * (1 << 30) / s.segmentBytes()
	return 2 * max(least, int(times*capacity*float64(nodes)/float64(viewers)))
}

// simulation has viewers of videos on demand ask the caches of nodes for one segment after
// the other. Of large audiences, it simulates a sample of the segments, with caches that
// are smaller by as much: their hit rate is the same (Waldspurger et al., FAST 2015).
type simulation struct {
	scenario
	random     *rand.Rand
	popularity []float64 // the sum of the weights of the titles up to each
	sample     float64   // the share of the segments
	nodes      []*node
	shield     *node // nil without one

	requests, misses, origin int // of the second half
}

// simulate returns how many requests go to the origin if each viewer has one of the nodes,
// which have caches of their own.
func (s scenario) simulate(nodes int) (r result) {
	onDemand := int(float64(s.viewers) * (1 - s.live))
	m := &simulation{scenario: s, random: rand.New(rand.NewPCG(1, 2))} //nolint:gosec // not a secret
	if onDemand > 0 {
		steps := s.steps(onDemand, nodes)
		m.sample = min(1, float64(s.requests)/float64(steps*onDemand))
		m.watch(onDemand, nodes, steps)
		r.missRateOnDemand = float64(m.misses) / float64(max(m.requests, 1))
		r.originRate = (1 - s.live) * float64(m.origin) / float64(max(m.requests, 1))
	}
	// Each node asks once for each segment of a live channel that its viewers watch, and
	// the second tier once for all.
	streams := float64(s.channels * s.renditions)
	viewers := float64(s.viewers-onDemand) / float64(nodes)
	liveMisses := min(streams, viewers) * float64(nodes) / float64(s.viewers)
	r.missRate = (1-s.live)*r.missRateOnDemand + liveMisses
	if s.shield > 0 {
		liveMisses = min(streams, viewers*float64(nodes)) / float64(s.viewers)
	}
	r.originRate += liveMisses
	return r
}

func (m *simulation) watch(onDemand, nodes, steps int) {
	sum := 0.0
	for n := range m.titles {
		sum += math.Pow(float64(n+1), -m.zipf)
		m.popularity = append(m.popularity, sum)
	}
	objects := m.sample * (1 << 30) / m.segmentBytes()
	if m.shield = nil; m.scenario.shield > 0 {
		m.shield = newNode(m.scenario.shield*objects, func(*http.Request) { m.origin++ })
	}
	for range nodes {
		m.nodes = append(m.nodes, newNode(m.cache*objects, m.missed))
	}
	viewers := make([]viewer, onDemand)
	for i := range viewers {
		viewers[i] = m.newViewer()
		viewers[i].position = m.random.IntN(viewers[i].last + 1)
	}
	for step := range steps {
		if step == steps/2 {
			m.requests, m.misses, m.origin = 0, 0, 0
		}
		for i := range viewers {
			m.next(&viewers[i], m.nodes[i%nodes])
		}
	}
}

// viewer watches a title from its beginning, and then another one.
type viewer struct {
	title, rendition int
	position         int
	last             int // the segment after which the viewer leaves
}

// newViewer watches a third of a title on average.
func (m *simulation) newViewer() viewer {
	segments := int(m.minutes * 60 / m.segment)
	return viewer{
		title:     sort.SearchFloat64s(m.popularity, m.random.Float64()*m.popularity[m.titles-1]),
		rendition: m.random.IntN(m.renditions),
		last:      min(int(m.random.ExpFloat64()*float64(segments)/3), segments-1),
	}
}

var sampling = maphash.MakeSeed()

// next has a viewer ask for the next segment, if it is in the sample.
func (m *simulation) next(v *viewer, n *node) {
	if v.position > v.last {
		*v = m.newViewer()
	}
	asked := [3]int{v.title, v.rendition, v.position}
	v.position++
	if float64(maphash.Comparable(sampling, asked)) > m.sample*math.MaxUint64 {
		return
	}
	m.requests++
	n.get(request("/" + strconv.Itoa(asked[0]) + "/" + strconv.Itoa(asked[1]) + "/" + strconv.Itoa(asked[2])))
}

// missed is a request of a node.
func (m *simulation) missed(r *http.Request) {
	m.misses++
	if m.shield == nil {
		m.origin++
		return
	}
	m.shield.get(r)
}

// node is a cache. Objects have one byte each, and the memory is what so many of them
// take: the simulation needs no more.
type node struct {
	*mediacache.Cache
	config mediacache.Config
	missed func(r *http.Request)
}

func newNode(objects float64, missed func(r *http.Request)) *node {
	n := &node{missed: func(*http.Request) {}}
	n.config = mediacache.Config{Memory: 1 << 20, MaxObject: 1 << 10, SegmentTTL: 1000 * time.Hour}
	n.Cache = mediacache.New(n.config.Memory)
	n.get(request("/1000/1/100"))
	_, one := n.Usage()
	n.config.Memory, n.missed = max(int64(objects*float64(one)), one), missed
	n.Cache = mediacache.New(n.config.Memory)
	return n
}

func request(path string) *http.Request {
	return &http.Request{Method: http.MethodGet, Host: "origin", URL: &url.URL{Path: path}, Header: http.Header{}}
}

// get asks for an object, and waits until the cache has it.
func (n *node) get(r *http.Request) {
	asked := false
	_, _ = n.Serve(discard{}, r, &n.config, func(w http.ResponseWriter, _ *http.Request) error {
		asked = true
		w.Header()["Content-Type"] = []string{"video/mp4"}
		w.Header()["Content-Length"] = []string{"1"}
		_, err := w.Write([]byte{0})
		return err
	})
	if asked {
		n.missed(r)
	}
}

// discard is a viewer who does not look.
type discard http.Header

func (d discard) Header() http.Header       { return http.Header(d) }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}
