package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// report is what there is to say at the end.
type report struct {
	environment environment
	setups      []*setup
	results     map[*setup][][]sample // by size and round
}

// spread is a median, and what it is the median of.
type spread struct{ median, low, high float64 }

func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + median) / 2
	}
	return spread{median, sorted[0], sorted[len(sorted)-1]}
}

// each is the spread of a figure over the rounds.
func each[S any](samples []S, figure func(S) float64) spread {
	values := make([]float64, 0, len(samples))
	for _, s := range samples {
		values = append(values, figure(s))
	}
	return spreadOf(values)
}

func median[S any](samples []S, figure func(S) float64) float64 { return each(samples, figure).median }

// total is the sum of a figure over the rounds.
func total[S any](samples []S, figure func(S) int) (sum int) {
	for _, s := range samples {
		sum += figure(s)
	}
	return sum
}

// paired is the spread of what two make of each other in the same round.
func paired[S any](a, b []S, figure func(a, b S) float64) spread {
	values := make([]float64, 0, len(a))
	for round := range a {
		values = append(values, figure(a[round], b[round]))
	}
	return spreadOf(values)
}

func (r report) setup(name string) *setup {
	for _, s := range r.setups {
		if s.name == name {
			return s
		}
	}
	return nil
}

// against is the throughput of a setup in that of the same server without a
// gate.
func (r report) against(s *setup, size int) (ratio spread, ok bool) {
	bare := r.setup(s.bare)
	if bare == nil {
		return ratio, false
	}
	return paired(r.results[s][size], r.results[bare][size], func(gated, bare sample) float64 {
		return gated.load.perSecond() / bare.load.perSecond()
	}), true
}

// added is the CPU time that a gate adds to a request of the smallest object, in
// microseconds.
func (r report) added(s *setup) (micros spread, ok bool) {
	bare := r.setup(s.bare)
	if bare == nil {
		return micros, false
	}
	return paired(r.results[s][0], r.results[bare][0], func(gated, bare sample) float64 {
		return gated.perRequest() - bare.perRequest()
	}), true
}

func (r report) markdown() string {
	var out strings.Builder
	r.writeEnvironment(&out)
	r.writeThroughput(&out)
	r.writeAdded(&out)
	for i, size := range r.environment.options.sizes {
		fmt.Fprintf(&out, "\n## %s\n\n", size.title)
		fmt.Fprint(&out, "| | requests/s | MB/s | p50 ms | p90 ms | p99 ms | CPU µs/request | origin's CPU µs | RSS MiB |\n")
		fmt.Fprint(&out, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
		for _, s := range r.setups {
			r.writeRow(&out, s, i)
		}
	}
	return out.String()
}

// write begins a report with what it depends on.
func (e environment) write(out *strings.Builder, title string) {
	command := "make bench"
	if e.args != "" {
		command += fmt.Sprintf(" BENCHFLAGS=%q", e.args)
	}
	fmt.Fprintf(out, "# %s\n\nMade by `%s` on %s. [README.md](README.md) says what is measured and how to read it.\n\n",
		title, command, e.date.Format(time.DateOnly))
	fmt.Fprintf(out, "- %s, Linux %s; load average at the start: %s\n", e.cpu, e.kernel, e.load)
	fmt.Fprintf(out, "- %s\n", strings.Join(e.versions, "; "))
}

func (r report) writeEnvironment(out *strings.Builder) {
	e := r.environment
	e.write(out, "Results")
	fmt.Fprintf(out, "- %d rounds of %s a setup and size; %d connections; %d threads a server; %d tokens, or each one once (cold)\n",
		e.options.rounds, e.options.duration, e.options.connections, e.options.procs, warmTokens)
	fmt.Fprint(out, "- Figures are medians of the rounds. What compares two setups compares them within each round first; the range\n  over the rounds follows in parentheses.\n")
}

// writeThroughput compares each gate with the same server without it.
func (r report) writeThroughput(out *strings.Builder) {
	fmt.Fprint(out, "\n## Throughput, gated / not gated\n\n|")
	for _, size := range r.environment.options.sizes {
		fmt.Fprintf(out, " | %s", size.title)
	}
	fmt.Fprintf(out, " |\n| --- |%s\n", strings.Repeat(" ---: |", len(r.environment.options.sizes)))
	for _, s := range r.setups {
		if _, ok := r.against(s, 0); !ok {
			continue
		}
		fmt.Fprintf(out, "| %s |", s.title)
		for i := range r.environment.options.sizes {
			ratio, _ := r.against(s, i)
			fmt.Fprintf(out, " %.3f (%.3f–%.3f) |", ratio.median, ratio.low, ratio.high)
		}
		fmt.Fprintln(out)
	}
	fmt.Fprint(out, "\nWanted of the warm gate: at least 0.97, 0.99 and 0.99.\n")
}

// writeAdded compares what gates add with what HAProxy's adds.
func (r report) writeAdded(out *strings.Builder) {
	fmt.Fprint(out, "\n## CPU time that a gate adds to a request of 1 KiB\n\n| | µs | in that of HAProxy's jwt_verify | wanted |\n| --- | ---: | ---: | ---: |\n")
	wanted := map[string]string{"gate-warm": "at most 0.10", "gate-cold": "at most 1"}
	var reference spread
	if peer := r.setup("haproxy-jwt"); peer != nil {
		reference, _ = r.added(peer)
	}
	for _, s := range r.setups {
		added, ok := r.added(s)
		if !ok {
			continue
		}
		share := "–"
		if reference.median > 0 {
			share = fmt.Sprintf("%.2f", added.median/reference.median)
		}
		fmt.Fprintf(out, "| %s | %.1f (%.1f–%.1f) | %s | %s |\n", s.title, added.median, added.low, added.high, share, wanted[s.name])
	}
}

func (r report) writeRow(out *strings.Builder, s *setup, size int) {
	samples := r.results[s][size]
	milliseconds := func(figure func(loadResult) int64) float64 {
		return each(samples, func(s sample) float64 { return float64(figure(s.load)) / 1e3 }).median
	}
	rate := each(samples, func(s sample) float64 { return s.load.perSecond() }).median
	fmt.Fprintf(out, "| %s | %.0f | %.0f | %.2f | %.2f | %.2f | %.1f | %.1f | %.0f |\n",
		s.title, rate, rate*float64(sizes[size].bytes)/1e6,
		milliseconds(func(l loadResult) int64 { return l.P50 }),
		milliseconds(func(l loadResult) int64 { return l.P90 }),
		milliseconds(func(l loadResult) int64 { return l.P99 }),
		each(samples, sample.perRequest).median,
		each(samples, func(s sample) float64 { return float64(s.originCPU.Microseconds()) / float64(s.load.Requests) }).median,
		each(samples, func(s sample) float64 { return float64(s.rss) / (1 << 20) }).median)
}
