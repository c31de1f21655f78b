package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"time"
)

// load is one run of the load generator.
type load struct {
	url         string
	paths       string // a file, one a line
	header      map[string]string
	connections int
	duration    time.Duration
}

// loadResult is what load.lua prints at the end.
type loadResult struct {
	Requests int64 `json:"requests"`
	Micros   int64 `json:"micros"`
	Bytes    int64 `json:"bytes"`
	Errors   struct {
		Connect int64 `json:"connect"`
		Read    int64 `json:"read"`
		Write   int64 `json:"write"`
		Status  int64 `json:"status"`
		Timeout int64 `json:"timeout"`
	} `json:"errors"`
}

// perSecond is 0 if there was no load.
func (r loadResult) perSecond() float64 {
	return float64(r.Requests) / (float64(max(r.Micros, 1)) / 1e6)
}

// run runs wrk with one thread, which suffices for servers with two.
func (b *bench) run(ctx context.Context, l load) (r loadResult, err error) {
	header := make([]string, 0, len(l.header))
	for name, value := range l.header {
		header = append(header, name+": "+value)
	}
	args := []string{
		"-t1", "-c" + strconv.Itoa(l.connections), "-d" + l.duration.String(), "--timeout", "30s",
		"-s", b.script, l.url, "--", l.paths,
	}
	out, err := exec.CommandContext(ctx, "wrk", append(args, header...)...).CombinedOutput() //nolint:gosec // the arguments are ours
	if err != nil {
		return r, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	lines := bytes.Split(out, []byte("\n"))
	i := slices.IndexFunc(lines, func(line []byte) bool { return bytes.HasPrefix(line, []byte("RESULT ")) })
	if i < 0 {
		return r, fmt.Errorf("wrk has printed no result:\n%s", out)
	}
	return r, json.Unmarshal(bytes.TrimPrefix(lines[i], []byte("RESULT ")), &r)
}

// check returns an error unless every request succeeded.
func (r loadResult) check(size int) error {
	if e := r.Errors; e.Connect+e.Read+e.Write+e.Status+e.Timeout != 0 {
		return fmt.Errorf("errors: %d connecting, %d reading, %d writing, %d of status, %d timeouts; there must be none",
			e.Connect, e.Read, e.Write, e.Status, e.Timeout)
	}
	if r.Requests == 0 || r.Bytes < r.Requests*int64(size) {
		return fmt.Errorf("%d bytes in %d responses: each must have at least %d", r.Bytes, r.Requests, size)
	}
	return nil
}
