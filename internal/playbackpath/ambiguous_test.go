package playbackpath

import (
	"errors"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// AllowAmbiguous are the rules of a gate with ambiguous_paths allow.
var allowAmbiguous = Rules{Downloads: Globs{"downloads/*", "*.mov"}, AllowAmbiguous: true}

func TestAmbiguousPathsThatPass(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ suffix, decoded string }{
		{"media%2F0-1.m4s", "media/0-1.m4s"},
		{"a//b.ts", "a//b.ts"},
		{"/b.ts", "/b.ts"},
		{"a///b//c.ts/", "a///b//c.ts/"},
		{"episode%20%239/s0.ts", "episode #9/s0.ts"},
		{"episode%20%239/video.m3u8", "episode #9/video.m3u8"},
		{"%231/s0.ts", "#1/s0.ts"},
		{"Vol.%231/s0.ts", "Vol.#1/s0.ts"},
		{"s;p=0.ts", "s;p=0.ts"},
		{"s;p=0;q=1.ts", "s;p=0;q=1.ts"},
		{"a;v=1/b;w=2.ts", "a;v=1/b;w=2.ts"},
		{"s%3Bp=0.ts", "s;p=0.ts"},
		{"what%3F.ts", "what?.ts"},
		{"100%25.ts", "100%.ts"},
		{"100%25%20real/0.ts", "100% real/0.ts"},
		{"a%252Fb.ts", "a%2Fb.ts"},
		{"a%2F%2Fb%3Bc%23d.ts", "a//b;c#d.ts"},
		{"hls%2Fvideo.m3u8", "hls/video.m3u8"},
		{"hls//video.mpd", "hls//video.mpd"},
		{"downloads//a%2Fb.mp4", "downloads//a/b.mp4"},
		{"a%2Fb.mov", "a/b.mov"},
		{"[a];b.ts", "[a];b.ts"},
		{"v.ts", "v.ts"},
	} {
		got, err := allowAmbiguous.ParseSuffix(tc.suffix, "demo")
		if err != nil || got.Decoded != tc.decoded || got.Escaped != brackets.Replace(tc.suffix) {
			t.Errorf("%s = %+v, %v; want it decoded as %q", tc.suffix, got, err, tc.decoded)
		}
		if tc.suffix == tc.decoded && !strings.ContainsAny(tc.suffix, ";[") && !strings.Contains(tc.suffix, "//") && tc.suffix[0] != '/' {
			continue // no reader doubts it
		}
		if _, err := (Rules{}).ParseSuffix(tc.suffix, "demo"); err == nil {
			t.Errorf("%s passes without ambiguous_paths allow", tc.suffix)
		}
	}
}

