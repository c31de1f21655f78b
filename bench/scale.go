package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// mostOfFlat is how much a size of what is flat may cost in a smaller one.
	mostOfFlat = 1.25

	// benchmarkModule is where BenchmarkScale is.
	benchmarkModule = ".."
)

// scaleTitles say what there is more and more of, by the names in BenchmarkScale
// and in the order of the report.
var scaleTitles = []struct {
	name, title string
	control     string // the name of what it may be as steep as
	excuse      string // why it may be as steep as it is
}{
	{name: "tokens", title: "tokens that are remembered"},
	{name: "address-rules", title: "access rules by address in a token"},
	{name: "country-rules", title: "access rules by country in a token"},
	{name: "token-bytes", title: "bytes of a token", excuse: "each byte is read"},
	{name: "origins", title: "allowed origins of a video"},
	{name: "videos", title: "videos with settings", control: "go-map"},
	{name: "go-map", title: "the same ids in a map of Go's", excuse: "for comparison: what memory costs"},
}

// scalePoint is the cost of a request where there is so much of something.
type scalePoint struct {
	n      int
	nanos  spread
	allocs float64
}

// scaleSeries is how the cost grows with one thing.
type scaleSeries struct {
	title   string
	control *scaleSeries // what it may be as steep as, or nil
	excuse  string       // why it may be as steep as it is, or ""
	points  []scalePoint // by n
}

func scaleFlags(flags *flag.FlagSet, o *options) (finish func() error) {
	roundsFlag(flags, o, 5)
	flags.DurationVar(&o.benchTime, "benchtime", 500*time.Millisecond, "`how long` a measurement takes")
	return func() error {
		if o.benchTime <= 0 {
			return fmt.Errorf("-benchtime %s: want more", o.benchTime)
		}
		return nil
	}
}

// measureScale runs the benchmark of the product's module and judges it.
func measureScale(ctx context.Context, o options, e environment) (found outcome, err error) {
	measured := make(map[string]map[int][]benchmarkResult)
	for round := range o.rounds {
		progress("round %d/%d of BenchmarkScale", round+1, o.rounds)
		results, err := runBenchmark(ctx, o)
		if err != nil {
			return found, err
		}
		for _, r := range results {
			if measured[r.series] == nil {
				measured[r.series] = make(map[int][]benchmarkResult)
			}
			measured[r.series][r.n] = append(measured[r.series][r.n], r)
		}
	}
	r := scaleReport{environment: e}
	if r.series, err = seriesOf(measured, o.rounds); err != nil {
		return found, err
	}
	found.files = map[string]string{"scale.md": r.markdown(), "scale.svg": r.chart()}
	if !o.quick {
		found.unmet = r.unmet()
	}
	return found, nil
}

// benchmarkResult is a line that `go test -bench` prints.
type benchmarkResult struct {
	series string
	n      int
	nanos  float64
	allocs float64
}

func runBenchmark(ctx context.Context, o options) ([]benchmarkResult, error) {
	args := []string{"test", "-run", "^$", "-bench", "^BenchmarkScale$", "-benchtime", o.benchTime.String(), "-timeout", "1h"}
	if o.quick {
		args = append(args, "-short")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, ".")...) //nolint:gosec // the arguments are ours
	cmd.Dir = benchmarkModule
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	results, err := parseBenchmark(string(out))
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	return results, nil
}

var benchmarkLine = regexp.MustCompile(`(?m)^BenchmarkScale/([a-z-]+)/(\d+)(?:-\d+)?\s+\d+\s+([\d.]+) ns/op\s+\d+ B/op\s+(\d+) allocs/op$`)

