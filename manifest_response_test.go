package signedplayback

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/manifestbody"
	"github.com/signed-playback/caddy-signed-playback/internal/mediatype"
	"github.com/signed-playback/caddy-signed-playback/manifest"
	"github.com/signed-playback/caddy-signed-playback/token"
)

const (
	absolutePlaylist  = "#EXTM3U\n#EXTINF:2,\nhttps://origin.example.com/demo/video/1.ts\n#EXTINF:2,\n/demo/video/2.ts\n"
	rewrittenPlaylist = "#EXTM3U\n#EXTINF:2,\n../video/1.ts\n#EXTINF:2,\n../video/2.ts\n"
)

func manifestGate(t *testing.T) *Gate {
	t.Helper()
	return newGate(t, new(App), &Gate{ManifestHosts: []string{"origin.example.com"}})
}

// exchangeThrough also sends the request twice through a cache, which must change nothing
// for viewers but the age.
func exchangeThrough(t *testing.T, g *Gate, r *http.Request, origin func(http.ResponseWriter, *http.Request) error) answer {
	t.Helper()
	again := []*http.Request{copyOf(r), copyOf(r)}
	e := exchange(t, g, r, origin)
	c := newCache(t, g, new(Cache))
	for _, r := range again {
		cached := exchange(t, g, r, c.through(origin))
		cached.header.Del("Age")
		cached.header.Del("Cache-Status")
		if len(e.header["Content-Length"]) == 0 {
			cached.header.Del("Content-Length") // the cache knows that of a short body
		}
		if e.reason != "" {
			e.header.Set("Vary", "Origin") // the origin's too is of no use
			cached.header.Set("Vary", "Origin")
		}
		same := e.status == cached.status && e.reason == cached.reason && e.body == cached.body
		if !same || !maps.EqualFunc(e.header, cached.header, slices.Equal) {
			t.Errorf("through a cache (-without +with):\n%s", cmp.Diff([]any{e.status, e.reason, e.header, e.body}, []any{cached.status, cached.reason, cached.header, cached.body}))
		}
	}
	g.app.caches = nil
	return e
}

// reply answers with headers and a body, in two writes, as an origin across a
// network does.
func reply(status int, body string, header ...string) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, _ *http.Request) error {
		for _, line := range header {
			name, value, _ := strings.Cut(line, ": ")
			w.Header().Add(name, value)
		}
		w.WriteHeader(status)
		if body == "" {
			return nil
		}
		half := len(body) / 2
		if _, err := io.WriteString(w, body[:half]); err != nil {
			panic(http.ErrAbortHandler)
		}
		if _, err := io.WriteString(w, body[half:]); err != nil {
			panic(http.ErrAbortHandler)
		}
		return nil
	}
}

func zipped(body string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, body)
	_ = w.Close()
	return b.String()
}

