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
	// A viewer asks for the next segment this often. A hundred of them are some
	// thousand players, for a player asks every few seconds.
	viewerInterval = 200 * time.Millisecond

	// A new viewer comes this often, from a network that nobody has heard of.
	// One that is told to come again later does so after the pause, and gives up
	// after the patience.
	newcomerInterval = 100 * time.Millisecond
	newcomerPause    = 50 * time.Millisecond
	newcomerPatience = 10 * time.Second
)

// audience is who wants to watch while something else is measured. Each has a
// connection of its own.
type audience struct {
	url    string
	object object
	known  []string // paths of viewers whose tokens are cached
	fresh  []string // paths of new viewers, in the order in which they come
}

// reception is how an audience has fared.
type reception struct {
	requests  int             // of the viewers
	latencies []time.Duration // from the moment at which a request was due; sorted
	entrances []time.Duration // of the new viewers, from the first attempt; sorted
	retries   int             // of the new viewers, who were told to come again
	errors    []error         // of either
}

// watch has the audience watch. What happens before it has settled counts as
// errors if it is one, and otherwise only as requests.
func (a *audience) watch(ctx context.Context, settle, duration time.Duration) reception {
	var mu sync.Mutex
	var all reception
	start := time.Now()
	var wg sync.WaitGroup
	begin := func(someone func() reception) {
		wg.Go(func() {
			one := someone()
			mu.Lock()
			defer mu.Unlock()
			all.add(one)
		})
	}
	for i := range a.known {
		first := start.Add(viewerInterval * time.Duration(i) / time.Duration(len(a.known)))
		begin(func() reception { return a.view(ctx, i, first, start.Add(settle), start.Add(settle+duration)) })
	}
	for i := range a.fresh {
		begin(func() reception { return a.enter(ctx, i, start.Add(newcomerInterval*time.Duration(i))) })
	}
	wg.Wait()
	slices.Sort(all.latencies)
	slices.Sort(all.entrances)
	return all
}

func (r *reception) add(other reception) {
	r.requests += other.requests
	r.retries += other.retries
	r.latencies = append(r.latencies, other.latencies...)
	r.entrances = append(r.entrances, other.entrances...)
	r.errors = append(r.errors, other.errors...)
}

// view is what one viewer does. A request that is late because the one before it
// took long is as late as it was due, so that no wait is left out.
func (a *audience) view(ctx context.Context, i int, first, settled, end time.Time) (r reception) {
	client := &http.Client{Transport: &http.Transport{DisableCompression: true, MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	header := map[string]string{"X-Forwarded-For": fmt.Sprintf("203.0.113.%d", i%256)}
	for due := first; due.Before(end); due = due.Add(viewerInterval) {
		if !await(ctx, due) {
			return r
		}
		r.requests++
		switch status, err := a.ask(ctx, client, a.known[i], header); {
		case err != nil:
			r.errors = append(r.errors, fmt.Errorf("a viewer: %w", err))
		case status != http.StatusOK:
			r.errors = append(r.errors, fmt.Errorf("a viewer was refused with status %d", status))
		case !due.Before(settled):
			r.latencies = append(r.latencies, time.Since(due))
		}
	}
	return r
}

// enter is what one new viewer does.
func (a *audience) enter(ctx context.Context, i int, due time.Time) (r reception) {
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	defer client.CloseIdleConnections()
	const ofByte = 256
	header := map[string]string{"X-Forwarded-For": fmt.Sprintf("192.%d.%d.1", i/ofByte%ofByte, i%ofByte)}
	for again := due; await(ctx, again); again = time.Now().Add(newcomerPause) {
		switch status, err := a.ask(ctx, client, a.fresh[i], header); {
		case err != nil:
			r.errors = append(r.errors, fmt.Errorf("a new viewer: %w", err))
			return r
		case status == http.StatusOK:
			r.entrances = append(r.entrances, time.Since(due))
			return r
		case status != http.StatusTooManyRequests:
			r.errors = append(r.errors, fmt.Errorf("a new viewer was refused with status %d", status))
			return r
		case time.Since(due) > newcomerPatience:
			r.errors = append(r.errors, fmt.Errorf("a new viewer did not get in within %s", newcomerPatience))
			return r
		}
		r.retries++
	}
	return r
}

// ask asks for the object. What comes with the status 200 and is not it is an
// error.
func (a *audience) ask(ctx context.Context, client *http.Client, path string, header map[string]string) (status int, err error) {
	status, body, err := get(ctx, client, a.url+path, header)
	if err == nil && status == http.StatusOK && !bytes.Equal(body, a.object.data) {
		err = fmt.Errorf("%d bytes that are not the object", len(body))
	}
	return status, err
}

// await waits for a moment, and reports false if the context ends before it.
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

// percentile returns the smallest of sorted durations that so many in a hundred
// do not exceed.
func percentile(sorted []time.Duration, percent int) time.Duration {
	const all = 100
	return sorted[(len(sorted)*percent+all-1)/all-1]
}
