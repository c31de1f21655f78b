package signedplayback

import (
	"errors"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// T stands for a valid token in the request targets of the tables.
func withToken(target string) string { return strings.ReplaceAll(target, "T", plainToken()) }

// withoutToken is its inverse, for messages.
func withoutToken(s string) string { return strings.ReplaceAll(s, plainToken(), "T") }

// parseTargetPath parses a request target as Go's server does, then its path.
func parseTargetPath(t testing.TB, requestTarget string) (target, error) {
	t.Helper()
	u, err := url.ParseRequestURI(requestTarget)
	if err != nil {
		t.Fatalf("a server would not read %q: %v", withoutToken(requestTarget), err)
	}
	return parsePath(u)
}

// hostilePaths are the ways to write a path that one program reads as one thing
// and another as another. Each is refused as it is, by the path or, where the
// trick is played inside the first segment, because that is no token.
var hostilePaths = []struct {
	name, target string
	want         error
}{
	// The attack: dot segments, by which a path below the token's video
	// becomes, at an origin that cleans paths, one of another video.
	{"P1 dot segments to another video", "/T/../vidB/manifest/video.m3u8", errPathSegment},
	{"P1 dot segment in the middle", "/T/a/../../vidB/x", errPathSegment},
	{"P1 single dot", "/T/./x", errPathSegment},
	{"P1 single dot at the end", "/T/manifest/.", errPathSegment},
	{"P1 double dot at the end", "/T/manifest/..", errPathSegment},
	{"P1 double dot with a slash at the end", "/T/manifest/../", errPathSegment},
	{"P1 double dot alone", "/T/..", errPathSegment},
	{"P1 single dot instead of the token", "/.", errPathID},
	{"P1 double dot instead of the token", "/..", errPathSegment},
	{"P1 double dot in front of the token", "/../T/x", errPathSegment},
	{"P1 double dot on both sides", "/../T/..", errPathSegment},
	{"P1 double dot behind a video id", "/vidA/../vidB/x", errPathSegment},
	{"P1 single dot in front of the token", "/./T/x", errPathID},

	// The attack: the same with the dots encoded, which only the origin decodes.
	{"P2 encoded dots", "/T/%2e%2e/vidB/x", errPathEscape},
	{"P2 encoded dot, then a dot", "/T/%2E./vidB/x", errPathEscape},
	{"P2 dot, then an encoded dot", "/T/.%2e/vidB/x", errPathEscape},
	{"P2 one encoded dot", "/T/%2e/x", errPathEscape},
	{"P2 encoded dot in a name", "/T/video%2em3u8", errPathEscape},
	{"P2 encoded dots instead of the token", "/%2e%2e/x", errPathID},
	{"P2 half encoded dots instead of the token", "/.%2e/x", errPathID},
	{"P2 encoded dot in the token", "/aa.bb%2Ecc/x", errPathID},

	// The attack: dots that are encoded twice, for an origin that decodes twice.
	{"P3 encoded twice", "/T/%252e%252e/vidB/x", errPathEscape},
	{"P3 encoded twice, digit by digit", "/T/%25%32%65%25%32%65/vidB", errPathEscape},
	{"P3 encoded three times", "/T/%25252e%25252e/vidB", errPathEscape},
	{"P3 encoded percent sign", "/T/100%25", errPathEscape},
	{"P3 encoded percent sign in front of hexadecimal digits", "/T/%2541", errPathEscape},

	// The attack: a slash that one side takes for a part of a name.
	{"P4 encoded slashes around the token's end", "/T%2fmanifest%2fvideo.m3u8", errPathID},
	{"P4 encoded slash behind the token", "/T%2fmanifest", token.ErrMalformed},
	{"P4 encoded slash in front of the token", "/%2fT/x", token.ErrMalformed},
	{"P4 encoded slash as a segment", "/T/%2f", errPathEscape},
	{"P4 encoded slash instead of the token", "/%2f/x", errPathID},
	{"P4 encoded slash in the suffix", "/T/manifest%2Fvideo.m3u8", errPathEscape},
	{"P4 encoded slash behind a video id", "/vidA%2Fx", errPathID},

	// The attack: a backslash, which is a slash to Windows and to browsers.
	{"P5 backslashes", `/T\..\vidB`, errPathByte},
	{"P5 backslash behind the token", `/T\x`, errPathByte},
	{"P5 backslash in the suffix", `/T/a\b`, errPathByte},
	{"P5 encoded backslashes", "/T/%5c..%5cvidB", errPathEscape},
	{"P5 encoded backslash, capitals", "/T/a%5Cb", errPathEscape},

	// The attack: empty segments, which cleaning removes, and which make a
	// redirect's target look like a host.
	{"P6 empty segments everywhere", "//T//manifest/video.m3u8", errPathSegment},
	{"P6 empty segment behind the token", "/T//manifest", errPathSegment},
	{"P6 only slashes behind the token", "/T//", errPathSegment},
	{"P6 empty segment in the suffix", "/T/a//b", errPathSegment},
	{"P6 two slashes at the end", "/T/a//", errPathSegment},
	{"P6 another host", "//evil.example/T", errPathID},
	{"P6 another host behind three slashes", "///evil.example/T", errPathSegment},
	{"P6 no first segment", "/", errPathID},
	{"P6 nothing but slashes", "//", errPathID},

	// The attack: path parameters, which Java servers strip from a segment.
	{"P7 parameter at the token, dots with a parameter", "/T;a=b/manifest/..;/x", errPathByte},
	{"P7 parameter at the token", "/T;a=b/x", token.ErrMalformed},
	{"P7 parameter at a segment", "/T/manifest;x/video.m3u8", errPathByte},
	{"P7 parameter alone", "/T/;", errPathByte},
	{"P7 encoded semicolon", "/T/manifest%3Bx/video.m3u8", errPathEscape},
	{"P7 semicolon in the first segment", "/vidA;/x", errPathID},

	// The attack: bytes that end a string, a line or a header somewhere, and
	// encodings of a dot that lenient decoders accept.
	{"P8 NUL as a segment", "/T/%00/x", errPathEscape},
	{"P8 NUL in a name", "/T/seg%00.ts", errPathEscape},
	{"P8 line break", "/T/seg.ts%0d%0aX:1", errPathEscape},
	{"P8 line feed", "/T/seg%0A.ts", errPathEscape},
	{"P8 tab", "/T/seg%09.ts", errPathEscape},
	{"P8 escape character", "/T/seg%1b.ts", errPathEscape},
	{"P8 DEL", "/T/seg%7f.ts", errPathEscape},
	{"P8 C1 control character", "/T/seg%C2%85.ts", errPathEscape},
	{"P8 invalid UTF-8", "/T/%ff", errPathEscape},
	{"P8 overlong dots", "/T/%c0%ae%c0%ae/x", errPathEscape},
	{"P8 overlong dot of three bytes", "/T/%e0%80%ae/x", errPathEscape},
	{"P8 UTF-16 surrogate", "/T/%ed%a0%80", errPathEscape},
	{"P8 cut UTF-8 sequence", "/T/%c3/%a9", errPathEscape},
	{"P8 raw UTF-8", "/T/é.ts", errPathByte},
	{"P8 raw byte", "/T/\xff", errPathByte},
	{"P8 quotation mark", `/T/"x"`, errPathByte},
	{"P8 angle brackets", "/T/<x>", errPathByte},
	{"P8 square bracket", "/T/[x]", errPathByte},
	{"P8 caret", "/T/x^", errPathByte},
	{"P8 vertical bar", "/T/x|y", errPathByte},
	{"P8 backtick", "/T/x`y", errPathByte},
	{"P8 curly brackets", "/T/{env.SECRET}", errPathByte},

	// The attack: a fragment or a query that one side sees and the other not
	// (CVE-2026-41059 of oauth2-proxy).
	{"P9 fragment at the token", "/T#frag/x", errPathByte},
	{"P9 fragment in the suffix", "/T/x#y", errPathByte},
	{"P9 encoded number sign at the token", "/T%23", token.ErrMalformed},
	{"P9 encoded number sign", "/T/x%23y", errPathEscape},
	{"P9 encoded question mark at the token", "/T%3f/x?y", token.ErrMalformed},
	{"P9 encoded question mark", "/T/x%3Fy", errPathEscape},

	// The attack: a viewer who has the token logged by the origin.
	{"P10 the token in the suffix", "/T/T/seg.ts", errPathToken},
	{"P10 the token within a segment", "/T/a/x-T-y.ts", errPathToken},
	{"P10 the token with an encoded letter in the suffix", "/a.b.c/%61.b.c/seg.ts", errPathToken},

	// The attack: something that is neither token nor id, but near enough for
	// one program to take it for one.
	{"P11 space behind the id", "/vidA%20/x", errPathID},
	{"P11 NUL behind the id", "/vidA%00/x", errPathID},
	{"P11 percent-encoded letter of the id", "/%76idA/x", errPathID},
	{"P11 at sign in the id", "/vid@A/x", errPathID},
	{"P11 colon in the id", "/vid:A/x", errPathID},
	{"P11 tilde in front of the id", "/~vidA/x", errPathID},
	{"P12 token without its signature", "/aaaa.bbbb/x", errPathID},
	{"P12 four segments", "/aaaa.bbbb.cccc.dddd/x", errPathID},
	{"P12 five segments, a JWE", "/a.b.c.d.e/x", errPathID},
	{"P12 nothing but dots", "/.../x", errPathID},
	{"P12 id with a dot", "/video.1/x", errPathID},
	{"P12 id of 65 bytes", "/" + strings.Repeat("a", 65) + "/x", errPathID},
	{"P12 id beyond ASCII", "/vid%C3%A9/x", errPathID},
	{"P12 id with a plus sign", "/vid+A/x", errPathID},
	{"P12 empty token segments", "/a../x", token.ErrMalformed},
	{"P12 id between dots", "/.vidA./x", token.ErrMalformed},
	{"P13 parameter at a manifest", "/T/manifest/video.mpd;", errPathByte},
	{"P13 encoded dot in front of the extension", "/T/manifest/video%2Em3u8", errPathEscape},

	// The attack: request targets that are no path at all.
	{"P15 asterisk", "*", errPathForm},
	{"P16 absolute form without a path", "http://media.example.net", errPathForm},
	{"P16 opaque", "mailto:vidA/x", errPathForm},
}

func TestHostilePathsAreRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range hostilePaths {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseTargetPath(t, withToken(tc.target))
			if err != nil {
				if diff := cmp.Diff(target{}, got, cmp.AllowUnexported(target{}, suffix{})); diff != "" {
					t.Errorf("parsePath(%q) returned a target with an error (-want +got):\n%s", tc.target, diff)
				}
			} else if got.token != "" {
				_, err = token.Parse(got.token)
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("parsePath(%q) = %v, want %v", tc.target, err, tc.want)
			}
		})
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
			if got, err := parsePath(u); err == nil {
				t.Errorf("parsePath(%#v) = %+v, want an error", u, got)
			}
		})
	}
}

