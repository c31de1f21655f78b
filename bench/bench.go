package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// warmTokens is how many viewers there are, in the tokens that they have.
	warmTokens = 100

	// freshPerSecond is how many new tokens a second are made at first. More
	// are made when they do not suffice.
	freshPerSecond = 4000

	warmUp = time.Second
)

// object is a file of the origin.
type object struct {
	file string
	data []byte
}

// objectSize is what a measurement is about, besides a setup.
type objectSize struct {
	title string
	bytes int
}

// sizes begin with the smallest.
var sizes = []objectSize{{"1 KiB", 1 << 10}, {"64 KiB", 64 << 10}, {"1 MiB", 1 << 20}}

// bench is one run.
type bench struct {
	options options
	dir     string // temporary
	script  string // load.lua
	setups  []*setup

	signer *signer
	public publicKey
	media  map[string][]object // by video, one of each size
	warm   map[*setup][]string // tokens
	other  map[*setup]string   // for the other video
	fresh  []string            // tokens for setups that want new ones

	origin  *server
	servers map[*setup]*server
	results map[*setup][][]sample // by size and round
}

// sample is what one measurement has found.
type sample struct {
	load      loadResult
	cpu       time.Duration // of the server
	originCPU time.Duration
	rss       int64
}

// newBench makes what setups need and sees that they do what they should. It
// leaves the origin running, which close stops.
func newBench(ctx context.Context, o options, setups []*setup) (*bench, error) {
	b := &bench{
		options: o, setups: setups,
		media: make(map[string][]object), warm: make(map[*setup][]string), other: make(map[*setup]string),
		servers: make(map[*setup]*server), results: make(map[*setup][][]sample),
	}
	err := b.makeFolder()
	if err == nil {
		err = b.prepare(ctx)
	}
	if err == nil {
		err = b.check(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *bench) makeFolder() (err error) {
	if b.dir, err = os.MkdirTemp("", "bench"); err != nil {
		return err
	}
	// Servers that give up root must get in. No private key is kept here.
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	b.script = filepath.Join(b.dir, "load.lua")
	return writeFile(b.script, loadScript)
}

// close stops what is running.
func (b *bench) close() error {
	var errs []error
	for _, srv := range b.servers {
		errs = append(errs, srv.stop())
	}
	if b.origin != nil {
		errs = append(errs, b.origin.stop())
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// prepare makes the keys, the tokens and the objects, and starts the origin.
func (b *bench) prepare(ctx context.Context) (err error) {
	if b.signer, err = newSigner(); err != nil {
		return err
	}
	if b.public, err = b.signer.public(); err != nil {
		return err
	}
	if err := b.makeMedia(); err != nil {
		return err
	}
	for _, s := range b.setups {
		paths := []string{"/" + video + "/"} // the file is added below
		if s.form != nil {
			if b.warm[s], err = mint(b.signer, s.form, s.rulesOf, 0, warmTokens); err != nil {
				return err
			}
			if b.other[s], err = s.form.sign(b.signer, grant{otherVideo, time.Now().Add(time.Hour), s.rulesOf(0)}); err != nil {
				return err
			}
			paths = paths[:0]
			for _, compact := range b.warm[s] {
				paths = append(paths, s.form.path(compact, video, ""))
			}
		}
		for i := range sizes {
			if err := b.writePaths(s, "warm", i, paths); err != nil {
				return err
			}
		}
	}
	b.origin, err = b.start(ctx, originSetup)
	return err
}

// makeMedia writes the objects, of random bytes, for the origin.
func (b *bench) makeMedia() error {
	for _, id := range []string{video, otherVideo} {
		dir := filepath.Join(b.dir, originSetup.name, "media", id)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for _, size := range sizes {
			o := object{fmt.Sprintf("segment-%d.m4s", size.bytes), make([]byte, size.bytes)}
			for i := range o.data {
				o.data[i] = byte(rand.Uint32()) //nolint:gosec // nobody is to guess it
			}
			if err := writeFile(filepath.Join(dir, o.file), o.data); err != nil {
				return err
			}
			b.media[id] = append(b.media[id], o)
		}
	}
	return nil
}

// writePaths writes what the load generator is to ask for: paths without the
// name of the file, which is that of a size.
func (b *bench) writePaths(s *setup, kind string, size int, folders []string) error {
	var lines strings.Builder
	for _, folder := range folders {
		lines.WriteString(folder + b.media[video][size].file + "\n")
	}
	return writeFile(b.paths(s, kind, size), []byte(lines.String()))
}

func (b *bench) paths(s *setup, kind string, size int) string {
	return filepath.Join(b.dir, fmt.Sprintf("%s-%s-%d", s.name, kind, size))
}

// measure runs the rounds. In each, every setup has its turn at every size.
func (b *bench) measure(ctx context.Context) error {
	for _, s := range b.setups {
		b.results[s] = make([][]sample, len(b.options.sizes))
		if err := b.restart(ctx, s); err != nil {
			return err
		}
	}
	for round := range b.options.rounds {
		for size := range b.options.sizes {
			for _, s := range inTurn(b.setups, round) {
				result, err := b.sample(ctx, s, size)
				if err != nil {
					return fmt.Errorf("%s, %s, round %d: %w", s.title, sizes[size].title, round+1, err)
				}
				b.results[s][size] = append(b.results[s][size], result)
				progress("round %d/%d  %-6s  %-44s %8.0f requests/s  %6.1f µs each", round+1, b.options.rounds,
					sizes[size].title, s.title, result.load.perSecond(), result.perRequest())
			}
		}
	}
	return nil
}

// inTurn is the order of a round: another one begins each time, and every other
// round goes backwards, so that none has the same place or follows the same one
// throughout, and what else the machine does meets all of them.
func inTurn[T any](all []T, round int) []T {
	first := round % len(all)
	order := slices.Concat(all[first:], all[:first])
	if round%2 != 0 {
		slices.Reverse(order)
	}
	return order
}

// renew starts a setup, anew if it is running.
func (b *bench) renew(ctx context.Context, s *setup) error {
	if running := b.servers[s]; running != nil {
		delete(b.servers, s)
		if err := running.stop(); err != nil {
			return err
		}
	}
	srv, err := b.start(ctx, s)
	if err == nil {
		b.servers[s] = srv
	}
	return err
}

// restart renews a setup and warms it up.
func (b *bench) restart(ctx context.Context, s *setup) error {
	if err := b.renew(ctx, s); err != nil {
		return err
	}
	srv := b.servers[s]
	r, err := b.run(ctx, b.load(s, 0, warmUp))
	if err == nil {
		err = r.check(sizes[0].bytes)
	}
	if err != nil {
		return fmt.Errorf("warming up %s: %w\n%s", s.title, err, srv.log)
	}
	return nil
}

func (b *bench) load(s *setup, size int, duration time.Duration) load {
	return load{
		url: "http://" + b.servers[s].addr(), paths: b.paths(s, "warm", size), header: s.header,
		connections: b.options.connections, duration: duration,
	}
}

// sample measures a setup once.
func (b *bench) sample(ctx context.Context, s *setup, size int) (sample, error) {
	if !s.fresh {
		return b.sampleLoad(ctx, s, size, b.load(s, size, b.options.duration))
	}
	count := int(b.options.duration.Seconds() * freshPerSecond)
	for {
		if err := b.mintFresh(s, size, count); err != nil {
			return sample{}, err
		}
		// A new process has an empty cache.
		if err := b.restart(ctx, s); err != nil {
			return sample{}, err
		}
		l := b.load(s, size, b.options.duration)
		l.paths, l.mode = b.paths(s, "fresh", size), "once"
		result, err := b.sampleLoad(ctx, s, size, l)
		if err != nil || !result.load.Exhausted {
			return result, err
		}
		const more = 2
		count = more * len(b.fresh)
		progress("%d new tokens have not been enough", len(b.fresh))
	}
}

// mintFresh sees to it that there are new tokens.
func (b *bench) mintFresh(s *setup, size, count int) error {
	if count > len(b.fresh) {
		progress("minting %d tokens", count-len(b.fresh))
		tokens, err := mint(b.signer, s.form, s.rulesOf, warmTokens+len(b.fresh), count-len(b.fresh))
		if err != nil {
			return err
		}
		b.fresh = append(b.fresh, tokens...)
	}
	paths := make([]string, 0, len(b.fresh))
	for _, compact := range b.fresh {
		paths = append(paths, s.form.path(compact, video, ""))
	}
	return b.writePaths(s, "fresh", size, paths)
}

func (b *bench) sampleLoad(ctx context.Context, s *setup, size int, l load) (result sample, err error) {
	srv := b.servers[s]
	before, err := b.observe(ctx, s)
	if err != nil {
		return result, err
	}
	if result.load, err = b.run(ctx, l); err != nil {
		return result, err
	}
	after, err := b.observe(ctx, s)
	if err != nil {
		return result, err
	}
	result.cpu = after.server.cpu - before.server.cpu
	result.originCPU = after.origin.cpu - before.origin.cpu
	result.rss = after.server.rss
	if result.load.Exhausted {
		return result, nil // it is not used
	}
	err = result.load.check(sizes[size].bytes)
	if err == nil {
		err = after.since(before).check(s, result.load.Requests, b.options.connections)
	}
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, srv.log)
	}
	return result, err
}

// perRequest is the server's CPU time for a request, in microseconds.
func (s sample) perRequest() float64 { return float64(s.cpu.Microseconds()) / float64(s.load.Requests) }
