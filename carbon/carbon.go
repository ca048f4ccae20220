// Package carbon answers how much carbon a kilowatt-hour costs: in a zone,
// now, and in the hours ahead. It owns the feeds, their kinds and their
// forecasts; it knows nothing of tasks, cells or prices.
//
// A Series is what was measured or made up, hour by hour, in feed time. A Feed
// is what a cell asks while it runs, in wall time: a Series behind a Clock with
// a forecast that looks at the past only. Even when a table holds the hours to
// come, a Feed does not peek at them.
//
//	table, err := carbon.ReadFile("carbon.csv.gz", carbon.Average)
//	feed, err := carbon.NewLearner(table, carbon.Clock{}, time.Now())
//	now, err := feed.At("SE-SE1", time.Now())
//	day, err := feed.Ahead("SE-SE1", time.Now(), 24)
//
// All values are in gCO2eq/kWh. Average and marginal figures differ in level
// and meaning, so no value of this package ever holds both: what would join
// them refuses with ErrMixedKinds.
//
// Everything here answers from memory, never blocks, reads no clock, and is
// safe for concurrent use once made.
package carbon

import (
	"errors"
	"fmt"
	"time"
)

// Kind says what an intensity measures. The names are part of the API.
type Kind string

// The kinds of signal.
const (
	// Average is the grid's mix: emissions over consumption or generation.
	Average Kind = "average"
	// Marginal is what one more kilowatt-hour would emit.
	Marginal Kind = "marginal"
)

// Errors of this package, wrapped with the zone, file or time they concern.
var (
	ErrUnknownZone = errors.New("unknown zone")
	ErrUnknownKind = errors.New("kind is neither average nor marginal")
	ErrMixedKinds  = errors.New("average and marginal figures cannot be joined")
	ErrSharedZone  = errors.New("two feeds answer for one zone")
	// ErrOutside is returned for a time before a series begins, and for a
	// clock that would start past its end.
	ErrOutside = errors.New("outside the series")
)

// Reading is the intensity of one zone in one hour.
type Reading struct {
	Zone string
	// Hour is the start of the hour in feed time, UTC; the value holds until
	// the next.
	Hour      time.Time
	Intensity float64 // gCO2eq/kWh, 0 or more
	Kind      Kind
	// Source says where the value is from, and by which forecast if by one.
	Source string
	// Forecast is the name of the forecast: ByPersistence or ByModel; "" for an
	// hour that has come.
	Forecast string
	// Extrapolated: the source has no value for the hour that was asked, and
	// the nearest it has stands in.
	Extrapolated bool
}

// Series is a zone's carbon by the hour, in feed time. Table and Generator are
// the two of this package.
type Series interface {
	Kind() Kind
	// Source names the series for a person.
	Source() string
	// Zones lists the zones, sorted.
	Zones() []string
	// Start is the first hour with a value and End the end of the last. Both
	// are zero for a series without bounds.
	Start() time.Time
	End() time.Time
	// At answers for the hour that t lies in. Past the end the last value
	// holds, marked extrapolated; before the start it is ErrOutside.
	At(zone string, t time.Time) (Reading, error)
}

// Feed is what a running cell asks, in wall time.
type Feed interface {
	Kind() Kind
	// Zones lists the zones the feed answers for, sorted.
	Zones() []string
	// At is the intensity of the present hour.
	At(zone string, wall time.Time) (Reading, error)
	// Ahead is the present hour and those after it, hours readings in all:
	// the first is At, the rest are foretold. They are hours of the feed's
	// clock, which may run faster than the wall's.
	Ahead(zone string, wall time.Time, hours int) ([]Reading, error)
	// Hour tells in wall time when the present hour of the feed began, and how
	// long each hour of it lasts.
	Hour(wall time.Time) (from time.Time, lasts time.Duration)
}

func (k Kind) validate() error {
	if k != Average && k != Marginal {
		return fmt.Errorf("carbon: kind %q: %w", string(k), ErrUnknownKind)
	}
	return nil
}
