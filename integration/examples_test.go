package integration

import (
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every example is valid as it stands and formatted as `caddy fmt` does it.
func TestExampleConfigs(t *testing.T) {
	var files []string
	for _, pattern := range []string{"Caddyfile*", "*.caddyfile"} {
		matches := must(filepath.Glob(filepath.Join("../examples", pattern)))(t)
		files = append(files, matches...)
	}
	if len(files) == 0 {
		t.Fatal("there are no examples")
	}
	// The variables that the comments of the examples mention.
	for name, value := range map[string]string{
		"SIGNED_PLAYBACK_API_TOKEN": "a-secret-of-some-length",
		"SIGNED_PLAYBACK_REDIS":     "redis://" + freeAddr(t),
		"SIGNED_PLAYBACK_GEOIP":     "testdata/country.mmdb",
		"CLOUDFLARE_API_TOKEN":      "a-secret-of-some-length",
		"CLOUDFLARE_EMAIL":          "me@example.com",
		"CLOUDFLARE_API_KEY":        "a-secret-of-some-length",
	} {
		t.Setenv(name, value)
	}
	for _, file := range files {
		name := must(filepath.Rel("..", file))(t)
		t.Run(name, func(t *testing.T) {
			if got := execute(t, "..", "", binary(t), "validate", "--config", name, "--adapter", "caddyfile"); got.code != 0 {
				t.Errorf("caddy validate: exit status %d: %s", got.code, got.stderr)
			} else if strings.Contains(got.stderr, `"level":"warn"`) {
				t.Errorf("caddy validate warns: %s", got.stderr)
			}
			got := execute(t, "..", "", binary(t), "fmt", "--diff", name)
			changed := slices.ContainsFunc(strings.Split(got.stdout, "\n"), func(line string) bool {
				return line != "" && !strings.HasPrefix(line, "  ") // as caddy marks what stays
			})
			if got.code != 0 || changed {
				t.Errorf("caddy fmt: exit status %d: %s%s", got.code, got.stdout, got.stderr)
			}
		})
	}
}

// demoPorts are the ports that the demo uses.
var demoPorts = []string{"8080", "8081", "8082"}

// demo is a running copy of the demo.
type demo struct {
	gate, origin, api string // host:port
	output            *logBuffer
	pid               int        // of the shell, which leads the process group
	ended             chan error // gets the outcome of the shell
}

// startDemo runs the demo on ports of its own, in a copy that has hls.js already, and
// waits until it has printed the address of its page.
func startDemo(t *testing.T) *demo {
	t.Helper()
	root := t.TempDir()
	for _, folder := range []string{"examples", "testdata"} {
		noError(t, os.CopyFS(filepath.Join(root, folder), os.DirFS(filepath.Join("..", folder))))
	}
	noError(t, os.MkdirAll(filepath.Join(root, "bin/demo"), 0o700))
	writeFile(t, filepath.Join(root, "bin/demo/hls.min.js"), []byte(readText(t, hlsJS(t))))
	d := &demo{gate: freeAddr(t), origin: freeAddr(t), api: freeAddr(t), output: new(logBuffer), ended: make(chan error, 1)}
	ports := strings.NewReplacer(demoPorts[0], port(d.gate), demoPorts[1], port(d.origin), demoPorts[2], port(d.api))
	script := filepath.Join(root, "examples/run.sh")
	for _, name := range []string{script, filepath.Join(root, "examples/Caddyfile")} {
		writeFile(t, name, []byte(ports.Replace(readText(t, name))))
	}
	cmd := exec.Command(tool(t, "bash"), script, binary(t))
	cmd.Dir = t.TempDir() // the demo starts from any folder
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+root, "XDG_CONFIG_HOME="+root, "HOME="+root, raceOptions)
	cmd.Stdout, cmd.Stderr = d.output, d.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	noError(t, cmd.Start())
	d.pid = cmd.Process.Pid
	go func() { d.ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = syscall.Kill(-d.pid, syscall.SIGKILL) }) // if the test fails before it stops the demo
	eventually(t, "the demo prints its address", func() bool {
		select {
		case err := <-d.ended:
			t.Fatalf("the demo has ended with %v:\n%s", err, d.output)
		default:
		}
		return strings.Contains(d.output.String(), "Stop with Ctrl-C")
	})
	return d
}

