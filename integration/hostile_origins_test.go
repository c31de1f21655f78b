package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// asking is a request for a video by a page, and whether the page may have it.
type asking struct {
	name   string
	video  string
	site   string // what stands in Origin, and in front of a path in Referer
	reason string // "" if it passes
}

const notAllowed = "origin_not_allowed"

// ask sends every row as a browser would in both ways: with Origin and with
// Referer.
func (g *gateway) ask(t *testing.T, o *origin, rows []asking) {
	t.Helper()
	if len(rows) == 0 {
		t.Fatal("no rows")
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			target := "/" + mint(t, row.video, nil) + "/seg.ts"
			for _, header := range []string{"Origin: " + row.site, "Referer: " + row.site, "Referer: " + row.site + "/", "Referer: " + row.site + "/watch?v=1"} {
				res := g.raw(t, rawGet(target, header))
				wantNoCredentials(t, res)
				if row.reason == "" {
					o.wantPassed(t, res, "/"+row.video+"/seg.ts")
				} else {
					o.wantRefused(t, res, http.StatusForbidden, row.reason)
				}
			}
		})
	}
}

// allowing is a video block with allowed origins.
func allowing(video string, patterns ...string) string {
	return "video " + video + " {\nallowed_origins " + strings.Join(patterns, " ") + "\n}\n"
}

// A page on another site must not play the video, however its host is made to
// look like an allowed one.
func TestHostileSites(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{
		app: allowing("exact", "example.com") + allowing("wild", "*.example.com") +
			allowing("port", "example.com:8443", "secure.example:443") + allowing("local", "localhost:3000", "[::1]:8080", "192.0.2.1") +
			allowing("plain", "localhost") + allowing("puny", "xn--e1afmkfd.example") + allowing("idn", "пример.example") + allowing("any", "*"),
	})
	var rows []asking
	add := func(id, video, reason string, sites ...string) {
		for _, site := range sites {
			rows = append(rows, asking{fmt.Sprintf("%s %s from %.60s", id, video, site), video, site, reason})
		}
	}
	add("R1", "exact", "", "https://example.com", "http://example.com")
	add("R1", "exact", notAllowed, "https://evil-example.com", "https://example.com.evil.com", "https://notexample.com", "https://example.comevil",
		"https://www.example.com", "https://example.co", "https://xample.com", "https://com", "https://example_com", "https://example-com", "https://example.com-evil.com")
	add("R2", "wild", "", "https://a.example.com", "https://a.b.example.com", "https://example.com", "https://a_b.example.com", "https://xn--e1afmkfd.example.com")
	add("R2", "wild", notAllowed, "https://.example.com", "https://evilexample.com", "https://*.example.com", "https://a..example.com", "https://-a.example.com",
		"https://a.example.com.evil.com", "https://aexample.com", "https://a.example.co", "https://com", "https://..example.com", "https://a.-.example.com",
		"https://a.example.com..", "https://%61.example.com", "https://a b.example.com", "https://"+strings.Repeat("a.", 130)+"example.com")
	add("R3", "exact", notAllowed, "https://user@example.com", "https://user:pass@example.com", "https://example.com@evil.com", "https://example.com:443@evil.com",
		"https://@example.com", "https://evil.com#@example.com", "https://evil.com?.example.com", "https://evil.com/example.com", `https://evil.com\.example.com`,
		`https://evil.com\@example.com`, "https://evil.com\x09.example.com", "https://evil.com;.example.com", "https://evil.com&.example.com", "https://evil.com,example.com",
		"https://example.com%2eevil.com", "https://example.com%00.evil.com", "https://evil.com%23.example.com", "https:///example.com", "https:////evil.com", "https:example.com",
		"https:/example.com", "//example.com", "example.com", "://example.com", "https://", "https", ":", " https://evil.com")
	add("R4", "exact", "", "https://EXAMPLE.COM", "https://Example.Com", "https://example.com.", "https://example.com:443", "http://example.com:80", "HTTPS://example.com", "hTTp://example.com")
	add("R4", "exact", notAllowed, "https://example.com:80", "http://example.com:443", "https://example.com:8443", "https://example.com:", "https://example.com:99999", "https://example.com:0",
		"https://example.com:0443", "https://example.com:+443", "https://example.com:443:443", "https://example.com:4 43", "https://example.com..", "https://example.com:-443", "https://example.com:٤٤٣")
	add("R4", "port", "", "https://example.com:8443", "http://example.com:8443", "https://secure.example", "https://secure.example:443")
	add("R4", "port", notAllowed, "https://example.com", "https://example.com:84", "https://a.example.com:8443", "http://secure.example", "https://secure.example:8443")
	add("R5", "local", "", "http://localhost:3000", "https://localhost:3000", "http://[::1]:8080", "http://[0:0:0:0:0:0:0:1]:8080", "http://192.0.2.1", "http://192.0.2.1.", "https://192.0.2.1:443")
	add("R5", "local", notAllowed, "http://localhost", "http://localhost:3001", "http://127.0.0.1:3000", "http://a.localhost:3000", "http://[::1]", "http://[::1]:3000", "http://::1:8080",
		"http://[::ffff:127.0.0.1]:8080", "http://[fe80::1%25lo]:8080", "http://[::1%25lo]:8080", "http://[::1]8080", "http://[::1", "http://[]:8080", "http://[::ffff:192.0.2.1]", "http://192.0.2.01",
		"http://3221225985", "http://0xc0.0.2.1", "http://192.0.513", "http://1.192.0.2.1")
	add("R5", "plain", "", "http://localhost", "https://localhost")
	add("R5", "plain", notAllowed, "http://localhost:3000", "https://localhost:80", "http://127.0.0.1", "http://[::1]")
	for _, video := range []string{"puny", "idn"} {
		add("R6", video, "", "https://xn--e1afmkfd.example", "https://XN--E1AFMKFD.example")
		add("R6", video, notAllowed, "https://пример.example", "https://xn--e1afmkfd。example", "https://xn--e1afmkfd%E3%80%82example", "https://xn--example-.com", "https://xn--a.example",
			"https://xn--.example", "https://primer.example", "https://xn--e1afmkfd.example.evil.com", "https://\xd0\xbf.example")
	}
	add("R7", "exact", notAllowed, "null", "NULL", "about:blank", "data:text/html,x", "file://", "javascript:1", "blob:https://example.com")
	add("R10", "exact", notAllowed, "ws://example.com", "ftp://example.com", "httpsx://example.com", "xhttps://example.com", "http+unix://example.com", "file://example.com", "moz-extension://example.com")
	add("R12", "any", "", "https://evil.com", "http://[::1]:8080")
	add("R12", "any", notAllowed, "null", "https://user@example.com")
	g.ask(t, o, rows)
}

