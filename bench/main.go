// Command bench puts the same load on the gate and on its peers, in front of
// the same origin, and says what each of them costs. `make bench` in the folder
// above builds what it needs and runs it; README.md says how to read the result.
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
	"strings"
	"syscall"
	"time"
)

// options are what the command line says.
type options struct {
	rounds      int
	duration    time.Duration
	connections int
	procs       int
	only        *regexp.Regexp
	sizes       []objectSize
	caddy       string
	database    string
	out         string
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
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 5, "`how often` each setup is measured at each size")
	flags.DurationVar(&o.duration, "duration", 4*time.Second, "`how long` a measurement takes, in whole seconds")
	flags.IntVar(&o.connections, "connections", 32, "how many `viewers` ask at a time")
	flags.IntVar(&o.procs, "procs", 2, "`threads` of each server: GOMAXPROCS, nbthread, worker_processes")
	flags.StringVar(&o.caddy, "caddy", "../bin/caddy", "the `binary` with the gate in it")
	flags.StringVar(&o.database, "database", "../testdata/country.mmdb", "the geo `database`, in which 127.0.0.1 is in the US")
	flags.StringVar(&o.out, "out", ".", "the `folder` for results.md and results.svg; empty: write no files")
	only := flags.String("only", "", "measure the setups whose name matches a `pattern`, and write no files")
	small := flags.Bool("small", false, "measure the smallest object only, and write no files")
	quick := flags.Bool("quick", false, "one round of one second, and write no files: a smoke test of the bench itself")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if *quick {
		o.rounds, o.duration, o.out = 1, time.Second, ""
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return o, fmt.Errorf("-only: %w", err)
	}
	o.sizes = sizes
	if *small {
		o.sizes = sizes[:1]
	}
	if *only != "" || *small {
		o.out = ""
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("%q: there are only flags", flags.Arg(0))
	case o.rounds < 1 || o.connections < 1 || o.procs < 1:
		return o, errors.New("-rounds, -connections and -procs want to be at least 1")
	case o.duration < time.Second || o.duration%time.Second != 0:
		return o, fmt.Errorf("-duration %s: want whole seconds", o.duration)
	}
	for _, path := range []*string{&o.caddy, &o.database} {
		if *path, err = filepath.Abs(*path); err != nil {
			return o, err
		}
		if _, err := os.Stat(*path); err != nil {
			return o, fmt.Errorf("%w; `make bench` builds and names what is needed", err)
		}
	}
	return o, nil
}

func run(ctx context.Context, args []string) (err error) {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	if err := findTools(); err != nil {
		return err
	}
	e := describeEnvironment(o, quoted(args))
	b, err := newBench(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if err := b.check(ctx); err != nil {
		return err
	}
	if err := b.measure(ctx); err != nil {
		return err
	}
	r := report{e, b.setups, b.results}
	fmt.Print(r.markdown())
	if o.out == "" {
		return nil
	}
	if err := os.WriteFile(filepath.Join(o.out, "results.md"), []byte(r.markdown()), 0o644); err != nil { //nolint:gosec // for everybody to read
		return err
	}
	return os.WriteFile(filepath.Join(o.out, "results.svg"), []byte(r.chart()), 0o644) //nolint:gosec // for everybody to read
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
