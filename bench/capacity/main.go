// Command capacity says how many machines an audience needs. It has viewers watch a
// catalogue through the media cache itself, and takes the processor time of a request from
// results.md, the report of the bench.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// scenario is the audience, the catalogue and the machines.
type scenario struct {
	viewers    int
	bitrate    float64 // Mbit/s
	segment    float64 // seconds
	live       float64 // the share of viewers of live channels
	channels   int
	titles     int
	minutes    float64 // the length of a title
	zipf       float64 // the exponent of popularity
	renditions int
	cache      float64 // GiB for objects of a node
	shield     float64 // GiB for objects of a second tier between nodes and origin; 0 for none
	cores      float64 // of a node
	network    float64 // Gbit/s of a node
	busy       float64 // the share of cores and network that is planned for
	requests   int     // how many are simulated, at most about
}

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "capacity:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var s scenario
	flags := flag.NewFlagSet("capacity", flag.ContinueOnError)
	audiences := flags.String("viewers", "10000,100000,1000000", "viewers at the same time; several `numbers` for several rows")
	flags.Float64Var(&s.bitrate, "bitrate", 4, "`Mbit/s` of a viewer")
	flags.Float64Var(&s.segment, "segment", 4, "`seconds` of a segment")
	flags.Float64Var(&s.live, "live", 0.5, "the `share` of viewers who watch live channels")
	flags.IntVar(&s.channels, "channels", 20, "the `number` of live channels")
	flags.IntVar(&s.titles, "titles", 2000, "the `number` of videos on demand")
	flags.Float64Var(&s.minutes, "minutes", 45, "the length of a video in `minutes`")
	flags.Float64Var(&s.zipf, "zipf", 0.9, "popularity: the n-th video is watched n^-`exponent` times as often as the first")
	flags.IntVar(&s.renditions, "renditions", 3, "the `number` of qualities, of which each viewer watches one")
	flags.Float64Var(&s.cache, "cache", 64, "`GiB` of a node for objects, in memory and on disk")
	flags.Float64Var(&s.shield, "shield", 0, "`GiB` for objects of a second tier between the nodes and the origin")
	flags.Float64Var(&s.cores, "cores", 16, "the `number` of cores of a node")
	flags.Float64Var(&s.network, "network", 25, "`Gbit/s` of a node")
	flags.Float64Var(&s.busy, "busy", 0.6, "the `share` of cores and network that is planned for")
	flags.IntVar(&s.requests, "requests", 1_000_000, "simulate at most about this `number` of requests for each row")
	protocol := flags.String("protocol", "HTTPS", "the `protocol` of viewers, as in the report: HTTP, HTTPS or HTTP/2")
	report := flags.String("report", "results.md", "the `file` with the processor time of requests")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is no flag: put - before its name", flags.Arg(0))
	}
	text, err := os.ReadFile(*report)
	if err != nil {
		return err
	}
	c, err := readCosts(string(text), *protocol)
	if err != nil {
		return fmt.Errorf("%s: %w", *report, err)
	}
	fmt.Println("| viewers | Gbit/s | requests/s | nodes | hit rate | hit rate on demand | origin Gbit/s | cores in use, all | a node |\n" +
		"| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
	for audience := range strings.SplitSeq(*audiences, ",") {
		if s.viewers, err = strconv.Atoi(audience); err != nil {
			return fmt.Errorf("-viewers: %q: want a number, or several with commas between them", audience)
		}
		if err := s.check(); err != nil {
			return err
		}
		fmt.Println(s.plan(c))
	}
	return nil
}

func (s scenario) check() error {
	switch {
	case s.viewers < 1 || s.titles < 1 || s.channels < 1 || s.renditions < 1 || s.requests < 1:
		return errors.New("-viewers, -titles, -channels, -renditions and -requests must be at least 1")
	case s.bitrate <= 0 || s.segment <= 0 || s.minutes*60 < s.segment || s.cache <= 0 || s.cores <= 0 || s.network <= 0 || s.shield < 0 || s.zipf < 0:
		return errors.New("-bitrate, -segment, -minutes, -cache, -cores and -network must be positive, and a video as long as a segment")
	case s.live < 0 || s.live > 1 || s.busy <= 0 || s.busy > 1:
		return errors.New("-live and -busy are shares from 0 to 1")
	}
	return nil
}

// plan returns a row of the table.
func (s scenario) plan(c costs) string {
	perSecond := float64(s.viewers) / s.segment
	gigabits := float64(s.viewers) * s.bitrate / 1000
	// The hit rate depends on the number of nodes, and that on the hit rate.
	for nodes := 0; ; {
		r := s.simulate(nodes + 1)
		cores := perSecond * (c.hit(s.segmentBytes()) + r.missRate*c.miss(s.segmentBytes()))
		needed := max(gigabits/s.network, cores/s.cores) / s.busy
		if float64(nodes+1) >= needed {
			return fmt.Sprintf("| %d | %.0f | %.0f | %d | %.1f %% | %.1f %% | %.1f | %.1f | %.1f |", s.viewers, gigabits, perSecond, nodes+1,
				100*(1-r.missRate), 100*(1-r.missRateOnDemand), gigabits*r.originRate, cores, cores/float64(nodes+1))
		}
		nodes = int(needed)
	}
}

// segmentBytes is the size of a segment.
func (s scenario) segmentBytes() float64 { return s.bitrate * s.segment * 1e6 / 8 }
