package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

const (
	keptObjects = `caddy_signed_playback_cache_objects{tier="memory"}`
	keptBytes   = `caddy_signed_playback_cache_bytes{tier="memory"}`

	// fillRate is about how many objects a second a cache can be filled with.
	fillRate = 8000
)

var (
	growthObjects     = []int{1e2, 1e3, 1e4, 1e5, 1e6}
	growthConnections = []int{10, 100, 1000, 10_000}
)

// growthSetup is the gate with its cache.
var growthSetup = caddy(setup{name: cachedGate, title: "gate, cache", form: ours, cache: true, over: 2})

// growthSample is the gate with so many objects or connections.
type growthSample struct {
	n          int
	perRequest float64 // µs
	bytes      float64 // of RSS, for each object or connection
	counted    float64 // of the cache's budget, for each object
}

// measureGrowth fills the cache with more and more objects of 1 KiB, and has more and more
// viewers keep a connection.
func measureGrowth(ctx context.Context, o options, e environment) (markdown string, unmet []string, err error) {
	b, err := newBench(ctx, o, []*setup{growthSetup})
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	var tables [2][]growthSample
	for table, of := range []struct {
		counts []int
		sample func(context.Context, int) (growthSample, error)
	}{{growthObjects, b.sampleObjects}, {growthConnections, b.sampleConnections}} {
		if o.quick {
			of.counts = of.counts[:2]
		}
		for _, n := range of.counts {
			if err := b.renew(ctx, growthSetup); err != nil {
				return "", nil, err
			}
			sample, err := of.sample(ctx, n)
			if err != nil {
				return "", nil, fmt.Errorf("growth to %d: %w", n, b.servers[growthSetup].explain(err))
			}
			o.record("growth to %d: %+v", n, sample)
			tables[table] = append(tables[table], sample)
		}
	}
	return growthReport(e, tables[0], tables[1]), nil, nil
}

// sampleObjects fills the cache with objects, and then has them read in turn.
func (b *bench) sampleObjects(ctx context.Context, n int) (s growthSample, err error) {
	s.n = n
	// A hundred objects first, so that what every process takes is there before.
	few, err := b.growthLoad(protocols[0], "o{number 100}.m4s")
	if err != nil {
		return s, err
	}
	if _, err := b.run(ctx, few); err != nil {
		return s, err
	}
	before, err := b.kept(ctx)
	if err != nil {
		return s, err
	}
	l, err := b.growthLoad(protocols[0], fmt.Sprintf("o{number %d}.m4s", n))
	if err != nil {
		return s, err
	}
	fill := l
	fill.duration = max(b.options.duration, time.Duration(n/fillRate)*time.Second)
	const attempts = 20
	after := before
	for i := 0; after.objects < int64(n); i++ {
		if i == attempts {
			return s, fmt.Errorf("the cache has %d objects after %d loads of %s", after.objects, attempts, fill.duration)
		}
		if _, err := b.run(ctx, fill); err != nil {
			return s, err
		}
		if after, err = b.kept(ctx); err != nil {
			return s, err
		}
	}
	s.counted = float64(after.bytes) / float64(after.objects)
	if more := after.objects - before.objects; more > 0 {
		s.bytes = float64(after.rss-before.rss) / float64(more)
	}
	s.perRequest, err = b.growthCPU(ctx, l)
	return s, err
}

// sampleConnections keeps connections with TLS open, and measures the cost of other
// requests meanwhile.
func (b *bench) sampleConnections(ctx context.Context, n int) (s growthSample, err error) {
	s.n = n
	l, err := b.growthLoad(protocols[1], "o1.m4s")
	if err != nil {
		return s, err
	}
	if _, err := b.run(ctx, l); err != nil {
		return s, err
	}
	before, err := b.kept(ctx)
	if err != nil {
		return s, err
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // a server started here
	transport.MaxIdleConnsPerHost = n
	defer transport.CloseIdleConnections()
	var open []io.Closer // bodies that are not read to their end keep their connections
	defer func() {
		for _, body := range open {
			_ = body.Close()
		}
	}()
	for range n {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.servers[growthSetup].url(protocols[1])+
			growthSetup.form.path(b.warm[growthSetup][0], video, "o1.m4s"), http.NoBody)
		if err != nil {
			return s, err
		}
		response, err := transport.RoundTrip(r) //nolint:bodyclose // closed at the end
		if err != nil {
			return s, err
		}
		open = append(open, response.Body)
	}
	after, err := b.kept(ctx)
	if err != nil {
		return s, err
	}
	s.bytes = float64(after.rss-before.rss) / float64(n)
	s.perRequest, err = b.growthCPU(ctx, l)
	return s, err
}