// hostileReadings are suffixes of which some server makes another file than the gate
// thinks. ambiguous_paths allow does not let them pass.
var hostileReadings = []struct {
	attack   string
	want     error
	suffixes []string
}{
	{"dot segments, after parameters are cut off", errSegment, []string{
		"..;/b/x.ts", "a/..;x=1/..;/b", ".;/x.ts", "a/.;", "..%3B/b/x.ts", "a/..%3bx/b", "%2F..;/x", "..%253B/x", "..;a%2Fb",
	}},
	{"dot segments, after slashes are decoded", errSegment, []string{"..%2Fb/x.ts", "a%2F..%2F..%2Fb", "a%2f.%2fx", "..%252Fb", "%2F%2F..", "..%2f", "a%2F.."}},
	{"dot segments, after a cut", errSegment, []string{"..%23/x.ts", "a/..%3F.ts", ".%23", "..%2523", "a%2F..%3Fb", "..%20%23x"}},
	{"dots that are decoded twice", errSegment, []string{"%252e%252e/b", "%252e%2fb", "%252e%252e;x/b"}},
	{"encoded dots", errEscape, []string{"%2e%2e/b", "a%2Fb%2Ets", "%2E;/a//b"}},
	{"backslashes", errEscape, []string{"a%5Cb;c", "..%255Cb", "a//b%255c..%255cx", "%2F%5c"}},
	{"control characters", errEscape, []string{"a%00;b.ts", "a%2500.ts", "a//%0d%0aX", "a%250a.ts", "a;%7f", "a%25C2%2585"}},
	{"bytes that are not UTF-8 in a reading", errEscape, []string{"a;%ff", "%25ff.ts", "a%25c0%25ae/x"}},
	{"malformed escapes", errEscape, []string{"a;%", "a//%2", "a;%zz", "%%32%46"}},
	{"raw delimiters", errByte, []string{"a;b#c", "a//b?c", "a//<b>", "a;\x00", "a//é"}},
	{"manifests in one reading only", errReadings, []string{
		"video.m3u8;x.ts", "video.m3u8;a/x.ts", "video.mpd%3Bx.ts", "a;/video.m3u8;", "x.ts;video.m3u8", "video.m3u8%253Bx.ts", "x;v=1/video.m3u8",
	}},
	{"manifests and guarded files before a cut", errReadings, []string{"video.m3u8%23.ts", "video.mpd%3Fx.ts", "a.mov%3F.ts", "a.mov%20%23.ts", "downloads%2Fx%3Fy", "video.m3u8%2523.ts"}},
	{"downloads in one reading only", errReadings, []string{
		"downloads%2Fa.mp4", "downloads;x/a.mp4", "/downloads/a.mp4", "downloads%252Fa.mp4", "a.mov;x.ts", "a.mov;/x.ts", "a.ts;b.mov", "DOWNLOADS;v=1/a.mp4", "%2Fdownloads/a",
		"downloads%3Bx/a.mp4",
	}},
	{"the player page in one reading only", errReadings, []string{"iframe;x", "/iframe", "iframe%2Fhls.js", "iframe//hls.js", "iframe%3Bx", "iframe%23", "%2Fiframe", "iframe;a/b.ts"}},
	{"the folder itself", errSegment, []string{"/", "//", "%2F", ";", ";x/y.ts", "%252F", "/;"}},
	{"names that a file system takes for others", errName, []string{
		"a:b;c", "a%3A//b", "a.;x/b.ts", "a//b.", "DOWNLO~1//x", "DOWNLO~1;x/a", "downlo%257E1/x", "a%20;x.ts", "a%2520/x", "a%25%33%41b", "a//e%CC%81", "a;e%25CC%2581", "a%252E/x", "a/%252E./b", "a/..%252f..",
	}},
	{"a token in a reading", errToken, []string{"a//T", "%2FT", "a;T", "%25%36%35" + "T"[1:] + "/x;eyJ-T", "a%3Bx-T"}},
	{"so many readings that each request costs time", errReadings, []string{strings.Repeat("a;b//", 500), "a;b%2F" + strings.Repeat("x", 2048), "a;b//c;d//%3Be%2F%2Ff%3B/%253Bg%252F%252F/x%23;y%2523%3Bz%253Bw/%2F%252Fq;w"}},
}

func TestHostileReadingsAreRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range hostileReadings {
		for _, suffix := range tc.suffixes {
			got, err := allowAmbiguous.ParseSuffix(withToken(suffix), "demo")
			if !errors.Is(err, tc.want) || got.Escaped != "" {
				t.Errorf("%s: %.60s = %+v, %v, want %v", tc.attack, suffix, got, err, tc.want)
			}
		}
	}
	if _, err := allowAmbiguous.ParseSuffix("a//x-a.b.c", "a.b.c"); !errors.Is(err, errToken) {
		t.Errorf("the first segment in the suffix: %v, want %v", err, errToken)
	}
}

// reader is a server: it returns the path that it looks up, and false if it refuses the
// request. It is written without a look at the gate.
type reader func(requestPath string) (file string, ok bool)

// then applies steps of a server in order.
func then(steps ...reader) reader {
	return func(file string) (string, bool) {
		for _, step := range steps {
			var ok bool
			if file, ok = step(file); !ok {
				return "", false
			}
		}
		return file, true
	}
}

func unescape(file string) (string, bool) {
	decoded, err := url.PathUnescape(file)
	return decoded, err == nil && !strings.Contains(decoded, "\x00")
}

func replace(pattern, by string) reader {
	compiled := regexp.MustCompile(pattern)
	return func(file string) (string, bool) { return compiled.ReplaceAllString(file, by), true }
}

func clean(file string) (string, bool) { return path.Clean(file), true }

// dots removes dot segments and leaves empty segments.
func dots(file string) (string, bool) {
	var kept []string
	for segment := range strings.SplitSeq(file, "/") {
		switch {
		case segment == "..":
			kept = kept[:max(0, len(kept)-1)]
		case segment != ".":
			kept = append(kept, segment)
		}
	}
	return strings.Join(kept, "/"), true
}

var (
	windows = replace(`\\`, "/")
	noDots  = replace(`[ .]+(/|$)`, "$1")
	perPart = replace(`;[^/]*`, "")
	atLast  = replace(`;[^/]*$`, "")
	rest    = replace(`;.*`, "")
	// but slashes: Apache with AllowEncodedSlashes NoDecode, and Tomcat with passthrough
	butSlashes = then(replace(`(?i)%2f`, "%252F"), unescape)
)

