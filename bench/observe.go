package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Metrics of the gate.
const (
	cacheHits   = "caddy_signed_playback_token_cache_hits_total"
	cacheMisses = "caddy_signed_playback_token_cache_misses_total"
	verified    = `caddy_signed_playback_token_verifications_total{result="ok"}`
	forged      = `caddy_signed_playback_token_verifications_total{result="signature_invalid"}`
	limited     = `caddy_signed_playback_token_verifications_total{result="verification_limited"}`
)

// observation is what has been counted up to a moment.
type observation struct {
	server, origin usage

	originConnections, originRequests int64
	gate                              map[string]int64 // by the name of the metric
}

func (b *bench) observe(ctx context.Context, s *setup) (o observation, err error) {
	srv := b.servers[s]
	if s.isGate() {
		if o.gate, err = srv.counters(ctx, cacheHits, cacheMisses, verified, forged, limited); err != nil {
			return o, err
		}
	}
	if o.originConnections, o.originRequests, err = originTraffic(ctx, b.origin); err != nil {
		return o, err
	}
	if o.server, err = srv.usage(); err != nil {
		return o, err
	}
	o.origin, err = b.origin.usage()
	return o, err
}

// since counts what has happened since an earlier observation.
func (o observation) since(before observation) observation {
	o.originConnections -= before.originConnections
	o.originRequests -= before.originRequests
	o.server.cpu -= before.server.cpu
	o.origin.cpu -= before.origin.cpu
	counted := make(map[string]int64, len(o.gate))
	for name, n := range o.gate {
		counted[name] = n - before.gate[name]
	}
	o.gate = counted
	return o
}

// check compares what has happened during a load of so many requests with what
// the setup claims to do.
func (o observation) check(s *setup, requests int64, connections int) error {
	const inAHundred = 100
	switch {
	case s.cache && o.originRequests > 1: // the observation itself is one
		return fmt.Errorf("the origin got %d requests: the cache must answer all", o.originRequests-1)
	case !s.cache && o.originRequests < requests:
		return fmt.Errorf("the origin got %d of %d requests: something answers from a cache", o.originRequests, requests)
	case o.originConnections > int64(2*connections)+requests/inAHundred:
		return fmt.Errorf("%d connections to the origin for %d requests: they are not kept alive", o.originConnections, requests)
	case !s.isGate():
		return nil
	case s.fresh && o.gate[verified] < requests:
		return fmt.Errorf("%d tokens were verified for %d requests: it must be one each; if there were too few tokens, raise freshPerSecond", o.gate[verified], requests)
	case !s.fresh && o.gate[cacheMisses] != 0:
		return fmt.Errorf("%d requests have missed the token cache: there must be none", o.gate[cacheMisses])
	}
	return nil
}

// originTraffic asks nginx's stub_status how many connections and requests
// there have been.
func originTraffic(ctx context.Context, origin *server) (connections, requests int64, err error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	_, body, err := get(ctx, client, "http://"+origin.metrics+"/", nil)
	if err != nil {
		return 0, 0, err
	}
	var active, accepted int64
	if _, err := fmt.Sscanf(string(body), "Active connections: %d\nserver accepts handled requests\n %d %d %d",
		&active, &accepted, &connections, &requests); err != nil {
		return 0, 0, fmt.Errorf("%q is not a stub_status page: %w", body, err)
	}
	return connections, requests, nil
}

// counters reads Caddy's metrics, which are lines of "name value".
func (s *server) counters(ctx context.Context, names ...string) (map[string]int64, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	status, body, err := get(ctx, client, "http://"+s.metrics+"/metrics", nil)
	if err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("reading metrics: status %d, %w", status, err)
	}
	found := make(map[string]int64)
	for line := range strings.Lines(string(body)) {
		for _, name := range names {
			if value, ok := strings.CutPrefix(line, name+" "); ok {
				number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err != nil {
					return nil, err
				}
				found[name] = int64(number)
			}
		}
	}
	if len(found) != len(names) {
		return nil, fmt.Errorf("the metrics have %d of %q", len(found), names)
	}
	return found, nil
}

var errGone = errors.New("there is no such process group")

// usage is what processes have used so far.
type usage struct {
	cpu time.Duration
	rss int64 // bytes
}

// groupUsage sums up a process group, from /proc.
func groupUsage(group int64) (sum usage, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return sum, err
	}
	found := false
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // the process has ended meanwhile
		}
		if of, u, err := parseStat(string(data)); err == nil && of == group {
			found = true
			sum.cpu += u.cpu
			sum.rss += u.rss
		}
	}
	if !found {
		return sum, fmt.Errorf("%w: %d", errGone, group)
	}
	return sum, nil
}

// parseStat reads a line of proc_pid_stat(5). The command, in parentheses, may
// contain anything.
func parseStat(line string) (group int64, u usage, err error) {
	const tick = time.Second / 100     // USER_HZ
	indices := [...]int{2, 11, 12, 21} // process group, user and system time, resident pages; from the state on
	var numbers [len(indices)]int64
	fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	for i, index := range indices {
		if len(fields) <= index {
			return 0, u, fmt.Errorf("%q is not a line of /proc/<pid>/stat", line)
		}
		if numbers[i], err = strconv.ParseInt(fields[index], 10, 64); err != nil {
			return 0, u, err
		}
	}
	return numbers[0], usage{time.Duration(numbers[1]+numbers[2]) * tick, numbers[3] * int64(os.Getpagesize())}, nil
}
