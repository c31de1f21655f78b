package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

const (
	// The requirements: the p99 latency of known clients under forged tokens, as
	// a ratio to that under garbage, and the time in which new clients get the
	// object.
	maxForgedToGarbage = 2
	maxEntrance        = time.Second

	// floodSettle is how long a flood runs before latencies count, and how long
	// it goes on afterwards.
	floodSettle = time.Second
)

// flood is a stream of requests with a token that opens nothing. Each request
// has bytes of its own.
type flood struct {
	title   string
	token   string // with {signature} for random bytes; "" for no flood
	from    string // an address, or "{address}" for another one in each request
	garbage int    // the index of the flood of garbage to compare with; 0 for those
}

func (f flood) forged() bool { return f.garbage != 0 }

// floodSetup is a gate behind a proxy that it trusts, so that each request can
// have another address.
var floodSetup = caddy(setup{name: "flood", title: "gate", bare: "caddy", form: ours, proxied: true})

// floodsWith are floods that anybody can send who has seen a token. Garbage is
// refused for its form: the last byte of its payload occurs in no token. A forged
// token is refused for its signature.
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

// floodSample is the result of one flood.
type floodSample struct {
	load    loadResult
	clients results
	during  observation
}

// measureFloods sends each flood to a new process of the gate in each round,
// while clients make requests.
func measureFloods(ctx context.Context, o options, e environment) (markdown string, unmet []string, err error) {
	b, err := newBench(ctx, o, []*setup{floodSetup})
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if b.fresh, err = mint(b.signer, floodSetup.form, "", time.Now().Add(48*time.Hour), int(o.duration/newInterval)); err != nil {
		return "", nil, err
	}
	r := floodReport{environment: e, floods: floodsWith(b.warm[floodSetup][0])}
	r.samples = make([][]floodSample, len(r.floods))
	order := make([]int, len(r.floods))
	for i := range order {
		order[i] = i
	}
	for round := range o.rounds {
		for _, i := range inTurn(order, round) {
			sample, err := b.sampleFlood(ctx, r.floods[i])
			if err != nil {
				return "", nil, fmt.Errorf("flood: %s, round %d: %w", r.floods[i].title, round+1, err)
			}
			r.samples[i] = append(r.samples[i], sample)
			o.record("round %d/%d  %-24s %7d refused, %6.0f/s  %d requests of known clients: p50 %6.2f ms, p99 %6.2f ms, last %6.2f ms  "+
				"%d new clients: p50 %4d ms, last %4d ms  %d signatures failed, %d limited  RSS %3d MiB", round+1, o.rounds,
				r.floods[i].title, sample.load.Requests, sample.load.perSecond(), len(sample.clients.latencies), sample.latency(50), sample.latency(99), sample.latency(100),
				len(sample.clients.entrances), percentile(sample.clients.entrances, 50).Milliseconds(), sample.slowestEntrance().Milliseconds(),
				sample.during.gate[forged], sample.during.gate[limited], sample.during.server.rss>>20)
		}
	}
	return r.markdown(), r.unmet(), nil
}

func (b *bench) sampleFlood(ctx context.Context, f flood) (result floodSample, err error) {
	s := floodSetup
	if err := b.renew(ctx, s); err != nil {
		return result, err
	}
	o := b.media[video][0]
	c := clients{url: b.servers[s].url(protocols[0]), object: o}
	for _, compact := range b.warm[s] {
		c.known = append(c.known, s.form.path(compact, video, o.file))
	}
	for _, compact := range b.fresh {
		c.fresh = append(c.fresh, s.form.path(compact, video, o.file))
	}
	for _, path := range c.known {
		if status, err := c.get(ctx, http.DefaultClient, path, "203.0.113.1"); err != nil || status != http.StatusOK {
			return result, fmt.Errorf("filling the token cache: status %d, %w", status, err)
		}
	}
	before, err := b.observe(ctx, s)
	if err != nil {
		return result, err
	}
	if result.load, result.clients, err = b.runFlood(ctx, f, c); err != nil {
		return result, b.servers[s].explain(err)
	}
	after, err := b.observe(ctx, s)
	if err != nil {
		return result, err
	}
	result.during = after.since(before)
	return result, b.servers[s].explain(result.check(f, len(c.fresh), b.options.connections))
}

