package integration

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/google/go-cmp/cmp"
)

// compose reads compose.yaml as Docker does.
func compose(t *testing.T) *types.Project {
	t.Helper()
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir: must(filepath.Abs(".."))(t), ConfigFiles: []types.ConfigFile{{Filename: "../compose.yaml"}}, Environment: types.Mapping{},
	})
	if err != nil {
		t.Fatal(err)
	}
	return project
}

// A service that is taken over can neither be reached from outside nor call home, change its
// program, become root or read the secrets of others.
func TestComposeIsLockedDown(t *testing.T) {
	t.Parallel()
	project := compose(t)
	if network := project.Networks["inside"]; !network.Internal {
		t.Error("the network of the services leads out")
	}
	const own = "ghcr.io/signed-playback/signed-playback:" // with the version of the release, says TestVersionOfTheRelease
	secretName := regexp.MustCompile(`(?i)(password|secret|token|key)$`)
	used := make(map[string]int)
	for name, service := range project.Services {
		gateway := name == "gateway"
		uid, _, _ := strings.Cut(service.User, ":")
		for what, wrong := range map[string]bool{
			"publishes ports":                     !gateway && len(service.Ports) > 0,
			"can be reached before it has a name": slices.ContainsFunc(service.Ports, func(p types.ServicePortConfig) bool { return p.HostIP != "127.0.0.1" }),
			"is in the networks of others":        !gateway && !slices.Equal(service.NetworksByPriority(), []string{"inside"}),
			"can change its file system":          !service.ReadOnly,
			"has capabilities":                    !slices.Equal(service.CapDrop, []string{"ALL"}) || len(service.CapAdd) > 0 || service.Privileged,
			"can get new privileges":              !slices.Contains(service.SecurityOpt, "no-new-privileges:true"),
			"runs as root":                        uid == "" || uid == "0" || uid == "root",
			"has no health check":                 service.HealthCheck == nil || service.HealthCheck.Disable || len(service.HealthCheck.Test) == 0,
			"has an image that changes by itself": !pinnedImage.MatchString(service.Image) && !strings.HasPrefix(service.Image, own),
			"shares a namespace with the host":    service.NetworkMode != "" || service.Pid != "" || service.Ipc != "",
			"stays down after a crash":            service.Restart != types.RestartPolicyUnlessStopped,
		} {
			if wrong {
				t.Errorf("the service %s %s", name, what)
			}
		}
		for variable := range service.Environment {
			if secretName.MatchString(variable) {
				t.Errorf("the service %s has the secret %s in its environment, where other programs can read it", name, variable)
			}
		}
		for _, mount := range service.Volumes {
			if mount.Type == types.VolumeTypeBind && (!mount.ReadOnly || !exists(mount.Source)) {
				t.Errorf("the service %s can write to %s, or it does not exist", name, mount.Source)
			}
		}
		for _, secret := range service.Secrets {
			used[filepath.Base(project.Secrets[secret.Source].File)]++
		}
	}
	if diff := cmp.Diff(composeSecrets(t, t.TempDir()), used); diff != "" {
		t.Errorf("secrets that the script makes, and those that one service each uses (-made +used):\n%s", diff)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// composeSecrets has the script make secrets in a copy of its folder, and counts them.
func composeSecrets(t *testing.T, dir string) map[string]int {
	t.Helper()
	if err := os.CopyFS(filepath.Join(dir, "packaging/compose"), os.DirFS("../packaging/compose")); err != nil {
		t.Fatal(err)
	}
	var before map[string]string
	for range 2 { // the second time keeps what is there
		succeed(t, filepath.Join(dir, "packaging/compose/secrets"))
		made := make(map[string]string)
		for _, file := range must(os.ReadDir(filepath.Join(dir, "secrets")))(t) {
			made[file.Name()] = readText(t, filepath.Join(dir, "secrets", file.Name()))
		}
		if diff := cmp.Diff(before, made); before != nil && diff != "" {
			t.Errorf("the script changes secrets (-before +after):\n%s", diff)
		}
		before = made
	}
	if info := must(os.Stat(filepath.Join(dir, "secrets")))(t); info.Mode().Perm() != 0o700 {
		t.Errorf("the secrets of compose.yaml are in a folder with mode %v, which others can read", info.Mode())
	}
	counts := make(map[string]int)
	for name := range before {
		counts[name]++
	}
	return counts
}

// The configs of compose.yaml work together: Debian's programs run them, with other addresses
// and paths. The control API makes a token, the gateway plays a file of the origin, its state
// is in Redis, and Prometheus counts it. Grafana has no Debian package: its files are compared
// with compose.yaml.
func TestComposePartsWorkTogether(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	composeSecrets(t, dir)
	redis := startRedis(t, "--aclfile", filepath.Join(dir, "secrets/redis_acl"))
	grafana := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(grafana.Close)
	media, api, metrics, origin, prometheus := freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t)
	names := strings.NewReplacer(
		"/run/secrets/", dir+"/secrets/", "unix//data/", "unix/"+dir+"/", "/data/media", dir+"/cache", "/tmp/", dir+"/",
		"/usr/share/caddy-signed-playback/hls.min.js", must(filepath.Abs(hlsJS(t)))(t), "root /media", "root "+must(filepath.Abs("../examples/media"))(t),
		"{$MEDIA_SITE:http://localhost}", "http://"+media, "{$API_SITE:http://api.localhost}", "http://"+api, "{$GRAFANA_SITE:http://grafana.localhost}", "http://"+freeAddr(t),
		"listen 8080", "listen "+origin, "http://:9180", "http://"+metrics, "origin:8080", origin, "redis:6379", redis.addr,
		"grafana:3000", grafana.Listener.Addr().String(), "gateway:9180", metrics, "scrape_interval: 15s", "scrape_interval: 1s",
	)
	folder := filepath.Join(dir, "packaging/compose")
	for _, name := range []string{"packaging/compose/Caddyfile", "packaging/compose/nginx.conf", "packaging/compose/prometheus.yml", "secrets/redis_url"} {
		writeFile(t, filepath.Join(dir, name), []byte(names.Replace(readText(t, filepath.Join(dir, name)))))
	}
	writeFile(t, filepath.Join(folder, "mime.types"), []byte(readText(t, "/etc/nginx/mime.types")))
	writeFile(t, filepath.Join(folder, "alerts.yml"), []byte(readText(t, alertsFile)))

	others := &mediaServer{dir: folder}
	others.run(t, tool(t, "nginx"), "-e", "stderr", "-c", filepath.Join(folder, "nginx.conf"), "-g", "daemon off; master_process off; user root;")
	others.run(t, tool(t, "prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path="+t.TempDir(), "--web.listen-address="+prometheus)
	g := &gateway{addr: media, dir: folder, log: newLogBuffer()}
	g.launch(t, binary(t), nil, g.log, "serving initial configuration", "run", "--config", "Caddyfile")
	eventually(t, "nginx listens", func() bool { return listens(origin) })

	minted := mintAt(t, api, strings.TrimSpace(readText(t, filepath.Join(dir, "secrets/api_token"))))
	for path, want := range map[string]string{"manifest/video.m3u8": "#EXTM3U", "iframe": "<!DOCTYPE html>"} {
		if got := g.get(t, "/"+minted+"/"+path); got.StatusCode != http.StatusOK || !strings.HasPrefix(string(got.body), want) {
			t.Errorf("%s: %d %s: %.80s", path, got.StatusCode, got.reason(), got.body)
		}
	}
	if health := execute(t, folder, "", binary(t), "signed-playback", "health", "--config", "Caddyfile"); health.code != 0 {
		t.Errorf("the gateway is not healthy: %s", health.stderr)
	}
	if keys := readText(t, filepath.Join(redis.dir, "appendonlydir/appendonly.aof.1.incr.aof")); !strings.Contains(keys, "signed") {
		t.Errorf("Redis has no state of the gateway: %.200s", keys)
	}
	ask := func(path string) string {
		return string(send(t, client, http.MethodGet, "http://"+prometheus+path, "").body)
	}
	eventually(t, "Prometheus listens", func() bool { return listens(prometheus) })
	eventually(t, "Prometheus counts the requests", func() bool {
		return strings.Contains(ask("/api/v1/query?query="+url.QueryEscape(`sum(caddy_signed_playback_requests_total{result="allowed"}) > 1`)), `"value":`)
	})
	if rules := ask("/api/v1/rules"); !strings.Contains(rules, "SignedPlayback") {
		t.Errorf("Prometheus has no alerts: %.200s", rules)
	}
	wantGrafanaFiles(t, compose(t))
}

// wantGrafanaFiles checks that Grafana finds Prometheus, and its dashboard where compose.yaml mounts it.
func wantGrafanaFiles(t *testing.T, project *types.Project) {
	t.Helper()
	dashboards := matches(readText(t, "../packaging/compose/grafana-dashboards.yml"), `(?m)^\s+path: (\S+)$`)
	dashboard, datasource := "", ""
	for _, mount := range project.Services["grafana"].Volumes {
		switch filepath.Dir(mount.Target) {
		case strings.Join(dashboards, ""):
			dashboard = mount.Source
		case "/etc/grafana/provisioning/datasources":
			datasource = readText(t, mount.Source)
		}
	}
	if !json.Valid([]byte(readText(t, dashboard))) {
		t.Errorf("%s is no dashboard", dashboard)
	}
	for _, name := range matches(datasource, `(?m)^\s+url: http://(\w+):9090$`) {
		if _, err := project.GetService(name); err != nil {
			t.Errorf("Grafana asks a service that compose.yaml does not have: %v", err)
		}
	}
}
