package main

import (
	"fmt"
	"html"
	"strings"
)

// The chart's measures, in pixels.
const (
	chartWidth  = 800
	chartLeft   = 300 // where bars begin
	chartRight  = 110 // what their figures take
	chartHead   = 40  // of a panel
	chartRow    = 26
	chartBar    = 16
	chartMargin = 16
)

// The colours are readable on white and on black; those of text follow the
// viewer's preference.
const chartStyle = `
	text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
	.head { font-weight: 600; }
	.figure { font-variant-numeric: tabular-nums; }
	.server { fill: #8c959f; }
	.gate { fill: #2f81f7; }
	.peer { fill: #d4760a; }
	@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } }
`

// bar is a row of a panel.
type bar struct {
	title  string
	parts  []barPart
	figure string
}

type barPart struct {
	class string
	value float64
}

func (b bar) total() (sum float64) {
	for _, p := range b.parts {
		sum += p.value
	}
	return sum
}

// chart draws what README.md shows.
func (r report) chart() string {
	cost, rate := make([]bar, 0, len(r.setups)), make([]bar, 0, len(r.setups))
	for _, s := range r.setups {
		cost = append(cost, r.costBar(s))
		perSecond := each(r.results[s][0], func(s sample) float64 { return s.load.perSecond() }).median
		rate = append(rate, bar{s.title, []barPart{{class(s), perSecond}}, fmt.Sprintf("%.0f", perSecond)})
	}
	return drawChart("CPU time for each request of 1 KiB, and requests a second, by server",
		panel{"CPU µs of the server for a request of 1 KiB (grey: without a gate)", cost, longest(cost)},
		panel{"Requests of 1 KiB a second", rate, longest(rate)})
}

// costBar is one of CPU time, in two parts if it is known which is the gate's.
func (r report) costBar(s *setup) bar {
	micros := each(r.results[s][0], sample.perRequest).median
	if added, ok := r.added(s); ok && added.median > 0 && added.median < micros {
		parts := []barPart{{"server", micros - added.median}, {class(s), added.median}}
		return bar{s.title, parts, fmt.Sprintf("%.0f (+%.1f)", micros, added.median)}
	}
	return bar{s.title, []barPart{{class(s), micros}}, fmt.Sprintf("%.0f", micros)}
}

func class(s *setup) string {
	switch {
	case !s.gate:
		return "server"
	case s.bare == "caddy":
		return "gate"
	}
	return "peer"
}

// panel is a part of a chart, with a bar in each row.
type panel struct {
	head string
	bars []bar
	full float64 // what a bar of full length stands for
}

func longest(bars []bar) (most float64) {
	for _, b := range bars {
		most = max(most, b.total())
	}
	return most
}

// drawChart puts panels below each other.
func drawChart(title string, panels ...panel) string {
	height := chartMargin
	for _, p := range panels {
		height += p.height()
	}
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">`+"\n",
		chartWidth, height, chartWidth, height)
	fmt.Fprintf(&out, "<title>%s</title>\n<style>%s</style>\n", html.EscapeString(title), chartStyle)
	top := 0
	for _, p := range panels {
		p.draw(&out, top)
		top += p.height()
	}
	out.WriteString("</svg>\n")
	return out.String()
}

func (p panel) height() int { return chartHead + len(p.bars)*chartRow }

func (p panel) draw(out *strings.Builder, top int) {
	const baseline = 12 // of text, below the top of its bar
	fmt.Fprintf(out, `<text class="head" x="%d" y="%d">%s</text>`+"\n", chartMargin, top+chartHead-chartMargin, html.EscapeString(p.head))
	for i, b := range p.bars {
		y := top + chartHead + i*chartRow
		fmt.Fprintf(out, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", chartLeft-8, y+baseline, html.EscapeString(b.title))
		x := float64(chartLeft)
		for _, part := range b.parts {
			width := part.value / p.full * (chartWidth - chartLeft - chartRight)
			fmt.Fprintf(out, `<rect class="%s" x="%.1f" y="%d" width="%.1f" height="%d"/>`+"\n", part.class, x, y, width, chartBar)
			x += width
		}
		fmt.Fprintf(out, `<text class="figure" x="%.1f" y="%d">%s</text>`+"\n", x+6, y+baseline, html.EscapeString(b.figure))
	}
}