// goodPaths are paths that pass, and what they name. Where only a suffix
// stands, the video id is vidA.
var goodPaths = []struct {
	name, target string
	want         target
	kind         kind
}{
	{"manifest", "/T/manifest/video.m3u8", byToken("manifest/video.m3u8", ""), kindManifest},
	{"segment by video id", "/vidA/video/1.m4s", byID("vidA", "video/1.m4s", ""), kindSegment},
	{"token alone", "/T", byToken("iframe", ""), kindIframe},
	{"token and a slash", "/T/", byToken("iframe", ""), kindIframe},
	{"video id alone", "/vidA", byID("vidA", "iframe", ""), kindIframe},
	{"video id and a slash", "/vidA/", byID("vidA", "iframe", ""), kindIframe},
	{"iframe in full", "/T/iframe", byToken("iframe", ""), kindIframe},
	{"a slash at the end", "/T/manifest/", byToken("manifest/", ""), kindOther},
	{"every byte that needs no encoding", "/T/-._~!$&'()*+,=:@", byToken("-._~!$&'()*+,=:@", ""), kindOther},
	{"dots that are no dot segment", "/T/.../..a/a../.a", byToken(".../..a/a../.a", ""), kindOther},
	{"encoded space", "/T/my%20clip.ts", byToken("my%20clip.ts", "my clip.ts"), kindSegment},
	{"encoded UTF-8", "/T/%C3%A9%f0%9f%8e%ac.ts", byToken("%C3%A9%f0%9f%8e%ac.ts", "é🎬.ts"), kindSegment},
	{"encoded letter", "/T/%61%7E.ts", byToken("%61%7E.ts", "a~.ts"), kindSegment},
	{"encoded brackets", "/T/%5B1%5D.ts", byToken("%5B1%5D.ts", "[1].ts"), kindSegment},
	{"a plus sign is a plus sign", "/T/a+b.ts", byToken("a+b.ts", ""), kindSegment},
	{"the query is not the path's", "/T/x.ts?a=../..//;%00#b", byToken("x.ts", ""), kindSegment},
	{"id of 64 bytes", "/" + strings.Repeat("-", 64) + "/x", byID(strings.Repeat("-", 64), "x", ""), kindOther},

	// The identity is the first segment's alone. What follows names something
	// below that video, whatever it looks like.
	{"P10 id behind a token", "/T/vidB/manifest/video.m3u8", byToken("vidB/manifest/video.m3u8", ""), kindManifest},
	{"P10 token behind an id", "/vidB/a.b.c/x.ts", byID("vidB", "a.b.c/x.ts", ""), kindSegment},
	{"P10 two tokens", "/T/a.b.c/x.ts", byToken("a.b.c/x.ts", ""), kindSegment},
	{"P11 an id in capitals is another id", "/VIDA/x", byID("VIDA", "x", ""), kindOther},
	{"P12 a token cut to its header is an id like any other", "/eyJhbGciOiJSUzI1NiIsImtpZCI6ImsxIn0/x", byID("eyJhbGciOiJSUzI1NiIsImtpZCI6ImsxIn0", "x", ""), kindOther},

	// A near miss of a manifest's name must not count as a segment, or one day
	// it leaves the gate as what it is, unrewritten.
	{"P13 manifest with a slash", "/T/manifest/video.m3u8/", byToken("manifest/video.m3u8/", ""), kindOther},
	{"P13 manifest in capitals", "/T/manifest/video.M3U8", byToken("manifest/video.M3U8", ""), kindManifest},
	{"P13 manifest with a dot behind", "/T/manifest/video.m3u8.", byToken("manifest/video.m3u8.", ""), kindOther},
	{"P13 manifest with a space behind", "/T/manifest/video.m3u8%20", byToken("manifest/video.m3u8%20", "manifest/video.m3u8 "), kindOther},
	{"P13 manifest with an encoded letter", "/T/manifest/video.%6D3u8", byToken("manifest/video.%6D3u8", "manifest/video.m3u8"), kindManifest},
	{"P13 manifest with a query", "/T/manifest/video.m3u8?x", byToken("manifest/video.m3u8", ""), kindManifest},
	{"P13 DASH manifest in both cases", "/T/manifest/video.mPd", byToken("manifest/video.mPd", ""), kindManifest},
	{"P13 iframe in capitals is no player page", "/T/Iframe", byToken("Iframe", ""), kindOther},
	{"P13 iframe with a slash is no player page", "/T/iframe/", byToken("iframe/", ""), kindOther},

	// The absolute form decides as the other does; which hosts are served is
	// Caddy's to say.
	{"P14 absolute form", "http://media.example.net/T/x.ts", byToken("x.ts", ""), kindSegment},
	{"P14 absolute form of another host", "http://evil.example/T/x.ts", byToken("x.ts", ""), kindSegment},
	{"P14 absolute form of another scheme", "file:///T/x.ts", byToken("x.ts", ""), kindSegment},
	{"P14 absolute form with userinfo", "http://u:p@media.example.net/T", byToken("iframe", ""), kindIframe},
}