func parseBenchmark(out string) (results []benchmarkResult, err error) {
	matches := benchmarkLine.FindAllStringSubmatch(out, -1)
	if lines := strings.Count(out, "\nBenchmarkScale/"); len(matches) == 0 || len(matches) != lines {
		return nil, fmt.Errorf("%d of %d lines of BenchmarkScale are understood", len(matches), lines)
	}
	for _, m := range matches {
		r := benchmarkResult{series: m[1]}
		if r.n, err = strconv.Atoi(m[2]); err != nil {
			return nil, err
		}
		if r.nanos, err = strconv.ParseFloat(m[3], 64); err != nil {
			return nil, err
		}
		if r.allocs, err = strconv.ParseFloat(m[4], 64); err != nil {
			return nil, err
		}
		results = append(results, r)
	}
	return results, nil
}

// seriesOf puts what was measured in the report's order, and sees that nothing
// is missing.
func seriesOf(measured map[string]map[int][]benchmarkResult, rounds int) ([]scaleSeries, error) {
	if len(measured) != len(scaleTitles) {
		return nil, fmt.Errorf("BenchmarkScale is of %d things, of which the report knows %d", len(measured), len(scaleTitles))
	}
	all := make([]scaleSeries, 0, len(scaleTitles))
	for _, t := range scaleTitles {
		s := scaleSeries{title: t.title, excuse: t.excuse}
		for _, n := range slices.Sorted(maps.Keys(measured[t.name])) {
			results := measured[t.name][n]
			if len(results) != rounds {
				return nil, fmt.Errorf("%s/%d was measured %d times; want %d", t.name, n, len(results), rounds)
			}
			s.points = append(s.points, scalePoint{
				n:      n,
				nanos:  each(results, func(r benchmarkResult) float64 { return r.nanos }),
				allocs: median(results, func(r benchmarkResult) float64 { return r.allocs }),
			})
		}
		const fewest = 3 // a line fits two points, whatever they are
		if len(s.points) < fewest {
			return nil, fmt.Errorf("%s was measured at %d sizes; want at least %d", t.name, len(s.points), fewest)
		}
		all = append(all, s)
	}
	for i, t := range scaleTitles {
		for j := range scaleTitles {
			if t.control != "" && t.control == scaleTitles[j].name {
				all[i].control = &all[j]
			}
		}
	}
	return all, nil
}

// growth is how a cost depends on a number.
type growth string

const (
	flat        growth = "flat"
	logarithmic growth = "logarithmic"
	steeper     growth = "steeper than logarithmic"
)

// growth judges a series. It is flat if no size costs much more than a smaller
// one. Else it is logarithmic, or grows less than that, if a + b·log n comes
// closer to it than a + b·n does, by least squares, or if the latter hardly rises.
func (s scaleSeries) growth() growth {
	byLog, _ := s.fit(func(n int) float64 { return math.Log(float64(n)) })
	byNumber, slope := s.fit(func(n int) float64 { return float64(n) })
	first, last := s.points[0], s.points[len(s.points)-1]
	switch rise := slope * float64(last.n-first.n); {
	case s.factor() <= mostOfFlat:
		return flat
	case byLog < byNumber, rise <= (mostOfFlat-1)*first.nanos.median:
		return logarithmic
	}
	return steeper
}

// factor is the most that a size costs in a smaller one.
func (s scaleSeries) factor() float64 {
	lowest, highest := math.Inf(1), 0.0
	for _, p := range s.points {
		lowest = min(lowest, p.nanos.median)
		highest = max(highest, p.nanos.median/lowest)
	}
	return highest
}

// fit finds the line that fits best if x is the axis: its slope, and what it
// leaves as a sum of squares.
func (s scaleSeries) fit(x func(n int) float64) (left, slope float64) {
	count := float64(len(s.points))
	var meanX, meanY, covariance, variance float64
	for _, p := range s.points {
		meanX += x(p.n) / count
		meanY += p.nanos.median / count
	}
	for _, p := range s.points {
		covariance += (x(p.n) - meanX) * (p.nanos.median - meanY)
		variance += (x(p.n) - meanX) * (x(p.n) - meanX)
	}
	for _, p := range s.points {
		off := p.nanos.median - meanY - covariance/variance*(x(p.n)-meanX)
		left += off * off
	}
	return left, covariance / variance
}

