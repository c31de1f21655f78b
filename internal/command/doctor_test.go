package command

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// An origin that listens on all addresses is exposed at each of this machine's.
func TestDoctorFindsExposedOrigins(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]int{":0": len(ownAddresses()), "127.0.0.1:0": 0} {
		listener := must(net.Listen("tcp", listen))
		defer func() { _ = listener.Close() }()
		dial := fmt.Sprintf("127.0.0.1:%d", listener.Addr().(*net.TCPAddr).Port)
		list := upstreamsOf(map[string]any{"handler": "reverse_proxy", "upstreams": []any{map[string]any{"dial": dial}}})
		if found := new(checkup).exposedAt(t.Context(), list[0]); len(found) != want {
			t.Errorf("an origin that listens on %s: found %q, want %d addresses", listen, found, want)
		}
	}
}

// The clocks of this machine and of an origin are compared at the same time, however long the checks before
// have waited for servers that do not answer.
func TestDoctorComparesClocks(t *testing.T) {
	t.Parallel()
	for ahead, want := range map[time.Duration]string{0: foundOK, time.Hour: foundToDo, -time.Hour: foundToDo} {
		origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
		}))
		defer origin.Close()
		c := &checkup{
			doctorOptions: doctorOptions{terminal: terminal{now: time.Now().Add(-time.Minute)}}, check: "clock",
			upstreams: upstreamsOf(map[string]any{"handler": "reverse_proxy", "upstreams": []any{map[string]any{"dial": origin.Listener.Addr().String()}}}),
		}
		if c.checkClock(t.Context()); len(c.findings) != 1 || c.findings[0].Outcome != want {
			t.Errorf("an origin whose clock is ahead by %s: %+v, want %s", ahead, c.findings, want)
		}
	}
}

// The warnings of a config are in the same order each time.
func TestDoctorSortsWarnings(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "warnings.log")
	const lines = `{"level":"warn","msg":"b","of":"video z"}` + "\n" + `{"level":"warn","msg":"b","of":"video a"}` + "\n" + `{"level":"warn","msg":"a"}` + "\n"
	if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	first := finding{"clock", foundToDo, "of an earlier check", ""}
	c := &checkup{check: "config", warnings: file, findings: []finding{first}}
	c.checkWarnings(t.Context())
	want := []finding{first, {"config", foundToDo, "a", ""}, {"config", foundToDo, "b", "of: video a"}, {"config", foundToDo, "b", "of: video z"}}
	if !slices.Equal(c.findings, want) {
		t.Errorf("found %v, want %v", c.findings, want)
	}
}
