package main

import (
	"os"
	"strings"
	"testing"
)

// Each of the three conditions fails the run by itself.
func TestMemoryConditions(t *testing.T) {
	for _, c := range []struct {
		name        string
		cache, peak int64
		hits        int64 // in 1000
		want        string
	}{
		{"all met", mostCache, mostMemory, 990, ""},
		{"cache", mostCache + 1<<20, mostMemory, 990, "the cache takes 129.0 MiB"},
		{"process", mostCache, mostMemory + 1<<20, 990, "the process has taken 321 MiB"},
		{"hits", mostCache, mostMemory, 989, "98.90 % of the requests"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := memoryReport{
				samples: []memorySample{{peak: 1, gauges: map[string]int64{cacheBytes: c.cache}}, {peak: c.peak, gauges: map[string]int64{cacheBytes: 1}}},
				hits:    c.hits, misses: 1000 - c.hits,
			}
			unmet := r.unmet()
			if c.want == "" && unmet != nil || c.want != "" && (len(unmet) != 1 || !strings.Contains(unmet[0], c.want)) {
				t.Errorf("unmet() = %q; want %q", unmet, c.want)
			}
		})
	}
}

// What has been given back counts all the same.
func TestPeakMemory(t *testing.T) {
	usage, err := treeUsage(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	peak, err := peakMemory(os.Getpid())
	if err != nil || peak < usage.rss/2 {
		t.Errorf("peakMemory() = %d, %v; RSS is %d", peak, err, usage.rss)
	}
	if _, err := peakMemory(-1); err == nil {
		t.Error("peakMemory(-1) is no error")
	}
}

// The tokens are as long as they are said to be, and no two have the same rules.
func TestLiveTokens(t *testing.T) {
	s, err := newSigner()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{options: options{tokens: 3}, signer: s, media: map[string][]object{video: {{file: "segment"}}}}
	var r memoryReport
	paths, err := b.mintLive(memorySetup, &r)
	if err != nil || len(paths) != 3 {
		t.Fatalf("mintLive() = %d paths, %v", len(paths), err)
	}
	if memorySetup.rulesOf(1) == memorySetup.rulesOf(2) || strings.Contains(memorySetup.rulesOf(1<<17), "{network}") {
		t.Errorf("rules: %s, %s", memorySetup.rulesOf(1), memorySetup.rulesOf(1<<17))
	}
	short := *memorySetup
	short.rules = ""
	if _, err := b.mintLive(&short, &r); err == nil {
		t.Error("tokens without rules pass for tokens of 700 bytes")
	}
}
