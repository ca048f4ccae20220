package carbon

import (
	"fmt"
	"os"
	"slices"
	"time"
)

// Table is a Series read from a file: one row an hour, one column a zone.
type Table struct {
	name  string
	kind  Kind
	start time.Time
	zones []string    // sorted
	hours [][]float64 // by position in zones, then by hour since start
}

// ReadFile reads a table from a CSV file, gzipped or not, as ReadTable does.
func ReadFile(path string, kind Kind) (*Table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("carbon: open table: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	return ReadTable(f, path, kind)
}

// Kind is the kind the table was read as; the file itself does not say.
func (t *Table) Kind() Kind { return t.kind }

// Source is the table's file name.
func (t *Table) Source() string { return "file " + t.name }

// Zones lists the table's zones, sorted.
func (t *Table) Zones() []string { return slices.Clone(t.zones) }

// Start is the first row's hour.
func (t *Table) Start() time.Time { return t.start }

// End is the end of the last row's hour.
func (t *Table) End() time.Time {
	return t.start.Add(time.Duration(t.rows()) * time.Hour)
}

func (t *Table) rows() int { return len(t.hours[0]) }

// Require reports the first zone that is not a column, as a ParseError of the
// header with ErrMissingColumn.
func (t *Table) Require(zones ...string) error {
	for _, zone := range zones {
		if _, ok := slices.BinarySearch(t.zones, zone); !ok {
			return &ParseError{File: t.name, Line: 1, Field: zone, Err: ErrMissingColumn}
		}
	}
	return nil
}

// At implements Series.
func (t *Table) At(zone string, at time.Time) (Reading, error) {
	column, ok := slices.BinarySearch(t.zones, zone)
	if !ok {
		return Reading{}, fmt.Errorf("carbon: read zone %q of %s: %w", zone, t.name, ErrUnknownZone)
	}
	if at.Before(t.start) {
		return Reading{}, fmt.Errorf("carbon: read %s of %s at %s: %w, which starts at %s",
			zone, t.name, at.UTC().Format(time.RFC3339), ErrOutside, t.start.Format(time.RFC3339))
	}
	r := Reading{Zone: zone, Hour: at.UTC().Truncate(time.Hour), Kind: t.kind, Source: t.Source()}
	row := t.rows() - 1
	if at.Before(t.End()) {
		row = int(at.Sub(t.start) / time.Hour)
	} else {
		r.Extrapolated = true
	}
	r.Intensity = t.hours[column][row]
	return r, nil
}
