package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"text/tabwriter"
	"time"
)

// row is one figure of the table.
type row struct {
	Part  string  `json:"part"`
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Note says what the figure is beside, or which aim it has.
	Note string `json:"note,omitempty"`
	// Met is set for a figure with an aim.
	Met *bool `json:"met,omitempty"`
}

// report is the outcome of a run.
type report struct {
	At    time.Time `json:"at"`
	Go    string    `json:"go"`
	Cores int       `json:"cores"`
	Rows  []row     `json:"rows"`
}

func newReport() *report {
	return &report{At: time.Now().UTC(), Go: runtime.Version(), Cores: runtime.GOMAXPROCS(0)}
}

func (r *report) add(part, name string, value float64, unit, note string) {
	r.Rows = append(r.Rows, row{Part: part, Name: name, Value: value, Unit: unit, Note: note})
}

// aim adds a figure that should be at most the limit.
func (r *report) aim(part, name string, value, limit float64, unit, note string) {
	met := value <= limit
	r.Rows = append(r.Rows, row{Part: part, Name: name, Value: value, Unit: unit, Note: note, Met: &met})
}

// atLeast adds a figure that should be at least the limit.
func (r *report) atLeast(part, name string, value, limit float64, unit, note string) {
	met := value >= limit
	r.Rows = append(r.Rows, row{Part: part, Name: name, Value: value, Unit: unit, Note: fmt.Sprintf("%s; aim %g", note, limit), Met: &met})
}

func (r *report) json(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// text prints the rows of one part.
func (r *report) text(w io.Writer, part string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, x := range r.Rows {
		if x.Part != part {
			continue
		}
		note := x.Note
		if x.Met != nil && !*x.Met {
			note += "; NOT MET"
		}
		fmt.Fprintf(t, "%s\t%s\t%s %s\t%s\n", x.Part, x.Name, figure(x.Value), x.Unit, note)
	}
	return t.Flush()
}

func (r *report) footer(w io.Writer) error {
	_, err := fmt.Fprintf(w, "\n%s, %d cores. Servers, workers and load share this process: compare figures of one run only.\n", r.Go, r.Cores)
	return err
}

// figure writes three significant digits, and whole numbers from 1,000 on.
func figure(v float64) string {
	if v >= 1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
