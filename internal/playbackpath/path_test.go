package playbackpath

import (
	"encoding/base64"
	"errors"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/text/unicode/norm"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// plainToken has the form of a token.
var plainToken = func() string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256","kid":"k1"}`)) + "." + encode([]byte(`{"sub":"demo","exp":1800003600}`)) + "." + encode(make([]byte, 256))
}()

// T stands for a token in the request targets of the tables.
func withToken(target string) string { return strings.ReplaceAll(target, "T", plainToken) }

// withoutToken is its inverse, for messages.
func withoutToken(s string) string { return strings.ReplaceAll(s, plainToken, "T") }

// parseTarget parses a request target as Go's server does, then its path.
func parseTarget(t testing.TB, requestTarget string) (Target, error) {
	t.Helper()
	u, err := url.ParseRequestURI(requestTarget)
	if err != nil {
		t.Fatalf("a server would not read %q: %v", withoutToken(requestTarget), err)
	}
	return Rules{}.Parse(u)
}

// hostilePaths are the ways to write a path that one program reads as one thing
// and another as another. Each is refused as it is, by the path or, where the
// trick is played inside the first segment, because that is no token.
var hostilePaths = []struct {
	attack  string
	want    error
	targets []string
}{
	{"P1 dot segments, by which a path leads to another video at an origin that cleans paths", errSegment, []string{
		"/T/../vidB/manifest/video.m3u8", "/T/a/../../vidB/x", "/T/./x", "/T/manifest/.", "/T/manifest/..", "/T/manifest/../", "/T/..",
		"/..", "/../vidA/x", "/../T/..", "/vidA/../vidB/x",
	}},
	{"P1 a dot instead of the token", errID, []string{"/.", "/./vidA/x"}},
	{"P2 encoded dots, which only the origin decodes", errEscape, []string{
		"/T/%2e%2e/vidB/x", "/T/%2E./vidB/x", "/T/.%2e/vidB/x", "/T/%2e/x", "/T/video%2em3u8", "/T/manifest/video%2Em3u8",
	}},
	{"P2 encoded dots in the first segment", errID, []string{"/%2e%2e/x", "/.%2e/x", "/aa.bb%2Ecc/x"}},
	{"P3 dots that are encoded twice, for an origin that decodes twice", errEscape, []string{
		"/T/%252e%252e/vidB/x", "/T/%25%32%65%25%32%65/vidB", "/T/%25252e%25252e/vidB", "/T/100%25", "/T/%2541",
	}},
	{"P4 a slash that one side takes for a part of a name", errEscape, []string{"/T/%2f", "/T/manifest%2Fvideo.m3u8"}},
	{"P4 an encoded slash in the first segment", errID, []string{"/T%2fmanifest%2fvideo.m3u8", "/%2f/x", "/vidA%2Fx"}},
	{"P4 an encoded slash at the token", token.ErrMalformed, []string{"/T%2fmanifest", "/%2fT/x"}},
	{"P5 a backslash, which is a slash to Windows and to browsers", errByte, []string{`/T\..\vidB`, `/T\x`, `/T/a\b`}},
	{"P5 an encoded backslash", errEscape, []string{"/T/%5c..%5cvidB", "/T/a%5Cb"}},
	{"P6 empty segments, which cleaning removes, and which look like a host in a redirect", errSegment, []string{
		"//T//manifest/video.m3u8", "/T//manifest", "/T//", "/T/a//b", "/T/a//", "///evil.example/T",
	}},
	{"P6 no first segment", errID, []string{"//evil.example/vidA", "/", "//"}},
	{"P7 path parameters, which Java servers remove from a segment", errByte, []string{
		"/T;a=b/manifest/..;/x", "/T/manifest;x/video.m3u8", "/T/;", "/T/manifest/video.mpd;",
	}},
	{"P7 a parameter at the token", token.ErrMalformed, []string{"/T;a=b/x"}},
	{"P7 an encoded semicolon", errEscape, []string{"/T/manifest%3Bx/video.m3u8"}},
	{"P7 a semicolon at the id", errID, []string{"/vidA;/x"}},
	{"P8 encoded bytes that end a string, a line or a header, and dots in encodings that lenient decoders accept", errEscape, []string{
		"/T/%00/x", "/T/seg%00.ts", "/T/seg.ts%0d%0aX=1", "/T/seg%0A.ts", "/T/seg%09.ts", "/T/seg%1b.ts", "/T/seg%7f.ts", "/T/seg%C2%85.ts",
		"/T/%ff", "/T/%c0%ae%c0%ae/x", "/T/%e0%80%ae/x", "/T/%ed%a0%80", "/T/%c3/%a9",
	}},
	{"P8 bytes that a path must encode", errByte, []string{
		"/T/é.ts", "/T/\xff", `/T/"x"`, "/T/<x>", "/T/x^", "/T/x|y", "/T/x`y", "/T/{env.SECRET}",
	}},
	{"P9 a fragment or a query that only one side sees (CVE-2026-41059 of oauth2-proxy)", errByte, []string{"/T#frag/x", "/T/x#y"}},
	{"P9 encoded, in the suffix", errEscape, []string{"/T/x%23y", "/T/x%3Fy"}},
	{"P9 encoded, at the token", token.ErrMalformed, []string{"/T%23", "/T%3f/x?y"}},
	{"P10 a token in the suffix, which the origin would log", errToken, []string{
		"/T/eyJ-T", "/T/eyJeyJ.eyJ_T/a.ts", "/T/" + strings.Repeat("eyJ", 40) + "T",
		"/T/T/seg.ts", "/T/a/x-T-y.ts", "/a.b.c/%61.b.c/seg.ts", "/vidA/T", "/vidA/T/seg.ts", "/vidA/a/T.ts", "/vidA/x-T/seg.ts",
		"/vidA/token=T,x/seg.ts", "/vidA/%65y" + plainToken[2:] + "/seg.ts", "/T/e30.b.c/seg.ts", "/vidA/eyAgfQ.b.c.d.e", "/media/v1.T",
	}},
	{"P19 dots at the end, which Windows drops", errName, []string{
		"/T/downloads./a.mp4", "/T/a.mp4.", "/T/downloads.../a.mp4", "/vidA/.../x", "/vidA/a./",
	}},
	{"P19 streams of NTFS", errName, []string{
		"/T/downloads::$INDEX_ALLOCATION/a.mp4", "/T/a.mp4:x", "/T/a.mp4%3a%3A$DATA", "/T/:", "/vidA/downloads:$I30:$INDEX_ALLOCATION/a.mp4",
	}},
	{"P19 spaces at the end, which Windows drops", errName, []string{"/T/downloads%20/a.mp4", "/T/a.mp4%20", "/T/a%20/", "/T/%20"}},
	{"P19 short names of Windows", errName, []string{
		"/T/DOWNLO~1/a.mp4", "/T/downlo%7E1/a.mp4", "/T/a/ORIGIN~2.MP4", "/T/do12ab~1/x", "/T/a~10.ts", "/T/%C3%A9t%C3%A9~1.ts",
	}},
	{"P19 decomposed accents, which are composed ones to APFS and HFS+", errName, []string{
		"/T/e%CC%81te%CC%81/a.mp4", "/T/%E2%84%AB.mp4", "/T/%E1%84%80%E1%85%A1.ts", "/T/%CD%BE.ts",
	}},
	{"P19 invisible characters, which HFS+ and ext4 skip", errName, []string{
		"/T/down%E2%80%8Cloads/a.mp4", "/T/down%C2%ADloads/a", "/T/%EF%BB%BFdownloads/a", "/T/a%EF%B8%8F.mp4", "/T/a%E2%81%A0", "/T/a%E3%85%A4b",
	}},
	{"P11, P12 what is almost an id or a token", errID, []string{
		"/vidA%20/x", "/vidA%00/x", "/%76idA/x", "/vid@A/x", "/vid:A/x", "/~vidA/x", "/vid%C3%A9/x", "/vid+A/x", "/video.1/x",
		"/" + strings.Repeat("a", 65) + "/x", "/aaaa.bbbb/x", "/aaaa.bbbb.cccc.dddd/x", "/a.b.c.d.e/x", "/.../x",
	}},
	{"P12 three segments that are no token", token.ErrMalformed, []string{"/a../x", "/.vidA./x"}},
	{"P15, P16 request targets that are no path", errForm, []string{"*", "http://media.example.net", "mailto:vidA/x"}},
}

func TestHostilePathsAreRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range hostilePaths {
		for _, requestTarget := range tc.targets {
			got, err := parseTarget(t, withToken(requestTarget))
			if err != nil {
				if diff := cmp.Diff(Target{}, got, cmp.AllowUnexported(Target{}, Suffix{})); diff != "" {
					t.Errorf("parsePath(%q) returned a target with an error (-want +got):\n%s", requestTarget, diff)
				}
			} else if got.Token != "" {
				_, err = token.Parse(got.Token)
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("%s: parsePath(%q) = %v, want %v", tc.attack, requestTarget, err, tc.want)
			}
		}
	}
}

// The attack: a handler in front of the gate that changes one of a URL's two
// paths, so that the gate would judge one and the origin get the other.
func TestURLWhosePathsDifferIsRefused(t *testing.T) {
	t.Parallel()
	for name, u := range map[string]*url.URL{
		"P18 another decoded path": {Path: "/vidB/x", RawPath: "/vidA/x"},
		"P18 undecoded path":       {Path: "/vidA/%2e%2e/x", RawPath: "/vidA/%2e%2e/x"},
		"P18 broken encoding":      {Path: "/vidA/x", RawPath: "/vidA/%zz"},
		"P18 no slash":             {Path: "vidA/x"},
		"P15 CONNECT has no path":  {Host: "media.example.net:443"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := (Rules{}).Parse(u); err == nil {
				t.Errorf("parsePath(%#v) = %+v, want an error", u, got)
			}
		})
	}
}