// A manifest is what its path, its type or its first bytes say it is. One that
// reached a viewer unrewritten would send the player out of the token's space.
func TestManifestsAreRewritten(t *testing.T) {
	t.Parallel()
	g := manifestGate(t)
	hls := "Content-Type: application/vnd.apple.mpegurl"
	for _, tc := range []struct {
		name, suffix string
		origin       func(http.ResponseWriter, *http.Request) error
	}{
		{"by its path", "manifest/video.m3u8", reply(200, absolutePlaylist)},
		{"by its path in capitals", "manifest/VIDEO.M3U8", reply(200, absolutePlaylist)},
		{"by its path with a type of media", "manifest/video.m3u8", reply(200, absolutePlaylist, "Content-Type: video/mp2t")},
		{"by its path among thumbnails", "thumbnails/storyboard.m3u8", reply(200, absolutePlaylist)},
		{"by its type", "manifest/video", reply(200, absolutePlaylist, hls)},
		{"by its type with parameters", "manifest/video", reply(200, absolutePlaylist, "Content-Type: Audio/MPEGURL; charset=utf-8")},
		{"M10 playlist under a segment's name and type", "manifest/1.ts", reply(200, absolutePlaylist, "Content-Type: video/mp2t")},
		{"M10 playlist behind a byte order mark", "manifest/1.ts", reply(200, "\ufeff"+absolutePlaylist)},
		{"P13 by its path with a slash at the end", "manifest/video.m3u8/", reply(200, strings.ReplaceAll(absolutePlaylist, "/video/", "/manifest/video/"))},
		{"P13 a playlist of text under a name with one letter more", "manifest/video.m3u8_", reply(200, absolutePlaylist, "Content-Type: text/plain")},
		{"P13 a playlist of bytes under a name with a space and more behind", "manifest/video.m3u8%20x", reply(200, absolutePlaylist, "Content-Type: application/octet-stream")},
		{"P13 a playlist that is said to be a thumbnail", "thumbnails/x.jpg", reply(200, absolutePlaylist, "Content-Type: image/jpeg")},
		{"P13 a playlist as text under a cut name", "manifest/video.m3u", reply(200, absolutePlaylist, "Content-Type: text/plain")},
		{"by its path with another success status", "manifest/video.m3u8", reply(203, absolutePlaylist)},
		{"by its first bytes with a status that players accept", "manifest/1.ts", reply(201, absolutePlaylist)},
		{"M9 gzip that was not asked for", "manifest/video.m3u8", reply(200, zipped(absolutePlaylist), "Content-Encoding: gzip")},
		{"M9 gzip under a segment's name", "manifest/1.vtt", reply(200, zipped(absolutePlaylist), "Content-Encoding: gzip", "Content-Type: text/vtt")},
		{"written byte by byte", "manifest/1.ts", func(w http.ResponseWriter, _ *http.Request) error {
			for i := range len(absolutePlaylist) {
				if _, err := io.WriteString(w, absolutePlaylist[i:i+1]); err != nil {
					return err
				}
				if err := http.NewResponseController(w).Flush(); err != nil {
					return err
				}
			}
			return nil
		}},
		{"copied from a file", "manifest/1.ts", func(w http.ResponseWriter, _ *http.Request) error {
			_, err := io.Copy(w, struct{ io.Reader }{strings.NewReader(absolutePlaylist)})
			return err
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := exchangeThrough(t, g, requestFor(t, "/"+plainToken()+"/"+tc.suffix, nil), tc.origin)
			if got := strings.TrimPrefix(e.body, "\ufeff"); e.status/100 != 2 || got != rewrittenPlaylist {
				t.Errorf("got %d %q:\n%s\nwant:\n%s", e.status, e.reason, got, rewrittenPlaylist)
			}
			if got := e.header.Get("Content-Length"); got != strconv.Itoa(len(e.body)) {
				t.Errorf("Content-Length is %q, the body has %d bytes", got, len(e.body))
			}
			if got := e.header.Get("Content-Encoding"); got != "" {
				t.Errorf("Content-Encoding is %q", got)
			}
		})
	}
}

// Shaka removes white space before a playlist, however long it is and however the
// origin cuts it. The gate refuses what it cannot rewrite.
func TestPlaylistsAfterWhiteSpace(t *testing.T) {
	t.Parallel()
	g := manifestGate(t)
	for _, blank := range []string{"\n", " \t\r\n", "\v\f", "\u00a0", "\u2003", "\u3000", "\ufeff", "\x1b(B"} {
		for _, count := range []int{1, 7, 11, 40, manifestbody.MaxPrologLength} {
			body := strings.Repeat(blank, count) + "#EXTM3U\n#EXT-X-CONTENT-STEERING:SERVER-URI=\"//evil.test\"\nx.ts\n"
			for cut := range []int{0, 1, 2, 3} {
				pieces := func(w http.ResponseWriter, _ *http.Request) error {
					at := max(0, strings.Index(body, "#")+cut-1)
					_, _ = io.WriteString(w, body[:at])
					_, _ = w.(io.ReaderFrom).ReadFrom(strings.NewReader(body[at:]))
					return nil
				}
				e := exchangeThrough(t, g, requestFor(t, "/"+plainToken()+"/x/ws.txt", nil), pieces)
				if strings.Contains(e.body, "STEERING") {
					t.Errorf("%d times %q, cut at %d: %d %q", count, blank, cut, e.status, e.reason)
				}
			}
		}
	}
}

// F13: ASCII is ASCII in the charsets that servers declare, and viewers get none. What cannot be read is
// refused with the name of the charset.
func TestCharsets(t *testing.T) {
	t.Parallel()
	g, tok := rangeGate(t)
	get := func(body, contentType string) answer {
		return exchangeThrough(t, g, requestFor(t, "/"+tok+"/manifest/x", nil), reply(200, body, "Content-Type: "+contentType))
	}
	for _, charset := range []string{"us-ascii", "ISO-8859-1", "utf8", "latin1", "\"windows-1252\"", "Shift_JIS", "x-" + rand.Text()} {
		for contentType, body := range map[string]string{mediatype.HLS: absolutePlaylist, mediatype.DASH: "<?xml version='1.0' encoding='us-ascii'?><MPD><BaseURL>/demo/video/</BaseURL></MPD>"} {
			e := get(body, contentType+"; charset="+charset)
			if e.status != 200 || e.header.Get("Content-Type") != contentType || strings.Contains(e.body, "/demo/") {
				t.Errorf("%s in %s: %d %s %q", contentType, charset, e.status, e.header.Get("Content-Type"), e.body)
			}
		}
	}
	for charset, body := range map[string]string{
		"windows-1252": "<MPD><BaseURL>/demo/vid\xe9o/</BaseURL></MPD>", "utf-16le": "\xff\xfe#\x00E\x00X\x00T\x00M\x003\x00U\x00", "utf-16be": "\x00<\x00M\x00P\x00D\x00/\x00>",
	} {
		e := get(body, "text/xml; charset="+charset)
		if err := manifestbody.NameCharset(io.EOF, "text/xml; charset="+charset); e.status != 502 || !strings.Contains(err.Error(), charset) {
			t.Errorf("%s: %d, %v", charset, e.status, err)
		}
	}
}

