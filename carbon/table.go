package carbon

import (
	"fmt"
	"slices"
	"time"
)

// Table is a Series read from files: each zone has a value an hour.
type Table struct {
	name   string // of its file or files, for errors
	source string
	kind   Kind
	start  time.Time
	zones  []string    // sorted
	hours  [][]float64 // by position in zones, then by hour since start
}

// Kind is the kind the table was read as; the file itself does not say.
func (t *Table) Kind() Kind { return t.kind }

// Source names the table's file, or the first and how many more, and says when
// it is an export of Electricity Maps and with which factors.
func (t *Table) Source() string { return t.source }

// Zones lists the table's zones, sorted.
func (t *Table) Zones() []string { return slices.Clone(t.zones) }

// Start is the first row's hour.
func (t *Table) Start() time.Time { return t.start }

// End is the end of the last row's hour.
func (t *Table) End() time.Time {
	return t.start.Add(time.Duration(t.rows()) * time.Hour)
}

func (t *Table) rows() int { return len(t.hours[0]) }

// Require reports the first zone that the table lacks, as a ParseError of the
// header with ErrMissingColumn.
func (t *Table) Require(zones ...string) error {
	for _, zone := range zones {
		if _, ok := slices.BinarySearch(t.zones, zone); !ok {
			return &ParseError{Reader: "carbon", File: t.name, Line: 1, Field: zone, Err: ErrMissingColumn}
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