func byToken(escaped, decoded string) target {
	t := byID("", escaped, decoded)
	t.token = "T"
	return t
}

func byID(id, escaped, decoded string) target {
	if decoded == "" {
		decoded = escaped
	}
	return target{videoID: id, suffix: suffix{escaped, decoded}}
}

func TestGoodPaths(t *testing.T) {
	t.Parallel()
	for _, tc := range goodPaths {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseTargetPath(t, withToken(tc.target))
			if err != nil {
				t.Fatalf("parsePath(%q) = %v", tc.target, err)
			}
			got.token = withoutToken(got.token)
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(target{}, suffix{})); diff != "" {
				t.Errorf("parsePath(%q) (-want +got):\n%s", tc.target, diff)
			}
			if k := kindOf(got.suffix.decoded); k != tc.kind {
				t.Errorf("kindOf(%q) = %q, want %q", got.suffix.decoded, k, tc.kind)
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
		harmless := c >= 0x20 && c < 0x7f && !strings.ContainsRune(`/\.;%?#`, rune(c))
		got, err := parseTargetPath(t, encoded)
		if (err == nil) != harmless {
			t.Errorf("parsePath(%q) = %v, want accepted = %t", encoded, err, harmless)
		}
		if want := "x" + string(rune(c)) + "y"; err == nil && got.suffix.decoded != want {
			t.Errorf("parsePath(%q) decoded to %q, want %q", encoded, got.suffix.decoded, want)
		}
	}
}

