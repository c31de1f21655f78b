package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// A forged token is refused for its signature, garbage for its form.
func TestFloodsAreWhatTheyClaim(t *testing.T) {
	t.Parallel()
	s, err := newSigner()
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := mint(s, ours, "", time.Now().Add(time.Hour), 1)
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

// A run that did not do what it claims has no result.
func TestFloodsAreChecked(t *testing.T) {
	t.Parallel()
	forgery, garbage := flood{title: "forged", token: "a.b.{signature}", garbage: 1}, flood{title: "garbage", token: "a.b~.{signature}"}
	for _, c := range []struct {
		name   string
		flood  flood
		change func(s *floodSample)
		want   string // in the error; "" for none
	}{
		{"forged as it should be", forgery, nil, ""},
		{"garbage as it should be", garbage, func(s *floodSample) { s.during.gate[forged], s.during.gate[limited] = 0, 2 }, ""},
		{"a client got an error", forgery, func(s *floodSample) {
			s.clients.errors = []error{errors.New("a known client got status 401")}
		}, "1 errors of clients"},
		{"no requests of known clients", forgery, func(s *floodSample) { s.clients.latencies = nil }, "no requests of known clients"},
		{"a new client is missing", forgery, func(s *floodSample) { s.clients.entrances = s.clients.entrances[1:] }, "1 new clients got the object"},
		{"new clients were not verified", forgery, func(s *floodSample) { s.during.gate[verified] = 0 }, "0 tokens were verified"},
		{"known clients have missed the cache", forgery, func(s *floodSample) { s.during.gate[cacheHits]-- }, "hit the token cache"},
		{"the origin saw the flood", forgery, func(s *floodSample) { s.during.originRequests++ }, "the origin got"},
		{"a connection was lost", forgery, func(s *floodSample) { s.load.Errors.Read = 1 }, "1 reading"},
		{"some of the flood passed", forgery, func(s *floodSample) { s.load.Errors.Status-- }, "were refused: it must be all"},
		{"forged tokens were refused for something else", forgery, func(s *floodSample) { s.during.gate[limited] -= 100 }, "signatures have failed"},
		{"no signature was looked at", forgery, func(s *floodSample) { s.during.gate[limited], s.during.gate[forged] = 1002, 0 }, "signatures have failed"},
		{"garbage was looked at", garbage, func(s *floodSample) { s.during.gate[forged] = 1 }, "must be none of garbage"},
		{"there was no flood", garbage, func(s *floodSample) {
			s.during.gate[forged], s.during.gate[limited], s.load.Requests, s.load.Errors.Status = 0, 2, 0, 0
		}, "no flood"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := floodSampleOf()
			if c.change != nil {
				c.change(&s)
			}
			err := s.check(c.flood, 2, 8)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("check() = %v; want %q in it", err, c.want)
			}
		})
	}
}

// floodSampleOf has 20 requests of known clients, two new clients and 1000 forged
// tokens.
func floodSampleOf() floodSample {
	s := floodSample{
		load: loadResult{Requests: 1000, Micros: 1e6},
		during: observation{
			originRequests: 23,
			gate:           map[string]int64{cacheHits: 20, cacheMisses: 1004, verified: 2, forged: 500, limited: 502},
		},
		clients: results{
			requests: 20, retries: 2,
			latencies: slices.Repeat([]time.Duration{time.Millisecond}, 20),
			entrances: []time.Duration{time.Millisecond, 3 * time.Millisecond},
		},
	}
	s.load.Errors.Status = 1000
	return s
}

// The p99 is compared within a round, and the slowest new client of all rounds
// counts.
func TestFloodRequirements(t *testing.T) {
	t.Parallel()
	sampleOf := func(p99, slowest time.Duration) floodSample {
		s := floodSampleOf()
		s.clients.latencies[19] = p99
		s.clients.entrances[1] = slowest
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
	if text := r.markdown(); !strings.Contains(text, "| forged | 1000 | 1.00 | 38.00 | 1.90 (1.90–9.00) | 1 | 1 |") {
		t.Errorf("the row of the forged flood is not in\n%s", text)
	}
	r.samples[2][0] = sampleOf(25e6, 1001e6)
	unmet := strings.Join(r.unmet(), "\n")
	for _, want := range []string{"forged: the p99 of known clients is 2.50", "forged: a new client got the object after 1.001s"} {
		if !strings.Contains(unmet, want) {
			t.Errorf("unmet() = %q; want %q in it", unmet, want)
		}
	}
}

func TestPercentile(t *testing.T) {
	t.Parallel()
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
