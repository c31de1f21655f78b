package main

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

const (
	njsModule        = "/usr/lib/nginx/modules/ngx_http_js_module.so"
	uriSigningModule = "/usr/lib/trafficserver/modules/uri_signing.so"
)

// debianTool is a program or a module that is needed, and the package that has
// it.
type debianTool struct{ file, pkg string }

var (
	loadTools = []debianTool{{"wrk", "wrk"}, {"nginx", "nginx"}}
	peerTools = []debianTool{
		{njsModule, "libnginx-mod-http-js"},
		{"haproxy", "haproxy"},
		{"traffic_server", "trafficserver"},
		{uriSigningModule, "trafficserver-experimental-plugins"},
	}
)

// findTools names all that is missing at once.
func findTools(tools []debianTool) error {
	// Debian has servers where the search path of most users does not lead.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin"); err != nil {
		return err
	}
	var missing, packages []string
	for _, t := range tools {
		var err error
		if filepath.IsAbs(t.file) {
			_, err = os.Stat(t.file)
		} else {
			_, err = exec.LookPath(t.file)
		}
		if err != nil {
			missing = append(missing, t.file)
			packages = append(packages, t.pkg)
		}
	}
	if missing != nil {
		return fmt.Errorf("not installed: %s; on Debian: apt-get install --no-install-recommends %s",
			strings.Join(missing, ", "), strings.Join(packages, " "))
	}
	return nil
}

// environment is what a result depends on besides the code.
type environment struct {
	options  options
	args     string
	date     time.Time
	cpu      string
	kernel   string
	load     string
	versions []string
}

func describeEnvironment(o options, args string) environment {
	e := environment{
		options: o, args: args, date: time.Now().UTC(),
		cpu:    cpuModel(),
		kernel: firstWord("/proc/sys/kernel/osrelease"),
		load:   firstWord("/proc/loadavg"),
	}
	e.kernel, _, _ = strings.Cut(e.kernel, "-") // what follows is the builder's
	if o.caddy == "" {
		e.versions = []string{runtime.Version()}
		return e
	}
	caddy, gate, compiler, err := caddyVersions(o.caddy)
	if err != nil {
		caddy, gate, compiler = "unknown", "unknown", err.Error()
	}
	e.versions = append(e.versions, "Caddy "+caddy)
	if gate != "(devel)" {
		e.versions = append(e.versions, "gate "+gate)
	}
	e.versions = append(e.versions, compiler)
	for _, t := range o.experiment.tools {
		e.versions = append(e.versions, t.pkg+" "+packageVersion(t.pkg))
	}
	return e
}

// caddyVersions reads what the binary says of itself.
func caddyVersions(path string) (caddy, gate, compiler string, err error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "", "", "", err
	}
	for _, dep := range info.Deps {
		if dep.Path == "github.com/caddyserver/caddy/v2" {
			caddy = dep.Version
		}
	}
	return caddy, info.Main.Version, info.GoVersion, nil
}

func packageVersion(name string) string {
	out, err := exec.Command("dpkg-query", "-W", "-f", "${Version}", name).Output()
	if err != nil {
		return "of unknown version"
	}
	return string(out)
}

func cpuModel() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.Lines(string(data)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value) + ", " + strconv.Itoa(runtime.NumCPU()) + " cores"
		}
	}
	return runtime.GOARCH + ", " + strconv.Itoa(runtime.NumCPU()) + " cores"
}

func firstWord(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	word, _, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	return word
}

var errGone = errors.New("there is no such process")

// usage is what a process and its descendants have used so far.
type usage struct {
	cpu time.Duration
	rss int64 // bytes
}

// peakMemory is the most that a process has had in memory so far, without its
// children, in bytes.
func peakMemory(id int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", id))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmHWM", id)
}

// treeUsage reads /proc.
func treeUsage(root int) (u usage, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return u, err
	}
	processes := make(map[int]process)
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		if p, err := parseStat(string(data)); err == nil {
			processes[p.id] = p
		}
	}
	if _, ok := processes[root]; !ok {
		return u, fmt.Errorf("%w: %d", errGone, root)
	}
	for id, p := range processes {
		for id != root && id != 0 {
			id = processes[id].parent
		}
		if id == root {
			u.cpu += p.cpu
			u.rss += p.rss
		}
	}
	return u, nil
}

type process struct {
	id, parent int
	cpu        time.Duration
	rss        int64
}

// parseStat reads a line of proc_pid_stat(5). The command, in parentheses, may
// contain anything.
func parseStat(line string) (p process, err error) {
	const tick = time.Second / 100 // USER_HZ
	end := strings.LastIndexByte(line, ')')
	id, _, found := strings.Cut(line, " ")
	if end < 0 || !found {
		return p, fmt.Errorf("%q is no line of /proc/<pid>/stat", line)
	}
	const parent, user, system, resident = 1, 11, 12, 21 // counted from the state on
	fields := strings.Fields(line[end+1:])
	if len(fields) <= resident {
		return p, fmt.Errorf("%q is no line of /proc/<pid>/stat", line)
	}
	var numbers [5]int64
	for i, text := range []string{id, fields[parent], fields[user], fields[system], fields[resident]} {
		if numbers[i], err = strconv.ParseInt(text, 10, 64); err != nil {
			return p, err
		}
	}
	return process{
		id: int(numbers[0]), parent: int(numbers[1]),
		cpu: time.Duration(numbers[2]+numbers[3]) * tick,
		rss: numbers[4] * int64(os.Getpagesize()),
	}, nil
}