func TestKinds(t *testing.T) {
	t.Parallel()
	for suffix, want := range map[string]kind{
		"iframe":                 kindIframe,
		"manifest/video.m3u8":    kindManifest,
		"manifest/video.mpd":     kindManifest,
		"a/b/c.ts":               kindSegment,
		"init.mp4":               kindSegment,
		"1.m4s":                  kindSegment,
		"1.M4S":                  kindSegment,
		"subtitles/en.vtt":       kindSegment,
		"secret.key":             kindSegment,
		"thumbnails/1.jpg":       kindThumbnail,
		"thumbnails/list.m3u8":   kindManifest,
		"thumbnails":             kindOther,
		"x/thumbnails/1.jpg":     kindOther,
		"Thumbnails/1.jpg":       kindOther,
		"m3u8":                   kindOther,
		"video.m3u8/x":           kindOther,
		"x.ts.gz":                kindOther,
		"x.":                     kindOther,
		"x/iframe":               kindOther,
		"metadata/playlist.json": kindOther,
		"folder.with.dots/name":  kindOther,
	} {
		if got := kindOf(suffix); got != want {
			t.Errorf("kindOf(%q) = %q, want %q", suffix, got, want)
		}
	}
}

func TestOriginPathTemplates(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ template, want string }{
		{"/{video}", "/demo"},
		{"/{video}/", "/demo"},
		{"/media/{video}/hls", "/media/demo/hls"},
		{"/a/{video}/b/{video}", "/a/demo/b/demo"},
		{"/video-{video}.d", "/video-demo.d"},
		{"/my!$&'()*+,=:@~/{video}", "/my!$&'()*+,=:@~/demo"},
	} {
		t.Run(tc.template, func(t *testing.T) {
			p, err := parseOriginPath(tc.template)
			if err != nil {
				t.Fatalf("parseOriginPath(%q) = %v", tc.template, err)
			}
			if got := p.folder("demo"); got != tc.want {
				t.Errorf("folder = %q, want %q", got, tc.want)
			}
		})
	}
}

