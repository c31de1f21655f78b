package manifest_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// allowed lets all features stay, in the tests of URIs.
const allowed = manifest.Steering | manifest.Reporting

var update = flag.Bool("update", false, "write the golden files of testdata again")

// here is the location of the manifests in the tests.
var here = manifest.Location{
	Path:   "/library/vidA/v1/manifest/video.m3u8",
	Folder: "/library/vidA/v1/",
	Hosts:  []string{"origin.example", "origin.example:8443"},
}

// cloudflare is a folder directly below the root, as on Cloudflare Stream.
var cloudflare = manifest.Location{
	Path:   "/ea95132c15732412d22c1476fa83f27a/manifest/video.mpd",
	Folder: "/ea95132c15732412d22c1476fa83f27a/",
}

// TestGolden compares whole manifests. <name> is the input, <name>.golden the
// output.
func TestGolden(t *testing.T) {
	t.Parallel()
	tests := []struct {
		file  string
		at    manifest.Location
		query string
		want  manifest.Stats
	}{
		{file: "tags.m3u8", at: here, want: manifest.Stats{Rewritten: 57, Left: 37, Outside: 17}},
		{file: "master.m3u8", at: here, want: manifest.Stats{Rewritten: 9, Left: 4}},
		{file: "media.m3u8", at: here, want: manifest.Stats{Rewritten: 5, Left: 4}},
		{file: "lowlatency.m3u8", at: here, want: manifest.Stats{Rewritten: 9, Left: 8}},
		{file: "delta.m3u8", at: here, want: manifest.Stats{Rewritten: 3, Left: 3}},
		{file: "define.m3u8", at: here, query: "session=abc-123&x=1", want: manifest.Stats{Rewritten: 2, Left: 5, Outside: 1}},
		{file: "cloudflare.m3u8", at: cloudflare, want: manifest.Stats{Rewritten: 4, Left: 1}},
		{file: "relative.m3u8", at: here, want: manifest.Stats{Left: 7}},
		{file: "tags.mpd", at: here, want: manifest.Stats{Rewritten: 63, Left: 46, Outside: 21}},
		{file: "template.mpd", at: here, want: manifest.Stats{Rewritten: 2, Left: 2}},
		{file: "list.mpd", at: here, want: manifest.Stats{Rewritten: 3, Left: 2}},
		{file: "nested.mpd", at: here, want: manifest.Stats{Rewritten: 1, Left: 10}},
		{file: "dynamic.mpd", at: here, want: manifest.Stats{Rewritten: 5, Left: 3, Outside: 2}},
		{file: "periods.mpd", at: here, want: manifest.Stats{Rewritten: 2, Left: 5, Outside: 3}},
		{file: "hostroot.mpd", at: here, want: manifest.Stats{Rewritten: 6, Left: 1}},
		{file: "cloudflare.mpd", at: cloudflare, want: manifest.Stats{Rewritten: 2}},
		{file: "patch.mpd", at: here, want: manifest.Stats{Rewritten: 6, Left: 1}},
	}
	for _, tc := range tests {
		t.Run(tc.file, func(t *testing.T) {
			t.Parallel()
			in := readFile(t, tc.file)
			got, stats, err := manifest.Rewrite(nil, in, formatOf(in), tc.at, tc.query, allowed)
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(filepath.Join("testdata", tc.file+".golden"), got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(readFile(t, tc.file+".golden")), string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.want, stats); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
		})
	}
}

func readFile(tb testing.TB, name string) []byte {
	tb.Helper()
	body, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	return body
}