// Two answers to the question where a page is, or none where one is due, must
// not be answered with the video.
func TestHostileOriginHeaders(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{app: "allowed_origins example.com\n" + allowing("own", "other.example") +
		"video lax {\nmissing_origin allow\n}\nvideo strict {\nmissing_origin deny\nallowed_origins example.com\n}\n" +
		"video open {\nrequire_signed_urls off\n}\n"})
	lax := start(t, o, config{app: "allowed_origins example.com\nmissing_origin allow\nvideo strict {\nmissing_origin deny\n}\n"})

	for _, row := range []struct {
		name   string
		g      *gateway
		video  string
		suffix string
		header []string
		reason string
	}{
		{"R8 neither, a segment", g, "vidA", "seg.ts", nil, "origin_required"},
		{"R8 neither, a manifest", g, "vidA", "manifest/video.m3u8", nil, "origin_required"},
		{"R8 neither, an iframe", g, "vidA", "iframe", nil, "origin_required"},
		{"R8 neither, an iframe in a document", g, "vidA", "iframe", []string{"Sec-Fetch-Dest: document"}, "origin_required"},
		{"R8 neither, an iframe that says so twice", g, "vidA", "iframe", []string{"Sec-Fetch-Dest: iframe", "Sec-Fetch-Dest: iframe"}, "origin_required"},
		{"R8 neither, a frame", g, "vidA", "iframe", []string{"Sec-Fetch-Dest: frame"}, "origin_required"},
		{"R8 neither, an object", g, "vidA", "iframe", []string{"Sec-Fetch-Dest: object"}, "origin_required"},
		{"R8 neither, a segment in an iframe", g, "vidA", "seg.ts", []string{"Sec-Fetch-Dest: iframe"}, "origin_required"},
		{"R8 neither, a manifest in an iframe", g, "vidA", "manifest/video.m3u8", []string{"Sec-Fetch-Dest: iframe"}, "origin_required"},
		{"R8 neither, a suffix that ends in iframe", g, "vidA", "x/iframe", []string{"Sec-Fetch-Dest: iframe"}, "origin_required"},
		{"R8 neither, settings that inherit the list", g, "lax", "seg.ts", nil, ""},
		{"R8 neither, settings that inherit the list, another site", g, "lax", "seg.ts", []string{"Origin: https://evil.com"}, notAllowed},
		{"R8 neither, its own settings", g, "strict", "seg.ts", nil, "origin_required"},
		{"R8 neither, allowed for all", lax, "vidA", "seg.ts", nil, ""},
		{"R8 neither, allowed for all but this", lax, "strict", "seg.ts", nil, "origin_required"},
		{"R8 neither, allowed for all, another site", lax, "vidA", "seg.ts", []string{"Referer: https://evil.com/"}, notAllowed},
		{"R8 an empty Origin", g, "vidA", "seg.ts", []string{"Origin:"}, notAllowed},
		{"R8 an empty Referer", g, "vidA", "seg.ts", []string{"Referer:"}, notAllowed},
		{"R8 an empty Origin where none is allowed", lax, "vidA", "seg.ts", []string{"Origin:"}, notAllowed},
		{"R7 null where none is allowed", lax, "vidA", "seg.ts", []string{"Origin: null"}, notAllowed},
		{"R7 null in an iframe", g, "vidA", "iframe", []string{"Origin: null", "Sec-Fetch-Dest: iframe"}, notAllowed},
		{"R9 two Referers", g, "vidA", "seg.ts", []string{"Referer: https://example.com/", "Referer: https://evil.com/"}, notAllowed},
		{"R9 two Referers, the good one last", g, "vidA", "seg.ts", []string{"Referer: https://evil.com/", "Referer: https://example.com/"}, notAllowed},
		{"R9 the same Referer twice", g, "vidA", "seg.ts", []string{"Referer: https://example.com/", "referer: https://example.com/"}, notAllowed},
		{"R9 two Origins", g, "vidA", "seg.ts", []string{"Origin: https://example.com", "Origin: https://evil.com"}, notAllowed},
		{"R9 the same Origin twice", g, "vidA", "seg.ts", []string{"Origin: https://example.com", "Origin: https://example.com"}, notAllowed},
		{"R9 a good Origin and two Referers", g, "vidA", "seg.ts", []string{"Origin: https://example.com", "Referer: https://example.com/", "Referer: https://evil.com/"}, notAllowed},
		{"R9 a list of Origins", g, "vidA", "seg.ts", []string{"Origin: https://example.com, https://evil.com"}, notAllowed},
		{"R9 a list with spaces", g, "vidA", "seg.ts", []string{"Origin: https://example.com https://evil.com"}, notAllowed},
		{"R9 good Origin, evil Referer", g, "vidA", "seg.ts", []string{"Origin: https://example.com", "Referer: https://evil.com/"}, ""},
		{"R9 evil Origin, good Referer", g, "vidA", "seg.ts", []string{"Origin: https://evil.com", "Referer: https://example.com/"}, notAllowed},
		{"R9 Origin null, good Referer", g, "vidA", "seg.ts", []string{"Origin: null", "Referer: https://example.com/"}, notAllowed},
		{"R9 empty Origin, good Referer", g, "vidA", "seg.ts", []string{"Origin:", "Referer: https://example.com/"}, notAllowed},
		{"R9 a Referer that is spelt right", g, "vidA", "seg.ts", []string{"Referrer: https://example.com/"}, "origin_required"},
		{"R9 other spellings of Origin", g, "vidA", "seg.ts", []string{"X-Origin: https://example.com", "Sec-Origin: https://example.com"}, "origin_required"},
		{"R1 the list of all, not its own", g, "own", "seg.ts", []string{"Origin: https://example.com"}, notAllowed},
		{"R1 its own list", g, "own", "seg.ts", []string{"Origin: https://other.example"}, ""},
		{"R1 a manifest", g, "vidA", "manifest/video.mpd", []string{"Origin: https://evil.com"}, notAllowed},
		{"R1 a thumbnail", g, "vidA", "thumbnails/1.jpg", []string{"Referer: https://evil.com/"}, notAllowed},
		{"R1 a download", g, "vidA", "downloads/x.mp4", []string{"Referer: https://evil.com/"}, notAllowed},
		{"R11 own page, a segment", g, "vidA", "seg.ts", []string{"Origin: http://media.example.com"}, ""},
		{"R11 own page behind TLS, a segment", g, "vidA", "seg.ts", []string{"Origin: https://media.example.com"}, ""},
		{"R11 own page, by Referer", g, "vidA", "seg.ts", []string{"Referer: https://media.example.com/x/iframe"}, ""},
		{"R11 own page, the iframe", g, "vidA", "iframe", []string{"Origin: http://media.example.com"}, notAllowed},
		{"R11 own page, the iframe by Referer", g, "vidA", "iframe", []string{"Referer: https://media.example.com/"}, notAllowed},
		{"R11 own page, the iframe in an iframe", g, "vidA", "iframe", []string{"Referer: https://media.example.com/", "Sec-Fetch-Dest: iframe"}, notAllowed},
		{"R11 own host on another port", g, "vidA", "seg.ts", []string{"Origin: https://media.example.com:8443"}, notAllowed},
		{"R11 below the own host", g, "vidA", "seg.ts", []string{"Origin: https://a.media.example.com"}, notAllowed},
		{"R11 own page by X-Forwarded-Host", g, "vidA", "seg.ts", []string{"Origin: https://evil.com", "X-Forwarded-Host: evil.com"}, notAllowed},
		{"R11 an allowed page, the iframe", g, "vidA", "iframe", []string{"Referer: https://example.com/"}, ""},
		{"R11 an evil page, the iframe", g, "vidA", "iframe", []string{"Referer: https://evil.com/", "Sec-Fetch-Dest: iframe"}, notAllowed},
	} {
		t.Run(row.name, func(t *testing.T) {
			res := row.g.raw(t, rawGet("/"+mint(t, row.video, nil)+"/"+row.suffix, row.header...))
			wantNoCredentials(t, res)
			if row.reason == "" {
				o.wantPassed(t, res, "/"+row.video+"/"+row.suffix)
			} else {
				o.wantRefused(t, res, http.StatusForbidden, row.reason)
			}
		})
	}
	t.Run("R11 own page without a token", func(t *testing.T) {
		o.wantRefused(t, g.raw(t, rawGet("/vidA/seg.ts", "Origin: http://media.example.com")), http.StatusUnauthorized, "token_required")
	})
	t.Run("R1 a video that needs no token", func(t *testing.T) {
		o.wantPassed(t, g.raw(t, rawGet("/open/seg.ts", "Origin: https://example.com")), "/open/seg.ts")
		o.wantRefused(t, g.raw(t, rawGet("/open/seg.ts", "Origin: https://evil.com")), http.StatusForbidden, notAllowed)
		o.wantRefused(t, g.raw(t, rawGet("/open/seg.ts")), http.StatusForbidden, "origin_required")
	})
	t.Run("R1 a token does not stand in for a site", func(t *testing.T) {
		o.wantRefused(t, g.raw(t, rawGet("/"+mint(t, "open", nil)+"/seg.ts", "Origin: https://evil.com")), http.StatusForbidden, notAllowed)
	})
}

