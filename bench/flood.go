package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

const (
	// What the issue of floods is held to: the p99 of viewers under forged
	// tokens in that under garbage, and how soon new viewers get in.
	mostForgedToGarbage = 2
	mostEntrance        = time.Second

	// floodSettle is how long a flood runs before latencies count, and runs on
	// after that.
	floodSettle = time.Second
)

// flood is what somebody sends as fast as he can. Each request has bytes of its
// own.
type flood struct {
	title   string
	token   string // with a {signature} of random bytes; "" for no flood
	from    string // an address, or "{address}" for one of each request's own
	garbage int    // the index of the garbage that forged tokens are compared with; else 0
}

func (f flood) forged() bool { return f.garbage != 0 }

// floodSetup is a gate that believes a proxy about its viewers' addresses.
var floodSetup = caddy(setup{name: "flood", title: "gate", bare: "caddy", form: ours, proxied: true})

// floodsWith are floods that somebody can send who has seen a token. What is
// garbage has one byte of the payload that no token has, its last, and is
// otherwise forged.
func floodsWith(seen string) []flood {
	const one, each = "198.51.100.7", "{address}"
	parts := strings.Split(seen, ".")
	forged := parts[0] + "." + parts[1] + ".{signature}"
	garbage := parts[0] + "." + parts[1][:len(parts[1])-1] + "~.{signature}"
	return []flood{
		{title: "none"},
		{title: "garbage, one address", token: garbage, from: one},
		{title: "forged, one address", token: forged, from: one, garbage: 1},
		{title: "garbage, many addresses", token: garbage, from: each},
		{title: "forged, many addresses", token: forged, from: each, garbage: 3},
	}
}

// floodSample is what one flood has done.
type floodSample struct {
	load      loadResult
	reception reception
	gate      map[string]int64 // what it has counted
	cpu       time.Duration
	rss       int64
}

func floodFlags(flags *flag.FlagSet, o *options) (finish func() error) {
	roundsFlag(flags, o, 5)
	return loadFlags(flags, o, 10*time.Second, 256)
}

// measureFloods puts each flood on a new process of the gate in each round, while
// an audience watches.
func measureFloods(ctx context.Context, o options, e environment) (found outcome, err error) {
	b, err := newBench(ctx, o, []*setup{floodSetup})
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	newcomers := int(o.duration / newcomerInterval)
	if b.fresh, err = mint(b.signer, floodSetup.form, floodSetup.rulesOf, warmTokens, newcomers); err != nil {
		return found, err
	}
	r := floodReport{e, floodsWith(b.warm[floodSetup][0]), nil}
	r.samples = make([][]floodSample, len(r.floods))
	order := make([]int, len(r.floods))
	for i := range order {
		order[i] = i
	}
	for round := range o.rounds {
		for _, i := range inTurn(order, round) {
			sample, err := b.sampleFlood(ctx, r.floods[i])
			if err != nil {
				return found, fmt.Errorf("flood: %s, round %d: %w", r.floods[i].title, round+1, err)
			}
			r.samples[i] = append(r.samples[i], sample)
			progress("round %d/%d  %-24s %8.0f refused/s  p99 of viewers %6.2f ms  last new viewer in after %4d ms", round+1, o.rounds,
				r.floods[i].title, sample.refusedPerSecond(), sample.viewers(99), sample.slowestEntrance().Milliseconds())
		}
	}
	found.files = map[string]string{"flood.md": r.markdown()}
	found.unmet = r.unmet()
	return found, nil
}

func (b *bench) sampleFlood(ctx context.Context, f flood) (result floodSample, err error) {
	s := floodSetup
	if err := b.renew(ctx, s); err != nil {
		return result, err
	}
	srv, m := b.servers[s], b.media[video][0]
	a := audience{url: "http://" + srv.addr(), object: m}
	for _, compact := range b.warm[s] {
		a.known = append(a.known, s.form.path(compact, video, m.file))
	}
	for _, compact := range b.fresh {
		a.fresh = append(a.fresh, s.form.path(compact, video, m.file))
	}
	if err := b.sendOnce(ctx, s, a.known); err != nil {
		return result, err
	}
	before, err := b.observe(ctx, s)
	if err != nil {
		return result, err
	}
	if result.load, result.reception, err = b.runFlood(ctx, f, a); err != nil {
		return result, fmt.Errorf("%w\n%s", err, srv.log)
	}
	after, err := b.observe(ctx, s)
	if err != nil {
		return result, err
	}
	counted := after.since(before)
	result.gate, result.rss = counted.gate, after.server.rss
	result.cpu = after.server.cpu - before.server.cpu
	if err := result.check(f, counted.originRequests, len(a.fresh), b.options.connections); err != nil {
		return result, fmt.Errorf("%w\n%s", err, srv.log)
	}
	return result, nil
}

