package verification

import (
	"io/fs"
	"strings"
	"testing"
)

// The error of a key file that cannot be read says what to do.
func TestHintsForKeyFiles(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		path string
		err  error
		want string
	}{
		{"https://id.example.com/jwks.json", fs.ErrNotExist, "jwks_url"},
		{"/etc/caddy/public.json", fs.ErrPermission, "let the user"},
		{"/etc/caddy/public.json", fs.ErrNotExist, "keygen --public"},
		{"public.json", fs.ErrNotExist, "relative to the folder"},
	} {
		if got := fileHint(tc.path, tc.err); !strings.Contains(got, tc.want) {
			t.Errorf("%s, %v: %q, want a hint with %q", tc.path, tc.err, got, tc.want)
		}
	}
}