// goodPaths are paths that pass, and what they name. Where only a suffix
// stands, the video id is vidA.
var goodPaths = []struct {
	name, target string
	want         Target
	kind         Kind
}{
	{"manifest", "/T/manifest/video.m3u8", byToken("manifest/video.m3u8", ""), KindManifest},
	{"segment by video id", "/vidA/video/1.m4s", byID("vidA", "video/1.m4s", ""), KindSegment},
	{"token alone", "/T", byToken("iframe", ""), KindIframe},
	{"token and a slash", "/T/", byToken("iframe", ""), KindIframe},
	{"video id alone", "/vidA", byID("vidA", "iframe", ""), KindIframe},
	{"video id and a slash", "/vidA/", byID("vidA", "iframe", ""), KindIframe},
	{"iframe in full", "/T/iframe", byToken("iframe", ""), KindIframe},
	{"a slash at the end", "/T/manifest/", byToken("manifest/", ""), KindOther},
	{"every byte that needs no encoding", "/T/-._~!$&'()*+,=@", byToken("-._~!$&'()*+,=@", ""), KindOther},
	{"dots that are no dot segment", "/T/...a/..a/a..b/.a", byToken("...a/..a/a..b/.a", ""), KindOther},
	{"tildes that make no short name", "/T/~1/a~b~/longer-name~1/a~1.jpeg", byToken("~1/a~b~/longer-name~1/a~1.jpeg", ""), KindOther},
	{"names of Smooth Streaming", "/T/QualityLevels(500000)/Fragments(video=0)", byToken("QualityLevels(500000)/Fragments(video=0)", ""), KindOther},
	{"a space in front", "/T/%20a.ts", byToken("%20a.ts", " a.ts"), KindSegment},
	{"composed letters of several scripts", "/T/%E1%BA%BF%EA%B0%80%E3%81%8C.ts", byToken("%E1%BA%BF%EA%B0%80%E3%81%8C.ts", "ế가が.ts"), KindSegment},
	{"dots between names that encode no object", "/T/v1.2.3/seg.eyJx.1.ts", byToken("v1.2.3/seg.eyJx.1.ts", ""), KindSegment},
	{"encoded space", "/T/my%20clip.ts", byToken("my%20clip.ts", "my clip.ts"), KindSegment},
	{"encoded UTF-8", "/T/%C3%A9%f0%9f%8e%ac.ts", byToken("%C3%A9%f0%9f%8e%ac.ts", "é🎬.ts"), KindSegment},
	{"encoded letter", "/T/%61%7E.ts", byToken("%61%7E.ts", "a~.ts"), KindSegment},
	{"encoded brackets", "/T/%5B1%5D.ts", byToken("%5B1%5D.ts", "[1].ts"), KindSegment},
	{"raw brackets", "/T/[a]/x[1%5D%20.ts", byToken("%5Ba%5D/x%5B1%5D%20.ts", "[a]/x[1] .ts"), KindSegment},
	{"a plus sign is a plus sign", "/T/a+b.ts", byToken("a+b.ts", ""), KindSegment},
	{"the query is not the path's", "/T/x.ts?a=../..//;%00#b", byToken("x.ts", ""), KindSegment},
	{"id of 64 bytes", "/" + strings.Repeat("-", 64) + "/x", byID(strings.Repeat("-", 64), "x", ""), KindOther},

	// The identity is the first segment's alone. What follows names something
	// below that video, whatever it looks like.
	{"P10 id behind a token", "/T/vidB/manifest/video.m3u8", byToken("vidB/manifest/video.m3u8", ""), KindManifest},
	{"P10 token behind an id", "/vidB/a.b.c/x.ts", byID("vidB", "a.b.c/x.ts", ""), KindSegment},
	{"P10 two tokens", "/T/a.b.c/x.ts", byToken("a.b.c/x.ts", ""), KindSegment},
	{"P11 an id in capitals is another id", "/VIDA/x", byID("VIDA", "x", ""), KindOther},
	{"P12 a token cut to its header is an id like any other", "/eyJhbGciOiJSUzI1NiIsImtpZCI6ImsxIn0/x", byID("eyJhbGciOiJSUzI1NiIsImtpZCI6ImsxIn0", "x", ""), KindOther},

	// A near miss of a manifest's name must not count as a segment, or one day
	// it leaves the gate as what it is, unrewritten.
	{"P13 manifest with a slash", "/T/manifest/video.m3u8/", byToken("manifest/video.m3u8/", ""), KindOther},
	{"P13 manifest in capitals", "/T/manifest/video.M3U8", byToken("manifest/video.M3U8", ""), KindManifest},
	{"P13 manifest with an encoded letter", "/T/manifest/video.%6D3u8", byToken("manifest/video.%6D3u8", "manifest/video.m3u8"), KindManifest},
	{"P13 manifest with a query", "/T/manifest/video.m3u8?x", byToken("manifest/video.m3u8", ""), KindManifest},
	{"P13 DASH manifest in both cases", "/T/manifest/video.mPd", byToken("manifest/video.mPd", ""), KindManifest},
	{"P13 iframe in capitals is no player page", "/T/Iframe", byToken("Iframe", ""), KindOther},
	{"P13 iframe with a slash is no player page", "/T/iframe/", byToken("iframe/", ""), KindOther},

	// The absolute form decides as the other does; which hosts are served is
	// Caddy's to say.
	{"P14 absolute form", "http://media.example.net/T/x.ts", byToken("x.ts", ""), KindSegment},
	{"P14 absolute form of another host", "http://evil.example/T/x.ts", byToken("x.ts", ""), KindSegment},
	{"P14 absolute form of another scheme", "file:///T/x.ts", byToken("x.ts", ""), KindSegment},
	{"P14 absolute form with userinfo", "http://u:p@media.example.net/T", byToken("iframe", ""), KindIframe},
}

