package manifest_test

import (
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// mapCases are URIs in <folder>manifest/video.m3u8. An empty want means that the
// URI stays as it is.
var mapCases = []struct {
	name, uri, want string
	outside         bool // not in the folder: must be untouched
}{
	{name: "M1 relative", uri: "seg1.mp4"},
	{name: "M1 relative to the folder above", uri: "../video/seg1.mp4"},
	{name: "M1 relative to the folder itself", uri: ".."},
	{name: "M1 empty", uri: ""},
	{name: "M1 query", uri: "?x=/../../.."},
	{name: "M1 fragment", uri: "#../../.."},
	{name: "M1 root-relative", uri: "/library/vidA/v1/video/seg1.mp4?a=/../%20#b", want: "../video/seg1.mp4?a=/../%20#b"},
	{name: "M1 scheme-relative", uri: "//origin.example/library/vidA/v1/manifest/a.m3u8", want: "a.m3u8"},
	{name: "M1 absolute", uri: "https://origin.example/library/vidA/v1/video/seg1.mp4", want: "../video/seg1.mp4"},
	{name: "M1 absolute, shouted", uri: "HTTPS://Origin.Example/library/vidA/v1/x", want: "../x"},
	{name: "M1 absolute, default port", uri: "https://origin.example:443/library/vidA/v1/x", want: "../x"},
	{name: "M1 absolute, http and its port", uri: "http://origin.example:80/library/vidA/v1/x", want: "../x"},
	{name: "M1 absolute, empty port", uri: "https://origin.example:/library/vidA/v1/x", want: "../x"},
	{name: "M1 absolute, listed port", uri: "https://origin.example:8443/library/vidA/v1/x", want: "../x"},
	{name: "M1 absolute, other port", uri: "https://origin.example:80/library/vidA/v1/x", outside: true},
	{name: "M1 climbs and comes back by name", uri: "../../v1/video/seg1.mp4", want: "../video/seg1.mp4"},
	{name: "M1 climbs beyond the root and comes back", uri: "../../../../../../library/vidA/v1/x", want: "../x"},
	{name: "M1 climbs to another video", uri: "../../v2/video", outside: true},
	{name: "M1 climbs to a folder that begins alike", uri: "../../v10/x", outside: true},
	{name: "M1 folder without its slash", uri: "/library/vidA/v1", outside: true},
	{name: "M1 folder", uri: "/library/vidA/v1/", want: "../"},
	{name: "M1 own directory", uri: "/library/vidA/v1/manifest/", want: "./"},
	{name: "M1 other video", uri: "https://origin.example/library/vidB/v1/x", outside: true},
	{name: "M1 into the folder and out", uri: "/library/vidA/v1/../v2/x", outside: true},
	{name: "M1 other host", uri: "https://evil.example/library/vidA/v1/x", outside: true},
	{name: "M1 other host that begins alike", uri: "https://origin.example.evil.example/library/vidA/v1/x", outside: true},
	{name: "M1 other host, scheme-relative", uri: "//evil.example/library/vidA/v1/x", outside: true},
	{name: "M1 metadata service", uri: "http://169.254.169.254/library/vidA/v1/", outside: true},
	{name: "M1 file", uri: "file:///library/vidA/v1/x", outside: true},
	{name: "M1 data", uri: "data:text/plain,/library/vidA/v1/x", outside: true},
	{name: "M1 javascript", uri: "javascript:alert(1)", outside: true},
	{name: "M1 key of a DRM system", uri: "skd://origin.example/library/vidA/v1/x", outside: true},
	{name: "M1 name", uri: "urn:uuid:1", outside: true},
	{name: "M1 other scheme, shouted", uri: "FTP://origin.example/library/vidA/v1/x", outside: true},

	{name: "userinfo names another host to some", uri: "https://origin.example@evil.example/library/vidA/v1/x", outside: true},
	{name: "userinfo before the origin", uri: "https://evil.example@origin.example/library/vidA/v1/x", outside: true},
	{name: "backslash ends the host for browsers only", uri: `https://evil.example\@origin.example/library/vidA/v1/x`, outside: true},
	{name: "backslash ends the origin's name", uri: `https://origin.example\@evil.example/library/vidA/v1/x`, outside: true},
	{name: "encoded host", uri: "https://origin%2eexample/library/vidA/v1/x", outside: true},
	{name: "trailing dot", uri: "https://origin.example./library/vidA/v1/x", outside: true},
	{name: "no slashes", uri: "https:/library/vidA/v1/x", outside: true},
	{name: "three slashes", uri: "https:///origin.example/library/vidA/v1/x", outside: true},
	{name: "backslashes name a host", uri: `\\evil.example/library/vidA/v1/x`, outside: true},
	{name: "slash and backslash name a host", uri: `/\evil.example/library/vidA/v1/x`, outside: true},
	{name: "tab between the slashes of a host", uri: "/\t/evil.example/library/vidA/v1/x", outside: true},
	{name: "tab within the scheme", uri: "java\tscript:alert(1)", outside: true},
	{name: "white space before a host", uri: " \x01//evil.example/", outside: true},

	{name: "backslashes downwards", uri: `video\seg1.mp4`},
	{name: "backslashes upwards", uri: `..\..\vidB\x`, outside: true},
	{name: "backslashes out and in", uri: `..\..\v1\x`, want: "../x"},
	{name: "backslash of the path from the root", uri: `\library\vidA\v1\x`, want: "../x"},
	{name: "encoded dots within", uri: "%2e%2E/video/x"},
	{name: "encoded dots out", uri: "%2e%2E/.%2e/v2/x", outside: true},
	{name: "encoded dots out and in", uri: "%2e%2E/.%2e/v1/%2e/x", want: "../x"},
	{name: "encoded dots only, out", uri: "%2e%2e/%2e%2e/v2/x", outside: true},
	{name: "encoded dots only, out and in", uri: "%2E%2E/%2E%2E/v1/x", want: "../x"},
	{name: "encoded dots after the folder", uri: "/library/vidA/v1/%2e%2e/v2/x", outside: true},
	{name: "encoded slash is no slash", uri: "/library/vidA/v1%2Fx", outside: true},
	{name: "encoded slash in a dot segment", uri: "..%2f..%2f..%2fx"},
	{name: "doubly encoded dots are none", uri: "/library/vidA/v1/%252e%252e/x", want: "../%252e%252e/x"},
	{name: "three dots are none", uri: ".../x"},
	{name: "encoded letter of the folder", uri: "/library/vid%41/v1/x%41", want: "../x%41"},
	{name: "tab within dots, out", uri: ".\t./.\t./v2/x", outside: true},
	{name: "tab within dots, out and in", uri: ".\t./.\t./v1/x", want: "../x"},
	{name: "line break within dots, within", uri: ".\n./x"},
	{name: "white space around", uri: "\n /library/vidA/v1/x ", want: "../x"},

	{name: "colon in the first segment", uri: "/library/vidA/v1/manifest/a:b", want: "./a:b"},
	{name: "colon after the first segment", uri: "/library/vidA/v1/manifest/a/b:c", want: "a/b:c"},
	{name: "colon in the first segment of a relative URI", uri: "./a:b"},
	{name: "colon first", uri: ":a/../b"},
	{name: "relative URI that is a scheme", uri: "a:b", outside: true},
	{name: "empty segment first", uri: "/library/vidA/v1/manifest//evil.example/x", want: ".//evil.example/x"},
	{name: "empty segments first", uri: "/library/vidA/v1/manifest///evil.example/x", want: ".///evil.example/x"},
	{name: "empty segment after the folder", uri: "/library/vidA/v1//evil.example/x", want: "..//evil.example/x"},
	{name: "backslash first", uri: `/library/vidA/v1/manifest/\evil.example/x`, want: ".//evil.example/x"},
	{name: "space first", uri: "/library/vidA/v1/manifest/ /evil.example", want: "./ /evil.example"},
	{name: "empty segments are segments", uri: "a//../../b"},
	{name: "template", uri: "/library/vidA/v1/$RepresentationID$/$Number%05d$.m4s", want: "../$RepresentationID$/$Number%05d$.m4s"},
	{name: "non-ASCII", uri: "/library/vidA/v1/größe%C3", want: "../größe%C3"},
	{name: "lone percent", uri: "/library/vidA/v1/%", want: "../%"},
}

// M1 and M10: a redirect follows the same rules as a manifest.
func TestMap(t *testing.T) {
	t.Parallel()
	for _, tc := range mapCases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			want := tc.want
			if want == "" {
				want = tc.uri
			}
			if got, inside := here.Map(tc.uri); got != want || inside == tc.outside {
				t.Errorf("Map(%q) = %q, %t, want %q", tc.uri, got, inside, want)
			}
		})
	}
}