// An MPD has many names, types and prologs, and is one with all of them, however the
// origin cuts it. Otherwise its reports reach the players that an uploader lures to it.
func TestMPDsUnderOtherNames(t *testing.T) {
	t.Parallel()
	g := manifestGate(t)
	const in, want = `MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Metrics/><BaseURL>/demo/video/</BaseURL></`, `MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>../video/</BaseURL></`
	invented := rand.Text()
	for _, prolog := range []string{
		"", "\ufeff", " \r\n", `<?xml version="1.0" encoding="utf-8"?>`, "<!-- " + strings.Repeat(invented+" <svg> ", 100) + "-->\n",
		"<!--" + strings.Repeat(" ", manifestbody.MaxPrologLength) + "-->", "<?x y='z'?>" + strings.Repeat("\n", 2*manifestbody.MaxPrologLength),
	} {
		for _, prefix := range []string{"", "x:"} {
			for suffix, contentType := range map[string]string{"stream.php": "application/xml", "x/" + invented: "text/plain", "x/a.vtt": "x/" + invented, "x/1.m4s": "video/mp4"} {
				body := prolog + "<" + prefix + in + prefix + "MPD>"
				bytewise := func(w http.ResponseWriter, _ *http.Request) error {
					w.Header().Set("Content-Type", contentType)
					for at := 0; at < len(body); {
						end := max(at+1, min(at+97, len(prolog)-97)) // the gate reads a long prolog again with each write
						_, _ = io.WriteString(w, body[at:end])
						at = end
					}
					return nil
				}
				wanted := prolog + "<" + prefix + want + prefix + "MPD>"
				if suffix == "stream.php" {
					wanted = strings.Replace(wanted, "../", "", 1)
				}
				for _, origin := range []func(http.ResponseWriter, *http.Request) error{reply(200, body, "Content-Type: "+contentType), bytewise} {
					e := exchangeThrough(t, g, requestFor(t, "/"+plainToken()+"/"+suffix, nil), origin)
					if e.status != 200 || e.body != wanted || e.header.Get("Content-Type") != mediatype.DASH {
						t.Errorf("%s after %.20q got %d %q, %s:\n%.300q", suffix, prolog, e.status, e.reason, e.header.Get("Content-Type"), e.body)
					}
				}
			}
		}
	}
}

