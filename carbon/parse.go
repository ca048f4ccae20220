package carbon

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/internal/strictcsv"
)

const (
	// timeColumn is the header of the column that holds each row's hour, in a
	// table with a column a zone.
	timeColumn = "datetime_utc"
	// maxTableBytes bounds a table, unpacked.
	maxTableBytes = 64 << 20
	// maxIntensity is far above any grid; a value beyond it is in another unit.
	maxIntensity = 100_000
)

// What can be wrong with a table, as the cause of a ParseError; some are those
// of every table.
var (
	ErrMissingColumn   = strictcsv.ErrMissingColumn
	ErrDuplicateColumn = strictcsv.ErrDuplicateColumn
	ErrNoRows          = strictcsv.ErrNoRows
	ErrSyntax          = strictcsv.ErrSyntax
	ErrNotANumber      = strictcsv.ErrNotANumber
	ErrNegative        = strictcsv.ErrNegative
	ErrTooLarge        = strictcsv.ErrTooLarge
	ErrBadTime         = errors.New("not a full hour in UTC")
	ErrDuplicateHour   = errors.New("hour given twice")
	ErrUnsorted        = errors.New("hours not in order")
	ErrGap             = errors.New("gap before this hour")
	ErrTooHigh         = errors.New("intensity beyond any grid, in gCO2eq/kWh")
	ErrNoZone          = errors.New("no name of a zone")
	ErrOtherHours      = errors.New("the zones do not cover the same hours")
	ErrFactors         = errors.New("factors are neither lifecycle nor direct")
	ErrNoFactors       = errors.New("the table has one figure an hour: it cannot be asked for direct factors")
)

// ParseError says where a table is wrong.
type ParseError = strictcsv.Error

// Factors say which emissions a kilowatt-hour is charged with, where a file has
// both. The names are Electricity Maps'.
type Factors string

// The factors.
const (
	// LifeCycle counts building the plants and mining the fuel too.
	LifeCycle Factors = "lifecycle"
	// Direct counts what the plants emit while they run.
	Direct Factors = "direct"
)

// ReadTable reads a table, CSV, gzipped or not. Its format is known by its
// header: the column datetime_utc and one column a zone, a row an hour; or an
// hourly export of Electricity Maps, of which the life-cycle figures are taken.
// Values are in gCO2eq/kWh, hours without gaps. It is strict: the first thing
// that is wrong is returned as a *ParseError. name stands for the file in errors
// and in Reading.Source; kind is what the figures measure.
func ReadTable(r io.Reader, name string, kind Kind) (*Table, error) {
	if err := kind.validate(); err != nil {
		return nil, err
	}
	read, err := readSeries(r, name, kind, LifeCycle)
	if err != nil {
		return nil, err
	}
	return join([]contents{read}, kind)
}

// contents is what one file holds.
type contents struct {
	file, source string
	when         string // the column of the hours
	all          []run
}

// run is the hours of a zone that follow each other.
type run struct {
	zone  string
	start time.Time
	hours []float64
	line  int // of the first
}

func (s *run) end() time.Time { return s.start.Add(time.Duration(len(s.hours)) * time.Hour) }

// follow checks that a row's time is the hour after the last one.
func (s *run) follow(at time.Time, line int) error {
	if len(s.hours) == 0 {
		s.start, s.line = at, line
		return nil
	}
	switch expected := s.end(); {
	case at.Equal(expected):
		return nil
	case at.After(expected):
		return ErrGap
	case at.Before(expected.Add(-time.Hour)):
		return ErrUnsorted
	default:
		return ErrDuplicateHour
	}
}

func readSeries(r io.Reader, name string, kind Kind, factors Factors) (contents, error) {
	t, err := strictcsv.Open(r, name, "carbon", maxTableBytes)
	if err != nil {
		return contents{}, err
	}
	out := contents{file: name}
	if columns, ok := recogniseExport(t.Header()); ok {
		out.all, err = readExport(t, columns, kind, factors)
		out.source, out.when = fmt.Sprintf("Electricity Maps export %s, %s", name, factors), t.Header()[columns.when]
		return out, err
	}
	out.source, out.when = "file "+name, timeColumn
	if factors != LifeCycle {
		return contents{}, &ParseError{Reader: "carbon", File: name, Line: 1, Err: ErrNoFactors}
	}
	out.all, err = readWide(t)
	return out, err
}

// readWide reads a table with a column a zone.
func readWide(t *strictcsv.Table) ([]run, error) {
	when := t.Column(timeColumn)
	if when < 0 {
		return nil, t.Missing(timeColumn)
	}
	if len(t.Header()) == 1 {
		return nil, t.Missing("zone")
	}
	all := make([]run, len(t.Header()))
	for i, zone := range t.Header() {
		if zone == "" || strings.TrimSpace(zone) != zone {
			return nil, t.FaultOf(i, fmt.Sprintf("column %d", i+1), zone, ErrMissingColumn)
		}
		all[i].zone = zone
	}
	if err := t.Unique(); err != nil {
		return nil, err
	}
	for {
		more, err := t.Next()
		if err != nil {
			return nil, err
		}
		if !more {
			return slices.Delete(all, when, when+1), nil
		}
		at, err := time.Parse(time.RFC3339, t.Field(when))
		if _, offset := at.Zone(); err != nil || offset != 0 || !at.Equal(at.Truncate(time.Hour)) {
			return nil, t.Fault(when, ErrBadTime)
		}
		for i := range all {
			if i == when {
				continue
			}
			if cause := all[i].follow(at.UTC(), t.Line()); cause != nil {
				return nil, t.Fault(when, cause)
			}
			x, cause := intensity(t.Field(i))
			if cause != nil {
				return nil, t.Fault(i, cause)
			}
			all[i].hours = append(all[i].hours, x)
		}
	}
}

// intensity reads a plain decimal number.
func intensity(field string) (float64, error) {
	x, err := strictcsv.Decimal(field, maxIntensity)
	switch {
	case errors.Is(err, strictcsv.ErrTooHigh):
		return 0, ErrTooHigh
	case errors.Is(err, strictcsv.ErrRequired):
		return 0, ErrNotANumber
	}
	return x, err
}
