package main

import (
	"os"
	"slices"
	"testing"
	"time"
)

// The first argument chooses what is measured. Nobody measures something else
// than he has asked for.
func TestExperimentIsChosen(t *testing.T) {
	binary := os.Args[0] // any file will do
	for _, c := range []struct {
		name string
		args []string
		want string
		err  bool
	}{
		{"comparison", []string{"-caddy", binary}, "", false},
		{"flood", []string{"flood", "-caddy", binary}, "flood", false},
		{"memory", []string{"memory", "-caddy", binary, "-tokens", "5"}, "memory", false},
		{"scale", []string{"scale", "-benchtime", "1s"}, "scale", false},
		{"unknown", []string{"floods"}, "", true},
		{"behind the flags", []string{"-caddy", binary, "flood"}, "", true},
		{"two", []string{"flood", "-caddy", binary, "memory"}, "", true},
		{"a flag of another", []string{"flood", "-tokens", "5"}, "", true},
		{"no rounds", []string{"scale", "-rounds", "0"}, "", true},
		{"no whole seconds", []string{"flood", "-caddy", binary, "-duration", "1500ms"}, "", true},
		{"no time", []string{"scale", "-benchtime", "0s"}, "", true},
		{"no tokens", []string{"memory", "-caddy", binary, "-tokens", "0"}, "", true},
		{"no binary", []string{"flood", "-caddy", binary + "-missing"}, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := parseOptions(c.args)
			if (err != nil) != c.err || err == nil && o.experiment.name != c.want {
				t.Errorf("parseOptions(%q) = %+v, %v", c.args, o, err)
			}
		})
	}
}

// A smoke test leaves the figures of a real run where they are.
func TestQuickWritesNothing(t *testing.T) {
	for _, name := range []string{"flood", "memory"} {
		o, err := parseOptions([]string{name, "-caddy", os.Args[0], "-quick", "-duration", "1m"})
		if err != nil || o.out != "" || o.duration > 2*time.Second {
			t.Errorf("%s -quick = %+v, %v", name, o, err)
		}
	}
}

// Nobody is always the first, or always behind the same one.
func TestInTurn(t *testing.T) {
	all := []int{1, 2, 3}
	for round, want := range [][]int{{1, 2, 3}, {1, 3, 2}, {3, 1, 2}, {3, 2, 1}} {
		if got := inTurn(all, round); !slices.Equal(got, want) {
			t.Errorf("inTurn(%d) = %v; want %v", round, got, want)
		}
	}
}
