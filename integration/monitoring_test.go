package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/signed-playback/caddy-signed-playback/token"
)

// The files that operators install.
const (
	alertsFile    = "../monitoring/alerts.yml"
	dashboardFile = "../monitoring/grafana-dashboard.json"
	monitoringDoc = "../docs/monitoring.md"
	metricsDoc    = "../docs/metrics.md"
)

// The rules are valid, and each alert fires when it should and only then. Each has a
// test and a row in the documentation.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	files := must(filepath.Glob("../monitoring/*_test.yml"))(t)
	var tests strings.Builder
	args := []string{"test", "rules"}
	for _, file := range files {
		tests.WriteString(readText(t, file))
		args = append(args, filepath.Base(file))
	}
	for _, args := range [][]string{{"check", "rules", filepath.Base(alertsFile)}, args} {
		if got := execute(t, filepath.Dir(alertsFile), "", tool(t, "promtool"), args...); got.code != 0 {
			t.Errorf("promtool %s: exit status %d: %s%s", args, got.code, got.stdout, got.stderr)
		}
	}
	alerts := matches(readText(t, alertsFile), `(?m)^\s+- alert: (\w+)$`)
	for what, names := range map[string][]string{
		"documentation": matches(readText(t, monitoringDoc), "(?m)^\\| `(SignedPlayback\\w+)` \\|"),
		"tests":         matches(tests.String(), `- labels: ALERTS\{alertname="(\w+)",alertstate="firing"`),
	} {
		if diff := cmp.Diff(alerts, names); diff != "" {
			t.Errorf("alerts, and those of the %s (-alerts +%s):\n%s", what, what, diff)
		}
	}
}

func readText(t testing.TB, path string) string {
	t.Helper()
	data := must(os.ReadFile(path))(t)
	return string(data)
}

// matches returns what the group of a pattern finds in a text, sorted, each
// once.
func matches(text, pattern string) []string {
	var found []string
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found = append(found, match[1])
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// matcher matches a label of a selector in an expression.
var (
	selector = regexp.MustCompile(`\b(caddy_\w+)(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`(\w+)(=~|!=|=)"([^"]*)"`)
)

// families are the metrics that gates expose, by their names.
type families map[string]family

// family is one metric.
type family struct {
	Type   string
	Labels []string // sorted
	values map[string]map[string]bool
}

// wantSelected checks that each selector of an expression selects something, with
// each of its alternative values: a label or a value with a typo selects nothing,
// and nobody would ever notice.
func (m families) wantSelected(t *testing.T, expr string) {
	t.Helper()
	for _, selected := range selector.FindAllStringSubmatch(expr, -1) {
		f, exists := m[selected[1]]
		if base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(selected[1], ""); !exists {
			f = m[base]
		}
		if f.Type == "" {
			t.Errorf("there is no metric %s", selected[1])
		}
		for _, label := range matcher.FindAllStringSubmatch(selected[2], -1) {
			values := f.values[label[1]]
			if label[1] == "instance" || label[2] == "!=" && values != nil {
				continue
			}
			for value := range strings.SplitSeq(label[3], "|") {
				pattern := regexp.MustCompile("^" + value + "$")
				if !slices.ContainsFunc(slices.Collect(maps.Keys(values)), pattern.MatchString) {
					t.Errorf("%s selects nothing: %s is never %q", selected[0], label[1], value)
				}
			}
		}
	}
}

// mediaOfEverySort is an origin that answers well and badly.
func mediaOfEverySort(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasSuffix(r.URL.Path, "/broken.m3u8"):
		_, _ = io.WriteString(w, "<html>")
	case strings.HasSuffix(r.URL.Path, ".m3u8"):
		_, _ = io.WriteString(w, "#EXTM3U\n/demo/video/1.ts\n/elsewhere/1.ts\nhttps://cdn.example.org/1.ts\n")
	case strings.HasSuffix(r.URL.Path, "/fails.ts"):
		w.WriteHeader(http.StatusInternalServerError)
	default:
		_, _ = io.WriteString(w, "media")
	}
}

// exposeEverything returns the metrics of a gate that has everything and of one
// without a geo database that reports origins, once both have done all that is
// counted.
func exposeEverything(t *testing.T) families {
	t.Helper()
	var published atomic.Bool
	keys := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !published.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write(publicJWKS(t, newSigningKey("published", privateKey())))
	}))
	site := freeAddr(t)
	o := startOrigin(t, http.HandlerFunc(mediaOfEverySort))
	full := start(t, o, config{
		global: "metrics\n" + trusting("127.0.0.1/32"),
		app:    "sessions on\ngeoip_database " + testdata(t, "country.mmdb") + "\nasn_database " + testdata(t, "asn.mmdb") + "\nanonymous_database " + testdata(t, "anonymous.mmdb") + "\njwks_url " + keys.URL + " 1s",
		gate:   "player",
		site:   cachedSite + "reverse_proxy " + o.addr(),
		sites:  "http://" + site + " {\n\tmetrics /metrics\n}",
	})
	bare := start(t, o, config{
		global: "metrics",
		app:    "allowed_origins example.com\nreport_only origins",
	})
	wantVerdict(t, full, stranger(), unavailable)
	published.Store(true)
	eventually(t, "the remote key set is loaded", func() bool { return full.get(t, stranger()).verdict() == keyUnknown })
	makeTraffic(t, full, bare)
	found := make(families)
	found.read(t, "http://"+site+"/metrics")
	found.read(t, "http://"+bare.admin+"/metrics")
	return found
}

