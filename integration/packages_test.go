package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/google/go-cmp/cmp"
)

// The Debian package is installed on a bare Debian, plays a signed video as its service
// does, is upgraded and removed. Keys and settings stay until it is purged.
func TestLongDebianPackage(t *testing.T) {
	root := t.TempDir()
	succeed(t, "debootstrap --variant=minbase bookworm "+root)
	for _, version := range []string{"0.1.0", "0.2.0"} {
		succeed(t, "make -C .. deb VERSION="+version+" && mv ../dist/caddy-signed-playback_"+version+"_*.deb "+root+"/"+version+".deb")
	}
	inside := func(script string) string { return succeed(t, "chroot "+root+" sh -ec '"+script+"'") }
	inside("dpkg -i /0.1.0.deb")
	unit := filepath.Join(t.TempDir(), "caddy.service") // verify looks for its programs
	t.Logf("a package of %d MiB, %s", must(os.Stat(root+"/0.1.0.deb"))(t).Size()>>20, inside("dpkg -s caddy-signed-playback | grep ^Installed-Size"))
	succeed(t, "sed 's|/usr/bin|"+root+"/usr/bin|' "+root+"/usr/lib/systemd/system/caddy.service >"+unit)
	wantHardened(t, unit)
	if help := inside("caddy signed-playback version && zcat /usr/share/man/man8/caddy-signed-playback-doctor.8.gz && bash -ec \". /usr/share/bash-completion/completions/caddy\""); !strings.Contains(help, "--accept") {
		t.Errorf("the man page of doctor does not name its flags: %s", help)
	}

	// The folders that systemd makes for the service.
	inside("install -d -o caddy -g caddy -m 700 /run/caddy /var/lib/caddy /var/cache/caddy")
	addr := freeAddr(t)
	site := fmt.Sprintf("\nhttp://%s {\nsigned_playback {\nplayer /usr/share/caddy-signed-playback/hls.min.js\n}\nsigned_playback_cache {\ndisk /var/cache/caddy/media 64MiB\n}\n"+
		"header Content-Type application/vnd.apple.mpegurl\nrespond \"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n1.ts\n#EXT-X-ENDLIST\n\"\n}\n", addr)
	caddyfile := filepath.Join(root, "etc/caddy/Caddyfile")
	config := bytes.Replace(must(os.ReadFile(caddyfile))(t), []byte("# key_file"), []byte("key_file"), 1)
	writeFile(t, caddyfile, append(config, site...))
	inside("caddy signed-playback keygen -o /key.json --public /etc/caddy/public.json && chmod 644 /etc/caddy/public.json")
	runBeside(t, "", []string{"PATH=/usr/bin:/bin", "HOME=/var/lib/caddy", "XDG_DATA_HOME=/var/lib", "XDG_CONFIG_HOME=/var/lib/caddy/config"},
		tool(t, "chroot"), "--userspec=caddy:caddy", root, "caddy", "run", "--config", "/etc/caddy/Caddyfile")
	address := strings.TrimSpace(inside("caddy signed-playback sign --key /key.json --sub demo --url http://" + addr))
	eventually(t, "the packaged service plays", func() bool {
		response, err := http.Get(address)
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	succeed(t, "chroot --userspec=caddy:caddy "+root+" sh -ec 'caddy reload --config /etc/caddy/Caddyfile --force && caddy signed-playback health --config /etc/caddy/Caddyfile'")
	inside("caddy signed-playback doctor --config /etc/caddy/Caddyfile --url " + address)

	inside("dpkg -i /0.2.0.deb")
	if !bytes.Contains(must(os.ReadFile(caddyfile))(t), []byte(addr)) {
		t.Error("the upgrade has replaced the config")
	}
	inside("dpkg -r caddy-signed-playback && ! command -v caddy && test -e /etc/caddy/Caddyfile && test -d /var/lib/caddy")
	inside("dpkg -P caddy-signed-playback && ! test -e /etc/caddy/Caddyfile && ! test -d /var/lib/caddy && ! test -d /var/cache/caddy")
}

// The RPM package has the same files. Its config survives an upgrade and the removal.
func TestLongRPMPackage(t *testing.T) {
	root, packages := t.TempDir(), t.TempDir()
	for _, version := range []string{"0.1.0", "0.2.0"} {
		succeed(t, "make -C .. rpm VERSION="+version+" && mv ../dist/caddy-signed-playback-"+version+"-1.*.rpm "+packages+"/"+version+".rpm")
	}
	rpm := func(args string) string { return succeed(t, "rpm --root "+root+" --noscripts --nodeps "+args) }
	wantEqual(t, "/etc/caddy/Caddyfile\n", succeed(t, "rpm -qp --configfiles "+packages+"/0.1.0.rpm"), "config files of the RPM package")
	t.Logf("a package of %d MiB, %s", must(os.Stat(packages+"/0.1.0.rpm"))(t).Size()>>20, succeed(t, "rpm -qp --queryformat '%{NAME} %{VERSION} %{ARCH}, %{SIZE} bytes in files' "+packages+"/0.1.0.rpm"))
	rpm("-i " + packages + "/0.1.0.rpm")
	caddyfile := filepath.Join(root, "etc/caddy/Caddyfile")
	writeFile(t, caddyfile, append(must(os.ReadFile(caddyfile))(t), "# mine\n"...))
	rpm("-U " + packages + "/0.2.0.rpm")
	if !strings.Contains(readText(t, caddyfile), "# mine") {
		t.Error("the upgrade has replaced the config")
	}
	succeed(t, root+"/usr/bin/caddy signed-playback version && test -e "+root+"/usr/share/caddy-signed-playback/hls.min.js")
	rpm("-e caddy-signed-playback")
	if got := readText(t, caddyfile+".rpmsave"); !strings.Contains(got, "# mine") || exists(root+"/usr/bin/caddy") {
		t.Errorf("the removal leaves the program or not the config: %s", got)
	}
}

// The drop-in makes the unit of Caddy's own package as strict as the unit of ours.
func TestDropInForTheUnitOfCaddy(t *testing.T) {
	t.Parallel()
	unit := filepath.Join(t.TempDir(), "caddy.service")
	writeFile(t, unit, []byte("[Unit]\nDescription=Caddy\n[Service]\nType=notify\nUser=caddy\nGroup=caddy\nExecStart="+must(filepath.Abs(binary(t)))(t)+
		" run --environ --config /etc/caddy/Caddyfile\nTimeoutStopSec=5s\nPrivateTmp=true\nProtectSystem=full\nAmbientCapabilities=CAP_NET_ADMIN CAP_NET_BIND_SERVICE\n[Install]\nWantedBy=multi-user.target\n"))
	succeed(t, "../packaging/drop-in "+unit+".d/signed-playback.conf")
	wantHardened(t, unit)
}

// wantHardened checks that systemd accepts a unit, and finds at most 2.0 to say against it.
func wantHardened(t *testing.T, unit string) {
	t.Helper()
	report := strings.Split(strings.TrimSpace(succeed(t, "systemd-analyze verify "+unit+" && systemd-analyze security --offline=true --threshold=20 "+unit)), "\n")
	t.Log(report[len(report)-1])
}

// The image plays a signed video without root, with a file system that nobody can write to. What
// it keeps in /data, such as the key that signs, is there for the next container.
func TestLongImage(t *testing.T) {
	dir := t.TempDir()
	archive := filepath.Join(dir, "image.tar")
	succeed(t, "make -C .. image VERSION=0.1.0 && mv ../dist/signed-playback_0.1.0_*.oci.tar "+archive)
	var image struct {
		Config struct {
			User        string
			Labels      map[string]string
			Healthcheck struct{ Test []string }
		}
	}
	noError(t, json.Unmarshal([]byte(succeed(t, "skopeo inspect --config --raw oci-archive:"+archive)), &image))
	t.Logf("an image of %d MiB for the user %s", must(os.Stat(archive))(t).Size()>>20, image.Config.User)
	for label, want := range map[string]string{"version": "0.1.0", "licenses": "Apache-2.0", "source": "https://github.com/signed-playback/caddy-signed-playback"} {
		if got := image.Config.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("the label %s is %q, want %q", label, got, want)
		}
	}

	o, media, api := startOrigin(t, exampleMedia()), freeAddr(t), freeAddr(t)
	caddyfile := filepath.Join(dir, "Caddyfile")
	must(0, os.WriteFile(caddyfile, []byte(fmt.Sprintf("{\n\tadmin unix//data/admin.sock\n\tlog {\n\t\tformat signed_playback\n\t}\n}\n\n"+
		"http://%s {\n\tsigned_playback {\n\t\tplayer /usr/share/caddy-signed-playback/hls.min.js\n\t}\n\tsigned_playback_cache {\n\t\tdisk /data/media 64MiB\n\t}\n\treverse_proxy %s\n}\n\n"+
		"http://%s {\n\tsigned_playback_api {\n\t\tbearer_token %s\n\t}\n}\n", media, o.addr(), api, apiSecret)), 0o644))(t) // the container's user reads it
	program := "podman --root " + dir + "/root --runroot " + dir + "/run --storage-driver=vfs --runtime runc "
	podman := func(args string) string { return succeed(t, program+args) }
	t.Cleanup(func() { _ = exec.Command("sh", "-c", program+"rm --force --all --time 0").Run() })
	podman("load --quiet --input " + archive)
	run := func() {
		podman("run --detach --name gateway --read-only --cap-drop ALL --security-opt no-new-privileges --ulimit nofile=4096:4096 --ulimit nproc=4096:4096 --network=host" +
			" --volume " + caddyfile + ":/etc/caddy/Caddyfile:ro --volume data:/data --volume config:/config localhost/signed-playback:0.1.0")
		eventually(t, "the container listens", func() bool { return listens(media) && listens(api) })
	}
	run()
	first := mintAt(t, api, apiSecret)
	wantDecoded(t, "http://"+media+"/"+first+"/manifest/video.m3u8", 4)
	if test := image.Config.Healthcheck.Test; len(test) < 2 || test[0] != "CMD" {
		t.Errorf("the health check of the image is %q", test)
	} else {
		podman("exec gateway " + strings.Join(test[1:], " "))
	}
	if got := podman("top gateway huser"); strings.Contains(got, "root") {
		t.Errorf("the container runs as root: %s", got)
	}
	for path, writable := range map[string]bool{"/data/": true, "/config/": true, "/": false, "/etc/caddy/": false, "/usr/bin/": false} {
		keygen := "exec gateway /usr/bin/caddy signed-playback keygen -o " + path + "key.json --public " + path + "public.json"
		if got := execute(t, "", "", "sh", "-c", program+keygen); (got.code == 0) != writable {
			t.Errorf("writing below %s: exit status %d: %s", path, got.code, got.stderr)
		}
	}
	files := must(filepath.EvalSymlinks(strings.TrimSpace(podman("mount gateway"))))(t)
	for _, name := range []string{"etc/ssl/certs/ca-certificates.crt", "usr/share/caddy-signed-playback/hls.js-LICENSE", "usr/share/doc/caddy-signed-playback/copyright"} {
		if !exists(filepath.Join(files, name)) {
			t.Errorf("the image has no /%s", name)
		}
	}
	if loose := succeed(t, "find "+files+" -xdev ! -path '*/data*' ! -path '*/config*' ! -type l \\( ! -user 0 -o -perm /6022 \\)"); loose != "" {
		t.Errorf("files of the image that its user owns or can write to, or that change the user:\n%s", loose)
	}

	podman("stop --time 60 gateway")
	if code := strings.TrimSpace(podman("inspect --format {{.State.ExitCode}} gateway")); code != "0" {
		t.Errorf("the container ends with exit status %s", code)
	}
	podman("rm gateway")
	run()
	wantDecoded(t, "http://"+media+"/"+first+"/manifest/video.m3u8", 4)
	podman("kill gateway && " + program + "start gateway")
	eventually(t, "the container comes back after a kill", func() bool { return listens(media) })
}

// mintAt has the control API at an address make a token for the video demo.
func mintAt(t *testing.T, api, secret string) string {
	t.Helper()
	var minted struct{ Result struct{ Token string } }
	answer := send(t, client, http.MethodPost, "http://"+api+"/client/v4/accounts/any/stream/demo/token", "", "Authorization: Bearer "+secret)
	if err := json.Unmarshal(answer.body, &minted); err != nil || minted.Result.Token == "" {
		t.Fatalf("the control API makes no token: %v: %d %s", err, answer.StatusCode, answer.body)
	}
	return minted.Result.Token
}

// succeed returns the output of a script that must succeed, however long it takes.
func succeed(t testing.TB, script string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", script, err, stdout, &stderr)
	}
	return string(stdout)
}

