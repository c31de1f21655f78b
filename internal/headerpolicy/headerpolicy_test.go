package headerpolicy

import (
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A cache that holds a response longer than its token lasts, or that hands it to
// somebody else, opens what the gate has closed.
func TestPrivateCacheControl(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, origin, want string
		lifetime           time.Duration
	}{
		{"C1 public for a year", "public, max-age=31536000, immutable", "private, max-age=3600", time.Hour},
		{"C1 shared caches addressed", "s-maxage=600, max-age=60, proxy-revalidate", "private, max-age=60", time.Hour},
		{"C1 stale beyond its time", "max-age=60, stale-while-revalidate=86400, stale-if-error=86400", "private, max-age=60", time.Hour},
		{"the origin says nothing", "", "private, max-age=0", time.Hour},
		{"the origin allows less", "max-age=10, must-revalidate", "private, max-age=10, must-revalidate", time.Hour},
		{"no-cache stays", "no-cache", "private, no-cache, max-age=0", time.Hour},
		{"no-store stays", "no-store, max-age=60", "no-store", time.Hour},
		{"capitals and quotes", `Public, Max-Age="60", No-Transform`, "private, max-age=60, no-transform", time.Hour},
		{"max-age twice", "max-age=10, max-age=9999", "private, max-age=10", time.Hour},
		{"max-age that is none", "max-age=-1, max-age=x, max-age=1e9", "private, max-age=0", time.Hour},
		{"max-age beyond any integer", "max-age=99999999999999999999", "private, max-age=0", time.Hour},
		{"a part of a second left", "max-age=60", "private, max-age=0", 900 * time.Millisecond},
		{"expired while the origin answered", "max-age=60", "private, max-age=0", -time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := privateCacheControl([]string{tc.origin}, tc.lifetime); got != tc.want {
				t.Errorf("privateCacheControl(%q, %s) = %q, want %q", tc.origin, tc.lifetime, got, tc.want)
			}
		})
	}
}

// The names that an operator may not let pass would undo what the gate decides, or
// have browsers store and report what belongs to other videos.
func TestResponseHeadersThatCannotPass(t *testing.T) {
	t.Parallel()
	for _, names := range [][]string{
		{"Access-Control-Allow-Origin"},
		{"access-control-" + rand.Text()},
		{"Signed-Playback-Reason"},
		{"X-Content-Type-Options"},
		{"content-security-policy"},
		{"Content-Security-Policy-Report-Only"},
		{"Connection"},
		{"Trailer"},
		{"Transfer-Encoding"},
		{"Upgrade"},
		{"SET-COOKIE"},
		{"NEL"},
		{"Report-To"},
		{"Reporting-Endpoints"},
		{"Service-Worker-Allowed"},
		{"Clear-Site-Data"},
		{"Refresh"},
		{"WWW-Authenticate"},
		{"Referrer-Policy"},
		{""},
		{"*"},
		{"X-*"},
		{"X Y"},
		{"X:"},
		{"X-Cache", "x-cache"},
	} {
		last := names[len(names)-1]
		if _, err := ParseResponse(names); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", last)) {
			t.Errorf("%q: error %v, want one that names %q", names, err, last)
		}
	}
}

func TestRequestHeadersThatAreRefused(t *testing.T) {
	t.Parallel()
	for _, names := range [][]string{{""}, {"a b"}, {"X:"}, {"é"}, {"X-A", "x-a"}, {"*", "*"}} {
		if _, err := ParseRequest(names); err == nil {
			t.Errorf("parseRequestHeaders(%q) = nil, want an error", names)
		}
	}
	for _, name := range []string{
		"Referer", "Origin", "Host", "Connection", "Upgrade", "HTTP2-Settings", "Expect", "Content-Length", "Trailer",
		"Te", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Transfer-Encoding",
	} {
		if _, err := ParseRequest([]string{strings.ToLower(name)}); err == nil || !strings.Contains(err.Error(), strings.ToLower(name)) {
			t.Errorf("parseRequestHeaders(%q) = %v, want an error that names it", name, err)
		}
	}
}