// An iframe whose page hides where it is gets in on the browser's word, so the
// browser must be told who may embed it, on every such answer.
func TestHostileFraming(t *testing.T) {
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy", "frame-ancestors *")
	}))
	g := start(t, o, config{app: allowing("one", "example.com") + allowing("many", "*.example.com", "shop.example:8443", "[::1]:8080", "xn--e1afmkfd.example") + allowing("any", "*")})
	want := map[string]string{
		"one":  "frame-ancestors http://example.com",
		"many": "frame-ancestors http://example.com http://*.example.com http://shop.example:8443 http://[::1]:8080 http://xn--e1afmkfd.example",
		"any":  "frame-ancestors *",
	}
	for video, policy := range want {
		T := mint(t, video, nil)
		for name, header := range map[string]string{"hidden": "Sec-Fetch-Dest: iframe", "allowed": "Referer: https://example.com/"} {
			for _, target := range []string{"/" + T, "/" + T + "/", "/" + T + "/iframe"} {
				t.Run("R8 "+video+" in a page that is "+name, func(t *testing.T) {
					res := g.raw(t, rawGet(target, header))
					o.wantPassed(t, res, "/"+video+"/iframe")
					if got := res.Header.Values("Content-Security-Policy"); !slices.Contains(got, policy) {
						t.Errorf("Content-Security-Policy is %q, without %q", got, policy)
					}
				})
			}
		}
	}
}