var readers = map[string]reader{
	"nginx":                             then(unescape, clean),
	"nginx without merge_slashes":       then(unescape, dots),
	"nginx that decodes for its origin": then(unescape, clean, unescape, clean),
	"Apache":                            then(unescape, dots, clean),
	"Apache with NoDecode":              then(butSlashes, clean),
	"Tomcat":                            then(perPart, unescape, clean),
	"Tomcat with passthrough":           then(perPart, butSlashes, clean),
	"Jetty behind a proxy":              then(unescape, perPart, clean),
	"a servlet that decodes again":      then(perPart, unescape, clean, unescape, perPart, clean),
	"IIS":                               then(unescape, windows, noDots, clean),
	"IIS with double escaping":          then(unescape, unescape, windows, noDots, clean),
	"IIS 6":                             then(unescape, rest, windows, clean),
	"ISAPI":                             then(rest, unescape, windows, clean),
	"PHP that decodes REQUEST_URI":      then(unescape, unescape, clean),
	"Node":                              then(unescape, clean),
	"S3":                                then(unescape),
	"Python's urlparse":                 then(atLast, unescape, clean),
	"a framework behind Python":         then(unescape, atLast, clean),
	"Caddy":                             then(unescape, clean),
}

// cutters take a decoded ? or # for the end of the path.
var cutters = map[string]reader{
	"a proxy that does not encode again":         then(unescape, replace(`[?#].*`, ""), clean),
	"one that does so twice":                     then(unescape, replace(`[?#].*`, ""), unescape, replace(`[?#].*`, ""), windows, noDots, clean),
	"one before a servlet":                       then(unescape, replace(`[?#].*`, ""), perPart, unescape, clean),
	"an application that decodes before it cuts": then(unescape, unescape, replace(`[?#].*`, ""), noDots, clean),
}

// FuzzAmbiguousPath holds that no server reads a suffix that passes with ambiguous_paths
// allow as a file elsewhere, or of another kind.
func FuzzAmbiguousPath(f *testing.F) {
	for _, tc := range hostileReadings {
		for _, suffix := range tc.suffixes {
			f.Add(suffix)
		}
	}
	for _, tc := range hostilePaths {
		for _, requestTarget := range tc.targets {
			_, suffix, _ := strings.Cut(requestTarget[1:], "/")
			f.Add(suffix)
		}
	}
	for _, suffix := range []string{"a;b/c//d%2Fe%3Bf%23g%3Fh%25i.ts", "x%252e%252e;/y", "a%2F.;..", "a;%2F..;%2F", "%25%32%65%2e", ".;./x", "0..%23", "downloAds/", "downloAds/;"} {
		f.Add(suffix)
	}
	f.Fuzz(func(t *testing.T, escaped string) {
		parsed, err := allowAmbiguous.ParseSuffix(escaped, "demo")
		if err != nil {
			return
		}
		thinks := allowAmbiguous.Resource(parsed.Decoded)
		for name, read := range readers {
			file, ok := read("/vod/demo/" + parsed.Escaped)
			if !ok {
				continue
			}
			got := guardedKind(t, name, escaped, file)
			if foldName(strings.Trim(strings.TrimPrefix(file, "/vod/demo"), "/")) == "downloads" {
				got.download = thinks.Download // the gate guards the folder itself only if the suffix names it as a folder
			}
			if got != (guarded{thinks.Manifest, thinks.Download, thinks.Own}) {
				t.Fatalf("%q: %s reads %q, which is %+v, and the gate thinks %+v", escaped, name, file, got, thinks)
			}
		}
		for name, read := range cutters {
			file, ok := read("/vod/demo/" + parsed.Escaped)
			if !ok {
				continue
			}
			if got := guardedKind(t, name, escaped, file); got.manifest && !thinks.Manifest || got.download && !thinks.Download || got.own && !thinks.Own {
				t.Fatalf("%q: %s reads %q, which is %+v, and the gate thinks %+v", escaped, name, file, got, thinks)
			}
		}
	})
}

// guarded is the kind of a file by its path.
type guarded struct{ manifest, download, own bool }

func guardedKind(t *testing.T, name, escaped, file string) guarded {
	t.Helper()
	rel, ok := strings.CutPrefix(file+"/", "/vod/demo/")
	if !ok || slices.Contains(strings.Split(rel, "/"), "..") || strings.ContainsAny(rel, "\x00\r\n\\") {
		t.Fatalf("%q: %s reads %q, outside of the folder", escaped, name, file)
	}
	rel = strings.Trim(rel, "/")
	isOwn := rel == "iframe" || rel == "iframe/hls.js"
	rel = strings.ToLower(rel)
	ending := path.Ext(rel)
	if strings.ContainsFunc(rel, func(c rune) bool { return c > '~' }) {
		rel = foldName(rel) // TestEachLetterHasOneName has the letters
		ending = path.Ext(rel)
	}
	return guarded{
		ending == ".m3u8" || ending == ".mpd" || ending == ".mpp",
		strings.HasPrefix(rel, "downloads/") || strings.HasSuffix(rel, ".mov"),
		isOwn,
	}
}