func TestMapAtOtherLocations(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, path, folder, uri, want string
	}{
		{"root folder", "/a/m.m3u8", "/", "/x", "../x"},
		{"root folder, climbing out of the viewer's", "/m.m3u8", "/", "../x", "x"},
		{"manifest in the folder itself", "/f/m.m3u8", "/f/", "/f/m.m3u8?x", "m.m3u8?x"},
		{"folder as a file of itself", "/f/", "/f/", "/f/", "./"},
		{"deep manifest", "/f/a/b/c/m", "/f/", "/f/a/x/c/m", "../../x/c/m"},
		{"name that a directory begins with", "/f/ab/m", "/f/", "/f/a/m", "../a/m"},
		{"encoded folder", "/f%C3%B6/m", "/f%C3%B6/", "/fö/x", "x"},
		{"encoded folder in lower case", "/f%C3%B6/m", "/f%C3%B6/", "/f%c3%b6/x", "x"},
		{"delimiter that is encoded in the folder only", "/f%3Bx/m", "/f%3Bx/", "/f;x/x", "/f;x/x"},
		{"IPv6", "/f/m", "/f/", "http://[::1]:80/f/x", "x"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			at := manifest.Location{Path: tc.path, Folder: tc.folder, Hosts: []string{"[::1]"}}
			if got, inside := at.Map(tc.uri); got != tc.want || inside != !strings.HasPrefix(tc.want, "/") {
				t.Errorf("Map(%q) = %q, %t, want %q", tc.uri, got, inside, tc.want)
			}
		})
	}
}

