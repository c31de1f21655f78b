package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// load is one run of the load generator.
type load struct {
	protocol    protocol
	url         string
	paths       string // a file, one a line
	header      map[string]string
	connections int
	duration    time.Duration
}

// loadResult is what load.lua prints at the end, and what h2load's report says.
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

// run runs the load generator with one thread, which suffices for servers with two.
func (b *bench) run(ctx context.Context, l load) (r loadResult, err error) {
	if l.protocol.h2 {
		return runH2Load(ctx, l)
	}
	header := make([]string, 0, len(l.header))
	for name, value := range l.header {
		header = append(header, name+": "+value)
	}
	args := []string{
		"-t1", "-c" + strconv.Itoa(l.connections), "-d" + seconds(l.duration), "--timeout", "30s",
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

// seconds writes a duration as the load generators read it, which know no 2m5s.
func seconds(d time.Duration) string { return strconv.Itoa(int(d/time.Second)) + "s" }

// h2Windows are the flow-control windows of browsers: some MiB for a stream and more for
// a connection.
var h2Windows = []string{"-w23", "-W24"}

// runH2Load runs h2load with one request at a time on each connection, as wrk does.
func runH2Load(ctx context.Context, l load) (r loadResult, err error) {
	paths, err := os.ReadFile(l.paths)
	if err != nil {
		return r, err
	}
	urls := l.paths + ".h2"
	if err := writeFile(urls, []byte(l.url+strings.ReplaceAll(strings.TrimSpace(string(paths)), "\n", "\n"+l.url)+"\n")); err != nil {
		return r, err
	}
	args := append([]string{"-t1", "-c" + strconv.Itoa(l.connections), "-D" + seconds(l.duration), "-i", urls}, h2Windows...)
	out, err := exec.CommandContext(ctx, "h2load", args...).CombinedOutput()
	if err != nil {
		return r, fmt.Errorf("h2load: %w\n%s", err, out)
	}
	return parseH2Load(string(out), l.duration)
}

// parseH2Load reads the report of h2load. Requests that are unfinished at the end count
// there as neither done nor failed.
func parseH2Load(out string, duration time.Duration) (r loadResult, err error) {
	var ignored, redirects, refusals, failures int64
	for _, line := range []struct {
		begins string
		format string
		fields []any
	}{
		{
			"requests: ", "requests: %d total, %d started, %d done, %d succeeded, %d failed, %d errored, %d timeout",
			[]any{&ignored, &ignored, &ignored, &r.Requests, &ignored, &r.Errors.Read, &r.Errors.Timeout},
		},
		{"status codes: ", "status codes: %d 2xx, %d 3xx, %d 4xx, %d 5xx", []any{&ignored, &redirects, &refusals, &failures}},
	} {
		_, rest, found := strings.Cut(out, "\n"+line.begins)
		if !found {
			return r, fmt.Errorf("h2load has printed no result:\n%s", out)
		}
		if _, err := fmt.Sscanf(line.begins+rest, line.format, line.fields...); err != nil {
			return r, fmt.Errorf("h2load: %w\n%s", err, out)
		}
	}
	_, traffic, _ := strings.Cut(out, "\ntraffic: ")
	_, bytes, _ := strings.Cut(traffic, "(")
	if _, err := fmt.Sscanf(bytes, "%d)", &r.Bytes); err != nil {
		return r, fmt.Errorf("h2load: %w\n%s", err, out)
	}
	r.Errors.Status, r.Micros = redirects+refusals+failures, duration.Microseconds()
	return r, nil
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
