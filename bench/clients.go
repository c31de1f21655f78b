package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// A known client requests a segment this often. A hundred of them stand for
	// some thousand players, each of which requests one every few seconds.
	knownInterval = 200 * time.Millisecond

	// A new client comes this often, from a network of its own. After a 429 it
	// tries again after the pause, until it loses patience.
	newInterval = 100 * time.Millisecond
	newPause    = 50 * time.Millisecond
	newPatience = 10 * time.Second
)

// clients request an object while something else is measured. Each has its own
// connection.
type clients struct {
	url    string
	object object
	known  []string // paths of clients whose tokens are in the cache
	fresh  []string // paths of new clients, in the order in which they come
}

// results are what clients have met.
type results struct {
	requests  int             // of known clients
	latencies []time.Duration // of known clients, from the moment at which a request was due; sorted
	entrances []time.Duration // of new clients, from the first attempt to success; sorted
	retries   int             // of new clients, after a 429
	errors    []error
}

func (r *results) add(other results) {
	r.requests += other.requests
	r.retries += other.retries
	r.latencies = append(r.latencies, other.latencies...)
	r.entrances = append(r.entrances, other.entrances...)
	r.errors = append(r.errors, other.errors...)
}

// run has all clients make their requests. Latencies count once the time to
// settle is over.
func (c *clients) run(ctx context.Context, settle, duration time.Duration) results {
	var mu sync.Mutex
	var all results
	var wg sync.WaitGroup
	begin := func(one func() results) {
		wg.Go(func() {
			r := one()
			mu.Lock()
			defer mu.Unlock()
			all.add(r)
		})
	}
	start := time.Now()
	for i := range c.known {
		due := start.Add(knownInterval * time.Duration(i) / time.Duration(len(c.known)))
		begin(func() results { return c.runKnown(ctx, i, due, start.Add(settle), start.Add(settle+duration)) })
	}
	for i := range c.fresh {
		begin(func() results { return c.runNew(ctx, i, start.Add(newInterval*time.Duration(i))) })
	}
	wg.Wait()
	slices.Sort(all.latencies)
	slices.Sort(all.entrances)
	return all
}

// runKnown is one known client. The latency of a request that follows a slow one
// counts from the moment at which it was due, so that no wait is left out.
func (c *clients) runKnown(ctx context.Context, i int, first, settled, end time.Time) (r results) {
	client := &http.Client{Transport: &http.Transport{DisableCompression: true, MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	for due := first; due.Before(end); due = due.Add(knownInterval) {
		if !await(ctx, due) {
			return r
		}
		r.requests++
		switch status, err := c.get(ctx, client, c.known[i], fmt.Sprintf("203.0.113.%d", i%256)); {
		case err != nil:
			r.errors = append(r.errors, fmt.Errorf("a known client: %w", err))
		case status != http.StatusOK:
			r.errors = append(r.errors, fmt.Errorf("a known client got status %d", status))
		case !due.Before(settled):
			r.latencies = append(r.latencies, time.Since(due))
		}
	}
	return r
}

// runNew is one new client.
func (c *clients) runNew(ctx context.Context, i int, due time.Time) (r results) {
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	defer client.CloseIdleConnections()
	address := fmt.Sprintf("192.%d.%d.1", i/256%256, i%256)
	for again := due; await(ctx, again); again = time.Now().Add(newPause) {
		switch status, err := c.get(ctx, client, c.fresh[i], address); {
		case err != nil:
			r.errors = append(r.errors, fmt.Errorf("a new client: %w", err))
			return r
		case status == http.StatusOK:
			r.entrances = append(r.entrances, time.Since(due))
			return r
		case status != http.StatusTooManyRequests:
			r.errors = append(r.errors, fmt.Errorf("a new client got status %d", status))
			return r
		case time.Since(due) > newPatience:
			r.errors = append(r.errors, fmt.Errorf("a new client got no object within %s", newPatience))
			return r
		}
		r.retries++
	}
	return r
}

// get requests the object. A response with status 200 and another body is an
// error.
func (c *clients) get(ctx context.Context, client *http.Client, path, address string) (status int, err error) {
	status, body, err := get(ctx, client, c.url+path, map[string]string{"X-Forwarded-For": address})
	if err == nil && status == http.StatusOK && !bytes.Equal(body, c.object.data) {
		err = fmt.Errorf("the body of %d bytes is not the object", len(body))
	}
	return status, err
}

// await waits for a moment. It returns false if the context ends before.
func await(ctx context.Context, moment time.Time) bool {
	timer := time.NewTimer(time.Until(moment))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// percentile returns the smallest of sorted durations that is not exceeded by so
// many percent of them.
func percentile(sorted []time.Duration, percent int) time.Duration {
	const all = 100
	return sorted[(len(sorted)*percent+all-1)/all-1]
}
