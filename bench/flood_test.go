package main

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// What is called forged gets as far as its signature, and what is called garbage
// does not.
func TestFloodsAreWhatTheyClaim(t *testing.T) {
	s, err := newSigner()
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := mint(s, ours, floodSetup.rulesOf, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	random := strings.Repeat("A", 342)
	for _, f := range floodsWith(tokens[0]) {
		if f.token == "" {
			continue
		}
		parsed, err := token.Parse(strings.Replace(f.token, "{signature}", random, 1))
		if (err == nil) != f.forged() {
			t.Errorf("%s: Parse = %v", f.title, err)
			continue
		}
		if !f.forged() {
			continue
		}
		if _, err := parsed.Verify(s.key.Public()); !errors.Is(err, token.ErrSignature) {
			t.Errorf("%s: Verify = %v, want %v", f.title, err, token.ErrSignature)
		}
	}
}

// A run in which something was not as it claims to be is no result.
func TestDishonestFloodsFail(t *testing.T) {
	forgery, garbage := flood{title: "forged", token: "a.b.{signature}", garbage: 1}, flood{title: "garbage", token: "a.b~.{signature}"}
	for _, c := range []struct {
		name   string
		flood  flood
		change func(s *floodSample, originRequests *int64)
		want   string // in the error; "" for none
	}{
		{"forged as it should be", forgery, nil, ""},
		{"garbage as it should be", garbage, func(s *floodSample, _ *int64) { s.gate[forged], s.gate[limited] = 0, 2 }, ""},
		{"a viewer got an error", forgery, func(s *floodSample, _ *int64) {
			s.reception.errors = []error{errors.New("a viewer was refused with status 401")}
		}, "1 errors of viewers"},
		{"nobody watched", forgery, func(s *floodSample, _ *int64) { s.reception.latencies = nil }, "no viewer"},
		{"a new viewer is missing", forgery, func(s *floodSample, _ *int64) { s.reception.entrances = s.reception.entrances[1:] }, "1 new viewers got in"},
		{"new viewers were not verified", forgery, func(s *floodSample, _ *int64) { s.gate[verified] = 0 }, "0 tokens were verified"},
		{"viewers have missed the cache", forgery, func(s *floodSample, _ *int64) { s.gate[cacheHits]-- }, "met the cache"},
		{"the origin saw the flood", forgery, func(_ *floodSample, n *int64) { *n++ }, "the origin was asked"},
		{"a connection was lost", forgery, func(s *floodSample, _ *int64) { s.load.Errors.Read = 1 }, "1 reading"},
		{"some of the flood passed", forgery, func(s *floodSample, _ *int64) { s.load.Errors.Status-- }, "were refused; want all"},
		{"forged tokens were refused for something else", forgery, func(s *floodSample, _ *int64) { s.gate[limited] -= 100 }, "signatures have failed"},
		{"no signature was looked at", forgery, func(s *floodSample, _ *int64) { s.gate[limited], s.gate[forged] = 1002, 0 }, "signatures have failed"},
		{"garbage got as far as the signature", garbage, func(s *floodSample, _ *int64) { s.gate[forged] = 1 }, "want none of garbage"},
		{"there was no flood", garbage, func(s *floodSample, _ *int64) {
			s.gate[forged], s.gate[limited], s.load.Requests, s.load.Errors.Status = 0, 2, 0, 0
		}, "no flood"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, originRequests := floodSampleOf(), int64(23)
			if c.change != nil {
				c.change(&s, &originRequests)
			}
			err := s.check(c.flood, originRequests, 2, 8)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("check() = %v; want %q in it", err, c.want)
			}
		})
	}
}

// floodSampleOf is one of 20 viewers' requests, two new viewers and 1000 forged
// tokens.
func floodSampleOf() floodSample {
	s := floodSample{
		load: loadResult{Requests: 1000, Micros: 1e6},
		gate: map[string]int64{cacheHits: 20, cacheMisses: 1004, verified: 2, forged: 500, limited: 502},
		reception: reception{
			requests: 20, retries: 2,
			latencies: slices.Repeat([]time.Duration{time.Millisecond}, 20),
			entrances: []time.Duration{time.Millisecond, 3 * time.Millisecond},
		},
	}
	s.load.Errors.Status = 1000
	return s
}

// The p99 is compared within a round, and the slowest new viewer of all counts.
func TestFloodConditions(t *testing.T) {
	sampleOf := func(p99, slowest time.Duration) floodSample {
		s := floodSampleOf()
		s.gate = maps.Clone(s.gate)
		s.reception.latencies[19] = p99
		s.reception.entrances[1] = slowest
		return s
	}
	r := floodReport{
		floods: []flood{{title: "none"}, {title: "garbage", token: "g"}, {title: "forged", token: "f", garbage: 1}},
		samples: [][]floodSample{
			{sampleOf(1e6, 1e6), sampleOf(1e6, 1e6), sampleOf(1e6, 1e6)},
			{sampleOf(10e6, 1e6), sampleOf(20e6, 1e6), sampleOf(10e6, 1e6)},
			{sampleOf(19e6, 1e6), sampleOf(38e6, 1e6), sampleOf(90e6, 1e6)},
		},
	}
	if unmet := r.unmet(); unmet != nil {
		t.Errorf("unmet() = %q; want none", unmet)
	}
	if text := r.markdown(); !strings.Contains(text, "| forged | 1000 | 60 | 0 | 1.00 | 38.00 | 1.90 (1.90–9.00) | at most 2 |") {
		t.Errorf("the row of the forged flood is not in\n%s", text)
	}
	r.samples[2][0] = sampleOf(25e6, 1001e6)
	unmet := strings.Join(r.unmet(), "\n")
	for _, want := range []string{"forged: the p99 of viewers is 2.50", "forged: a new viewer got in after 1.001s"} {
		if !strings.Contains(unmet, want) {
			t.Errorf("unmet() = %q; want %q in it", unmet, want)
		}
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, c := range []struct {
		sorted  []time.Duration
		percent int
		want    time.Duration
	}{
		{hundred, 99, 99},
		{hundred, 50, 50},
		{hundred[:1], 99, 1},
		{hundred[:10], 99, 10},
		{hundred[:10], 1, 1},
	} {
		if got := percentile(c.sorted, c.percent); got != c.want {
			t.Errorf("percentile(%d values, %d) = %d; want %d", len(c.sorted), c.percent, got, c.want)
		}
	}
}