// Hosts in the config are compared without their default ports.
func TestHosts(t *testing.T) {
	t.Parallel()
	tests := []struct {
		host, uri string
		own       bool
	}{
		{"a.example:443", "https://a.example/f/x", true},
		{"a.example:443", "//a.example/f/x", true},
		{"a.example:443", "http://a.example/f/x", false},
		{"a.example:80", "http://a.example/f/x", true},
		{"a.example:80", "https://a.example/f/x", false},
		{"a.example:8080", "http://a.example:8080/f/x", true},
		{"a.example:8080", "http://a.example/f/x", false},
		{"a.example", "//a.example:80/f/x", true},
		{"xn--mnchen-3ya.example", "https://münchen.example/f/x", true},
		{"xn--mnchen-3ya.example", "https://MÜNCHEN.EXAMPLE/f/x", true},
		{"xn--mnchen-3ya.example", "//mu\u0308nchen。example:443/f/x", true},
		{"xn--mnchen-3ya.example", "https://XN--mnchen-3ya.example:/f/x", true},
		{"xn--mnchen-3ya.example:8443", "https://münchen.example:8443/f/x", true},
		{"xn--mnchen-3ya.example:8443", "https://münchen.example/f/x", false},
		{"xn--mnchen-3ya.example", "https://m%C3%BCnchen.example/f/x", false},
		{"xn--mnchen-3ya.example", "https://münchen.example@evil.example/f/x", false},
		{"xn--mnchen-3ya.example", "https://münchen.example.evil.example/f/x", false},
		{"xn--fa-hia.example", "https://faß.example/f/x", true},
		{"fass.example", "https://faß.example/f/x", false},
		{"origin.example", "https://ｏrigin.example/f/x", true},
		{"origin.example", "https://оrigin.example/f/x", false}, // the first letter is Cyrillic
		{"origin.example", "https://ori\u200dgin.example/f/x", false},
		{"[::1]:443", "https://[::1]/f/x", true},
		{"[::443]", "https://[::443]/f/x", true},
		{"", "https:///f/x", false},
	}
	for _, tc := range tests {
		at := manifest.Location{Path: "/f/m", Folder: "/f/", Hosts: []string{tc.host}}
		if _, inside := at.Map(tc.uri); inside != tc.own {
			t.Errorf("host %q owns %q: %t, want %t", tc.host, tc.uri, inside, tc.own)
		}
	}
}

// A folder is the same folder in every spelling: raw, as browsers encode it, or as
// packagers do.
func TestFolderInAnySpelling(t *testing.T) {
	t.Parallel()
	at := manifest.Location{
		Path: "/Bob's%20vid%C3%A9os/demo/manifest/video.m3u8", Folder: "/Bob's%20vid%C3%A9os/demo/", Hosts: []string{"origin.example"},
	}
	for _, folder := range []string{
		"/Bob's%20vid%C3%A9os/demo/", "/Bob's vidéos/demo/", "/Bob%27s%20vid%c3%a9os/demo/", "/%42ob's%20vid%C3%A9os/%64emo/", "https://origin.example/Bob's vidéos/demo/",
	} {
		if got, inside := at.Map(folder + "video/1.ts"); got != "../video/1.ts" || !inside {
			t.Errorf("%s: %q, %t", folder, got, inside)
		}
	}
	for _, other := range []string{"/Bob's%2520vid%C3%A9os/demo/x", "/Bobs%20vid%C3%A9os/demo/x", "/Bob's+vid%C3%A9os/demo/x", "/Bob's%20vide%CC%81os/demo/x"} {
		if got, inside := at.Map(other); got != other || inside {
			t.Errorf("another folder, %s: %q, %t", other, got, inside)
		}
	}
}