// H9, H10: a part of a manifest, or the origin's word for it that nothing has
// changed, is about other bytes than those that the viewer has.
func TestManifestRequests(t *testing.T) {
	t.Parallel()
	g := manifestGate(t)
	change := func(r *http.Request) {
		for name, value := range map[string]string{
			"Range": "bytes=0-", "If-Range": `"origin"`, "If-None-Match": `"origin"`, "If-Modified-Since": "Mon, 23 Nov 2026 00:00:00 GMT",
			"Accept-Encoding": "gzip, br",
		} {
			r.Header.Set(name, value)
		}
	}
	target := "/" + plainToken() + "/manifest/video.m3u8?_HLS_msn=7&_HLS_part=1&_HLS_skip=YES"
	other := exchangeThrough(t, g, requestFor(t, "/"+plainToken()+"/live", change), reply(200, absolutePlaylist, "Content-Type: audio/mpegurl"))
	if h := other.origin[0].Header; h.Get("Accept-Encoding") != "identity" {
		t.Errorf("header at the origin for what may be a manifest: %v", h)
	}
	conditions := func(r *http.Request) {
		change(r)
		r.Header["If-Match"], r.Header["If-Unmodified-Since"] = is(`"other"`), is("Mon, 23 Nov 2020 00:00:00 GMT")
	}
	e := exchangeThrough(t, g, requestFor(t, target, conditions), reply(200, absolutePlaylist,
		"Content-Type: application/x-mpegURL", `Etag: "origin"`, "Last-Modified: Mon, 23 Nov 2026 00:00:00 GMT",
		"Accept-Ranges: bytes", "Content-Length: "+strconv.Itoa(len(absolutePlaylist)), "Digest: x", "Cache-Control: public, max-age=2"))
	want := http.Header{"Accept-Encoding": {"identity"}}
	if diff := cmp.Diff(want, e.origin[0].Header); diff != "" {
		t.Errorf("header at the origin (-want +got):\n%s", diff)
	}
	if e.origin[0].URL.RawQuery != "_HLS_msn=7&_HLS_part=1&_HLS_skip=YES" {
		t.Errorf("query at the origin is %q", e.origin[0].URL.RawQuery)
	}
	if diff := cmp.Diff(http.Header{
		"Access-Control-Allow-Origin":   {"*"},
		"Access-Control-Expose-Headers": {headerpolicy.ExposedHeaders},
		"Cache-Control":                 {"private, max-age=2"},
		"Content-Length":                {strconv.Itoa(len(rewrittenPlaylist))},
		"Content-Type":                  {"application/vnd.apple.mpegurl"},
		"Content-Security-Policy":       {"sandbox allow-same-origin; default-src 'none'; media-src 'self'"},
		"X-Content-Type-Options":        {"nosniff"},
	}, e.header); diff != "" || e.status != 200 || e.body != rewrittenPlaylist {
		t.Errorf("got %d %q, header (-want +got):\n%s", e.status, e.body, diff)
	}
}

// The request of a viewer who leaves ends at the origin too, which holds a blocking reload.
func TestABlockingReloadEndsWithItsViewer(t *testing.T) {
	t.Parallel()
	r := requestFor(t, "/"+plainToken()+"/manifest/video.m3u8?_HLS_msn=7", nil)
	ctx, leave := context.WithCancel(r.Context())
	e := exchange(t, manifestGate(t), r.WithContext(ctx), func(_ http.ResponseWriter, r *http.Request) error {
		leave()
		select {
		case <-r.Context().Done():
			return caddyhttp.Error(statusClientClosedRequest, r.Context().Err())
		case <-time.After(manifestbody.Timeout / 2):
			return caddyhttp.Error(http.StatusGatewayTimeout, nil)
		}
	})
	if e.status != statusClientClosedRequest {
		t.Errorf("the origin ends the request with %d", e.status)
	}
}

// H4: HEAD tells the length of what GET would send.
func TestHeadOfManifest(t *testing.T) {
	t.Parallel()
	g := manifestGate(t)
	head := func(r *http.Request) {
		r.Method = http.MethodHead
		r.Header.Set("Range", "bytes=0-1")
	}
	e := exchangeThrough(t, g, requestFor(t, "/"+plainToken()+"/manifest/video.m3u8", head), reply(200, absolutePlaylist))
	if e.origin[0].Method != http.MethodGet || e.status != 200 || e.body != "" || e.header.Get("Content-Length") != strconv.Itoa(len(rewrittenPlaylist)) {
		t.Errorf("got %d with %q bytes and body %q, after %s at the origin", e.status, e.header.Get("Content-Length"), e.body, e.origin[0].Method)
	}
	e = exchange(t, g, requestFor(t, "/"+plainToken()+"/playlist", head), func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Type", "application/vnd.apple.mpegurl")
		w.Header().Set("Content-Length", "12345")
		w.Header().Set("Etag", `"origin"`)
		w.WriteHeader(http.StatusOK)
		return nil
	})
	if e.status != 200 || e.header.Get("Content-Length") != "" || e.header.Get("Etag") != "" {
		t.Errorf("HEAD of a playlist that only its type tells got %d %v", e.status, e.header)
	}
}