func byToken(escaped, decoded string) Target {
	t := byID("", escaped, decoded)
	t.Token = "T"
	return t
}

func byID(id, escaped, decoded string) Target {
	if decoded == "" {
		decoded = escaped
	}
	return Target{VideoID: id, Suffix: Suffix{escaped, decoded}}
}

func TestGoodPaths(t *testing.T) {
	t.Parallel()
	for _, tc := range goodPaths {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseTarget(t, withToken(tc.target))
			if err != nil {
				t.Fatalf("parsePath(%q) = %v", tc.target, err)
			}
			got.Token = withoutToken(got.Token)
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(Target{}, Suffix{})); diff != "" {
				t.Errorf("parsePath(%q) (-want +got):\n%s", tc.target, diff)
			}
			if k := kindOf(got.Suffix.Decoded); k != tc.kind {
				t.Errorf("kindOf(%q) = %q, want %q", got.Suffix.Decoded, k, tc.kind)
			}
		})
	}
}

// A suffix may encode any byte that is harmless, and no other.
func TestPercentEncodingOfEachByte(t *testing.T) {
	t.Parallel()
	for b := range 256 {
		c := byte(b)
		encoded := "/vidA/x%" + string("0123456789ABCDEF"[c>>4]) + string("0123456789abcdef"[c&15]) + "y"
		harmless := c >= 0x20 && c < 0x7f && !strings.ContainsRune(`/\.;%?#:`, rune(c))
		got, err := parseTarget(t, encoded)
		if (err == nil) != harmless {
			t.Errorf("parsePath(%q) = %v, want accepted = %t", encoded, err, harmless)
		}
		if want := "x" + string(rune(c)) + "y"; err == nil && got.Suffix.Decoded != want {
			t.Errorf("parsePath(%q) decoded to %q, want %q", encoded, got.Suffix.Decoded, want)
		}
	}
}