// What operators mistype must not end up as a list that allows more, or
// nobody.
func TestHostileOriginPatterns(t *testing.T) {
	adapt := func(t *testing.T, pattern string) (string, bool) {
		t.Helper()
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "Caddyfile"), []byte("{\nsigned_playback {\nallowed_origins "+pattern+"\n}\n}\n"))
		return caddyIn(t, dir, "adapt", "--config", "Caddyfile")
	}
	t.Run("R12 good ones", func(t *testing.T) {
		if output, ok := adapt(t, "* example.com *.example.com *.com localhost localhost:3000 [::1] [::1]:8080 192.0.2.1 a_b.example xn--e1afmkfd.example пример.example EXAMPLE.org"); !ok {
			t.Errorf("refused: %s", lastLine(output))
		}
	})
	for pattern, why := range map[string]string{
		"https://*":                         "allowed origin must not specify protocol",
		"https://example.com":               "allowed origin must not specify protocol",
		"//example.com":                     "allowed origin must not specify protocol",
		"example.com/path":                  "example.com/path",
		"example.com/":                      "example.com/",
		"*example.com":                      "*example.com",
		"ex*ple.com":                        "ex*ple.com",
		"**.a":                              "**.a",
		"*.*.a":                             "*.*.a",
		"a.*.b":                             "a.*.b",
		"*.":                                "*.",
		"*:443":                             "*:443",
		"example.*":                         "example.*",
		".example.com":                      ".example.com",
		"a..b":                              "a..b",
		"-a.example":                        "-a.example",
		"\"example.com\n\"":                 "example.com",
		"\"exa mple.com\"":                  "exa mple.com",
		"\"\"":                              "empty",
		"user@example.com":                  "user@example.com",
		"example.com:":                      "example.com:",
		"example.com:0":                     "example.com:0",
		"example.com:99999":                 "example.com:99999",
		"example.com:*":                     "example.com:*",
		"::1":                               "::1",
		"[::1":                              "[::1",
		"[::1%lo]":                          "[::1%lo]",
		"*.192.0.2.1":                       "*.192.0.2.1",
		"192.0.2.01":                        "192.0.2.01",
		"0x7f.1":                            "0x7f.1",
		"xn--example-.com":                  "xn--example-.com",
		"`example.com; script-src *`":       "script-src",
		"'self'":                            "self",
		"null,example.com":                  "null,example.com",
		"example.org localhost example.org": "repeated",
	} {
		t.Run(fmt.Sprintf("R12 %q", pattern), func(t *testing.T) {
			output, ok := adapt(t, pattern)
			if ok || !strings.Contains(output, strings.Trim(fmt.Sprintf("%q", why), `"`)) && !strings.Contains(output, why) {
				t.Errorf("accepted: %t; want a message with %q, got %s", ok, why, lastLine(output))
			}
		})
	}
	for _, pattern := range []string{"https://example.com", "ex*ple.com", "example.com/path", "example.com\n", "", "example.com; script-src *", "example.com\r\nX: y"} {
		t.Run(fmt.Sprintf("R12 in JSON, %q", pattern), func(t *testing.T) {
			for _, app := range []map[string]any{
				{"allowed_origins": []string{pattern}},
				{"video": map[string]any{"vidA": map[string]any{"allowed_origins": []string{"example.com", pattern}}}},
			} {
				doc, err := json.Marshal(map[string]any{"admin": map[string]any{"disabled": true}, "apps": map[string]any{"signed_playback": app}})
				if err != nil {
					t.Fatal(err)
				}
				dir := t.TempDir()
				writeFile(t, filepath.Join(dir, "caddy.json"), doc)
				if output, ok := caddyIn(t, dir, "validate", "--config", "caddy.json"); ok {
					t.Errorf("accepted: %s", output)
				}
			}
		})
	}
}

