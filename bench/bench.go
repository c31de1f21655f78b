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
	// warmTokens is how many tokens a warm setup gets in turn.
	warmTokens = 100

	// freshPerSecond is how many new tokens are signed for each second, more than
	// two processors verify.
	freshPerSecond = 15_000

	warmUp = time.Second
)

// object is a file of the origin.
type object struct {
	file string
	data []byte
}

type objectSize struct {
	title string
	bytes int
}

// objectSizes are in ascending order.
var objectSizes = []objectSize{{"1 KiB", 1 << 10}, {"64 KiB", 64 << 10}, {"1 MiB", 1 << 20}}

// bench is one run.
type bench struct {
	options options
	dir     string // temporary
	script  string // load.lua
	setups  []*setup

	signer      *signer
	public      publicKey
	certificate []byte              // of all servers, with its key
	media       map[string][]object // by video, one of each size
	warm        map[*setup][]string // tokens
	other       map[*setup]string   // a token for the other video
	fresh       []string            // new tokens, for setups that need them

	origin  *server
	servers map[*setup]*server
	samples map[*setup]map[cell][]sample // by round
}

// sample is the result of one measurement.
type sample struct {
	load      loadResult
	cpu       time.Duration // of the server
	originCPU time.Duration
	rss       int64 // bytes, at the end
}

// newBench makes what all measurements need, starts the origin, and checks that
// each setup does what it should. The caller must call close.
func newBench(ctx context.Context, o options, setups []*setup) (*bench, error) {
	b := &bench{
		options: o, setups: setups,
		media: make(map[string][]object), warm: make(map[*setup][]string), other: make(map[*setup]string),
		servers: make(map[*setup]*server), samples: make(map[*setup]map[cell][]sample),
	}
	for _, step := range []func(context.Context) error{b.makeFolder, b.makeKeys, b.makeMedia, b.makeTokens, b.startOrigin, b.check} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, b.close())
		}
	}
	return b, nil
}

func (b *bench) makeFolder(context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "bench"); err != nil {
		return err
	}
	// Servers that give up root must be able to read it. It contains no private
	// key.
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

func (b *bench) makeKeys(context.Context) (err error) {
	if b.signer, err = newSigner(); err != nil {
		return err
	}
	if b.public, err = b.signer.public(); err != nil {
		return err
	}
	b.certificate, err = newCertificate()
	return err
}

// makeMedia writes objects of random bytes for the origin.
func (b *bench) makeMedia(context.Context) error {
	for _, id := range []string{video, otherVideo} {
		dir := filepath.Join(b.dir, originSetup.name, "media", id)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for _, size := range objectSizes {
			o := object{fmt.Sprintf("segment-%d.m4s", size.bytes), make([]byte, size.bytes)}
			for i := range o.data {
				o.data[i] = byte(rand.Uint32()) //nolint:gosec // not a secret
			}
			if err := writeFile(filepath.Join(dir, o.file), o.data); err != nil {
				return err
			}
			b.media[id] = append(b.media[id], o)
		}
	}
	return nil
}

// makeTokens makes no token twice, because none of the fresh tokens may be in the
// cache.
func (b *bench) makeTokens(context.Context) (err error) {
	expires := time.Now().Add(24 * time.Hour)
	freshExpires := expires.Add(warmTokens * time.Second)
	for _, s := range b.setups {
		if s.form == nil {
			continue
		}
		if s.fresh && b.fresh == nil {
			n := freshPerSecond * int(b.options.duration/time.Second)
			progress("signing %d tokens", n)
			if b.fresh, err = mint(b.signer, s.form, s.rules, freshExpires, n); err != nil {
				return err
			}
		}
		if b.warm[s], err = mint(b.signer, s.form, s.rules, expires, warmTokens); err != nil {
			return err
		}
		if b.other[s], err = s.form.sign(b.signer, grant{otherVideo, time.Now().Add(time.Hour), s.rules}); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) startOrigin(ctx context.Context) (err error) {
	b.origin, err = b.start(ctx, originSetup)
	return err
}

// measure runs the rounds. In each, every setup has its turn in every cell.
func (b *bench) measure(ctx context.Context) error {
	for _, s := range b.setups {
		b.samples[s] = make(map[cell][]sample)
		if err := b.restart(ctx, s); err != nil {
			return err
		}
	}
	for round := range b.options.rounds {
		for _, c := range (&setup{over: len(protocols)}).cells(len(b.options.sizes())) {
			for _, s := range inTurn(b.setups, round) {
				if c.protocol >= max(s.over, 1) {
					continue
				}
				result, err := b.sample(ctx, s, c)
				if err != nil {
					return fmt.Errorf("%s, %s, round %d: %w", s.title, c, round+1, err)
				}
				b.samples[s][c] = append(b.samples[s][c], result)
				b.options.record("round %d/%d  %-14s  %-44s %7d requests, %8.0f/s  CPU %6.1f µs each, origin's %6.1f  RSS %3d MiB", round+1, b.options.rounds,
					c, s.title, result.load.Requests, result.load.perSecond(), result.perRequest(),
					float64(result.originCPU.Microseconds())/float64(result.load.Requests), result.rss>>20)
			}
		}
	}
	return nil
}

// inTurn is the order of a round. Each round begins with another one, and every
// other round goes backwards, so that the machine's other work meets all alike.
func inTurn[T any](all []T, round int) []T {
	start := round % len(all)
	order := slices.Concat(all[start:], all[:start])
	if round%2 != 0 {
		slices.Reverse(order)
	}
	return order
}

// renew starts a setup, and stops it before if it is running.
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
	cells := s.cells(len(b.options.sizes()))
	if !s.cache {
		cells = cells[:1]
	}
	for _, c := range cells {
		l, err := b.load(s, c, b.warm[s])
		if err != nil {
			return err
		}
		l.duration = warmUp
		r, err := b.run(ctx, l)
		if err == nil {
			err = r.check(objectSizes[c.size].bytes)
		}
		if err != nil {
			return b.servers[s].explain(err)
		}
	}
	return nil
}

// load asks a setup for the objects of a cell, with tokens in turn if it needs them.
func (b *bench) load(s *setup, c cell, tokens []string) (load, error) {
	file := b.media[video][c.size].file
	lines := "/" + video + "/" + file + "\n"
	if s.form != nil {
		var all strings.Builder
		for _, compact := range tokens {
			all.WriteString(s.form.path(compact, video, file) + "\n")
		}
		lines = all.String()
	}
	l := load{
		protocol: protocols[c.protocol], url: b.servers[s].url(protocols[c.protocol]), paths: filepath.Join(b.dir, "paths"), header: s.header,
		connections: b.options.connections, duration: b.options.duration,
	}
	return l, writeFile(l.paths, []byte(lines))
}

// sample measures a setup once.
func (b *bench) sample(ctx context.Context, s *setup, c cell) (result sample, err error) {
	tokens := b.warm[s]
	if s.fresh {
		// A new process has an empty cache.
		if err := b.restart(ctx, s); err != nil {
			return result, err
		}
		tokens = b.fresh
	}
	l, err := b.load(s, c, tokens)
	if err != nil {
		return result, err
	}
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
	during := after.since(before)
	result.cpu, result.originCPU, result.rss = during.server.cpu, during.origin.cpu, after.server.rss
	err = errors.Join(result.load.check(objectSizes[c.size].bytes), during.check(s, result.load.Requests, b.options.connections))
	return result, b.servers[s].explain(err)
}

// perRequest is the server's CPU time for a request, in microseconds.
func (s sample) perRequest() float64 { return float64(s.cpu.Microseconds()) / float64(s.load.Requests) }