// runFlood floods the gate before, while and after the audience is measured.
func (b *bench) runFlood(ctx context.Context, f flood, a audience) (r loadResult, audience reception, err error) {
	if f.token == "" {
		return r, a.watch(ctx, floodSettle, b.options.duration), ctx.Err()
	}
	paths := filepath.Join(b.dir, "flood-paths")
	if err := writeFile(paths, []byte("/"+f.token+"/"+a.object.file+"\n")); err != nil {
		return r, audience, err
	}
	l := load{
		url: a.url, paths: paths, mode: "forge", header: map[string]string{"X-Forwarded-For": f.from},
		connections: b.options.connections, duration: floodSettle + b.options.duration + floodSettle,
	}
	watched := make(chan reception, 1)
	go func() { watched <- a.watch(ctx, floodSettle, b.options.duration) }()
	r, err = b.run(ctx, l)
	return r, <-watched, errors.Join(err, ctx.Err())
}

// check holds what has happened against what the flood claims to be, and
// viewers against what they were promised.
func (s floodSample) check(f flood, originRequests int64, newcomers, connections int) error {
	watched := s.reception
	if watched.errors != nil {
		const shown = 5
		return fmt.Errorf("%d errors of viewers; want none: %w", len(watched.errors), errors.Join(watched.errors[:min(shown, len(watched.errors))]...))
	}
	checked := s.gate[forged] + s.gate[limited]
	atMost := s.load.Requests + int64(connections) // some had no answer yet when the flood ended
	switch e := s.load.Errors; {
	case len(watched.latencies) == 0:
		return errors.New("no viewer has watched")
	case len(watched.entrances) != newcomers || s.gate[verified] != int64(newcomers):
		return fmt.Errorf("%d new viewers got in and %d tokens were verified; want %d", len(watched.entrances), s.gate[verified], newcomers)
	case s.gate[cacheHits] != int64(watched.requests):
		return fmt.Errorf("%d requests met the cache; want %d, those of the viewers that it knows", s.gate[cacheHits], watched.requests)
	case originRequests != int64(watched.requests+newcomers+1): // one of them counts them
		return fmt.Errorf("the origin was asked %d times; want %d, by viewers alone", originRequests-1, watched.requests+newcomers)
	case e.Connect+e.Read+e.Write+e.Timeout != 0:
		return fmt.Errorf("errors of the flood: %d connecting, %d reading, %d writing, %d timeouts; want none", e.Connect, e.Read, e.Write, e.Timeout)
	case e.Status != s.load.Requests:
		return fmt.Errorf("%d of %d requests of the flood were refused; want all", e.Status, s.load.Requests)
	case f.token == "":
		return nil
	case s.load.Requests == 0:
		return errors.New("there was no flood")
	case !f.forged() && checked != int64(watched.retries):
		return fmt.Errorf("%d requests have come to the check of a signature; want none of garbage", checked)
	case f.forged() && (checked < s.load.Requests || checked-int64(watched.retries) > atMost || s.gate[forged] == 0):
		return fmt.Errorf("%d signatures have failed and %d were not looked at any more; want %d in all", s.gate[forged], s.gate[limited], s.load.Requests)
	}
	return nil
}

func (s floodSample) refusedPerSecond() float64 {
	if s.load.Micros == 0 {
		return 0
	}
	return s.load.perSecond()
}

// viewers is a percentile of the latency of viewers with cached tokens, in
// milliseconds.
func (s floodSample) viewers(percent int) float64 {
	return percentile(s.reception.latencies, percent).Seconds() * 1e3
}

func (s floodSample) slowestEntrance() time.Duration {
	return s.reception.entrances[len(s.reception.entrances)-1]
}

// floodReport is what there is to say of floods.
type floodReport struct {
	environment environment
	floods      []flood
	samples     [][]floodSample // by flood and round
}

// againstGarbage is the p99 of viewers under a flood in that under the same
// flood of garbage. ok is false for floods that are not of forged tokens.
func (r floodReport) againstGarbage(i int) (ratio spread, ok bool) {
	if !r.floods[i].forged() {
		return ratio, false
	}
	return paired(r.samples[i], r.samples[r.floods[i].garbage], func(forged, garbage floodSample) float64 {
		return forged.viewers(99) / garbage.viewers(99)
	}), true
}

// slowestEntrance is that of all rounds.
func (r floodReport) slowestEntrance(i int) (slowest time.Duration) {
	for _, s := range r.samples[i] {
		slowest = max(slowest, s.slowestEntrance())
	}
	return slowest
}

