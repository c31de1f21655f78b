package main

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// maxLoad is the load average of the last minute from which on a machine counts
// as busy.
const maxLoad = 0.3

// Debian packages.
var (
	floodPackages      = []string{"wrk", "nginx"}
	comparisonPackages = []string{
		"wrk", "nginx", "libnginx-mod-http-js", "haproxy", "trafficserver", "trafficserver-experimental-plugins",
		"varnish", "nghttp2-client",
	}
)

// packageVersions returns "<name> <version>" of each. It names all that are
// missing.
func packageVersions(packages []string) (versions []string, err error) {
	var missing []string
	for _, name := range packages {
		out, err := exec.Command("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", name).Output()
		version, installed := strings.CutPrefix(string(out), "installed ")
		if err != nil || !installed {
			missing = append(missing, name)
		}
		versions = append(versions, name+" "+version)
	}
	if missing != nil {
		return nil, fmt.Errorf("packages are missing; on Debian: apt-get install --no-install-recommends %s", strings.Join(missing, " "))
	}
	// Debian installs servers where the search path of most users does not lead.
	return versions, os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
}

// environment is what the figures depend on besides the code.
type environment struct {
	options  options
	args     string
	date     time.Time
	commit   string
	cpu      string
	kernel   string
	load     string // average of the minute before the start
	versions []string
}

// describeEnvironment fails if the machine is busy or a package is missing.
func describeEnvironment(o options, args string) (environment, error) {
	e := environment{
		options: o, args: args, date: time.Now().UTC(),
		cpu:    cpuModel(),
		kernel: firstWord("/proc/sys/kernel/osrelease"),
		load:   firstWord("/proc/loadavg"),
	}
	if err := checkIdle(e.load); err != nil && !o.quick {
		return e, err
	}
	e.kernel, _, _ = strings.Cut(e.kernel, "-") // the rest is the builder's
	commit, err := exec.Command("../.ci/commit").Output()
	if err != nil {
		return e, fmt.Errorf("../.ci/commit: %w", err)
	}
	e.commit = strings.TrimSpace(string(commit))
	packages := comparisonPackages
	if o.flood || o.growth {
		packages = floodPackages
	}
	packaged, err := packageVersions(packages)
	if err != nil {
		return e, err
	}
	e.versions, err = caddyVersions(o.caddy)
	e.versions = append(e.versions, packaged...)
	return e, err
}

// checkIdle refuses a load average at which the figures would tell more about
// the machine's other work than about the servers.
func checkIdle(load string) error {
	average, err := strconv.ParseFloat(load, 64)
	if err != nil {
		return fmt.Errorf("the load average of this machine is unknown: %w", err)
	}
	if average >= maxLoad {
		return fmt.Errorf("the machine is busy: its load average is %.2f and must be below %.1f at the start, or the figures mean nothing; "+
			"stop its other work, wait a few minutes, and start again", average, maxLoad)
	}
	return nil
}

// caddyVersions reads them from the binary.
func caddyVersions(path string) (versions []string, err error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for _, dep := range info.Deps {
		if dep.Path == "github.com/caddyserver/caddy/v2" {
			versions = append(versions, "Caddy "+dep.Version)
		}
	}
	if info.Main.Version != "(devel)" {
		versions = append(versions, "gate "+info.Main.Version)
	}
	return append(versions, info.GoVersion), nil
}

func cpuModel() string {
	cores := strconv.Itoa(runtime.NumCPU()) + " cores"
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH + ", " + cores
	}
	for line := range strings.Lines(string(data)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value) + ", " + cores
		}
	}
	return runtime.GOARCH + ", " + cores
}

func firstWord(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	word, _, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	return word
}

// madeBy says what makes the figures, and of which machine and versions they are.
func (e environment) madeBy() (command, machine string) {
	command = "make bench"
	if e.args != "" {
		command += fmt.Sprintf(" BENCHFLAGS=%q", e.args)
	}
	return fmt.Sprintf("Made by `%s` on %s UTC from commit %s.", command, e.date.Format("2006-01-02 15:04"), e.commit),
		fmt.Sprintf("%s, Linux %s; %s; load average at the start: %s", e.cpu, e.kernel, strings.Join(e.versions, "; "), e.load)
}

// write begins a report.
func (e environment) write(out *strings.Builder, title string) {
	command, machine := e.madeBy()
	fmt.Fprintf(out, "# %s\n\n%s [%s](%[3]s) has each\nmeasurement. [README.md](README.md) says how to read this page.\n\n- %s\n", title, command, e.options.logFile(), machine)
}
