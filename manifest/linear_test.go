package manifest_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// checkLinear rewrites a text that is repeated, up to a size. In quadratic time, the tests below
// would take longer than a test may run.
func checkLinear(t *testing.T, before, text, after string, size int) {
	t.Helper()
	body := []byte(before + strings.Repeat(text, size/len(text)) + after)
	if _, _, err := manifest.Rewrite(nil, body, formatOf(body), here, "", allowed); err != nil && !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("%q after %q: %v", text, before, err)
	}
}

// M11: dot segments must take linear time, as one chain or as many.
func TestWorkIsLinear(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"#EXTM3U\n%\n", "#EXTM3U\n#EXT-X-PREFETCH:%\n", `<MPD><SegmentTemplate media="%"/></MPD>`, `<MPD><BaseURL>%</BaseURL></MPD>`} {
		before, after, _ := strings.Cut(format, "%")
		for _, text := range []string{"../", "a/../", "/"} {
			checkLinear(t, before, text, after, 2<<20)
		}
		checkLinear(t, before, "../", "library/vidA/v1/x"+after, 2<<20)
	}
}

// The attack: a list with mistakes, in which every name ends in URI.
func TestWorkOnListsIsLinear(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"xURI=", "xURI =\t", "=", ",", "a=\"", "xURI=\"\"", "xURI=\"a\"b", "?URI=", "/x"} {
		for _, tag := range []string{"#EXT-X-MEDIA:,,", "#EXT-X-ACME:/", "#EXT-X-MAP ", "# #EXT-X-A:,,"} {
			checkLinear(t, "#EXTM3U\n"+tag, text, "", 1<<20)
		}
	}
}