func wantVerdict(t testing.TB, g *gateway, path string, want verdict, header ...string) {
	t.Helper()
	if got := g.get(t, path, header...).verdict(); got != want {
		t.Errorf("%.60s…: got %v, want %v", path, got, want)
	}
}

// makeTraffic makes each sort of request that the metrics tell apart.
func makeTraffic(t *testing.T, full, bare *gateway) {
	t.Helper()
	viewer := "X-Forwarded-For: 203.0.113.7" // in GB
	good := mint(t, "demo", nil)
	expired := mint(t, "demo", func(c *token.Claims) { c.ExpiresAt = time.Now().Add(-time.Minute) })
	downloadable := mint(t, "demo", func(c *token.Claims) { c.Downloadable = true })
	forged := segment(b64(goodHeader()) + "." + b64(goodPayload("demo")) + "." + b64(strings.Repeat("x", 256)))
	for _, row := range []struct {
		g    *gateway
		path string
		want verdict
	}{
		{full, "/" + good + "/manifest/video.m3u8", plays},
		{full, segment(good), plays},
		{full, "/" + good, plays},
		{full, "/" + good + "/thumbnails/thumbnail.jpg", plays},
		{full, "/" + downloadable + "/downloads/default.mp4", plays},
		{full, "/" + good + "/x", plays},
		{full, segment(expired), refusedFor("token_expired")},
		{full, forged, refusedFor("signature_invalid")},
		{full, stranger(), keyUnknown},
		{full, segment("demo"), tokenNeeded},
		{full, "/" + good + "/../x", refusedFor("path_invalid")},
		{full, onlyIn(t, "DE"), refusedFor("rule_blocked")},
		{full, "/" + good + "/manifest/broken.m3u8", refusedFor("manifest_invalid")},
		{full, "/" + good + "/video/fails.ts", verdict{http.StatusInternalServerError, ""}},
		{bare, segment(good), plays}, // without Origin, which is reported
		{bare, onlyIn(t, "GB"), refusedFor("country_unavailable")},
	} {
		wantVerdict(t, row.g, row.path, row.want, viewer)
	}
	preflight := strings.Replace(rawGet("/"+good+"/manifest/video.m3u8"), "GET", "OPTIONS", 1)
	if res := full.raw(t, preflight); res.StatusCode != http.StatusNoContent {
		t.Errorf("preflight: status %d", res.StatusCode)
	}
	limited := refusedFor("verification_limited")
	for range 5000 {
		if full.get(t, forged, "X-Forwarded-For: 198.51.100.7").verdict() == limited {
			return
		}
	}
	t.Error("5000 forged tokens of one network were verified")
}

// read adds the metrics at an address.
func (m families) read(t testing.TB, address string) {
	t.Helper()
	var name string
	label := regexp.MustCompile(`[{,](\w+)="([^"]*)"`)
	for line := range strings.Lines(string(send(t, client, http.MethodGet, address, "").body)) {
		if declared, ok := strings.CutPrefix(line, "# TYPE "); ok {
			var kind string
			name, kind, _ = strings.Cut(strings.TrimSpace(declared), " ")
			if m[name].Type == "" {
				m[name] = family{Type: kind, values: make(map[string]map[string]bool)}
			}
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := m[name]
		for _, pair := range label.FindAllStringSubmatch(line, -1) {
			if pair[1] == "le" {
				continue // of histograms
			}
			if f.values[pair[1]] == nil {
				f.values[pair[1]] = make(map[string]bool)
				f.Labels = append(f.Labels, pair[1])
				slices.Sort(f.Labels)
			}
			f.values[pair[1]][pair[2]] = true
		}
		m[name] = f
	}
}

// Documentation, dashboard and alerts match the metrics of gates that do everything.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	m := exposeEverything(t)
	t.Run("documentation", m.testDocumentation)
	t.Run("dashboard", m.testDashboard)
	t.Run("alerts", m.testAlerts)
	for _, file := range []string{dashboardFile, alertsFile} {
		wantLinks(t, readText(t, file))
	}
}