// What a page on another site may read must not turn on what it says: no echo
// of an origin that is not allowed, nothing for the viewer's cookies.
func TestHostileCORS(t *testing.T) {
	o := startOrigin(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "https://evil.com")
		h.Set("Access-Control-Allow-Credentials", "true")
		h.Set("Access-Control-Allow-Methods", "DELETE")
	}))
	g := start(t, o, config{app: allowing("listed", "example.com", "*.example.com")})
	for _, row := range []struct {
		name, video, origin, want string
		status                    int
	}{
		{"R13 an allowed site", "listed", "https://example.com", "https://example.com", 200},
		{"R13 an allowed site in capitals", "listed", "https://EXAMPLE.com", "https://EXAMPLE.com", 200},
		{"R13 another allowed site", "listed", "https://a.example.com", "https://a.example.com", 200},
		{"R13 a site that is not allowed", "listed", "https://evil.com", "*", 403},
		{"R13 null", "listed", "null", "*", 403},
		{"R13 a line break", "listed", "https://example.com%0d%0aX: y", "*", 403},
		{"R13 no list", "free", "https://evil.com", "*", 200},
		{"R13 no list, null", "free", "null", "*", 200},
	} {
		t.Run(row.name, func(t *testing.T) {
			res := g.raw(t, rawGet("/"+mint(t, row.video, nil)+"/seg.ts", "Origin: "+row.origin))
			o.take()
			if res.StatusCode != row.status {
				t.Errorf("got %d, want %d", res.StatusCode, row.status)
			}
			if got := res.Header.Values("Access-Control-Allow-Origin"); len(got) != 1 || got[0] != row.want {
				t.Errorf("Access-Control-Allow-Origin is %q, want one %q", got, row.want)
			}
			wantNoCredentials(t, res)
			if got := res.Header.Values("Access-Control-Allow-Methods"); len(got) != 0 {
				t.Errorf("Access-Control-Allow-Methods is %q", got)
			}
			vary := strings.Join(res.Header.Values("Vary"), ",")
			if row.video == "listed" && !strings.Contains(vary, "Origin") {
				t.Errorf("Vary is %q, without Origin: a cache would hand it to other sites", vary)
			}
		})
	}
}

