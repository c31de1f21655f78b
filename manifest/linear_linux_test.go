package manifest_test

import (
	"errors"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// threadTime is the processor time of this thread, which other work on the machine does not change.
func threadTime(t *testing.T) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_THREAD, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// checkLinear checks that a megabyte of a text takes less than a second of processor time. It
// takes milliseconds, and in quadratic time many seconds.
func checkLinear(t *testing.T, before, text, after string) {
	t.Helper()
	body := []byte(before + strings.Repeat(text, 1<<20/len(text)) + after)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := threadTime(t)
	_, _, err := manifest.Rewrite(nil, body, formatOf(body), here, "", allowed)
	if took := threadTime(t) - start; took > time.Second || err != nil && !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("a megabyte of %q after %q takes %v, %v", text, before, took, err)
	}
}

// M11: dot segments must take linear time. In quadratic time, 8 MiB of them would take hours,
// as one chain or as many.
func TestWorkIsLinear(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"#EXTM3U\n%\n", "#EXTM3U\n#EXT-X-PREFETCH:%\n", `<MPD><SegmentTemplate media="%"/></MPD>`, `<MPD><BaseURL>%</BaseURL></MPD>`} {
		before, after, _ := strings.Cut(format, "%")
		for _, text := range []string{"../", "a/../", "/"} {
			checkLinear(t, before, text, after)
		}
		checkLinear(t, before, "../", "library/vidA/v1/x"+after)
	}
}

// The attack: a list with mistakes, in which every name ends in URI.
func TestWorkOnListsIsLinear(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"xURI=", "xURI =\t", "=", ",", "a=\"", "xURI=\"\"", "xURI=\"a\"b", "?URI=", "/x"} {
		for _, tag := range []string{"#EXT-X-MEDIA:,,", "#EXT-X-ACME:/", "#EXT-X-MAP ", "# #EXT-X-A:,,"} {
			checkLinear(t, "#EXTM3U\n"+tag, text, "")
		}
	}
}
