package signedplayback

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/internal/headerpolicy"
	"github.com/signed-playback/caddy-signed-playback/internal/manifestbody"
	"github.com/signed-playback/caddy-signed-playback/token"
)

// rangeNames are names that do not tell whether they are those of manifests.
var rangeNames = []string{"main.ismv", "v.dash", "v.bif", "v.mpg", "v", "v.xml", "stream.php", "x/" + rand.Text(), "downloads/v.x", "thumbnails/v", "v.vtt"}

func rangeGate(t *testing.T) (g *Gate, tok string) {
	t.Helper()
	return manifestGate(t), signed(func(c *token.Claims) { c.Downloadable = true })
}

// serveContent answers as file servers do, and lists the ranges that it was asked for.
func serveContent(body, contentType string, asked *[]string) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		*asked = append(*asked, r.Header.Get("Range"))
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Etag", `"origin"`)
		w.Header().Add("Vary", "X-Origin")
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(body))
		return nil
	}
}

// withRange asks for a range, unless it is "", with more lines of the header.
func withRange(value string, more ...string) func(*http.Request) {
	return func(r *http.Request) {
		for _, line := range append(more, "Range: "+value) {
			if name, value, _ := strings.Cut(line, ": "); value != "" {
				r.Header.Set(name, value)
			}
		}
	}
}

// F2: every part of media reaches the player, whatever its name is.
func TestRangesOfMedia(t *testing.T) {
	t.Parallel()
	g, tok := rangeGate(t)
	binary := "\x00\x00\x00\x18ftypmp42" + strings.Repeat("0123456789", 1000)
	text := strings.Repeat("0123456789", 1000)
	for _, body := range []string{binary, text, "short", "<svg>" + text, "<!--" + text + "--><svg/>", "\n\n\n", "WEBVTT\n\n00:00.000 --> 00:01.000\ntext\n"} {
		size := len(body)
		part := func(from, to int) string { return fmt.Sprintf("bytes %d-%d/%d", from, to, size) }
		for _, name := range append(slices.Clone(rangeNames), "s.ts", "s.m4s") {
			for _, tc := range []struct {
				name           string
				request        func(*http.Request)
				status         int
				from, to       int
				extent, length string
			}{
				{"from the middle", withRange("bytes=1-2"), 206, 1, 3, part(1, 2), "2"},
				{"to the end", withRange("bytes=1-"), 206, 1, size, part(1, size-1), fmt.Sprint(size - 1)},
				{"all, as ffmpeg asks", withRange("bytes=0-"), 206, 0, size, part(0, size-1), fmt.Sprint(size)},
				{"two bytes, as Safari asks", withRange("bytes=0-1"), 206, 0, 2, part(0, 1), "2"},
				{"the last bytes", withRange("bytes=-1"), 206, size - 1, size, part(size-1, size-1), "1"},
				{"past the end", withRange("bytes=20000-"), 416, 0, 0, fmt.Sprintf("bytes */%d", size), ""},
				{"of the same version", withRange("bytes=1-2", `If-Range: "origin"`), 206, 1, 3, part(1, 2), "2"},
				{"of another version", withRange("bytes=1-2", `If-Range: "other"`), 200, 0, size, "", fmt.Sprint(size)},
				{"that the player has", withRange("bytes=1-2", `If-None-Match: "origin"`), 304, 0, 0, "", ""},
				{"in another unit", withRange("items=1-2"), 416, 0, 0, "", ""},
			} {
				var asked []string
				e := exchange(t, g, requestFor(t, "/"+tok+"/"+name, tc.request), serveContent(body, "x/y", &asked))
				if tc.status == 416 {
					e.body, tc.length = "", e.header.Get("Content-Length") // an error's text
				}
				got := []any{e.status, e.body, e.header.Get("Content-Range"), e.header.Get("Content-Length"), e.header["Vary"]}
				if diff := cmp.Diff([]any{tc.status, body[tc.from:tc.to], tc.extent, tc.length, []string{"X-Origin"}}, got); diff != "" {
					t.Errorf("%s of %s, %.9q, of which the origin was asked %q (-want +got):\n%s", tc.name, name, body, asked, diff)
				}
			}
		}
	}
}

