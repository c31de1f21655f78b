package integration

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// load loads a Caddyfile through the admin API, as `caddy reload --force` does. The
// error is the server's.
func (g *gateway) load(caddyfile string) error {
	req, err := http.NewRequest(http.MethodPost, "http://"+g.admin+"/load", strings.NewReader(caddyfile))
	if err != nil {
		return err
	}
	req.Close = true // the server closes these connections with each reload
	req.Header.Set("Content-Type", "text/caddyfile")
	req.Header.Set("Cache-Control", "must-revalidate")
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", res.StatusCode, answer)
	}
	return err
}

// number returns the first match of a pattern in an answer of the admin API.
func (g *gateway) number(t testing.TB, path, pattern string) float64 {
	t.Helper()
	match := regexp.MustCompile(pattern).FindSubmatch(g.askAdmin(t, path))
	if match == nil {
		t.Fatalf("nothing like %q at %s", pattern, path)
	}
	return must(strconv.ParseFloat(string(match[1]), 64))(t)
}

// metric returns the value of a metric of the gate, which is named with its labels.
func (g *gateway) metric(t testing.TB, name string) float64 {
	t.Helper()
	return g.number(t, "/metrics", `(?m)^caddy_signed_playback_`+regexp.QuoteMeta(name)+` (\S+)$`)
}

// lookups are the hits and misses of the token cache since the start.
type lookups struct{ hits, misses float64 }

func (g *gateway) lookups(t testing.TB) lookups {
	t.Helper()
	return lookups{g.metric(t, "token_cache_hits_total"), g.metric(t, "token_cache_misses_total")}
}

// rateSince returns the share of hits since earlier, without the expected misses.
func (l lookups) rateSince(earlier lookups, expected int) float64 {
	hits, misses := l.hits-earlier.hits, l.misses-earlier.misses-float64(expected)
	return hits / (hits + misses)
}

// rest closes all connections of viewers, and returns what the server holds once that
// no longer decreases.
func (g *gateway) rest(t testing.TB, viewers []*http.Client) holding {
	t.Helper()
	for _, c := range viewers {
		c.CloseIdleConnections()
	}
	const enough = 100 // polls
	least, same := g.holds(t), 0
	eventually(t, "the server comes to rest", func() bool {
		now := g.holds(t)
		same++
		if now.goroutines < least.goroutines || now.descriptors < least.descriptors {
			least, same = holding{min(now.goroutines, least.goroutines), min(now.descriptors, least.descriptors)}, 0
		}
		return same == enough
	})
	return least
}

// atRest is for wantReleased, where all connections have been closed.
func atRest() bool { return true }

// holding is the resources that a server holds.
type holding struct{ goroutines, descriptors int }

// holds counts what the server holds now.
func (g *gateway) holds(t testing.TB) holding {
	t.Helper()
	count := regexp.MustCompile(`\d+`).FindString(g.goroutines(t)) // "goroutine profile: total 31"
	goroutines := must(strconv.Atoi(count))(t)
	descriptors := must(os.ReadDir(fmt.Sprintf("/proc/%d/fd", g.cmd.Process.Pid)))(t)
	return holding{goroutines, len(descriptors)}
}

// goroutines returns the server's goroutines, grouped by what they do.
func (g *gateway) goroutines(t testing.TB) string {
	t.Helper()
	return string(g.askAdmin(t, "/debug/pprof/goroutine?debug=1"))
}

// askAdmin asks the admin API on a connection of its own, and closes it.
func (g *gateway) askAdmin(t testing.TB, path string) []byte {
	t.Helper()
	return rawTo(t, g.admin, "GET "+path+" HTTP/1.1\r\nHost: "+g.admin+"\r\nConnection: close\r\n\r\n").body
}

// wantReleased waits until a server holds no more than before. settle closes idle
// connections and reports whether no others are left.
func (g *gateway) wantReleased(t testing.TB, before holding, settle func() bool) {
	t.Helper()
	var now holding
	deadline := time.Now().Add(startTimeout)
	eventually(t, "goroutines and descriptors are released", func() bool {
		settled := settle()
		now = g.holds(t)
		released := settled && now.goroutines <= before.goroutines && now.descriptors <= before.descriptors
		if !released && time.Until(deadline) < time.Second {
			t.Fatalf("%+v has become %+v:\n%.4000s", before, now, g.goroutines(t))
		}
		return released
	})
	t.Logf("%+v has become %+v", before, now)
}

// heap returns the bytes that are still reachable after a garbage collection.
func (g *gateway) heap(t testing.TB) float64 {
	t.Helper()
	return g.number(t, "/debug/pprof/heap?gc=1&debug=1", `(?m)^# HeapAlloc = (\d+)$`)
}

// memory returns the sizes in /proc/<pid>/status in bytes, by their names.
func (g *gateway) memory(t testing.TB) map[string]int {
	t.Helper()
	status := must(os.ReadFile(fmt.Sprintf("/proc/%d/status", g.cmd.Process.Pid)))(t)
	sizes := make(map[string]int)
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if kib, ok := strings.CutSuffix(strings.TrimSpace(value), " kB"); ok {
			n := must(strconv.Atoi(kib))(t)
			sizes[name] = n << 10
		}
	}
	return sizes
}