// runFlood sends the flood before, while and after the clients are measured.
func (b *bench) runFlood(ctx context.Context, f flood, c clients) (r loadResult, met results, err error) {
	if f.token == "" {
		return r, c.run(ctx, floodSettle, b.options.duration), ctx.Err()
	}
	l := load{
		url: c.url, paths: filepath.Join(b.dir, "paths"), header: map[string]string{"X-Forwarded-For": f.from},
		connections: b.options.connections, duration: floodSettle + b.options.duration + floodSettle,
	}
	if err := writeFile(l.paths, []byte("/"+f.token+"/"+c.object.file+"\n")); err != nil {
		return r, met, err
	}
	done := make(chan results, 1)
	go func() { done <- c.run(ctx, floodSettle, b.options.duration) }()
	r, err = b.run(ctx, l)
	return r, <-done, errors.Join(err, ctx.Err())
}

// check compares what has happened with what the flood claims to be, and with
// what clients are promised.
func (s floodSample) check(f flood, newClients, connections int) error {
	met, gate, e := s.clients, s.during.gate, s.load.Errors
	if met.errors != nil {
		const shown = 5
		return fmt.Errorf("%d errors of clients: there must be none: %w", len(met.errors), errors.Join(met.errors[:min(shown, len(met.errors))]...))
	}
	checked := gate[forged] + gate[limited]
	atMost := s.load.Requests + int64(connections) // some had no response yet when the flood ended
	switch {
	case len(met.latencies) == 0:
		return errors.New("there were no requests of known clients")
	case len(met.entrances) != newClients || gate[verified] != int64(newClients):
		return fmt.Errorf("%d new clients got the object and %d tokens were verified: it must be %d", len(met.entrances), gate[verified], newClients)
	case gate[cacheHits] != int64(met.requests):
		return fmt.Errorf("%d requests hit the token cache: it must be %d, those of known clients", gate[cacheHits], met.requests)
	case s.during.originRequests != int64(met.requests+newClients+1): // one of them counts them
		return fmt.Errorf("the origin got %d requests: it must be %d, those of clients", s.during.originRequests-1, met.requests+newClients)
	case e.Connect+e.Read+e.Write+e.Timeout != 0:
		return fmt.Errorf("errors of the flood: %d connecting, %d reading, %d writing, %d timeouts; there must be none", e.Connect, e.Read, e.Write, e.Timeout)
	case e.Status != s.load.Requests:
		return fmt.Errorf("%d of %d requests of the flood were refused: it must be all", e.Status, s.load.Requests)
	case f.token == "":
		return nil
	case s.load.Requests == 0:
		return errors.New("there was no flood")
	case !f.forged() && checked != int64(met.retries):
		return fmt.Errorf("the signatures of %d requests were looked at: it must be none of garbage", checked)
	case f.forged() && (checked < s.load.Requests || checked-int64(met.retries) > atMost || gate[forged] == 0):
		return fmt.Errorf("%d signatures have failed and %d requests were limited: it must be %d in all", gate[forged], gate[limited], s.load.Requests)
	}
	return nil
}

// latency is a percentile of known clients', in milliseconds.
func (s floodSample) latency(percent int) float64 {
	return percentile(s.clients.latencies, percent).Seconds() * 1e3
}

func (s floodSample) slowestEntrance() time.Duration {
	return s.clients.entrances[len(s.clients.entrances)-1]
}

// floodReport is the result of all floods.
type floodReport struct {
	environment environment
	floods      []flood
	samples     [][]floodSample // by flood and round
}

