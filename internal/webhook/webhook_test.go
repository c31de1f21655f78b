package webhook

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
)

func isLoopback(host string) bool { return host == "localhost" || strings.HasPrefix(host, "127.") }

func TestParsePrivate(t *testing.T) {
	t.Parallel()
	for address, why := range map[string]string{
		"https://hooks.example.com/x?y=z": "", "https://u:secret@10.0.0.1/": "", "http://127.0.0.1:8080/": "", "http://localhost/secret": "",
		"http://hooks.example.com/secret": "https", "http://10.0.0.1/secret": "https", "ftp://localhost/secret": "want", "https:///secret": "want", "https://:443/secret": "want",
		"hooks.example.com": "want", "": "want", "https://h/#secret": "want", "https://secret\x7f": "want", "unix:///secret": "want",
	} {
		u, err := ParsePrivate(address, isLoopback)
		if (err == nil) != (why == "") || (u == nil) == (why == "") || err != nil && (!strings.Contains(err.Error(), why) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("ParsePrivate(%q) = %v, %v", address, u, err)
		}
	}
}

// receiver answers with statuses in turn, the last one for ever.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	bodies []string
	calls  atomic.Int64
}

func receive(t *testing.T, key []byte, statuses ...int) *receiver {
	t.Helper()
	var r receiver
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		n := int(r.calls.Add(1))
		signature := request.Header.Get(SignatureHeader)
		if key != nil {
			text, _, _ := strings.Cut(strings.TrimPrefix(signature, "time="), ",")
			seconds, _ := strconv.ParseInt(text, 10, 64)
			if signature != Sign(key, time.Unix(seconds, 0), body) {
				t.Errorf("the signature %q is not of %q", signature, body)
			}
		} else if signature != "" {
			t.Errorf("signature %q without a key", signature)
		}
		status := statuses[min(n, len(statuses))-1]
		if status/100 == 2 {
			r.mu.Lock()
			r.bodies = append(r.bodies, string(body))
			r.mu.Unlock()
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
	}))
	t.Cleanup(r.Close)
	return &r
}

func (r *receiver) webhook(t *testing.T, key []byte, dropped *atomic.Int64) *Webhook {
	t.Helper()
	u, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	return New(Config{URL: u, Key: key, Logger: zap.NewNop, Drop: func() { dropped.Add(1) }, Pause: func(int) time.Duration { return 0 }})
}

func TestDelivery(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		statuses  []int
		delivered bool
		calls     int64
	}{
		{"at once", []int{200}, true, 1},
		{"after failures", []int{503, 429, 204}, true, 3},
		{"never", []int{500}, false, attempts},
		{"refused", []int{404}, false, 1},
		{"a redirect, which could lead to anybody", []int{302}, false, 1},
	} {
		for _, key := range [][]byte{nil, []byte("k")} {
			var dropped atomic.Int64
			r := receive(t, key, tc.statuses...)
			w := r.webhook(t, key, &dropped)
			w.Send([]byte(`{"event":1}`))
			w.Close()
			if got := len(r.bodies) == 1; got != tc.delivered || (dropped.Load() == 1) == got || r.calls.Load() != tc.calls {
				t.Errorf("%s: delivered %q in %d calls, dropped %d", tc.name, r.bodies, r.calls.Load(), dropped.Load())
			}
		}
	}
}

// A receiver that hangs holds nobody up and fills no memory.
func TestSendNeverWaits(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	var dropped atomic.Int64
	w := New(Config{URL: u, Logger: zap.NewNop, Drop: func() { dropped.Add(1) }})
	const events = 3 * maxQueued
	for n := range events {
		w.Send(fmt.Appendf(nil, "%d", n))
	}
	if got := dropped.Load(); got < events-maxQueued-senders || got > events-maxQueued {
		t.Errorf("%d of %d events were dropped", got, events)
	}
	close(release)
	w.Close()
	w.Send([]byte("late"))
}
