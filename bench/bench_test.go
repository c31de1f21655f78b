package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	t.Parallel()
	line := "4242 (a ) (b) R 17 4240 4242 0 -1 4194304 100 0 0 0 250 50 9 9 20 0 4 0 100 1000000 25 18446744073709551615 1 1 0"
	group, u, err := parseStat(line)
	if want := (usage{3 * time.Second, 25 * int64(os.Getpagesize())}); err != nil || group != 4240 || u != want {
		t.Errorf("parseStat() = %d, %+v, %v; want 4240, %+v", group, u, err, want)
	}
	for _, line := range []string{"", "1", "1 (x", "1 (x) R 1 2 3", strings.Replace(line, "250", "x", 1)} {
		if group, u, err := parseStat(line); err == nil {
			t.Errorf("parseStat(%q) = %d, %+v; want an error", line, group, u)
		}
	}
}

func TestGroupUsage(t *testing.T) {
	t.Parallel()
	if u, err := groupUsage(int64(syscall.Getpgrp())); err != nil || u.rss == 0 {
		t.Errorf("groupUsage() of this process = %+v, %v", u, err)
	}
	if _, err := groupUsage(-1); !errors.Is(err, errGone) {
		t.Errorf("groupUsage(-1): %v; want %v", err, errGone)
	}
}

// Figures of a busy machine mean nothing.
func TestBusyMachineIsRefused(t *testing.T) {
	t.Parallel()
	for load, idle := range map[string]bool{"0.00": true, "0.29": true, "0.30": false, "3.04": false, "unknown": false} {
		if err := checkIdle(load); (err == nil) != idle {
			t.Errorf("checkIdle(%q) = %v", load, err)
		}
	}
}

func TestSpread(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{9, 1, 2}, spread{2, 1, 9}},
		{[]float64{4, 1, 9, 2}, spread{3, 1, 9}},
	} {
		if got := spreadOf(c.values); got != c.want {
			t.Errorf("spreadOf(%v) = %v; want %v", c.values, got, c.want)
		}
	}
}

// No setup is always the first, or always follows the same one.
func TestInTurn(t *testing.T) {
	t.Parallel()
	all := []int{1, 2, 3}
	for round, want := range [][]int{{1, 2, 3}, {1, 3, 2}, {3, 1, 2}, {3, 2, 1}} {
		if got := inTurn(all, round); !slices.Equal(got, want) {
			t.Errorf("inTurn(%d) = %v; want %v", round, got, want)
		}
	}
}

