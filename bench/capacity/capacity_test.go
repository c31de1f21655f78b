package main

import (
	"math"
	"testing"
)

// With a cache for all that is watched, only first requests miss; with a small one, and a
// flatter popularity, more do. A second tier takes load off the origin, and each segment of
// a live channel is asked for once.
func TestSimulate(t *testing.T) {
	t.Parallel()
	s := scenario{viewers: 400, bitrate: 4, segment: 4, live: 0.5, channels: 2, titles: 20, minutes: 5, zipf: 0.9, renditions: 1, cache: 3, requests: 30_000}
	large := s.simulate(2)
	if large.missRateOnDemand > 0.03 || math.Abs(large.missRate-large.missRateOnDemand/2-0.01) > 1e-9 {
		t.Errorf("with room for all: %+v", large)
	}
	s.cache = 0.3
	small := s.simulate(2)
	if small.missRateOnDemand < 0.2 || small.originRate != small.missRate {
		t.Errorf("with room for some: %+v", small)
	}
	s.zipf = 0
	if flat := s.simulate(2); flat.missRateOnDemand < small.missRateOnDemand {
		t.Errorf("of titles that are equally popular, %f is missing; of others, %f", flat.missRateOnDemand, small.missRateOnDemand)
	}
	s.shield = 3
	if shielded := s.simulate(2); shielded.originRate > 0.02 {
		t.Errorf("with a second tier: %+v", shielded)
	}
}

// A sample of the segments tells the hit rate of all.
func TestSample(t *testing.T) {
	t.Parallel()
	s := scenario{viewers: 2000, bitrate: 4, segment: 4, titles: 200, minutes: 20, zipf: 0.9, renditions: 1, cache: 6, requests: 1 << 30, channels: 1}
	all := s.simulate(1)
	s.requests = 100_000
	if some := s.simulate(1); math.Abs(some.missRate-all.missRate) > 0.05 {
		t.Errorf("of a sample, %.3f miss; of all, %.3f", some.missRate, all.missRate)
	}
}

func TestCosts(t *testing.T) {
	t.Parallel()
	report := "# Results\n\n## With caches\n\ntext\n\n| | HTTPS, 1 KiB | HTTPS, 64 KiB | HTTPS, 1 MiB |\n| --- | ---: |\n| HAProxy | 1 | 2 | 3 |\n| gate, cache | 10.0 | 73.0 | 1033.0 |\n\n"
	for _, size := range []string{"1 KiB", "64 KiB", "1 MiB"} {
		report += "## " + size + "\n\n| | requests/s | CPU µs/request |\n| --- |\n| gate, warm | 5 | 100.0 |\n\n"
	}
	c, err := readCosts(report, "HTTPS")
	if err != nil {
		t.Fatal(err)
	}
	for bytes, want := range map[float64]float64{1 << 10: 10, 32<<10 + 512: 41.5, 1 << 20: 1033, 2 << 20: 2057} {
		if got := c.hit(bytes) * 1e6; math.Abs(got-want) > 0.01 {
			t.Errorf("a hit of %.0f bytes costs %f µs, want %f", bytes, got, want)
		}
	}
	if got := c.miss(2 << 20); got != 100e-6 {
		t.Errorf("a miss costs %f s", got)
	}
	if _, err := readCosts(report, "HTTP/2"); err == nil {
		t.Error("a column that is missing is no error")
	}
}
