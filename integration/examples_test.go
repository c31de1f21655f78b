package integration

import (
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Every example is valid as it stands and formatted as `caddy fmt` does it.
func TestExampleConfigs(t *testing.T) {
	var files []string
	for _, pattern := range []string{"Caddyfile*", "*.caddyfile"} {
		matches, err := filepath.Glob(filepath.Join("../examples", pattern))
		if err != nil {
			t.Fatal(err)
		}
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
		name, err := filepath.Rel("..", file)
		if err != nil {
			t.Fatal(err)
		}
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

// demoPorts are those that the demo listens on.
var demoPorts = []string{"127.0.0.1:8080", "127.0.0.1:8081"}

// The demo prints URLs that do what its text says, and leaves no process and no listener.
func TestDemo(t *testing.T) {
	for _, tc := range []struct {
		name string
		stop func(pid int) error
	}{
		{"Ctrl-C", func(pid int) error { return syscall.Kill(-pid, syscall.SIGINT) }}, // a terminal tells the whole group
		{"kill", func(pid int) error { return syscall.Kill(pid, syscall.SIGTERM) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, addr := range demoPorts {
				if listens(addr) {
					t.Fatalf("another program listens on %s, which the demo needs; stop it and try again", addr)
				}
			}
			root := copyDemo(t)
			output := newLogBuffer()
			cmd := exec.Command(tool(t, "bash"), filepath.Join(root, "examples/run.sh"), binary(t))
			cmd.Dir = t.TempDir() // it is started from anywhere
			cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+root, "XDG_CONFIG_HOME="+root, "HOME="+root, raceOptions)
			cmd.Stdout, cmd.Stderr = output, output
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			pid := cmd.Process.Pid
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			t.Cleanup(func() { _ = syscall.Kill(-pid, syscall.SIGKILL) }) // if the test fails before it has stopped
			if !output.await("Stop with Ctrl-C", startTimeout) {
				t.Fatalf("the demo printed no URLs:\n%s", output)
			}

			checkDemo(t, output.String())

			if err := tc.stop(pid); err != nil {
				t.Fatal(err)
			}
			select {
			case <-ended:
			case <-time.After(startTimeout):
				t.Fatalf("the demo has not ended:\n%s", output)
			}
			eventually(t, "processes of the demo are left", func() bool {
				return errors.Is(syscall.Kill(-pid, 0), syscall.ESRCH)
			})
			for _, addr := range demoPorts {
				if listens(addr) {
					t.Errorf("the demo still listens on %s", addr)
				}
			}
			for _, never := range []string{"DATA RACE", "panic"} {
				if strings.Contains(output.String(), never) {
					t.Errorf("%q in the output:\n%s", never, output)
				}
			}
		})
	}
}

// checkDemo asks for each URL that the demo prints, and compares the answer with the text.
func checkDemo(t *testing.T, output string) {
	t.Helper()
	// Each paragraph of the text says what the URLs below it do.
	promised := regexp.MustCompile(`\((\d{3}) (\w+)\)`)
	address := regexp.MustCompile(`http://localhost:8080/\S+`)
	want := plays
	got := make(map[verdict]int)
	_, text, _ := strings.Cut(output, "The gate listens") // what precedes it is the server's log
	for line := range strings.Lines(text) {
		if strings.Contains(line, "These play") {
			want = plays
		}
		if m := promised.FindStringSubmatch(line); m != nil {
			want = verdict{map[string]int{"401": http.StatusUnauthorized, "403": http.StatusForbidden}[m[1]], m[2]}
		}
		playback := address.FindString(line)
		if playback == "" {
			continue
		}
		res, err := client.Get(playback)
		if err != nil {
			t.Fatal(err)
		}
		answered := readResponse(t, res)
		if diff := cmp.Diff(want, answered.verdict()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", strings.TrimSpace(line), diff)
		}
		if want == plays && !startsLike(answered.body, playback) {
			t.Errorf("%s answers with something else: %.60q", strings.TrimSpace(line), answered.body)
		}
		got[answered.verdict()]++
	}
	wantAll := map[verdict]int{
		plays: 5, // page, HLS, TS, DASH, MP4
		{http.StatusUnauthorized, "token_expired"}:  1,
		{http.StatusForbidden, "rule_blocked"}:      1,
		{http.StatusUnauthorized, "token_required"}: 1,
	}
	if diff := cmp.Diff(wantAll, got); diff != "" {
		t.Errorf("the URLs of the demo (-want +got):\n%s\n%s", diff, output)
	}
}

// copyDemo copies what the demo needs into a folder, without the key of an
// earlier run, so that it starts like the first time and leaves no key here.
func copyDemo(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	for _, folder := range []string{"examples", "testdata"} {
		if err := os.CopyFS(filepath.Join(root, folder), os.DirFS(filepath.Join("..", folder))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(root, "examples/key.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return root
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