func TestKinds(t *testing.T) {
	t.Parallel()
	for want, suffixes := range map[Kind][]string{
		KindIframe:    {"iframe"},
		KindManifest:  {"manifest/video.m3u8", "manifest/video.mpd", "thumbnails/list.m3u8"},
		KindSegment:   {"a/b/c.ts", "init.mp4", "1.m4s", "1.M4S", "subtitles/en.vtt", "secret.key"},
		KindThumbnail: {"thumbnails/1.jpg"},
		KindOther: {
			"thumbnails", "x/thumbnails/1.jpg", "Thumbnails/1.jpg", "m3u8", "video.m3u8/x", "x.ts.gz", "x.", "x/iframe",
			"metadata/playlist.json", "folder.with.dots/name",
		},
	} {
		for _, suffix := range suffixes {
			if got := kindOf(suffix); got != want {
				t.Errorf("kindOf(%q) = %q, want %q", suffix, got, want)
			}
		}
	}
}

func TestOriginPathTemplates(t *testing.T) {
	t.Parallel()
	for template, want := range map[string]string{
		"/{video}": "/demo", "/{video}/": "/demo", "/media/{video}/hls": "/media/demo/hls", "/a/{video}/b/{video}": "/a/demo/b/demo",
		"/video-{video}.d": "/video-demo.d", "/my!$&'()*+,=:@~/{video}": "/my!$&'()*+,=:@~/demo",
		"/my videos/{video}": "/my%20videos/demo", "/my%20videos/{video}": "/my%20videos/demo", "/vidéos/{video}": "/vid%C3%A9os/demo", "/vid%c3%A9os/{video}": "/vid%C3%A9os/demo",
		"/映画/{video}/v 1": "/%E6%98%A0%E7%94%BB/demo/v%201", "/%6dedia/{video}": "/media/demo", "/[a]/{video}": "/%5Ba%5D/demo", "/%27a%27/{video}": "/'a'/demo",
		"/C%23 course/{video}": "/C%23%20course/demo", "/50%25 off/{video}": "/50%25%20off/demo", "/a%3Bb%3F/{video}": "/a%3Bb%3F/demo", `/"a" {video}`: "/%22a%22%20demo",
	} {
		p, err := ParseOriginPath(template)
		if got := p.Folder("demo"); err != nil || got != want {
			t.Errorf("parseOriginPath(%q) has the folder %q, %v, want %q", template, got, err, want)
		}
	}
}

