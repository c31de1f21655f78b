package main

import (
	"os"
	"testing"
	"time"
)

func TestOptions(t *testing.T) {
	t.Parallel()
	binary := os.Args[0] // any file serves
	for _, c := range []struct {
		name         string
		args         []string
		flood, valid bool
	}{
		{"comparison", []string{"-caddy", binary}, false, true},
		{"flood", []string{"flood", "-caddy", binary}, true, true},
		{"growth", []string{"growth", "-caddy", binary}, false, true},
		{"unknown", []string{"floods", "-caddy", binary}, false, false},
		{"flood after the flags", []string{"-caddy", binary, "flood"}, false, false},
		{"a flag of the comparison", []string{"flood", "-caddy", binary, "-small"}, true, false},
		{"no rounds", []string{"-caddy", binary, "-rounds", "0"}, false, false},
		{"half a second", []string{"-caddy", binary, "-duration", "1500ms"}, false, false},
		{"no binary", []string{"-caddy", binary + "-missing"}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o, err := parseOptions(c.args)
			if (err == nil) != c.valid || c.valid && o.flood != c.flood {
				t.Errorf("parseOptions(%q) = %+v, %v", c.args, o, err)
			}
		})
	}
}

// A run that measures less leaves the figures of a whole run as they are.
func TestPartialRunsWriteNoReport(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-quick", "-duration", "1m"}, {"flood", "-quick"}, {"-small"}, {"-only", "caddy"}} {
		o, err := parseOptions(append(args, "-caddy", os.Args[0]))
		if err != nil || !o.partial() || o.duration > 2*time.Second {
			t.Errorf("parseOptions(%q) = %+v, %v; want part of a run", args, o, err)
		}
	}
}
