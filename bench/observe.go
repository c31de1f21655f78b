package main

import (
	"context"
	"fmt"
	"net/http"
)

// What a gate counts.
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
	gate                              map[string]int64 // of Caddy; by name
}

func (b *bench) observe(ctx context.Context, s *setup) (o observation, err error) {
	srv := b.servers[s]
	if s.caches() {
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
	counted := make(map[string]int64, len(o.gate))
	for name, n := range o.gate {
		counted[name] = n - before.gate[name]
	}
	o.gate = counted
	return o
}

// check holds what has happened during a load of so many requests against what
// the setup claims to be.
func (o observation) check(s *setup, requests int64, connections int) error {
	const inAHundred = 100
	switch {
	case o.originRequests < requests:
		return fmt.Errorf("the origin was asked %d times for %d requests: something answers from a cache", o.originRequests, requests)
	case o.originConnections > int64(2*connections)+requests/inAHundred:
		return fmt.Errorf("%d connections to the origin for %d requests: they are not kept alive", o.originConnections, requests)
	case !s.caches():
		return nil
	case s.fresh && o.gate[verified] < requests:
		return fmt.Errorf("%d tokens verified for %d requests: want one each", o.gate[verified], requests)
	case !s.fresh && o.gate[cacheMisses] != 0:
		return fmt.Errorf("%d requests have missed the cache: want none", o.gate[cacheMisses])
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
		return 0, 0, fmt.Errorf("%q is not what the origin should say of itself: %w", body, err)
	}
	return connections, requests, nil
}