// A template that does not lead each video to a folder of its own would open
// one video with the token of another.
func TestOriginPathTemplatesThatAreRefused(t *testing.T) {
	t.Parallel()
	for want, templates := range map[string][]string{
		"does not contain {video}":    {"/media", "/", "", "/{vidéo}", "/{VIDEO}"},
		"names a manifest":            {"/live/{video}.m3u8", "/{video}/index.m3u8", "/live/{video}.MPD/"},
		"does not start with a slash": {"media/{video}", "{video}", "http://origin/{video}"},
		"write %25":                   {"/50% off/{video}", "/a%/{video}", "/a%2/{video}", "/a%zz/{video}", "/a%2Fb/{video}", "/%{video}20"},
		errName.Error():               {"/{video}.", "/a./{video}", "/a~1/{video}", "/a%2e/{video}", "/a /{video}", "/vide\u0301os/{video}", "/a\u200bb/{video}"},
		errSegment.Error():            {"/a/../{video}", "/{video}/..", "/./{video}", "/a//{video}", "/{video}//", "//{video}", "/%2e%2E/{video}"},
		"write %3F":                   {"/{video}?x", "/{video}#x", "/{video};x", "/C# course/{video}"},
		"not UTF-8":                   {`/a\{video}`, "/a%5Cb/{video}", "/a\n/{video}", "/a%00/{video}", "/vid\xe9os/{video}", "/vid%E9os/{video}"},
	} {
		for _, template := range templates {
			if _, err := ParseOriginPath(template); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("parseOriginPath(%q) = %v, want an error with %q", template, err, want)
			}
		}
	}
}

// A glob that guards downloads must not be got round by another spelling.
func TestDownloadGlobs(t *testing.T) {
	t.Parallel()
	for glob, tc := range map[string]struct{ matches, others []string }{
		"downloads/*": {
			[]string{"downloads/default.mp4", "downloads/", "downloads/a/b/c", "Downloads/DEFAULT.MP4"},
			[]string{"downloads", "xdownloads/a", "x/downloads/a"},
		},
		"/downloads/*":      {[]string{"downloads/a"}, nil},
		"DOWNLOADS/*":       {[]string{"downloads/a"}, nil},
		"*":                 {[]string{"anything/at/all"}, nil},
		"*.mp4":             {[]string{"video/init.mp4", "video/init.MP4"}, []string{"video/init.mp4s"}},
		"*/original.*":      {[]string{"a/b/original.mov"}, []string{"original.mov"}},
		"a*b*c":             {[]string{"aXbXbXc"}, []string{"aXbXbX"}},
		"a**c":              {[]string{"abc"}, nil},
		"exact":             {[]string{"exact"}, []string{"exact/"}},
		"été/*":             {[]string{"ÉTÉ/x"}, nil},
		"e\u0301te\u0301/*": {[]string{"été/x"}, nil},
		"masks/strasse/*":   {[]string{"maſKſ/straße/x", "ｍａｓｋｓ/STRASSE/x"}, nil},
		"clips/*":           {[]string{"clıps/x"}, nil},
		"my clip.mp4":       {[]string{"my clip.mp4"}, nil},
	} {
		parsed, err := ParseGlob(glob)
		if err != nil {
			t.Errorf("parsePathGlob(%q) = %v", glob, err)
		}
		for _, suffix := range slices.Concat(tc.matches, tc.others) {
			if got, want := (Globs{parsed}).match(suffix), slices.Contains(tc.matches, suffix); got != want {
				t.Errorf("%q matches %q = %t, want %t", glob, suffix, got, want)
			}
		}
	}
}

