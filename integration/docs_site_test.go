package integration

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

var (
	linkOfTheSite = regexp.MustCompile(`(?:href|src)="?([^"\s>]+)`)
	idOfTheSite   = regexp.MustCompile(`\bid="?([^"\s>]+)`)
)

// The site of the documentation has all pages, its links lead to files and headings that
// exist, it fits a phone, and its search leads to the section that has the words.
func TestLongDocumentationSite(t *testing.T) {
	succeed(t, "make -C .. docs-build >&2")
	pages := make(map[string]string)
	for _, name := range must(filepath.Glob("../dist/docs/*.html"))(t) {
		pages[filepath.Base(name)] = readText(t, name)
	}
	for _, source := range must(filepath.Glob("../docs/*.md"))(t) {
		name := strings.TrimSuffix(filepath.Base(source), ".md") + ".html"
		if name == "README.html" {
			name = "index.html"
		}
		if pages[name] == "" {
			t.Errorf("the site has no page %s", name)
		}
	}
	for name, text := range pages {
		for _, m := range linkOfTheSite.FindAllStringSubmatch(text, -1) {
			wantTarget(t, pages, name, m[1])
		}
	}

	site := httptest.NewServer(http.StripPrefix("/below/a/folder/", http.FileServer(http.Dir("../dist/docs"))))
	t.Cleanup(site.Close)
	address := site.URL + "/below/a/folder/"
	p := openTab(t, watchPolicy)
	const width = 360
	p.do(t, chromedp.EmulateViewport(width, 640))
	for name := range pages {
		p.open(t, address+name)
		if wide := evaluate[int](t, p, "document.documentElement.scrollWidth"); wide > width {
			t.Errorf("%s is %d pixels wide", name, wide)
		}
		if got := evaluate[[]string](t, p, "violations"); len(got) > 0 {
			t.Errorf("the policy of %s refuses what the page does: %v", name, got)
		}
	}
	found := func() []string {
		return evaluate[[]string](t, p, `[...document.querySelectorAll('#results a')].map(link => link.getAttribute('href'))`)
	}
	evaluate[bool](t, p, `(input => { input.value = 'Max_Token_Lifetime'; return input.dispatchEvent(new Event('input')) })(document.querySelector('input'))`)
	eventually(t, "the search finds the option", func() bool { return slices.Contains(found(), address+"caddyfile.html#max_token_lifetime") })
}

// wantTarget checks a link of a page. It may lead to another site, and to the source of
// this project, which TestLinksLeadSomewhere checks.
func wantTarget(t *testing.T, pages map[string]string, name, link string) {
	t.Helper()
	if strings.Contains(link, "://") {
		return
	}
	target, fragment, hasFragment := strings.Cut(strings.TrimPrefix(link, "./"), "#")
	if target == "" {
		target = name
	}
	text, isPage := pages[target]
	if _, err := os.Stat(filepath.Join("../dist/docs", target)); err != nil {
		t.Errorf("%s links to %s: %v", name, link, err)
	}
	isAnchor := func(m []string) bool { return m[1] == fragment }
	if hasFragment && (!isPage || !slices.ContainsFunc(idOfTheSite.FindAllStringSubmatch(text, -1), isAnchor)) {
		t.Errorf("%s links to %s: there is no such heading", name, link)
	}
}
