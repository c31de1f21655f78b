package percent_test

import (
	"fmt"
	"net/url"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/internal/percent"
)

// Octet agrees with net/url about every pair of bytes after a percent sign.
func TestOctet(t *testing.T) {
	t.Parallel()
	for high := range 256 {
		for low := range 256 {
			encoded := []byte{'%', byte(high), byte(low)}
			want, err := url.PathUnescape(string(encoded))
			got, ok := percent.Octet(encoded)
			if ok != (err == nil && len(want) == 1) || ok && got != want[0] {
				t.Errorf("Octet(%q) = %#x, %t, want %q, %v", encoded, got, ok, want, err)
			}
		}
	}
	for s, want := range map[string]string{
		"": "0 false", "%": "0 false", "%2": "0 false", "2f2": "0 false", "a%2f": "0 false",
		"%2f": "47 true", "%2F%2e": "47 true", "%252f": "37 true",
	} {
		octet, ok := percent.Octet(s)
		if got := fmt.Sprint(octet, ok); got != want {
			t.Errorf("Octet(%q) = %s, want %s", s, got, want)
		}
	}
}
