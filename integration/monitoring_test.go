package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
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
)

// The rules are valid, and each alert fires when it should and only then. Each has a
// test and a row in the documentation.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../monitoring/*_test.yml")
	if err != nil {
		t.Fatal(err)
	}
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
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
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

// prometheus is a Prometheus with the alerts of this project.
type prometheus struct{ addr string }

// scrapeInterval is that of the tests, for alerts and for scraping.
const scrapeInterval = 500 * time.Millisecond

func startPrometheus(t testing.TB, targets ...string) *prometheus {
	t.Helper()
	rules, err := filepath.Abs(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	writeFile(t, config, fmt.Appendf(nil, `
global: {scrape_interval: %[1]s, scrape_timeout: %[1]s, evaluation_interval: %[1]s}
rule_files: [%[2]q]
scrape_configs: [{job_name: caddy, static_configs: [{targets: [%[3]s]}]}]
`, scrapeInterval, rules, strings.Join(targets, ",")))
	p := &prometheus{freeAddr(t)}
	output := newLogBuffer()
	cmd := exec.Command(tool(t, "prometheus"), "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+p.addr)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(startTimeout, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		<-ended
	})
	eventually(t, "prometheus is ready", func() bool {
		select {
		case <-ended:
			t.Fatalf("prometheus did not start:\n%s", output)
		default:
		}
		res, err := client.Get("http://" + p.addr + "/-/ready")
		return err == nil && readResponse(t, res).StatusCode == http.StatusOK
	})
	return p
}

// call asks the HTTP API of Prometheus.
func (p *prometheus) call(t testing.TB, path string, result any) {
	t.Helper()
	res, err := client.Get("http://" + p.addr + "/api/v1/" + path)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Data  json.RawMessage `json:"data"`
		Error string          `json:"error"`
	}
	body := readResponse(t, res).body
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatalf("%s: %v: %.200q", path, err, body)
	}
	if answer.Error != "" {
		t.Fatalf("%s: %s", path, answer.Error)
	}
	if err := json.Unmarshal(answer.Data, result); err != nil {
		t.Fatalf("%s: %v: %.200q", path, err, body)
	}
}

// sample is one element of the result of a query.
type sample struct {
	Metric map[string]string `json:"metric"`
	Value  [2]any            `json:"value"` // the time, and the number as a string
}

func (s sample) isNumber() bool { return s.Value[1] != "NaN" }

// query evaluates an expression at the present.
func (p *prometheus) query(t testing.TB, expr string) []sample {
	t.Helper()
	var data struct {
		Result []sample `json:"result"`
	}
	p.call(t, "query?query="+url.QueryEscape(expr), &data)
	return data.Result
}

// awaitScrape waits until each target has been scraped once more.
func (p *prometheus) awaitScrape(t testing.TB) {
	t.Helper()
	asked := time.Now().UnixMilli()
	eventually(t, "a scrape", func() bool {
		return len(p.query(t, fmt.Sprintf("min(timestamp(up)) * 1000 > %d and min(up) == 1", asked))) == 1
	})
}

var (
	// selector matches a metric of Caddy in an expression, with its matchers.
	selector = regexp.MustCompile(`\bcaddy_\w+(?:\{[^}]*\})?`)
	// choice matches a matcher of several values.
	choice = regexp.MustCompile(`=~"(\w+(?:\|\w+)+)"`)
)

// wantSelected checks that each selector of an expression selects something, with
// each of its alternative values: a label or a value with a typo selects nothing,
// and nobody would ever notice.
func (p *prometheus) wantSelected(t *testing.T, expr string) {
	t.Helper()
	for _, selected := range selector.FindAllString(expr, -1) {
		each := []string{selected}
		if values := choice.FindStringSubmatch(selected); values != nil {
			each = nil
			for value := range strings.SplitSeq(values[1], "|") {
				each = append(each, strings.Replace(selected, values[0], `="`+value+`"`, 1))
			}
		}
		for _, one := range each {
			if len(p.query(t, "count("+one+")")) == 0 {
				t.Errorf("%s selects nothing", one)
			}
		}
	}
}

// rounds is how often traffic of every sort is made: what appears with its first
// request rises with the second.
const rounds = 2

