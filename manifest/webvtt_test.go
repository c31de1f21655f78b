package manifest_test

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// vttCases are WebVTT files, and the results. An empty want means that the file stays as it is.
var vttCases = []struct{ name, in, want string }{
	{"F14 storyboard", "WEBVTT\n\n00:00.000 --> 00:05.000\n/library/vidA/v1/s.jpg#xywh=0,0,160,90\n\n1\n00:05.000 --> 00:10.000 align:start\nhttps://origin.example/library/vidA/v1/s.jpg?a=b#xywh=160,0,160,90\n", "WEBVTT\n\n00:00.000 --> 00:05.000\n../s.jpg#xywh=0,0,160,90\n\n1\n00:05.000 --> 00:10.000 align:start\n../s.jpg?a=b#xywh=160,0,160,90\n"},
	{"F14 storyboard with CRLF, a byte order mark and white space", "\ufeffWEBVTT - x\r\n\r\n00:00.000 --> 00:05.000\r\n /library/vidA/v1/s.jpg\t\r\n", "\ufeffWEBVTT - x\r\n\r\n00:00.000 --> 00:05.000\r\n../s.jpg\r\n"},
	{"F14 storyboard with CR alone, which ends a line too", "WEBVTT\r\r00:00.000 --> 00:05.000\r/library/vidA/v1/s.jpg\r\r/library/vidA/v1/s.jpg", "WEBVTT\r\r00:00.000 --> 00:05.000\r../s.jpg\r\r/library/vidA/v1/s.jpg"},
	{"F14 storyboard with spaces in names", "WEBVTT\n\n00:00.000 --> 00:05.000\n/library/vidA/v1/my s.jpg#xywh=0,0,1,1", "WEBVTT\n\n00:00.000 --> 00:05.000\n../my s.jpg#xywh=0,0,1,1"},
	{"F14 storyboard of relative and foreign images", "WEBVTT\n\n00:00.000 --> 00:05.000\ns.jpg#xywh=0,0,1,1\n\n00:00.000 --> 00:05.000\nhttps://cdn.example/library/vidA/v1/s.jpg\n\n00:00.000 --> 00:05.000\n/library/vidB/v1/s.jpg\n", ""},
	{"F14 captions", "WEBVTT\nX-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:0\n\nSTYLE\n::cue { color: red }\n\nNOTE\n/library/vidA/v1/x\n\n/library/vidA/v1/id\n00:00.000 --> 00:05.000\n- See /library/vidA/v1/x\n/ library\nhttps: //origin.example/library/vidA/v1/x\n\x00\xff /library/vidA/v1/x\n", ""},
	{"F14 nothing", "WEBVTT", ""},
}

func TestWebVTT(t *testing.T) {
	t.Parallel()
	for _, tc := range vttCases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if f := formatOf(tc.in); f != manifest.WebVTT {
				t.Errorf("Sniff = %d", f)
			}
			check(t, manifest.WebVTT, "", tc.in, "", tc.want, 0)
		})
	}
	for _, body := range []string{"WEBVTTX", "webvtt", "\nWEBVTT", "WEBVT"} {
		if f := formatOf(body); f != 0 {
			t.Errorf("Sniff(%q) = %d", body, f)
		}
	}
}

// FuzzWebVTT checks that only lines of cues change, and that they then lead to the same file.
func FuzzWebVTT(f *testing.F) {
	for _, tc := range vttCases {
		f.Add([]byte(tc.in))
	}
	lineBreak := regexp.MustCompile(`\r\n|\r|\n`)
	f.Fuzz(func(t *testing.T, body []byte) {
		out, stats, err := manifest.Rewrite(nil, body, manifest.WebVTT, here, "", 0)
		if err != nil || stats.Rewritten == 0 {
			if err == nil && !bytes.Equal(out, body) {
				t.Fatalf("%q became %q", body, out)
			}
			return
		}
		before, after := lineBreak.Split(string(body), -1), lineBreak.Split(string(out), -1)
		if len(before) != len(after) || strings.Join(lineBreak.FindAllString(string(body), -1), "") != strings.Join(lineBreak.FindAllString(string(out), -1), "") {
			t.Fatalf("%q became %q", body, out)
		}
		cue := false
		for i, line := range before {
			cue = line != "" && (cue || strings.Contains(line, "-->"))
			if line == after[i] {
				continue
			}
			why := judge(here, visit(originSpot(here), line), visit(viewerSpot(here), after[i]), line, after[i])
			if !cue || why != "" {
				t.Errorf("%q became %q: %s", line, after[i], why)
			}
		}
	})
}
