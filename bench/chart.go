package main

import (
	"fmt"
	"html"
	"strings"
)

// chart draws the processor time of each server with its cache as SVG, for README.md of the
// folder above: a panel for each cell over HTTP and HTTPS, in which the longest bar is as
// wide as the panel.
func (r report) chart() string {
	const panelWidth, panelHeight, labels, bar, columns = 250, 150, 200, 17, 3
	var servers []*setup
	for _, s := range r.setups {
		if s.cache {
			servers = append(servers, s)
		}
	}
	cells := (&setup{over: 2}).cells(len(r.environment.options.sizes()))
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n"+
		"<style>text{fill:#57606a}.gate{fill:#0969da}.gated{fill:#8c959f}.open{fill:#d0d7de}</style>\n",
		labels+columns*panelWidth, 2*panelHeight+20)
	for i, c := range cells {
		x, y := labels+i%columns*panelWidth, i/columns*panelHeight
		fmt.Fprintf(&out, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", x, y+14, c)
		longest := 0.0
		for _, s := range servers {
			longest = max(longest, r.micros(s, c))
		}
		for row, s := range servers {
			at := y + 22 + row*bar
			if i%columns == 0 {
				fmt.Fprintf(&out, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labels-8, at+11, html.EscapeString(s.title))
			}
			class := "open"
			switch {
			case s.isGate():
				class = "gate"
			case s.verifies():
				class = "gated"
			}
			micros, text := r.micros(s, c), "–"
			if micros > 0 {
				text = fmt.Sprintf("%.0f", micros)
			}
			width := micros / max(longest, 1) * (panelWidth - 50)
			fmt.Fprintf(&out, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d"/><text x="%.1f" y="%d">%s</text>`+"\n",
				class, x, at, width, bar-4, float64(x)+width+4, at+11, text)
		}
	}
	fmt.Fprintf(&out, `<text x="%d" y="%d">µs of a processor for a request that the cache answers; %s, %s</text>`+"\n</svg>\n",
		labels, 2*panelHeight+12, html.EscapeString(r.environment.cpu), r.environment.date.Format("2006-01-02"))
	return out.String()
}

// micros is the median time of a request, or 0 if it was not measured.
func (r report) micros(s *setup, c cell) float64 {
	if len(r.samples[s][c]) == 0 {
		return 0
	}
	return median(r.samples[s][c], sample.perRequest)
}