// The demo prints one short address, whose page shows a clip that plays and links that are
// refused. It ends without an error, a process or a listener.
func TestDemo(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(pid int) error{
		"Ctrl-C": func(pid int) error { return syscall.Kill(-pid, syscall.SIGINT) }, // a terminal signals the whole group
		"kill":   func(pid int) error { return syscall.Kill(pid, syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := startDemo(t)
			if name == "Ctrl-C" {
				checkDemo(t, d)
			}
			noError(t, stop(d.pid))
			if err := await(t, d.ended, "the end of the demo"); err != nil {
				t.Errorf("the demo ends with %v", err)
			}
			eventually(t, "the processes of the demo end", func() bool {
				return errors.Is(syscall.Kill(-d.pid, 0), syscall.ESRCH)
			})
			for _, addr := range []string{d.gate, d.origin, d.api} {
				if listens(addr) {
					t.Errorf("something still listens on %s", addr)
				}
			}
			for line := range strings.Lines(d.output.String()) {
				if len(line) > 200 || strings.Contains(line, `"level"`) || strings.Contains(line, "rror") {
					t.Errorf("the demo prints %.200s", line)
				}
			}
		})
	}
}

// checkDemo asks for each link of the demo's page, and compares the answer with the page.
func checkDemo(t *testing.T, d *demo) {
	t.Helper()
	address := "http://localhost:" + port(d.gate)
	html := string(send(t, client, http.MethodGet, address+"/", "").body)
	var secret string
	if words := strings.Fields(d.output.String()); slices.Contains(words, "http://localhost:"+port(d.api)+"/console/") {
		secret = words[slices.Index(words, "with")+1]
	}
	facts := send(t, client, http.MethodGet, "http://localhost:"+port(d.api)+"/client/v4/accounts/any/stream/gateway", "", "Authorization: Bearer "+secret)
	if !strings.Contains(string(facts.body), `"playback":"`+address+`"`) {
		t.Errorf("with the printed secret, the console finds %s", facts.body)
	}
	got := make(map[verdict]int)
	ask := func(playback string, want verdict) {
		t.Helper()
		answered := send(t, client, http.MethodGet, playback, "")
		if answered.verdict() != want || want == plays && !startsLike(answered.body, playback) {
			t.Errorf("%s answers with %v and %.60q, want %v", playback, answered.verdict(), answered.body, want)
		}
		got[answered.verdict()]++
	}
	for _, m := range regexp.MustCompile(`href="(/[^"]+)"`).FindAllStringSubmatch(html, -1) {
		ask(address+m[1], plays)
	}
	for _, m := range regexp.MustCompile(`curl -i "([^"]+)" # (\d+) ?(\w*)`).FindAllStringSubmatch(html, -1) {
		status, _ := strconv.Atoi(m[2])
		ask(m[1], verdict{status, m[3]})
	}
	wantAll := map[verdict]int{
		plays: 6, // page, HLS, TS, DASH, MP4, and the first command
		{http.StatusUnauthorized, "token_expired"}:  1,
		{http.StatusForbidden, "rule_blocked"}:      1,
		{http.StatusUnauthorized, "token_required"}: 1,
	}
	if diff := cmp.Diff(wantAll, got); diff != "" {
		t.Errorf("the links of the demo (-want +got):\n%s\n%s", diff, html)
	}
	page := openPage(t, address, watchPolicy, noNativeHLS)
	page.until(t, "the first of four frames shows a picture", `frames.length === 4 && frames[0].document.querySelector("video")?.readyState >= 2`)
}

func listens(addr string) bool {
	conn, err := net.Dial("tcp", addr)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// startsLike reports whether a body has the type that the ending of its URL promises.
func startsLike(body []byte, playback string) bool {
	start := map[string]string{
		"": "<!doctype html>", ".m3u8": "#EXTM3U\n", ".mpd": "<?xml", ".mp4": "\x00\x00\x00 ftyp",
	}[path.Ext(playback[strings.LastIndexByte(playback, '/'):])]
	return start != "" && strings.HasPrefix(strings.ToLower(string(body)), strings.ToLower(start))
}
