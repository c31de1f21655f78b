package main

import (
	"fmt"
	"slices"
	"strings"
)

// maxWarm is how many microseconds of CPU time a warm request of the smallest
// object may cost more than Caddy with the token cut off unseen.
const maxWarm = 5

// report is the result of the comparison.
type report struct {
	environment environment
	setups      []*setup
	samples     map[*setup]map[cell][]sample // by round
}

// spread is a median with the lowest and the highest value.
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

// median is that of a figure over the rounds.
func median[S any](samples []S, figure func(S) float64) float64 {
	values := make([]float64, 0, len(samples))
	for _, s := range samples {
		values = append(values, figure(s))
	}
	return spreadOf(values).median
}

// paired compares two series round by round, so that a minute in which the
// machine is slow affects both sides.
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

// throughput is the requests per second of a setup, as a ratio to another's.
func (r report) throughput(s, other *setup, size int) spread {
	return paired(r.samples[s][cell{size: size}], r.samples[other][cell{size: size}], func(a, b sample) float64 {
		return a.load.perSecond() / b.load.perSecond()
	})
}

// added is the CPU time for a request of the smallest object, less another
// setup's, in microseconds.
func (r report) added(s, other *setup) spread {
	return paired(r.samples[s][cell{}], r.samples[other][cell{}], func(a, b sample) float64 {
		return a.perRequest() - b.perRequest()
	})
}

// warm is what a warm request costs more than one whose token is cut off unseen.
// ok is false if one of the two was not measured.
func (r report) warm() (micros spread, ok bool) {
	gate, unseen := r.setup(warmGate), r.setup(cutOffUnseen)
	if gate == nil || unseen == nil {
		return micros, false
	}
	return r.added(gate, unseen), true
}

func (r report) unmet() []string {
	unmet := r.missed()
	if micros, ok := r.warm(); ok && micros.median > maxWarm {
		unmet = append(unmet, fmt.Sprintf("a warm request costs %.1f µs more than Caddy with the token cut off unseen, more than %d", micros.median, maxWarm))
	}
	return unmet
}

func (r report) markdown() string {
	var out strings.Builder
	e := r.environment
	e.write(&out, "Results")
	fmt.Fprintf(&out, "- %d rounds of %s for each setup and size; %d connections; %d threads a server; %d tokens, or each one once (cold)\n",
		e.options.rounds, e.options.duration, e.options.connections, threads, warmTokens)
	fmt.Fprint(&out, "- Figures are medians of the rounds. Comparisons are made within each round first; their range over the rounds is\n  in parentheses.\n")
	r.writeCaches(&out)
	r.writeAdded(&out)
	for i, size := range e.options.sizes() {
		fmt.Fprintf(&out, "\n## %s\n\n", size.title)
		fmt.Fprint(&out, "| | requests/s | CPU µs/request | origin's CPU µs | RSS MiB |\n")
		fmt.Fprint(&out, "| --- | ---: | ---: | ---: | ---: |\n")
		for _, s := range r.setups {
			r.writeRow(&out, s, i)
		}
	}
	return out.String()
}

// writeAdded compares each setup with the same server without a gate. README.md
// of the folder above has this table.
func (r report) writeAdded(out *strings.Builder) {
	fmt.Fprint(out, "\n## With a gate, against the same server without one\n\n| | added CPU µs, 1 KiB")
	for _, size := range r.environment.options.sizes() {
		fmt.Fprintf(out, " | requests/s, %s", size.title)
	}
	fmt.Fprintf(out, " |\n| --- | ---:%s |\n", strings.Repeat(" | ---:", len(r.environment.options.sizes())))
	for _, s := range r.setups {
		bare := r.setup(s.bare)
		if bare == nil {
			continue
		}
		added := r.added(s, bare)
		fmt.Fprintf(out, "| %s | %.1f (%.1f–%.1f)", s.title, added.median, added.low, added.high)
		for i := range r.environment.options.sizes() {
			ratio := r.throughput(s, bare, i)
			fmt.Fprintf(out, " | × %.2f (%.2f–%.2f)", ratio.median, ratio.low, ratio.high)
		}
		fmt.Fprintln(out, " |")
	}
	if micros, ok := r.warm(); ok {
		fmt.Fprintf(out, "\nA warm request costs **%.1f µs** (%.1f–%.1f) more than Caddy with the token cut off unseen. Required: at most %d µs.\n",
			micros.median, micros.low, micros.high, maxWarm)
	}
}

func (r report) writeRow(out *strings.Builder, s *setup, size int) {
	figure := func(of func(sample) float64) float64 { return median(r.samples[s][cell{size: size}], of) }
	fmt.Fprintf(out, "| %s | %.0f | %.1f | %.1f | %.0f |\n", s.title,
		figure(func(s sample) float64 { return s.load.perSecond() }),
		figure(sample.perRequest),
		figure(func(s sample) float64 { return float64(s.originCPU.Microseconds()) / float64(s.load.Requests) }),
		figure(func(s sample) float64 { return float64(s.rss) / (1 << 20) }))
}