// monitored is two gates and a Prometheus that has scraped them while they did
// everything that is counted.
type monitored struct {
	prometheus *prometheus
	exposed    map[string]family // the metrics of the first gate
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

// startMonitored starts a gate that has everything, and whose metrics are on a
// site; and one without a geo database that reports origins, whose metrics are
// those of the admin API.
func startMonitored(t *testing.T) *monitored {
	t.Helper()
	var published atomic.Bool
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !published.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write(publicJWKS(t, newSigningKey("published", privateKey())))
	}))
	t.Cleanup(keys.Close)
	site, admin := freeAddr(t), freeAddr(t)
	o := startOrigin(t, http.HandlerFunc(mediaOfEverySort))
	full := start(t, o, config{
		global: "metrics\n" + trusting("127.0.0.1/32"),
		app:    "geoip_database " + testdata(t, "country.mmdb") + "\njwks_url " + keys.URL + " 1s",
		gate:   "player",
		sites:  "http://" + site + " {\n\tmetrics /metrics\n}",
	})
	bare := start(t, o, config{
		global: "metrics\nadmin " + admin,
		app:    "allowed_origins example.com\nreport_only origins",
	})
	p := startPrometheus(t, site, admin)

	wantVerdict(t, full, stranger(), unavailable)
	published.Store(true)
	eventually(t, "the remote key set is loaded", func() bool { return full.get(t, stranger()).verdict() == keyUnknown })
	for range rounds {
		p.awaitScrape(t)
		makeTraffic(t, full, bare)
	}
	p.awaitScrape(t)
	return &monitored{p, families(t, "http://"+site+"/metrics")}
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
		{full, segment(expired), verdict{http.StatusUnauthorized, "token_expired"}},
		{full, forged, verdict{http.StatusUnauthorized, "signature_invalid"}},
		{full, stranger(), keyUnknown},
		{full, segment("demo"), tokenNeeded},
		{full, "/" + good + "/../x", verdict{http.StatusBadRequest, "path_invalid"}},
		{full, onlyIn(t, "DE"), verdict{http.StatusForbidden, "rule_blocked"}},
		{full, "/" + good + "/manifest/broken.m3u8", verdict{http.StatusBadGateway, "manifest_invalid"}},
		{full, "/" + good + "/video/fails.ts", verdict{http.StatusInternalServerError, ""}},
		{bare, segment(good), plays}, // without Origin, which is reported
		{bare, onlyIn(t, "GB"), verdict{http.StatusServiceUnavailable, "country_unavailable"}},
	} {
		wantVerdict(t, row.g, row.path, row.want, viewer)
	}
	preflight := strings.Replace(rawGet("/"+good+"/manifest/video.m3u8"), "GET", "OPTIONS", 1)
	if res := full.raw(t, preflight); res.StatusCode != http.StatusNoContent {
		t.Errorf("preflight: status %d", res.StatusCode)
	}
	limited := verdict{http.StatusTooManyRequests, "verification_limited"}
	for range 5000 {
		if full.get(t, forged, "X-Forwarded-For: 198.51.100.7").verdict() == limited {
			return
		}
	}
	t.Error("5000 forged tokens of one network were verified")
}

// family is a metric as a gate exposes it.
type family struct {
	Type   string
	Labels []string // sorted
	values map[string]map[string]bool
}

// families returns the metrics at an address, by their names.
func families(t testing.TB, address string) map[string]family {
	t.Helper()
	res, err := client.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]family)
	var name string
	label := regexp.MustCompile(`[{,](\w+)="([^"]*)"`)
	for line := range strings.Lines(string(readResponse(t, res).body)) {
		if declared, ok := strings.CutPrefix(line, "# TYPE "); ok {
			var kind string
			name, kind, _ = strings.Cut(strings.TrimSpace(declared), " ")
			found[name] = family{Type: kind, values: make(map[string]map[string]bool)}
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := found[name]
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
		found[name] = f
	}
	return found
}

// Documentation, dashboard and alerts match the metrics of gates that do everything,
// as a real Prometheus scrapes them.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	m := startMonitored(t)
	t.Run("metrics", m.testMetrics)
	t.Run("dashboard", m.testDashboard)
	t.Run("alerts", m.testAlerts)
	for _, file := range []string{dashboardFile, alertsFile} {
		wantLinks(t, readText(t, file))
	}
}