// What cannot be rewritten does not pass, and what the origin said about it does
// not stick to the refusal.
func TestManifestsThatAreRefused(t *testing.T) {
	t.Parallel()
	g := manifestGate(t)
	abort := func(w http.ResponseWriter, _ *http.Request) error {
		_, _ = io.WriteString(w, absolutePlaylist[:40])
		panic(http.ErrAbortHandler) // as reverse_proxy does when the origin breaks off
	}
	endless := func(w http.ResponseWriter, _ *http.Request) error {
		chunk := strings.Repeat("#comment\n", 1<<16)
		if _, err := io.WriteString(w, "#EXTM3U\n"); err != nil {
			return err
		}
		for n := 0; n < 4*manifest.MaxSize; n += len(chunk) {
			if _, err := io.WriteString(w, chunk); err != nil {
				panic(http.ErrAbortHandler)
			}
		}
		t.Error("the gate read on beyond its bound")
		return nil
	}
	bomb := zipped("#EXTM3U\n" + strings.Repeat("#\n", manifest.MaxSize))
	for _, tc := range []struct {
		name, suffix string
		origin       func(http.ResponseWriter, *http.Request) error
	}{
		{"M8 larger than the bound", "a.m3u8", endless},
		{"M8 larger by its own word", "a.m3u8", reply(200, "", "Content-Length: 104857600")},
		{"M8 larger, found by its first bytes", "a", endless},
		{"M8 broken off", "a.m3u8", abort},
		{"M9 gzip bomb", "a.m3u8", reply(200, bomb, "Content-Encoding: gzip")},
		{"M9 gzip that is none", "a.m3u8", reply(200, absolutePlaylist, "Content-Encoding: gzip")},
		{"M9 gzip broken off", "a.m3u8", reply(200, zipped(absolutePlaylist)[:30], "Content-Encoding: gzip")},
		{"M9 gzip twice", "a.m3u8", reply(200, zipped(zipped(absolutePlaylist)), "Content-Encoding: gzip, gzip")},
		{"M9 brotli under a segment's name", "a.ts", reply(200, "xx", "Content-Encoding: br")},
		{"M9 a part of gzip under a segment's name", "a.ts", reply(206, zipped(absolutePlaylist), "Content-Encoding: gzip", "Content-Range: bytes 0-99/200")},
		{"M9 brotli", "a.m3u8", reply(200, "xx", "Content-Encoding: br")},
		{"H9 a part", "a.m3u8", reply(206, absolutePlaylist, "Content-Range: bytes 0-99/200")},
		{"H9 a part, found by its first bytes", "a.ts", reply(206, absolutePlaylist, "Content-Range: bytes 0-99/200")},
		{"M10 error page with 200", "a.m3u8", reply(200, "<!doctype html><title>Oops</title>", "Content-Type: text/html")},
		{"M10 JSON", "a.mpd", reply(200, `{"error":"not found"}`)},
		{"M10 empty", "a.m3u8", reply(200, "")},
		{"M10 segment under a manifest's name", "a.m3u8", reply(200, "G\x40\x00\x10"+strings.Repeat("\xff", 184))},
		{"M10 playlist in UTF-16, which browsers decode", "a.ts", reply(200, "\xff\xfe"+strings.Join(strings.Split("#EXTM3U\n", ""), "\x00")+"\x00")},
		{"M10 playlist in UTF-16 of the other order", "a.vtt", reply(200, "\x00"+strings.Join(strings.Split("#EXTM3U\n", ""), "\x00"), "Content-Type: text/vtt; charset=utf-16be")},
		{"M10 playlist with an escape sequence", "a.ts", reply(200, "\x1b(B#EXT\x1b(JM3U\n", "Content-Type: text/plain; charset=iso-2022-jp")},
		{"M10 playlist after white space, which Shaka ignores", "a.ts", reply(200, "\n \ufeff#EXTM3U\n")},
		{"M10 playlist after white space, compressed", "a.ts", reply(200, zipped("\n#EXTM3U\n"), "Content-Encoding: gzip")},
		{"M10 short MPD that ends early", "x", reply(200, "<MPD>")},
		{"M10 MPD in UTF-16", "x", reply(200, "\xff\xfe"+strings.Join(strings.Split("<MPD xmlns='urn:x'></MPD>", ""), "\x00")+"\x00", "Content-Type: application/xml")},
		{"M10 MPD in UTF-16 of the other order", "x", reply(200, "\x00"+strings.Join(strings.Split(" <!-- --><MPD></MPD>", ""), "\x00"), "Content-Type: text/plain; charset=utf-16be")},
		{"M10 MPD after a long document type", "x.php", reply(200, "<!DOCTYPE x [<!-- "+strings.Repeat("'", 5000)+" -->]><MPD/>", "Content-Type: text/plain")},
		{"M10 MPD with an escape sequence", "x", reply(200, "<M\x1b(BPD/>"+strings.Repeat(" ", 40), "Content-Type: text/plain; charset=iso-2022-jp")},
		{"M7 document type", "a.mpd", reply(200, `<?xml version="1.0"?><!DOCTYPE MPD [<!ENTITY x "y">]><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>`)},
		{"M10 redirect to another host", "a.ts", reply(302, "", "Location: https://evil.example/x")},
		{"M10 redirect to the admin API", "a.m3u8", reply(307, "", "Location: http://127.0.0.1:2019/load")},
		{"M10 redirect to another video", "a.ts", reply(301, "", "Location: /vidB/a.ts")},
		{"M10 redirect twice", "a.ts", reply(302, "", "Location: ", "Location: https://evil.example/x")},
		{"M10 redirect to another token", "a.ts", reply(302, "", "Location: /a.b.c/x.ts")},
		{"H9 a part, with all the origin's caching", "a.m3u8", reply(206, "#EXTM3U\n", "Cdn-Cache-Control: public, max-age=9999",
			"Surrogate-Control: max-age=9999", "Expires: Thu, 31 Dec 2099 00:00:00 GMT", "Access-Control-Allow-Credentials: true", "Set-Cookie: a=b")},
		{"M10 redirect upwards", "a/b.ts", reply(301, "", "Location: ../../vidB/a.ts")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := exchangeThrough(t, g, requestFor(t, "/"+plainToken()+"/"+tc.suffix, nil), tc.origin)
			if e.status != http.StatusBadGateway || e.reason != "manifest_invalid" || e.body != "" {
				t.Errorf("got %d %q with %d bytes, want 502 manifest_invalid", e.status, e.reason, len(e.body))
			}
			for _, name := range []string{"Content-Length", "Content-Encoding", "Content-Range", "Content-Type", "Location", "Cdn-Cache-Control", "Surrogate-Control", "Expires", "Access-Control-Allow-Credentials", "Set-Cookie"} {
				if got := e.header.Get(name); got != "" {
					t.Errorf("the refusal has %s: %q", name, got)
				}
			}
			if got := e.header.Get("Cache-Control"); got != "no-store" {
				t.Errorf("Cache-Control is %q", got)
			}
		})
	}
}

