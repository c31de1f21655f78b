package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// What a node with 100,000 live tokens is held to.
	mostCache    = 128 << 20
	mostMemory   = 320 << 20
	leastHitRate = 0.99

	// tokenLength is what a token with such rules has, give or take one digit.
	tokenLength = 700

	// A viewer may watch from home and from a country or two. No two tokens have
	// the same rules.
	memoryRules = `[{"type":"ip.src","ip":["{network}"],"action":"allow"},` +
		`{"type":"ip.geoip.country","country":["GB","US","CA","IE"],"action":"allow"},{"type":"any","action":"block"}]`
)

// memorySetup has tokens with rules, which take more memory than those without.
var memorySetup = caddy(setup{
	name: "memory", title: "gate", bare: "caddy", form: ours, rules: memoryRules,
	header: map[string]string{"Origin": "https://www.example.org"},
})

// What a gate says of its memory.
const (
	cacheEntries = "caddy_signed_playback_token_cache_entries"
	cacheBytes   = "caddy_signed_playback_token_cache_bytes"
	heapInUse    = "go_memstats_heap_inuse_bytes"
	heapGoal     = "go_memstats_next_gc_bytes" // twice what was live at the last collection
)

// memorySample is what a process has at a moment.
type memorySample struct {
	title     string
	rss, peak int64
	gauges    map[string]int64
}

// memoryReport is what there is to say of memory.
type memoryReport struct {
	environment environment
	shortest    int
	longest     int
	samples     []memorySample
	load        loadResult
	hits        int64
	misses      int64
}

func memoryFlags(flags *flag.FlagSet, o *options) (finish func() error) {
	flags.IntVar(&o.tokens, "tokens", 100_000, "how many `tokens` are live")
	finishLoad := loadFlags(flags, o, 30*time.Second, 32)
	return func() error {
		if o.tokens < 1 {
			return errors.New("-tokens wants to be at least 1")
		}
		return finishLoad()
	}
}

// measureMemory sends every token once, and then as an audience does.
func measureMemory(ctx context.Context, o options, e environment) (found outcome, err error) {
	s := memorySetup
	b, err := newBench(ctx, o, []*setup{s})
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	r := memoryReport{environment: e}
	paths, err := b.mintLive(s, &r)
	if err != nil {
		return found, err
	}
	if err := b.renew(ctx, s); err != nil {
		return found, err
	}
	if err := b.sampleMemory(ctx, s, &r, "no token"); err != nil {
		return found, err
	}
	if err := b.sendOnce(ctx, s, paths); err != nil {
		return found, fmt.Errorf("%w\n%s", err, b.servers[s].log)
	}
	if err := b.sampleMemory(ctx, s, &r, "each token once"); err != nil {
		return found, err
	}
	if err := b.sendAsAudience(ctx, s, paths, &r); err != nil {
		return found, fmt.Errorf("%w\n%s", err, b.servers[s].log)
	}
	if err := b.sampleMemory(ctx, s, &r, "then a Zipf load"); err != nil {
		return found, err
	}
	return outcome{files: map[string]string{"memory.md": r.markdown()}, unmet: r.unmet()}, nil
}

// mintLive makes the tokens and returns the paths that viewers ask for.
func (b *bench) mintLive(s *setup, r *memoryReport) ([]string, error) {
	progress("minting %d tokens", b.options.tokens)
	tokens, err := mint(b.signer, s.form, s.rulesOf, warmTokens, b.options.tokens)
	if err != nil {
		return nil, err
	}
	distinct := make(map[string]struct{}, len(tokens))
	paths := make([]string, 0, len(tokens))
	r.shortest, r.longest = len(tokens[0]), 0
	for _, compact := range tokens {
		distinct[compact] = struct{}{}
		r.shortest, r.longest = min(r.shortest, len(compact)), max(r.longest, len(compact))
		paths = append(paths, s.form.path(compact, video, b.media[video][0].file))
	}
	const tolerance = 5
	switch {
	case len(distinct) != len(tokens):
		return nil, fmt.Errorf("%d of %d tokens are distinct", len(distinct), len(tokens))
	case r.shortest < tokenLength-tolerance || r.longest > tokenLength+tolerance:
		return nil, fmt.Errorf("the tokens have %d to %d bytes; want %d", r.shortest, r.longest, tokenLength)
	}
	return paths, nil
}

func (b *bench) sampleMemory(ctx context.Context, s *setup, r *memoryReport, title string) error {
	srv := b.servers[s]
	gauges, err := srv.counters(ctx, cacheEntries, cacheBytes, heapInUse, heapGoal)
	if err != nil {
		return err
	}
	used, err := srv.usage()
	if err != nil {
		return err
	}
	peak, err := peakMemory(srv.cmd.Process.Pid)
	if err != nil {
		return err
	}
	r.samples = append(r.samples, memorySample{title, used.rss, peak, gauges})
	progress("%s: %d entries, %.1f MiB of cache, %.0f MiB RSS", title, gauges[cacheEntries], mebibytes(gauges[cacheBytes]), mebibytes(used.rss))
	return nil
}