// growthLoad asks for objects with the first token.
func (b *bench) growthLoad(p protocol, file string) (load, error) {
	l := load{
		protocol: p, url: b.servers[growthSetup].url(p), paths: filepath.Join(b.dir, "paths"),
		connections: b.options.connections, duration: b.options.duration,
	}
	return l, writeFile(l.paths, []byte(growthSetup.form.path(b.warm[growthSetup][0], video, file)+"\n"))
}

// growthCPU is the median time of a request that the cache answers, in microseconds.
func (b *bench) growthCPU(ctx context.Context, l load) (float64, error) {
	var samples []float64
	for range b.options.rounds {
		before, err := b.observe(ctx, growthSetup)
		if err != nil {
			return 0, err
		}
		r, err := b.run(ctx, l)
		if err != nil {
			return 0, err
		}
		after, err := b.observe(ctx, growthSetup)
		if err != nil {
			return 0, err
		}
		during := after.since(before)
		if err := errors.Join(r.check(objectSizes[0].bytes), during.check(growthSetup, r.Requests, l.connections)); err != nil {
			return 0, err
		}
		samples = append(samples, sample{load: r, cpu: during.server.cpu}.perRequest())
		b.options.record("%7d requests over %s: CPU %6.1f µs each", r.Requests, l.protocol.title, samples[len(samples)-1])
	}
	return spreadOf(samples).median, nil
}

// kept has the objects and bytes of the cache, and the memory of its process.
type kept struct{ objects, bytes, rss int64 }

func (b *bench) kept(ctx context.Context) (k kept, err error) {
	srv := b.servers[growthSetup]
	counted, err := srv.counters(ctx, keptObjects, keptBytes)
	if err != nil {
		return k, err
	}
	u, err := srv.usage()
	return kept{counted[keptObjects], counted[keptBytes], u.rss}, err
}

// resident is the memory of each object or connection in a unit. That of a few is less than
// what the garbage collector leaves for later.
func (s growthSample) resident(unit float64) string {
	const fewest = 1000
	if s.n < fewest {
		return "–"
	}
	return fmt.Sprintf("%.0f", s.bytes/unit)
}

func growthReport(e environment, objects, connections []growthSample) string {
	var out strings.Builder
	e.write(&out, "Growth")
	fmt.Fprintf(&out, "- Medians of %d measurements of %s; %d connections that send requests; %d threads\n", e.options.rounds, e.options.duration, e.options.connections, threads)
	fmt.Fprint(&out, "\n## Objects\n\nEach object has 1 KiB. The bench reads them in turn over HTTP. For each object, the table has the growth of the process's memory (RSS)\n"+
		"and the bytes that the cache counts.\n\n| objects | CPU µs/hit | RSS bytes an object | counted bytes an object |\n| ---: | ---: | ---: | ---: |\n")
	for _, s := range objects {
		fmt.Fprintf(&out, "| %d | %.1f | %s | %.0f |\n", s.n, s.perRequest, s.resident(1), s.counted)
	}
	fmt.Fprint(&out, "\n## Viewers\n\nConnections with TLS that have had an answer of 1 KiB and wait, and requests of others over HTTPS.\n\n"+
		"| connections | CPU µs/hit | RSS KiB a connection |\n| ---: | ---: | ---: |\n")
	for _, s := range connections {
		fmt.Fprintf(&out, "| %d | %.1f | %s |\n", s.n, s.perRequest, s.resident(1<<10))
	}
	return out.String()
}