func TestDownloadGlobsThatAreRefused(t *testing.T) {
	t.Parallel()
	for _, glob := range []string{"", "/", "a%20b", "clips/?.mp4", `a\b`, "a;b", "a\x00b", "a\xffb", "a/../b", "./a", "a//b", "//a", "a:b", "a./b"} {
		if _, err := ParseGlob(glob); err == nil {
			t.Errorf("parsePathGlob(%q) = nil, want an error", glob)
		}
	}
}

// The glob's matcher against one that tries everything.
func TestGlobMatchAgainstTheObvious(t *testing.T) {
	t.Parallel()
	var obvious func(pattern, s string) bool
	obvious = func(pattern, s string) bool {
		switch {
		case pattern == "":
			return s == ""
		case pattern[0] == '*':
			return obvious(pattern[1:], s) || s != "" && obvious(pattern, s[1:])
		}
		return s != "" && s[0] == pattern[0] && obvious(pattern[1:], s[1:])
	}
	for _, pattern := range wordsOf("ab*", 5) {
		for _, s := range wordsOf("ab", 5) {
			if got, want := globMatch(pattern, s), obvious(pattern, s); got != want {
				t.Fatalf("globMatch(%q, %q) = %t, want %t", pattern, s, got, want)
			}
		}
	}
}

// wordsOf returns all words over an alphabet of at most the given length.
func wordsOf(alphabet string, length int) []string {
	words := []string{""}
	for from := 0; length > 0; length-- {
		to := len(words)
		for _, word := range words[from:to] {
			for _, letter := range alphabet {
				words = append(words, word+string(letter))
			}
		}
		from = to
	}
	return words
}

// FuzzPath holds what the gate owes its origin: whatever path it accepts, the
// origin is asked for something below the folder of the video that the token
// or the id names, under exactly the suffix that the viewer wrote.
func FuzzPath(f *testing.F) {
	for _, tc := range hostilePaths {
		for _, requestTarget := range tc.targets {
			f.Add(strings.ReplaceAll(requestTarget, "T", "aa.bb.cc"), "demo")
		}
	}
	for _, tc := range goodPaths {
		f.Add(strings.ReplaceAll(tc.target, "T", "aa.bb.cc"), "demo")
	}
	f.Add("/aa.bb.cc/%E2%80%AE%20/x?y", "-")
	f.Add("/aa.bb.cc/x?", strings.Repeat("_", 64))

	var templates []OriginPath
	for _, template := range []string{"/{video}", "/media/{video}/hls/", "/a{video}b/{video}", "/...{video}", "/my vidéos/{video}"} {
		templates = append(templates, must(ParseOriginPath(template)))
	}
	f.Fuzz(func(t *testing.T, requestTarget, sub string) {
		u, err := url.ParseRequestURI(requestTarget)
		if err != nil || !token.ValidVideoID(sub) {
			return
		}
		parsed, err := Rules{}.Parse(u)
		if err != nil {
			if parsed != (Target{}) {
				t.Fatalf("parsePath(%q) returned %+v with an error", requestTarget, parsed)
			}
			return
		}
		if (parsed.Token == "") == (parsed.VideoID == "") {
			t.Fatalf("parsePath(%q) = %+v: want either a token or a video id", requestTarget, parsed)
		}
		video := sub
		if parsed.VideoID != "" {
			video = parsed.VideoID
		}
		if !token.ValidVideoID(video) {
			t.Fatalf("parsePath(%q) accepted the video id %q", requestTarget, video)
		}
		for _, template := range templates {
			escaped, decoded := template.File(video, parsed.Suffix)
			checkOriginURL(t, &url.URL{Path: decoded, RawPath: escaped}, template.Folder(video), requestTarget)
		}
	})
}