// sendOnce asks for each path once. wrk cannot do that: it stops by the clock.
func (b *bench) sendOnce(ctx context.Context, s *setup, paths []string) error {
	srv, m := b.servers[s], b.media[video][0]
	before, err := b.observe(ctx, s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var viewers sync.WaitGroup
	for range b.options.connections {
		viewers.Go(func() {
			client := &http.Client{Transport: &http.Transport{DisableCompression: true, MaxConnsPerHost: 1}}
			defer client.CloseIdleConnections()
			for i := next.Add(1) - 1; i < int64(len(paths)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				status, body, err := get(ctx, client, "http://"+srv.addr()+paths[i], s.header)
				if err == nil && (status != http.StatusOK || !bytes.Equal(body, m.data)) {
					err = fmt.Errorf("status %d and %d bytes; want 200 and the object", status, len(body))
				}
				if err != nil {
					cancel(fmt.Errorf("token %d: %w", i, err))
				}
			}
		})
	}
	viewers.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	after, err := b.observe(ctx, s)
	if err != nil {
		return err
	}
	if n := after.since(before).gate[verified]; n != int64(len(paths)) {
		return fmt.Errorf("%d tokens were verified; want %d, each one once", n, len(paths))
	}
	return nil
}

// sendAsAudience asks for the paths in proportion to 1 by their rank, which is
// not the order in which they were sent first.
func (b *bench) sendAsAudience(ctx context.Context, s *setup, paths []string, r *memoryReport) error {
	ranked := make([]string, len(paths))
	for i, rank := range rand.Perm(len(paths)) { //nolint:gosec // nobody is to guess it
		ranked[rank] = paths[i]
	}
	file := filepath.Join(b.dir, "ranked-paths")
	if err := writeFile(file, []byte(strings.Join(ranked, "\n")+"\n")); err != nil {
		return err
	}
	before, err := b.observe(ctx, s)
	if err != nil {
		return err
	}
	l := load{
		url: "http://" + b.servers[s].addr(), paths: file, mode: "zipf", header: s.header,
		connections: b.options.connections, duration: b.options.duration,
	}
	if r.load, err = b.run(ctx, l); err != nil {
		return err
	}
	if err := r.load.check(len(b.media[video][0].data)); err != nil {
		return err
	}
	after, err := b.observe(ctx, s)
	if err != nil {
		return err
	}
	counted := after.since(before)
	r.hits, r.misses = counted.gate[cacheHits], counted.gate[cacheMisses]
	switch {
	case r.hits+r.misses < r.load.Requests:
		return fmt.Errorf("%d hits and %d misses in %d requests", r.hits, r.misses, r.load.Requests)
	case counted.originRequests < r.load.Requests:
		return fmt.Errorf("the origin was asked %d times for %d requests: something answers from a cache", counted.originRequests, r.load.Requests)
	}
	return nil
}

func (r memoryReport) hitRate() float64 { return float64(r.hits) / float64(r.hits+r.misses) }

// unmet names what is wanted and is not so.
func (r memoryReport) unmet() (unmet []string) {
	for _, s := range r.samples {
		if size := s.gauges[cacheBytes]; size > mostCache {
			unmet = append(unmet, fmt.Sprintf("%s: the cache takes %.1f MiB, want at most %.0f", s.title, mebibytes(size), mebibytes(mostCache)))
		}
	}
	if peak := r.samples[len(r.samples)-1].peak; peak > mostMemory {
		unmet = append(unmet, fmt.Sprintf("the process has taken %.0f MiB, want at most %.0f", mebibytes(peak), mebibytes(mostMemory)))
	}
	if rate := r.hitRate(); rate < leastHitRate {
		unmet = append(unmet, fmt.Sprintf("%.2f %% of the requests have met the cache, want at least %.0f %%", 100*rate, 100*leastHitRate))
	}
	return unmet
}

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }

func (r memoryReport) markdown() string {
	var out strings.Builder
	e := r.environment
	e.write(&out, "Memory")
	fmt.Fprintf(&out, "- %d tokens of %d to %d bytes, each with three rules of its own, for a video with allowed origins; %d threads\n",
		e.options.tokens, r.shortest, r.longest, e.options.procs)
	fmt.Fprintf(&out, "- Then %d requests on %d connections in %s, of tokens in proportion to 1 by their rank (Zipf's law)\n",
		r.load.Requests, e.options.connections, e.options.duration)

	fmt.Fprint(&out, "\n| after | tokens in the cache | cache MiB | RSS MiB | most so far | heap in use MiB | of that live, at the last collection |\n")
	fmt.Fprint(&out, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, s := range r.samples {
		fmt.Fprintf(&out, "| %s | %d | %.1f | %.0f | %.0f | %.0f | %.0f |\n", s.title, s.gauges[cacheEntries], mebibytes(s.gauges[cacheBytes]),
			mebibytes(s.rss), mebibytes(s.peak), mebibytes(s.gauges[heapInUse]), mebibytes(s.gauges[heapGoal])/2)
	}
	fmt.Fprintf(&out, "| wanted | | at most %.0f | | at most %.0f | | |\n", mebibytes(mostCache), mebibytes(mostMemory))
	fmt.Fprintf(&out, "\nHit rate under the Zipf load: **%.2f %%** (%d hits, %d misses); wanted: at least %.0f %%.\n",
		100*r.hitRate(), r.hits, r.misses, 100*leastHitRate)
	return out.String()
}