// againstGarbage is the p99 of known clients as a ratio to that under the same
// flood of garbage. ok is false for floods without forged tokens.
func (r floodReport) againstGarbage(i int) (ratio spread, ok bool) {
	if !r.floods[i].forged() {
		return ratio, false
	}
	return paired(r.samples[i], r.samples[r.floods[i].garbage], func(forged, garbage floodSample) float64 {
		return forged.latency(99) / garbage.latency(99)
	}), true
}

// slowestEntrance is that of all rounds.
func (r floodReport) slowestEntrance(i int) (slowest time.Duration) {
	for _, s := range r.samples[i] {
		slowest = max(slowest, s.slowestEntrance())
	}
	return slowest
}

func (r floodReport) unmet() (unmet []string) {
	for i, f := range r.floods {
		if ratio, ok := r.againstGarbage(i); ok && ratio.median > maxForgedToGarbage {
			unmet = append(unmet, fmt.Sprintf("%s: the p99 of known clients is %.2f times that under garbage, more than %d", f.title, ratio.median, maxForgedToGarbage))
		}
		if slowest := r.slowestEntrance(i); slowest > maxEntrance {
			unmet = append(unmet, fmt.Sprintf("%s: a new client got the object after %s, more than %s", f.title, slowest.Round(time.Millisecond), maxEntrance))
		}
	}
	return unmet
}

func (r floodReport) markdown() string {
	var out strings.Builder
	e := r.environment
	e.write(&out, "Floods")
	fmt.Fprintf(&out, "- %d rounds of %s a flood, each on a new process with %d threads; %d connections that flood; %d known clients, each with a\n  request every %s; a new client every %s\n",
		e.options.rounds, e.options.duration, threads, e.options.connections, warmTokens, knownInterval, newInterval)
	fmt.Fprintf(&out, "- Figures are medians of the rounds. Ratios are taken within each round first; their range is in parentheses.\n"+
		"- Every client got every object, or the run would have failed. Required: a p99 of at most %d times that under garbage, and\n  at most %s for a new client.\n",
		maxForgedToGarbage, maxEntrance)
	fmt.Fprint(&out, "\n| flood | refused/s | known clients: p50 ms | p99 ms | p99 / under garbage | new clients: p50 ms | slowest ms |\n")
	fmt.Fprint(&out, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for i, f := range r.floods {
		figure := func(of func(floodSample) float64) float64 { return median(r.samples[i], of) }
		ratio := "–"
		if s, ok := r.againstGarbage(i); ok {
			ratio = fmt.Sprintf("%.2f (%.2f–%.2f)", s.median, s.low, s.high)
		}
		fmt.Fprintf(&out, "| %s | %.0f | %.2f | %.2f | %s | %.0f | %d |\n", f.title, figure(func(s floodSample) float64 { return s.load.perSecond() }),
			figure(func(s floodSample) float64 { return s.latency(50) }), figure(func(s floodSample) float64 { return s.latency(99) }), ratio,
			figure(func(s floodSample) float64 { return percentile(s.clients.entrances, 50).Seconds() * 1e3 }), r.slowestEntrance(i).Milliseconds())
	}
	fmt.Fprint(&out, "\n| flood | signatures that failed | verification_limited | RSS MiB |\n| --- | ---: | ---: | ---: |\n")
	for i, f := range r.floods {
		figure := func(of func(floodSample) float64) float64 { return median(r.samples[i], of) }
		fmt.Fprintf(&out, "| %s | %.0f | %.0f | %.0f |\n", f.title,
			figure(func(s floodSample) float64 { return float64(s.during.gate[forged]) }),
			figure(func(s floodSample) float64 { return float64(s.during.gate[limited]) }),
			figure(func(s floodSample) float64 { return float64(s.during.server.rss) / (1 << 20) }))
	}
	return out.String()
}
