package integration

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// The calls of the control API that pages show succeed when you type them into a shell,
// with only names and ports replaced.
func TestCallsOfPages(t *testing.T) {
	curl := tool(t, "curl") + " -sSf "
	for name, calls := range map[string]int{"../docs/control-api.md": 7} {
		t.Run(name, func(t *testing.T) {
			o := startOrigin(t, exampleMedia())
			g := start(t, o, config{api: withAPI})
			names := strings.NewReplacer(
				"https://api.example.com", "http://"+g.api, "https://media.example.com", g.url(""), "<id>", g.createKey(t).ID)
			t.Setenv("SIGNED_PLAYBACK_API_TOKEN", apiSecret)
			typed := 0
			for _, block := range shellBlock.FindAllStringSubmatch(readText(t, name), -1) {
				if !strings.Contains(block[1], "/client/v4/") {
					continue
				}
				typed += strings.Count(block[1], "curl ")
				script := strings.ReplaceAll(names.Replace(block[1]), "curl ", curl)
				if got := execute(t, "", "set -eu\n"+script, tool(t, "bash"), "-s"); got.code != 0 {
					t.Errorf("%s\nends with %d: %s%s", block[1], got.code, got.stdout, got.stderr)
				}
			}
			if typed != calls {
				t.Errorf("%d calls were found, want %d", typed, calls)
			}
		})
	}
}

// Prometheus accepts the config that the page shows.
func TestPrometheusConfigOfThePage(t *testing.T) {
	block := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindStringSubmatch(readText(t, monitoringDoc))
	if block == nil {
		t.Fatalf("%s has no config", monitoringDoc)
	}
	rules, err := filepath.Abs(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
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