// checkOriginURL holds that a URL lies below a folder, and that no reader of it can think
// otherwise.
func checkOriginURL(t *testing.T, u *url.URL, folder, requestTarget string) {
	t.Helper()
	decoded, escaped := u.Path, u.EscapedPath()
	unescaped, _ := url.PathUnescape(folder)
	if !strings.HasPrefix(decoded, unescaped+"/") || !strings.HasPrefix(escaped, folder+"/") {
		t.Fatalf("%q became %q (%q): want it below %q", requestTarget, decoded, escaped, folder)
	}
	if cleaned := path.Clean(decoded); !strings.HasPrefix(cleaned, unescaped+"/") {
		t.Fatalf("%q became %q, cleaned %q: want it below %q", requestTarget, decoded, cleaned, folder)
	}
	if once, err := url.PathUnescape(escaped); err != nil || once != decoded {
		t.Fatalf("%q became %q, decoded once %q (%v): want %q", requestTarget, escaped, once, err, decoded)
	}
	for _, form := range []string{decoded, escaped} {
		segments := strings.Split(form[1:], "/")
		for i, segment := range segments {
			if segment == "." || segment == ".." || segment == "" && i < len(segments)-1 {
				t.Fatalf("%q became %q, with the segment %q", requestTarget, form, segment)
			}
		}
		if !utf8.ValidString(form) || strings.ContainsAny(form, `;\?#`) || strings.ContainsFunc(form, unicode.IsControl) {
			t.Fatalf("%q became %q, with a character that paths have no business with", requestTarget, form)
		}
	}
	if strings.Contains(decoded, "%") {
		t.Fatalf("%q became %q, which can be decoded again", requestTarget, decoded)
	}
	if want := folder + "/" + suffixOf(requestTarget); escaped != want {
		t.Fatalf("%q became %q, want %q", requestTarget, escaped, want)
	}
}

// suffixOf cuts the suffix out of the bytes of a request target.
func suffixOf(requestTarget string) string {
	rest, _, _ := strings.Cut(requestTarget, "?")
	if !strings.HasPrefix(rest, "/") { // the absolute form
		_, rest, _ = strings.Cut(rest, ":")
		if authority, ok := strings.CutPrefix(rest, "//"); ok {
			_, rest, _ = strings.Cut(authority, "/")
			rest = "/" + rest
		}
	}
	_, suffix, _ := strings.Cut(rest[1:], "/")
	if suffix == "" {
		return "iframe"
	}
	return strings.NewReplacer("[", "%5B", "]", "%5D").Replace(suffix)
}

// For each letter: an accepted name has one form on file systems that ignore how
// letters are composed, and a glob guards it in all its cases.
func TestEachLetterHasOneName(t *testing.T) {
	t.Parallel()
	refused := 0
	for r := rune(0x80); r <= unicode.MaxRune; r++ {
		if !unicode.IsPrint(r) {
			continue
		}
		name := "x" + string(r)
		if checkNames(name) != nil {
			refused++
			continue
		}
		if composed := norm.NFC.String(norm.NFD.String(name)); composed != name {
			t.Errorf("%q (%U) is %q elsewhere", name, r, composed)
		}
		glob := Globs{must(ParseGlob(name))}
		for other := unicode.SimpleFold(r); other != r; other = unicode.SimpleFold(other) {
			if !glob.match("x" + string(other)) {
				t.Errorf("the glob %q does not guard %q (%U)", name, "x"+string(other), other)
			}
		}
	}
	if refused < 1000 || refused > 20_000 {
		t.Errorf("%d letters are refused", refused)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}
