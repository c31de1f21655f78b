package cmcd

import (
	"net/http"
	"strings"
	"testing"
)

// The attack: a session id of CMCD that two readers read differently, or none at all.
func TestMalformedCMCDIsIgnored(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`sid="abc"`: "abc", `br=3200,bs,cid="a,b=\"c\"",sid="x-1",v=2`: "x-1", `sid="a\\b"`: `a\b`, `sid="a", br=1`: "a", `com.example-x="1",sid="s"`: "s",
		``: "", `sid`: "", `sid=`: "", `sid=abc`: "", `sid=1`: "", `sid=""`: "", `sid="a`: "", `sid="a"b`: "", `sid="a";x`: "", `sid="a\c"`: "", `sid="a\`: "",
		`sid="a",sid="b"`: "", `sid="a",sid="a"`: "", `,sid="a"`: "", `sid="a",`: "", `sid="a",,br=1`: "", ` sid="a"`: "", `SID="a"`: "", `"sid"="a"`: "",
		`sid="a b"`: "", `sid="é"`: "", "sid=\"a\x00\"": "", `sid="` + strings.Repeat("a", 129) + `"`: "", `br=,sid="a"`: "", `br=1 2,sid="a"`: "", `=1,sid="a"`: "",
	} {
		if got := sessionIn(text); got != want {
			t.Errorf("cmcdSession(%q) = %q, want %q", text, got, want)
		}
	}
	for query, want := range map[string]string{
		"CMCD=sid%3D%22a%22": "a", "x&CMCD=sid%3D%22a%22&y=1": "a", "CMC%44=sid%3D%22a%22": "a",
		"CMCD=sid%3D%22a%22&CMCD=sid%3D%22a%22": "", "CMCD=sid%3D%22a%2": "", "cmcd=sid%3D%22a%22": "", "CMCD": "", "": "",
	} {
		if got := Session(http.Header{}, query); got != want {
			t.Errorf("the query %q has the session %q, want %q", query, got, want)
		}
	}
	for name, values := range map[string][]string{
		"X-Playback-Session-Id": {"a", "b"}, "Cmcd-Session": {`sid="a"`, `sid="b"`},
	} {
		if got := Session(http.Header{name: values}, ""); got != "" {
			t.Errorf("two headers %s have the session %q", name, got)
		}
	}
}
