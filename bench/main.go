// Command bench puts the same load on the gate and on its peers, in front of
// the same origin, and says what each of them costs. Told so, it measures what
// floods do to viewers, what many tokens take of memory, or how the gate scales.
// `make bench` in the folder above builds what it needs and runs it; README.md
// says how to read the results.
//
// It is a module of its own, so that what only measuring needs stays out of the
// product's go.mod.
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
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options are what the command line says.
type options struct {
	experiment *experiment
	quick      bool
	rounds     int
	procs      int
	caddy      string
	database   string
	out        string

	// For those that put a load on servers.
	duration    time.Duration
	connections int

	only  *regexp.Regexp // of the comparison
	sizes []objectSize

	tokens    int           // of memory
	benchTime time.Duration // of scale
}

// experiment is something that can be measured, by the first argument.
type experiment struct {
	name    string // "" for the comparison
	tools   []debianTool
	flags   func(flags *flag.FlagSet, o *options) (finish func() error)
	quick   func(o *options) // makes it a smoke test
	measure func(ctx context.Context, o options, e environment) (outcome, error)
}

// outcome is what an experiment has found. Its files are written and shown, and
// then the run fails if something that is wanted is not so.
type outcome struct {
	files map[string]string // by name; a report ends in .md
	unmet []string
}

func experiments() []*experiment {
	return []*experiment{
		{"", slices.Concat(loadTools, peerTools), comparisonFlags, func(o *options) { o.rounds, o.duration = 1, time.Second }, compare},
		{"flood", loadTools, floodFlags, func(o *options) { o.rounds, o.duration = 1, 2*time.Second }, measureFloods},
		{"memory", loadTools, memoryFlags, func(o *options) { o.tokens, o.duration = 2000, time.Second }, measureMemory},
		{"scale", nil, scaleFlags, func(o *options) { o.rounds, o.benchTime = 1, 10*time.Millisecond }, measureScale},
	}
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

func parseOptions(args []string) (o options, err error) {
	if o.experiment, args, err = chooseExperiment(args); err != nil {
		return o, err
	}
	flags := flag.NewFlagSet(strings.TrimSpace("bench "+o.experiment.name), flag.ContinueOnError)
	flags.StringVar(&o.out, "out", ".", "the `folder` for the results; empty: write no files")
	flags.BoolVar(&o.quick, "quick", false, "little of everything, and write no files: a smoke test of the bench itself")
	finish := o.experiment.flags(flags, &o)
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("%q: there are only flags behind the name of an experiment", flags.Arg(0))
	}
	if o.quick {
		o.experiment.quick(&o)
		o.out = ""
	}
	return o, finish()
}

func chooseExperiment(args []string) (*experiment, []string, error) {
	name := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	}
	var names []string
	for _, e := range experiments() {
		if e.name == name {
			return e, args, nil
		}
		names = append(names, e.name)
	}
	return nil, nil, fmt.Errorf("%q is no experiment: want one of %s, or none for the comparison", name, strings.Join(names[1:], ", "))
}

// roundsFlag is for what is measured more than once.
func roundsFlag(flags *flag.FlagSet, o *options, rounds int) {
	flags.Func("rounds", fmt.Sprintf("`how often` everything is measured, in turn (default %d)", rounds), func(text string) (err error) {
		if o.rounds, err = strconv.Atoi(text); err == nil && o.rounds < 1 {
			err = errors.New("want at least 1")
		}
		return err
	})
	o.rounds = rounds
}

// loadFlags are those of all that puts a load on servers.
func loadFlags(flags *flag.FlagSet, o *options, duration time.Duration, connections int) (finish func() error) {
	flags.DurationVar(&o.duration, "duration", duration, "`how long` a measurement takes, in whole seconds")
	flags.IntVar(&o.connections, "connections", connections, "how many `connections` the load generator has")
	flags.IntVar(&o.procs, "procs", 2, "`threads` of each server: GOMAXPROCS, nbthread, worker_processes")
	flags.StringVar(&o.caddy, "caddy", "../bin/caddy", "the `binary` with the gate in it")
	flags.StringVar(&o.database, "database", "../testdata/country.mmdb", "the geo `database`, in which 127.0.0.1 is in the US")
	return func() error {
		switch {
		case o.connections < 1 || o.procs < 1:
			return errors.New("-connections and -procs want to be at least 1")
		case o.duration < time.Second || o.duration%time.Second != 0:
			return fmt.Errorf("-duration %s: want whole seconds", o.duration)
		}
		for _, path := range []*string{&o.caddy, &o.database} {
			absolute, err := filepath.Abs(*path)
			if err != nil {
				return err
			}
			if _, err := os.Stat(absolute); err != nil {
				return fmt.Errorf("%w; `make bench` builds and names what is needed", err)
			}
			*path = absolute
		}
		return nil
	}
}

func comparisonFlags(flags *flag.FlagSet, o *options) (finish func() error) {
	only := flags.String("only", "", "measure the setups whose name matches a `pattern`, and write no files")
	small := flags.Bool("small", false, "measure the smallest object only, and write no files")
	roundsFlag(flags, o, 12) // many and short, for a machine that is slow for a while
	finishLoad := loadFlags(flags, o, 2*time.Second, 32)
	return func() (err error) {
		if o.only, err = regexp.Compile(*only); err != nil {
			return fmt.Errorf("-only: %w", err)
		}
		o.sizes = sizes
		if *small {
			o.sizes = sizes[:1]
		}
		if *only != "" || *small {
			o.out = ""
		}
		return finishLoad()
	}
}

func run(ctx context.Context, args []string) error {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	if err := findTools(o.experiment.tools); err != nil {
		return err
	}
	found, err := o.experiment.measure(ctx, o, describeEnvironment(o, quoted(args)))
	if err != nil {
		return err
	}
	for name, content := range found.files {
		if strings.HasSuffix(name, ".md") {
			fmt.Print(content)
		}
		if o.out == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(o.out, name), []byte(content), 0o644); err != nil { //nolint:gosec // for everybody to read
			return err
		}
	}
	if found.unmet == nil {
		return nil
	}
	return fmt.Errorf("not as wanted: %s", strings.Join(found.unmet, "; "))
}

// compare measures the gate and its peers.
func compare(ctx context.Context, o options, e environment) (found outcome, err error) {
	var setups []*setup
	for _, s := range allSetups {
		if o.only.MatchString(s.name) {
			setups = append(setups, s)
		}
	}
	if setups == nil {
		return found, fmt.Errorf("-only %s matches no setup", o.only)
	}
	b, err := newBench(ctx, o, setups)
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.measure(ctx); err != nil {
		return found, err
	}
	r := report{e, b.setups, b.results}
	return outcome{files: map[string]string{"results.md": r.markdown(), "results.svg": r.chart()}}, nil
}

// quoted writes arguments as a shell wants them.
func quoted(args []string) string {
	plain := regexp.MustCompile(`^[\w./=,-]+$`)
	words := make([]string, 0, len(args))
	for _, arg := range args {
		if !plain.MatchString(arg) {
			arg = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		words = append(words, arg)
	}
	return strings.Join(words, " ")
}

// progress tells whoever waits what is being done.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
