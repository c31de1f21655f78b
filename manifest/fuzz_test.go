package manifest_test

import (
	"bytes"
	"encoding/xml"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/signed-playback/caddy-signed-playback/manifest"
)

// FuzzMap checks that a mapped URI leads the viewer to the same file as the URI on
// the origin, that it never contains a host, that other URIs stay as they are, and
// that URIs that lead into the folder in every reading are mapped.
func FuzzMap(f *testing.F) {
	for _, tc := range mapCases {
		f.Add(tc.uri, "manifest/video.m3u8")
		f.Add(tc.uri, "video.m3u8")
	}
	f.Add("../../../a:b", "a/b/../c//d/")
	f.Fuzz(func(t *testing.T, uri, name string) {
		at := here
		at.Path = at.Folder + name
		mapped, inside := at.Map(uri)
		if !inside {
			if mapped != uri {
				t.Fatalf("Map(%q) = %q outside of the folder", uri, mapped)
			}
		} else if again, ok := at.Map(mapped); !ok || again != mapped {
			t.Fatalf("Map(%q) = %q, and that maps to %q, %t", uri, mapped, again, ok)
		}
		if clean(at.Path) != at.Path || strings.ContainsAny(name, `?#\`) {
			return // not a location
		}
		origin, viewer := visit(originSpot(at), uri), visit(viewerSpot(at), mapped)
		if why := judge(at, origin, viewer, uri, mapped); why != "" {
			t.Errorf("%q maps to %q: %s", uri, mapped, why)
		}
		if inside && mapped != uri {
			u, err := url.Parse(mapped)
			if err == nil && (u.Scheme != "" || u.Host != "" || strings.HasPrefix(mapped, "/")) {
				t.Errorf("%q maps to %q, which net/url does not take for relative to the folder", uri, mapped)
			}
		}
		if inFolder(at, uri) && strings.HasPrefix(origin.path, at.Folder) && origin.host == originHost && !origin.odd && !inside {
			t.Errorf("%q is in the folder, and is not mapped", uri)
		}
	})
}

// inFolder reports whether net/url takes a URI into the folder.
func inFolder(at manifest.Location, uri string) bool {
	base := url.URL{Scheme: "https", Host: originHost, Path: at.Path}
	u, err := base.Parse(uri)
	return err == nil && u.User == nil && u.Host == originHost && strings.HasPrefix(u.EscapedPath(), at.Folder)
}

// seeds adds the manifests of testdata.
func seeds(f *testing.F, pattern string, add func(body []byte)) {
	f.Helper()
	for _, body := range testdata(f, pattern) {
		add(body)
	}
}

// testdata returns the manifests of testdata.
func testdata(tb testing.TB, pattern string) (bodies [][]byte) {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(files) == 0 {
		tb.Fatalf("no manifests match %s: %v", pattern, err)
	}
	for _, name := range files {
		bodies = append(bodies, readFile(tb, filepath.Base(name)))
	}
	return bodies
}

// rewriteTwice checks what both formats have in common: an error comes without a
// result, growth is limited, a second pass changes nothing, and the first pass
// changes only the URIs that it counts.
func rewriteTwice(t *testing.T, body []byte, f manifest.Format, query string) (out []byte, ok bool) {
	t.Helper()
	checkFeatures(t, body, f, query)
	checkRooted(t, body, f, query, allowed)
	out, stats, err := manifest.Rewrite(nil, body, f, here, query, allowed)
	if err != nil {
		if out != nil || stats != (manifest.Stats{}) {
			t.Fatalf("Rewrite = %q, %v with error %v", out, stats, err)
		}
		return nil, false
	}
	if len(out) > 2*len(body)+4096 {
		t.Errorf("%d bytes became %d", len(body), len(out))
	}
	if stats.Rewritten+stats.Removed == 0 && !bytes.Equal(out, body) {
		t.Errorf("nothing was rewritten, and yet\n%q became\n%q", body, out)
	}
	again, second, err := manifest.Rewrite(nil, out, f, here, query, allowed)
	if err != nil || !bytes.Equal(again, out) || second.Rewritten != 0 {
		t.Errorf("%q\nbecame %q\nand then %q, %v, %v", body, out, again, second, err)
	}
	return out, true
}

// FuzzHLS checks that each URI of a playlist leads the viewer to the same file as on
// the origin or stays as it is, and that only URIs change.
func FuzzHLS(f *testing.F) {
	seeds(f, "*.m3u8", func(body []byte) { f.Add(body, "t=abc&dir=video") })
	for _, tc := range hlsCases {
		if len(tc.in) < 1<<12 {
			f.Add([]byte("#EXTM3U\n"+tc.in+"\n"), tc.query)
		}
	}
	for _, tc := range featureCases {
		f.Add([]byte(tc.in), "")
	}
	f.Fuzz(func(t *testing.T, body []byte, query string) {
		out, ok := rewriteTwice(t, body, manifest.HLS, query)
		if !ok {
			return
		}
		before, after := strings.Split(string(body), "\n"), strings.Split(string(out), "\n")
		if len(before) != len(after) {
			t.Fatalf("%d lines became %d", len(before), len(after))
		}
		for i := range before[1:] {
			line, written := before[i+1], after[i+1]
			if nameInQuotes.MatchString(line) {
				continue // judged by the tables
			}
			uris, rest := hlsURIs(line)
			written2, rest2 := hlsURIs(written)
			if len(uris) == 0 && line != written {
				t.Fatalf("line without a URI %q became %q", line, written)
			}
			if line == written && strings.Contains(line, "{$") {
				continue // judged by the tables
			}
			if rest != rest2 || len(uris) != len(written2) {
				t.Fatalf("%q became %q: more than URIs changed", line, written)
			}
			for j, uri := range uris {
				before, after := uri.text, written2[j].text
				if path, _, _ := strings.Cut(before, "?"); strings.Contains(path, "{$") || uri.may && before == after {
					continue
				}
				origin, viewer := visit(originSpot(here), before), visit(viewerSpot(here), after)
				if why := judge(here, origin, viewer, before, after); why != "" {
					t.Errorf("%q became %q: %s", before, after, why)
				}
			}
		}
	})
}

// FuzzDASH checks the same for MPDs, for all alternatives that BaseURLs offer.
func FuzzDASH(f *testing.F) {
	seeds(f, "*.mpd", func(body []byte) { f.Add(body) })
	for _, tc := range dashCases {
		if len(tc.in) < 1<<12 {
			f.Add([]byte(tc.in))
		}
	}
	for _, tc := range featureCases {
		f.Add([]byte(tc.in))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		out, ok := rewriteTwice(t, body, manifest.DASH, "")
		if !ok {
			return
		}
		before, after := tree(body), tree(out)
		if before == nil || before.name == "Patch" {
			return
		}
		if after == nil {
			t.Fatalf("%q\nbecame %q, which is not XML", body, out)
		}
		checkPlayed(t, body)
		if len(after.children) < len(before.children) {
			return // a Location was taken out
		}
		if a, b := cutURIs(body), cutURIs(out); !isWithin(a, b) {
			t.Fatalf("%q\nbecame %q: more than URIs changed:\n%q\n%q", body, out, a, b)
		}
		uris, ok1 := mpdURIs(before, originSpot(here))
		written, ok2 := mpdURIs(after, viewerSpot(here))
		if !ok1 || !ok2 {
			return
		}
		if len(uris) != len(written) {
			t.Fatalf("%q\nbecame %q: more than URIs changed", body, out)
		}
		own := visit(viewerSpot(here), "./")
		for i, u := range uris {
			for j := range u.at {
				if u.base && written[i].at[j] == own {
					continue // adopted, or below an adopted one; the URIs below are checked too
				}
				if why := judge(here, u.at[j], written[i].at[j], u.uri, written[i].uri); why != "" {
					t.Errorf("%q\nbecame %q:\n%q became %q: %s", body, out, u.uri, written[i].uri, why)
				}
			}
		}
	})
}

// nameInQuotes is the name of an attribute in the value of another, for some players.
var nameInQuotes = regexp.MustCompile(`=[ \t]*"[^"]*(URI|X-ASSET-LIST)[\x00-\x20\x85\p{Z}\x{FEFF}]*=[ \t]*"`)

var (
	quotedURI   = regexp.MustCompile(`([ \t\r\n](?:media|index|initialization|bitstreamSwitching|sourceURL|moreInformationURL|contactURL|proxyServerURL|keyUriTemplate|ivUriTemplate|authUrlTemplate|value|[^\s"'=<>]*:href)[ \t\r\n]*=[ \t\r\n]*)("[^"]*"|'[^']*')`)
	emptyTag    = regexp.MustCompile(`/>$`)
	elementText = regexp.MustCompile(`(BaseURL|Location|ImportedMPD|ContentSteering)$`)
)

// isWithin reports whether b is a with insertions.
func isWithin(a, b string) bool {
	for i := 0; i < len(b) && a != ""; i++ {
		if a[0] == b[i] {
			a = a[1:]
		}
	}
	return a == ""
}

// cutURIs removes everything from an MPD that could be a URI, and splits empty-element
// tags into start tags and end tags.
func cutURIs(doc []byte) string {
	d := xml.NewDecoder(bytes.NewReader(doc))
	var b strings.Builder
	inURI := false
	for {
		from := d.InputOffset()
		t, err := d.RawToken()
		if err != nil {
			return b.String()
		}
		raw := string(doc[from:d.InputOffset()])
		switch t := t.(type) {
		case xml.StartElement:
			inURI = elementText.MatchString(t.Name.Local)
			raw = quotedURI.ReplaceAllString(raw, "$1")
			raw = emptyTag.ReplaceAllString(raw, ">")
		case xml.EndElement:
			inURI = false
			if raw == "" {
				raw = "</" + t.Name.Local + ">"
			}
		case xml.CharData:
			if inURI {
				raw = ""
			}
		}
		b.WriteString(raw)
	}
}