func TestSniff(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, body string
		want       manifest.Format
	}{
		{"playlist", "#EXTM3U\n", manifest.HLS},
		{"M1 playlist with a byte order mark", "\ufeff#EXTM3U\r\n", manifest.HLS},
		{"M10 playlist cut short", "#EXTM3U", manifest.HLS},
		{"other comment", "#EXTINF:6,\n", 0},
		{"not at the start", "\n#EXTM3U\n", 0},
		{"MPD", "<MPD/>", manifest.DASH},
		{"MPD with everything that may come before", "\ufeff<?xml version=\"1.0\"?>\n<!-- <html> -->\n<?x y?>\r\n\t<MPD xmlns=\"a\">", manifest.DASH},
		{"M7 MPD after a document type", "<!DOCTYPE MPD [<!ENTITY a \"]>\"><!ENTITY b 'c'>]><MPD>", manifest.DASH},
		{"M7 MPD after a document type with a quote", "<!DOCTYPE html SYSTEM '>'><MPD>", manifest.DASH},
		{"MPD after byte order marks and an escape sequence of ISO-2022-JP", "\ufeff\n\ufeff\x1b(B<MPD>", manifest.DASH},
		{"MPD with an escape sequence in its name", "<M\x1b(BPD>", manifest.DASH},
		{"comment that ends in a Japanese character", "<!-- \x1b$B-->\x1b(B --><MPD>", manifest.DASH},
		{"MPD in UTF-16", inUTF16(binary.LittleEndian, "\ufeff<?xml version='1.0' encoding='UTF-16'?>\n<MPD>"), manifest.DASH},
		{"MPD in UTF-16 of the other order without a mark", inUTF16(binary.BigEndian, " <!-- \u2d2d> --><MPD>"), manifest.DASH},
		{"remote element", "<?xml version='1.0'?><x:Period>", manifest.DASH},
		{"remote events", "<EventStream/>", manifest.DASH},
		{"SVG", "<?xml version='1.0'?><!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' 'x'><svg/>", 0},
		{"SVG with entities", "<!DOCTYPE svg [<!ENTITY a 'b'>]><svg/>", 0},
		{"SVG in UTF-16", inUTF16(binary.LittleEndian, "\ufeff<svg/>"), 0},
		{"TTML", "<tt:tt>", 0},
		{"M7 prefixed MPD", "<dash:MPD xmlns:dash='a'>", manifest.DASH},
		{"patch", "<Patch mpdId=\"1\">", manifest.DASH},
		{"longer name", "<MPDX>", 0},
		{"M10 HTML", "<!doctype html><html><body>MPD</body></html>", 0},
		{"MP4", "\x00\x00\x00\x18ftypmp42", 0},
		{"comment without end", "<!-- <MPD>", 0},
		{"empty", "", 0},
		{"only white space", " \n", 0},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := formatOf(tc.body); got != tc.want {
				t.Errorf("Sniff(%q) = %d, want %d", tc.body, got, tc.want)
			}
		})
	}
	for _, name := range []string{ // every element that can be remote
		"Period", "AdaptationSet", "EmptyAdaptationSet", "Representation", "Preselection", "SegmentBase", "SegmentList", "SegmentTemplate",
		"EventStream", "InitializationSet", "InitializationGroup", "InitializationPresentation", "ServiceDescription",
	} {
		if got := formatOf("\ufeff<!-- --><x:" + name + " xmlns:x='urn:x'/>"); got != manifest.DASH {
			t.Errorf("Sniff of %s = %d, want %d", name, got, manifest.DASH)
		}
	}
}

func formatOf[Text ~string | ~[]byte](body Text) manifest.Format {
	f, _ := manifest.Sniff([]byte(body))
	return f
}

func inUTF16(order binary.ByteOrder, text string) string {
	var encoded []byte
	for _, unit := range utf16.Encode([]rune(text)) {
		encoded = append(encoded, 0, 0)
		order.PutUint16(encoded[len(encoded)-2:], unit)
	}
	return string(encoded)
}

// Every beginning of a manifest with an invented prolog asks for more bytes, until the
// name of its root element is there. Other documents are decided at the same place,
// and binary bodies at their first byte.
func TestUndecided(t *testing.T) {
	for range 50 {
		name := "e" + rand.Text()
		prolog := fmt.Sprintf("\ufeff<?xml version=\"1.0\"?>\r\n<!-- %[1]s <a> --><?%[1]s a='b'?>\t<!DOCTYPE %[1]s SYSTEM \"%[1]s>\"> <!---->", name)
		for _, root := range []string{"MPD", name + ":MPD", "Patch", "Period", name, "html"} {
			doc := prolog + "<" + root
			for i := 3; i <= len(doc); i++ {
				if _, undecided := manifest.Sniff([]byte(doc[:i])); !undecided {
					t.Fatalf("%q is decided", doc[:i])
				}
			}
			f, undecided := manifest.Sniff([]byte(doc + " "))
			if undecided || (f == manifest.DASH) != (root != name && root != "html") {
				t.Errorf("%q is undecided or %d", doc, f)
			}
		}
	}
	for _, prefix := range []string{"G@", "\x00\x00\x00\x18ftyp", "ID3", "\xff\xf1P", "\x1aE\xdf\xa3", "\xff\xd8\xff", "WEBVTT", "\x89PNG"} {
		body := []byte(prefix)
		_, undecided := manifest.Sniff(body)
		if undecided || testing.AllocsPerRun(10, func() { manifest.Sniff(body) }) > 0 {
			t.Errorf("%q is undecided, or allocates", body)
		}
	}
}

// A caller that ignores an error must not send half a manifest.
func TestErrorReturnsDst(t *testing.T) {
	t.Parallel()
	dst := append(make([]byte, 0, 4096), "before"...)
	for _, body := range []string{"", "#EXTM3U\n/library/vidA/v1/1.ts\n#EXT-X-KEY:URI=\"", "<MPD><BaseURL>/library/vidA/v1/</BaseURL>"} {
		f := formatOf(body)
		if f == 0 {
			f = manifest.HLS
		}
		got, stats, err := manifest.Rewrite(dst, []byte(body), f, here, "", allowed)
		if !errors.Is(err, manifest.ErrInvalid) || string(got) != "before" || stats != (manifest.Stats{}) {
			t.Errorf("Rewrite(%q) = %q, %v, %v", body, got, stats, err)
		}
	}
	got, _, err := manifest.Rewrite(dst, []byte("#EXTM3U\n/library/vidA/v1/1.ts\n"), manifest.HLS, here, "", allowed)
	if want := "before#EXTM3U\n../1.ts\n"; string(got) != want || err != nil {
		t.Errorf("Rewrite = %q, %v, want %q", got, err, want)
	}
}