// Media and errors pass as they are.
func TestOtherResponsesPass(t *testing.T) {
	t.Parallel()
	g := manifestGate(t)
	media := "\x00\x00\x00\x18ftyp" + strings.Repeat("media", 1000)
	for _, tc := range []struct {
		name, suffix string
		status       int
		body         string
		header       []string
	}{
		{"segment", "a.m4s", 200, media, []string{`Etag: "origin"`, "Accept-Ranges: bytes"}},
		{"part of a segment", "a.m4s", 206, media, []string{"Content-Range: bytes 5-9/100"}},
		{"compressed subtitles", "a.vtt", 200, zipped("WEBVTT\n"), []string{"Content-Encoding: gzip"}},
		{"image", "a.svg", 200, "<?xml version='1.0' encoding='iso-8859-1'?>\n<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN' 'x'>\n<svg>\xe4</svg>", []string{"Content-Type: image/svg+xml", `Etag: "origin"`}},
		{"image after a long comment", "a.svg", 200, "<!--" + strings.Repeat(" ", 2*manifestbody.MaxPrologLength) + "--><svg/>", []string{"Content-Type: image/svg+xml", `Etag: "origin"`}},
		{"image with entities", "a.svg", 200, "<!DOCTYPE svg [<!ENTITY a 'b'>" + strings.Repeat("\n", 2*manifestbody.MaxPrologLength) + "]><svg/>", []string{`Etag: "origin"`}},
		{"captions in XML", "a.ttml", 200, "<tt xml:lang='en'><body><p>MPD</p></body></tt>", []string{"Content-Type: application/ttml+xml"}},
		{"part of captions", "a.ttml", 206, "<tt xml:lang='en'><body><p>MPD</p></body></tt>", []string{"Content-Range: bytes 0-44/100"}},
		{"page", "a.html", 200, "<!doctype html><title>MPD</title>" + strings.Repeat("<p>", 2000), []string{"Content-Type: text/html"}},
		{"short body", "a.key", 200, "0123456", nil},
		{"empty body", "a.ts", 200, "", nil},
		{"no manifest there", "a.m3u8", 404, "not found", []string{"Content-Type: text/plain"}},
		{"origin down", "a.m3u8", 503, "down", nil},
		{"nothing has changed", "a.ts", 304, "", []string{`Etag: "origin"`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := exchangeThrough(t, g, requestFor(t, "/"+plainToken()+"/"+tc.suffix, nil), reply(tc.status, tc.body, tc.header...))
			if e.status != tc.status || e.body != tc.body || e.reason != "" {
				t.Errorf("got %d %q with %d bytes, want %d with %d", e.status, e.reason, len(e.body), tc.status, len(tc.body))
			}
			for _, line := range tc.header {
				name, value, _ := strings.Cut(line, ": ")
				if got := e.header.Get(name); got != value {
					t.Errorf("%s is %q, want %q", name, got, value)
				}
			}
		})
	}
}