// scaleReport is what there is to say of how the gate scales.
type scaleReport struct {
	environment environment
	series      []scaleSeries
}

// wanted says what is wanted of a series.
func (s scaleSeries) wanted() string {
	switch {
	case s.excuse != "":
		return "– (" + s.excuse + ")"
	case s.control != nil:
		return fmt.Sprintf("flat or logarithmic, or no steeper than %s", s.control.title)
	}
	return "flat or logarithmic"
}

// met tells whether that is so.
func (s scaleSeries) met() bool {
	return s.excuse != "" || s.growth() != steeper || s.control != nil && s.factor() <= s.control.factor()
}

// unmet names what is wanted and is not so.
func (r scaleReport) unmet() (unmet []string) {
	for _, s := range r.series {
		if !s.met() {
			first, last := s.points[0], s.points[len(s.points)-1]
			unmet = append(unmet, fmt.Sprintf("%s: %.0f ns with %s and %.0f ns with %s, want %s",
				s.title, first.nanos.median, thousands(first.n), last.nanos.median, thousands(last.n), s.wanted()))
		}
	}
	return unmet
}

func (r scaleReport) markdown() string {
	var out strings.Builder
	e := r.environment
	e.write(&out, "Scale")
	fmt.Fprintf(&out, "- `BenchmarkScale` of the folder above, %d rounds of %s a size; figures are medians, with the range over the rounds in\n  parentheses\n",
		e.options.rounds, e.options.benchTime)
	fmt.Fprint(&out, "- Cost of the decision about a warm request, in process.\n\n![Cost of a decision by what there is more and more of](scale.svg)\n")
	fmt.Fprint(&out, "\n| | | most that one costs in a smaller one | wanted |\n| --- | --- | ---: | --- |\n")
	for _, s := range r.series {
		fmt.Fprintf(&out, "| %s | %s | %.2f | %s |\n", s.title, s.growth(), s.factor(), s.wanted())
	}
	fmt.Fprintf(&out, "\nFlat: no size costs more than %.2f times a smaller one. Logarithmic, or less: of the two lines a + b·log n and a + b·n,\nthe first comes closer, by least squares, or the second rises by less than that.\n", mostOfFlat)
	for _, s := range r.series {
		fmt.Fprintf(&out, "\n## %s\n\n| | ns | allocations |\n| ---: | ---: | ---: |\n", strings.ToUpper(s.title[:1])+s.title[1:])
		for _, p := range s.points {
			fmt.Fprintf(&out, "| %s | %.0f (%.0f–%.0f) | %.0f |\n", thousands(p.n), p.nanos.median, p.nanos.low, p.nanos.high, p.allocs)
		}
	}
	return out.String()
}

// chart draws all series to one scale. Sizes are steps of a logarithm, so what is
// logarithmic grows by the same from row to row.
func (r scaleReport) chart() string {
	panels := make([]panel, 0, len(r.series))
	full := 0.0
	for _, s := range r.series {
		p := panel{head: "ns by " + s.title + ": " + string(s.growth())}
		for _, point := range s.points {
			figure := fmt.Sprintf("%.0f", point.nanos.median)
			if point.allocs > 0 {
				figure += fmt.Sprintf(", %.0f allocs", point.allocs)
			}
			p.bars = append(p.bars, bar{thousands(point.n), []barPart{{"gate", point.nanos.median}}, figure})
		}
		full = max(full, longest(p.bars))
		panels = append(panels, p)
	}
	for i := range panels {
		panels[i].full = full
	}
	return drawChart("Cost of a decision by what there is more and more of", panels...)
}

// thousands writes a number with commas.
func thousands(n int) string {
	text := strconv.Itoa(n)
	for at := len(text) - 3; at > 0; at -= 3 {
		text = text[:at] + "," + text[at:]
	}
	return text
}
