package simulate_test

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/isobar-mesh/isobar/simulate"
)

// label is a text of the picture.
type label struct {
	x, y float64
	left float64 // its left end, by the width of its characters
	s    string
}

func (l label) right() float64 { return l.left + 6.7*float64(len([]rune(l.s))) }

// labels reads the texts of an SVG.
func labels(t *testing.T, svg []byte) (all []label, height float64) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(svg))
	var open *label
	for {
		token, err := d.Token()
		if err == io.EOF { //nolint:errorlint // Token returns it bare
			return all, height
		}
		if err != nil {
			t.Fatalf("not XML: %v", err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			at := map[string]string{}
			for _, a := range e.Attr {
				at[a.Name.Local] = a.Value
			}
			number := func(name string) float64 {
				x, err := strconv.ParseFloat(at[name], 64)
				if err != nil {
					t.Fatalf("%s of %s: %v", name, e.Name.Local, err)
				}
				return x
			}
			switch e.Name.Local {
			case "svg":
				height = number("height")
			case "text":
				open = &label{x: number("x"), y: number("y"), s: at["text-anchor"]}
			}
		case xml.CharData:
			if open != nil {
				anchor := open.s
				open.s = string(e)
				width := 6.7 * float64(len([]rune(open.s)))
				open.left = open.x - map[string]float64{"end": width, "middle": width / 2}[anchor]
				all = append(all, *open)
				open = nil
			}
		}
	}
}

// TestPlotIsLegible: with many regions with long names, no two texts lie over
// each other, and all are inside the picture.
func TestPlotIsLegible(t *testing.T) {
	t.Parallel()
	for _, regions := range []int{1, 7, 40} {
		var mesh, trace strings.Builder
		mesh.WriteString("regions:\n")
		trace.WriteString(head + "max_delay_s\n")
		for i := range regions {
			fmt.Fprintf(&mesh, "  region-with-a-long-name-%d: {zone: A, cpu: 4, watts_per_cpu: 1000, usd_per_cpu_hour: 12345.678}\n", i)
		}
		for i := range 200 {
			fmt.Fprintf(&trace, "%d,5000,region-with-a-long-name-%d,7200\n", i*400, i%regions)
		}
		in := input(t, mesh.String(), trace.String(), map[string][]float64{"A": {100, 20, 50, 80, 20, 300, 100, 50, 80}})
		opts := simulate.NewOptions()
		opts.Policies = []simulate.Policy{simulate.Home, simulate.Cheapest, simulate.Greenest, simulate.Isobar}
		r, err := simulate.Run(in, opts)
		if err != nil {
			t.Fatal(err)
		}
		var svg bytes.Buffer
		if err := r.WriteSVG(&svg); err != nil {
			t.Fatal(err)
		}
		all, height := labels(t, svg.Bytes())
		for i, a := range all {
			if a.left < 0 || a.right() > 965 || a.y < 8 || a.y > height {
				t.Errorf("%d regions: %q at %.0f..%.0f, %.0f is outside", regions, a.s, a.left, a.right(), a.y)
			}
			for _, b := range all[:i] {
				if a.y-b.y < 10 && b.y-a.y < 10 && a.left < b.right() && b.left < a.right() {
					t.Errorf("%d regions: %q and %q lie over each other", regions, a.s, b.s)
				}
			}
		}
		for _, want := range []string{"carbon, kgCO2eq", "cost, USD", "wait: mean, and line to p99", "tasks running, by region: home", "tasks running, by region: isobar", "region-with-a-long-name-0"} {
			if !strings.Contains(svg.String(), ">"+want+"<") {
				t.Errorf("%d regions: no %q", regions, want)
			}
		}
		if strings.Contains(svg.String(), ">other regions<") != (regions > 19) {
			t.Errorf("%d regions: other regions are wrong", regions)
		}
	}
}