// A redirect leads the client to the same place in its own space, or nowhere. A
// handler of this server knows the path as the client wrote it, and may redirect
// within it, as file_server does from a folder without its slash.
func TestRedirectsInsideTheFolder(t *testing.T) {
	t.Parallel()
	g := manifestGate(t)
	own := "/" + plainToken()
	for location, want := range map[string]string{
		"b.ts":                                 "b.ts",
		"/demo/seg/b.ts":                       "b.ts",
		"/demo/other/b.ts?x":                   "../other/b.ts?x",
		"https://origin.example.com/demo/b.ts": "../b.ts",
		"http://media.example.net/demo/b.ts":   "../b.ts",
		"/demo/seg/":                           "./",
		own + "/seg/?x":                        own + "/seg/?x",
		own + "/../x":                          "",
	} {
		e := exchangeThrough(t, g, requestFor(t, own+"/seg/a.ts", nil), reply(302, "", "Location: "+location))
		if got := e.header.Get("Location"); got != want || (e.status == 302) != (want != "") || (e.reason == "manifest_invalid") != (want == "") {
			t.Errorf("Location %q became %d %q %q, want %q", location, e.status, e.reason, got, want)
		}
	}
}

// What the origin does with the query is no affair of the viewer's: a variable
// of a playlist takes its value from the viewer's own.
func TestVariablesComeFromTheViewersQuery(t *testing.T) {
	t.Parallel()
	g := manifestGate(t)
	playlist := "#EXTM3U\n#EXT-X-DEFINE:QUERYPARAM=\"secret\"\n/demo/{$secret}.ts\n"
	e := exchangeThrough(t, g, requestFor(t, "/"+plainToken()+"/a.m3u8?secret=viewer", nil), func(w http.ResponseWriter, r *http.Request) error {
		r.URL.RawQuery = "secret=origin"
		return reply(200, playlist)(w, r)
	})
	if !strings.Contains(e.body, "viewer.ts") || strings.Contains(e.body, "origin") {
		t.Errorf("got %d %q:\n%s", e.status, e.reason, e.body)
	}
}

// A handler that hangs up, before it answers or after, is not an origin that breaks
// off.
func TestAbortPasses(t *testing.T) {
	t.Parallel()
	g := manifestGate(t)
	for suffix, body := range map[string]string{"/a.m3u8": "", "/a.m4s": strings.Repeat("media", 100)} {
		func() {
			defer func() {
				if p := recover(); p != any(http.ErrAbortHandler) {
					t.Errorf("%s: recovered %v, want http.ErrAbortHandler", suffix, p)
				}
			}()
			exchangeThrough(t, g, requestFor(t, "/"+plainToken()+suffix, nil), func(w http.ResponseWriter, _ *http.Request) error {
				if body != "" {
					_, _ = io.WriteString(w, body)
				}
				panic(http.ErrAbortHandler)
			})
		}()
	}
}

// A download is saved under the name that its URL asks for, if that is one. An error
// page is no download.
func TestDownloadFilename(t *testing.T) {
	t.Parallel()
	g := manifestGate(t)
	downloadable := signed(func(c *token.Claims) { c.Downloadable = true })
	for query, want := range map[string]string{
		"": "", "?filename=my-clip_1": `attachment; filename="my-clip_1.mp4"`, "?filename=a%22%3b%20x": "", "?filename=../../etc/passwd": "",
		"?filename=a%0d%0aX:%20y": "", "?filename=" + strings.Repeat("a", 121): "",
	} {
		for status, want := range map[int]string{200: want, 404: ""} {
			e := exchangeThrough(t, g, requestFor(t, "/"+downloadable+"/downloads/default.mp4"+query, nil), reply(status, "media"))
			if got := e.header.Get("Content-Disposition"); e.status != status || got != want {
				t.Errorf("%q got %d with Content-Disposition %q, want %d %q", query, e.status, got, status, want)
			}
		}
	}
}

// A compressed file that is not a manifest passes as it is. The origin may compress
// only so that the gate can look into it.
func TestCompressedMedia(t *testing.T) {
	t.Parallel()
	g := manifestGate(t)
	captions := zipped("WEBVTT\n\n00:00.000 --> 00:01.000\nHello\n")
	for accepted, asked := range map[string]string{"gzip, br": "gzip", "br;q=1.0, gzip;q=0": "identity", "br, zstd, deflate": "identity", "": ""} {
		r := requestFor(t, "/"+plainToken()+"/a.vtt", func(r *http.Request) {
			if accepted != "" {
				r.Header.Set("Accept-Encoding", accepted)
			}
		})
		e := exchangeThrough(t, g, r, reply(200, captions, "Content-Encoding: gzip", "Content-Type: text/vtt", "Etag: x"))
		if e.status != 200 || e.body != captions || e.header.Get("Content-Encoding") != "gzip" || e.header.Get("Etag") != "x" {
			t.Errorf("got %d %v %q", e.status, e.header, e.body)
		}
		if got := e.origin[0].Header.Get("Accept-Encoding"); got != asked {
			t.Errorf("for %q the origin was asked for %q, want %q", accepted, got, asked)
		}
	}
}

