package main

import (
	"fmt"
	"slices"
	"strings"
)

// target is how many times the CPU time of another server a request to the gate with its
// cache may take.
type target struct {
	other *setup
	most  float64
	holds func(c cell) bool // whether the target is for this cell
}

// targets returns those against the setups of the report.
func (r report) targets() (targets []target) {
	const overHTTPS, from64KiB = 1, 1
	for _, s := range r.setups {
		switch {
		case s.cache && s.verifies() && !s.isGate():
			targets = append(targets, target{s, 1, func(c cell) bool { return c.protocol <= overHTTPS }})
		case s.name == haproxyJWT:
			targets = append(targets, target{s, 0.65, func(c cell) bool { return c.protocol < overHTTPS && c.size <= from64KiB }})
		case s.name == cachedNginx:
			targets = append(targets, target{s, 1.5, func(c cell) bool { return c.protocol <= overHTTPS && c.size >= from64KiB }})
		}
	}
	return targets
}

// cachedCells are the columns of the tables of caches.
func (r report) cachedCells() []cell {
	return (&setup{over: len(protocols)}).cells(len(r.environment.options.sizes()))
}

// ratio is the CPU time of a request to the gate with its cache, as a ratio to another
// setup's. ok is false if one of the two was not measured.
func (r report) ratio(other *setup, c cell) (ratio spread, ok bool) {
	gate := r.setup(cachedGate)
	if gate == nil || len(r.samples[other][c]) == 0 {
		return ratio, false
	}
	return paired(r.samples[gate][c], r.samples[other][c], func(a, b sample) float64 { return a.perRequest() / b.perRequest() }), true
}

// missed lists the targets that are not met.
func (r report) missed() (missed []string) {
	for _, t := range r.targets() {
		for _, c := range r.cachedCells() {
			if ratio, ok := r.ratio(t.other, c); ok && t.holds(c) && ratio.median > t.most {
				missed = append(missed, fmt.Sprintf("with its cache, the gate takes %.2f of the CPU time of %s over %s, more than %.2f",
					ratio.median, t.other.title, c, t.most))
			}
		}
	}
	return missed
}

// writeCaches compares the servers with their caches. chart draws the first table.
func (r report) writeCaches(out *strings.Builder) {
	fmt.Fprint(out, "\n## With caches\n\nCPU µs of the server for a request that its cache answers; HAProxy's `jwt_verify` without a cache to compare.\n\n")
	r.writeCells(out, "", func(s *setup, c cell) string {
		if micros := r.micros(s, c); micros > 0 {
			return fmt.Sprintf("%.1f", micros)
		}
		return "–"
	})
	if r.setup(cachedGate) == nil {
		return
	}
	fmt.Fprint(out, "\nThe gate's time as a ratio to each of them, with the required ratio after ≤, in bold where it is missed:\n\n")
	targets := r.targets()
	r.writeCells(out, cachedGate, func(s *setup, c cell) string {
		ratio, ok := r.ratio(s, c)
		if !ok {
			return "–"
		}
		text := fmt.Sprintf("%.2f", ratio.median)
		if i := slices.IndexFunc(targets, func(t target) bool { return t.other == s && t.holds(c) }); i >= 0 {
			text += fmt.Sprintf(" ≤ %.4g", targets[i].most)
			if ratio.median > targets[i].most {
				text = "**" + strings.Replace(text, "≤", "> required", 1) + "**"
			}
		}
		return text
	})
	if missed := r.missed(); missed != nil {
		fmt.Fprintf(out, "\nRequirements that are **missed**:\n\n- %s\n", strings.Join(missed, "\n- "))
		return
	}
	fmt.Fprint(out, "\nAll requirements are met.\n")
}

// writeCells writes a table with a row for each setup with a cache, and a column for
// each cell.
func (r report) writeCells(out *strings.Builder, without string, text func(*setup, cell) string) {
	cells := r.cachedCells()
	fmt.Fprint(out, "|")
	for _, c := range cells {
		fmt.Fprintf(out, " | %s", c)
	}
	fmt.Fprintf(out, " |\n| ---%s |\n", strings.Repeat(" | ---:", len(cells)))
	for _, s := range r.setups {
		if s.name == without || !s.cache && s.name != haproxyJWT {
			continue
		}
		fmt.Fprintf(out, "| %s", s.title)
		for _, c := range cells {
			fmt.Fprintf(out, " | %s", text(s, c))
		}
		fmt.Fprintln(out, " |")
	}
}
