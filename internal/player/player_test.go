package player

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeHLSJS is accepted as hls.js: the page does not depend on what the file does.
const fakeHLSJS = "/*! hls.js */ globalThis.Hls = class {};\n"

func newPage(t *testing.T, hlsJS []byte) *Page {
	t.Helper()
	p, err := New(hlsJS, "a'&b/video.m3u8")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// servePage returns the response to a request for the page, over a connection, so that it
// includes what net/http adds.
func servePage(t *testing.T, p *Page, method, frameAncestors string) (*http.Response, string) {
	t.Helper()
	return serve(t, method, "", func(w http.ResponseWriter, r *http.Request) { p.ServePage(w, r, frameAncestors, "") })
}

func serve(t *testing.T, method, ifNoneMatch string, handler http.HandlerFunc) (*http.Response, string) {
	t.Helper()
	server := httptest.NewServer(handler)
	defer server.Close()
	r, err := http.NewRequestWithContext(t.Context(), method, server.URL+"/token/iframe", nil)
	if err != nil {
		t.Fatal(err)
	}
	if ifNoneMatch != "" {
		r.Header.Set("If-None-Match", ifNoneMatch)
	}
	res, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	res.Header.Del("Date")
	return res, string(body)
}

var (
	inlineStyles  = regexp.MustCompile(`(?s)<style[^>]*>(.*?)</style>`)
	inlineScripts = regexp.MustCompile(`(?s)<script[^>]*>(.*?)</script>`)
)

// inlineHash returns the CSP source of the one inline element of its kind.
func inlineHash(t *testing.T, element *regexp.Regexp, html string) string {
	t.Helper()
	found := element.FindAllStringSubmatch(html, -1)
	if len(found) != 1 {
		t.Fatalf("the page has %d of %s, want 1", len(found), element)
	}
	sum := sha256.Sum256([]byte(found[0][1]))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// TestPageHeaders compares all headers: an additional header could weaken another. The HTML
// tells the page's script whether there is hls.js.
func TestPageHeaders(t *testing.T) {
	t.Parallel()
	const sites = "http://example.com http://*.example.com http://[::1]:8080"
	for _, frameAncestors := range []string{"", "http://example.com", sites, "*", "'none'"} {
		for hasHLSJS, hlsJS := range map[string][]byte{"no": nil, "yes": []byte(fakeHLSJS)} {
			self, ancestors := "", ""
			if hlsJS != nil {
				self = " 'self'"
			}
			if frameAncestors != "" {
				ancestors = "; frame-ancestors " + frameAncestors
			}
			res, html := servePage(t, newPage(t, hlsJS), http.MethodGet, frameAncestors)
			want := http.Header{
				"Content-Type":   {"text/html; charset=utf-8"},
				"Content-Length": {strconv.Itoa(len(html))},
				"Content-Security-Policy": {"default-src 'none'; script-src " + inlineHash(t, inlineScripts, html) + self +
					"; style-src " + inlineHash(t, inlineStyles, html) +
					"; media-src 'self' blob: data:; img-src 'self' https: http: data:; connect-src 'self'; worker-src blob:" +
					"; base-uri 'none'; form-action 'none'" + ancestors},
				"Referrer-Policy":        {"same-origin"},
				"X-Content-Type-Options": {"nosniff"},
			}
			if diff := cmp.Diff(want, res.Header); diff != "" || res.StatusCode != http.StatusOK {
				t.Errorf("frame ancestors %q, hls.js %s: status %d, headers (-want +got):\n%s", frameAncestors, hasHLSJS, res.StatusCode, diff)
			}
			if !strings.Contains(html, `<html lang="en" data-hls-js="`+hasHLSJS+`" data-manifest="a&#39;&amp;b/video.m3u8">`) {
				t.Errorf("the page does not say that it has hls.js: %s", hasHLSJS)
			}
		}
	}
}

// TestRefusalHeaders: the page of a refused video may be in any frame, so it must not be able
// to play one. The reason becomes no markup.
func TestRefusalHeaders(t *testing.T) {
	t.Parallel()
	p := newPage(t, []byte(fakeHLSJS))
	res, html := serve(t, http.MethodGet, "", func(w http.ResponseWriter, _ *http.Request) { p.ServeRefusal(w, `token_expired"><script>`, 401) })
	want := http.Header{
		"Content-Type":   {"text/html; charset=utf-8"},
		"Content-Length": {strconv.Itoa(len(html))},
		"Content-Security-Policy": {"default-src 'none'; script-src " + inlineHash(t, inlineScripts, html) + "; style-src " + inlineHash(t, inlineStyles, html) +
			"; img-src data:; base-uri 'none'; form-action 'none'"},
		"Referrer-Policy":        {"same-origin"},
		"X-Content-Type-Options": {"nosniff"},
	}
	if diff := cmp.Diff(want, res.Header); diff != "" || res.StatusCode != http.StatusUnauthorized {
		t.Errorf("status %d, headers (-want +got):\n%s", res.StatusCode, diff)
	}
	const attributes = ` data-refused="token_expired&#34;&gt;&lt;script&gt;" data-status="401"`
	_, page := servePage(t, p, http.MethodGet, "")
	if got := strings.Replace(html, "<html"+attributes, "<html", 1); got != page || got == html {
		t.Errorf("the page of a refusal differs from the page by more than its reason: %.200s", html)
	}
}

// TestFrameAncestorsInjection: a value that ends the directive must neither add another
// directive nor extend the list (C5).
func TestFrameAncestorsInjection(t *testing.T) {
	t.Parallel()
	p := newPage(t, nil)
	for _, value := range []string{
		"http://example.com; script-src *",
		"http://example.com, default-src *",
		"http://example.com\r\nX: y",
		"http://example.com\x00",
		"http://exämple.com",
		";",
	} {
		res, _ := servePage(t, p, http.MethodGet, value)
		policies := res.Header["Content-Security-Policy"]
		if want := []string{p.policy + "; frame-ancestors 'none'"}; !cmp.Equal(want, policies) {
			t.Errorf("%q: %s", value, cmp.Diff(want, policies))
		}
	}
}

func TestPageHead(t *testing.T) {
	t.Parallel()
	p := newPage(t, []byte(fakeHLSJS))
	get, _ := servePage(t, p, http.MethodGet, "http://example.com")
	head, body := servePage(t, p, http.MethodHead, "http://example.com")
	if body != "" {
		t.Errorf("HEAD has a body of %d bytes", len(body))
	}
	if diff := cmp.Diff(get.Header, head.Header); diff != "" {
		t.Errorf("HEAD and GET differ (-get +head):\n%s", diff)
	}
	// net/http drops the body of a HEAD response; other servers may not.
	recorder := httptest.NewRecorder()
	p.ServePage(recorder, httptest.NewRequest(http.MethodHead, "/token/iframe", nil), "", "")
	if recorder.Body.Len() != 0 {
		t.Error("ServePage writes a body for HEAD")
	}
}

// TestPageIsSelfContained: the page must not lead the browser, and with it the token, to
// another server, and must not use what the policy forbids.
func TestPageIsSelfContained(t *testing.T) {
	t.Parallel()
	for _, hlsJS := range [][]byte{nil, []byte(fakeHLSJS)} {
		_, html := servePage(t, newPage(t, hlsJS), http.MethodGet, "")
		for what, pattern := range map[string]string{
			"an absolute URL":          `(?i)(https?|wss?|ftp):?//`,
			"a protocol-relative URL":  `["'(=]\s*//[a-z]`,
			"an event handler":         `(?i)<[^>]*\son[a-z]+\s*=`,
			"a style attribute":        `(?i)<[^>]*\sstyle\s*=`,
			"an import":                `(?i)@import|import\s*\(`,
			"a style that loads":       `\burl\(`,
			"markup made from text":    `innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(`,
			"a message to any origin":  `postMessage\([^)]*['"]\*['"]`,
			"an unfilled placeholder":  `\{\{[^}]*\}\}`,
			"a line end that is no LF": `\r`,
		} {
			if found := regexp.MustCompile(pattern).FindString(html); found != "" {
				t.Errorf("the page contains %s: %q", what, found)
			}
		}
	}
}

// TestLineEnds: a browser's parser turns CR LF into LF before it hashes.
func TestLineEnds(t *testing.T) {
	t.Parallel()
	if got := asParsed("a\r\nb\n"); got != "a\nb\n" {
		t.Errorf("%q", got)
	}
}

// words is words.json.
type words struct {
	Reasons map[string]string            `json:"reasons"` // to keys of texts
	Texts   map[string]map[string]string `json:"texts"`   // by language
}

func readWords(t *testing.T) words {
	t.Helper()
	var w words
	if err := json.Unmarshal([]byte(read("words.json")), &w); err != nil {
		t.Fatal(err)
	}
	return w
}

// TestReasonsHaveWords compares the texts of reasons with the table of the manual.
func TestReasonsHaveWords(t *testing.T) {
	t.Parallel()
	manual, err := os.ReadFile("../../docs/player.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]string)
	for _, row := range regexp.MustCompile("(?m)^\\| (`[a-z_`, ]+`) \\| (.+) \\|$").FindAllStringSubmatch(string(manual), -1) {
		for name := range strings.SplitSeq(strings.ReplaceAll(row[1], "`", ""), ", ") {
			documented[name] = row[2]
		}
	}
	w := readWords(t)
	for reason, key := range w.Reasons {
		if text := w.Texts["en"][key]; text == "" || documented[reason] != text {
			t.Errorf("%s: the page says %q, the manual %q", reason, text, documented[reason])
		}
	}
}

// TestLanguagesAreComplete: a viewer would read "undefined".
func TestLanguagesAreComplete(t *testing.T) {
	t.Parallel()
	texts := readWords(t).Texts
	if got, want := slices.Sorted(maps.Keys(texts)), []string{"de", "en", "es", "fr"}; !slices.Equal(got, want) {
		t.Errorf("languages %v, want %v", got, want)
	}
	used := make(map[string]bool)
	for _, name := range scriptFiles {
		for _, key := range regexp.MustCompile(`TEXTS\.(\w+)`).FindAllStringSubmatch(read(name+".js"), -1) {
			used[key[1]] = true
		}
	}
	for _, key := range readWords(t).Reasons {
		used[key] = true
	}
	want := slices.Sorted(maps.Keys(used))
	placeholder := regexp.MustCompile(`\{\w+\}`)
	for language, of := range texts {
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(of))); diff != "" {
			t.Errorf("%s (-used by the page +has):\n%s", language, diff)
		}
		for key, text := range of {
			if text == "" || !slices.Equal(placeholder.FindAllString(text, -1), placeholder.FindAllString(texts["en"][key], -1)) {
				t.Errorf("%s: %s is %q", language, key, text)
			}
		}
	}
}

func TestServeHLSJS(t *testing.T) {
	t.Parallel()
	content := []byte(fakeHLSJS)
	p := newPage(t, content)
	content[0] = 'X' // the page keeps its own copy
	res, body := serve(t, http.MethodGet, "", p.ServeHLSJS)
	etag := res.Header.Get("Etag")
	want := http.Header{
		"Accept-Ranges": {"bytes"}, "Content-Length": {strconv.Itoa(len(fakeHLSJS))}, "Content-Type": {"text/javascript; charset=utf-8"},
		"Etag": {etag}, "X-Content-Type-Options": {"nosniff"},
	}
	if diff := cmp.Diff(want, res.Header); diff != "" || res.StatusCode != http.StatusOK || body != fakeHLSJS {
		t.Errorf("status %d, body %q, headers (-want +got):\n%s", res.StatusCode, body, diff)
	}
	if res, body := serve(t, http.MethodHead, "", p.ServeHLSJS); res.StatusCode != http.StatusOK || body != "" {
		t.Errorf("HEAD: status %d, body %q", res.StatusCode, body)
	}
	for tag, status := range map[string]int{etag: 304, "*": 304, `"other"`: 200} {
		if res, _ := serve(t, http.MethodGet, tag, p.ServeHLSJS); res.StatusCode != status {
			t.Errorf("If-None-Match: %s: status %d, want %d", tag, res.StatusCode, status)
		}
	}
	other, _ := serve(t, http.MethodGet, "", newPage(t, []byte(fakeHLSJS+";")).ServeHLSJS)
	if other.Header.Get("Etag") == etag || !regexp.MustCompile(`^"[0-9a-f]{32}"$`).MatchString(etag) {
		t.Errorf("ETag %s, and another file has %s", etag, other.Header.Get("Etag"))
	}
	if res, _ := serve(t, http.MethodGet, "", newPage(t, nil).ServeHLSJS); res.StatusCode != http.StatusNotFound {
		t.Errorf("without a file: status %d, want 404", res.StatusCode)
	}
}

// TestNewRefuses tries files that operators configure instead of dist/hls.min.js. The
// integration tests try all files of the package.
func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, hlsJS := range []string{
		"", "\n", "self.Hls=e()\xff\xfe", "<!DOCTYPE html><title>404</title><script>self.Hls=e()</script>", "\uFEFF <html>self.Hls=1", "class Hls{};export{Hls as default};",
		"class Hls {}\nexport { Hls as default };\n", "export default class Hls {}", "window.Hls == 1", `{"sources":["self.Hls = factory()"]}`, "404: Not Found",
		`self.Hls=e();"hlsManifestLoading";"ManagedMediaSource"`, `self.Hls=e();"hlsManifestLoading";"createMediaKeys"`,
	} {
		if p, err := New([]byte(hlsJS), "manifest/video.m3u8"); err == nil || p != nil {
			t.Errorf("%q: accepted", hlsJS)
		}
	}
	newPage(t, []byte(`self.Hls = e();"hlsManifestLoading";"ManagedMediaSource";"createMediaKeys"`))
}
