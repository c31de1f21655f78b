package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	line := "4242 (a ) (b) R 17 4242 4242 0 -1 4194304 100 0 0 0 250 50 9 9 20 0 4 0 100 1000000 25 18446744073709551615 1 1 0"
	got, err := parseStat(line)
	want := process{id: 4242, parent: 17, cpu: 3 * time.Second, rss: 25 * int64(os.Getpagesize())}
	if err != nil || got != want {
		t.Errorf("parseStat() = %+v, %v; want %+v", got, err, want)
	}
	for _, line := range []string{"", "1", "1 (x", "1 (x) R 1 2 3", strings.Replace(line, "250", "x", 1)} {
		if got, err := parseStat(line); err == nil {
			t.Errorf("parseStat(%q) = %+v; want an error", line, got)
		}
	}
}

func TestTreeUsage(t *testing.T) {
	if u, err := treeUsage(os.Getpid()); err != nil || u.rss == 0 {
		t.Errorf("treeUsage() of this process = %+v, %v", u, err)
	}
	if _, err := treeUsage(-1); !errors.Is(err, errGone) {
		t.Errorf("treeUsage(-1): %v; want %v", err, errGone)
	}
}

func TestSpread(t *testing.T) {
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

// A round in which the machine was slow counts as much as the others.
func TestComparisonsArePairedByRound(t *testing.T) {
	r := madeUp()
	gate := r.setup("gate-warm")
	if got, ok := r.added(gate); !ok || got != (spread{10, 10, 20}) {
		t.Errorf("added = %v, %v; want 10, from 10 to 20", got, ok)
	}
	if got, ok := r.against(gate, 0); !ok || got != (spread{0.6, 0.6, 0.6}) {
		t.Errorf("against = %v, %v; want 0.6", got, ok)
	}
	if _, ok := r.added(r.setup("caddy")); ok {
		t.Error("bare Caddy adds something to itself")
	}
}

func TestReport(t *testing.T) {
	text := madeUp().markdown()
	for _, want := range []string{
		"`make bench BENCHFLAGS=\"-rounds 3\"`", "| gate, warm | 0.600 (0.600–0.600) |",
		"| gate, warm | 10.0 (10.0–20.0) | – | at most 0.10 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
}

func TestChartsAreXML(t *testing.T) {
	wantXML(t, madeUp().chart(), "gate, warm", "110 (+10.0)", ">2000<")
	wantXML(t, scaleReport{series: []scaleSeries{costing("tokens & more", 500, 700, 900)}}.chart(),
		"ns by tokens &amp; more: logarithmic", ">100<", ">10,000<", ">900<")
}

func wantXML(t *testing.T, chart string, wants ...string) {
	t.Helper()
	for d := xml.NewDecoder(strings.NewReader(chart)); ; {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, chart)
		}
	}
	for _, want := range wants {
		if !strings.Contains(chart, want) {
			t.Errorf("there is no %q in\n%s", want, chart)
		}
	}
}

// madeUp is a report of three rounds, of which the second was twice as slow.
func madeUp() report {
	r := report{setups: []*setup{allSetups[0], allSetups[2], allSetups[3]}, results: make(map[*setup][][]sample), environment: environment{args: "-rounds 3", options: options{sizes: sizes}}}
	for i, s := range r.setups {
		for range sizes {
			var samples []sample
			for _, slowness := range []int64{1, 2, 1} {
				requests := 6000 / slowness / int64(3+i)
				each := time.Duration(slowness) * time.Duration(100+5*i) * time.Microsecond
				samples = append(samples, sample{
					load: loadResult{Requests: requests, Micros: 1e6},
					cpu:  each * time.Duration(requests), originCPU: time.Second, rss: 1 << 20,
				})
			}
			r.results[s] = append(r.results[s], samples)
		}
	}
	return r
}

func TestQuoted(t *testing.T) {
	if got, want := quoted([]string{"-rounds", "3", "-only", "a|b", "", "it's"}), `-rounds 3 -only 'a|b' '' 'it'\''s'`; got != want {
		t.Errorf("quoted() = %s; want %s", got, want)
	}
}