// The origin server's log is nobody's place for tokens: neither the URL nor any
// header that a browser or an attacker sends along takes one there.
func TestHostileTokenLeak(t *testing.T) {
	o := startOrigin(t, nil)
	g := start(t, o, config{app: allowing("vidA", "example.com", "media.example.com")})
	T := mint(t, "vidA", nil)
	secret := T[strings.LastIndexByte(T, '.')+1:]
	page := "https://media.example.com/" + T + "/iframe"
	for _, suffix := range []string{"", "/", "/iframe", "/seg.ts", "/manifest/video.m3u8", "/thumbnails/1.jpg"} {
		res := g.raw(t, rawGet("/"+T+suffix, "Referer: "+page, "Sec-Fetch-Dest: empty", "X-Forwarded-Uri: /"+T+"/x", "X-Original-URL: /"+T+"/x",
			"X-Rewrite-URL: "+page, "X-Forwarded-Path: /"+T, "X-Forwarded-Prefix: /"+T, "X-Original-URI: /"+T, "X_Original_URL: /"+T))
		if suffix == "" || suffix == "/" || suffix == "/iframe" {
			// The own page is a listed site here, so the iframe plays too.
			if res.StatusCode != http.StatusOK {
				t.Errorf("R11 %q: got %d %q", suffix, res.StatusCode, res.reason())
			}
		}
		requests := o.take()
		if len(requests) != 1 {
			t.Fatalf("R13 %q: the origin saw %d requests, want 1", suffix, len(requests))
		}
		for _, seen := range requests {
			if strings.Contains(seen.uri, secret) || strings.Contains(seen.body, secret) {
				t.Errorf("R13 the origin was asked for %q", seen.uri)
			}
			for name, values := range seen.header {
				if strings.Contains(strings.Join(values, ","), secret) {
					t.Errorf("R13 the token is in %s", name)
				}
			}
			for _, name := range []string{"Referer", "Origin"} {
				if got := seen.header[name]; len(got) != 0 {
					t.Errorf("R13 the origin saw %s: %q", name, got)
				}
			}
		}
		wantNotEchoed(t, res, T)
	}
}