// unmet names what is wanted and is not so. One short round says nothing of the
// tail of a latency.
func (r floodReport) unmet() (unmet []string) {
	for i, f := range r.floods {
		if ratio, ok := r.againstGarbage(i); ok && ratio.median > mostForgedToGarbage && !r.environment.options.quick {
			unmet = append(unmet, fmt.Sprintf("%s: the p99 of viewers is %.2f of that under garbage, want at most %d", f.title, ratio.median, mostForgedToGarbage))
		}
		if slowest := r.slowestEntrance(i); slowest > mostEntrance {
			unmet = append(unmet, fmt.Sprintf("%s: a new viewer got in after %s, want at most %s", f.title, slowest.Round(time.Millisecond), mostEntrance))
		}
	}
	return unmet
}

func (r floodReport) markdown() string {
	var out strings.Builder
	e := r.environment
	e.write(&out, "Floods")
	fmt.Fprintf(&out, "- %d rounds of %s a flood, each on a new process with %d threads; %d connections that flood; %d viewers, each asking every %s;\n  a new viewer every %s\n",
		e.options.rounds, e.options.duration, e.options.procs, e.options.connections, warmTokens, viewerInterval, newcomerInterval)
	fmt.Fprint(&out, "- Figures are medians of the rounds, counts are sums. Ratios are taken within each round first; the range over the\n  rounds follows in parentheses.\n")
	r.writeViewers(&out)
	r.writeNewcomers(&out)
	r.writeGate(&out)
	return out.String()
}

func (r floodReport) writeViewers(out *strings.Builder) {
	fmt.Fprint(out, "\n## Viewers whose tokens are cached\n\n")
	fmt.Fprint(out, "| flood | refused/s | viewers' requests | errors | p50 ms | p99 ms | p99 / that under garbage | wanted |\n")
	fmt.Fprint(out, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for i, f := range r.floods {
		ratio, wanted := "–", ""
		if s, ok := r.againstGarbage(i); ok {
			ratio = fmt.Sprintf("%.2f (%.2f–%.2f)", s.median, s.low, s.high)
			wanted = fmt.Sprintf("at most %d", mostForgedToGarbage)
		}
		// A sample with errors would have ended the run.
		fmt.Fprintf(out, "| %s | %.0f | %d | 0 | %.2f | %.2f | %s | %s |\n", f.title,
			median(r.samples[i], floodSample.refusedPerSecond),
			total(r.samples[i], func(s floodSample) int { return s.reception.requests }),
			median(r.samples[i], func(s floodSample) float64 { return s.viewers(50) }),
			median(r.samples[i], func(s floodSample) float64 { return s.viewers(99) }), ratio, wanted)
	}
}

func (r floodReport) writeNewcomers(out *strings.Builder) {
	fmt.Fprint(out, "\n## New viewers, each from a network of its own\n\n")
	fmt.Fprint(out, "| flood | came and got in | told to come again | p50 ms | slowest ms | wanted |\n")
	fmt.Fprint(out, "| --- | ---: | ---: | ---: | ---: | ---: |\n")
	for i, f := range r.floods {
		fmt.Fprintf(out, "| %s | %d | %d | %.0f | %d | at most %d |\n", f.title,
			total(r.samples[i], func(s floodSample) int { return len(s.reception.entrances) }),
			total(r.samples[i], func(s floodSample) int { return s.reception.retries }),
			median(r.samples[i], func(s floodSample) float64 { return percentile(s.reception.entrances, 50).Seconds() * 1e3 }),
			r.slowestEntrance(i).Milliseconds(), mostEntrance.Milliseconds())
	}
}

func (r floodReport) writeGate(out *strings.Builder) {
	fmt.Fprint(out, "\n## What the gate does with it\n\n")
	fmt.Fprint(out, "| flood | signatures that failed | verification_limited | CPU µs/request | RSS MiB |\n| --- | ---: | ---: | ---: | ---: |\n")
	for i, f := range r.floods {
		fmt.Fprintf(out, "| %s | %.0f | %.0f | %.1f | %.0f |\n", f.title,
			median(r.samples[i], func(s floodSample) float64 { return float64(s.gate[forged]) }),
			median(r.samples[i], func(s floodSample) float64 { return float64(s.gate[limited]) }),
			median(r.samples[i], floodSample.perRequest),
			median(r.samples[i], func(s floodSample) float64 { return float64(s.rss) / (1 << 20) }))
	}
}

// perRequest is the gate's CPU time for a request, in microseconds, of the flood
// and of viewers alike.
func (s floodSample) perRequest() float64 {
	return float64(s.cpu.Microseconds()) / float64(s.load.Requests+int64(s.reception.requests))
}