// Operators write a host as it is called; manifests have it in both forms.
func TestManifestHostsWithLettersBeyondASCII(t *testing.T) {
	t.Parallel()
	for _, configured := range []string{"bücher.example", "xn--bcher-kva.example", "BÜCHER.example.:443"} {
		g := newGate(t, new(App), &Gate{ManifestHosts: []string{configured}})
		for _, written := range []string{"bücher.example", "xn--bcher-kva.example", "XN--BCHER-KVA.EXAMPLE"} {
			e := exchangeThrough(t, g, requestFor(t, "/"+plainToken()+"/manifest/video.m3u8", nil), reply(200, "#EXTM3U\n#EXTINF:2,\nhttps://"+written+"/demo/video/1.ts\n"))
			if want := "#EXTM3U\n#EXTINF:2,\n../video/1.ts\n"; e.body != want {
				t.Errorf("%s for manifest_hosts %s: %q", written, configured, e.body)
			}
		}
	}
}

// A manifest with names that the gate refuses plays nothing. The count, and the log once a
// minute for a manifest, say so before a viewer does.
func TestManifestsWithURIsThatAreRefused(t *testing.T) {
	t.Parallel()
	const ambiguous = "#EXTM3U\n#EXTINF:4,\nmedia%2F0-1.m4s\n#EXTINF:4,\n/demo/a//b.ts\n#EXTINF:4,\n../episode%20%239/s0.ts\n#EXTINF:4,\ns;p=0.ts\n"
	for _, tc := range []struct {
		name, body, option string
		refused            float64
		fix                string
	}{
		{"ordinary names", "#EXTM3U\n#EXTINF:4,\nmedia/0-1.m4s?a;b//c\n#EXTINF:4,\na b é[1](2).ts\n#EXTINF:4,\nx.y.z.ts\n#EXTINF:4,\nhttps://cdn.example/a//b\n", "", 0, ""},
		{"ambiguous names", ambiguous, "", 4, "ambiguous_paths allow"},
		{"ambiguous names that may pass", ambiguous, "allow", 0, ""},
		{"names that no option lets pass", ambiguous + "#EXTINF:4,\n./a:b/c.ts\n", "", 5, "rename"},
		{"names that no option lets pass, with the option", ambiguous + "#EXTINF:4,\n./a:b.ts\n#EXTINF:4,\nvideo.m3u8;x.ts\n", "allow", 2, "rename"},
		{
			"templates of an MPD", `<MPD><Period><AdaptationSet><SegmentTemplate media="s-$Number%05d$-$Time$.m4s" initialization="$RepresentationID$%2Finit.mp4"/><Representation id="a"/></AdaptationSet></Period></MPD>`,
			"", 1, "ambiguous_paths allow",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			g := newGate(t, testApp(), &Gate{AmbiguousPaths: tc.option})
			log, logs := observedLog()
			g.manifestLog = log
			before := testutil.ToFloat64(g.app.metrics.URIs.WithLabelValues("refused"))
			_ = exchange(t, g, requestFor(t, "/"+plainToken()+"/hls/video.m3u8", nil), func(w http.ResponseWriter, _ *http.Request) error {
				_, err := w.Write([]byte(tc.body))
				return err
			})
			if tc.refused == 0 && logs.Len() != 0 || tc.refused > 0 && logs.Len() != 1 {
				t.Fatalf("it is logged %d times: %v", logs.Len(), logs.All())
			}
			if got := testutil.ToFloat64(g.app.metrics.URIs.WithLabelValues("refused")) - before; got < tc.refused {
				t.Errorf("%v URIs are counted, want %v", got, tc.refused)
			}
			for _, line := range logs.All() {
				fields := line.ContextMap()
				if fields["uris"] != int64(tc.refused) || !strings.Contains(fields["fix"].(string), tc.fix) || !strings.Contains(line.Message, "/demo/hls/video.m3u8") {
					t.Errorf("the log says %q %v, want %v URIs and %q", line.Message, fields, tc.refused, tc.fix)
				}
			}
		})
	}
}