// A template that does not lead each video to a folder of its own would open
// one video with the token of another.
func TestOriginPathTemplatesThatAreRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, template, want string }{
		{"no video", "/media", "does not contain {video}"},
		{"nothing", "/", "does not contain {video}"},
		{"empty", "", "does not contain {video}"},
		{"another placeholder", "/{vidéo}", "does not contain {video}"},
		{"capitals", "/{VIDEO}", "does not contain {video}"},
		{"relative", "media/{video}", "does not start with a slash"},
		{"only the video", "{video}", "does not start with a slash"},
		{"dot segments", "/a/../{video}", errPathSegment.Error()},
		{"dot segments behind the video", "/{video}/..", errPathSegment.Error()},
		{"a dot segment", "/./{video}", errPathSegment.Error()},
		{"an empty segment", "/a//{video}", errPathSegment.Error()},
		{"two slashes at the end", "/{video}//", errPathSegment.Error()},
		{"an empty segment in front", "//{video}", errPathSegment.Error()},
		{"percent-encoding", "/a%2e/{video}", "percent sign"},
		{"a query", "/{video}?x", errPathByte.Error()},
		{"a fragment", "/{video}#x", errPathByte.Error()},
		{"a semicolon", "/{video};x", errPathByte.Error()},
		{"a backslash", `/a\{video}`, errPathByte.Error()},
		{"a space", "/a b/{video}", errPathByte.Error()},
		{"a control character", "/a\n/{video}", errPathByte.Error()},
		{"a URL", "http://origin/{video}", "does not start with a slash"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := parseOriginPath(tc.template)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("parseOriginPath(%q) = %v, want an error with %q", tc.template, err, tc.want)
			}
		})
	}
}

// A glob that guards downloads must not be got round by another spelling.
func TestDownloadGlobs(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		glob, suffix string
		want         bool
	}{
		{"downloads/*", "downloads/default.mp4", true},
		{"downloads/*", "downloads/", true},
		{"downloads/*", "downloads/a/b/c", true},
		{"downloads/*", "Downloads/DEFAULT.MP4", true},
		{"downloads/*", "downloads", false},
		{"downloads/*", "xdownloads/a", false},
		{"downloads/*", "x/downloads/a", false},
		{"/downloads/*", "downloads/a", true},
		{"DOWNLOADS/*", "downloads/a", true},
		{"*", "anything/at/all", true},
		{"*.mp4", "video/init.mp4", true},
		{"*.mp4", "video/init.MP4", true},
		{"*.mp4", "video/init.mp4s", false},
		{"*/original.*", "a/b/original.mov", true},
		{"*/original.*", "original.mov", false},
		{"a*b*c", "aXbXbXc", true},
		{"a*b*c", "aXbXbX", false},
		{"a**c", "abc", true},
		{"exact", "exact", true},
		{"exact", "exact/", false},
		{"été/*", "ÉTÉ/x", true},
		{"my clip.mp4", "my clip.mp4", true},
	} {
		t.Run(tc.glob+" "+tc.suffix, func(t *testing.T) {
			glob, err := parsePathGlob(tc.glob)
			if err != nil {
				t.Fatalf("parsePathGlob(%q) = %v", tc.glob, err)
			}
			if got := (pathGlobs{glob}).match(tc.suffix); got != tc.want {
				t.Errorf("%q matches %q = %t, want %t", tc.glob, tc.suffix, got, tc.want)
			}
		})
	}
}

func TestDownloadGlobsThatAreRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, glob, want string }{
		{"empty", "", "empty"},
		{"only a slash", "/", "empty"},
		{"percent-encoding", "a%20b", `"a%20b"`},
		{"a question mark, which is no wildcard", "clips/?.mp4", `"clips/?.mp4"`},
		{"a backslash", `a\b`, `"a\\b"`},
		{"a semicolon", "a;b", `"a;b"`},
		{"a control character", "a\x00b", `"a\x00b"`},
		{"invalid UTF-8", "a\xffb", `"a\xffb"`},
		{"dot segments", "a/../b", `"a/../b"`},
		{"a dot segment", "./a", `"./a"`},
		{"an empty segment", "a//b", `"a//b"`},
		{"two slashes in front", "//a", `"/a"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := parsePathGlob(tc.glob)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("parsePathGlob(%q) = %v, want an error with %s", tc.glob, err, tc.want)
			}
		})
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
		f.Add(strings.ReplaceAll(tc.target, "T", "aa.bb.cc"), "demo")
	}
	for _, tc := range goodPaths {
		f.Add(strings.ReplaceAll(tc.target, "T", "aa.bb.cc"), "demo")
	}
	f.Add("/aa.bb.cc/%E2%80%AE%20/x?y", "-")
	f.Add("/aa.bb.cc/x?", strings.Repeat("_", 64))

	var templates []originPath
	for _, template := range []string{"/{video}", "/media/{video}/hls/", "/a{video}b/{video}", "/...{video}..."} {
		templates = append(templates, must(parseOriginPath(template)))
	}
	f.Fuzz(func(t *testing.T, requestTarget, sub string) {
		u, err := url.ParseRequestURI(requestTarget)
		if err != nil || !token.ValidVideoID(sub) {
			return
		}
		parsed, err := parsePath(u)
		if err != nil {
			if parsed != (target{}) {
				t.Fatalf("parsePath(%q) returned %+v with an error", requestTarget, parsed)
			}
			return
		}
		if (parsed.token == "") == (parsed.videoID == "") {
			t.Fatalf("parsePath(%q) = %+v: want either a token or a video id", requestTarget, parsed)
		}
		video := sub
		if parsed.videoID != "" {
			video = parsed.videoID
		}
		if !token.ValidVideoID(video) {
			t.Fatalf("parsePath(%q) accepted the video id %q", requestTarget, video)
		}
		for _, template := range templates {
			viewers := *u
			r := &http.Request{URL: &viewers, RequestURI: requestTarget}
			(&Gate{originPath: template}).setOriginPath(r, &decision{target: parsed, video: video})
			checkOriginURL(t, r, template.folder(video), requestTarget)
		}
	})
}

// checkOriginURL holds that the URL of a request lies below a folder, and that
// no reader of it can think otherwise.
func checkOriginURL(t *testing.T, r *http.Request, folder, requestTarget string) {
	t.Helper()
	decoded, escaped := r.URL.Path, r.URL.EscapedPath()
	if !strings.HasPrefix(decoded, folder+"/") || !strings.HasPrefix(escaped, folder+"/") {
		t.Fatalf("%q became %q (%q): want it below %q", requestTarget, decoded, escaped, folder)
	}
	if cleaned := path.Clean(decoded); !strings.HasPrefix(cleaned, folder+"/") {
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
	if r.URL.User != nil {
		t.Fatalf("%q: the userinfo goes to the origin", requestTarget)
	}
	if got, _, _ := strings.Cut(r.RequestURI, "?"); got != escaped {
		t.Fatalf("%q: RequestURI is %q, want the path %q", requestTarget, r.RequestURI, escaped)
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
	return suffix
}
