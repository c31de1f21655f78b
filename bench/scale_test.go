package main

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// costing is a series whose costs are those of ten times as much each, from 100.
func costing(title string, nanos ...float64) scaleSeries {
	s := scaleSeries{title: title}
	for i, cost := range nanos {
		s.points = append(s.points, scalePoint{n: int(math.Pow10(i + 2)), nanos: spread{cost, cost, cost}})
	}
	return s
}

// What grows with the number, even beside a large constant, must not pass for
// flat or logarithmic, nor noise for growth.
func TestGrowth(t *testing.T) {
	doubling := func(cost func(n int) float64) (s scaleSeries) {
		for n := 1; n <= 64; n *= 2 {
			s.points = append(s.points, scalePoint{n: n, nanos: spread{median: cost(n)}})
		}
		return s
	}
	for _, c := range []struct {
		name   string
		series scaleSeries
		want   growth
	}{
		{"the same", costing("", 500, 500, 500, 500), flat},
		{"noise", costing("", 500, 610, 560, 590, 520), flat},
		{"processor caches", costing("", 500, 520, 700, 1100, 1400), logarithmic},
		{"a step for each doubling", doubling(func(n int) float64 { return 500 + 40*math.Log2(float64(n)) }), logarithmic},
		{"linear", doubling(func(n int) float64 { return 500 + 10*float64(n) }), steeper},
		{"hardly linear", doubling(func(n int) float64 { return 1000 + 5*float64(n) }), steeper},
		{"less and less", costing("", 1000, 990, 960, 880, 600), flat},
		{"most in the middle", costing("", 660, 680, 830, 700, 670), logarithmic},
		{"a step, and no more", costing("", 500, 900, 910, 920, 930), logarithmic},
		{"quadratic", doubling(func(n int) float64 { return 500 + float64(n*n) }), steeper},
		{"a store behind a cache", costing("", 700, 730, 960, 1700, 6000), steeper},
	} {
		if got := c.series.growth(); got != c.want {
			t.Errorf("%s: growth() = %s; want %s", c.name, got, c.want)
		}
	}
}

const benchmarkOutput = `goos: linux
BenchmarkScale/tokens/100-2         	  655868	       542.9 ns/op	       0 B/op	       0 allocs/op
BenchmarkScale/allowed-origins/1000 	      10	    123456 ns/op	      44 B/op	       8 allocs/op
PASS
`

// A line that is not understood must not be missing from the report unnoticed.
func TestParseBenchmark(t *testing.T) {
	got, err := parseBenchmark(benchmarkOutput)
	want := []benchmarkResult{{"tokens", 100, 542.9, 0}, {"allowed-origins", 1000, 123456, 8}}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("parseBenchmark() = %v, %v; want %v", got, err, want)
	}
	for _, out := range []string{"", "PASS\n", strings.Replace(benchmarkOutput, "542.9 ns/op", "FAIL", 1)} {
		if got, err := parseBenchmark(out); err == nil {
			t.Errorf("parseBenchmark(%q) = %v; want an error", out, got)
		}
	}
}

// Each series that the report names is measured, at each size in each round.
func TestScaleIsComplete(t *testing.T) {
	measured := func() map[string]map[int][]benchmarkResult {
		all := make(map[string]map[int][]benchmarkResult)
		for _, s := range scaleTitles {
			all[s.name] = make(map[int][]benchmarkResult)
			for n := 1; n <= 3; n++ {
				all[s.name][n] = []benchmarkResult{{nanos: 1}, {nanos: 3}}
			}
		}
		return all
	}
	all, err := seriesOf(measured(), 2)
	if err != nil || len(all) != len(scaleTitles) || all[0].points[2].nanos.median != 2 {
		t.Errorf("seriesOf() = %v, %v", all, err)
	}
	for i, title := range scaleTitles {
		if control := all[i].control; (control != nil) != (title.control != "") {
			t.Errorf("%s has the control %v; want %q", title.name, control, title.control)
		}
	}
	for name, change := range map[string]func(all map[string]map[int][]benchmarkResult){
		"a series is missing":   func(all map[string]map[int][]benchmarkResult) { delete(all, "videos") },
		"a series is unknown":   func(all map[string]map[int][]benchmarkResult) { all["stars"] = all["videos"]; delete(all, "videos") },
		"a size is missing":     func(all map[string]map[int][]benchmarkResult) { delete(all["videos"], 2) },
		"a round is missing":    func(all map[string]map[int][]benchmarkResult) { all["videos"][2] = all["videos"][2][:1] },
		"there is one too much": func(all map[string]map[int][]benchmarkResult) { all["stars"] = all["videos"] },
	} {
		all := measured()
		change(all)
		if got, err := seriesOf(all, 2); err == nil {
			t.Errorf("%s: seriesOf() = %v; want an error", name, got)
		}
	}
}

func TestScaleReport(t *testing.T) {
	r := scaleReport{series: []scaleSeries{costing("tokens", 500, 510, 505), costing("videos", 500, 600, 6000)}}
	bytes := costing("bytes", 500, 600, 6000)
	bytes.excuse = "each is read"
	memory := costing("memory", 10, 20, 50)
	like, unlike := costing("as steep", 500, 600, 2500), costing("steeper", 500, 600, 2600)
	like.control, unlike.control = &memory, &memory
	r.series = append(r.series, bytes, like, unlike)
	text := r.markdown()
	for _, want := range []string{"| tokens | flat | 1.02 | flat or logarithmic |", "| videos | steeper than logarithmic | 12.00 |", "| bytes | steeper than logarithmic | 12.00 | – (each is read) |", "| steeper | steeper than logarithmic | 5.20 | flat or logarithmic, or no steeper than memory |", "## Videos", "| 10,000 | 6000 (6000–6000) | 0 |"} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
	unmet := r.unmet()
	if len(unmet) != 2 || !strings.Contains(unmet[0], "videos: 500 ns with 100 and 6000 ns with 10,000") || !strings.HasPrefix(unmet[1], "steeper: ") {
		t.Errorf("unmet() = %q; want the videos, and what is steeper than memory", unmet)
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int]string{1: "1", 999: "999", 1000: "1,000", 1000000: "1,000,000"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) = %s; want %s", n, got, want)
		}
	}
}