// testDocumentation compares the documentation with the gate: each metric with its
// labels and their values. The dashboard shows each.
func (m families) testDocumentation(t *testing.T) {
	doc, dashboard := readText(t, metricsDoc), readText(t, dashboardFile)
	documented, exposed := make(map[string]family), make(map[string]family)
	row := regexp.MustCompile("(?m)^\\| `(caddy_\\w+)` \\| (\\w+) \\|([^|]*)\\|(.*)\\|$")
	for _, columns := range row.FindAllStringSubmatch(doc, -1) {
		documented[columns[1]] = family{Type: columns[2], Labels: matches(columns[3], "`(\\w+)`")}
	}
	for name, f := range m {
		if !strings.HasPrefix(name, "caddy_signed_playback_") {
			continue
		}
		exposed[name] = family{Type: f.Type, Labels: f.Labels}
		if !slices.Contains(matches(dashboard, `\b(`+name+`)(?:_bucket)?\b`), name) {
			t.Errorf("the dashboard does not show %s", name)
		}
		for _, name := range f.Labels {
			for value := range f.values[name] {
				if name != "reason" && !strings.Contains(doc, "`"+value+"`") {
					t.Errorf("the documentation does not explain the value %q of %s", value, name)
				}
			}
		}
	}
	if diff := cmp.Diff(exposed, documented, cmp.AllowUnexported(family{})); diff != "" {
		t.Errorf("metrics, and those that are documented (-gate +documentation):\n%s", diff)
	}
	m.wantSelected(t, doc)
}

// testDashboard checks that each query of the dashboard is valid, selects something of
// the gates that are chosen, and keeps the labels of its legend.
func (m families) testDashboard(t *testing.T) {
	var dashboard struct {
		Panels []struct {
			Title   string `json:"title"`
			Targets []struct {
				Expr         string `json:"expr"`
				LegendFormat string `json:"legendFormat"`
			} `json:"targets"`
		} `json:"panels"`
	}
	noError(t, json.Unmarshal([]byte(readText(t, dashboardFile)), &dashboard))
	var rules strings.Builder
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			fmt.Fprintf(&rules, "  - {record: panel, expr: %q}\n", strings.ReplaceAll(target.Expr, "$__rate_interval", "5m"))
			m.wantSelected(t, target.Expr)
			for _, selected := range selector.FindAllString(target.Expr, -1) {
				if !strings.HasSuffix(selected, `instance=~"$instance"}`) {
					t.Errorf("%s: %s is not of the instance that is chosen", panel.Title, selected)
				}
			}
			for _, label := range matches(target.LegendFormat, `\{\{(\w+)\}\}`) {
				if kept := matches(target.Expr, `by \([^)]*\b(`+label+`)\b[^)]*\)`); len(kept) == 0 {
					t.Errorf("%s: %s has no label %s for its legend", panel.Title, target.Expr, label)
				}
			}
		}
	}
	file := filepath.Join(t.TempDir(), "dashboard.yml")
	writeFile(t, file, []byte("groups:\n- name: dashboard\n  rules:\n"+rules.String()))
	if got := execute(t, "", "", tool(t, "promtool"), "check", "rules", "--lint=none", file); got.code != 0 || rules.Len() == 0 {
		t.Errorf("promtool check rules: exit status %d: %s%s", got.code, got.stdout, got.stderr)
	}
}

// testAlerts checks that each alert selects what gates expose. The labels that its
// text names are those of the alert.
func (m families) testAlerts(t *testing.T) {
	for alert := range strings.SplitSeq(readText(t, alertsFile), "- alert: ") {
		name, rule, _ := strings.Cut(alert, "\n")
		_, rule, _ = strings.Cut(rule, "expr: ")
		expr, text, _ := strings.Cut(rule, "annotations:")
		m.wantSelected(t, expr)
		labels := []string{"instance"}
		for _, by := range matches(expr, `by \(([^)]*)\)`) {
			labels = strings.Split(by, ", ")
		}
		for _, label := range matches(text, `\$labels\.(\w+)`) {
			if !slices.Contains(labels, label) {
				t.Errorf("%s names the label %s; there are %q", name, label, labels)
			}
		}
	}
}

// wantLinks checks that the links of a text into the documentation lead to a file
// and a heading that exist.
func wantLinks(t *testing.T, text string) {
	t.Helper()
	const base = `https://github\.com/signed-playback/caddy-signed-playback/blob/main/`
	links := matches(text, base+`([\w./-]+(?:#[\w-]+)?)`)
	for _, link := range links {
		file, fragment, _ := strings.Cut(link, "#")
		found := fragment == ""
		for _, heading := range matches(readText(t, filepath.Join("..", file)), `(?m)^#+ (.*)$`) {
			anchor := regexp.MustCompile(`[^\w -]`).ReplaceAllString(strings.ToLower(heading), "")
			found = found || strings.ReplaceAll(anchor, " ", "-") == fragment
		}
		if !found {
			t.Errorf("%s leads nowhere", link)
		}
	}
	if len(links) == 0 {
		t.Errorf("%.200q has no link into the documentation", text)
	}
}
