package main

import (
	"fmt"
	"strconv"
	"strings"
)

// costs are seconds of processor time for a request, at the sizes that the bench measures.
type costs struct {
	hits   []float64 // of the gate with its cache
	misses []float64 // of the gate in front of an origin
}

// costSizes are the sizes of the bench's objects, in bytes.
var costSizes = []float64{1 << 10, 64 << 10, 1 << 20}

func (c costs) hit(bytes float64) float64  { return interpolated(c.hits, bytes) }
func (c costs) miss(bytes float64) float64 { return interpolated(c.misses, bytes) }

// interpolated returns the cost of a size on a line through the two nearest ones.
func interpolated(at []float64, bytes float64) float64 {
	i := 0
	if bytes > costSizes[1] {
		i = 1
	}
	share := (bytes - costSizes[i]) / (costSizes[i+1] - costSizes[i])
	return at[i] + share*(at[i+1]-at[i])
}

// readCosts reads a report of the bench.
func readCosts(report, protocol string) (c costs, err error) {
	for _, size := range []string{"1 KiB", "64 KiB", "1 MiB"} {
		hit, err := readCell(report, "## With caches", "gate, cache", protocol+", "+size)
		if err != nil {
			return c, err
		}
		miss, err := readCell(report, "## "+size, "gate, warm", "CPU µs/request")
		if err != nil {
			return c, err
		}
		c.hits, c.misses = append(c.hits, hit/1e6), append(c.misses, miss/1e6)
	}
	return c, nil
}

// readCell reads a number of the first table below a heading.
func readCell(report, heading, row, column string) (float64, error) {
	_, section, _ := strings.Cut(report, "\n"+heading+"\n")
	columns, found := []string(nil), -1
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "## ") {
			break
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if columns == nil && len(cells) > 1 {
			columns = cells
			for i, title := range columns {
				if title == column {
					found = i
				}
			}
		}
		if cells[0] == row && found > 0 && found < len(cells) {
			return strconv.ParseFloat(cells[found], 64)
		}
	}
	return 0, fmt.Errorf("no cell %q of the row %q below %q: run `make bench`", column, row, heading)
}
