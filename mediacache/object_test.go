package mediacache

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Fields keep each name and value byte for byte, whatever is in them.
func FuzzFields(f *testing.F) {
	f.Add("Etag", `"1"`, "Via", "a", "b")
	f.Add("X", "", "Y", "\x80\x00\xff", strings.Repeat("v", 20000))
	f.Fuzz(func(t *testing.T, one, value, two, first, second string) {
		h := http.Header{one: {value}}
		h[two] = append(h[two], first, second)
		encoded := encodeFields(h)
		if got := encoded.header(); one != "" && two != "" && !cmp.Equal(got, h) {
			t.Errorf("%q became %q", h, got)
		}
		if got := encoded.get(one); got != h[one][0] {
			t.Errorf("the first value of %q in %q is %q", one, h, got)
		}
		if got := encoded.get(one + two + "x"); got != "" {
			t.Errorf("a field that is not in %q is %q", h, got)
		}
	})
}