// The attack: a part of a manifest, which is not rewritten. No range of any manifest, under
// any name and type, gets anything but the whole one, rewritten.
func TestRangesOfManifests(t *testing.T) {
	t.Parallel()
	g, tok := rangeGate(t)
	mpd := `<MPD><Metrics/><BaseURL>/demo/x/</BaseURL></MPD>`
	for _, body := range []string{
		absolutePlaylist, mpd, "<!-- " + strings.Repeat("a", 2*manifestbody.MaxPrologLength) + " -->" + mpd, strings.Repeat("\n", 5000) + mpd,
		"\ufeff" + absolutePlaylist + strings.Repeat("#\n", 5000), "\n" + absolutePlaylist, "\xff\xfe#\x00E\x00X\x00T\x00M\x003\x00U\x00",
	} {
		whole := exchangeThrough(t, g, requestFor(t, "/"+tok+"/x/y", nil), reply(200, body))
		ranges := []string{"bytes=0-", "bytes=1-", "bytes=-9", "bytes=0-4096", "bytes=0-1", "bytes=9-,1-8", "bytes=0-0,1-", "bytes=00-9", "bytes= 1-9", "Bytes=1-9"}
		for n, name := range rangeNames {
			from := must(rand.Int(rand.Reader, big.NewInt(int64(len(body)))))
			for i, value := range append(ranges, fmt.Sprintf("bytes=%d-%d", from, len(body))) {
				var asked []string
				contentType := []string{"application/vnd.apple.mpegurl", "video/mp4", "text/plain", "multipart/byteranges"}[(n+i)%4]
				e := exchangeThrough(t, g, requestFor(t, "/"+tok+"/x/"+name, withRange(value)), serveContent(body, contentType, &asked))
				if e.status == http.StatusRequestedRangeNotSatisfiable {
					continue // the file server's reading of a Range
				}
				if strings.Count(name, "/") == 0 && (e.status != whole.status || e.body != whole.body) || strings.Contains(e.body, "/demo/") || e.header.Get("Content-Range") != "" {
					t.Errorf("%s of %s %s, %.30q, is %d %q, of which the origin was asked %q", value, name, contentType, body, e.status, e.body, asked)
				}
			}
		}
	}
}

// The attack: an origin, or somebody who changes its files, answers a range with another.
func TestRangesThatOriginsMisstate(t *testing.T) {
	t.Parallel()
	g, _ := rangeGate(t)
	part := func(extent string) string { return "Content-Range: bytes " + extent }
	for _, tc := range []struct {
		name, suffix string
		answers      []func(http.ResponseWriter, *http.Request) error // the last for all further requests
		want         int
	}{
		{"always the middle", "x", []func(http.ResponseWriter, *http.Request) error{reply(206, "/demo/x", part("5-11/100"))}, 502},
		{"no Content-Range", "x", []func(http.ResponseWriter, *http.Request) error{reply(206, "/demo/x")}, 502},
		{"media at first, then a manifest", "x", []func(http.ResponseWriter, *http.Request) error{reply(206, "\x00\x00", part("0-1/2")), reply(206, "#EXTM3U\n/demo/x", part("0-14/15"))}, 502},
		{"media at first, then a manifest, whole", "x", []func(http.ResponseWriter, *http.Request) error{reply(206, "\x00\x00", part("0-1/2")), reply(200, "#EXTM3U\n/demo/x")}, 200},
		{"a manifest and media by turns", "x.ts", []func(http.ResponseWriter, *http.Request) error{
			reply(206, "#EXTM3U\n", part("0-7/9")), reply(200, "<!--"+strings.Repeat(" ", 5000)+"--><a/>"), reply(206, "#EXTM3U\n", part("0-7/9")), reply(206, "#EXTM3U\n/demo/x", part("0-7/9")),
		}, 502},
		{"a beginning without end", "x", []func(http.ResponseWriter, *http.Request) error{func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Content-Range", "bytes 0-4095/9999")
			w.WriteHeader(206)
			for range 10_000 {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil {
					return err
				}
			}
			return errors.New("the gate reads everything")
		}, reply(206, "\x00", part("1-1/9"))}, 206},
		{"an error", "x", []func(http.ResponseWriter, *http.Request) error{reply(503, "down")}, 503},
		{"a compressed beginning", "x", []func(http.ResponseWriter, *http.Request) error{reply(206, zipped("#EXTM3U\n/demo/x"), part("0-9/10"), "Content-Encoding: gzip"), reply(200, zipped("#EXTM3U\n/demo/x"), "Content-Encoding: gzip")}, 200},
		{"a redirect", "x", []func(http.ResponseWriter, *http.Request) error{reply(302, "", "Location: /demo/y")}, 302},
	} {
		n := 0
		e := exchange(t, g, requestFor(t, "/"+plainToken()+"/"+tc.suffix, withRange("bytes=1-9")), func(w http.ResponseWriter, r *http.Request) error {
			n++
			return tc.answers[min(n, len(tc.answers))-1](w, r)
		})
		if e.status != tc.want || strings.Contains(e.body, "/demo/") || n > maxAttempts {
			t.Errorf("%s: %d %q after %d requests, want %d", tc.name, e.status, e.body, n, tc.want)
		}
	}
}