// Setups are compared within a round, so a slow round affects both sides.
func TestReport(t *testing.T) {
	t.Parallel()
	r := madeUp()
	text := r.markdown()
	for _, want := range []string{
		"`make bench BENCHFLAGS=\"-rounds 3\"`", "[logs/results.log](logs/results.log) has each", "load average at the start: 0.12",
		"| gate, warm | 10.0 (10.0–20.0) | × 0.60 (0.60–0.60) |",
		"costs **5.0 µs** (5.0–10.0) more than Caddy with the token cut off unseen",
		"| gate, warm | 1200 | 110.0 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
	if unmet := r.unmet(); unmet != nil {
		t.Errorf("unmet() = %q; want none", unmet)
	}
	gate := r.setup(warmGate)
	for round := range r.samples[gate][cell{}] {
		r.samples[gate][cell{}][round].cpu *= 2
	}
	if unmet := r.unmet(); len(unmet) != 1 {
		t.Errorf("unmet() = %q; want one about the warm gate", unmet)
	}
}

// Of h2load's report, only requests with a good status count.
func TestParseH2Load(t *testing.T) {
	t.Parallel()
	out := `
finished in 2.05s, 400.00 req/s, 401.00MB/s
requests: 832 total, 835 started, 832 done, 800 succeeded, 32 failed, 3 errored, 2 timeout
status codes: 802 2xx, 1 3xx, 20 4xx, 11 5xx
traffic: 802.00MB (840957952) total, 90.63KB (92800) headers (space savings 50.0%), 800.00MB (838860800) data
`
	r, err := parseH2Load(out, 2*time.Second)
	want := loadResult{Requests: 800, Micros: 2e6, Bytes: 840957952}
	want.Errors.Read, want.Errors.Timeout, want.Errors.Status = 3, 2, 32
	if err != nil || r != want {
		t.Errorf("parseH2Load() = %+v, %v; want %+v", r, err, want)
	}
	for _, part := range []string{"requests: ", "status codes: ", "traffic: "} {
		if _, err := parseH2Load(strings.Replace(out, "\n"+part, "\n", 1), time.Second); err == nil {
			t.Errorf("a report without %q is no error", part)
		}
	}
}

// A target that is missed is in bold, and named.
func TestTargets(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		micros int64 // of the gate; all other servers take 100
		want   string
		missed int
	}{
		{60, "All requirements are met.", 0},
		{65, "| HAProxy, jwt_verify | 0.65 ≤ 0.65 | 0.65 ≤ 0.65 | 0.65 |", 0},
		{66, "| HAProxy, jwt_verify | **0.66 > required 0.65** | **0.66 > required 0.65** | 0.66 |", 2},
		{101, "| nginx, njs, cache | **1.01 > required 1** | **1.01 > required 1** | **1.01 > required 1** |", 2 + 18},
		{151, "| nginx without a gate, cache | 1.51 | **1.51 > required 1.5** |", 2 + 18 + 4},
	} {
		r := report{setups: allSetups, samples: make(map[*setup]map[cell][]sample)}
		for _, s := range allSetups {
			each := int64(100)
			if s.name == cachedGate {
				each = c.micros
			}
			r.samples[s] = make(map[cell][]sample)
			for _, in := range s.cells(len(objectSizes)) {
				r.samples[s][in] = []sample{{load: loadResult{Requests: 1000}, cpu: time.Duration(each) * time.Millisecond}}
			}
		}
		var out strings.Builder
		r.writeCaches(&out)
		if missed := r.missed(); len(missed) != c.missed || !strings.Contains(out.String(), c.want) {
			t.Errorf("with %d µs, missed() has %d entries, want %d, and %q in\n%s", c.micros, len(missed), c.missed, c.want, out.String())
		}
	}
}

// The chart is XML, and has a bar for each server in each cell.
func TestChart(t *testing.T) {
	t.Parallel()
	r := report{setups: allSetups, samples: make(map[*setup]map[cell][]sample)}
	for _, s := range allSetups {
		r.samples[s] = make(map[cell][]sample)
		for _, c := range s.cells(len(objectSizes)) {
			r.samples[s][c] = []sample{{load: loadResult{Requests: 1000}, cpu: 25 * time.Millisecond}}
		}
	}
	bars, texts := 0, 0
	for d := xml.NewDecoder(strings.NewReader(r.chart())); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			if e.Name.Local == "rect" {
				bars++
			}
		case xml.CharData:
			if string(e) == "25" {
				texts++
			}
		}
	}
	if bars != 6*6 || texts != 6*6-3 { // Varnish has no TLS
		t.Errorf("%d bars and %d figures", bars, texts)
	}
}

// madeUp is a report of three rounds, of which the second was twice as slow.
func madeUp() report {
	r := report{
		setups:      []*setup{allSetups[0], allSetups[1], allSetups[2]},
		samples:     make(map[*setup]map[cell][]sample),
		environment: environment{args: "-rounds 3", load: "0.12"},
	}
	for i, s := range r.setups {
		r.samples[s] = make(map[cell][]sample)
		for _, c := range s.cells(len(objectSizes)) {
			var samples []sample
			for _, slowness := range []int64{1, 2, 1} {
				requests := 6000 / slowness / int64(3+i)
				each := time.Duration(slowness) * time.Duration(100+5*i) * time.Microsecond
				samples = append(samples, sample{
					load: loadResult{Requests: requests, Micros: 1e6},
					cpu:  each * time.Duration(requests), originCPU: time.Second, rss: 1 << 20,
				})
			}
			r.samples[s][c] = samples
		}
	}
	return r
}