// M8: a manifest that is too large is refused before it is read.
func TestSizeIsBounded(t *testing.T) {
	t.Parallel()
	body := append([]byte("#EXTM3U\n#"), bytes.Repeat([]byte("x"), manifest.MaxSize)...)
	if _, _, err := manifest.Rewrite(nil, body, manifest.HLS, here, "", allowed); !errors.Is(err, manifest.ErrInvalid) {
		t.Errorf("%d bytes: %v, want ErrInvalid", len(body), err)
	}
	if _, _, err := manifest.Rewrite(nil, body[:manifest.MaxSize], manifest.HLS, here, "", allowed); err != nil {
		t.Errorf("%d bytes: %v", manifest.MaxSize, err)
	}
}

// An invalid location is a mistake of the caller, so the error is another one.
func TestLocationIsChecked(t *testing.T) {
	t.Parallel()
	for _, at := range []manifest.Location{
		{},
		{Path: "/a/b", Folder: "/a"},
		{Path: "a/b", Folder: "a/"},
		{Path: "/b/c", Folder: "/a/"},
		{Path: "/a/../b", Folder: "/a/"},
		{Path: "/a/%2e%2E/b", Folder: "/a/"},
		{Path: `/a/b\c`, Folder: "/a/"},
		{Path: "/a/b?c", Folder: "/a/"},
	} {
		_, _, err := manifest.Rewrite(nil, []byte("#EXTM3U\n"), manifest.HLS, at, "", allowed)
		if err == nil || errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("Rewrite at %+v: %v", at, err)
		}
		if mapped, inside := at.Map("x"); mapped != "x" || inside {
			t.Errorf("Map at %+v = %q, %t", at, mapped, inside)
		}
	}
}

// M11: all URIs of a manifest use the same memory. (Not parallel: allocations are
// counted for the whole process.)
func TestURIsShareMemory(t *testing.T) {
	for _, tc := range []struct{ before, each, after string }{
		{"#EXTM3U\n", "../../../../../../../../../library/vidA/v1/video/1.ts\n", ""},
		{"#EXTM3U\n", "#EXT-X-PART:DURATION=0.3,URI=\"https://origin.example/library/vidA/v1/1.ts\"\n", ""},
		{"<MPD><BaseURL>../x/</BaseURL>", `<SegmentURL media="../../../../../../../library/vidA/v1/1.ts?a&amp;b"/>`, "</MPD>"},
	} {
		allocations := func(n int) float64 {
			body := []byte(tc.before + strings.Repeat(tc.each, n) + tc.after)
			dst := make([]byte, 0, 2*len(body))
			return testing.AllocsPerRun(5, func() {
				_, stats, err := manifest.Rewrite(dst, body, formatOf(body), here, "", allowed)
				if err != nil || stats.Rewritten < n {
					t.Errorf("%q: %v, %v", tc.each, stats, err)
				}
			})
		}
		if few, many := allocations(100), allocations(1000); many > few+2 {
			t.Errorf("%q: %v allocations for 100 URIs, %v for 1,000", tc.each, few, many)
		}
	}
}

// The attack: a manifest of short URIs that become long when they are rewritten.
func TestGrowthIsBounded(t *testing.T) {
	t.Parallel()
	deep := here
	deep.Path = deep.Folder + strings.Repeat("a/", 1000) + "video.m3u8"
	for name, body := range map[string]string{
		"deep location": "#EXTM3U\n" + strings.Repeat("/library/vidA/v1/x\n", 10_000),
		"variables": "#EXTM3U\n#EXT-X-DEFINE:NAME=\"a\",VALUE=\"" + strings.Repeat("a", 2000) + "\"\n" +
			strings.Repeat("/library/vidA/v1/{$a}{$a}\n", 10_000),
		"variables that change nothing": "#EXTM3U\n#EXT-X-DEFINE:NAME=\"a\",VALUE=\"" + strings.Repeat("a", 2000) + "\"\n" +
			strings.Repeat("{$a}{$a}\n", 10_000),
		"BaseURL": "<MPD><BaseURL>" + strings.Repeat("a/", 900) + "</BaseURL>" + strings.Repeat(`<SegmentURL media="/library/vidA/v1/x"/>`, 10_000) + "</MPD>",
	} {
		_, _, err := manifest.Rewrite(nil, []byte(body), formatOf(body), deep, "", allowed)
		if !errors.Is(err, manifest.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}