// A route that Caddy runs once in a request answers each request of the gate.
func TestRangesRunGroupedRoutes(t *testing.T) {
	t.Parallel()
	const groups = caddy.CtxKey("route_group")
	e := exchange(t, newGate(t, new(App), new(Gate)), requestFor(t, "/"+plainToken()+"/x", withRange("bytes=1-2")), func(w http.ResponseWriter, r *http.Request) error {
		done, _ := r.Context().Value(groups).(map[string]struct{})
		if _, ok := done["group0"]; ok {
			return nil
		}
		done["group0"] = struct{}{}
		return serveContent("\x00123", "", new([]string))(w, r)
	})
	if e.status != 206 || e.body != "12" {
		t.Errorf("got %d %q", e.status, e.body)
	}
}

// F3: media pass under the type of a playlist, with a neutral one. Other text does not,
// because it is an error page or a playlist that only some players read.
func TestMediaWithTheTypeOfAManifest(t *testing.T) {
	t.Parallel()
	g, tok := rangeGate(t)
	key := make([]byte, 16)
	_, _ = rand.Read(key)
	key[0] = 0x80 // not the beginning of a character
	packet := "G\x40\x00\x10" + strings.Repeat("\xff", 184)
	for _, tc := range []struct {
		suffix, body string
		want         int
	}{
		{"s0.ts", packet, 200},
		{"s0.ts", strings.Repeat("text", 10), 200},
		{"s0.ts", "", 200},
		{"enc.key", string(key), 200},
		{"enc.key", "0123456789abcdef", 200},
		{"keys/1", string(key), 200},
		{"keys/2", "0123456789abcdef", 200},
		{"captions", "WEBVTT\n\n00:00.000 --> 00:05.000\ntext\n", 200},
		{"data", `{"chapters":[]}`, 200},
		{"seg-1", packet, 200},
		{"init", "\x00\x00\x00\x18ftyp", 200},
		{"list", "<!doctype html><title>Fehler – 503</title>", 502},
		{"list", strings.Repeat("a", 31) + "–", 502},
		{"list", "#EXTINF:1,\n/demo/x.ts\n", 502},
		{"list", "", 502},
		{"a.m3u8", packet, 502},
	} {
		for _, contentType := range []string{"application/x-mpegURL", "application/vnd.apple.mpegurl; charset=utf-8", "application/dash+xml"} {
			for _, value := range []string{"", "bytes=0-", "bytes=1-3"} {
				var asked []string
				e := exchangeThrough(t, g, requestFor(t, "/"+tok+"/"+tc.suffix, withRange(value)), serveContent(tc.body, contentType, &asked))
				wanted, status := tc.body, tc.want
				switch {
				case status == 502:
					wanted = ""
				case value != "" && tc.body == "":
					continue
				case value == "bytes=1-3":
					wanted, status = tc.body[1:4], 206
				case value != "":
					status = 206
				}
				if e.status != status || e.body != wanted || status != 502 && e.header.Get("Content-Type") != headerpolicy.DefaultType {
					t.Errorf("%s %s %q: %d %s %q, want %d", tc.suffix, contentType, value, e.status, e.header.Get("Content-Type"), e.body, status)
				}
			}
		}
	}
}

// Two requests for a range that many players send at once share nothing.
func TestRangesDoNotChangeTheRequest(t *testing.T) {
	t.Parallel()
	var asked []string
	r := requestFor(t, "/"+plainToken()+"/x", withRange("bytes=1-2"))
	e := exchange(t, newGate(t, new(App), new(Gate)), r, func(w http.ResponseWriter, r *http.Request) error {
		r.Header.Add("X-Handler", "a")
		if diff := cmp.Diff(is("a"), r.Header["X-Handler"]); diff != "" {
			t.Errorf("the request of an earlier attempt was used again:\n%s", diff)
		}
		_, err := io.Copy(io.Discard, bytes.NewReader(nil))
		_ = serveContent("\x00123", "", &asked)(w, r)
		return err
	})
	if diff := cmp.Diff([]string{"bytes=0-4095", "bytes=1-2"}, asked); diff != "" || e.body != "12" {
		t.Errorf("the origin was asked (-want +got):\n%s", diff)
	}
}
