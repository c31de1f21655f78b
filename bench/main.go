// Command bench sends the same load to the gate and to other servers in front of one
// origin, with and without their caches, and reports the cost of each. With the argument flood, it measures the effect of
// floods of forged tokens on clients; with growth, the cost of more objects and viewers. README.md explains the reports.
//
// It is a separate module, so the product's go.mod does not list the dependencies of the
// measurements.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// options are the command line.
type options struct {
	flood       bool // measure floods instead of comparing servers
	growth      bool // measure more and more objects and viewers instead
	quick       bool // a smoke test
	small       bool // only the smallest object
	rounds      int
	duration    time.Duration
	connections int
	caddy       string
	only        *regexp.Regexp // names of setups to compare
	log         *strings.Builder
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseOptions(args []string) (options, error) {
	o := options{rounds: 5, duration: 2 * time.Second, connections: 32, log: new(strings.Builder)}
	name := "bench"
	if len(args) > 0 && args[0] == "flood" {
		o.flood, o.duration, o.connections = true, 10*time.Second, 256
		name, args = "bench flood", args[1:]
	}
	if len(args) > 0 && args[0] == "growth" {
		o.growth, name, args = true, "bench growth", args[1:]
	}
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", o.rounds, "the `number` of rounds; each round measures everything once")
	flags.DurationVar(&o.duration, "duration", o.duration, "the `duration` of a measurement, in whole seconds")
	flags.IntVar(&o.connections, "connections", o.connections, "the `number` of connections of the load generator")
	flags.StringVar(&o.caddy, "caddy", "../bin/caddy", "the `binary` that contains the gate")
	flags.BoolVar(&o.quick, "quick", false, "a smoke test: measure a little, also on a busy machine, and write no report")
	only := new(string)
	if !o.flood && !o.growth {
		flags.StringVar(only, "only", "", "measure the setups whose name matches a `pattern`, and write no report")
		flags.BoolVar(&o.small, "small", false, "measure the smallest object only, and write no report")
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.quick {
		o.rounds, o.duration = 1, time.Second
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.rounds < 1 || o.connections < 1:
		return o, errors.New("-rounds and -connections must be at least 1")
	case o.duration < time.Second || o.duration%time.Second != 0:
		return o, fmt.Errorf("-duration %s: it must be in whole seconds", o.duration)
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return o, fmt.Errorf("-only: %w", err)
	}
	if o.caddy, err = filepath.Abs(o.caddy); err != nil {
		return o, err
	}
	_, err = os.Stat(o.caddy)
	return o, err
}

// sizes returns the object sizes to measure.
func (o options) sizes() []objectSize {
	if o.small {
		return objectSizes[:1]
	}
	return objectSizes
}

// name is that of the report.
func (o options) name() string {
	switch {
	case o.flood:
		return "flood"
	case o.growth:
		return "growth"
	}
	return "results"
}

func (o options) logFile() string { return "logs/" + o.name() + ".log" }

// record logs a measurement.
func (o options) record(format string, args ...any) {
	progress(format, args...)
	fmt.Fprintf(o.log, format+"\n", args...)
}

// partial reports whether the run measures too little for a report.
func (o options) partial() bool { return o.quick || o.small || o.only.String() != "" }

func run(ctx context.Context, args []string) error {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	measure := compare
	switch {
	case o.flood:
		measure = measureFloods
	case o.growth:
		measure = measureGrowth
	}
	e, err := describeEnvironment(o, strings.Join(args, " "))
	if err != nil {
		return err
	}
	report, unmet, err := measure(ctx, o, e)
	if err != nil {
		return err
	}
	fmt.Print(report)
	if !o.partial() {
		command, machine := e.madeBy()
		if err := errors.Join(
			writeFile(o.name()+".md", []byte(report)),
			os.MkdirAll(filepath.Dir(o.logFile()), 0o755),
			writeFile(o.logFile(), []byte(command+"\n"+machine+"\n\n"+o.log.String())),
		); err != nil {
			return err
		}
	}
	if unmet != nil && !o.quick { // one short round proves nothing
		return fmt.Errorf("requirements not met: %s", strings.Join(unmet, "; "))
	}
	return nil
}

// compare measures the gate and the other servers.
func compare(ctx context.Context, o options, e environment) (markdown string, unmet []string, err error) {
	var setups []*setup
	for _, s := range allSetups {
		if o.only.MatchString(s.name) {
			setups = append(setups, s)
		}
	}
	if setups == nil {
		return "", nil, fmt.Errorf("-only %s matches no setup", o.only)
	}
	b, err := newBench(ctx, o, setups)
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.measure(ctx); err != nil {
		return "", nil, err
	}
	r := report{e, b.setups, b.samples}
	if !o.partial() {
		if err := writeFile("results.svg", []byte(r.chart())); err != nil {
			return "", nil, err
		}
	}
	return r.markdown(), r.unmet(), nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
