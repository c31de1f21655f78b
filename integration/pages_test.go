package integration

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

var shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// The calls of the control API that pages show succeed when you type them into a shell,
// with only names and ports replaced.
func TestCallsOfPages(t *testing.T) {
	g := start(t, startOrigin(t, exampleMedia()), config{api: withAPI})
	names := strings.NewReplacer("https://api.example.com", "http://"+g.api, "https://media.example.com", g.url(""), "<id>", g.createKey(t).ID,
		"curl ", tool(t, "curl")+" -sSf ")
	t.Setenv("SIGNED_PLAYBACK_API_TOKEN", apiSecret)
	typed := 0
	for _, block := range shellBlock.FindAllStringSubmatch(readText(t, "../docs/control-api.md"), -1) {
		if !strings.Contains(block[1], "/client/v4/") {
			continue
		}
		typed++
		if got := execute(t, "", "set -eu\n"+names.Replace(block[1]), tool(t, "bash"), "-s"); got.code != 0 {
			t.Errorf("%s\nends with %d: %s%s", block[1], got.code, got.stdout, got.stderr)
		}
	}
	if typed == 0 {
		t.Error("the page shows no calls")
	}
}

// Prometheus accepts the config that the page shows.
func TestPrometheusConfigOfThePage(t *testing.T) {
	block := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindStringSubmatch(readText(t, monitoringDoc))
	if block == nil {
		t.Fatalf("%s has no config", monitoringDoc)
	}
	rules := must(filepath.Abs(alertsFile))(t)
	const installed = "/etc/prometheus/signed-playback/alerts.yml"
	if !strings.Contains(block[1], installed) {
		t.Fatalf("it does not load %s:\n%s", installed, block[1])
	}
	file := filepath.Join(t.TempDir(), "prometheus.yml")
	writeFile(t, file, []byte(strings.ReplaceAll(block[1], installed, rules)))
	if got := execute(t, "", "", tool(t, "promtool"), "check", "config", file); got.code != 0 {
		t.Errorf("promtool check config: exit status %d: %s%s", got.code, got.stdout, got.stderr)
	}
}

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
	links := 0
	for name, text := range pages {
		for _, m := range linkOfTheSite.FindAllStringSubmatch(text, -1) {
			wantTarget(t, pages, name, m[1])
			links++
		}
	}
	t.Logf("%d pages with %d links", len(pages), links)

	site := serve(t, http.StripPrefix("/below/a/folder/", http.FileServer(http.Dir("../dist/docs"))))
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