// testMetrics compares the documentation with the gate: each metric with its labels
// and their values. The dashboard shows each, and no file names a metric that does
// not exist.
func (m *monitored) testMetrics(t *testing.T) {
	doc, dashboard, alerts := readText(t, monitoringDoc), readText(t, dashboardFile), readText(t, alertsFile)
	documented, exposed := make(map[string]family), make(map[string]family)
	row := regexp.MustCompile("(?m)^\\| `(caddy_\\w+)` \\| (\\w+) \\|([^|]*)\\|(.*)\\|$")
	for _, columns := range row.FindAllStringSubmatch(doc, -1) {
		documented[columns[1]] = family{Type: columns[2], Labels: matches(columns[3], "`(\\w+)`")}
	}
	for name, f := range m.exposed {
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
	for file, text := range map[string]string{monitoringDoc: doc, dashboardFile: dashboard, alertsFile: alerts} {
		for _, name := range matches(text, `\b(caddy_\w+)`) {
			base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")
			if m.exposed[base].Type == "" && m.exposed[name].Type == "" {
				t.Errorf("%s names %s, which does not exist", file, name)
			}
		}
	}
}

// testDashboard has each query of the dashboard show something, of the gates that
// are chosen: a panel that stays empty when it matters is worse than none.
func (m *monitored) testDashboard(t *testing.T) {
	var dashboard struct {
		Panels []struct {
			Title   string `json:"title"`
			Targets []struct {
				Expr         string `json:"expr"`
				LegendFormat string `json:"legendFormat"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal([]byte(readText(t, dashboardFile)), &dashboard); err != nil {
		t.Fatal(err)
	}
	queries := 0
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			queries++
			t.Run(panel.Title, func(t *testing.T) { m.wantShown(t, target.Expr, target.LegendFormat) })
		}
	}
	if queries == 0 {
		t.Error("the dashboard has no queries")
	}
}

// wantShown checks that the query of a panel has data, and the labels of its legend.
func (m *monitored) wantShown(t *testing.T, expr, legend string) {
	t.Helper()
	for _, selected := range selector.FindAllString(expr, -1) {
		if !strings.HasSuffix(selected, `instance=~"$instance"}`) {
			t.Errorf("%s is not of the instance that is chosen", selected)
		}
	}
	expr = strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(expr)
	m.prometheus.wantSelected(t, expr)
	samples := m.prometheus.query(t, expr)
	if !slices.ContainsFunc(samples, sample.isNumber) {
		t.Errorf("%s has no data: %v", expr, samples)
		return
	}
	for _, name := range matches(legend, `\{\{(\w+)\}\}`) {
		if _, ok := samples[0].Metric[name]; !ok {
			t.Errorf("the legend %q needs a label of %v", legend, samples[0].Metric)
		}
	}
}

// testAlerts checks that each alert can fire: its expression evaluates, and selects
// what gates expose. The labels that its text names are those of the alert.
func (m *monitored) testAlerts(t *testing.T) {
	p := m.prometheus
	eventually(t, "a request that would be refused raises its alert", func() bool {
		firing := p.query(t, `ALERTS{alertname="SignedPlaybackReportOnly",alertstate="firing",reason="origin_required"}`)
		return len(firing) == 1
	})
	// Caddy counts a refusal under its status, so what is left is the origin's.
	const ofOrigin = `sum(caddy_http_request_duration_seconds_count{code=~"5.."})
		- sum(caddy_signed_playback_requests_total{result="refused",reason=~"manifest_invalid|state_unavailable|country_unavailable"})`
	if got := p.query(t, ofOrigin); len(got) != 1 || got[0].Value[1] != strconv.Itoa(rounds) {
		t.Errorf("errors of the origin: %v, want one in each of %d rounds", got, rounds)
	}
	var data struct {
		Groups []struct {
			Rules []struct {
				Name        string            `json:"name"`
				Query       string            `json:"query"`
				Health      string            `json:"health"`
				Annotations map[string]string `json:"annotations"`
			} `json:"rules"`
		} `json:"groups"`
	}
	p.call(t, "rules?type=alert", &data)
	for _, group := range data.Groups {
		for _, rule := range group.Rules {
			if rule.Health != "ok" {
				t.Errorf("%s: health is %q", rule.Name, rule.Health)
			}
			p.wantSelected(t, rule.Query)
			labels := []string{"instance"}
			for _, by := range matches(rule.Query, `by \(([^)]*)\)`) {
				labels = strings.Split(by, ", ")
			}
			for name, text := range rule.Annotations {
				for _, label := range matches(text, `\$labels\.(\w+)`) {
					if !slices.Contains(labels, label) {
						t.Errorf("%s: the %s names the label %s; there are %q", rule.Name, name, label, labels)
					}
				}
			}
		}
	}
	if len(data.Groups) == 0 {
		t.Error("Prometheus has no rules")
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