// compose reads compose.yaml as Docker does.
func compose(t *testing.T) *types.Project {
	t.Helper()
	project := must(loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir: must(filepath.Abs(".."))(t), ConfigFiles: []types.ConfigFile{{Filename: "../compose.yaml"}}, Environment: types.Mapping{},
	}))(t)
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
	noError(t, os.CopyFS(filepath.Join(dir, "packaging/compose"), os.DirFS("../packaging/compose")))
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
	grafana := serve(t, http.NotFoundHandler())
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

	runBeside(t, folder, nil, tool(t, "nginx"), "-e", "stderr", "-c", filepath.Join(folder, "nginx.conf"), "-g", "daemon off; master_process off; user root;")
	runBeside(t, folder, nil, tool(t, "prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path="+t.TempDir(), "--web.listen-address="+prometheus)
	g := &gateway{addr: media, dir: folder, log: new(logBuffer)}
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

// The newest version of CHANGELOG.md is the one that compose.yaml and the page about installing
// name. The release has notes, and a version that CHANGELOG.md does not know cannot be released.
func TestVersionOfTheRelease(t *testing.T) {
	t.Parallel()
	newest := regexp.MustCompile(`(?m)^## \[(\d+\.\d+\.\d+(?:-[\w.]+)?)\] - \d{4}-\d\d-\d\d$`).FindStringSubmatch(readText(t, "../CHANGELOG.md"))
	if newest == nil {
		t.Fatal("CHANGELOG.md has no section with a version and a date")
	}
	for _, name := range []string{"compose.yaml", "docs/install.md"} {
		got := matches(readText(t, filepath.Join("..", name)), `ghcr\.io/signed-playback/signed-playback:(\S+)`)
		if diff := cmp.Diff(newest[1:], got); diff != "" {
			t.Errorf("versions of the image in %s (-CHANGELOG.md +%s):\n%s", name, name, diff)
		}
	}
	if notes := succeed(t, "../packaging/release-notes "+newest[1]); notes != succeed(t, "../packaging/release-notes") || strings.Contains(notes, "## [") {
		t.Errorf("the notes of the release are not its section: %.200s", notes)
	}
	for _, unknown := range []string{"999.0.0", newest[1] + "0", newest[1][1:]} {
		if got := execute(t, "..", "", "packaging/release-notes", unknown); got.code == 0 {
			t.Errorf("version %s can be released without notes: %.200s", unknown, got.stdout)
		}
	}
}

// Threat: who moves the tag of an action, or takes over its repository, runs code with the rights
// of a workflow. A commit cannot be moved. Nothing has rights that its job does not name.
func TestWorkflowsRunWhatWasReviewed(t *testing.T) {
	t.Parallel()
	workflows, err := filepath.Glob("../.github/workflows/*")
	if err != nil || len(workflows) == 0 {
		t.Fatal("there are no workflows: ", err)
	}
	pinned := regexp.MustCompile(`uses: [\w-]+(?:/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	minimal := regexp.MustCompile(`(?m)^permissions:(?: \{\}|\n  contents: read)\n(?:\S|\z)`)
	for _, workflow := range workflows {
		text := readText(t, workflow)
		for line := range strings.Lines(text) {
			if strings.Contains(line, "uses:") && !pinned.MatchString(strings.TrimSpace(line)) {
				t.Errorf("%s: an action without the commit and version: %s", workflow, line)
			}
		}
		if !minimal.MatchString(text) {
			t.Errorf("%s gives all jobs more than the right to read", workflow)
		}
		if got, want := strings.Count(text, "persist-credentials: false"), strings.Count(text, "actions/checkout@"); got != want {
			t.Errorf("%s leaves the token in %d of %d clones, where every later step finds it", workflow, want-got, want)
		}
	}
}

// Threat: who moves the tag of an image runs another program.
var pinnedImage = regexp.MustCompile(`^docker\.io/[\w/]+:v?\d[\w.-]*@sha256:[0-9a-f]{64}$`)

func TestBaseImagesArePinned(t *testing.T) {
	t.Parallel()
	images := matches(readText(t, "../packaging/Dockerfile"), `(?m)^FROM (?:--\S+ )*(\S+)`)
	if len(images) < 2 {
		t.Errorf("found only the images %q", images)
	}
	for _, image := range images {
		if image != "scratch" && !pinnedImage.MatchString(image) {
			t.Errorf("the image %s has no digest", image)
		}
	}
}

// A release that comes after a later one, as a fix for an older line does, is not the latest. Nor is
// one for a try, or one without a tag.
func TestLatestRelease(t *testing.T) {
	t.Parallel()
	program := must(filepath.Abs("../packaging/is-latest"))(t)
	for tags, latest := range map[string]string{
		"":                                 "",
		"v0.1.0":                           "0.1.0",
		"v0.2.0 v0.1.0 v0.1.1":             "0.2.0",
		"v0.9.0 v0.10.0 v0.9.10":           "0.10.0",
		"v1.0.0 v1.0.1-rc.1 v2.0.0-beta.1": "1.0.0",
		"v1.0.0 v2 v3.0 video-9.0.0 v9.0.0+x 9.0.0": "1.0.0",
	} {
		dir := t.TempDir()
		succeed(t, "cd "+dir+" && git init -q && git -c user.name=a -c user.email=a@example.com commit -q --allow-empty -m x; for tag in "+tags+"; do git tag $tag; done")
		for _, version := range append(strings.Fields(strings.ReplaceAll(tags, "v", "")), "0.0.1", "99.0.0") {
			if got := execute(t, dir, "", program, version); (got.code == 0) != (version == latest) {
				t.Errorf("with the tags %q, version %s ends with exit status %d: %s", tags, version, got.code, got.stderr)
			}
		}
	}
}

// A machine on which nobody has tested yet has the programs of every Debian, and those that
// install-tools.sh installs or names.
func TestToolsAreInstalled(t *testing.T) {
	t.Parallel()
	const always = "bash cd chroot find git go make prlimit sed sh"
	_, list, _ := strings.Cut(readText(t, "install-tools.sh"), "\ntools='")
	list, _, _ = strings.Cut(list, "'\n")
	installed := append(strings.Fields(always), matches("\n"+list, `\n(?:/\S+/)?(\S+) `)...)
	sources := must(filepath.Glob("*_test.go"))(t)
	var used []string
	for _, source := range sources {
		used = append(used, matches(readText(t, source), `(?:tool\(t, |exec\.Command\(|exec\.CommandContext\([\w.()]+, |execute\(t, [^,]+, [^,]+, |succeed\(t, )"([\w/-]+)`)...)
	}
	for _, name := range used {
		if !strings.HasPrefix(name, "../") && !strings.HasPrefix(name, "packaging/") && !slices.Contains(installed, filepath.Base(name)) {
			t.Errorf("install-tools.sh does not see to %s", name)
		}
	}
	if len(used) < 20 {
		t.Errorf("found only the programs %q", used)
	}
}
